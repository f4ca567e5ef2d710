"""The sitter's rig: traits of a seed, and what the controls make of head, body, eyes, brows and mouth.

Head coordinates: x right, y down, z towards the viewer, origin between the brows and the eyes; the face is about .22
wide each side, the chin is at .3. Body coordinates: origin at the base of the neck.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from controls import clamp
from render_canvas import Points, dark, light, mix, shade
from render_people import CLOTH, EYES, HAIR, SKIN, Colour, Face

__all__ = ["Eye", "Mouth", "Palette", "Rig", "Traits"]


@dataclass(frozen=True)
class Traits:
    """What a seed fixes about a person, each number in [-1, 1] unless it counts something."""

    side: int
    fringe: int
    width: float
    chin: float
    tilt: float
    eye: float
    iris: float
    brow: float
    nose: float
    volume: float
    trim: int
    tuft: bool
    fang: bool
    mole: bool
    warmth: float
    scale: float
    jitter: tuple[float, ...]

    @staticmethod
    def of(seed: int) -> Traits:
        r = random.Random(seed ^ 0x5EED)

        def some() -> float:
            return 2 * r.random() - 1

        return Traits(
            side=r.choice((-1, 1)), fringe=r.randrange(6), width=some(), chin=some(), tilt=some(), eye=some(),
            iris=some(), brow=some(), nose=some(), volume=some(), trim=r.randrange(6), tuft=r.random() < 0.25,
            fang=r.random() < 0.15, mole=r.random() < 0.1, warmth=some(), scale=some(),
            jitter=tuple(some() for _ in range(24)),
        )  # fmt: skip


@dataclass(frozen=True)
class Palette:
    """Tones of one material: base, shadow, outline and highlight."""

    base: Colour
    shade: Colour
    ink: Colour
    light: Colour


@dataclass(frozen=True)
class Eye:
    """One eye: opening (1 at rest, 0 closed), slant of the upper lid (+ angry, - sad), lower lid raised, iris size,
    how alive it looks, how much a closed lid arches upwards, and the brow's lift at both ends and thickness."""

    opening: float
    slant: float
    squint: float
    iris: float
    alive: float
    arch: float
    brow_inner: float
    brow_outer: float
    brow_width: float


@dataclass(frozen=True)
class Mouth:
    """Half width, opening, corners (+ up), roundness, clenched teeth, upper teeth, wavering, puckered lips."""

    width: float
    opening: float
    corners: float
    round: float
    clench: float
    teeth: float
    wave: float
    pucker: float


def _tones(colour: Colour, ink: float = 0.55, glow: float = 0.45, deep: float = 0.3) -> Palette:
    return Palette(colour, shade(colour, deep), dark(shade(colour, 0.3), ink), light(colour, glow))


class Rig:
    """A face at given controls: palettes, traits, and the maps from head and body coordinates to the picture."""

    def __init__(
        self, face: Face, controls: Mapping[str, float] | None = None, *,
        place: tuple[float, float, float] = (0.0, 0.0, 1.0),
    ) -> None:  # fmt: skip
        self.face, self.traits = face, Traits.of(face.seed)
        self.controls = clamp(face.controls if controls is None else controls)
        t, c = self.traits, self.controls
        moment = random.Random(face.moment)
        self.sway, self.drape, self.glow = (2 * moment.random() - 1 for _ in range(3))
        self.flow = 2 * math.pi * moment.random()
        self._colours()
        self.girl, self.boy = face["person"] == "girl", face["person"] == "boy"
        self.child, self.elder = face["age"] == "child", face["age"] == "elder"
        self.chibi = face["detail"] == "chibi"

        self.scale = 1.03 + 0.02 * t.scale
        self.head_scale = self.scale * (1.12 if self.chibi else 1.0 if self.child else 0.97 if self.boy else 1.0)
        self.body_scale = self.scale * (0.7 if self.chibi else 0.8 if self.child else 1.0 if self.boy else 0.92)
        dx, dy, self.zoom = place
        x, y = 0.5 + dx + 0.06 * self.zoom * c["shiftX"], 0.441 + dy + 0.045 * self.zoom * c["shiftY"]
        if self.chibi:
            y += 0.025
        elif self.child:
            y += 0.03
        if face["defect"] == "cropped":
            self.zoom, x, y = 1.35, x + 0.3 * t.side, y - 0.12
        self.head_scale *= self.zoom
        self.body_scale *= self.zoom
        self.ink = 0.0056 * (0.6 + 0.4 * self.zoom)
        lift = 0.005 * c["breath"]
        self.neck = np.array([x, y + (0.325 if self.chibi else 0.345 if self.boy else 0.335) * self.head_scale])
        self.head_at = np.array([x, y - lift])
        self.yaw, self.pitch, self.roll = (math.radians(c[k]) for k in ("headYaw", "headPitch", "headRoll"))
        pivot = 0.26
        turn = np.array([[math.cos(self.roll), math.sin(self.roll)], [-math.sin(self.roll), math.cos(self.roll)]])
        turn *= self.head_scale
        squash = np.array([[math.cos(self.yaw), 0.0], [0.0, math.cos(self.pitch)]])
        self._flat = squash @ turn
        self._depth = np.array([math.sin(self.yaw), -math.sin(self.pitch)]) @ turn
        self._zero = np.array([0.0, pivot * self.head_scale]) - np.array([0.0, pivot]) @ turn + self.head_at

    def _colours(self) -> None:
        face, warm = self.face, self.traits.warmth
        hair = HAIR[face["hair"]]
        hair = mix(hair, (255, 200, 170) if warm > 0 else (170, 190, 255), 0.05 * abs(warm))
        if face["age"] == "elder":
            hair = mix(hair, (205, 205, 212), 0.12)
        bright = sum(hair) / 3
        deep = 0.34 if bright < 200 else 0.26
        self.hair = Palette(hair, shade(hair, deep), dark(shade(hair, 0.34), 0.5 if bright > 110 else 0.4),
                            light(hair, 0.62 if bright > 90 else 0.36))  # fmt: skip
        if face["hair"] == "silver":
            self.hair = Palette(hair, (176, 184, 210), (84, 88, 116), (255, 255, 255))
        if face["hair"] == "black":
            self.hair = Palette(hair, (38, 34, 52), (16, 12, 24), (146, 148, 184))
        skin = SKIN[face["skin"]]
        skin = mix(skin, (255, 200, 190) if warm > 0 else (250, 230, 190), 0.06 * abs(warm))
        r, g, b = skin
        line = dark((round(r * 0.62), round(g * 0.44), round(b * 0.42)), 0.28)
        self.skin = Palette(skin, (round(r * 0.9), round(g * 0.76), round(b * 0.76)), line, light(skin, 0.4))
        cloth = CLOTH[face["colour"]]
        self.cloth = _tones(cloth)
        if face["colour"] == "white":
            self.cloth = Palette(cloth, (206, 212, 232), (96, 102, 134), (255, 255, 255))
        if face["colour"] == "black":
            self.cloth = Palette(cloth, (36, 34, 48), (14, 12, 22), (104, 104, 124))
        self.iris = EYES[face["eyes"]]

    # Maps.

    def head(self, points: Points, z: float | np.ndarray = 0.0) -> np.ndarray:
        """Head points at a depth -> picture points [n, 2]."""
        p = np.asarray(points, dtype=np.float64)
        return p @ self._flat + np.reshape(z, (-1, 1)) * self._depth + self._zero

    def on_face(self, points: Points, lift: float = 0.0) -> np.ndarray:
        """Points on the front of the head, which bulges towards the viewer."""
        p = np.asarray(points, dtype=np.float64)
        z = 0.03 + 0.16 * np.sqrt(np.clip(1 - (p[:, 0] / 0.27) ** 2 - ((p[:, 1] - 0.05) / 0.42) ** 2, 0, 1))
        return self.head(p, z + lift)

    def on_skull(self, points: Points, lift: float = 0.0) -> np.ndarray:
        """Points of the hair's surface."""
        p = np.asarray(points, dtype=np.float64)
        below = np.where(p[:, 1] < -0.03, 0.305, 0.5)
        z = 0.2 * np.sqrt(np.clip(1 - (p[:, 0] / 0.28) ** 2 - ((p[:, 1] + 0.03) / below) ** 2, 0, 1))
        return self.head(p, z + lift)

    def hang(self, points: Points, z: float = 0.0) -> np.ndarray:
        """Hair that hangs: the further down, the less it tips with the head and the more it sways."""
        p = np.array(points, dtype=np.float64)
        low = np.clip((p[:, 1] - 0.02) / 0.4, 0, 1.2)
        p[:, 0] += 0.03 * self.sway * low**1.5 + 0.008 * low * np.sin(self.flow + 9 * p[:, 1])
        q = self.head(p, z)
        turned = np.add(p, (z * math.sin(self.yaw), -z * math.sin(self.pitch)))
        upright = self.head_at + turned * self.head_scale
        return q + (upright - q) * np.clip(low, 0, 1)[:, None] * 0.6

    def body(self, points: Points) -> np.ndarray:
        """Body points -> picture points [n, 2]; breathing lifts the shoulders."""
        p = np.asarray(points, dtype=np.float64)
        grown = p * (1 + 0.035 * self.controls["breath"], 1.0)
        grown[:, 1] -= 0.018 * self.controls["breath"]
        return grown * self.body_scale + self.neck

    # Mimic.

    def eye(self, side: int) -> Eye:
        """The eye at the given side of the picture (-1 left: the person's right)."""
        c, name = self.controls, "Left" if side > 0 else "Right"
        happy, angry, cold, sad, surprised = (c[k] for k in ("happy", "angry", "cold", "sad", "surprised"))
        wide = c[f"eyeWide{name}"]
        opening = 1 - 0.06 * happy - 0.2 * angry - 0.44 * cold - 0.14 * sad + 0.22 * surprised + 0.26 * wide
        opening *= 1 - c[f"eyeBlink{name}"]
        down, outer, inner = c[f"browDown{name}"], c[f"browOuterUp{name}"], c["browInnerUp"]
        return Eye(
            opening=max(0.0, opening),
            slant=1.25 * angry - 0.75 * sad + 0.1 * cold,
            squint=0.5 * happy + 0.25 * angry + 0.12 * cold,
            iris=1 + 0.04 * happy - 0.1 * angry - 0.03 * cold - 0.3 * surprised - 0.1 * wide,
            alive=max(0.0, 1 - cold - 0.3 * angry),
            arch=min(1.0, happy),
            brow_inner=0.012 * happy - 0.054 * angry - 0.022 * cold + 0.034 * sad + 0.04 * surprised
            + 0.042 * inner - 0.04 * down,
            brow_outer=0.014 * happy + 0.02 * angry - 0.012 * cold - 0.026 * sad + 0.036 * surprised
            + 0.044 * outer - 0.02 * down,
            brow_width=1 + 0.7 * angry,
        )  # fmt: skip

    def mouth(self) -> Mouth:
        c = self.controls
        happy, angry, cold, sad, surprised = (c[k] for k in ("happy", "angry", "cold", "sad", "surprised"))
        a, i, u, e, o = (c[f"mouth{v}"] for v in "AIUEO")
        jaw = c["jawOpen"]
        width = 0.039 + 0.02 * happy + 0.022 * angry + 0.004 * cold - 0.006 * sad + 0.002 * surprised
        width += 0.008 * a + 0.03 * i - 0.02 * u + 0.018 * e - 0.012 * o + 0.028 * c["mouthSmile"]
        opening = 0.043 * happy + 0.03 * angry + 0.004 * sad + 0.062 * surprised + 0.06 * jaw
        opening += 0.062 * a + 0.026 * i + 0.03 * u + 0.034 * e + 0.05 * o
        room = 0.062 + 0.018 * jaw
        opening /= (1 + (opening / room) ** 3) ** (1 / 3)
        corners = 0.2 + 0.8 * happy - 0.9 * angry - 0.3 * cold - 1.1 * sad - 0.2 * surprised
        corners += 0.9 * c["mouthSmile"] - 1.1 * c["mouthFrown"]
        return Mouth(
            width=max(0.018, width), opening=opening, corners=max(-1.3, min(1.3, corners)),
            round=min(1.0, 0.9 * u + 0.8 * o + surprised + 0.5 * a + 0.6 * jaw), clench=angry * (1 - min(1, jaw + a)),
            teeth=min(1.0, happy + 0.6 * angry + 0.9 * i + 0.7 * e + 0.4 * a), wave=sad, pucker=u,
        )  # fmt: skip
