"""Curves, colours and the canvas: polygons drawn several times too large and averaged down.

A point is (x, y) in unit coordinates, x right, y down, the picture is [0, 1] x [0, 1]. Every sample of the large canvas
is either drawn or not, so that averaging it down gives exact coverage: of the person (alpha) and of every part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageDraw
from render_people import Colour

__all__ = [
    "Canvas", "Points", "bezier", "curve", "dark", "grow", "leaf", "light", "mirror", "mix", "oval", "ribbon", "shade",
]  # fmt: skip

Points = Sequence[tuple[float, float]] | np.ndarray


# Colours.


def mix(a: Colour, b: Colour, t: float) -> Colour:
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def dark(colour: Colour, t: float = 0.35) -> Colour:
    return mix(colour, (30, 14, 40), t)


def light(colour: Colour, t: float = 0.35) -> Colour:
    return mix(colour, (255, 255, 255), t)


def shade(colour: Colour, t: float = 0.3) -> Colour:
    """The second tone of cel shading: darker, cooler and a little more saturated."""
    r, g, b = colour
    return mix(colour, (round(r * 0.62), round(g * 0.52), round(b * 0.72)), min(1.0, t * 2))


# Curves.


def oval(cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360, n: int = 24) -> np.ndarray:
    """Points of an ellipse arc; degrees, clockwise on the picture from the right."""
    return _circle(start, stop, n) * (rx, ry) + (cx, cy)


@lru_cache(maxsize=256)
def _circle(start: float, stop: float, n: int) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, n, endpoint=stop - start < 360))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@lru_cache(maxsize=64)
def _spline(n: int) -> np.ndarray:
    """[n, 4]: what the four points around each stretch of a Catmull-Rom curve weigh along it."""
    t = np.linspace(0, 1, n, endpoint=False)
    return 0.5 * np.stack([2 * t**2 - t - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], axis=1)


@lru_cache(maxsize=64)
def _quadratic(n: int) -> np.ndarray:
    t = np.linspace(0, 1, n)
    return np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)


@lru_cache(maxsize=64)
def _steps(n: int) -> np.ndarray:
    return np.linspace(0, 1, n)


def curve(points: Points, closed: bool = False, n: int = 6) -> np.ndarray:
    """A Catmull-Rom curve through the points."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    around = np.stack([p[i : len(p) - 3 + i] for i in range(4)], axis=1)  # [stretches, 4, 2]
    bent = (_spline(n) @ around).reshape(-1, 2)
    return bent if closed else np.concatenate([bent, p[-1:]])


def bezier(start: Points, control: Points, stop: Points, n: int = 8) -> np.ndarray:
    """A quadratic Bezier curve [n, 2]."""
    return _quadratic(n) @ np.array([start, control, stop], dtype=np.float64)


def mirror(points: Points) -> np.ndarray:
    """The points on the other side of x = 0."""
    return np.asarray(points) * (-1.0, 1.0)


def _normals(p: np.ndarray, closed: bool) -> np.ndarray:
    along = np.empty_like(p)
    along[1:-1] = p[2:] - p[:-2]
    if closed:
        along[0], along[-1] = p[1] - p[-1], p[0] - p[-2]
    else:
        along[0], along[-1] = p[1] - p[0], p[-1] - p[-2]
    length = np.sqrt((along * along).sum(1, keepdims=True)) + 1e-12
    return along[:, ::-1] * (1.0, -1.0) / length


def grow(points: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """A closed shape made larger by a width, which may differ from point to point."""
    x, y = points[:, 0], points[:, 1]
    turn = math.copysign(1.0, float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() + x[-1] * y[0] - x[0] * y[-1]))
    return points + _normals(points, True) * np.reshape(width, (-1, 1)) * turn


def ribbon(points: np.ndarray, width: float | Sequence[float]) -> np.ndarray:
    """The outline of a brush stroke along the points, its width given at evenly spaced places."""
    points = np.asarray(points, dtype=np.float64)
    if isinstance(width, int | float):
        width = (width, width)
    half = np.interp(_steps(len(points)), _steps(len(width)), width) / 2
    side = _normals(points, False) * half[:, None]
    return np.concatenate([points + side, (points - side)[::-1]])


def leaf(start: Points, control: Points, stop: Points, width: float, n: int = 9, blunt: float = 0.62) -> np.ndarray:
    """A lock of hair: full width at its start, a point at its end."""
    t = _steps(n)
    taper = (1 - t**1.6) ** blunt * (0.55 + 0.45 * np.minimum(1, 4 * t))
    return ribbon(bezier(start, control, stop, n), tuple(width * taper))


class _Sheet:
    """A rectangle to draw on: colours, and labels that are cut from the sheet below only when something marks them."""

    def __init__(self, image: Image.Image, label: Image.Image | None, at: np.ndarray, below: _Sheet | None) -> None:
        self.image, self.at, self.below, self._label = image, at, below, label
        self.offset = at + 0.5
        self.draw = ImageDraw.Draw(image)

    @cached_property
    def blend(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image, "RGBA")

    @cached_property
    def mark(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.label)

    @property
    def label(self) -> Image.Image:
        if self._label is None:
            assert self.below is not None
            self._label = self.below.label.crop(self.box)
        return self._label

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Where this sheet lies on the one below."""
        x, y = (self.at - self.below.at).tolist() if self.below else (0, 0)
        return x, y, x + self.image.width, y + self.image.height

    def settle(self, mask: Image.Image) -> _Sheet:
        """Pastes what was drawn, within the mask, onto the sheet below."""
        assert self.below is not None
        self.below.image.paste(self.image, self.box, mask)
        if self._label is not None:
            self.below.label.paste(self._label, self.box, mask)
        return self.below


class Canvas:
    """A picture and, beside it, a label image that says which layer and part each sample shows (0: nothing)."""

    def __init__(self, size: int, supersampling: int, parts: Sequence[str]) -> None:
        self.supersampling, self.parts = supersampling, parts
        self.side = size * supersampling
        self.image = Image.new("RGB", (self.side, self.side))
        self.label = Image.new("L", (self.side, self.side), 0)
        self.layer = 0
        self._top = _Sheet(self.image, self.label, np.zeros(2, dtype=np.int64), None)

    def fill(self, points: np.ndarray, colour: Colour, part: str | None = None, alpha: float = 1.0) -> None:
        """Fills a polygon; with alpha below 1 it tints what is there. Without a part the labels stay as they are."""
        top = self._top
        pixels = np.rint(np.asarray(points) * self.side - top.offset).ravel().tolist()
        if alpha >= 1:
            top.draw.polygon(pixels, fill=colour)
        elif alpha > 0:
            top.blend.polygon(pixels, fill=(*colour, round(alpha * 255)))
        if part is not None:
            top.mark.polygon(pixels, fill=self.layer * 16 + self.parts.index(part))

    def shape(
        self, points: np.ndarray, colour: Colour, ink: Colour, part: str, width: float | np.ndarray = 0.005
    ) -> None:
        """A filled shape in an outline that is wider on the side away from the light (below and right)."""
        if isinstance(width, int | float):
            centre = points.mean(0)
            away = points - centre
            width = width * (1 + 0.45 * (away @ (0.45, 0.9)) / (np.sqrt((away * away).sum(1)) + 1e-6))
        self.fill(grow(points, width), ink, part)
        self.fill(points, colour)

    def line(
        self, points: np.ndarray, width: float | Sequence[float], colour: Colour, part: str | None = None,
        alpha: float = 1.0,
    ) -> None:  # fmt: skip
        self.fill(ribbon(points, width), colour, part, alpha)

    @contextmanager
    def clip(self, points: np.ndarray) -> Iterator[None]:
        """Inside, only what falls within the polygon is drawn."""
        top = self._top
        pixels = np.rint(points * self.side - 0.5).astype(np.int64)
        low = np.maximum(pixels.min(0), top.at)
        high = np.minimum(pixels.max(0) + 1, top.at + top.image.size)
        if (high <= low).any():
            low, high = top.at, top.at + 1
        mask = Image.new("1", tuple((high - low).tolist()))
        ImageDraw.Draw(mask).polygon((pixels - low).ravel().tolist(), fill=1)
        cut = (*(low - top.at).tolist(), *(high - top.at).tolist())
        self._top = _Sheet(top.image.crop(cut), None, low, top)
        try:
            yield
        finally:
            self._top = self._top.settle(mask)

    def bands(self, top: float, bottom: float, stops: Sequence[Colour]) -> None:
        """Fills (the clip) with a gradient from y = top to y = bottom."""
        sheet = self._top
        w, h = sheet.image.size
        n = max(8, round((bottom - top) * self.side / 5))
        edges = np.linspace(top, bottom, n + 1) * self.side - float(sheet.at[1])
        at = np.linspace(0, len(stops) - 1, n)
        for i in range(n):
            rgb = tuple(round(float(np.interp(at[i], range(len(stops)), [s[k] for s in stops]))) for k in range(3))
            y0 = 0 if i == 0 else round(edges[i])
            y1 = h if i == n - 1 else round(edges[i + 1])
            if y1 > y0 and y1 > 0 and y0 < h:
                sheet.draw.rectangle((0, y0, w, y1), fill=rgb)

    def reduced(self, image: Image.Image | None = None) -> np.ndarray:
        return np.asarray((image or self.image).reduce(self.supersampling))
