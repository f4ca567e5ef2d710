"""layer_norm: against float64, and torch's own operator as the naive computation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import hotloop_kernels
from hotloop_kernels import KernelError
from hotloop_kernels.testing import BACKENDS, assert_close_as_naive, use, ways

torch = pytest.importorskip("torch")
compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")

# On a GPU that no gpu-check has proved: these tests are its proof.
layer_norm = partial(hotloop_kernels.layer_norm, unproved=True)

SHAPES = [
    (2, 4096, 320),  # SD 1.5 at 512 x 512: the UNet's transformers
    (2, 1024, 640),
    (2, 64, 1280),
    (2, 77, 768),  # the text encoder
    (3, 7, 769),
    (5, 1),
    (1, 2, 3, 2, 33),
    (31,),
    (0, 16),
]


def case(shape, dtype="float32", device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=generator) + 1
    weight, bias = (torch.randn(shape[-1], generator=generator) for _ in range(2))
    return [t.to(device, getattr(torch, dtype)) for t in (x, weight, bias)]


def naive(x, weight, bias, eps=1e-5):
    """Every step rounded to the dtype."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias


def exact(x, weight, bias, eps=1e-5):
    return torch.nn.functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), eps)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_close_as_the_naive_computation_on_every_instruction_set(shape, dtype, device):
    arguments = case(shape, dtype, device)
    want, rounded = exact(*arguments), naive(*arguments)
    outs = []
    for way in ways(device):
        with way:
            outs.append(layer_norm(*arguments))
        assert_close_as_naive(outs[-1], want, rounded, dtype)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numpy_arrays_give_numpy_arrays(backend, dtype):
    arguments = case((3, 5, 48), dtype)
    with use(backend):
        got = layer_norm(*(a.numpy() for a in arguments))
    assert isinstance(got, np.ndarray) and got.dtype == dtype
    assert_close_as_naive(got, exact(*arguments), naive(*arguments), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_passes_in_numpy_by_ml_dtypes(backend):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    arguments = case((3, 5, 48), "bfloat16")
    with use(backend):
        got = layer_norm(*(a.float().numpy().astype(bfloat16) for a in arguments))
    assert got.dtype == bfloat16
    assert_close_as_naive(got, exact(*arguments), naive(*arguments), "bfloat16")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_and_outputs_need_not_be_contiguous(dtype, device):
    x, weight, bias = case((2, 6, 10, 48), dtype, device)
    want, stock, rounded = layer_norm(x, weight, bias), exact(x, weight, bias), naive(x, weight, bias)
    for view in (x.transpose(1, 2), x.flip(3).flip(3), x[:, ::2], x.expand(2, 6, 10, 48)[:, :, 3:7]):
        assert torch.equal(layer_norm(view, weight, bias), layer_norm(view.contiguous(), weight, bias))
    turned = x.new_empty(48, 10, 6, 2).permute(3, 2, 1, 0)
    assert layer_norm(x, weight, bias, out=turned) is turned
    spread = torch.stack([weight, bias], dim=1)
    reverse = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for got in (turned, layer_norm(x, spread[:, 0], spread[:, 1]), layer_norm(reverse, weight, bias)):
        assert_close_as_naive(got, stock, rounded, dtype)
        # Without packs a GPU takes another kernel, which adds in another order.
        assert device == "cuda" or torch.equal(got, want)


@compiled
def test_the_output_may_be_the_input(device):
    x, weight, bias = case((4, 70, 320), device=device)
    want = layer_norm(x, weight, bias)
    assert torch.equal(layer_norm(x, weight, bias, out=x), want)


@compiled
def test_a_mean_far_from_zero_costs_no_more_than_the_input_lost(device):
    x, weight, bias = case((4, 320), device=device)
    x = x + 1000
    assert_close_as_naive(layer_norm(x, weight, bias), exact(x, weight, bias), naive(x, weight, bias), "float32")


@compiled
def test_a_constant_row_becomes_the_bias(device):
    x, weight, bias = case((2, 320), device=device)
    assert torch.equal(layer_norm(torch.full_like(x, 7.0), weight, bias), bias.expand(2, 320))


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(2, 1024, 640), (3, 7, 769)], ids=str)
def test_a_captured_graph_follows_its_inputs(shape, dtype, capture):
    arguments, others = case(shape, dtype, "cuda"), case(shape, dtype, "cuda", seed=1)
    out = torch.empty_like(arguments[0])
    replay = capture(lambda stream: layer_norm(*arguments, out=out, stream=stream))
    for changed in (others, case(shape, dtype, "cuda", seed=2)):
        for held, new in zip(arguments, changed, strict=True):
            held.copy_(new)
        replay()
        assert torch.equal(out, layer_norm(*changed))


@compiled
def test_no_gradient_is_asked_for_or_given():
    x, weight, bias = case((2, 16))
    weight = torch.nn.Parameter(weight)
    assert not layer_norm(x, weight, bias).requires_grad


def test_bad_arguments_name_the_rule_and_the_value():
    x, weight, bias = case((2, 16))
    for message, call in {
        r"\[layer_norm\] weight must be float32 \[16\], got float32 \[15\]": lambda: layer_norm(x, weight[:15], bias),
        r"\[layer_norm\] bias must be float32 \[16\], got float16 \[16\]": lambda: layer_norm(x, weight, bias.half()),
        r"\[layer_norm\] bias must be float32 \[16\], got NoneType": lambda: layer_norm(x, weight, None),
        r"\[layer_norm\] out must be float32 \[2, 16\], got float32 \[16\]": lambda: layer_norm(
            x, weight, bias, out=weight
        ),
    }.items():
        with pytest.raises(KernelError, match=message):
            call()
    with use("reference"), pytest.raises(KernelError, match=r"\[layer_norm\] arrays must be of numpy .* got Tensor"):
        layer_norm(x, weight, bias)
