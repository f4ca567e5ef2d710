"""The geometric rig: controls become flows and masks by geometry alone, for any picture whose parts are known.

The head is a dome that turns about the neck (parallax by depth); lids, brows and lips are curves that move. Every field
is a *backward* map: a place of the new frame -> undo the head's turn -> undo what the face does -> a place of the
keyframe. Lids and the open mouth come from the reveal texture, so that they are as sharp as it is; the third source is
the keyframe once more, for what lies before them (fringe, glasses). Two parts, over eyes and mouth, have nodes a
few pixels apart; outside them nothing but the head, jaw and breath moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..controls import ANIMATOR
from .geometry import PLACE, Geometry
from .keyframe import Keyframe
from .mimic import Mimic, mimic_of
from .performer import Drawing
from .rig_eyes import Eyes, Front
from .rig_mouth import Lips
from .shapes import Field, bump, rise
from .tint import tint

__all__ = ["Pose", "Rig"]

CELLS = 64  # nodes a side over the whole picture
CELLS_OF_PARTS = (1.75 / 512, 2.5 / 512)  # pictures between nodes over the mouth, over the eyes
_DEEP = 0.22  # how far the middle of the face stands before the head's axis, in face units
_RAMP = 0.12  # pictures from a border with something on it, over which nothing is drawn away from it


class Rig:
    """Moves keyframes that have a geometry and a reveal texture."""

    table: Sequence[Sequence[object]] = ANIMATOR

    def prepare(self, keyframe: Keyframe) -> RiggedPerformance:
        """Raises InputError for a keyframe without geometry or reveal texture."""
        if keyframe.geometry is None or keyframe.reveal is None:
            rule = "the rig needs a keyframe's geometry and reveal texture: give its points"
            raise InputError(PLACE, rule, keyframe.name)
        return RiggedPerformance(keyframe, keyframe.geometry)


@dataclass(frozen=True)
class Pose:
    """What the head does, in face coordinates."""

    mimic: Mimic
    shift: tuple[float, float]
    sway: float


class Head:
    """The head's turn and the body's breath, backwards and forwards, in face coordinates."""

    def __init__(self, geometry: Geometry, *, opaque: bool) -> None:
        self.geometry, self.opaque = geometry, opaque
        self.pivot = geometry.chin - 0.045
        half, (cx, _) = geometry.half, geometry.centre
        self.dome = (cx, geometry.chin - 0.257, 1.07 * half[0], half[1] / 0.33 * 0.47)  # centre and radii
        self.deep = _DEEP * half[0] / 0.28

    def depth(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        cx, cy, a, b = self.dome
        rx, ry = (x - cx) * np.float32(1 / a), (y - cy) * np.float32(1 / b)
        inside = 1 - rx * rx - ry * ry
        # Nearly inside where that is above 0; below, it dies away: what stands beyond the dome, an ear, is not bent.
        return np.float32(0.5 * self.deep) * (inside + np.sqrt(inside * inside + np.float32(0.05)))

    def share(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """How much of a place moves with the head: all above the chin, nothing of the body; between them, hair further
        down than the neck."""
        low = self.geometry.chin - 0.01
        length = np.float32(0.2) + np.float32(0.22) * rise((np.abs(x) - np.float32(0.15)) * np.float32(1 / 0.15))
        share = 1 - rise((y - np.float32(low)) / length)
        if self.opaque:
            (cx, cy), (a, b) = self.geometry.centre, self.geometry.half
            rx, ry = (x - cx) * np.float32(1 / a), (y - cy) * np.float32(1 / b)
            share = share * (1 - rise((np.sqrt(rx * rx + ry * ry) - 1.15) * np.float32(1 / 0.8)))
        return share

    def back(self, x: np.ndarray, y: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Places of the frame -> where they were before the head turned and the body breathed."""
        m = pose.mimic
        x0, y0 = x - np.float32(pose.shift[0]), y - np.float32(pose.shift[1])
        lift = np.float32(0.005 * m.breath)
        c, s = np.float32(math.cos(m.roll)), np.float32(math.sin(m.roll))
        up = y0 + lift - np.float32(self.pivot)
        turned_x, turned_y = c * x0 + s * up, c * up - s * x0 + np.float32(self.pivot)
        cos_yaw, sin_yaw = np.float32(1 / math.cos(m.yaw)), np.float32(math.sin(m.yaw) / math.cos(m.yaw))
        cos_pitch, sin_pitch = np.float32(1 / math.cos(m.pitch)), np.float32(math.sin(m.pitch) / math.cos(m.pitch))
        px: np.ndarray = turned_x
        py: np.ndarray = turned_y
        for _ in range(3):
            z = self.depth(px, py)
            px, py = cos_yaw * turned_x - sin_yaw * z, cos_pitch * turned_y + sin_pitch * z
        share = self.share(x0, y0)
        body_x = x0 * np.float32(1 / (1 + 0.03 * m.breath)) - np.float32(0.06 * math.sin(m.yaw) * self.deep)
        body_y = y0 + np.float32(0.016 * m.breath)
        return body_x + share * (px - body_x), body_y + share * (py - body_y)

    def forth(self, points: np.ndarray, pose: Pose) -> np.ndarray:
        """Points of the head [n, 2] -> where they are in the frame."""
        m, (x, y) = pose.mimic, np.asarray(points, np.float32).T
        z = self.depth(x, y)
        x, y = math.cos(m.yaw) * x + math.sin(m.yaw) * z, math.cos(m.pitch) * y - math.sin(m.pitch) * z - self.pivot
        c, s = math.cos(m.roll), math.sin(m.roll)
        moved = np.stack([c * x - s * y, s * x + c * y + self.pivot - 0.005 * m.breath], axis=1)
        return moved + np.array(pose.shift)


class RiggedPerformance:
    """One keyframe on the rig."""

    def __init__(self, keyframe: Keyframe, geometry: Geometry) -> None:
        assert keyframe.reveal is not None
        self.keyframe, self.geometry = keyframe, geometry
        left, top, right, _ = keyframe.solid
        self.head = Head(geometry, opaque=left and top and right)
        if keyframe.bare is None or keyframe.loose is None:
            self.sources: tuple[np.ndarray, ...] = (keyframe.rgba, keyframe.reveal, keyframe.rgba)
        else:
            self.sources = (keyframe.bare, keyframe.loose, keyframe.reveal, keyframe.reveal)
        self._names = [str(name) for name, *_ in ANIMATOR]
        self._unit = np.array([max(abs(float(low)), abs(float(high))) for _, low, high in ANIMATOR], np.float32)
        at = (np.arange(CELLS, dtype=np.float32) + np.float32(0.5)) / CELLS
        self._whole = Nodes.of(geometry, keyframe, *np.meshgrid(at, at))
        covered = keyframe.front is not None and bool(keyframe.front.any())
        self._front = Front(keyframe, geometry) if covered else None
        self._eyes, self._lips = Eyes(keyframe, geometry, self._front), Lips(geometry)

    def pose(self, controls: np.ndarray, t: float) -> Pose:
        mimic = mimic_of(dict(zip(self._names, (controls * self._unit).tolist(), strict=True)))
        sx, sy = mimic.shift
        c, s, unit = math.cos(self.geometry.angle), math.sin(self.geometry.angle), self.geometry.unit
        sway = 0.6 * math.sin(2 * math.pi * t / 4.7) + 0.4 * math.sin(2 * math.pi * t / 7.3)
        return Pose(mimic, ((c * sx + s * sy) / unit, (c * sy - s * sx) / unit), sway)

    def frame(self, controls: np.ndarray, t: float) -> Drawing:
        pose = self.pose(controls, t)
        x, y = self._moved(self._whole, pose)
        colour = tint(self.geometry, x, y, pose.mimic, self._front)
        tinted, count = colour is not None, len(self.sources)
        whole = Field(count, x.shape, colour=tinted)
        flow = self._whole.flow(x, y)
        for source in range(count):
            whole.flow(source, flow)
        if colour is not None:
            whole.tint(colour)
        movable: tuple[Lips | Eyes, ...] = (self._lips, self._eyes)
        placed = [self._part(part.reach, pose, cell) for part, cell in zip(movable, CELLS_OF_PARTS, strict=True)]
        boxes = [box for box, _ in placed]
        overlap, parts = _overlap(*boxes), []
        for i, (_, nodes) in enumerate(placed):
            x, y = self._moved(nodes, pose)
            made = self._field(movable[i], nodes, x, y, pose.mimic, tinted)
            if overlap:  # of a head that is tilted: each box then shows what the other part moves there
                other = self._field(movable[1 - i], nodes, x, y, pose.mimic, tinted)
                line = (self._eyes.reach[3] + self._lips.reach[1]) / 2
                np.copyto(made, other, where=y < np.float32(line) if i == 0 else y >= np.float32(line))
            parts.append(made)
        return Drawing(self.sources, whole.array, parts, boxes)

    def _field(
        self, part: Lips | Eyes, nodes: Nodes, x: np.ndarray, y: np.ndarray, m: Mimic, tinted: bool
    ) -> np.ndarray:
        made = Field(len(self.sources), x.shape, colour=tinted)
        part.field(made, nodes, x, y, m)
        if tinted and (own := tint(self.geometry, x, y, m, self._front)) is not None:
            made.tint(own)
        return made.array

    def _moved(self, nodes: Nodes, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        """Where nodes were before head, body and jaw moved, and hair swayed."""
        px, py = self.head.back(nodes.x, nodes.y, pose)
        if pose.sway:
            px = px - np.float32(0.007 * pose.sway) * rise((np.abs(px) - 0.16) * np.float32(1 / 0.14)) * rise(
                (py - 0.05) * np.float32(1 / 0.35)
            )
        # Our own faces open their mouths within the chin; longer ones drop it.
        lips = pose.mimic.lips
        jaw = lips.jaw + 0.25 * lips.opening * min(1.0, max(0.0, self._lips.tall - 1.05))
        if jaw:
            g = self.geometry
            line = float(g.mouth.line.mean())
            around = bump((px - g.mouth.x) * np.float32(1 / 0.26)) * rise((py - line) * np.float32(1 / (g.chin - line)))
            py = py - np.float32(jaw) * around * (1 - rise((py - g.chin - 0.02) * np.float32(1 / 0.09)))
        return px, py

    def _part(self, reach: tuple[float, float, float, float], pose: Pose, cell: float) -> tuple[list[float], Nodes]:
        """The box in the frame around what a part reaches (x0, y0, x1, y1, face coordinates), and its nodes."""
        x0, y0, x1, y1 = reach
        corners = [(x, y) for x in (x0, (x0 + x1) / 2, x1) for y in (y0, y1)]
        at = self.geometry.to_picture(self.head.forth(np.array(corners), pose))
        low, high = at.min(0) - cell, at.max(0) + cell
        count = np.maximum(np.ceil((high - low) / cell), 4).astype(int)
        columns = np.float32(low[0]) + (np.arange(count[0], dtype=np.float32) + np.float32(0.5)) * np.float32(
            (high[0] - low[0]) / count[0]
        )
        rows = np.float32(low[1]) + (np.arange(count[1], dtype=np.float32) + np.float32(0.5)) * np.float32(
            (high[1] - low[1]) / count[1]
        )
        box = [float(low[0]), float(low[1]), float(high[0]), float(high[1])]
        return box, Nodes.of(self.geometry, self.keyframe, *np.meshgrid(columns, rows))


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes have a place in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True, eq=False)
class Nodes:
    """u, v: places of the frame in pictures; x, y: the same in face coordinates; hold_x, hold_y: what is left of a flow
    near a border with something on it, None: all."""

    u: np.ndarray
    v: np.ndarray
    x: np.ndarray
    y: np.ndarray
    turn: tuple[float, float]
    hold_x: np.ndarray | None
    hold_y: np.ndarray | None

    @classmethod
    def of(cls, g: Geometry, keyframe: Keyframe, u: np.ndarray, v: np.ndarray) -> Nodes:
        c, s = math.cos(g.angle) / g.unit, math.sin(g.angle) / g.unit
        du, dv = u - np.float32(g.origin[0]), v - np.float32(g.origin[1])
        x, y = np.float32(c) * du + np.float32(s) * dv, np.float32(c) * dv - np.float32(s) * du
        left, top, right, bottom = keyframe.solid
        return cls(
            u, v, x, y, (g.unit * math.cos(g.angle), g.unit * math.sin(g.angle)), _held(u, left, right),
            _held(v, top, bottom),
        )  # fmt: skip

    def flow(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the nodes to these places of the keyframe, in pictures: x and y."""
        c, s = np.float32(self.turn[0]), np.float32(self.turn[1])
        dx, dy = px - self.x, py - self.y
        fx, fy = (c * dx - s * dy, s * dx + c * dy) if s else (c * dx, c * dy)
        if self.hold_x is not None:
            fx = fx * self.hold_x
        if self.hold_y is not None:
            fy = fy * self.hold_y
        return fx, fy


def _held(at: np.ndarray, first: bool, last: bool) -> np.ndarray | None:
    """0 at the outermost nodes, and at a border where there is something, 1 further in."""
    if not first and not last:
        return None
    edge = np.float32(0.5 / CELLS)
    near = np.full(at.shape, np.inf, np.float32)
    if first:
        near = at - edge
    if last:
        near = np.minimum(near, 1 - edge - at)
    if near.min() >= _RAMP:
        return None
    return rise(near * np.float32(1 / _RAMP))
