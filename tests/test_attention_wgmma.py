"""attention by Hopper's own kernel, on a GPU of compute capability 9.0: against float64 and the portable kernel.

gpu-check proves "attention_wgmma" by this file, apart from attention, which has to be right without it.
"""

from __future__ import annotations

import math
from functools import partial

import pytest

import hotloop_kernels
from hotloop_kernels.testing import assert_close_as_naive, use_wgmma

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu

attention = partial(hotloop_kernels.attention, unproved=True)
DTYPES = ["float16", "bfloat16"]


@pytest.fixture(autouse=True)
def hopper():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not a GPU of compute capability 9.0")
    if "sm_90a" not in hotloop_kernels.build_info().get("cuda", ()):
        pytest.fail("the operators must be compiled for sm_90a")
    with use_wgmma():
        yield


def case(B, Tq, Tk, H, D, dtype, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, H, D, generator=generator).to("cuda", getattr(torch, dtype)) for T in (Tq, Tk, Tk)]


def portable(*inputs, **options):
    with use_wgmma(False):
        return attention(*inputs, **options)


def definition(q, k, v, scale=None):
    """Every step in the precision of its inputs."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = q.transpose(1, 2) @ k.transpose(1, 2).mT * scale
    return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


def assert_close(inputs, got, **options):
    exact = definition(*(t.double() for t in inputs), **options)
    assert_close_as_naive(got, exact, definition(*inputs, **options), str(inputs[0].dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(2, 4096, 4096, 8, 40), (2, 1024, 1024, 8, 80), (2, 256, 256, 8, 160), (16, 1024, 1024, 8, 80),
     (1, 9216, 9216, 4, 40)],
    ids=lambda s: "x".join(map(str, s)),
)  # fmt: skip
def test_the_self_attentions_of_sd_are_as_close_as_the_naive_computation(shape, dtype):
    inputs = case(*shape, dtype)
    assert_close(inputs, attention(*inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [40, 80, 160])
@pytest.mark.parametrize(("Tq", "Tk"), [(128, 128), (129, 129), (191, 255), (128, 769), (1000, 257), (4095, 1153)])
def test_any_count_of_tokens_is_as_close_as_the_naive_computation(Tq, Tk, D, dtype):
    inputs = case(2, Tq, Tk, 3, D, dtype)
    assert_close(inputs, attention(*inputs))


@pytest.mark.parametrize("D", [40, 80, 160])
def test_it_is_another_kernel_than_the_portable_one(D):
    inputs = case(1, 512, 512, 4, D, "float16")
    assert not torch.equal(attention(*inputs), portable(*inputs))


def test_what_it_cannot_do_goes_to_the_portable_kernel():
    q, k, v = case(2, 256, 256, 4, 40, "float16")
    few = case(2, 64, 77, 4, 40, "float16")
    other = case(2, 256, 256, 4, 64, "float16")
    whole = [t.float() for t in (q, k, v)]
    odd = [torch.cat([t, t[..., :1]], dim=-1)[..., 1:] for t in (q, k, v)]  # rows of 41 values
    once = [q, *(t[:1].expand(2, -1, -1, -1) for t in (k, v))]
    for inputs in (few, other, whole, odd, once):
        assert torch.equal(attention(*inputs), portable(*inputs))
    weight = torch.ones((), device="cuda")
    for options in (
        {"mask": torch.ones(256, 256, dtype=torch.bool, device="cuda")}, {"scale": -0.3}, {"scale": 0.0},
        {"segments": [(k[:, :4], v[:, :4], weight)]},
    ):  # fmt: skip
        assert torch.equal(attention(q, k, v, **options), portable(q, k, v, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_and_outputs_need_not_be_contiguous(dtype):
    q, k, v = case(2, 300, 300, 3, 40, dtype)
    want = attention(q, k, v)
    fused = torch.stack([q, k, v], dim=2).unbind(2)  # [B, T, 3, H, D]: one projection for all three
    heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    for inputs in (fused, heads_first):
        assert torch.equal(attention(*inputs), want)
    room = q.new_zeros(2, 3, 300, 60)
    out = room.transpose(1, 2)[..., 10:50]
    assert attention(q, k, v, out=out) is out and torch.equal(out, want)
    assert not room[..., :10].any() and not room[..., 50:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [40, 80, 160])
def test_a_query_alone_equals_the_query_in_a_batch_and_runs_repeat_bit_for_bit(D, dtype):
    q, k, v = case(3, 400, 333, 4, D, dtype)
    whole = attention(q, k, v)
    for _ in range(20):
        assert torch.equal(attention(q, k, v), whole)
    alone = attention(q[1:2, 100:300, 2:3], k[1:2, :, 2:3], v[1:2, :, 2:3])
    assert torch.equal(alone[0], whole[1, 100:300, 2:3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart_neither_overflow_nor_vanish(dtype):
    q, k, v = case(1, 256, 300, 2, 40, dtype)
    far = ((20 * q).round(), (20 * k).round(), v)  # so that scores of some thousands are exact
    assert_close(far, attention(*far))
    # The largest score comes last, and everything before it counts for nothing.
    ramp = torch.linspace(-1, 1, 300, device="cuda")[None, :, None, None].expand_as(k).to(k.dtype) * 100
    rising = (q.abs() + 1, ramp.contiguous(), v)
    assert_close(rising, attention(*rising))
    assert_close((q, k, v), attention(q, k, v, scale=2.5), scale=2.5)


def test_a_nan_stays_in_the_queries_that_see_it():
    q, k, v = case(1, 256, 300, 2, 40, "float16")
    q[0, 5] = torch.nan
    seen = attention(q, k, v).isnan().all(-1)
    assert seen[0, 5].all() and seen.sum() == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [40, 80, 160])
def test_a_captured_graph_follows_its_inputs(D, dtype, capture):
    held = case(2, 512, 512, 4, D, dtype)
    out = torch.empty_like(held[0])
    replay = capture(lambda stream: attention(*held, out=out, stream=stream))
    for seed in (1, 2):
        changed = case(2, 512, 512, 4, D, dtype, seed=seed)
        for old, new in zip(held, changed, strict=True):
            old.copy_(new)
        replay()
        assert torch.equal(out, attention(*changed))
