"""Argument checks at the border of every operator."""

from __future__ import annotations

import numpy as np

__all__ = ["KernelError", "tensor"]


class KernelError(ValueError):
    """An argument that breaks an operator's rule: `[op] rule, got value`."""

    def __init__(self, op: str, rule: str, got: object) -> None:
        super().__init__(f"[{op}] {rule}, got {got}")


def tensor(op: str, name: str, value: object, shape: tuple[int | str, ...], *, dtype: type = np.float32) -> np.ndarray:
    """`value` when it is an array of this dtype and shape (a str is a size of any value, by its letter)."""
    if isinstance(value, np.ndarray) and value.dtype == dtype and _fits(value.shape, shape):
        return value
    got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    raise KernelError(op, f"{name} must be {np.dtype(dtype).name} [{', '.join(map(str, shape))}]", got)


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    if shape == wanted:
        return True
    same_length = len(shape) == len(wanted)
    return same_length and all(isinstance(w, str) or w == s for w, s in zip(wanted, shape, strict=True))
