"""Checks of single values at a border: each raises an error that names the place, the rule and the value."""

from __future__ import annotations

import numpy as np

from .errors import InputError, NonFiniteError

__all__ = ["check_array", "check_finite", "check_integer", "check_number"]


def check_array(place: str, array: np.ndarray | None, shape: tuple[int | str, ...]) -> None:
    """float32 of this shape, or it is refused."""
    if array is None or array.dtype != np.float32 or array.shape != shape:
        got = None if array is None else f"{array.dtype} {list(array.shape)}"
        raise InputError(place, f"must be float32 {list(shape)}", got)


def check_integer(place: str, name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(place, f"{name} must be a whole number in {least}..{most}", value)


def check_number(place: str, name: str, value: object, least: float, most: float) -> None:
    # NaN is in no range; Python compares integers of any size exactly.
    if not isinstance(value, (int, float, np.integer, np.floating)) or not least <= value <= most:
        raise InputError(place, f"{name} must be a number in {least:g}..{most:g}", value)


def check_finite(place: str, name: str, array: np.ndarray) -> None:
    """Raises NonFiniteError: a broken result is never shown as a black image."""
    if broken := int(array.size - np.isfinite(array).sum()):
        raise NonFiniteError(place, f"{name} must be finite; {broken} of {array.size} values are not")
