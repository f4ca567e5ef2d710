"""Colours over a face that neither picture has: blush, gloom, rage and tears."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hotloop_kernels.formula import bump, rise

from .geometry import Geometry
from .mimic import Mimic

if TYPE_CHECKING:
    from .rig_eyes import Front

__all__ = ["tint", "tint_told"]

_BLUSH = (1.0, 0.29, 0.38)
_GLOOM = (0.26, 0.29, 0.59)
_RAGE = (0.75, 0.16, 0.24)
_TEAR = (0.62, 0.85, 1.0)
_LEAST = 0.02


def tint_told(g: Geometry, m: Mimic) -> dict[str, Any] | None:
    """What `tint` is told of a frame; None where there is nothing to add."""
    blush, tear, veils = (value if value >= _LEAST else 0.0 for value in (m.blush, m.tear, max(m.gloom, m.rage)))
    if not (blush or tear or veils):
        return None
    lows = [float(eye.low.max()) + 0.014 + 0.016 * m.tear for eye in g.eyes]
    return {
        "gloom": 0.3 * m.gloom if veils else 0.0, "rage": 0.18 * m.rage if veils else 0.0, "blush": 0.5 * blush,
        "tear": 0.85 * min(1.0, 1.5 * tear), "tear0": lows[0], "tear1": lows[1],
    }  # fmt: skip


def tint(g: Geometry, x: Any, y: Any, n: Mapping[str, Any], front: Front | None) -> list[Any]:
    """Premultiplied r, g, b, a at the face's places x, y, less where something lies before the face."""
    made: list[Any] = [np.float32(0)] * 4
    upper = rise((y + np.float32(0.12)) * np.float32(1 / 0.09)) * (
        1 - rise((y - np.float32(0.03)) * np.float32(1 / 0.08))
    )
    if front is not None:
        upper = upper * (1 - front.at(x, y))
    inside = rise((1 - (x / np.float32(0.235)) ** 2 - ((y - np.float32(0.02)) / np.float32(0.25)) ** 2) * 4)
    made = _over(made, _GLOOM, n["gloom"] * upper * inside)
    made = _over(made, _RAGE, n["rage"] * upper * inside)
    for i, eye in enumerate(g.eyes):
        side = 1.0 if eye.x > (g.eyes[0].x + g.eyes[1].x) / 2 else -1.0
        u, v = x - np.float32(eye.x + 0.018 * side), y - np.float32(float(eye.low.max()) + 0.045)
        round_ = np.minimum((u / np.float32(0.055)) ** 2 + (v / np.float32(0.036)) ** 2, 1)
        made = _over(made, _BLUSH, n["blush"] * bump(round_))
        u, v = x - np.float32(eye.x + 0.022 * side), y - n[f"tear{i}"]
        wide = np.float32(0.006) + np.float32(0.007) * rise((v + np.float32(0.02)) * np.float32(1 / 0.036))
        drop = (u / wide) ** 2 + (v / np.float32(0.027)) ** 2
        made = _over(made, _TEAR, n["tear"] * rise((1 - drop) * 3))
    return made


def _over(made: list[Any], colour: tuple[float, float, float], alpha: Any) -> list[Any]:
    below = 1 - alpha
    return [level * below + np.float32(over) * alpha for level, over in zip(made, (*colour, 1.0), strict=True)]
