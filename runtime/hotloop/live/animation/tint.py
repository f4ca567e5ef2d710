"""Colours over a face that neither picture has: blush, gloom, rage and tears."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .geometry import Geometry
from .mimic import Mimic
from .shapes import bump, rise

if TYPE_CHECKING:
    from .rig_eyes import Front

__all__ = ["tint"]

_BLUSH = (1.0, 0.29, 0.38)
_GLOOM = (0.26, 0.29, 0.59)
_RAGE = (0.75, 0.16, 0.24)
_TEAR = (0.62, 0.85, 1.0)
_LEAST = 0.02


def tint(g: Geometry, x: np.ndarray, y: np.ndarray, m: Mimic, front: Front | None) -> np.ndarray | None:
    """Premultiplied float32 [4, h, w] at the face's places x, y, less where something lies before the face; None where
    there is nothing to add."""
    if max(m.blush, m.gloom, m.rage, m.tear) < _LEAST:
        return None
    made = np.zeros((4, *x.shape), np.float32)
    if max(m.gloom, m.rage) >= _LEAST:
        upper = rise((y + np.float32(0.12)) * np.float32(1 / 0.09)) * (
            1 - rise((y - np.float32(0.03)) * np.float32(1 / 0.08))
        )
        if front is not None:
            upper = upper * (1 - front.at(x, y))
        inside = rise((1 - (x / np.float32(0.235)) ** 2 - ((y - np.float32(0.02)) / np.float32(0.25)) ** 2) * 4)
        _over(made, _GLOOM, np.float32(0.3 * m.gloom) * upper * inside)
        _over(made, _RAGE, np.float32(0.18 * m.rage) * upper * inside)
    for eye in g.eyes:
        side = 1.0 if eye.x > (g.eyes[0].x + g.eyes[1].x) / 2 else -1.0
        low = float(eye.low.max())
        if m.blush >= _LEAST:
            u, v = x - np.float32(eye.x + 0.018 * side), y - np.float32(low + 0.045)
            round_ = np.minimum((u / np.float32(0.055)) ** 2 + (v / np.float32(0.036)) ** 2, 1)
            _over(made, _BLUSH, np.float32(0.5 * m.blush) * bump(round_))
        if m.tear >= _LEAST:
            u, v = x - np.float32(eye.x + 0.022 * side), y - np.float32(low + 0.014 + 0.016 * m.tear)
            wide = np.float32(0.006) + np.float32(0.007) * rise((v + np.float32(0.02)) * np.float32(1 / 0.036))
            drop = (u / wide) ** 2 + (v / np.float32(0.027)) ** 2
            _over(made, _TEAR, np.float32(0.85 * min(1.0, 1.5 * m.tear)) * rise((1 - drop) * 3))
    return made


def _over(made: np.ndarray, colour: tuple[float, float, float], alpha: np.ndarray) -> None:
    made *= 1 - alpha
    for i, level in enumerate(colour):
        made[i] += np.float32(level) * alpha
    made[3] += alpha
