"""What a face does that nobody moves: it blinks, breathes, sways and looks about. A function of seed and time alone.

Blinks: about 17 a minute at rest (Bentivoglio et al. 1997), irregular, a tenth of them double; a lid closes in about
80 ms and opens in about 160 (Trutoiu et al. 2011). Breath: about 15 a minute, out slower than in.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .controls import CONTROLS, INDEX

__all__ = ["Idle"]

_CELL = 3.5  # seconds: one blink in each, anywhere in the first 85 %
_NONE, _DOUBLE = 0.1, 0.1  # of the cells
_CLOSE, _SHUT, _OPEN = 0.08, 0.04, 0.16
_AGAIN = 0.36  # from the beginning of a blink to that of its double
_LOOK = 1.3  # seconds: one glance in each
_SACCADE = 0.05

# Sway: control, amplitude, and the periods (s) of the waves it is the sum of.
_SWAY = (
    ("headYaw", 1.6, (7.3, 11.9, 3.7)),
    ("headPitch", 0.8, (5.9, 9.7, 3.1)),
    ("headRoll", 1.0, (8.3, 13.1, 4.3)),
    ("headX", 0.25, (9.1, 14.3, 5.3)),
)
_WEIGHTS = (0.5, 0.35, 0.15)


@lru_cache(maxsize=256)
def _hash(seed: int, stream: int, cell: int) -> float:
    """A number in [0, 1) of three whole ones: splitmix64's mixing (Steele et al. 2014)."""
    x = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + cell * 0x94D049BB133111EB) & (1 << 64) - 1
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor & (1 << 64) - 1
    return (x ^ x >> 31) / (1 << 64)


def _smooth(x: float) -> float:
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def _lid(since: float) -> float:
    """How shut a lid is, seconds after it began to close."""
    return _smooth(since / _CLOSE) - _smooth((since - _CLOSE - _SHUT) / _OPEN)


class Idle:
    """Idle life from a seed. `at(t)` may be asked in any order: nothing is kept."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        phases = [_hash(seed, 9, i) for i in range(len(_SWAY) * len(_WEIGHTS) + 1)]
        self._breath, self._phases = phases[0], phases[1:]

    def at(self, t: float) -> np.ndarray:
        """float64 [CONTROLS] at t seconds."""
        values = np.zeros(len(CONTROLS))
        values[INDEX["eyeBlinkLeft"]] = values[INDEX["eyeBlinkRight"]] = self._blink(t)
        values[INDEX["breath"]] = self._breathing(t)
        waves = iter(self._phases)
        for name, size, periods in _SWAY:
            values[INDEX[name]] = size * sum(
                weight * math.sin(2 * math.pi * (t / period + next(waves)))
                for weight, period in zip(_WEIGHTS, periods, strict=True)
            )
        values[INDEX["gazeX"]], values[INDEX["gazeY"]] = self._glance(t)
        return values

    def blinks(self, begin: float, end: float) -> list[float]:
        """When lids begin to close, from `begin` to before `end`, in order."""
        found = []
        for cell in range(math.floor((begin - _AGAIN) / _CELL), math.floor(end / _CELL) + 1):
            kind = _hash(self._seed, 1, cell)
            if kind < _NONE:
                continue
            at = (cell + 0.85 * _hash(self._seed, 2, cell)) * _CELL
            found += [at, at + _AGAIN] if kind > 1 - _DOUBLE else [at]
        return sorted(at for at in found if begin <= at < end)

    def _blink(self, t: float) -> float:
        recent = self.blinks(t - _CLOSE - _SHUT - _OPEN, math.nextafter(t, math.inf))
        return max((_lid(t - at) for at in recent), default=0.0)

    def _breathing(self, t: float) -> float:
        turns = t / 4.0 + 0.15 * math.sin(2 * math.pi * t / 23.0) + self._breath
        at, into = turns - math.floor(turns), 0.4
        return _smooth(at / into) if at < into else 1 - _smooth((at - into) / (1 - into))

    def _glance(self, t: float) -> tuple[float, float]:
        cell = math.floor(t / _LOOK)
        turned = _smooth((t - cell * _LOOK) / _SACCADE)

        def look(cell: int, axis: int) -> float:
            return 0.16 * (_hash(self._seed, 3 + axis, cell) - 0.5)

        x, y = (look(cell - 1, axis) + turned * (look(cell, axis) - look(cell - 1, axis)) for axis in (0, 1))
        return x, y
