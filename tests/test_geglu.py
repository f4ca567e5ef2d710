"""geglu: against float64, and torch's eager operators as the naive computation."""

from __future__ import annotations

import numpy as np
import pytest

from hotloop_kernels import KernelError, geglu
from hotloop_kernels.testing import BACKENDS, ISAS, assert_close_as_naive, use, use_isa

torch = pytest.importorskip("torch")
special = pytest.importorskip("scipy.special")
compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")

SHAPES = [
    (2, 1024, 2560),  # SD 1.5: C = 1280, 2560 and 5120
    (1, 256, 5120),
    (2, 64, 10240),
    (2, 77, 1538),
    (3, 2),
    (1, 2, 3, 2, 66),
    (0, 8),
]


def case(shape, dtype="float32"):
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(getattr(torch, dtype))


def stock(x):
    """As diffusers orders it."""
    value, gate = x.chunk(2, dim=-1)
    return value * torch.nn.functional.gelu(gate)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_close_as_the_naive_computation_on_every_instruction_set(shape, dtype):
    x = case(shape, dtype)
    outs = []
    for isa in ISAS:
        with use_isa(isa):
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
    gate = np.concatenate([np.linspace(-13, 20, 300_001), np.geomspace(1e-30, 1, 10_001)]).astype(np.float32)
    got = geglu(np.stack([np.ones_like(gate), gate], axis=-1))[:, 0]
    exact = gate * np.exp(special.log_ndtr(gate.astype(np.float64)))
    ulps = np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert ulps[gate >= 0].max() <= 2
    assert ulps.max() <= 5


@compiled
def test_gelu_of_the_far_ends():
    gate = np.array([40, -40, np.inf, -200, np.nan, 0], np.float32)
    got = geglu(np.stack([np.ones_like(gate), gate], axis=-1))[:, 0]
    assert np.array_equal(got, np.array([40, 0, np.inf, 0, np.nan, 0], np.float32), equal_nan=True)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_and_outputs_need_not_be_contiguous(dtype):
    x = case((4, 6, 10, 64), dtype)
    for view in (x.transpose(1, 2), x[:, ::2], x[..., ::2], x[..., 8:40]):
        assert torch.equal(geglu(view), geglu(view.contiguous()))
    turned = torch.empty(32, 10, 6, 4, dtype=x.dtype).permute(3, 2, 1, 0)
    assert geglu(x, out=turned) is turned and torch.equal(turned, geglu(x))


def test_bad_arguments_name_the_rule_and_the_value():
    x = case((2, 16))
    for message, call in {
        r"\[geglu\] x must be \[.., 2C\], got \[2, 15\]": lambda: geglu(x[:, :15]),
        r"\[geglu\] x must be float32, float16 or bfloat16, got int64": lambda: geglu(x.long()),
        r"\[geglu\] out must be float32 \[2, 8\], got float32 \[2, 16\]": lambda: geglu(x, out=x),
    }.items():
        with pytest.raises(KernelError, match=message):
            call()
