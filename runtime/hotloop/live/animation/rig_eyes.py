"""Eyes and brows on the rig: lids that close over the eye, an iris that looks about, brows that rise and fall.

A lid's edge is a curve between where it lies open and where it lies closed. Beyond the edge the reveal texture shows,
column by column shifted so that its closed line rides on the edge; within, the keyframe. Where there is a bare
keyframe, irises move over it within the lids and brows over everything, each cut out with a little of what is around
it; else both move with their surroundings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hotloop_kernels.formula import bump, ramp, rise, take

from .geometry import Geometry
from .keyframe import Keyframe
from .mimic import Lid, Mimic
from .shapes import TABLE, Field, entry, spread

if TYPE_CHECKING:
    from .rig import Nodes

__all__ = ["SOFT", "Eyes", "Front"]

SOFT = 0.0045  # face units over which an edge goes from one source to another
_F = np.float32
_ARC = np.sin(np.pi * np.linspace(0, 1, TABLE)).astype(_F)
_ALONG = np.linspace(0, 1, TABLE, dtype=_F)
_ARCH = _ARC**0.75
# [2, TABLE]: how far a slanted lid falls, most at the curve's end, or at its beginning.
_DROOP = np.stack([ramp(1.25 * way - _F(0.25)) * np.sqrt(_ARC) + _F(0.35) * _ARC for way in (_ALONG, 1 - _ALONG)])
_INNER = np.stack([_ALONG, 1 - _ALONG])  # 1 at the nose


class _Edges(NamedTuple):
    """[2 TABLE] each, both eyes': the lids' edges, and how much of the reveal texture shows beyond them."""

    upper: np.ndarray
    lower: np.ndarray
    above: np.ndarray
    below: np.ndarray
    moved: bool


class _At(NamedTuple):
    """Of nodes: whether they belong to the eye at the right, dx from its middle, the entry of its curves."""

    right: Any
    dx: Any
    entry: Any


class Eyes:
    """Both eyes with their brows: one part. reach: what it covers, face coordinates."""

    def __init__(self, keyframe: Keyframe, geometry: Geometry, front: Front | None) -> None:
        self.eyes, self.brows = geometry.eyes, geometry.brows
        self.bare, self._front = keyframe.bare is not None, front
        self._top, self._low, self._rest = top, low, _ = [
            np.stack([spread(getattr(eye, name)) for eye in self.eyes]) for name in ("top", "low", "rest")
        ]  # [2, TABLE]
        self._raise = np.stack([np.maximum(one - max(up[0], up[-1]), 0) for one, up in zip(low, top, strict=True)])
        self._lash = np.array([[eye.lash] for eye in self.eyes])
        self._cy = [float(one.min() + other.max()) / 2 for one, other in zip(top, low, strict=True)]
        self._half = float(max(other.max() - one.min() for one, other in zip(top, low, strict=True))) / 2
        self._width = max(eye.width for eye in self.eyes)
        self._middle = (self.eyes[0].x + self.eyes[1].x) / 2
        self._browlines = np.stack([spread(brow.middle) for brow in self.brows]) if self.brows else None
        self._resting = self._edged([Lid(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0)] * 2)
        highest = min(self._cy) - 1.65 * self._half - (0.0 if self.brows else 0.6 * self._half + 0.03)
        x0, x1 = (eye.x + side * 1.75 * eye.width for eye, side in zip(self.eyes, (-1, 1), strict=True))
        if self.brows is not None:
            highest = min(highest, min(float(brow.middle.min()) for brow in self.brows) - 0.06)
            x0, x1 = min(x0, self.brows[0].x0 - 0.015), max(x1, self.brows[1].x1 + 0.015)
        self.reach = (x0, highest, x1, max(self._cy) + 1.7 * self._half)

    def told(self, m: Mimic) -> tuple[dict[str, Any], bool]:
        """What `field` is told of a frame, and whether lids have moved. Names with 0 and 1: of the eye at the left, at
        the right."""
        lids, edges = m.lids, self._edges(m)
        wide = [max(0.0, lid.opening - 1) for lid in lids]
        stretch = 1 + max(wide)
        told: dict[str, Any] = {
            "upper": edges.upper, "lower": edges.lower, "above": edges.above, "below": edges.below,
            "wide0": 0.75 * wide[0], "wide1": 0.75 * wide[1], "stretch": stretch,
        }  # fmt: skip
        for i, (lid, eye) in enumerate(zip(lids, self.eyes, strict=True)):
            reach = 0.33 * min(eye.width, 1.2 * self._half)
            gaze_x, gaze_y = m.gaze[0] * reach, -0.85 * m.gaze[1] * reach
            if self.bare:
                x, y = eye.iris[:2]
                told |= {f"back{i}": 1 / lid.iris, f"iris_x{i}": x + gaze_x, f"iris_y{i}": y + gaze_y}
            else:
                told |= {f"scale{i}": 0.5 / lid.iris - 0.5, f"gaze_x{i}": gaze_x, f"gaze_y{i}": gaze_y}
        if self._browlines is not None and self.brows is not None and self.bare:
            lift = np.array([[[lid.outer], [lid.inner - lid.outer]] for lid in lids], _F)
            heavy = max(lid.heavy for lid in lids)
            half = 0.5 * max(brow.thick for brow in self.brows) * heavy + 0.002
            told |= {
                "brow": (self._browlines - lift[:, 0] - lift[:, 1] * _INNER).reshape(-1),
                "brow_half": half, "brow_near": half + 0.009, "brow_back": 1 / heavy,
            }  # fmt: skip
        else:
            still = all(max(abs(lid.inner), abs(lid.outer)) < 1e-4 for lid in lids)
            for i, lid in enumerate(lids):
                told |= {f"inner{i}": 0.0 if still else lid.inner, f"outer{i}": 0.0 if still else lid.outer}
        return told, edges.moved

    def field(self, made: Field, nodes: Nodes, x: Any, y: Any, n: Mapping[str, Any], moved: bool) -> None:
        """Fill in the field of nodes that were at the face's places x, y before it turned."""
        at = self._place(x)
        flow = nodes.flow(x, y)
        reveal, last = made.sources - 2, made.sources - 1
        for source in range(made.sources):
            made.flow(source, flow)
        over = self._closing(made, nodes, x, y, at, n) if moved else None
        if over is not None:
            made.mask(reveal, over)
        front = None if self._front is None else self._front.at(x, y)
        if not self.bare:
            key_x, key_y = self._looking(x, self._widened(x, y, at, n), at, n)
            made.flow(0, nodes.flow(key_x, key_y + self._skin(at, y, n)))
            if over is not None and front is not None:
                made.mask(last, front)
            return
        iris, iris_x, iris_y = self._irises(x, y, at, n)
        if self.brows is None:
            made.flow(0, nodes.flow(x, self._widened(x, y, at, n) + self._skin(at, y, n)))
            made.flow(1, nodes.flow(iris_x, iris_y))
            made.mask(1, iris if front is None else iris * (1 - front))
            if over is not None and front is not None:
                made.mask(last, front)
            return
        made.flow(0, nodes.flow(x, self._widened(x, y, at, n)))
        brow, near, heights = self._browed(x, y, at, n)
        made.flow(1, nodes.flow(np.where(near, x, iris_x), np.where(near, heights, iris_y)))
        made.mask(1, np.maximum(iris if front is None else iris * (1 - front), brow))
        if over is not None:
            made.mask(reveal, over * (1 - brow))
            if front is not None:
                made.mask(last, front * (1 - brow))

    def _place(self, x: Any) -> _At:
        right = x > _F(self._middle)
        dx = x - self._of(right, self.eyes[0].x, self.eyes[1].x)
        width = self._of(right, 0.5 / self.eyes[0].width, 0.5 / self.eyes[1].width)
        return _At(right, dx, entry(dx * width + _F(0.5)) + right * _F(TABLE))

    @staticmethod
    def _of(right: Any, one: Any, other: Any) -> Any:
        """A number of each eye, for its nodes."""
        if isinstance(one, float) and isinstance(other, float):
            return _F(one) if one == other else np.where(right, _F(other), _F(one))
        return np.where(right, other, one)

    def _told(self, at: _At, n: Mapping[str, Any], name: str) -> Any:
        return self._of(at.right, n[f"{name}0"], n[f"{name}1"])

    # Lids.

    def _edges(self, m: Mimic) -> _Edges:
        """Where the lids' edges are, and where the reveal texture stands in for the keyframe."""
        if all(lid.opening == 1 and not lid.slant and not lid.squint for lid in m.lids):
            return self._resting  # as most often
        return self._edged(m.lids)

    def _edged(self, lids: Sequence[Lid]) -> _Edges:
        top, low, lash, tall = self._top, self._low, self._lash, 2 * self._half
        shut = [min(1.0, max(0.0, 1 - lid.opening)) for lid in lids]
        numbers = [
            (one**1.2, 0.42 * lid.arch * tall, 0.27 * abs(lid.slant) * min(1.0, 1.6 * lid.opening) * tall,
             0.5 * lid.squint)
            for one, lid in zip(shut, lids, strict=True)
        ]  # fmt: skip
        ease, arch, slant, squint = np.array(numbers, _F).T[..., None]  # [2, 1] each
        # A lid falls at the nose, or away from it.
        droop = _DROOP[[0 if (i == 0) == (lid.slant >= 0) else 1 for i, lid in enumerate(lids)]]
        rest = self._rest - arch * _ARCH
        upper, lower = top + slant * droop, low - squint * self._raise
        upper, lower = upper + ease * (rest - upper), lower + ease * (rest - lower)
        upper = np.minimum(upper, lower)
        lowered, raised = upper - top, low - lower
        # Corners hardly move, but what hides the lash must not end before them.
        most = lowered.max(1, keepdims=True)
        shown = np.minimum(most / (0.4 * lash), 1).astype(_F)
        under = np.array([[min(1.0, max(0.0, 2 * one - 1))] for one in shut], _F)
        above = np.maximum(ramp(lowered / (0.7 * lash).astype(_F)), shown)
        below = np.maximum(ramp(raised / _F(0.006)), under)
        moved = bool(most.max() > 1e-4 or raised.max() > 1e-4)
        return _Edges(upper.reshape(-1), lower.reshape(-1), above.reshape(-1), below.reshape(-1), moved)

    def _closing(self, made: Field, nodes: Nodes, x: Any, y: Any, at: _At, n: Mapping[str, Any]) -> Any:
        """How much of the reveal texture shows; its flow is filled in."""
        upper, lower, above, below = (take(n[name], at.entry) for name in ("upper", "lower", "above", "below"))
        rest = take(self._rest.reshape(-1), at.entry)
        lash = max(eye.lash for eye in self.eyes)
        lid = ramp((upper - y) * _F(1 / SOFT) + _F(0.2 * lash / SOFT + 0.5)) * above
        floor = ramp((y - lower) * _F(1 / SOFT) + _F(0.5)) * below
        u = at.dx * _F(1 / (1.5 * self._width))
        v = (y - self._of(at.right, *self._cy)) * _F(1 / (1.62 * self._half))
        inside = _F(1) - v * v
        window = ramp((inside - u * u) * _F(6))
        # Above, the closed line rides on the edge; below, the skin under that line is drawn up to the edge.
        lifted = y + (rest - upper) * rise(inside * _F(3))
        under = np.maximum(y, rest + _F(0.4 * lash) + _F(0.15) * (y - lower))
        edge = upper + np.maximum(_F(0.25 * lash), _F(0.5) * (lower - upper))
        made.flow(made.sources - 2, nodes.flow(x, np.where(y < edge, lifted, under)))
        return np.maximum(lid, floor) * window

    def _widened(self, x: Any, y: Any, at: _At, n: Mapping[str, Any]) -> Any:
        """Undo wide eyes: lids and all are stretched."""
        dy = y - self._of(at.right, *self._cy)
        u, v = at.dx * _F(1 / (1.5 * self._width)), dy * _F(1 / (1.75 * self._half))
        around = ramp(_F(1) - u * u - v * v)
        return y - dy * around * around * self._told(at, n, "wide")

    # Irises.

    def _irises(self, x: Any, y: Any, at: _At, n: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Where irises show within the lids, and their places in their picture."""
        (x0, y0, rx0, ry0), (x1, y1, rx1, ry1) = (eye.iris for eye in self.eyes)
        back, right = self._told(at, n, "back"), at.right
        key_x = (x - self._told(at, n, "iris_x")) * back
        key_y = (y - self._told(at, n, "iris_y")) * back
        u, v = key_x * self._of(right, 1 / rx0, 1 / rx1), key_y * self._of(right, 1 / ry0, 1 / ry1)
        radius = np.sqrt(u * u + v * v)
        disc = ramp((_F(1.07) - radius) * _F(16))
        top, low = take(n["upper"], at.entry), take(n["lower"], at.entry)
        middle, wider = self._of(right, *self._cy), n["stretch"] > 1
        top = np.where(wider, middle + (top - middle) * n["stretch"], top)
        low = np.where(wider, middle + (low - middle) * n["stretch"], low)
        inside = ramp((y - top) * _F(1 / SOFT) + _F(0.7)) * ramp((low - y) * _F(1 / SOFT) + _F(0.3))
        return disc * inside, key_x + self._of(right, x0, x1), key_y + self._of(right, y0, y1)

    def _looking(self, x: Any, y: Any, at: _At, n: Mapping[str, Any]) -> tuple[Any, Any]:
        """Undo gaze and size of irises that move with the white around them."""
        (x0, y0, rx0, ry0), (x1, y1, rx1, ry1) = (eye.iris for eye in self.eyes)
        right = at.right
        dx, dy = x - self._of(right, x0, x1), y - self._of(right, y0, y1)
        u, v = dx * self._of(right, 1 / rx0, 1 / rx1), dy * self._of(right, 1 / ry0, 1 / ry1)
        near = ramp((_F(2.2) - u * u - v * v) * _F(1 / 1.2))
        top, low = take(self._top.reshape(-1), at.entry), take(self._low.reshape(-1), at.entry)
        tall = _F(1 / (0.55 * self._half))
        side = ramp((_F(1) - np.abs(at.dx) * _F(1 / self._width)) * _F(3))
        near = near * side * rise((y - top) * tall) * rise((low - y) * tall)
        scale, gaze_x, gaze_y = (self._told(at, n, name) for name in ("scale", "gaze_x", "gaze_y"))
        return x + near * (dx * scale - _F(0.7) * gaze_x), y + near * (dy * scale - _F(0.7) * gaze_y)

    # Brows.

    def _browed(self, x: Any, y: Any, at: _At, n: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Where the brows show now, where they are near, and the heights of their picture there."""
        assert self.brows is not None and self._browlines is not None
        a, b = self.brows
        low, size = self._of(at.right, a.x0, b.x0), self._of(at.right, 1 / (a.x1 - a.x0), 1 / (b.x1 - b.x0))
        share = (x - low) * size
        where = entry(share) + at.right * _F(TABLE)
        off = y - take(n["brow"], where)
        far = np.abs(off)
        shown = ramp((n["brow_half"] - far) * _F(1 / 0.005) + _F(0.5)) * ramp(_F(13) - np.abs(share - _F(0.5)) * _F(24))
        return shown, far < n["brow_near"], take(self._browlines.reshape(-1), where) + off * n["brow_back"]

    def _skin(self, at: _At, y: Any, n: Mapping[str, Any]) -> Any:
        """Of brows that are not known: how far below a place the keyframe's skin above the eyes is to be taken."""
        share, width = ramp(at.dx * _F(0.5 / (1.5 * self._width)) + _F(0.5)), 1.75 * self._width
        inner, outer = np.where(at.right, 1 - share, share), self._told(at, n, "outer")
        lift = outer + (self._told(at, n, "inner") - outer) * inner
        top, reach = self.reach[1], min(self._cy) - self._half - self.reach[1]
        around = bump((y - _F(top + 0.5 * reach)) * _F(2 / reach)) * bump(at.dx * _F(1 / width))
        return _F(0.7) * lift * around


class Front:
    """What lies before the eyes, looked up by face coordinates."""

    def __init__(self, keyframe: Keyframe, geometry: Geometry) -> None:
        assert keyframe.front is not None
        side = len(keyframe.front)
        self._wide = side + 2
        padded = np.pad(keyframe.front.astype(np.float32) / 255, 1).reshape(-1)
        self._corners = [padded[step:] for step in (0, 1, self._wide, self._wide + 1)]
        x, y, origin = geometry.to_picture(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) * side
        self._x, self._y, self._origin = x - origin, y - origin, origin + 0.5

    def at(self, x: Any, y: Any) -> Any:
        """float32 like x."""
        limit, wide = _F(self._wide - 1.001), _F(self._wide)
        u, v = (np.clip(_F(self._x[k]) * x + _F(self._y[k]) * y + _F(self._origin[k]), _F(0), limit) for k in (0, 1))
        i, j = np.floor(u), np.floor(v)
        a, b, c, d = (take(corner, j * wide + i) for corner in self._corners)
        u, v = u - i, v - j
        upper, lower = a + u * (b - a), c + u * (d - c)
        return upper + v * (lower - upper)
