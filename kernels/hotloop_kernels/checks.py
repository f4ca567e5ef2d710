"""Argument checks at the border of every operator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["KernelError", "require", "tensor"]


class KernelError(ValueError):
    """An argument that breaks an operator's rule: `[op] rule, got value`."""

    def __init__(self, op: str, rule: str, got: object) -> None:
        super().__init__(f"[{op}] {rule}, got {got}")


def require(holds: bool, op: str, rule: str, *, got: object) -> None:
    """Raise KernelError unless the rule holds."""
    if not holds:
        raise KernelError(op, rule, got)


def tensor(op: str, name: str, value: object, shape: Sequence[int | str], *, dtype: type = np.float32) -> np.ndarray:
    """`value` when it is an array of this dtype and shape (a str is a size of any value, by its letter)."""
    fits = (
        isinstance(value, np.ndarray)
        and value.dtype == dtype
        and value.ndim == len(shape)
        and all(isinstance(want, str) or want == size for want, size in zip(shape, value.shape, strict=True))
    )
    if not fits:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        rule = f"{name} must be {np.dtype(dtype).name} [{', '.join(map(str, shape))}]"
        raise KernelError(op, rule, got)
    assert isinstance(value, np.ndarray)
    return value
