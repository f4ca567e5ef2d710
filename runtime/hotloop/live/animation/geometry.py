"""Where a face's movable parts lie in a keyframe: a frame of its own, curves of lids, brows and lips, by numbers alone.

*Face coordinates* are units of the head: the middle between the eyes lies at (0, 0.1), the eyes are 0.224 apart, x to
the right of the picture along the line of the eyes, y down. A face as our renderer draws it has its chin at 0.31. A
*curve* is `SAMPLES` heights y at equal steps of x between two ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...files import read_file

__all__ = ["APART", "EYES_Y", "POINTS", "SAMPLES", "Brow", "Eye", "Geometry", "Mouth", "from_points", "read_points"]

PLACE = "live.avatar"
SAMPLES = 33
EYES_Y, APART = 0.1, 0.224
_MOST = 1 << 16  # bytes of a file of points

# What is asked for where it cannot be found: [x, y] each, shares of the picture. Left and right are the person's own.
POINTS = (
    "eyeLeft", "eyeRight", "lidUpperLeft", "lidLowerLeft", "lidUpperRight", "lidLowerRight", "mouthLeft", "mouthRight",
    "chin", "headCentre",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Eye:
    """x, y, width: centre and half width; top, low: curves of the open lids; rest: of the line that they make when
    closed, in the reveal texture; iris: its centre's x, y and radii; lash: thickness of that line."""

    x: float
    y: float
    width: float
    top: np.ndarray
    low: np.ndarray
    rest: np.ndarray
    iris: tuple[float, float, float, float]
    lash: float


@dataclass(frozen=True, eq=False)
class Brow:
    """From x0 to x1, inner end first where it lies; middle: its curve from the smaller x to the larger; thick."""

    x0: float
    x1: float
    middle: np.ndarray
    thick: float


@dataclass(frozen=True, eq=False)
class Mouth:
    """x, width: centre and half width of the closed line; line: its curve. reveal: half width of the open mouth in the
    reveal texture, top and low: its curves."""

    x: float
    width: float
    line: np.ndarray
    reveal: float
    top: np.ndarray
    low: np.ndarray


@dataclass(frozen=True, eq=False)
class Geometry:
    """origin, angle, unit: of the face's coordinates in the picture (pictures, radians clockwise, pictures a unit).

    eyes, brows   as they lie in the picture, left one first; no brows: they move with the skin around them
    chin          its y; centre, half: the head's middle and half width and height, hair included
    """

    origin: tuple[float, float]
    angle: float
    unit: float
    eyes: tuple[Eye, Eye]
    brows: tuple[Brow, Brow] | None
    mouth: Mouth
    chin: float
    centre: tuple[float, float]
    half: tuple[float, float]

    def to_face(self, points: np.ndarray) -> np.ndarray:
        """Places of the picture [.., 2] -> face coordinates."""
        return (np.asarray(points, np.float64) - self.origin) @ self._turn.T / self.unit

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """The way back."""
        return np.asarray(points, np.float64) @ self._turn * self.unit + self.origin

    @property
    def _turn(self) -> np.ndarray:
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, s], [-s, c]])

    @property
    def anchors(self) -> np.ndarray:
        """Both eyes and the mouth in the picture [3, 2]: what two keyframes are aligned by."""
        eyes = [(eye.x, eye.y) for eye in self.eyes]
        return self.to_picture(np.array([*eyes, (self.mouth.x, float(self.mouth.line[SAMPLES // 2]))]))

    def as_json(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Geometry:
        """Raises InputError for what `as_json` does not give."""
        try:
            eyes = tuple(Eye(**_arrays(eye)) for eye in data["eyes"])
            brows = None if data["brows"] is None else tuple(Brow(**_arrays(brow)) for brow in data["brows"])
            names = ("origin", "angle", "unit", "chin", "centre", "half")
            rest = {key: _arrays({key: data[key]})[key] for key in names}
            made = cls(eyes=eyes, brows=brows, mouth=Mouth(**_arrays(data["mouth"])), **rest)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(PLACE, f"a geometry must be whole: {error}", type(data).__name__) from error
        if len(made.eyes) != 2 or not made.unit > 0:
            raise InputError(PLACE, "a geometry must have two eyes and a unit above 0", made.unit)
        return made


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [float(v) for v in value]
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def _arrays(data: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of SAMPLES numbers are curves, shorter ones tuples."""
    made: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, list):
            numbers = [float(v) for v in value]
            made[name] = np.array(numbers) if len(numbers) == SAMPLES else tuple(numbers)
        else:
            made[name] = float(value)
        if not np.isfinite(made[name]).all():
            raise ValueError(f"{name} is not finite")
    return made


def read_points(source: Path | Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The ten points from a JSON file or a mapping: POINTS -> [x, y] in 0..1. Raises InputError."""
    if isinstance(source, Path):
        try:
            source = json.loads(read_file(source, most=_MOST).decode("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(PLACE, "points must be a readable JSON file", str(error)) from error
    if not isinstance(source, Mapping):
        raise InputError(PLACE, "points must be an object of names and [x, y]", type(source).__name__)
    if missing := [name for name in POINTS if name not in source]:
        raise InputError(PLACE, f"points must name {', '.join(POINTS)}; missing", ", ".join(missing))
    if unknown := sorted(set(source) - set(POINTS)):
        raise InputError(PLACE, f"points must be among {', '.join(POINTS)}", unknown[0])
    found = {}
    for name in POINTS:
        pair = source[name]
        fits = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not fits or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in pair):
            raise InputError(PLACE, f"{name} must be [x, y], shares of the picture in 0..1", pair)
        found[name] = (float(pair[0]), float(pair[1]))
    return found


def from_points(points: Mapping[str, tuple[float, float]], widths: tuple[float, float] | None = None) -> Geometry:
    """What ten points tell of a face; the curves between them are those of usual eyes and lips.

    widths: half widths of the eyes in face coordinates, left of the picture first; by default of usual eyes.

    Raises InputError where the points make no upright face.
    """
    at = {name: np.array(points[name], np.float64) for name in POINTS}
    left, right = at["eyeRight"], at["eyeLeft"]  # as they lie in the picture
    apart = right - left
    distance = float(np.hypot(*apart))
    if apart[0] <= 0.02 or abs(apart[1]) > apart[0]:
        raise InputError(PLACE, "eyeLeft is the person's own: it must lie to the right of eyeRight", points["eyeLeft"])
    unit, angle = distance / APART, math.atan2(apart[1], apart[0])
    down = np.array([-math.sin(angle), math.cos(angle)])
    origin = (left + right) / 2 - EYES_Y * unit * down
    bare = Geometry(
        tuple(origin), angle, unit, (), None, None, 0.3, (0.0, 0.0), (0.28, 0.33),  # type: ignore[arg-type]
    )  # fmt: skip
    face = {name: bare.to_face(p) for name, p in at.items()}
    if not face["mouthLeft"][0] > face["mouthRight"][0] or not face["chin"][1] > face["mouthLeft"][1] > EYES_Y:
        raise InputError(PLACE, "mouth must lie between eyes and chin, mouthLeft to the right of mouthRight",
                         points["mouthLeft"])  # fmt: skip
    right_width, left_width = widths or (None, None)
    eyes = (_eye(face, "Right", right_width), _eye(face, "Left", left_width))
    chin = float(face["chin"][1])
    centre = (float(face["headCentre"][0]), float(face["headCentre"][1]))
    half = (max(1.25 * APART, 0.62 * (chin - EYES_Y)), max(chin - centre[1], 0.25) * 1.08)
    return replace(bare, eyes=eyes, mouth=_mouth(face), chin=chin, centre=centre, half=half)


_ARC = np.sin(np.pi * np.linspace(0, 1, SAMPLES)) ** 0.75


def _eye(face: Mapping[str, np.ndarray], side: str, width: float | None) -> Eye:
    centre, upper, lower = face[f"eye{side}"], face[f"lidUpper{side}"], face[f"lidLower{side}"]
    tall = max((lower[1] - upper[1]) / 2, 0.01)
    if width is None:
        width = float(np.clip(1.12 * tall, 0.23 * APART, 0.36 * APART))
    corner = upper[1] + 0.62 * (lower[1] - upper[1])  # where the lids meet
    top, low = corner + (upper[1] - corner) * _ARC, corner + (lower[1] - corner) * _ARC
    rest = corner + 0.55 * (lower[1] - corner) * _ARC
    radius = min(0.7 * width, 0.95 * tall)
    return Eye(
        float(centre[0]), float((upper[1] + lower[1]) / 2), width, top, low, rest,
        (float(centre[0]), float(centre[1]), radius, radius), max(0.2 * tall, 0.008),
    )  # fmt: skip


def _mouth(face: Mapping[str, np.ndarray]) -> Mouth:
    left, right = face["mouthRight"], face["mouthLeft"]
    x, width = float((left[0] + right[0]) / 2), float((right[0] - left[0]) / 2)
    line = np.linspace(left[1], right[1], SAMPLES)
    tall = min(0.9 * width, 0.45 * float(face["chin"][1] - line.mean()))
    bow = (1 - np.linspace(-1, 1, SAMPLES) ** 2) ** 0.6
    return Mouth(x, width, line, width, line - 0.12 * tall * bow, line + 0.88 * tall * bow)
