"""For the tests: an operator by its compiled code, its reference, each instruction set; and how close is close."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from . import backend

__all__ = [
    "BACKENDS", "ISAS", "assert_close_as_naive", "can_compile", "float64", "ulp", "use", "use_isa", "use_wgmma", "ways",
]  # fmt: skip

BACKENDS = ("reference", "compiled") if backend.ops is not None else ("reference",)

# What this machine can run, the lowest first.
_ALL = ("scalar", "avx2", "avx512")
ISAS = _ALL[: _ALL.index(backend.ops.best_isa) + 1] if backend.ops is not None else ()

_PRECISION = {"float32": 23, "float16": 10, "bfloat16": 7}  # bits of the fraction


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run the operators by `reference` or `compiled` inside the block."""
    loaded = backend.ops
    if name == "compiled" and loaded is None:
        raise RuntimeError("[kernels] the compiled operators are not installed")
    backend.ops = loaded if name == "compiled" else None
    try:
        yield
    finally:
        backend.ops = loaded


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Run the compiled operators on this instruction set, scalar, avx2 or avx512, inside the block."""
    before = backend.ops.isa()
    backend.ops.set_isa(name)
    try:
        yield
    finally:
        backend.ops.set_isa(before)


def ways(device: str) -> list[AbstractContextManager[None]]:
    """The ways that the compiled operators go on a device, to be entered one by one: a CPU's instruction sets."""
    return [use_isa(name) for name in ISAS] if device == "cpu" else [nullcontext()]


@contextmanager
def use_wgmma(use: bool = True) -> Iterator[None]:
    """Let attention take its Hopper kernel, or not, inside the block. Needs a build with CUDA."""
    backend.ops.attention_use_wgmma(use)
    try:
        yield
    finally:
        backend.ops.attention_use_wgmma("attention_wgmma" in backend.proved.get("sm_90", ()))


def float64(array: Any) -> np.ndarray:
    """Any library's array as float64 on the CPU."""
    if hasattr(array, "detach"):  # torch
        return array.detach().double().cpu().numpy()
    return np.asarray(array.get() if hasattr(array, "get") else array).astype(np.float64)


def ulp(value: float, dtype: str) -> float:
    """The distance between neighbours of a dtype at this magnitude."""
    return float(2.0 ** (np.floor(np.log2(value)) - _PRECISION[dtype])) if value > 0 else 0.0


def assert_close_as_naive(got: Any, exact: Any, naive: Any, dtype: str) -> None:
    """The largest error is at most twice the naive computation's, plus two ulp of the largest exact value.

    exact: the result in float64; naive: what the same inputs give when every step is rounded to the dtype.
    """
    got, exact, naive = float64(got), float64(exact), float64(naive)
    assert got.shape == exact.shape == naive.shape, f"shapes differ: {got.shape}, {exact.shape}, {naive.shape}"
    if not exact.size:
        return
    assert np.isfinite(got).all(), f"{int((~np.isfinite(got)).sum())} values are not finite"
    error, allowed = np.abs(got - exact), 2 * float(np.abs(naive - exact).max())
    bound = allowed + 2 * ulp(float(np.abs(exact).max()), dtype)
    at = np.unravel_index(int(error.argmax()), error.shape)
    assert error[at] <= bound, f"error {error[at]:.3g} at {tuple(map(int, at))} is above {bound:.3g}"


def can_compile() -> bool:
    """True when this machine has what the build of the compiled operators looks for: a C++ compiler and Python.h."""
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    return compiler and Path(sysconfig.get_path("include"), "Python.h").is_file()
