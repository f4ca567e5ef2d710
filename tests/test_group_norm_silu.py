"""group_norm_silu: against float64, and torch's eager operators as the naive computation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import hotloop_kernels
from hotloop_kernels import KernelError, backend
from hotloop_kernels.testing import BACKENDS, assert_close_as_naive, use, ways

torch = pytest.importorskip("torch")
F = torch.nn.functional
compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")

# On a GPU that no gpu-check has proved: these tests are its proof.
group_norm_silu = partial(hotloop_kernels.group_norm_silu, unproved=True)

SHAPES = [
    ((2, 320, 64, 64), 32),  # SD 1.5 at 512 x 512
    ((2, 960, 32, 32), 32),  # a concatenated skip: groups of 30 channels
    ((2, 1280, 8, 8), 32),
    ((1, 128, 128, 128), 32),  # the VAE
    ((3, 21, 7, 11), 3),  # 77 pixels
    ((1, 6, 1, 769), 6),
    ((2, 8, 5, 1), 1),
    ((1, 4, 1, 1), 2),
    ((0, 8, 4, 4), 2),
]


def case(shape, dtype="float32", device="cpu", *, offset=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator) + offset
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    return [t.to(device, getattr(torch, dtype)) for t in (x, weight, bias)]


def stock(x, weight, bias, groups, *, silu=True):
    y = F.group_norm(x, groups, weight, bias) if x.numel() else x
    return F.silu(y) if silu else y


def naive(x, weight, bias, groups, *, silu=True):
    """Every step rounded to the dtype."""
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups * x.shape[2] * x.shape[3])
    centred = grouped - grouped.mean(-1, keepdim=True)
    y = (centred / ((centred * centred).mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
    y = y * weight[:, None, None] + bias[:, None, None]
    return y * y.sigmoid() if silu else y


def nhwc(x):
    return x.permute(0, 2, 3, 1).contiguous()


def nchw(x):
    return x.permute(0, 3, 1, 2)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_both_layouts_are_as_close_as_the_naive_computation_on_every_instruction_set(shape, groups, dtype, device):
    x, weight, bias = case(shape, dtype, device)
    exact, rounded = stock(x.double(), weight.double(), bias.double(), groups), naive(x, weight, bias, groups)
    first, last = [], []
    for way in ways(device):
        with way:
            first.append(group_norm_silu(x, weight, bias, groups))
            last.append(nchw(group_norm_silu(nhwc(x), weight, bias, groups, channels_last=True)))
        assert_close_as_naive(first[-1], exact, rounded, dtype)
        assert_close_as_naive(last[-1], exact, rounded, dtype)
    assert all(torch.equal(out, outs[0]) for outs in (first, last) for out in outs)


@pytest.mark.parametrize("code", BACKENDS)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_numpy_arrays_give_numpy_arrays(code, silu, channels_last):
    x, weight, bias = case((2, 12, 5, 7))
    exact = stock(x.double(), weight.double(), bias.double(), 4, silu=silu)
    with use(code):
        got = group_norm_silu(
            (nhwc(x) if channels_last else x).numpy(), weight.numpy(), bias.numpy(), 4, silu=silu,
            channels_last=channels_last,
        )  # fmt: skip
    assert isinstance(got, np.ndarray) and got.flags.c_contiguous
    assert_close_as_naive(np.moveaxis(got, 3, 1) if channels_last else got, exact, naive(x, weight, bias, 4, silu=silu),
                          "float32")  # fmt: skip


@compiled
def test_a_tensor_in_torchs_channels_last_format_keeps_it(device):
    x, weight, bias = case((2, 64, 6, 10), device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    got = group_norm_silu(x, weight, bias)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, nchw(group_norm_silu(nhwc(x), weight, bias, channels_last=True)))


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_and_outputs_need_not_be_contiguous(dtype, device):
    x, weight, bias = case((4, 24, 9, 10), dtype, device)
    exact, rounded = stock(x.double(), weight.double(), bias.double(), 4), naive(x, weight, bias, 4)
    wide = x.new_zeros(4, 30, 12, 20)
    wide[:, 3:27, 2:11, ::2] = x
    skip = nchw(torch.cat([nhwc(x), nhwc(x)], dim=-1))[:, :24]  # half of a concatenated NHWC tensor
    turned = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    for view in (wide[:, 3:27, 2:11, ::2], skip, turned):
        assert_close_as_naive(group_norm_silu(view, weight, bias, 4), exact, rounded, dtype)
    last = nhwc(x)
    for source, target in ((x, skip), (nchw(last), torch.empty_like(x)), (nchw(last), turned)):
        group_norm_silu(source, weight, bias, 4, out=target)
        assert_close_as_naive(target, exact, rounded, dtype)


@compiled
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_output_may_be_the_input(channels_last, device):
    x, weight, bias = case((2, 32, 17, 16), device=device)
    x = nhwc(x) if channels_last else x
    want = group_norm_silu(x, weight, bias, channels_last=channels_last)
    assert torch.equal(group_norm_silu(x, weight, bias, channels_last=channels_last, out=x), want)


@compiled
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_mean_far_from_zero_and_many_pixels_cost_no_digits(channels_last, device):
    x, weight, bias = case((1, 8, 256, 300), device=device, offset=300.0)
    exact = stock(x.double(), weight.double(), bias.double(), 2)
    got = group_norm_silu(nhwc(x) if channels_last else x, weight, bias, 2, channels_last=channels_last)
    assert_close_as_naive(nchw(got) if channels_last else got, exact, naive(x, weight, bias, 2), "float32")


@compiled
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_count_of_threads_and_the_batch_do_not_change_a_bit(channels_last, device):
    x, weight, bias = case((3, 64, 40, 40), device=device)
    x = nhwc(x) if channels_last else x
    want = group_norm_silu(x, weight, bias, channels_last=channels_last)
    before = hotloop_kernels.threads()
    try:
        for count in (1, 3):
            hotloop_kernels.set_threads(count)
            assert torch.equal(group_norm_silu(x, weight, bias, channels_last=channels_last), want)
    finally:
        hotloop_kernels.set_threads(before)
    assert torch.equal(group_norm_silu(x[1:2], weight, bias, channels_last=channels_last), want[1:2])


@compiled
@pytest.mark.parametrize("pixels", [1, 3, 63, 64, 769, 4096, 65536, 262144])
def test_the_tiles_of_the_cuda_operator_hold_every_pixel_once(pixels):
    tiles = backend.ops.group_norm_tiles(pixels)
    assert [begin for begin, _ in tiles] == [0, *(end for _, end in tiles[:-1])] and tiles[-1][1] == pixels
    assert all(begin < end for begin, end in tiles) and len(tiles) <= 256


@compiled
@pytest.mark.parametrize("channels", [8, 64, 128, 320, 640, 960, 1280, 1920, 2048, 2560, 4096])
@pytest.mark.parametrize("pack", [4, 8])
def test_the_threads_of_the_cuda_operator_hold_every_channel_of_each_line_once(channels, pack):
    places = backend.ops.group_norm_threads(channels, pack, 256)
    lines = max(line for _, line in places) + 1
    assert sorted(places) == [(p, line) for p in range(channels // pack) for line in range(lines)]


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_captured_graph_follows_its_inputs(channels_last, dtype, capture):
    def given(seed):
        x, weight, bias = case((2, 320, 24, 24), dtype, "cuda", seed=seed)
        return nhwc(x) if channels_last else x, weight, bias

    held = given(0)
    out = torch.empty_like(held[0])
    replay = capture(lambda stream: group_norm_silu(*held, channels_last=channels_last, out=out, stream=stream))
    for seed in (1, 2):
        for old, new in zip(held, given(seed), strict=True):
            old.copy_(new)
        replay()
        assert torch.equal(out, group_norm_silu(*given(seed), channels_last=channels_last))


def test_bad_arguments_name_the_rule_and_the_value():
    x, weight, bias = case((2, 16, 3, 3))
    for message, call in {
        r"\[group_norm_silu\] groups must divide the channels, got 5 groups of 16 channels": lambda: group_norm_silu(
            x, weight, bias, 5
        ),
        r"\[group_norm_silu\] groups must divide the channels, got 4 groups of 3 channels": lambda: group_norm_silu(
            x, weight, bias, 4, channels_last=True
        ),
        r"\[group_norm_silu\] x must be \[N, C, h, w\], got \[16, 3, 3\]": lambda: group_norm_silu(
            x[0], weight, bias, 4
        ),
        r"\[group_norm_silu\] weight must be float32 \[16\], got float32 \[8\]": lambda: group_norm_silu(
            x, weight[:8], bias, 4
        ),
    }.items():
        with pytest.raises(KernelError, match=message):
            call()
