"""geglu: against float64, and torch's eager operators as the naive computation."""

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
geglu = partial(hotloop_kernels.geglu, unproved=True)

SHAPES = [
    (2, 1024, 2560),  # SD 1.5: C = 1280, 2560 and 5120
    (1, 256, 5120),
    (2, 64, 10240),
    (2, 77, 1538),
    (3, 2),
    (1, 2, 3, 2, 66),
    (0, 8),
]


def case(shape, dtype="float32", device="cpu", seed=0):
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(device, getattr(torch, dtype))


def stock(x):
    """As diffusers orders it."""
    value, gate = x.chunk(2, dim=-1)
    return value * torch.nn.functional.gelu(gate)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_close_as_the_naive_computation_on_every_instruction_set(shape, dtype, device):
    x = case(shape, dtype, device)
    outs = []
    for way in ways(device):
        with way:
            outs.append(geglu(x))
        assert_close_as_naive(outs[-1], stock(x.double()), stock(x), dtype)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numpy_arrays_give_numpy_arrays(backend, dtype):
    x = case((3, 5, 48), dtype)
    with use(backend):
        got = geglu(x.numpy())
    assert isinstance(got, np.ndarray) and got.dtype == dtype
    assert_close_as_naive(got, stock(x.double()), stock(x), dtype)


@compiled
def test_gelu_is_within_2_ulp_above_zero_and_keeps_its_digits_below():
    special = pytest.importorskip("scipy.special")
    gate = np.concatenate([np.linspace(-13, 20, 300_001), np.geomspace(1e-30, 1, 10_001)]).astype(np.float32)
    got = geglu(np.stack([np.ones_like(gate), gate], axis=-1))[:, 0]
    exact = gate * np.exp(special.log_ndtr(gate.astype(np.float64)))
    ulps = np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert ulps[gate >= 0].max() <= 2
    assert ulps.max() <= 5


@compiled
def test_gelu_of_the_far_ends(device):
    gate = torch.tensor([40, -40, torch.inf, -200, torch.nan, 0], device=device)
    got = geglu(torch.stack([torch.ones_like(gate), gate], dim=-1))[:, 0]
    assert torch.allclose(got.cpu(), torch.tensor([40, 0, torch.inf, 0, torch.nan, 0]), rtol=0, atol=0, equal_nan=True)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_and_outputs_need_not_be_contiguous(dtype, device):
    x = case((4, 6, 10, 64), dtype, device)
    for view in (x.transpose(1, 2), x[:, ::2], x[..., ::2], x[..., 8:40]):
        assert_close_as_naive(geglu(view), stock(view.double()), stock(view), dtype)
        assert device == "cuda" or torch.equal(geglu(view), geglu(view.contiguous()))
    turned = x.new_empty(32, 10, 6, 4).permute(3, 2, 1, 0)
    assert geglu(x, out=turned) is turned
    assert_close_as_naive(turned, stock(x.double()), stock(x), dtype)
    assert device == "cuda" or torch.equal(turned, geglu(x))


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(2, 256, 5120), (3, 7, 1538)], ids=str)
def test_a_captured_graph_follows_its_inputs(shape, dtype, capture):
    x = case(shape, dtype, "cuda")
    out = torch.empty_like(x[..., : shape[-1] // 2])
    replay = capture(lambda stream: geglu(x, out=out, stream=stream))
    for seed in (1, 2):
        x.copy_(case(shape, dtype, seed=seed))
        replay()
        assert torch.equal(out, geglu(case(shape, dtype, "cuda", seed=seed)))


def test_bad_arguments_name_the_rule_and_the_value():
    x = case((2, 16))
    for message, call in {
        r"\[geglu\] x must be \[.., 2C\], got \[2, 15\]": lambda: geglu(x[:, :15]),
        r"\[geglu\] x must be float32, float16 or bfloat16, got int64": lambda: geglu(x.long()),
        r"\[geglu\] out must be float32 \[2, 8\], got float32 \[2, 16\]": lambda: geglu(x, out=x),
    }.items():
        with pytest.raises(KernelError, match=message):
            call()
