"""attention on a GPU: every kernel against float64, at the shapes of SD 1.5 and at awkward ones."""

from __future__ import annotations

import math

import pytest

from hotloop_kernels import KernelError, attention, backend, build_info
from hotloop_kernels.testing import assert_close_as_naive, use_wgmma

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.skipif(not build_info().get("cuda"), reason="the operators were built without CUDA"),
]


def case(B, Tq, Tk, H, D, dtype, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    dtype = getattr(torch, dtype)
    return [torch.randn(B, T, H, D, generator=generator, device="cuda").to(dtype) for T in (Tq, Tk, Tk)]


def definition(q, k, v, *, mask=None, scale=None, segments=()):
    """The formula, every step in the precision of its inputs."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale

    def attend(k, v, mask):
        scores = q.transpose(1, 2) @ k.transpose(1, 2).mT * scale
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -torch.inf) if mask.dtype == torch.uint8 else scores + mask
        return (scores.softmax(-1).nan_to_num().to(q.dtype) @ v.transpose(1, 2)).transpose(1, 2)

    out = attend(k, v, mask)
    B, T, H, _ = q.shape
    for k_s, v_s, weight in segments:
        out = out + weight.to(q.dtype).expand(B, H, T).mT[..., None] * attend(k_s, v_s, None)
    return out


def check(q, k, v, *, mask=None, segments=(), out=None, **options):
    wide = [tuple(t.double() for t in segment) for segment in segments]
    wide_mask = mask if mask is None or mask.dtype == torch.uint8 else mask.double()
    exact = definition(q.double(), k.double(), v.double(), mask=wide_mask, segments=wide, **options)
    naive = definition(q, k, v, mask=mask, segments=segments, **options)
    got = attention(q, k, v, mask=mask, segments=segments, out=out, unproved=True, **options)
    assert_close_as_naive(got, exact, naive, str(q.dtype).removeprefix("torch."))
    return got


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def segment(q, keys, *, seed=1):
    B, T, H, D = q.shape
    _, k, v = case(B, 1, keys, H, D, str(q.dtype).removeprefix("torch."), seed)
    return k, v, torch.randn(B, H, T, device="cuda")


# UNet self and cross attention at 512 x 512 with guidance, the text encoder, the VAE's middle block, awkward ones.
SHAPES = [(2, 4096, 4096, 8, 40), (2, 1024, 1024, 8, 80), (2, 256, 256, 8, 160), (2, 64, 64, 8, 160)]
SHAPES += [
    (2, 4096, 77, 8, 40),
    (2, 1024, 77, 8, 80),
    (2, 256, 77, 8, 160),
    (2, 77, 77, 12, 64),
    (1, 4096, 4096, 1, 512),
]
SHAPES += [(1, 1, 1, 1, 8), (1, 769, 769, 3, 40), (3, 77, 769, 2, 96), (1, 769, 77, 2, 256)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_equals_float64(shape, dtype):
    with use_wgmma(False):
        check(*case(*shape, dtype))


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="not Hopper")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [*SHAPES[:3], (1, 769, 769, 3, 40), (2, 4000, 1000, 8, 80), (1, 130, 140, 2, 160)])
def test_the_hopper_kernel_equals_float64(shape, dtype):
    with use_wgmma():
        first = check(*case(*shape, dtype))
        again = attention(*case(*shape, dtype), unproved=True)
    assert same_bits(first, again)


@pytest.mark.parametrize("head_size", [*range(8, 257, 8), 512])
def test_every_head_size_equals_float64(head_size):
    check(*case(2, 130, 200, 2, head_size, "float16"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_masks_and_segments_equal_float64(dtype):
    qkv = case(2, 300, 77, 2, 40, dtype)
    segments = [segment(qkv[0], 4), segment(qkv[0], 257)]
    check(*qkv, mask=(torch.rand(2, 1, 300, 77, device="cuda") < 0.7).to(torch.uint8), segments=segments)
    check(*qkv, mask=torch.randn(300, 77, device="cuda").to(qkv[0].dtype), segments=segments)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("head_size", [40, 160, 512])
def test_weight_zero_equals_no_segment_bit_for_bit(head_size, dtype):
    qkv = case(1, 200, 77, 2, head_size, dtype)
    k, v, weight = segment(qkv[0], 100)
    plain = attention(*qkv, unproved=True)
    assert same_bits(attention(*qkv, segments=[(k, v, torch.zeros_like(weight))], unproved=True), plain)
    weight[:, :, 7:] = 0
    some = attention(*qkv, segments=[(k, v, weight)], unproved=True)
    assert same_bits(some[:, 7:], plain[:, 7:]) and not same_bits(some[:, :7], plain[:, :7])


def test_strided_and_unaligned_inputs_equal_float64():
    packed = torch.randn(2, 300, 3, 4, 40, device="cuda").half()
    check(*packed.unbind(2))
    wide = torch.randn(3, 2, 4, 300, 43, device="cuda").half()
    check(*(part[..., 3:].transpose(1, 2) for part in wide))


@pytest.mark.parametrize("wgmma", [False, True])
def test_a_captured_call_replays_to_the_same_bits(wgmma):
    qkv = case(2, 1024, 1024, 8, 80, "float16")
    with use_wgmma(wgmma):
        eager = attention(*qkv, unproved=True)
        out = torch.empty_like(eager)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.graph(graph, stream=stream):
            attention(*qkv, out=out, stream=torch.cuda.current_stream().cuda_stream, unproved=True)
    out.zero_()
    graph.replay()
    assert same_bits(out, eager)


def test_an_unproved_kernel_says_so():
    backend.ops.set_proved({})
    try:
        with pytest.raises(KernelError, match="gpu-check"):
            attention(*case(1, 64, 64, 1, 40, "float16"))
    finally:
        backend.ops.set_proved(backend.proved)
