"""Eyes and brows on the rig: lids that close over the eye, an iris that looks about, brows that rise and fall.

A lid's edge is a curve between where it lies open and where it lies closed. Beyond the edge the reveal texture shows,
column by column shifted so that its closed line rides on the edge; within, the keyframe. Where there is a bare
keyframe, irises move over it within the lids and brows over everything, each cut out with a little of what is around
it; else both move with their surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .geometry import Geometry
from .keyframe import Keyframe
from .mimic import Lid, Mimic
from .shapes import TABLE, Field, bump, entry, ramp, rise, spread

if TYPE_CHECKING:
    from .rig import Nodes

__all__ = ["SOFT", "Eyes", "Front"]

SOFT = 0.0045  # face units over which an edge goes from one source to another
_ARC = np.sin(np.pi * np.linspace(0, 1, TABLE)).astype(np.float32)
_ALONG = np.linspace(0, 1, TABLE, dtype=np.float32)
_F = np.float32


class _Edges(NamedTuple):
    """[2 TABLE] each, both eyes': the lids' edges, and how much of the reveal texture shows beyond them."""

    upper: np.ndarray
    lower: np.ndarray
    above: np.ndarray
    below: np.ndarray
    moved: bool


class _At(NamedTuple):
    """Of nodes: whether they belong to the eye at the right, dx from its middle, the entry of its curves."""

    right: np.ndarray
    dx: np.ndarray
    entry: np.ndarray


class Eyes:
    """Both eyes with their brows: one part. reach: what it covers, face coordinates."""

    def __init__(self, keyframe: Keyframe, geometry: Geometry, front: Front | None) -> None:
        self.eyes, self.brows = geometry.eyes, geometry.brows
        self.bare, self._front = keyframe.bare is not None, front
        self._top, self._low, self._rest = (
            np.concatenate([spread(getattr(eye, name)) for eye in self.eyes]) for name in ("top", "low", "rest")
        )
        halves = self._top.reshape(2, TABLE), self._low.reshape(2, TABLE)
        self._cy = [float(top.min() + low.max()) / 2 for top, low in zip(*halves, strict=True)]
        self._half = float(max(low.max() - top.min() for top, low in zip(*halves, strict=True))) / 2
        self._width = max(eye.width for eye in self.eyes)
        self._middle = (self.eyes[0].x + self.eyes[1].x) / 2
        self._browlines = [spread(brow.middle) for brow in self.brows or ()]
        self._resting = self._edged([Lid(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0)] * 2)
        top = min(self._cy) - 1.65 * self._half - (0.0 if self.brows else 0.6 * self._half + 0.03)
        x0, x1 = (eye.x + side * 1.75 * eye.width for eye, side in zip(self.eyes, (-1, 1), strict=True))
        if self.brows is not None:
            top = min(top, min(float(brow.middle.min()) for brow in self.brows) - 0.06)
            x0, x1 = min(x0, self.brows[0].x0 - 0.015), max(x1, self.brows[1].x1 + 0.015)
        self.reach = (x0, top, x1, max(self._cy) + 1.7 * self._half)

    def field(self, made: Field, nodes: Nodes, x: np.ndarray, y: np.ndarray, m: Mimic) -> None:
        """Fill in the field of nodes that were at the face's places x, y before it turned."""
        at = self._place(x)
        edges = self._edges(m)
        flow = nodes.flow(x, y)
        reveal, last = made.sources - 2, made.sources - 1
        for source in range(made.sources):
            made.flow(source, flow)
        over = self._closing(made, nodes, x, y, at, edges) if edges.moved else None
        if over is not None:
            made.mask(reveal, over)
        front = None if self._front is None else self._front.at(x, y)
        if not self.bare:
            key_x, key_y = self._looking(x, self._widened(x, y, at, m), at, m)
            made.flow(0, nodes.flow(key_x, key_y + self._skin(at, y, m)))
            if over is not None and front is not None:
                made.mask(last, front)
            return
        iris, iris_x, iris_y = self._irises(x, y, at, edges, m)
        if self.brows is None:
            made.flow(0, nodes.flow(x, self._widened(x, y, at, m) + self._skin(at, y, m)))
            made.flow(1, nodes.flow(iris_x, iris_y))
            made.mask(1, iris if front is None else iris * (1 - front))
            if over is not None and front is not None:
                made.mask(last, front)
            return
        made.flow(0, nodes.flow(x, self._widened(x, y, at, m)))
        brow, near, heights = self._browed(x, y, at, m)
        made.flow(1, nodes.flow(np.where(near, x, iris_x), np.where(near, heights, iris_y)))
        made.mask(1, np.maximum(iris if front is None else iris * (1 - front), brow))
        if over is not None:
            made.mask(reveal, over * (1 - brow))
            if front is not None:
                made.mask(last, front * (1 - brow))

    def _place(self, x: np.ndarray) -> _At:
        right = x > _F(self._middle)
        dx = x - np.where(right, _F(self.eyes[1].x), _F(self.eyes[0].x))
        width = np.where(right, _F(0.5 / self.eyes[1].width), _F(0.5 / self.eyes[0].width))
        return _At(right, dx, entry(dx * width + _F(0.5)) + right * np.int32(TABLE))

    def _of(self, at: _At, left: float, right: float) -> np.ndarray | np.float32:
        """A number of each eye, for its nodes."""
        return _F(left) if left == right else np.where(at.right, _F(right), _F(left))

    # Lids.

    def _edges(self, m: Mimic) -> _Edges:
        """Where the lids' edges are, and where the reveal texture stands in for the keyframe."""
        if all(lid.opening == 1 and not lid.slant and not lid.squint for lid in m.lids):
            return self._resting  # as most often
        return self._edged(m.lids)

    def _edged(self, lids: Sequence[Lid]) -> _Edges:
        both = [self._lid(i, lid) for i, lid in enumerate(lids)]
        upper, lower, above, below = (np.concatenate(v).astype(np.float32) for v in list(zip(*both, strict=True))[:4])
        return _Edges(upper, lower, above, below, any(one[4] for one in both))

    def _lid(self, i: int, lid: Lid) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
        here = slice(i * TABLE, (i + 1) * TABLE)
        top, low, closed, lash = self._top[here], self._low[here], self._rest[here], self.eyes[i].lash
        tall = 2 * self._half
        shut = min(1.0, max(0.0, 1 - lid.opening))
        ease = _F(shut**1.2)
        rest = closed - _F(0.42 * lid.arch * tall) * _ARC**0.75
        slant = _F(0.27 * abs(lid.slant) * min(1.0, 1.6 * lid.opening) * tall)
        toward = _ALONG if (i == 0) == (lid.slant >= 0) else 1 - _ALONG  # 1 where it falls: at the nose, or away
        fall = ramp(1.25 * toward - _F(0.25))
        upper = top + slant * (fall * np.sqrt(_ARC) + _F(0.35) * _ARC)
        lower = low - _F(0.5 * lid.squint) * np.maximum(low - max(top[0], top[-1]), 0)
        upper, lower = upper + ease * (rest - upper), lower + ease * (rest - lower)
        upper = np.minimum(upper, lower)
        lowered, raised = upper - top, low - lower
        # Corners hardly move, but what hides the lash must not end before them.
        above = np.maximum(ramp(lowered / _F(0.7 * lash)), _F(min(1.0, float(lowered.max()) / (0.4 * lash))))
        below = np.maximum(ramp(raised / _F(0.006)), _F(min(1.0, max(0.0, 2 * shut - 1))))
        return upper, lower, above, below, bool(lowered.max() > 1e-4 or raised.max() > 1e-4)

    def _closing(self, made: Field, nodes: Nodes, x: np.ndarray, y: np.ndarray, at: _At, edges: _Edges) -> np.ndarray:
        """How much of the reveal texture shows; its flow is filled in."""
        upper, lower, rest = (np.take(curve, at.entry) for curve in (edges.upper, edges.lower, self._rest))
        above, below = np.take(edges.above, at.entry), np.take(edges.below, at.entry)
        lash = max(eye.lash for eye in self.eyes)
        lid = ramp((upper - y) * _F(1 / SOFT) + _F(0.2 * lash / SOFT + 0.5)) * above
        floor = ramp((y - lower) * _F(1 / SOFT) + _F(0.5)) * below
        u = at.dx * _F(1 / (1.5 * self._width))
        v = (y - self._of(at, *self._cy)) * _F(1 / (1.62 * self._half))
        inside = _F(1) - v * v
        window = ramp((inside - u * u) * _F(6))
        # Above, the closed line rides on the edge; below, the skin under that line is drawn up to the edge.
        lifted = y + (rest - upper) * rise(inside * _F(3))
        under = np.maximum(y, rest + _F(0.4 * lash) + _F(0.15) * (y - lower))
        edge = upper + np.maximum(_F(0.25 * lash), _F(0.5) * (lower - upper))
        made.flow(made.sources - 2, nodes.flow(x, np.where(y < edge, lifted, under)))
        over: np.ndarray = np.maximum(lid, floor) * window
        return over

    def _widened(self, x: np.ndarray, y: np.ndarray, at: _At, m: Mimic) -> np.ndarray:
        """Undo wide eyes: lids and all are stretched."""
        left, right = (max(0.0, lid.opening - 1) for lid in m.lids)
        if not left and not right:
            return y
        dy = y - self._of(at, *self._cy)
        u, v = at.dx * _F(1 / (1.5 * self._width)), dy * _F(1 / (1.75 * self._half))
        around = ramp(_F(1) - u * u - v * v)
        stretched: np.ndarray = y - dy * around * around * self._of(at, 0.75 * left, 0.75 * right)
        return stretched

    # Irises.

    def _gaze(self, i: int, m: Mimic) -> tuple[float, float]:
        eye = self.eyes[i]
        reach = 0.33 * min(eye.width, 1.2 * self._half)
        return m.gaze[0] * reach, -0.85 * m.gaze[1] * reach

    def _irises(
        self, x: np.ndarray, y: np.ndarray, at: _At, edges: _Edges, m: Mimic
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where irises show within the lids, and their places in their picture."""
        moved = [self._gaze(i, m) for i in (0, 1)]
        sizes = [lid.iris for lid in m.lids]
        (x0, y0, rx0, ry0), (x1, y1, rx1, ry1) = (eye.iris for eye in self.eyes)
        back = self._of(at, 1 / sizes[0], 1 / sizes[1])
        cx, cy = self._of(at, x0, x1), self._of(at, y0, y1)
        key_x = (x - self._of(at, x0 + moved[0][0], x1 + moved[1][0])) * back
        key_y = (y - self._of(at, y0 + moved[0][1], y1 + moved[1][1])) * back
        u, v = key_x * self._of(at, 1 / rx0, 1 / rx1), key_y * self._of(at, 1 / ry0, 1 / ry1)
        radius = np.sqrt(u * u + v * v)
        disc = ramp((_F(1.07) - radius) * _F(16))
        stretch = 1 + max(0.0, m.lids[0].opening - 1, m.lids[1].opening - 1)
        top, low = (np.take(curve, at.entry) for curve in (edges.upper, edges.lower))
        if stretch > 1:
            middle = self._of(at, *self._cy)
            top, low = middle + (top - middle) * _F(stretch), middle + (low - middle) * _F(stretch)
        inside = ramp((y - top) * _F(1 / SOFT) + _F(0.7)) * ramp((low - y) * _F(1 / SOFT) + _F(0.3))
        return disc * inside, key_x + cx, key_y + cy

    def _looking(self, x: np.ndarray, y: np.ndarray, at: _At, m: Mimic) -> tuple[np.ndarray, np.ndarray]:
        """Undo gaze and size of irises that move with the white around them."""
        moved = [self._gaze(i, m) for i in (0, 1)]
        sizes = [lid.iris for lid in m.lids]
        if not any(map(any, moved)) and sizes == [1.0, 1.0]:
            return x, y
        (x0, y0, rx0, ry0), (x1, y1, rx1, ry1) = (eye.iris for eye in self.eyes)
        dx, dy = x - self._of(at, x0, x1), y - self._of(at, y0, y1)
        u, v = dx * self._of(at, 1 / rx0, 1 / rx1), dy * self._of(at, 1 / ry0, 1 / ry1)
        near = ramp((_F(2.2) - u * u - v * v) * _F(1 / 1.2))
        top, low = np.take(self._top, at.entry), np.take(self._low, at.entry)
        tall = _F(1 / (0.55 * self._half))
        side = ramp((_F(1) - np.abs(at.dx) * _F(1 / self._width)) * _F(3))
        near = near * side * rise((y - top) * tall) * rise((low - y) * tall)
        scale = self._of(at, 0.5 / sizes[0] - 0.5, 0.5 / sizes[1] - 0.5)
        gaze_x, gaze_y = (self._of(at, moved[0][k], moved[1][k]) for k in (0, 1))
        return x + near * (dx * scale - _F(0.7) * gaze_x), y + near * (dy * scale - _F(0.7) * gaze_y)

    # Brows.

    def _browed(self, x: np.ndarray, y: np.ndarray, at: _At, m: Mimic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the brows show now, where they are near, and the heights of their picture there."""
        assert self.brows is not None
        rows = []
        for i, (middle, lid) in enumerate(zip(self._browlines, m.lids, strict=True)):
            inner = _ALONG if i == 0 else 1 - _ALONG
            rows.append((middle - _F(lid.outer) - _F(lid.inner - lid.outer) * inner, middle))
        now, middle = (np.concatenate(v) for v in zip(*rows, strict=True))
        a, b = self.brows
        low, size = self._of(at, a.x0, b.x0), self._of(at, 1 / (a.x1 - a.x0), 1 / (b.x1 - b.x0))
        share = (x - low) * size
        where = entry(share) + at.right * np.int32(TABLE)
        heavy = max(lid.heavy for lid in m.lids)
        off = y - np.take(now, where)
        far = np.abs(off)
        half = 0.5 * max(a.thick, b.thick) * heavy + 0.002
        shown = ramp((_F(half) - far) * _F(1 / 0.005) + _F(0.5)) * ramp(_F(13) - np.abs(share - _F(0.5)) * _F(24))
        return shown, far < _F(half + 0.009), np.take(middle, where) + off * _F(1 / heavy)

    def _skin(self, at: _At, y: np.ndarray, m: Mimic) -> np.ndarray | np.float32:
        """Of brows that are not known: how far below a place the keyframe's skin above the eyes is to be taken."""
        if all(max(abs(lid.inner), abs(lid.outer)) < 1e-4 for lid in m.lids):
            return _F(0)
        (left, right), width = m.lids, 1.75 * self._width
        share = ramp(at.dx * _F(0.5 / (1.5 * self._width)) + _F(0.5))
        inner = np.where(at.right, 1 - share, share)
        outer = self._of(at, left.outer, right.outer)
        lift = outer + (self._of(at, left.inner, right.inner) - outer) * inner
        top, reach = self.reach[1], min(self._cy) - self._half - self.reach[1]
        around = bump((y - _F(top + 0.5 * reach)) * _F(2 / reach)) * bump(at.dx * _F(1 / width))
        skin: np.ndarray = _F(0.7) * lift * around
        return skin


class Front:
    """What lies before the eyes, looked up by face coordinates."""

    def __init__(self, keyframe: Keyframe, geometry: Geometry) -> None:
        assert keyframe.front is not None
        side = len(keyframe.front)
        self._mask = np.pad(keyframe.front.astype(np.float32) / 255, 1)
        x, y, origin = geometry.to_picture(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) * side
        self._x, self._y, self._origin = x - origin, y - origin, origin + 0.5

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """float32 like x."""
        limit, wide = _F(len(self._mask) - 1.001), len(self._mask)
        u, v = (np.clip(_F(self._x[k]) * x + _F(self._y[k]) * y + _F(self._origin[k]), _F(0), limit) for k in (0, 1))
        i, j = np.floor(u), np.floor(v)
        at, flat = (j * _F(wide) + i).astype(np.int32), self._mask.reshape(-1)
        u, v = u - i, v - j
        a, b, c, d = (np.take(flat, at + np.int32(step)) for step in (0, 1, wide, wide + 1))
        upper, lower = a + u * (b - a), c + u * (d - c)
        made: np.ndarray = upper + v * (lower - upper)
        return made
