"""Draws the avatar that `hotloop live` shows before any model is trained: keyframe, reveal texture, what lies before
the eyes, and the exact curves of lids, brows and lips, from the renderer's own layers.

    python models/avatar/showcase.py            # writes runtime/hotloop/assets/avatar-live
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import render_face
from controls import NEUTRAL
from render import LAYERS, PARTS, _draw, _rgba
from render_canvas import Canvas, mix
from render_face import _brow, _lids, _lips, eye_frame
from render_people import Face
from render_rig import Eye as Look
from render_rig import Rig

from hotloop.live.animation.geometry import SAMPLES, Brow, Eye, Geometry, Mouth
from hotloop.live.animation.keyframe import SIDE, Keyframe, save_keyframe

__all__ = ["SITTER", "geometry_of", "keyframe_of"]

ASSETS = Path(__file__).parents[2] / "runtime" / "hotloop" / "assets" / "avatar-live"
# What the reveal texture is held at.
_BARED = {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0, "jawOpen": 0.6, "mouthA": 0.6, "mouthI": 0.25}
_BEFORE = ("front hair", "glasses", "accessory")
SITTER = Face(
    2024, {
        "hair": "pink", "style": "long", "eyes": "blue", "skin": "pale", "expression": "neutral", "glasses": "none",
        "accessory": "ribbon", "clothes": "school uniform", "colour": "blue", "background": "white", "person": "girl",
        "age": "adult", "view": "front", "floating": "none", "detail": "highly detailed", "defect": "none",
    }, moment=7,
)  # fmt: skip


class _Staring(Rig):
    """Eyes so wide that no lid lies over the iris."""

    def eye(self, side: int) -> Look:
        return replace(super().eye(side), opening=1.6)


def keyframe_of(face: Face, size: int = SIDE, *, name: str = "") -> Keyframe:
    """A face held still: everything exact."""
    still = dict(NEUTRAL)
    bare = tuple(layer for layer in LAYERS if layer not in ("brows", "marks"))
    shut = Rig(face, still | _BARED)
    open_mouth = _draw(size, shut, layers=bare)
    _lined(open_mouth, shut)
    with patch.object(render_face, "_iris", lambda *_: None):
        empty = _draw(size, Rig(face, still), layers=bare)
    key = _rgba(_draw(size, Rig(face, still)))
    loose = _rgba(_draw(size, _Staring(face, still), layers=("back hair", "body", "head", "mouth", "eyes")))
    browed = _around_brows(face, still, size)
    loose[browed] = key[browed]
    return Keyframe(key, _rgba(open_mouth), _front(face, still, size), geometry_of(face), name, _rgba(empty), loose)


def _around_brows(face: Face, held: Mapping[str, float], size: int) -> np.ndarray:
    """bool [size, size]: the brows with what is near."""
    canvas, rig = Canvas(size, 1, PARTS), Rig(face, held)
    for side in (-1, 1):
        path, thick = _brow(rig, side)
        ends = path[[0, -1]] + (path[[0, -1]] - path[[1, -2]]) * 1.5
        canvas.line(np.concatenate([ends[:1], path, ends[1:]]), thick + 0.03, (0, 0, 0), "brows")
    return np.asarray(canvas.label) > 0


def _lined(canvas: Canvas, rig: Rig) -> None:
    """A stronger line round the open mouth, which stays one when it is moved by a coarse field."""
    upper, lower = _lips(rig, rig.mouth())
    loop = rig.on_face(np.concatenate([upper, lower[::-1], upper[:1]]), 0.02)
    canvas.line(loop, 0.0052, mix(rig.skin.ink, (150, 40, 60), 0.35))


def _front(face: Face, held: Mapping[str, float], size: int) -> np.ndarray:
    """uint8 [size, size]: coverage of what is drawn before the eyes, lids and brows apart."""
    canvas = Canvas(size, 3, PARTS)
    rig = Rig(face, held)
    from render import _LAYERS

    for layer in LAYERS:
        if layer in _BEFORE:
            canvas.layer = LAYERS.index(layer)
            _LAYERS[layer](canvas, rig)
    return canvas.reduced(canvas.label.point([0] + [255] * 255))


def geometry_of(face: Face) -> Geometry:
    """In the renderer's own head coordinates, which are the face's."""
    rig, shut, open_ = (Rig(face, NEUTRAL | held) for held in ({}, _BARED, _BARED))
    origin = rig.head([(0.0, 0.0)])[0]
    wide = 0.275 + 0.005 * rig.traits.volume
    return Geometry(
        (float(origin[0]), float(origin[1])), 0.0, float(rig.head_scale), (_eye(rig, shut, -1), _eye(rig, shut, 1)),
        (_brow_of(rig, -1), _brow_of(rig, 1)), _mouth_of(rig, open_), 0.307 + 0.008 * rig.traits.chin, (0.0, -0.01),
        (wide, 0.33),
    )  # fmt: skip


def _curve(points: np.ndarray, low: float, high: float) -> np.ndarray:
    order = np.argsort(points[:, 0])
    return np.interp(np.linspace(low, high, SAMPLES), points[order, 0], points[order, 1])


def _eye(rig: Rig, shut: Rig, side: int) -> Eye:
    cx, cy, rx, ry = eye_frame(rig)
    flip = np.array([side, 1.0])

    def placed(points: np.ndarray) -> np.ndarray:
        return points * flip + (cx * side, cy)

    upper, lower = (placed(v) for v in _lids(rig, rig.eye(side)))
    closed, _ = (placed(v) for v in _lids(shut, shut.eye(side)))
    ends = cx * side - rx, cx * side + rx
    iris_x = 0.056 * (rx / 0.075) * (1 + 0.03 * rig.traits.iris)
    iris_y = 0.067 * (ry / 0.072) ** 0.7 * (1.02 if rig.girl else 0.96)
    return Eye(
        cx * side, cy, rx, *(_curve(v, *ends) for v in (upper, lower, closed)), (cx * side, cy + 0.002, iris_x, iris_y),
        0.031 if rig.girl else 0.022,
    )  # fmt: skip


def _brow_of(rig: Rig, side: int) -> Brow:
    path, thick = _brow(rig, side)
    points = (path - rig.head([(0.0, 0.0)])[0]) / rig.head_scale
    low, high = float(points[:, 0].min()), float(points[:, 0].max())
    return Brow(low, high, _curve(points, low, high), thick / rig.head_scale * 1.15)


def _mouth_of(rig: Rig, open_: Rig) -> Mouth:
    line, _ = _lips(rig, rig.mouth())
    top, low = _lips(open_, open_.mouth())
    half, bare = float(line[-1, 0]), float(top[-1, 0])
    return Mouth(0.0, half, _curve(line, -half, half), bare, _curve(top, -bare, bare), _curve(low, -bare, bare))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ASSETS)
    folder = parser.parse_args().folder
    save_keyframe(keyframe_of(SITTER, name="Mio"), folder, made_by="models/avatar/showcase.py")
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {total / 1024:.0f} kB")


if __name__ == "__main__":
    main()
