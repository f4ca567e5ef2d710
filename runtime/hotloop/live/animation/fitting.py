"""An avatar made for one picture: its own lids, irises and lips found, irises in a layer of their own, and measured.

What ten points alone give is measured the same way, so that the difference can be told: parts are marked in the picture
by another colour, and where that shows in a frame, the part shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..controls import ANIMATOR
from .calibration import Calibrated, calibrated
from .geometry import SAMPLES, Geometry
from .keyframe import SIDE, Keyframe
from .layers import iris_layers, openings
from .opening import keyframe_from
from .reveal import reveal_of
from .rig import Rig

if TYPE_CHECKING:
    from ...pipeline import Pipeline

__all__ = ["Figures", "Fitted", "figures", "fit"]

LEAST = 40.0  # dB: what a frame at rest must be like its picture
_NAMES = [str(name) for name, *_ in ANIMATOR]
_UNIT = np.array([max(abs(float(low)), abs(float(high))) for _, low, high in ANIMATOR], np.float32)
_MARK = np.array((0.1, 1.0, 1.0, 1.0), np.float32)  # bright: what is taken for lashes is the darkest
_SEEN = 24  # levels by which a marked frame differs where the mark shows
_T = np.linspace(-1, 1, SAMPLES)


@dataclass(frozen=True)
class Figures:
    """rest  dB (PSNR) of the frame at rest against the picture
    shut  share of the irises' pixels that show while the eyes are closed
    gaze  share of what borders on the open eyes (lashes, outlines) that is dragged along when the eyes look aside
    lips  share of the mouth's columns in which an open mouth shows the closed line more than twice
    """

    rest: float
    shut: float
    gaze: float
    lips: float


@dataclass(frozen=True)
class Fitted:
    """keyframe; found: what was found in the picture; before: figures of the ten points alone, after: of the keyframe;
    left: what was not taken over, and why."""

    keyframe: Keyframe
    found: Calibrated
    before: Figures
    after: Figures
    left: tuple[str, ...]


def fit(
    picture: str | Path | Image.Image | np.ndarray, *, points: str | Path | Mapping[str, Any] | None = None,
    parts: str | Path | None = None, pipeline: Pipeline | None = None, seconds: float = 60.0, side: int = SIDE,
    name: str | None = None,
) -> Fitted:  # fmt: skip
    """Arguments as for `keyframe_from`; seconds: that the search may take at most. Raises InputError."""
    plain = keyframe_from(picture, points=points, parts=parts, pipeline=pipeline, side=side, name=name)
    assert plain.geometry is not None
    found = calibrated(plain.rgba, plain.geometry, seconds=seconds)
    truth = found.geometry  # what is marked, in both
    before, left = figures(plain, truth), []
    made = _made(plain, found.geometry, layered=found.irises)
    if not found.irises:
        left.append("irises stay with the white: they are too like it")
    after = figures(made, truth)
    if found.irises and after.rest < LEAST:
        left.append(f"irises stay with the white: apart, a frame at rest is the picture to {after.rest:.1f} dB alone")
        made = _made(plain, found.geometry, layered=False)
        after = figures(made, truth)
    if not found.lined:
        left.append("the line between the lips is straight: none was found")
    return Fitted(made, found, before, after, tuple(left))


def _made(plain: Keyframe, geometry: Geometry, *, layered: bool, rgba: np.ndarray | None = None) -> Keyframe:
    """rgba: other pixels in the picture's place."""
    rgba = plain.rgba if rgba is None else rgba
    bare, loose = iris_layers(rgba, geometry, plain.front) if layered else (None, None)
    reveal = reveal_of(rgba if bare is None else bare, geometry, plain.front)
    return Keyframe(rgba, reveal, plain.front, geometry, plain.name, bare, loose)


def figures(keyframe: Keyframe, truth: Geometry) -> Figures:
    """Of a keyframe with a geometry; truth: where its parts really are."""
    assert keyframe.geometry is not None
    plain, side = _Frames(keyframe), len(keyframe.rgba)
    within, irises = openings(side, truth)
    still = plain.frame()
    error = float(((still - keyframe.rgba.astype(np.float64)) ** 2).mean())
    rest = math.inf if error == 0 else 10 * math.log10(255**2 / error)
    shut = {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}
    leaked = _marked(keyframe, irises).differs(plain, **shut)
    edge = _grown(within, 2) & ~within
    edged = _marked(keyframe, edge)
    stays = edged.differs(plain)
    dragged = [(edged.differs(plain, gazeX=x) ^ stays).sum() for x in (-1.0, 1.0)]
    gaze = float(np.mean(dragged)) / max(int(edge.sum()), 1)
    line = _line(side, truth)
    doubled = _marked(keyframe, line).differs(plain, jawOpen=1.0)
    columns = np.flatnonzero(line.any(0))
    middle = columns[(columns > np.quantile(columns, 0.2)) & (columns < np.quantile(columns, 0.8))]
    runs = (np.diff(np.pad(doubled[:, middle], ((1, 1), (0, 0))).astype(int), axis=0) == 1).sum(0)
    lips = float((runs > 2).mean()) if len(middle) else 0.0
    return Figures(rest, float(leaked.sum() / max(irises.sum(), 1)), gaze, lips)


class _Frames:
    """Frames of a keyframe on the rig, float64 [S, S, 4]."""

    def __init__(self, keyframe: Keyframe) -> None:
        self._performance, self._side = Rig().prepare(keyframe), len(keyframe.rgba)

    def frame(self, **controls: float) -> np.ndarray:
        vector = np.zeros(len(_NAMES), np.float32)
        for name, value in controls.items():
            vector[_NAMES.index(name)] = value / _UNIT[_NAMES.index(name)]
        return self._performance.frame(vector, 0.0).draw(self._side).astype(np.float64)

    def differs(self, other: _Frames, **controls: float) -> np.ndarray:
        return np.asarray(np.abs(self.frame(**controls) - other.frame(**controls)).max(-1) > _SEEN)


def _marked(keyframe: Keyframe, where: np.ndarray) -> _Frames:
    """The same with some of the picture's pixels in another colour, made anew from them."""
    assert keyframe.geometry is not None
    rgba = keyframe.rgba.copy()
    rgba[where] = np.rint(255 * _MARK).astype(np.uint8)
    made = _made(replace(keyframe), keyframe.geometry, layered=keyframe.bare is not None, rgba=rgba)
    return _Frames(made)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """All within a square of 2 `by` + 1 pixels of it."""
    for axis in (0, 1):
        total = np.cumsum(np.pad(mask.astype(int), [(by + 1, by) if a == axis else (0, 0) for a in (0, 1)]), axis=axis)
        n = mask.shape[axis]
        mask = (np.take(total, range(2 * by + 1, 2 * by + 1 + n), axis) - np.take(total, range(n), axis)) > 0
    return mask


def _line(side: int, geometry: Geometry) -> np.ndarray:
    """bool [S, S]: the closed line of the lips, two pixels thick."""
    mouth = geometry.mouth
    t = np.linspace(-0.95, 0.95, 4 * side)
    at = geometry.to_picture(np.stack([mouth.x + mouth.width * t, np.interp(t, _T, mouth.line)], axis=-1)) * side
    made = np.zeros((side, side), bool)
    i, j = np.clip(at.astype(int), 0, side - 2).T
    made[j, i] = made[j + 1, i] = True
    return made
