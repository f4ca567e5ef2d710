"""A face's landmarks in a picture: MediaPipe's three networks, run by OpenVINO on one thread.

The detector finds a face in the whole picture (BlazeFace, Bazarevsky et al. 2019); the mesh network gives 468 points of
the face in a square around it, turned upright (Kartynnik et al. 2019); the iris network looks at each eye. What stands
between them (anchors, squares, margins) follows MediaPipe's published graphs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["IRISES", "POINTS", "Face", "FaceMesh", "Square"]

POINTS = 468
IRISES = 2
_DETECTED, _MESHED, _EYED = 128, 192, 64  # pixels of the networks' inputs
_SURE = 0.5
_OVERLAP = 0.3
_MARGIN, _EYE_MARGIN = 1.5, 2.3
# Corners of the eyes in the mesh: the person's right (outer, inner), left (inner, outer).
_RIGHT_EYE, _LEFT_EYE = (33, 133), (362, 263)


@dataclass(frozen=True)
class Square:
    """Of a picture: centre and side in pixels; angle in radians, clockwise as pictures are seen."""

    x: float
    y: float
    side: float
    angle: float

    def affine(self, size: int) -> tuple[float, ...]:
        """Pixels of its `size` x `size` crop -> of the picture: x = a u + b v + c, y = d u + e v + f."""
        step = self.side / size
        cos, sin = step * math.cos(self.angle), step * math.sin(self.angle)
        half = size / 2
        return cos, -sin, self.x - half * (cos - sin), sin, cos, self.y - half * (sin + cos)

    def out(self, points: np.ndarray, size: int) -> np.ndarray:
        """Points [N, 3] of the crop -> of the picture; depth in the picture's pixels."""
        a, b, c, d, e, f = self.affine(size)
        u, v = points[:, 0], points[:, 1]
        return np.stack([a * u + b * v + c, d * u + e * v + f, points[:, 2] * self.side / size], axis=1)


@dataclass(frozen=True, eq=False)
class Face:
    """points  float32 [468, 3], pixels of the picture: right, down, and away from the viewer
    irises  float32 [2, 2], centres: the person's right, left
    sure    0..1, whether there is a face
    """

    points: np.ndarray
    irises: np.ndarray
    sure: float


def _anchors() -> np.ndarray:
    """[896, 2]: centres, in shares of the picture: 2 to each cell of 16 x 16, 6 to each of 8 x 8."""
    rows = []
    for cells, each in ((16, 2), (8, 6)):
        centres = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
        rows.append(grid.repeat(each, axis=0))
    return np.concatenate(rows)


class FaceMesh:
    """files: `face_files.found()`. Not for several threads at once."""

    def __init__(self, files: dict[str, Path], *, threads: int = 1) -> None:
        import openvino as ov

        core = ov.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self._run: dict[str, Any] = {
            name: core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
            for name, path in files.items()
        }
        self._anchors = _anchors()

    def find(self, picture: np.ndarray) -> Square | None:
        """The square around the likeliest face of a picture uint8 [H, W, 3]; None without one."""
        if (found := self._detected(picture)) is None:
            return None
        (x, y), size, (right, left) = found[0], found[1], found[2:4]
        return Square(float(x), float(y), _MARGIN * float(size.max()), math.atan2(*(left - right)[::-1]))

    def eyes(self, picture: np.ndarray) -> np.ndarray | None:
        """Of the likeliest face, as the detector alone sees it, which knows drawn ones too: [2, 2], the person's right
        eye and the left, in pixels; None without one."""
        found = self._detected(picture)
        return None if found is None else found[2:4]

    def _detected(self, picture: np.ndarray) -> np.ndarray | None:
        """[8, 2], in pixels: centre, size, then eyes, nose, mouth and ears."""
        height, width = picture.shape[:2]
        side = max(height, width)
        whole = Square(width / 2, height / 2, side, 0.0)
        crop = _crop(picture, whole, _DETECTED, edges=False).astype(np.float32) / 127.5 - 1
        boxes, scores = self._outputs("detector", crop, (16, 1))
        logits = scores[:, 0].clip(-100, 100)
        likely = 1 / (1 + np.exp(-logits.astype(np.float64)))
        if likely.max() < _SURE:
            return None
        kept = np.flatnonzero(likely >= _SURE)
        raw = boxes[kept].astype(np.float64) / _DETECTED  # shares of the letterboxed picture
        at = raw.reshape(len(kept), 8, 2)
        at[:, 0] += self._anchors[kept]
        at[:, 2:] += self._anchors[kept][:, None]
        # Weighted suppression: what overlaps the likeliest is averaged with it.
        best = int(likely[kept].argmax())
        near = _overlap(at, best) > _OVERLAP
        near[best] = True
        weights = likely[kept][near]
        mean = (weights[:, None, None] * at[near]).sum(0) / weights.sum()
        corner = np.array([(width - side) / 2, (height - side) / 2])
        placed: np.ndarray = mean * side + corner
        placed[1] -= corner  # a size
        return placed

    def look(self, picture: np.ndarray, square: Square, *, irises: bool = True) -> Face:
        """The face in this square of the picture. Without irises, they are the middles of the eyes."""
        crop = _crop(picture, square, _MESHED, edges=True).astype(np.float32) / 255
        points, flag = self._outputs("mesh", crop, (3 * POINTS, 1))
        sure = 1 / (1 + math.exp(-float(np.clip(flag.ravel()[0], -50, 50))))
        mesh = square.out(points.reshape(POINTS, 3).astype(np.float64), _MESHED).astype(np.float32)
        eyes = (_RIGHT_EYE, _LEFT_EYE)
        if not irises or sure < _SURE:
            return Face(mesh, np.stack([mesh[list(eye), :2].mean(0) for eye in eyes]), sure)
        return Face(mesh, np.stack([self._iris(picture, mesh, k) for k in range(IRISES)]), sure)

    def around(self, face: Face) -> Square:
        """Where to look for it in the next picture."""
        points = face.points[:, :2]
        low, high = points.min(0), points.max(0)
        turn = points[_LEFT_EYE[1]] - points[_RIGHT_EYE[0]]
        x, y = (low + high) / 2
        return Square(float(x), float(y), _MARGIN * float((high - low).max()), math.atan2(turn[1], turn[0]))

    def _iris(self, picture: np.ndarray, mesh: np.ndarray, eye: int) -> np.ndarray:
        """float32 [2]. The network was trained on left eyes: the right one is shown mirrored."""
        a, b = mesh[list((_RIGHT_EYE, _LEFT_EYE)[eye]), :2]
        x, y = (a + b) / 2
        square = Square(float(x), float(y), _EYE_MARGIN * float(np.abs(b - a).max()), math.atan2(*(b - a)[::-1]))
        crop = _crop(picture, square, _EYED, edges=True).astype(np.float32) / 255
        if eye == 0:
            crop = crop[:, ::-1]
        (iris,) = self._outputs("iris", np.ascontiguousarray(crop), (15,))
        points = iris.reshape(5, 3).astype(np.float64)
        if eye == 0:
            points[:, 0] = _EYED - points[:, 0]
        return square.out(points[:1], _EYED)[0, :2].astype(np.float32)

    def _outputs(self, name: str, crop: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
        """The network's outputs by their number of values in a row (the last axis)."""
        request = self._run[name]
        request.infer({0: crop[None]})
        made = [np.asarray(tensor.data) for tensor in request.output_tensors]
        return [next(one for one in made if one.shape[-1] == n).reshape(-1, n).copy() for n in sizes]


def _crop(picture: np.ndarray, square: Square, size: int, *, edges: bool) -> np.ndarray:
    """uint8 [size, size, 3], bilinear. Outside of the picture: its edge pixels, or black."""
    height, width = picture.shape[:2]
    a, b, c, d, e, f = square.affine(size)
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]]) @ np.array([[a, d], [b, e], [c, f]])
    low = np.clip(np.floor(corners.min(0)).astype(int) - 2, -4096, [width - 1, height - 1])
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 2, low + 1, [width + 4096, height + 4096])
    inside = np.maximum(low, 0), np.minimum(high, [width, height])
    part = picture[inside[0][1] : inside[1][1], inside[0][0] : inside[1][0]]
    if part.size == 0:
        return np.zeros((size, size, 3), np.uint8)
    if edges and (np.any(low < 0) or np.any(high > [width, height])):
        before, after = inside[0] - low, high - inside[1]
        part = np.pad(part, ((before[1], after[1]), (before[0], after[0]), (0, 0)), "edge")
        origin = low
    else:
        origin = inside[0]
    at = (a, b, c - origin[0], d, e, f - origin[1])
    image = Image.fromarray(np.ascontiguousarray(part))
    return np.asarray(image.transform((size, size), Image.Transform.AFFINE, at, Image.Resampling.BILINEAR))


def _overlap(at: np.ndarray, best: int) -> np.ndarray:
    """Intersection over union of the boxes [N, 8, 2] (centre, size, key points) with the best one."""
    low, high = at[:, 0] - at[:, 1] / 2, at[:, 0] + at[:, 1] / 2
    common = np.maximum(np.minimum(high, high[best]) - np.maximum(low, low[best]), 0).prod(1)
    areas = (high - low).prod(1)
    whole: np.ndarray = common / np.maximum(areas + areas[best] - common, 1e-12)
    return whole
