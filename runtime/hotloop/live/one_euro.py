"""The one-euro filter: a low-pass whose cutoff rises with speed, so that rest is calm and motion is not late.

Casiez, Roussel, Vogel: "1 euro filter", CHI 2012, algorithm 1.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["SPEED_CUTOFF", "one_euro", "share"]

SPEED_CUTOFF = 1.0  # Hz, of the filter of the speed: the paper's d_cutoff


def share(cutoff: np.ndarray | float, dt: np.ndarray | float) -> np.ndarray:
    """How much of a new value enters a first-order low-pass of `cutoff` Hz after `dt` seconds: 1 / (1 + tau / dt)."""
    turned = 2 * math.pi * np.asarray(cutoff) * dt
    return turned / (1 + turned)


def one_euro(
    x: np.ndarray, past: np.ndarray, speed: np.ndarray, dt: np.ndarray, cutoff: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step: values [n] after what was filtered before, its speed a second, and dt > 0 seconds since.

    Gives the filtered values and speeds. A cutoff of 0 leaves the value as it is.
    """
    speed = speed + share(SPEED_CUTOFF, dt) * ((x - past) / dt - speed)
    entering = np.where(cutoff > 0, share(cutoff + beta * np.abs(speed), dt), 1.0)
    return past + entering * (x - past), speed
