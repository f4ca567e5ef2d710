"""The layers of a picture's eyes: what is there without irises, and whole irises alone.

At rest both, put together by the rig's masks, are the picture again: where a mask is 1 the iris comes from its layer,
and only there anything is painted over.
"""

from __future__ import annotations

import numpy as np

from .geometry import SAMPLES, Eye, Geometry
from .reveal import spread_colours
from .rig_eyes import SOFT

__all__ = ["iris_layers", "openings"]

_T = np.linspace(-1, 1, SAMPLES)
_DISC, _ROOM = 1.07, 1.35  # of an iris's radius: what the rig shows of it, and what its layer holds
_WHITE = (0.95, 0.94, 0.93)


def iris_layers(rgba: np.ndarray, geometry: Geometry, front: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """rgba: premultiplied uint8 [S, S, 4]; front: uint8 [S, S], what lies before the eyes -> the same without
    irises, and irises alone, with what lids hide of them."""
    picture = rgba.astype(np.float32) / 255
    before = np.zeros(rgba.shape[:2], np.float32) if front is None else front.astype(np.float32) / 255
    face = _places(len(rgba), geometry)
    bare, loose = picture.copy(), np.zeros_like(picture)
    for eye in geometry.eyes:
        x, y = face[..., 0], face[..., 1]
        radius = _radius(eye, x, y)
        rows, columns = np.nonzero(radius < 1.6)
        if not len(rows):
            continue
        box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        x, y, radius, seen, held = x[box], y[box], radius[box], picture[box], before[box]
        inside = _inside(eye, x, y) * (1 - held)
        mask = np.clip((_DISC - radius) * 16, 0, 1) * inside
        # Without: the white, carried over from beside the iris.
        ring = (inside > 0.99) & (radius > 0.97) & (radius < 1.4)
        grey = seen[..., :3].mean(-1)
        bright = ring & (grey >= np.quantile(grey[ring], 0.6)) if ring.sum() > 8 else ring
        otherwise = np.append(np.median(seen[bright][:, :3], axis=0) if bright.any() else _WHITE, 1).astype(np.float32)
        white = (inside > 0.99) & (radius > 0.97) & (np.abs(seen - otherwise).sum(-1) < 0.3)
        filled = spread_colours(seen, white, otherwise) if white.sum() > 8 else np.broadcast_to(otherwise, seen.shape)
        bare[box] += ((mask > 0.999)[..., None] & (seen[..., 3:] > 0.5)) * (filled - seen)
        # Alone: what is hidden is as its mirror image below or above the middle, else as what is next to it.
        known = (mask > 0.5) & (radius < _DISC)
        colours, there = seen.copy(), known.copy()
        mirrored, has = _mirrored(eye, seen, known, x, y, geometry, len(rgba))
        colours[has & ~known], there[has & ~known] = mirrored[has & ~known], True
        whole = spread_colours(colours, there, otherwise) if there.any() else colours
        whole[there] = colours[there]
        kept = (radius < _ROOM)[..., None]
        loose[box] = np.where(kept, whole, loose[box])
        loose[box][..., 3] = np.where(kept[..., 0], 1.0, loose[box][..., 3])
    return tuple(np.rint(np.clip(one, 0, 1) * 255).astype(np.uint8) for one in (bare, loose))  # type: ignore[return-value]


def openings(side: int, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """bool [S, S] each: which pixels of a picture are within the lids, and which of those are of an iris."""
    face = _places(side, geometry)
    x, y = face[..., 0], face[..., 1]
    within, irises = np.zeros((2, side, side), bool)
    for eye in geometry.eyes:
        inside = _inside(eye, x, y) > 0.5
        within |= inside
        irises |= inside & (_radius(eye, x, y) < 1)
    return within, irises


def _places(side: int, geometry: Geometry) -> np.ndarray:
    at = (np.arange(side) + 0.5) / side
    u, v = np.meshgrid(at, at)
    return geometry.to_face(np.stack([u, v], axis=-1)).astype(np.float32)


def _radius(eye: Eye, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cx, cy, rx, ry = eye.iris
    return np.asarray(np.hypot((x - cx) / rx, (y - cy) / ry))


def _inside(eye: Eye, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much the rig shows there of an iris, for the lids: 0..1."""
    t = np.clip((x - eye.x) / eye.width, -1, 1)
    top, low = np.interp(t, _T, eye.top), np.interp(t, _T, eye.low)
    inside: np.ndarray = np.clip((y - top) / SOFT + 0.7, 0, 1) * np.clip((low - y) / SOFT + 0.3, 0, 1)
    return inside * (np.abs((x - eye.x) / eye.width) < 1)


def _mirrored(
    eye: Eye, seen: np.ndarray, known: np.ndarray, x: np.ndarray, y: np.ndarray, geometry: Geometry, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """The colours of the places that mirror these at the iris's horizontal, and whether they are known."""
    cy = eye.iris[1]
    at = geometry.to_picture(np.stack([x, 2 * cy - y], axis=-1)) * side
    corner = geometry.to_picture(np.stack([x[0, 0], y[0, 0]])) * side
    i, j = np.moveaxis(np.floor(at - np.floor(corner)).astype(int), -1, 0)
    fits = (i >= 0) & (j >= 0) & (i < seen.shape[1]) & (j < seen.shape[0])
    i, j = np.where(fits, i, 0), np.where(fits, j, 0)
    return seen[j, i], fits & known[j, i]
