"""A face's landmarks -> controls, by geometry: how the head is turned, then distances on the face turned back.

The head: the similarity that takes the rigid points of a mean face to those of the picture (Umeyama 1991). The face
turned back is measured in centimetres (its outer eye corners are 9 cm apart), so no measure depends on how the head is
held or how near it is. A control is a measure's way from the person's own neutral face to its full extent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import InputError
from ..controls import CONTROLS
from .face_mesh import POINTS, Face
from .face_template import RIGID, TEMPLATE

__all__ = ["CONTROLS_GIVEN", "Neutral", "Pose", "calibrated", "controls", "measures", "mirrored", "pose"]

_PLACE = "tracker"
_DISTANCE = 50.0  # cm from the camera to a neutral face: only its changes are told
_ASIDE = 0.2  # of a face that looks away, the cosine at which its eyes are still reckoned with

# What the geometry gives, of THE table.
CONTROLS_GIVEN = (
    "jawOpen", "mouthPucker", "mouthFunnel", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight",
    "mouthLeft", "mouthRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeWideLeft", "eyeWideRight", "browInnerUp",
    "browDownLeft", "browDownRight", "browOuterUpLeft", "browOuterUpRight", "gazeX", "gazeY", "headYaw", "headPitch",
    "headRoll", "headX", "headY", "headZ",
)  # fmt: skip
_RANGES = {control.name: (control.low, control.high) for control in CONTROLS}


@dataclass(frozen=True, eq=False)
class Pose:
    """yaw, pitch, roll  degrees: to the right of the picture, up, the head's top to the right
    scale  pixels of a centimetre; place: of the head's middle, pixels: right, down
    turn   the same as a rotation [3, 3] (right, up, towards the viewer)
    """

    yaw: float
    pitch: float
    roll: float
    scale: float
    place: tuple[float, float]
    turn: np.ndarray


def pose(points: np.ndarray) -> tuple[Pose, np.ndarray]:
    """Landmarks [468, 3] (pixels: right, down, away) -> how the head is turned, and the face turned back: float64
    [468, 3] in cm (right, up, towards the viewer)."""
    seen = points.astype(np.float64) * (1, -1, -1)
    turn, scale, shift = _similarity(TEMPLATE, seen[list(RIGID)])
    back: np.ndarray = (seen - shift) @ turn / scale
    nose, up = turn[:, 2], turn[:, 1]
    yaw, pitch = math.atan2(nose[0], nose[2]), math.asin(float(np.clip(nose[1], -1, 1)))
    # What is left when yaw and pitch are undone turns about the viewing axis.
    side = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    over = np.cross(nose, side)
    roll = math.atan2(float(up @ side), float(up @ over))
    place = float(shift[0]), float(-shift[1])
    return Pose(math.degrees(yaw), math.degrees(pitch), math.degrees(roll), scale, place, turn), back


def _similarity(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """R, s, t of the least squares of b = s R a + t (Umeyama 1991, eqs. 40-42)."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    x, y = a - mean_a, b - mean_b
    u, spectrum, vt = np.linalg.svd(y.T @ x)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    turn: np.ndarray = (u * sign) @ vt
    scale = max(float((spectrum * sign).sum() / (x * x).sum()), 1e-6)
    return turn, scale, mean_b - scale * turn @ mean_a


# Measures of the face turned back. Right and left are the person's: the person's right is at the picture's left.

_EYES = {
    "Right": (33, 133, ((160, 144), (159, 145), (158, 153))),
    "Left": (263, 362, ((387, 373), (386, 374), (385, 380))),
}  # outer and inner corner, upper and lower lid
_BROWS = {"Right": ((55, 107), (63, 105, 70)), "Left": ((285, 336), (293, 334, 300))}  # inner, outer
_CORNERS = {"Right": 61, "Left": 291}
_LIPS = (13, 14)  # inner edges, upper and lower
_BRIDGE = 168


def measures(back: np.ndarray, irises: np.ndarray) -> dict[str, float]:
    """The face turned back [468, 3] and its irises [2, 3], in cm -> what moves in it.

    lid*: the opening of an eye over its width; all else in cm, upwards and to the picture's right where it has a sign.
    """
    told: dict[str, float] = {}
    for k, side in enumerate(("Right", "Left")):
        outer, inner, pairs = _EYES[side]
        a, b = back[outer], back[inner]
        width = float(np.linalg.norm(a - b))
        told[f"lid{side}"] = float(np.mean([np.linalg.norm(back[i] - back[j]) for i, j in pairs])) / max(width, 1e-6)
        middle = (a + b) / 2
        told[f"gaze{side}X"], told[f"gaze{side}Y"] = (irises[k, :2] - middle[:2]).tolist()
        line = middle[1]
        for name, brow in zip(("inner", "outer"), _BROWS[side], strict=True):
            told[f"{name}{side}"] = float(back[list(brow), 1].mean() - line)
    right, left = (back[_CORNERS[side]] for side in ("Right", "Left"))
    upper, lower = back[_LIPS[0]], back[_LIPS[1]]
    told["gap"] = float(np.linalg.norm(upper - lower))
    told["width"] = float(np.linalg.norm(left - right))
    for side, corner in (("Right", right), ("Left", left)):
        told[f"corner{side}"] = float(corner[1] - upper[1])
    told["aside"] = float((right[0] + left[0]) / 2 - back[_BRIDGE, 0])
    return told


_FALL = 0.2  # cm that the corners of a mouth fall for each that its lips part

# The mean open face, in the units above, until a person's own is known.
_MEAN = {
    "lidRight": 0.30, "lidLeft": 0.30, "gazeRightX": 0.0, "gazeLeftX": 0.0, "gazeRightY": 0.0, "gazeLeftY": 0.0,
    "innerRight": 1.9, "innerLeft": 1.9, "outerRight": 2.1, "outerLeft": 2.1, "gap": 0.1, "width": 5.0,
    "cornerRight": -0.3, "cornerLeft": -0.3, "aside": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Neutral:
    """A person at rest, looking straight at the camera: what controls count from.

    measured  `measures`; turned: yaw, pitch, roll
    place, scale  of `Pose`; None: the picture's middle, and no distance
    """

    measured: dict[str, float] = field(default_factory=lambda: dict(_MEAN))
    turned: tuple[float, float, float] = (0.0, 0.0, 0.0)
    place: tuple[float, float] | None = None
    scale: float | None = None


def calibrated(faces: Sequence[Face]) -> Neutral:
    """Of some pictures of a neutral face: medians, so that a blink among them does no harm.

    Raises InputError for fewer than 3 faces.
    """
    if len(faces) < 3:
        raise InputError(_PLACE, "a neutral face takes at least 3 pictures of it", len(faces))
    rows, turns = [], []
    for face in faces:
        held, back = pose(face.points)
        rows.append(measures(back, _irises(face, held, back)))
        turns.append((held.yaw, held.pitch, held.roll, *held.place, held.scale))
    middle = np.median(turns, axis=0)
    measured = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    return Neutral(measured, (middle[0], middle[1], middle[2]), (middle[3], middle[4]), float(middle[5]))


def controls(face: Face, neutral: Neutral, size: tuple[int, int]) -> dict[str, float]:
    """Values of CONTROLS_GIVEN, held in their ranges; size: of the picture, (width, height)."""
    held, back = pose(face.points)
    now, rest = measures(back, _irises(face, held, back)), neutral.measured
    moved = {name: value - rest[name] for name, value in now.items()}
    told: dict[str, float] = {}
    for side in ("Left", "Right"):
        opening = now[f"lid{side}"] / max(rest[f"lid{side}"], 1e-3)
        told[f"eyeBlink{side}"] = _share(1 - opening, 0.1, 0.55)
        told[f"eyeWide{side}"] = _share(opening - 1, 0.1, 0.5)
        outer = moved[f"outer{side}"]
        told[f"browOuterUp{side}"] = _share(outer, 0.05, 0.7)
        told[f"browDown{side}"] = _share(-(moved[f"inner{side}"] + outer) / 2, 0.05, 0.5)
        wider = moved["width"] / 2
        corner = moved[f"corner{side}"]
        told[f"mouthSmile{side}"] = _share(corner + 0.5 * wider, 0.05, 0.8)
        told[f"mouthFrown{side}"] = _share(-corner - _FALL * moved["gap"], 0.08, 0.6)
    told["browInnerUp"] = _share((moved["innerLeft"] + moved["innerRight"]) / 2, 0.05, 0.7)
    told["jawOpen"] = _share(moved["gap"], 0.05, 2.5)
    narrow = _share(-moved["width"], 0.1, 1.6)
    open_ = min(1.0, told["jawOpen"] / 0.25)
    told["mouthFunnel"], told["mouthPucker"] = narrow * open_, narrow * (1 - open_)
    told["mouthRight"], told["mouthLeft"] = _share(-moved["aside"], 0.1, 0.9), _share(moved["aside"], 0.1, 0.9)
    for axis, reach in (("X", 0.45), ("Y", 0.3)):
        gaze = (moved[f"gazeRight{axis}"] + moved[f"gazeLeft{axis}"]) / 2 / reach
        told[f"gaze{axis}"] = min(max(gaze, -1.0), 1.0)
    turned = zip((held.yaw, held.pitch, held.roll), neutral.turned, strict=True)
    told["headYaw"], told["headPitch"], told["headRoll"] = (angle - rest_angle for angle, rest_angle in turned)
    x, y = neutral.place or (size[0] / 2, size[1] / 2)
    told["headX"], told["headY"] = (held.place[0] - x) / held.scale, (y - held.place[1]) / held.scale
    told["headZ"] = 0.0 if neutral.scale is None else _DISTANCE * (1 - neutral.scale / held.scale)
    return {name: min(max(value, _RANGES[name][0]), _RANGES[name][1]) for name, value in told.items()}


def mirrored(told: dict[str, float]) -> dict[str, float]:
    """As a mirror shows it: left and right change places, what points to the right points to the left."""
    turned = {}
    for name, value in told.items():
        if name in ("headYaw", "headRoll", "headX", "gazeX"):
            turned[name] = -value
        elif name.endswith("Left"):
            turned[name.removesuffix("Left") + "Right"] = value
        elif name.endswith("Right"):
            turned[name.removesuffix("Right") + "Left"] = value
        else:
            turned[name] = value
    return turned


def _irises(face: Face, held: Pose, back: np.ndarray) -> np.ndarray:
    """[2, 3] in cm, turned back: each iris lies in the picture where the sight goes through the plane of its eye."""
    points = face.points.astype(np.float64) * (1, -1, -1)
    turned = []
    for k, side in enumerate(("Right", "Left")):
        outer, inner, _ = _EYES[side]
        middle = (points[outer] + points[inner]) / 2
        x, y = face.irises[k].astype(np.float64) * (1, -1) - middle[:2]
        facing = held.turn[:, 2]
        deep = -(facing[0] * x + facing[1] * y) / max(float(facing[2]), _ASIDE)
        turned.append((back[outer] + back[inner]) / 2 + np.array([x, y, deep]) @ held.turn / held.scale)
    return np.array(turned)


def _share(value: float, least: float, full: float) -> float:
    """0 up to `least`, 1 from `full` on."""
    return min(max((value - least) / (full - least), 0.0), 1.0)


assert len(TEMPLATE) == len(RIGID) and max(RIGID) < POINTS
