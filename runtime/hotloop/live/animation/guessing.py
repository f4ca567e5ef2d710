"""A first guess of the ten points in a picture that nothing is known of: somebody looks at it and moves what is wrong.

Landmarks, where the camera tracker's networks are here and see a face; its detector, which knows drawn faces too, else
gives the eyes; else a face is taken to stand in the middle of what is there. From the eyes on, lids, mouth and chin are
looked for by colours. Whoever sees that the eyes are wrong gives them, and the rest follows.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import BundleError
from .geometry import POINTS

if TYPE_CHECKING:
    from ..sources.face_mesh import FaceMesh

__all__ = ["Guess", "guess"]

# Of the tracker's 468 landmarks, the person's right before the left: lids above and below, corners of the mouth.
_LIDS = ((159, 145), (386, 374))
_CORNERS, _FOREHEAD, _CHIN = (61, 291), 10, 152
_SURE = 0.5
_GROUND = 216  # grey behind what is transparent
_LEAST = 0.03  # pictures between two eyes

_networks = threading.Lock()  # one context of each

Points = dict[str, tuple[float, float]]


class Guess(NamedTuple):
    """points: POINTS in shares of the picture; by: what the eyes are known by, "landmarks", "detector", "given", or
    "middle": nothing."""

    points: Points
    by: str


def guess(rgba: np.ndarray, eyes: np.ndarray | None = None) -> Guess:
    """rgba: premultiplied uint8 [S, S, 4]; eyes: [2, 2], the person's right and left, in its shares, where known."""
    over = rgba[..., :3] + ((255 - rgba[..., 3:].astype(np.uint16)) * _GROUND // 255).astype(np.uint8)
    picture, side = over.astype(np.float32) / 255, len(over)
    if eyes is not None:
        return Guess(_Look(picture, np.asarray(eyes, np.float64)).points(exact=True), "given")
    points, found = _tracked(np.ascontiguousarray(over))
    if points is not None:
        return Guess(points, "landmarks")
    if found is not None and found[1, 0] - found[0, 0] >= _LEAST * side:
        return Guess(_Look(picture, found / side).points(), "detector")
    rows, columns = np.nonzero(rgba[..., 3] > 128)
    left, right, top, low = (columns.min(), columns.max(), rows.min(), rows.max()) if len(rows) else (0, side, 0, side)
    wide = min(right - left, 0.9 * (low - top)) / side  # of a face that stands upright in what is there
    middle, y, apart = (left + right) / 2 / side, top / side + 0.45 * wide, max(0.26 * wide, _LEAST)
    return Guess(
        _Look(picture, np.array([[middle - apart / 2, y], [middle + apart / 2, y]])).points(exact=True), "middle"
    )


def _tracked(pixels: np.ndarray) -> tuple[Points | None, np.ndarray | None]:
    """By the camera tracker, uint8 [S, S, 3]: the points, if it sees a face; the eyes [2, 2], if only its detector
    does; neither where it is not here."""
    with _networks:
        if (mesh := _mesh()) is None or (square := mesh.find(pixels)) is None:
            return None, None
        face = mesh.look(pixels, mesh.around(mesh.look(pixels, square)))
        if face.sure < _SURE:
            return None, mesh.eyes(pixels)
    at = face.points[:, :2].astype(np.float64)
    told: dict[str, np.ndarray] = {}
    for k, side in enumerate(("Right", "Left")):
        told[f"lidUpper{side}"], told[f"lidLower{side}"] = (at[i] for i in _LIDS[k])
        told[f"eye{side}"], told[f"mouth{side}"] = face.irises[k].astype(np.float64), at[_CORNERS[k]]
    told["chin"] = at[_CHIN]
    # The mesh ends at the hairline: a head goes on above it.
    told["headCentre"] = (at[_CHIN] + at[_FOREHEAD] + 0.25 * (at[_FOREHEAD] - at[_CHIN])) / 2
    return _shares({name: place / len(pixels) for name, place in told.items()}), None


@cache
def _mesh() -> FaceMesh | None:
    """The tracker's networks; None where they are not here."""
    from ..sources import face_files

    try:
        files = face_files.found()
        from ..sources.face_mesh import FaceMesh

        return FaceMesh(files)
    except (BundleError, ImportError):
        return None


def _shares(points: dict[str, np.ndarray]) -> Points:
    most = {"chin": 1.0}  # a mouth at the border still leaves room for it
    held = {name: np.clip(points[name], 0.0, (1.0, most.get(name, 0.98))).tolist() for name in POINTS}
    return {name: (x, y) for name, (x, y) in held.items()}


class _Look:
    """A face's surroundings by its own lengths: distances between the eyes, from the middle between them along the line
    that they make, to the right (u) and down (v)."""

    def __init__(self, picture: np.ndarray, eyes: np.ndarray) -> None:
        """picture: float32 [S, S, 3]; eyes: [2, 2] in pictures."""
        self._picture, self._middle = picture, eyes.mean(0)
        self._across = eyes[1] - eyes[0]
        self._down = np.array([-self._across[1], self._across[0]])

    def points(self, *, exact: bool = False) -> Points:
        """exact: the eyes are where they were told to be."""
        told: dict[str, np.ndarray] = {}
        eyes = [self._eye(way, exact) for way in (-0.5, 0.5)]
        for side, (u, v, up, low) in zip(("Right", "Left"), eyes, strict=True):
            told[f"eye{side}"] = self._at(u, v)
            told[f"lidUpper{side}"], told[f"lidLower{side}"] = self._at(u, v - up), self._at(u, v + low)
        middle = (eyes[0][0] + eyes[1][0]) / 2
        mouth, half = self._mouth(middle)
        told["mouthRight"], told["mouthLeft"] = self._at(middle - half, mouth), self._at(middle + half, mouth)
        told["chin"], told["headCentre"] = self._at(middle, self._chin(middle, mouth)), self._at(middle, 0.06)
        return _shares(told)

    def _at(self, u: np.ndarray | float, v: np.ndarray | float) -> np.ndarray:
        u, v = np.broadcast_arrays(u, v)
        return np.asarray(self._middle + u[..., None] * self._across + v[..., None] * self._down)

    def _colours(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """[.., 3] at places that broadcast."""
        side = len(self._picture)
        i, j = np.moveaxis(np.clip(self._at(u, v) * side, 0, side - 1).astype(int), -1, 0)
        return np.asarray(self._picture[j, i], np.float64)

    def _off(self, u: np.ndarray, v: np.ndarray, skin: np.ndarray) -> np.ndarray:
        """How unlike colours of skin [n, 3]: 0..1."""
        far = np.abs(self._colours(u, v)[..., None, :] - skin).sum(-1).min(-1)
        return np.asarray(np.clip(far / 0.6, 0, 1))

    def _eye(self, way: float, exact: bool) -> tuple[float, float, float, float]:
        """u, v of an eye's middle, and how far its lids are above and below it."""
        cheek = self._colours(np.linspace(0.6, 1.1, 9)[None] * way, np.linspace(0.4, 0.6, 7)[:, None])
        bridge = self._colours(np.linspace(-0.1, 0.1, 5)[None], np.linspace(-0.1, 0.2, 7)[:, None])
        skin = np.stack([np.median(one.reshape(-1, 3), axis=0) for one in (cheek, bridge)])
        u, v = way, 0.0
        du, dv = np.meshgrid(np.linspace(-0.4, 0.4, 41), np.linspace(-0.4, 0.4, 41))
        for wide in () if exact else (0.2, 0.2, 0.18, 0.18, 0.15, 0.15, 0.13, 0.13):
            # Mean shift (Fukunaga and Hostetler 1975).
            near = np.exp(-(du**2 + dv**2) / (2 * wide**2))
            weight = near * self._off(u + du, v + dv, skin) + 1e-9
            u, v = u + float((weight * du).sum() / weight.sum()), v + float((weight * dv).sum() / weight.sum())
        reach, columns = np.linspace(0, 0.45, 91), u + np.linspace(-0.05, 0.05, 7)[None]
        spans = []
        for step in (-reach, reach):
            off = self._off(columns, v + step[:, None], skin).mean(1)
            begun = int(off[:16].argmax())
            ended = np.flatnonzero(off[begun:] < max(0.18, 0.3 * off[begun]))
            spans.append(float(reach[begun + ended[0]]) if len(ended) else 0.14)
        up, low = (float(np.clip(span, 0.06, 0.36)) for span in spans)
        return u, v, up, low

    def _mouth(self, middle: float) -> tuple[float, float]:
        """Its height, and half its width."""
        u, v = np.linspace(-0.4, 0.4, 81), np.linspace(0.45, 1.5, 106)
        sides = self._colours(middle + np.array([-0.42, -0.36, 0.36, 0.42])[None], np.linspace(0.6, 0.85, 7)[:, None])
        skin = np.median(sides.reshape(-1, 3), axis=0)
        # Lips are redder than skin, or darker: less green in any case.
        less = np.clip((skin[1] - self._colours(middle + u[None], v[:, None])[..., 1]) / 0.4, 0, 1)
        # What goes on to the sides is a chin's outline or a neck.
        wide = less[:, np.abs(u) < 0.2].mean(1) - less[:, np.abs(u) > 0.32].mean(1)
        rows = np.convolve(wide, np.ones(5) / 5, "same") * np.exp(-(((v - 0.85) / 0.3) ** 2) / 2)
        k = int(rows.argmax())
        if rows[k] < 0.03:
            return 0.9, 0.22
        there = less[max(k - 4, 0) : k + 5].max(0) > 0.3
        ends = []
        for way in (-1, 1):  # outwards from the middle, over gaps as wide as between a cat's two arcs
            at, end = np.flatnonzero(there & (way * u > 0)), 0.0
            for place in np.sort(np.abs(u[at])):
                if place - end > 0.09:
                    break
                end = float(place)
            ends.append(end)
        return float(v[k]), float(np.clip(np.mean(ends), 0.13, 0.38))

    def _chin(self, middle: float, mouth: float) -> float:
        """Where the face ends below: the strongest step of brightness about where one is to be expected."""
        low = mouth + np.linspace(0.3, 1.1, 81) * max(mouth, 0.5)
        grey = self._colours(middle + np.linspace(-0.1, 0.1, 9)[None], low[:, None]).mean((1, 2))
        step = np.abs(np.convolve(grey, np.repeat([1.0, -1.0], 4), "same"))
        step[:6] = step[-6:] = 0
        expected = mouth + 0.62 * max(mouth, 0.5)
        weighed = step * np.exp(-(((low - expected) / (0.35 * max(mouth, 0.5))) ** 2) / 2)
        k = int(weighed.argmax())
        return float(low[k]) if weighed[k] > 0.08 else float(expected)
