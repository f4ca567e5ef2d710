"""rgb: against float64 arithmetic and the baseline's own image processor."""

from __future__ import annotations

import numpy as np
import pytest

from hotloop_kernels import KernelError, rgb
from hotloop_kernels import backend as kernels_backend
from hotloop_kernels.testing import BACKENDS, ISAS, use, use_isa

SIZES = [(1, 3, 64, 64), (2, 3, 7, 11), (1, 4, 1, 1025), (3, 1, 5, 1), (0, 3, 8, 8)]


def pictures(shape, seed=0):
    """Values well beyond [-1, 1], with both ends and the halves between two bytes among them."""
    x = np.random.default_rng(seed).uniform(-1.5, 1.5, shape).astype(np.float32)
    edges = np.r_[-1, 1, 0, -0.0, (np.arange(256) + 0.5) / 127.5 - 1].astype(np.float32)
    count = min(x.size, edges.size)
    x.reshape(-1)[:count] = edges[:count]
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_pack_rounds_to_the_nearest_byte(backend, shape):
    x = pictures(shape)
    with use(backend):
        got = rgb.pack(x)
    assert got.shape == (shape[0], *shape[2:], shape[1]) and got.dtype == np.uint8
    exact = np.clip(x.astype(np.float64) / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1) * 255
    assert np.abs(got - exact).max(initial=0) <= 0.5 + 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_pack_gives_the_bytes_of_the_baseline(backend):
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    x = pictures((2, 3, 33, 47))
    want = processor.postprocess(torch.from_numpy(x), output_type="pil")
    with use(backend):
        assert np.array_equal(rgb.pack(x), np.stack([np.asarray(image) for image in want]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unpack_gives_the_pixels_of_the_baseline(backend):
    Image = pytest.importorskip("PIL.Image")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor(vae_scale_factor=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    want = processor.preprocess([Image.fromarray(p) for p in pixels]).numpy()
    with use(backend):
        got = rgb.unpack(pixels)
    assert got.dtype == np.float32 and np.array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_byte_survives_unpack_and_pack(backend):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    with use(backend):
        assert np.array_equal(rgb.pack(rgb.unpack(pixels)), pixels)


@pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_compiled_operators_equal_their_references_bit_for_bit(shape):
    x = pictures(shape, seed=1)
    with use("reference"):
        packed = rgb.pack(x)
        unpacked = rgb.unpack(packed)
    assert np.array_equal(rgb.pack(x), packed)
    assert np.array_equal(rgb.unpack(packed), unpacked)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_need_not_be_contiguous(backend):
    x = pictures((2, 3, 8, 10))
    with use(backend):
        assert np.array_equal(rgb.pack(x[:, :, ::2, 1::3]), rgb.pack(x[:, :, ::2, 1::3].copy()))
        pixels = rgb.pack(x)
        assert np.array_equal(rgb.unpack(pixels[:, ::-1]), rgb.unpack(pixels[:, ::-1].copy()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error_not_a_black_pixel(backend, value):
    x = pictures((2, 3, 9, 9))
    x[1, 2, 8, 8] = value
    with use(backend), pytest.raises(KernelError, match=r"\[rgb.pack\] images must be finite, got 1 values"):
        rgb.pack(x)


def test_another_dtype_or_layout_is_an_error():
    with pytest.raises(
        KernelError, match=r"\[rgb.pack\] images must be float32, float16 or bfloat16 \[N, C, h, w\], got float64 \[1"
    ):
        rgb.pack(np.zeros((1, 3, 2, 2)))
    with pytest.raises(KernelError, match=r"\[rgb.unpack\] pixels must be uint8 \[N, h, w, C\], got uint8 \[2, 2, 3\]"):
        rgb.unpack(np.zeros((2, 2, 3), np.uint8))


compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")

RESIZES = [
    ((72, 128), (32, 32)),  # a camera's 16 : 9 in small
    ((33, 47), (16, 16)),
    ((16, 16), (33, 47)),
    ((12, 20), (12, 7)),
    ((5, 40), (20, 10)),  # one axis grows, the other shrinks
    ((1, 1), (3, 4)),
    ((8, 9), (1, 1)),
]


def photographs(size, n=2, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, *size, channels), dtype=np.uint8)


def coverage(inputs, outputs):
    """[outputs, inputs]: the share of each input in what an output covers, from real intervals."""
    edge = np.arange(outputs + 1) * inputs / outputs
    low = np.maximum(edge[:-1, None], np.arange(inputs)[None])
    high = np.minimum(edge[1:, None], np.arange(inputs)[None] + 1)
    return np.maximum(high - low, 0) * outputs / inputs


def between_centres(inputs, outputs):
    """[outputs, inputs]: a hat around each output's centre, edges repeated."""
    centre = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
    return np.maximum(1 - np.abs(centre[:, None] - np.arange(inputs)[None]), 0)


def matrix(inputs, outputs, kind):
    area = kind == "area" or (kind == "fit" and outputs < inputs)
    return coverage(inputs, outputs) if area else between_centres(inputs, outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", rgb.FILTERS)
@pytest.mark.parametrize(("size", "to"), RESIZES, ids=str)
def test_a_resize_equals_its_definition_in_float64(backend, kind, size, to):
    pixels = photographs(size)
    down, across = matrix(size[0], to[0], kind), matrix(size[1], to[1], kind)
    want = np.einsum("yj,xi,njic->ncyx", down, across, pixels.astype(np.float64)) / 127.5 - 1
    with use(backend):
        got = rgb.unpack(pixels, size=to, filter=kind)
    assert got.dtype == np.float32 and np.abs(got - want).max() <= 1e-6


@compiled
@pytest.mark.parametrize("kind", rgb.FILTERS)
@pytest.mark.parametrize(("size", "to"), [*RESIZES, ((9, 9), (9, 9))], ids=str)
def test_reference_every_instruction_set_and_a_cuda_thread_give_the_same_bits(kind, size, to):
    pixels = photographs(size)
    with use("reference"):
        want = rgb.unpack(pixels, size=to, filter=kind)
    for isa in ISAS:
        with use_isa(isa):
            assert np.array_equal(rgb.unpack(pixels, size=to, filter=kind), want)
    by_value = np.empty_like(want)
    kernels_backend.ops.rgb_unpack(pixels, by_value, kind, 0, False, True)
    assert np.array_equal(by_value, want)


@pytest.mark.parametrize("mode", ["bilinear", "area"])
def test_resizes_agree_with_torchs(mode):
    torch = pytest.importorskip("torch")
    size, to, kind = ((20, 30), (50, 41), "linear") if mode == "bilinear" else ((64, 96), (16, 32), "area")
    pixels = photographs(size)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    want = torch.nn.functional.interpolate(x, to, mode=mode) / 127.5 - 1
    assert np.abs(rgb.unpack(pixels, size=to, filter=kind) - want.numpy()).max() <= 1e-6


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tensors_of_torch_pass_in_every_dtype_and_layout(dtype):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    x = torch.from_numpy(pictures((2, 3, 33, 47))).to(kind)
    packed = rgb.pack(x)
    assert packed.dtype == torch.uint8 and np.array_equal(packed.numpy(), rgb.pack(x.float().numpy()))
    last = x.contiguous(memory_format=torch.channels_last)
    planes = torch.empty(2, 3, 33, 47, dtype=torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(rgb.pack(last), packed) and torch.equal(rgb.pack(x, out=planes), packed)
    unpacked = rgb.unpack(packed, size=(16, 20), dtype=dtype)
    assert unpacked.dtype == kind
    assert torch.equal(unpacked, torch.from_numpy(rgb.unpack(packed.numpy(), size=(16, 20))).to(kind))
    again = torch.empty(2, 3, 16, 20, dtype=kind).contiguous(memory_format=torch.channels_last)
    assert torch.equal(rgb.unpack(planes.copy_(packed), out=again, size=(16, 20)), unpacked)


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [*SIZES, (2, 3, 512, 512)], ids=str)
def test_a_gpu_packs_the_cpus_bytes_and_counts_what_is_not_finite(shape, dtype):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(pictures(shape)).to(getattr(torch, dtype))
    want, bad = rgb.pack(x), torch.full((1,), 7, dtype=torch.int32, device="cuda")
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.cuda().contiguous(memory_format=layout)
        assert torch.equal(rgb.pack(given, bad=bad, unproved=True).cpu(), want) and not bad.item()
    planes = torch.empty(x.shape, dtype=torch.uint8, device="cuda").permute(0, 2, 3, 1)
    assert torch.equal(rgb.pack(x.cuda(), out=planes, unproved=True).cpu(), want)
    if x.numel() > 2:
        broken = x.cuda()
        broken.view(-1)[[0, -1]] = torch.tensor([torch.nan, torch.inf], dtype=x.dtype, device="cuda")
        rgb.pack(broken, bad=bad, unproved=True)
        assert bad.item() == 2


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", rgb.FILTERS)
@pytest.mark.parametrize(("size", "to"), [*RESIZES, ((9, 9), (9, 9)), ((720, 1280), (512, 512))], ids=str)
def test_a_gpu_unpacks_and_resizes_to_the_cpus_bits(size, to, kind, dtype):
    torch = pytest.importorskip("torch")
    pixels = torch.from_numpy(photographs(size))
    want = rgb.unpack(pixels, size=to, filter=kind, dtype=dtype)
    got = rgb.unpack(pixels.cuda(), size=to, filter=kind, dtype=dtype, unproved=True)
    assert got.dtype == want.dtype and torch.equal(got.cpu(), want)
    planes = pixels.cuda().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    out = torch.empty_like(got).contiguous(memory_format=torch.channels_last)
    rgb.unpack(planes, size=to, filter=kind, out=out, unproved=True)
    assert torch.equal(out.cpu(), want)


@pytest.mark.gpu
@compiled
def test_a_captured_graph_follows_its_inputs(capture):
    torch = pytest.importorskip("torch")
    pixels, x = torch.from_numpy(photographs((72, 128))).cuda(), torch.from_numpy(pictures((2, 3, 33, 47))).cuda()
    resized = torch.empty(2, 3, 32, 32, device="cuda")
    packed = torch.empty(2, 33, 47, 3, dtype=torch.uint8, device="cuda")
    bad = torch.empty(1, dtype=torch.int32, device="cuda")

    def work(stream):
        rgb.unpack(pixels, size=(32, 32), out=resized, stream=stream, unproved=True)
        rgb.pack(x, out=packed, bad=bad, stream=stream, unproved=True)

    replay = capture(work)
    pixels.copy_(255 - pixels)
    x.neg_()
    replay()
    assert torch.equal(resized.cpu(), rgb.unpack(pixels.cpu(), size=(32, 32)))
    assert torch.equal(packed.cpu(), rgb.pack(x.cpu())) and not bad.item()
    x.fill_(torch.nan)
    replay()
    assert bad.item() == x.numel()


@compiled
def test_a_tensor_with_nan_is_an_error_too():
    torch = pytest.importorskip("torch")
    x = torch.full((1, 3, 4, 4), float("nan"))
    with pytest.raises(KernelError, match=r"\[rgb.pack\] images must be finite, got 48 values"):
        rgb.pack(x)


def test_a_bad_size_filter_or_dtype_is_an_error():
    pixels = photographs((4, 4))
    for message, keywords in {
        r"\[rgb.unpack\] filter must be one of fit, area, linear, got cubic": {"filter": "cubic"},
        r"\[rgb.unpack\] sizes must lie in 1..16384, got 4 x 4 to 0 x 3": {"size": (0, 3)},
        r"\[rgb.unpack\] dtype must be float32, float16 or bfloat16, got float64": {"dtype": "float64"},
        r"\[rgb.unpack\] out must be float32 \[2, 3, 4, 4\], got float32 \[1\]": {"out": np.zeros(1, np.float32)},
    }.items():
        with pytest.raises(KernelError, match=message):
            rgb.unpack(pixels, **keywords)
