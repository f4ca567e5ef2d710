"""attention: against float64, and eager torch's steps as the naive computation."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

import hotloop_kernels
from hotloop_kernels import KernelError, backend, set_threads, threads
from hotloop_kernels.attention import MAX_SEGMENTS
from hotloop_kernels.testing import BACKENDS, ISAS, assert_close_as_naive, use, use_isa, use_wgmma, ways

torch = pytest.importorskip("torch")
compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")

# On a GPU that no gpu-check has proved: these tests are its proof. Hopper's own kernel: test_attention_wgmma.py.
attention = partial(hotloop_kernels.attention, unproved=True)

DTYPES = ["float32", "float16", "bfloat16"]
HEAD_SIZES = [*range(8, 257, 8), 512]


@pytest.fixture(autouse=True)
def without_the_hopper_kernel():
    """Whatever this build has been proved for."""
    with use_wgmma(False) if hasattr(backend.ops, "attention_use_wgmma") else nullcontext():
        yield


def case(B, Tq, Tk, H, D, dtype="float32", device="cpu", *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, H, D, generator=generator).to(device, getattr(torch, dtype)) for T in (Tq, Tk, Tk)]


def normal(*shape, like):
    """Standard normal values in float32 on the device of `like`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(like.device)


def uniform(*shape, like):
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)).to(like.device)


def segment(q, Ts, weight, seed=1):
    """(k, v, weight) that fits q; weight: a shape to draw from, or the tensor."""
    B, _, H, D = q.shape
    _, k, v = case(B, 1, Ts, H, D, str(q.dtype).removeprefix("torch."), q.device, seed=seed)
    if not isinstance(weight, torch.Tensor):
        weight = torch.randn(weight, generator=torch.Generator().manual_seed(seed))
    return k, v, weight.to(q.device)


def definition(q, k, v, *, mask=None, scale=None, segments=()):
    """The formula, every step in the precision of its inputs; a query with nothing to look at gets zeros."""

    def attend(k, v, mask):
        scores = q.transpose(1, 2) @ k.transpose(1, 2).mT * scale
        if mask is not None:
            scores = scores + mask.to(q.dtype)
        p = scores.softmax(-1).nan_to_num() if mask is not None else scores.softmax(-1)
        return (p @ v.transpose(1, 2)).transpose(1, 2)

    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if mask is not None and not mask.is_floating_point():
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask == 0, -torch.inf)
    out = attend(k, v, mask)
    for k_s, v_s, weight in segments:
        B, T, H, _ = q.shape
        out = out + weight.to(q.dtype).expand(B, H, T).mT[..., None] * attend(k_s, v_s, None)
    return out


def exact(q, k, v, *, mask=None, segments=(), **options):
    wide = [tuple(t.double() for t in part) for part in segments]
    mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    return definition(q.double(), k.double(), v.double(), mask=mask, segments=wide, **options)


def assert_close(inputs, **options):
    want, rounded = exact(*inputs, **options), definition(*inputs, **options)
    for way in ways(inputs[0].device.type):
        with way:
            got = attention(*inputs, **options)
        assert_close_as_naive(got, want, rounded, str(inputs[0].dtype).removeprefix("torch."))


# SD 1.5 at 512 x 512, guidance aside: UNet self and cross attention, the VAE's middle block, the text encoder.
FULL = [
    (1, 4096, 4096, 2, 40, "bfloat16"),  # a quarter of the heads
    (1, 1024, 1024, 8, 80, "float32"),
    (2, 256, 256, 8, 160, "float16"),
    (2, 64, 64, 8, 160, "bfloat16"),
    (1, 4096, 77, 8, 40, "float16"),
    (2, 1024, 77, 8, 80, "bfloat16"),
    (2, 256, 77, 8, 160, "float32"),
    (2, 64, 77, 8, 160, "float32"),
    (1, 1024, 4096, 1, 512, "float32"),  # a quarter of the VAE's queries
    (2, 77, 77, 12, 64, "float32"),
]


@compiled
@pytest.mark.parametrize("shape", FULL, ids=lambda s: "x".join(map(str, s)))
def test_the_shapes_of_sd_are_as_close_as_the_naive_computation_on_every_instruction_set(shape, device):
    assert_close(case(*shape, device))


# Where a GPU has work for all of its processors: two images, the whole of the VAE's block, and beyond 512 x 512.
FULL_ON_A_GPU = [
    (2, 4096, 4096, 8, 40), (2, 1024, 1024, 8, 80), (16, 256, 256, 8, 160), (2, 4096, 77, 8, 40), (2, 1024, 154, 8, 80),
    (1, 4096, 4096, 1, 512), (1, 9216, 9216, 4, 40),
]  # fmt: skip


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", FULL_ON_A_GPU, ids=lambda s: "x".join(map(str, s)))
def test_shapes_that_fill_a_gpu_are_as_close_as_the_naive_computation(shape, dtype):
    assert_close(case(*shape, dtype, "cuda"))


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [40, 160])
def test_a_captured_graph_follows_its_inputs(D, dtype, capture):
    def given(seed):
        q, k, v = case(2, 200, 77, 4, D, dtype, "cuda", seed=seed)
        k_s, v_s, weight = segment(q, 4, (2, 4, 200), seed=seed + 10)
        return [q, k, v, k_s, v_s, weight, torch.rand(200, 77, device="cuda") < 0.8]

    def attend(q, k, v, k_s, v_s, weight, mask, **options):
        return attention(q, k, v, mask=mask, segments=[(k_s, v_s, weight)], **options)

    held = given(0)
    out = torch.empty_like(held[0])
    replay = capture(lambda stream: attend(*held, out=out, stream=stream))
    for seed in (1, 2):
        changed = given(seed)
        for old, new in zip(held, changed, strict=True):
            old.copy_(new)
        replay()
        assert torch.equal(out, attend(*changed))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("Tq", "Tk"), [(1, 1), (1, 769), (2, 3), (17, 25), (77, 77), (65, 100), (769, 5), (100, 769)])
def test_any_count_of_tokens_is_as_close_as_the_naive_computation_on_every_instruction_set(Tq, Tk, dtype, device):
    assert_close(case(2, Tq, Tk, 3, 24, dtype, device))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", HEAD_SIZES)
def test_every_head_size_is_as_close_as_the_naive_computation_on_every_instruction_set(D, dtype, device):
    assert_close(case(1, 35, 131, 2, D, dtype, device))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 70, 130), (1, 1, 70, 130), (2, 1, 1, 130), (3, 1, 130), (70, 130), (130,)])
def test_a_mask_broadcasts_and_is_added(shape, dtype, device):
    inputs = case(2, 70, 130, 3, 16, dtype, device)
    mask = 3 * normal(*shape, like=inputs[0])
    for kind in DTYPES:
        assert_close(inputs, mask=mask.to(getattr(torch, kind)))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_of_bytes_or_bools_says_where_to_look(dtype, device):
    inputs = case(2, 70, 130, 3, 16, dtype, device)
    mask = uniform(2, 1, 70, 130, like=inputs[0]) < 0.3
    assert_close(inputs, mask=mask)
    assert torch.equal(attention(*inputs, mask=mask), attention(*inputs, mask=mask.to(torch.uint8)))
    added = torch.zeros(mask.shape, device=device).masked_fill(~mask, -torch.inf)
    assert torch.equal(attention(*inputs, mask=mask), attention(*inputs, mask=added))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_causal_mask_hides_the_future(dtype, device):
    q, k, v = case(1, 300, 300, 2, 32, dtype, device)
    mask = torch.ones(300, 300, dtype=torch.bool, device=device).tril()
    assert_close((q, k, v), mask=mask)
    for way in ways(device):
        with way:
            whole = attention(q, k, v, mask=mask)
            k[:, 200:], v[:, 200:] = 7, -7
            assert torch.equal(attention(q, k, v, mask=mask)[:, :200], whole[:, :200])
            assert torch.equal(whole[:, 0], v[:, 0])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_may_look_at_nothing_gets_zeros(dtype, device):
    q, k, v = case(1, 40, 300, 2, 16, dtype, device)
    mask = uniform(40, 300, like=q) < 0.5
    mask[[3, 39]] = False
    mask[7, :250] = False  # nothing in the first blocks of keys
    mask[8, 50:] = False
    for way in ways(device):
        with way:
            for blind in (mask, torch.zeros(40, 300, device=device).masked_fill(~mask, -torch.inf)):
                out = attention(q, k, v, mask=blind)
                assert torch.isfinite(out).all()
                assert not out[:, [3, 39]].any() and out[:, 7].any()
    assert_close((q, k, v), mask=mask)


@compiled
def test_a_mask_of_the_lowest_finite_values_is_no_mask_of_infinities(device):
    inputs = case(1, 40, 300, 2, 16, device=device)
    hidden = uniform(40, 300, like=inputs[0]) < 0.5
    hidden[3] = True  # these all count the same: as if nothing were hidden, but for the scores that drown
    for kind in (torch.float32, torch.bfloat16):
        mask = torch.zeros(40, 300, dtype=kind, device=device)
        assert_close(inputs, mask=mask.masked_fill(hidden, torch.finfo(kind).min))


@compiled
def test_a_mask_need_not_be_contiguous(device):
    inputs = case(2, 33, 50, 3, 16, device=device)
    mask = normal(50, 33, 2, 3, like=inputs[0]).permute(2, 3, 1, 0)
    for view in (mask, mask.half(), mask > 0, mask.contiguous().flip(3)[..., ::1].repeat(1, 1, 1, 2)[..., ::2]):
        want = attention(*inputs, mask=view.contiguous())
        assert torch.equal(attention(*inputs, mask=view), want)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 70), (2, 1, 1), (1, 3, 1), (70,), ()])
def test_segments_are_weighted_softmaxes_of_their_own(shape, dtype, device):
    q, k, v = case(2, 70, 77, 3, 40, dtype, device)
    segments = [segment(q, Ts, shape, seed=Ts) for Ts in (4, 257)]
    assert_close((q, k, v), segments=segments)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_eight_segments_pass_with_a_mask_that_is_the_first_sets_alone(dtype, device):
    q, k, v = case(1, 20, 77, 2, 64, dtype, device)
    segments = [segment(q, 1 + 5 * i, (1, 2, 20), seed=i) for i in range(MAX_SEGMENTS)]
    mask = torch.ones(20, 77, dtype=torch.bool, device=device).tril()
    mask[3] = False  # only segments are left there
    assert_close((q, k, v), segments=segments, mask=mask)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_zero_equals_no_segment_bit_for_bit(dtype, device):
    q, k, v = case(1, 70, 300, 3, 40, dtype, device)
    v[..., :3] = -v[..., :3].abs() * 1e-30  # sums that round to -0 in the narrow dtypes
    bad = [torch.full_like(q[:, :9], value) for value in (torch.nan, torch.inf)]
    for way in ways(device):
        with way:
            want = bits(attention(q, k, v))
            for weight in (torch.zeros(1, 3, 70), torch.zeros(()), torch.full((), -0.0)):
                weight = weight.to(device)
                assert torch.equal(bits(attention(q, k, v, segments=[segment(q, 9, weight)])), want)
                assert torch.equal(bits(attention(q, k, v, segments=[(bad[0], bad[1], weight)] * 2)), want)
            some = torch.zeros(1, 3, 70, device=device)
            some[:, :, 11::4] = 0.5
            got = bits(attention(q, k, v, segments=[segment(q, 9, some)]))
            kept = (some == 0)[0, 0]
            assert torch.equal(got[:, kept], want[:, kept]) and not torch.equal(got[:, ~kept], want[:, ~kept])


def bits(x):
    """-0 and 0 differ here."""
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_does_not_depend_on_the_count_of_threads(dtype):
    q, k, v = case(2, 500, 333, 3, 40, dtype)
    options = {"mask": torch.rand(500, 333) < 0.9, "segments": [segment(q, 9, (3, 500))]}
    before = threads()
    try:
        for isa in ISAS:
            results = []
            for count in (1, 2, 3, 16, 64):
                set_threads(count)
                with use_isa(isa):
                    results.append(bits(attention(q, k, v, **options)))
            assert all(torch.equal(result, results[0]) for result in results)
    finally:
        set_threads(before)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_alone_equals_the_query_in_a_batch_bit_for_bit(dtype, device):
    q, k, v = case(3, 200, 333, 4, 40, dtype, device)
    for way in ways(device):
        with way:
            whole = attention(q, k, v)
            for part in (
                (1, slice(None), slice(None)),
                (2, slice(60, 61), slice(1, 3)),
                (0, slice(7, 180), slice(3, 4)),
            ):
                b, t, h = part
                alone = attention(q[b, None, t, h], k[b, None, :, h], v[b, None, :, h])
                assert torch.equal(alone[0], whole[b, t, h])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_and_outputs_need_not_be_contiguous(dtype, device):
    q, k, v = case(2, 100, 100, 3, 16, dtype, device)
    for way in ways(device):
        with way:
            want = attention(q, k, v)
            fused = torch.stack([q, k, v], dim=2).unbind(2)  # [B, T, 3, H, D]: one projection for all three
            assert torch.equal(attention(*fused), want)
            heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
            assert torch.equal(attention(*heads_first), want)
            odd = [torch.cat([t, t[..., :1]], dim=-1)[..., 1:] for t in (q, k, v)]  # rows of 17 values
            assert torch.equal(attention(*odd), attention(*(t.contiguous() for t in odd)))
            once = [t[:1].expand(2, -1, -1, -1) for t in (k, v)]
            assert torch.equal(attention(q, *once), attention(q, *(t.contiguous() for t in once)))
            room = q.new_zeros(2, 3, 100, 33)
            out = room.transpose(1, 2)[..., 9:25]
            assert attention(q, k, v, out=out) is out and torch.equal(out, want)
            assert not room[..., :9].any() and not room[..., 25:].any()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_with_one_key_gets_its_value(dtype, device):
    q, k, v = case(2, 50, 1, 3, 40, dtype, device)
    for way in ways(device):
        with way:
            assert torch.equal(attention(30 * q, k, v), v.expand(2, 50, 3, 40))


@compiled
@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.5])
def test_any_scale_will_do(scale, device):
    for dtype in DTYPES:
        assert_close(case(1, 40, 300, 2, 16, dtype, device), scale=scale)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart_neither_overflow_nor_vanish(dtype, device):
    q, k, v = case(1, 40, 300, 2, 16, dtype, device)
    whole = ((20 * q).round(), (20 * k).round(), v)  # so that scores of some thousands are exact
    assert_close(whole)
    # The largest score comes last, and everything before it counts for nothing.
    ramp = torch.linspace(-1, 1, 300, device=device)[None, :, None, None].expand_as(k).to(k.dtype) * 100
    assert_close((q.abs() + 1, ramp, v))


@compiled
def test_a_nan_stays_in_the_queries_that_see_it(device):
    for dtype in DTYPES:
        q, k, v = case(1, 40, 300, 2, 16, dtype, device)
        mask = torch.ones(40, 300, dtype=torch.bool, device=device)
        q[0, 5] = torch.nan
        for way in ways(device):
            with way:
                for options in ({}, {"mask": mask}):
                    seen = attention(q, k, v, **options).isnan().all(-1)
                    assert seen[0, 5].all() and seen.sum() == 2


@compiled
def test_a_value_that_is_the_same_for_all_keys_comes_back(device):
    for dtype in DTYPES:
        q, k, v = case(1, 40, 300, 2, 16, dtype, device)
        v = v[:, :1].expand_as(v)
        assert_close((q, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numpy_arrays_give_numpy_arrays(backend, dtype):
    q, k, v = case(2, 30, 40, 3, 16, dtype)
    mask, weight = torch.rand(3, 30, 40) < 0.5, torch.rand(3, 1)
    mask[0, 5] = False
    k_s, v_s, _ = segment(q, 4, weight)
    parts = [(k_s.numpy(), v_s.numpy(), weight.numpy())]
    with use(backend):
        got = attention(q.numpy(), k.numpy(), v.numpy(), mask=mask.numpy(), segments=parts)
    assert isinstance(got, np.ndarray) and got.dtype == dtype
    options = {"mask": mask, "segments": [(k_s, v_s, weight)]}
    assert_close_as_naive(got, exact(q, k, v, **options), definition(q, k, v, **options), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_passes_in_numpy_by_ml_dtypes(backend):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    inputs = case(1, 30, 40, 2, 16, "bfloat16")
    with use(backend):
        got = attention(*(t.float().numpy().astype(bfloat16) for t in inputs))
    assert got.dtype == bfloat16
    assert_close_as_naive(got, exact(*inputs), definition(*inputs), "bfloat16")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_and_the_compiled_operator_honour_weight_zero_and_blind_queries(backend):
    q, k, v = (t.numpy() for t in case(1, 6, 5, 2, 8))
    bad = np.full((1, 3, 2, 8), np.nan, np.float32)
    mask = np.zeros((6, 5), bool)
    mask[:3] = True
    with use(backend):
        out = attention(q, k, v, mask=mask, segments=[(bad, bad, np.zeros((), np.float32))])
        assert np.array_equal(out, attention(q, k, v, mask=mask))
    assert out[:, :3].any() and not out[:, 3:].any()


@compiled
def test_no_queries_no_work(device):
    for shape in ((0, 5, 2, 8), (1, 0, 2, 8), (1, 5, 0, 8)):
        q = torch.ones(shape, device=device)
        k = torch.ones(shape[0], 3, *shape[2:], device=device)
        assert attention(q, k, k).shape == shape


def test_bad_arguments_name_the_rule_and_the_value():
    q, k, v = case(2, 5, 7, 3, 16)
    w = torch.ones(())
    for message, call in {
        r"\[attention\] q must be \[B, T, H, D\], got \[5, 3, 16\]": lambda: attention(q[0], k, v),
        r"\[attention\] q must be float32, float16 or bfloat16, got float64": lambda: attention(q.double(), k, v),
        r"\[attention\] head size must be a multiple of 8 up to 256, or 512, got 12": lambda: attention(
            q[..., :12], k[..., :12], v[..., :12]
        ),
        r"\[attention\] head size must be a multiple of 8 up to 256, or 512, got 264": lambda: attention(
            *case(1, 2, 2, 1, 264)
        ),
        r"\[attention\] k must be float32 \[2, 7, 3, 16\], got float16 \[2, 7, 3, 16\]": lambda: attention(
            q, k.half(), v
        ),
        r"\[attention\] v must be float32 \[2, 7, 3, 16\], got float32 \[2, 6, 3, 16\]": lambda: attention(
            q, k, v[:, 1:]
        ),
        r"\[attention\] k must be \[2, Tk, 3, 16\] with Tk at least 1, got \[2, 0, 3, 16\]": lambda: attention(
            q, k[:, :0], v[:, :0]
        ),
        r"\[attention\] k must be float32 .*, got NoneType": lambda: attention(q, None, v),
        r"\[attention\] mask must be .* that broadcasts to \[2, 3, 5, 7\], got float32 \[2, 5, 7\]": lambda: attention(
            q, k, v, mask=torch.ones(2, 5, 7)
        ),
        r"\[attention\] mask must have 7 keys, got \[5, 1\]": lambda: attention(q, k, v, mask=torch.ones(5, 1)),
        r"\[attention\] mask must be float32 or .*, got int32 \[7\]": lambda: attention(
            q, k, v, mask=torch.ones(7, dtype=torch.int32)
        ),
        r"\[attention\] segments must be at most 8, got 9": lambda: attention(q, k, v, segments=[(k, v, w)] * 9),
        r"\[attention\] a segment's v must be float32 \[2, 7, 3, 16\], got": lambda: attention(
            q, k, v, segments=[(k, v[:, 1:], w)]
        ),
        r"\[attention\] a segment's weight must be float32 .*\[2, 3, 5\], got float32 \[5, 1\]": lambda: attention(
            q, k, v, segments=[(k, v, torch.ones(5, 1))]
        ),
        r"\[attention\] a segment's weight must be float32 .*, got float": lambda: attention(
            q, k, v, segments=[(k, v, 1.0)]
        ),
        r"\[attention\] scale must be finite, got inf": lambda: attention(q, k, v, scale=math.inf),
        r"\[attention\] out must be float32 \[2, 5, 3, 16\], got": lambda: attention(q, k, v, out=k),
    }.items():
        with pytest.raises(KernelError, match=message):
            call()
    with use("reference"), pytest.raises(KernelError, match=r"\[attention\] arrays must be of numpy .* got Tensor"):
        attention(q, k, v)


@compiled
def test_what_only_the_binding_sees_has_a_line_too():
    q, k, v = case(2, 5, 7, 3, 16)
    with pytest.raises(KernelError, match=r"\[attention\] k must be contiguous over its last axis, got a stride of 2"):
        attention(q, torch.stack([k, k], dim=-1)[..., 0], v)
    frozen = np.zeros((2, 5, 3, 16), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(KernelError, match=r"\[attention\] out must be writable"):
        attention(*(t.numpy() for t in (q, k, v)), out=frozen)
    assert backend.ops.max_segments == MAX_SEGMENTS
