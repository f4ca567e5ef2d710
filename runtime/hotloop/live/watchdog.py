"""Looks at every frame: a broken one is made again once in float32; if that breaks too, the last good one is held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..errors import NonFiniteError

__all__ = ["FAULTS", "Seen", "Watchdog", "fault_of"]

FAULTS = ("non-finite", "black", "constant", "frozen")
_BLACK = 2  # levels of 255 up to which a picture is black
_FEW = 16  # pixels between those that are looked at first
_FROZEN = 8  # equal frames in a row, though the controls moved before each


class Seen(NamedTuple):
    """pixels  to be shown: None where there is no good frame yet
    fault    what was found, or ""
    held     whether these are the last good frame's
    again    whether they were made a second time
    """

    pixels: np.ndarray | None
    fault: str
    held: bool
    again: bool


def fault_of(pixels: np.ndarray | None) -> str:
    """What is wrong with a picture uint8 [H, W, 3 or 4] by itself; None stands for one that was not finite.

    A few pixels tell that nothing is wrong; only where they do not are all looked at.
    """
    if pixels is None:
        return "non-finite"
    for seen in (pixels[::_FEW, ::_FEW], pixels):
        black = int(seen[..., :3].max()) <= _BLACK
        if not black and not (seen == pixels[:1, :1]).all():
            return ""
    return "black" if black else "constant"


class Watchdog:
    """One session's. counts: fault -> how often it was found."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._good: np.ndarray | None = None
        self._equal = 0

    def see(self, make: Callable[[], np.ndarray], again: Callable[[], np.ndarray] | None, *, moved: bool) -> Seen:
        """What make() draws, uint8 [H, W, 3 or 4], if it is good; else again()'s; else the last good one. Never silent.

        moved: whether the controls (or the source) differ from those of the frame before.
        Either may raise NonFiniteError.
        """
        pixels = _made(make)
        fault = self._fault(pixels, moved)
        if not fault:
            return self._shown(pixels, "", again=False)
        self.counts[fault] += 1
        second = None if again is None else _made(again)
        if not fault_of(second) and not (fault == "frozen" and np.array_equal(second, self._good)):  # type: ignore[arg-type]
            self._equal = 0
            return self._shown(second, fault, again=True)
        return Seen(self._good, fault, True, again is not None)

    def _fault(self, pixels: np.ndarray | None, moved: bool) -> str:
        if fault := fault_of(pixels):
            return fault
        if self._good is None or not _equal(pixels, self._good):  # type: ignore[arg-type]
            self._equal = 0
            return ""
        self._equal += moved
        return "frozen" if self._equal >= _FROZEN else ""

    def _shown(self, pixels: np.ndarray | None, fault: str, *, again: bool) -> Seen:
        self._good = pixels
        return Seen(pixels, fault, False, again)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two pictures are equal. Where a few pixels differ, as most often, no others are looked at."""
    return np.array_equal(a[::_FEW, ::_FEW], b[::_FEW, ::_FEW]) and np.array_equal(a, b)


def _made(make: Callable[[], np.ndarray]) -> np.ndarray | None:
    try:
        return make()
    except NonFiniteError:
        return None
