"""The geometric rig: controls become flows and masks by geometry alone, for any picture whose parts are known.

The head is a dome that turns about the neck (parallax by depth); lids, brows and lips are curves that move. Every field
is a *backward* map: a place of the new frame -> undo the head's turn -> undo what the face does -> a place of the
keyframe. Lids and the open mouth come from the reveal texture, so that they are as sharp as it is; the third source is
the keyframe once more, for what lies before them (fringe, glasses). Two parts, over eyes and mouth, have nodes a
few pixels apart; outside them nothing but the head, jaw and breath moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hotloop_kernels.formula import Program, bump, formula, rise, written

from ...errors import InputError
from ..controls import ANIMATOR
from .geometry import PLACE, Geometry
from .keyframe import Keyframe
from .mimic import Mimic, mimic_of
from .performer import Drawing
from .rig_eyes import Eyes, Front
from .rig_mouth import Lips
from .shapes import Field
from .tint import tint, tint_told

__all__ = ["Pose", "Rig"]

CELLS = 64  # nodes a side over the whole picture
CELLS_OF_PARTS = (1.75 / 512, 2.5 / 512)  # pictures between nodes over the mouth, over the eyes
_F = np.float32
_DEEP = 0.22  # how far the middle of the face stands before the head's axis, in face units
_RAMP = 0.12  # pictures from a border with something on it, over which nothing is drawn away from it
_OPEN = {"jawOpen": 1.0, "eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}
_ALL: tuple[dict[str, float], ...] = ({}, _OPEN, {"blush": 1.0}, _OPEN | {"blush": 1.0})  # all that there is to write


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

    def depth(self, x: Any, y: Any) -> Any:
        cx, cy, a, b = self.dome
        rx, ry = (x - _F(cx)) * _F(1 / a), (y - _F(cy)) * _F(1 / b)
        inside = 1 - rx * rx - ry * ry
        # Nearly inside where that is above 0; below, it dies away: what stands beyond the dome, an ear, is not bent.
        return _F(0.5 * self.deep) * (inside + np.sqrt(inside * inside + _F(0.05)))

    def share(self, x: Any, y: Any) -> Any:
        """How much of a place moves with the head: all above the chin, nothing of the body; between them, hair further
        down than the neck."""
        low = self.geometry.chin - 0.01
        length = _F(0.2) + _F(0.22) * rise((np.abs(x) - _F(0.15)) * _F(1 / 0.15))
        share = 1 - rise((y - _F(low)) / length)
        if self.opaque:
            (cx, cy), (a, b) = self.geometry.centre, self.geometry.half
            rx, ry = (x - _F(cx)) * _F(1 / a), (y - _F(cy)) * _F(1 / b)
            share = share * (1 - rise((np.sqrt(rx * rx + ry * ry) - _F(1.15)) * _F(1 / 0.8)))
        return share

    def told(self, pose: Pose) -> dict[str, float]:
        """What `back` is told of a frame."""
        m = pose.mimic
        return {
            "shift_x": pose.shift[0], "shift_y": pose.shift[1], "lift": 0.005 * m.breath,
            "cos_roll": math.cos(m.roll), "sin_roll": math.sin(m.roll),
            "sec_yaw": 1 / math.cos(m.yaw), "tan_yaw": math.sin(m.yaw) / math.cos(m.yaw),
            "sec_pitch": 1 / math.cos(m.pitch), "tan_pitch": math.sin(m.pitch) / math.cos(m.pitch),
            "swell": 1 / (1 + 0.03 * m.breath), "lean": 0.06 * math.sin(m.yaw) * self.deep, "sink": 0.016 * m.breath,
        }  # fmt: skip

    def back(self, x: Any, y: Any, n: Mapping[str, Any]) -> tuple[Any, Any]:
        """Places of the frame -> where they were before the head turned and the body breathed."""
        x0, y0 = x - n["shift_x"], y - n["shift_y"]
        c, s, up = n["cos_roll"], n["sin_roll"], y0 + n["lift"] - _F(self.pivot)
        turned_x, turned_y = c * x0 + s * up, c * up - s * x0 + _F(self.pivot)
        across, down = n["sec_yaw"] * turned_x, n["sec_pitch"] * turned_y
        px, py = turned_x, turned_y
        for _ in range(3):
            z = self.depth(px, py)
            px, py = across - n["tan_yaw"] * z, down + n["tan_pitch"] * z
        share = self.share(x0, y0)
        body_x, body_y = x0 * n["swell"] - n["lean"], y0 + n["sink"]
        return body_x + share * (px - body_x), body_y + share * (py - body_y)

    def forth(self, points: Iterable[tuple[float, float]], pose: Pose) -> list[tuple[float, float]]:
        """Points of the head -> where they are in the frame."""
        m, (cx, cy, a, b), pivot = pose.mimic, self.dome, self.pivot
        cos_yaw, sin_yaw, cos_pitch, sin_pitch = math.cos(m.yaw), math.sin(m.yaw), math.cos(m.pitch), math.sin(m.pitch)
        c, s, (shift_x, shift_y), moved = math.cos(m.roll), math.sin(m.roll), pose.shift, []
        for x, y in points:
            z = self.deep * max(1 - ((x - cx) / a) ** 2 - ((y - cy) / b) ** 2, 0.0)
            u, v = cos_yaw * x + sin_yaw * z, cos_pitch * y - sin_pitch * z - pivot
            moved.append((c * u - s * v + shift_x, s * u + c * v + pivot - 0.005 * m.breath + shift_y))
        return moved


class RiggedPerformance:
    """One keyframe on the rig: its formulas are written down when it is made, and worked through for every frame."""

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
        self._unit = np.array([max(abs(float(low)), abs(float(high))) for _, low, high in ANIMATOR], _F)
        self._at = (np.arange(CELLS, dtype=_F) + _F(0.5)) / CELLS
        covered = keyframe.front is not None and bool(keyframe.front.any())
        self._front = Front(keyframe, geometry) if covered else None
        self._lips, self._eyes = Lips(geometry), Eyes(keyframe, geometry, self._front)
        self._programs: dict[tuple[str, bool, bool], Program] = {}
        for controls in _ALL:  # every formula is written down before it is needed
            self.frame(np.array([controls.get(name, 0.0) for name in self._names], _F), 0.0)

    def pose(self, controls: np.ndarray, t: float) -> Pose:
        mimic = mimic_of(dict(zip(self._names, (controls * self._unit).tolist(), strict=True)))
        sx, sy = mimic.shift
        c, s, unit = math.cos(self.geometry.angle), math.sin(self.geometry.angle), self.geometry.unit
        sway = 0.6 * math.sin(2 * math.pi * t / 4.7) + 0.4 * math.sin(2 * math.pi * t / 7.3)
        return Pose(mimic, ((c * sx + s * sy) / unit, (c * sy - s * sx) / unit), sway)

    def frame(self, controls: np.ndarray, t: float) -> Drawing:
        pose = self.pose(controls, t)
        told, m, lips = self.head.told(pose), pose.mimic, pose.mimic.lips
        # Our own faces open their mouths within the chin; longer ones drop it.
        told["jaw"] = lips.jaw + 0.25 * lips.opening * min(1.0, max(0.0, self._lips.tall - 1.05))
        told["sway"] = 0.007 * pose.sway
        tint = tint_told(self.geometry, m)
        told |= tint or {}
        tinted, count = tint is not None, 3 * len(self.sources) - 1 + 4 * (tint is not None)
        whole = self._made("whole", False, tinted, told, self._at, self._at)[:count]
        of_parts = [(name, *part.told(m)) for name, part in (("lips", self._lips), ("eyes", self._eyes))]
        reaches = self._lips.reach, self._eyes.reach
        placed = [self._placed(reach, pose, cell) for reach, cell in zip(reaches, CELLS_OF_PARTS, strict=True)]
        boxes = [box for box, _, _ in placed]
        overlap, parts = _overlap(*boxes), []
        for i, (_, columns, rows) in enumerate(placed):
            name, own, moved = of_parts[i]
            made = self._made(name, moved, tinted, told | own, columns, rows)
            if overlap:  # each box then shows what the other part moves there: of a head that is tilted, a corner
                line = _F((self._eyes.reach[3] + self._lips.reach[1]) / 2)
                at = np.flatnonzero(made[count].min(1) < line if i == 0 else made[count].max(1) >= line)
                if at.size:
                    name, own, moved = of_parts[1 - i]
                    some = slice(int(at[0]), int(at[-1]) + 1)
                    other, y = self._made(name, moved, tinted, told | own, columns, rows[some]), made[count, some]
                    np.copyto(made[:, some], other, where=y < line if i == 0 else y >= line)
            parts.append(made[:count])
        return Drawing(self.sources, whole, parts, boxes)

    def _made(
        self, kind: str, moved: bool, tinted: bool, told: Mapping[str, Any], columns: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        """A field, and the heights in the keyframe's face as one channel more."""
        if (program := self._programs.get((kind, moved, tinted))) is None:
            curves = {name: len(value) for name, value in told.items() if isinstance(value, np.ndarray)}
            program = self._programs[kind, moved, tinted] = written(
                partial(self.field, kind, moved, tinted), numbers=[name for name in told if name not in curves],
                curves=curves,
            )  # fmt: skip
        return formula(program, columns, rows, program.given(told))

    def field(self, kind: str, moved: bool, tinted: bool, u: Any, v: Any, n: Mapping[str, Any]) -> list[Any]:
        """What `formula` works out, for nodes at u, v of the frame, in pictures.

        kind  whole, lips or eyes; moved: whether lips are apart or lids have moved; n: numbers and curves by name
        """
        nodes = Nodes.of(self.geometry, self.keyframe, u, v)
        x, y = self._moved(nodes, n)
        made = Field(len(self.sources), colour=tinted)
        if kind == "whole":
            flow = nodes.flow(x, y)
            for source in range(made.sources):
                made.flow(source, flow)
        elif kind == "lips":
            self._lips.field(made, nodes, x, y, n, moved)
        else:
            self._eyes.field(made, nodes, x, y, n, moved)
        if tinted:
            made.tint(tint(self.geometry, x, y, n, self._front))
        return [*made.channels, y]

    def _moved(self, nodes: Nodes, n: Mapping[str, Any]) -> tuple[Any, Any]:
        """Where nodes were before head, body and jaw moved, and hair swayed."""
        px, py = self.head.back(nodes.x, nodes.y, n)
        px = px - n["sway"] * rise((np.abs(px) - _F(0.16)) * _F(1 / 0.14)) * rise((py - _F(0.05)) * _F(1 / 0.35))
        g = self.geometry
        line = float(g.mouth.line.mean())
        around = bump((px - _F(g.mouth.x)) * _F(1 / 0.26)) * rise((py - _F(line)) * _F(1 / (g.chin - line)))
        py = py - n["jaw"] * around * (1 - rise((py - _F(g.chin) - _F(0.02)) * _F(1 / 0.09)))
        return px, py

    def _placed(
        self, reach: tuple[float, float, float, float], pose: Pose, cell: float
    ) -> tuple[list[float], np.ndarray, np.ndarray]:
        """The box in the frame around what a part reaches (x0, y0, x1, y1, face coordinates), and where the columns and
        rows of its nodes are; all in pictures."""
        x0, y0, x1, y1 = reach
        g = self.geometry
        c, s = g.unit * math.cos(g.angle), g.unit * math.sin(g.angle)
        corners = self.head.forth([(x, y) for x in (x0, (x0 + x1) / 2, x1) for y in (y0, y1)], pose)
        across = [c * x - s * y + g.origin[0] for x, y in corners]
        down = [s * x + c * y + g.origin[1] for x, y in corners]
        box = [min(across) - cell, min(down) - cell, max(across) + cell, max(down) + cell]
        columns, rows = (_between(low, high, cell) for low, high in zip(box[:2], box[2:], strict=True))
        return box, columns, rows


def _between(low: float, high: float, cell: float) -> np.ndarray:
    """Where nodes are, about a cell apart."""
    count = max(math.ceil((high - low) / cell), 4)
    return _F(low) + (np.arange(count, dtype=_F) + _F(0.5)) * _F((high - low) / count)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes have a place in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True, eq=False)
class Nodes:
    """x, y: places of the frame in face coordinates; hold_x, hold_y: what is left of a flow near a border with
    something on it, None: all."""

    x: Any
    y: Any
    turn: tuple[float, float]
    hold_x: Any
    hold_y: Any

    @classmethod
    def of(cls, g: Geometry, keyframe: Keyframe, u: Any, v: Any) -> Nodes:
        """u, v: in pictures."""
        c, s = math.cos(g.angle) / g.unit, math.sin(g.angle) / g.unit
        du, dv = u - _F(g.origin[0]), v - _F(g.origin[1])
        x, y = _F(c) * du + _F(s) * dv, _F(c) * dv - _F(s) * du
        left, top, right, bottom = keyframe.solid
        turn = g.unit * math.cos(g.angle), g.unit * math.sin(g.angle)
        return cls(x, y, turn, _held(u, left, right), _held(v, top, bottom))

    def flow(self, px: Any, py: Any) -> tuple[Any, Any]:
        """From the nodes to these places of the keyframe, in pictures: x and y."""
        c, s = _F(self.turn[0]), _F(self.turn[1])
        dx, dy = px - self.x, py - self.y
        fx, fy = (c * dx - s * dy, s * dx + c * dy) if s else (c * dx, c * dy)
        return fx if self.hold_x is None else fx * self.hold_x, fy if self.hold_y is None else fy * self.hold_y


def _held(at: Any, first: bool, last: bool) -> Any:
    """0 at the outermost nodes, and at a border where there is something, 1 further in."""
    if not first and not last:
        return None
    edge = _F(0.5 / CELLS)
    near = at - edge if first else 1 - edge - at
    if first and last:
        near = np.minimum(near, 1 - edge - at)
    return rise(near * _F(1 / _RAMP))
