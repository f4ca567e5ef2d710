"""Draws captioned cartoon faces: seed -> attributes -> picture, part masks and boxes.

Everything is polygons in unit coordinates (x right, y down, the picture is [0, 1] x [0, 1]), drawn at four times the
asked size and averaged down, so that any size comes from the same code. The same face gives the same bytes: all
chance comes from `random.Random(face.seed)` and legacy NumPy streams, whose outputs are frozen by their projects.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["ATTRIBUTES", "PARTS", "Face", "Rendering", "held_out", "labels", "render", "sample_face"]

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]] | np.ndarray

SUPERSAMPLING = 4

HAIR: dict[str, Colour] = {
    "black": (44, 40, 52), "brown": (124, 74, 40), "blonde": (248, 214, 104), "red": (208, 34, 36),
    "pink": (252, 140, 186), "purple": (142, 68, 204), "blue": (48, 98, 228), "green": (44, 160, 84),
    "silver": (214, 222, 236),
}  # fmt: skip
EYES: dict[str, Colour] = {
    "purple": (150, 60, 225), "blue": (35, 125, 250), "green": (25, 175, 75), "brown": (125, 66, 26),
    "red": (232, 26, 40), "golden": (255, 188, 16),
}  # fmt: skip
SKIN: dict[str, Colour] = {
    "pale": (255, 228, 212),
    "tan": (236, 184, 140),
    "brown": (178, 118, 78),
    "dark": (112, 70, 50),
}
CLOTH: dict[str, Colour] = {
    "black": (50, 50, 60), "white": (244, 244, 248), "red": (206, 44, 54), "blue": (52, 92, 190),
    "green": (58, 148, 88), "yellow": (248, 206, 70),
}  # fmt: skip

# Attribute -> values; the order of the values is the class number in every label array.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair": tuple(HAIR),
    "style": ("short", "long", "bob", "ponytail", "twin tails", "spiky"),
    "eyes": tuple(EYES),
    "skin": tuple(SKIN),
    "expression": ("neutral", "happy", "angry", "cold", "sad", "surprised"),
    "glasses": ("none", "round", "square"),
    "accessory": ("none", "cat ears", "ribbon", "headphones"),
    "clothes": ("school uniform", "hoodie", "shirt", "dress", "suit", "kimono"),
    "colour": tuple(CLOTH),
    "background": ("white", "blue sky", "pink", "green", "gray", "night", "sunset", "city"),
    "person": ("girl", "boy", "person"),
    "floating": ("none", "floating hair"),
    "detail": ("none", "highly detailed", "lively", "chibi"),
    "defect": ("none", "blurry", "watermark", "cropped", "low quality", "worst quality"),
}
# Chances that are not uniform.
_WEIGHTS: dict[str, tuple[float, ...]] = {
    "glasses": (0.56, 0.22, 0.22),
    "accessory": (0.55, 0.15, 0.15, 0.15),
    "person": (0.45, 0.35, 0.2),
    "floating": (0.86, 0.14),
    "detail": (0.64, 0.12, 0.12, 0.12),
    "defect": (0.85, 0.03, 0.03, 0.03, 0.03, 0.03),
}
_BOY_STYLES = (0.42, 0.08, 0.06, 0.06, 0.02, 0.36)

PARTS = ("background", "hair", "face", "eyes", "mouth", "glasses", "clothes", "accessory")


@dataclass(frozen=True)
class Face:
    """One face: its attributes, and the seed of everything that has no name (shift, scale, tilt, fringe, clouds)."""

    seed: int
    hair: str
    style: str
    eyes: str
    skin: str
    expression: str
    glasses: str
    accessory: str
    clothes: str
    colour: str
    background: str
    person: str
    floating: str
    detail: str
    defect: str


@dataclass(frozen=True)
class Rendering:
    """image: uint8 [size, size, 3]; masks: part -> float32 [size, size] coverage, adding up to 1 over the parts
    (taken before the defect, empty unless asked for); boxes: part -> (x0, y0, x1, y1) in unit coordinates."""

    image: np.ndarray
    masks: dict[str, np.ndarray]
    boxes: dict[str, tuple[float, float, float, float]]


def sample_face(seed: int) -> Face:
    """The face of a seed: every attribute drawn independently, except that boys mostly wear their hair short."""
    rng = random.Random(seed)
    values = {}
    for name, choices in ATTRIBUTES.items():
        values[name] = rng.choices(choices, _WEIGHTS.get(name))[0]
    if values["person"] == "boy":
        values["style"] = rng.choices(ATTRIBUTES["style"], _BOY_STYLES)[0]
    return Face(seed=seed, **values)


def labels(face: Face) -> np.ndarray:
    """int64 [attributes]: the class number of every attribute, in the order of ATTRIBUTES."""
    return np.array([values.index(getattr(face, name)) for name, values in ATTRIBUTES.items()])


def held_out(face: Face) -> bool:
    """True for the 2 % of attribute combinations that no training stage sees, whatever their seed."""
    attributes = {k: v for k, v in asdict(face).items() if k != "seed"}
    key = "|".join(f"{k}={attributes[k]}" for k in sorted(attributes))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") % 50 == 0


# Geometry.


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _dark(colour: Colour, t: float = 0.35) -> Colour:
    return _mix(colour, (22, 14, 34), t)


def _light(colour: Colour, t: float = 0.35) -> Colour:
    return _mix(colour, (255, 255, 255), t)


def _oval(cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360, n: int = 28) -> np.ndarray:
    """Points of an ellipse arc; degrees, clockwise on the picture from the right."""
    angle = np.radians(np.linspace(start, stop, n, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _smooth(points: Points, closed: bool = True, n: int = 6) -> np.ndarray:
    """A Catmull-Rom curve through the points."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def _mirror(points: Points) -> np.ndarray:
    """The points on the other side of the head's axis, x = 0."""
    return np.asarray(points) * (-1.0, 1.0)


class _Canvas:
    """A picture and, beside it, a label image that says which part each point shows."""

    def __init__(self, size: int, masks: bool) -> None:
        self.side = size * SUPERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)
        self.label = Image.new("L", (self.side, self.side), 0) if masks else None
        self.label_draw = ImageDraw.Draw(self.label) if self.label is not None else None
        self.boxes: dict[str, tuple[float, float, float, float]] = {}
        self.place(0, 0, 1, 0)

    def place(self, x: float, y: float, scale: float, tilt: float) -> None:
        """Local coordinates: their origin at (x, y), enlarged by scale, turned by tilt (radians)."""
        turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
        self.matrix, self.shift, self.scale = turn * scale, np.array([x, y]), scale

    def _pixels(self, points: Points, part: str) -> list[tuple[float, float]]:
        p = np.asarray(points, dtype=np.float64) @ self.matrix + self.shift
        if part != "background":
            low, high = p.min(0).clip(0, 1), p.max(0).clip(0, 1)
            old = self.boxes.get(part, (1.0, 1.0, 0.0, 0.0))
            self.boxes[part] = (min(low[0], old[0]), min(low[1], old[1]), max(high[0], old[2]), max(high[1], old[3]))
        return [tuple(q) for q in (p * self.side - 0.5).tolist()]

    def fill(
        self, points: Points, colour: Colour, part: str, outline: Colour | None = None, width: float = 0.012
    ) -> None:
        pixels = self._pixels(points, part)
        self.draw.polygon(pixels, fill=colour)
        if self.label_draw:
            self.label_draw.polygon(pixels, fill=PARTS.index(part))
        if outline:
            self._stroke([*pixels, pixels[0]], outline, width, part)

    def line(self, points: Points, colour: Colour, width: float, part: str, round_ends: bool = True) -> None:
        pixels = self._pixels(points, part)
        self._stroke(pixels, colour, width, part)
        if round_ends:
            r = width * self.scale * self.side / 2
            for x, y in (pixels[0], pixels[-1]):
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def _stroke(self, pixels: list[tuple[float, float]], colour: Colour, width: float, part: str) -> None:
        w = max(1, round(width * self.scale * self.side))
        self.draw.line(pixels, fill=colour, width=w, joint="curve")
        if self.label_draw:
            self.label_draw.line(pixels, fill=PARTS.index(part), width=w)

    def gradient(self, stops: Sequence[Colour]) -> None:
        """Fills the picture from top to bottom."""
        at = np.linspace(0, len(stops) - 1, self.side)
        rows = np.stack([np.interp(at, range(len(stops)), [s[c] for s in stops]) for c in range(3)], axis=1)
        self.image.paste(Image.fromarray(np.repeat(rows.round().astype(np.uint8)[:, None], self.side, axis=1)))


# Backgrounds.


def _background(c: _Canvas, kind: str, rng: random.Random) -> None:
    def blob(x: float, y: float, r: float, colour: Colour) -> None:
        c.fill(_oval(x, y, r, r, n=16), colour, "background")

    if kind == "white":
        c.gradient([(255, 255, 255), (244, 246, 250)])
    elif kind == "gray":
        c.gradient([(150, 152, 158), (118, 120, 128)])
    elif kind == "pink":
        c.gradient([(255, 196, 216), (255, 222, 232)])
        for _ in range(9):
            blob(rng.random(), rng.random(), 0.03 + 0.025 * rng.random(), (255, 238, 244))
    elif kind == "green":
        c.gradient([(186, 226, 150), (128, 196, 108)])
        for _ in range(10):
            x, y, r = rng.random(), rng.random(), 0.05 + 0.04 * rng.random()
            c.fill([(x - r, y), (x, y - r * 0.5), (x + r, y), (x, y + r * 0.5)], (104, 176, 92), "background")
    elif kind == "blue sky":
        c.gradient([(74, 158, 246), (186, 224, 255)])
        for x in (0.08 + 0.2 * rng.random(), 0.75 + 0.2 * rng.random()):
            y = 0.08 + 0.45 * rng.random()
            for dx, r in ((-0.09, 0.05), (0, 0.075), (0.09, 0.055)):
                blob(x + dx, y, r, (250, 252, 255))
    elif kind == "night":
        c.gradient([(12, 14, 48), (40, 38, 96)])
        blob(0.14, 0.15, 0.09, (255, 244, 190))
        blob(0.18, 0.13, 0.075, (16, 18, 54))
        for _ in range(14):
            blob(rng.random(), rng.random() * 0.8, 0.009 + 0.008 * rng.random(), (255, 250, 224))
    elif kind == "sunset":
        c.gradient([(122, 70, 150), (244, 116, 92), (255, 196, 92)])
        blob(0.12 + 0.76 * (rng.random() > 0.5), 0.52 + 0.1 * rng.random(), 0.12, (255, 236, 150))
    else:
        c.gradient([(196, 216, 232), (226, 232, 236)])
        x = -0.05
        while x < 1:
            w, top = 0.13 + 0.07 * rng.random(), 0.15 + 0.4 * rng.random()
            wall = _mix((92, 104, 132), (140, 146, 166), rng.random())
            c.fill([(x, top), (x + w, top), (x + w, 1), (x, 1)], wall, "background")
            for row in range(int((1 - top) / 0.09)):
                for column in (0.2, 0.6):
                    u, v = x + w * column, top + 0.035 + row * 0.09
                    c.fill([(u, v), (u + 0.04, v), (u + 0.04, v + 0.04), (u, v + 0.04)], (255, 232, 150), "background")
            x += w + 0.01


# Hair. Local coordinates of the head: origin between the eyes' height and the brow, face about 0.23 wide each side.


def _back_hair(c: _Canvas, f: Face, side: int, sway: float) -> None:
    hair, edge = HAIR[f.hair], _dark(HAIR[f.hair], 0.5)
    flip = _mirror if side < 0 else np.asarray

    def piece(points: Points) -> None:
        c.fill(_smooth(points), hair, "hair", edge, 0.014)

    if f.style == "long":
        left = [(-0.27, -0.14), (-0.315, 0.1), (-0.35 - sway, 0.34), (-0.33 - sway, 0.56)]
        piece(
            [
                (0, -0.31),
                (-0.19, -0.27),
                *left,
                (0, 0.6),
                *[(-x - 2 * sway, y) for x, y in reversed(left)],
                (0.19, -0.27),
            ]
        )
    elif f.style == "bob":
        left = [(-0.28, -0.14), (-0.325, 0.06), (-0.33, 0.22), (-0.25, 0.3), (-0.1, 0.27)]
        piece([(0, -0.31), (-0.19, -0.27), *left, *[(-x, y) for x, y in reversed(left)], (0.19, -0.27)])
    elif f.style == "ponytail":
        tail = [
            (0.1, -0.24),
            (0.27, -0.33),
            (0.41, -0.2),
            (0.44, 0.06),
            (0.4, 0.36),
            (0.33, 0.44),
            (0.33, 0.2),
            (0.26, -0.06),
        ]
        piece(flip(tail))
    elif f.style == "twin tails":
        tail = [
            (0.2, -0.16),
            (0.34, -0.26),
            (0.44, -0.1),
            (0.46, 0.2),
            (0.4, 0.5),
            (0.34, 0.54),
            (0.31, 0.24),
            (0.24, 0.02),
        ]
        for turn in (np.asarray, _mirror):
            piece(turn(tail))
    elif f.style == "spiky":
        spikes = []
        for i in range(13):
            angle = math.radians(-198 + i * 216 / 12)
            for r, step in ((0.285, -8.0), (0.40 if i % 2 else 0.36, 0.0)):
                a = angle + math.radians(step)
                spikes.append((r * math.cos(a), -0.03 + r * 0.92 * math.sin(a)))
        c.fill([*spikes, (0.2, 0.2), (-0.2, 0.2)], hair, "hair", edge, 0.014)
    if f.style in ("short", "ponytail", "twin tails"):
        piece(
            [
                (0, -0.3),
                (-0.18, -0.26),
                (-0.27, -0.12),
                (-0.27, 0.06),
                (-0.2, 0.14),
                (0.2, 0.14),
                (0.27, 0.06),
                (0.27, -0.12),
                (0.18, -0.26),
            ]
        )
    if f.floating != "none":
        for k, y in enumerate((-0.06, 0.1, 0.26)):
            reach = 0.5 - 0.03 * k
            strand = [
                (0.16, y - 0.05),
                (0.3, y),
                (0.4, y - 0.02),
                (reach, y - 0.1),
                (0.44, y + 0.03),
                (0.32, y + 0.075),
                (0.16, y + 0.07),
            ]
            for turn in (flip, lambda p: flip(_mirror(p) * (0.92, 1.0))):
                piece(turn(strand))


_FRINGES = (
    [(-0.21, 0.02), (-0.17, -0.06), (-0.12, 0.0), (-0.06, -0.07), (0.0, -0.01),
     (0.06, -0.07), (0.12, 0.0), (0.17, -0.06), (0.21, 0.02)],
    [(-0.21, 0.05), (-0.16, -0.02), (-0.07, -0.02), (0.03, -0.12), (0.1, -0.05), (0.15, -0.1), (0.21, 0.02)],
    [(-0.21, 0.04), (-0.17, -0.04), (-0.08, -0.03), (0.0, -0.04), (0.08, -0.03), (0.17, -0.04), (0.21, 0.04)],
)  # fmt: skip


def _front_hair(c: _Canvas, f: Face, fringe: int, side: int) -> None:
    hair, edge = HAIR[f.hair], _dark(HAIR[f.hair], 0.5)
    dome = _oval(0, -0.04, 0.262, 0.275, 180, 360, 22)
    jag = np.array(_FRINGES[fringe]) * (side, 1.0)
    jag = jag[np.argsort(-jag[:, 0])]
    if f.style == "spiky":
        jag = np.array(
            [
                (0.21, 0.05),
                (0.15, -0.1),
                (0.09, 0.0),
                (0.04, -0.11),
                (-0.03, 0.0),
                (-0.09, -0.11),
                (-0.15, 0.0),
                (-0.19, -0.08),
                (-0.21, 0.05),
            ]
        )
    lock = {"short": 0.06, "spiky": 0.05, "bob": 0.24, "long": 0.34, "ponytail": 0.14, "twin tails": 0.16}[f.style]
    outer, inner = 0.262, 0.2
    right = [(outer, 0.0), (outer + 0.015, lock * 0.6), (0.225, lock), (inner, lock * 0.5)]
    left = [(-x, y) for x, y in reversed(right)]
    c.fill(np.concatenate([dome, right, jag, left]), hair, "hair", edge, 0.014)
    # The shine that makes drawn hair look like hair: a broken light band around the crown.
    shine = _light(hair, 0.5 if f.hair != "silver" else 0.85)
    for start, stop in ((212, 246), (254, 300)) if side > 0 else ((240, 286), (294, 328)):
        c.line(_oval(0, -0.02, 0.19, 0.2, start, stop, 10), shine, 0.026, "hair")
    if f.detail == "highly detailed":
        for x in (-0.15, -0.06, 0.05, 0.14):
            c.line([(x * 0.5, -0.29), (x * 1.05, -0.18), (x * 1.2, -0.1)], _dark(hair, 0.3), 0.009, "hair")
        c.line(_oval(0, -0.02, 0.225, 0.24, 225, 315, 12), shine, 0.014, "hair")


# The face.

# Expression -> (eye opening, brow lift, brow slant: + is angry, iris size)
_LOOKS: dict[str, tuple[float, float, float, float]] = {
    "neutral": (1.0, 0.0, 0.0, 1.0),
    "happy": (1.0, 0.018, -0.012, 1.05),
    "angry": (0.92, -0.026, 0.05, 0.92),
    "cold": (0.9, -0.02, 0.008, 0.95),
    "sad": (0.95, 0.008, -0.05, 1.0),
    "surprised": (1.2, 0.045, -0.01, 0.74),
}


def _head(c: _Canvas, f: Face) -> None:
    skin, edge = SKIN[f.skin], _dark(SKIN[f.skin], 0.45)
    jaw = 0.135 if f.person == "boy" else 0.105
    for x in (-0.24, 0.24):
        c.fill(_oval(x, 0.1, 0.038, 0.06, n=18), skin, "face", edge, 0.012)
    half = [(0.0, 0.295), (jaw * 0.6, 0.275), (jaw + 0.055, 0.2), (0.235, 0.09), (0.238, -0.06), (0.17, -0.2)]
    outline = [*half, (0, -0.25), *[(-x, y) for x, y in reversed(half[1:])]]
    c.fill(_smooth(outline), skin, "face", edge, 0.013)
    if f.expression == "cold":
        c.fill(
            [(-0.225, -0.1), (0.225, -0.1), (0.215, -0.02), (-0.215, -0.02)], _mix(skin, (70, 90, 170), 0.42), "face"
        )
    if f.expression in ("happy", "sad") or f.detail == "lively":
        blush = _mix(skin, (255, 70, 90), 0.45)
        for x in (-0.155, 0.155):
            c.fill(_oval(x, 0.175, 0.05, 0.026, n=16), blush, "face")
    c.line([(0.0, 0.135), (0.012, 0.155)], edge, 0.014, "face")


def _lenses(glasses: str, x: float) -> np.ndarray:
    if glasses == "round":
        return _oval(x, 0.06, 0.1, 0.1)
    return np.array([(x - 0.102, -0.015), (x + 0.102, -0.015), (x + 0.092, 0.13), (x - 0.092, 0.13)])


def _eyes(c: _Canvas, f: Face) -> None:
    skin, ink = SKIN[f.skin], (36, 24, 40)
    opening, _, _, iris = _LOOKS[f.expression]
    big = 1.12 if f.detail == "chibi" else 1.0
    rx, ry = 0.072 * big, 0.088 * big * opening * (0.86 if f.person == "boy" else 1.0)
    colour = EYES[f.eyes]
    for side in (-1, 1):
        x, y = 0.118 * side, 0.06
        c.fill(_oval(x, y, rx, ry), (255, 255, 255), "eyes")
        ix, iy = 0.056 * big * iris, min(0.076 * big * iris, ry * 0.95)
        c.fill(_oval(x, y + 0.006, ix, iy), _dark(colour, 0.4), "eyes")
        c.fill(_oval(x, y + 0.012, ix * 0.84, iy * 0.84), colour, "eyes")
        c.fill(_oval(x, y + iy * 0.5, ix * 0.6, iy * 0.36), _light(colour, 0.35), "eyes")
        c.fill(_oval(x, y, ix * 0.36, iy * 0.42), ink, "eyes")
        if f.expression != "cold":
            c.fill(_oval(x - ix * 0.38, y - iy * 0.42, 0.021 * big, 0.025 * big, n=14), (255, 255, 255), "eyes")
        if f.detail == "highly detailed":
            c.fill(_oval(x + ix * 0.42, y + iy * 0.42, 0.012, 0.012, n=10), (255, 255, 255), "eyes")
        # The lid: skin over the top of the eye, then the lash line along its edge.
        lid = {"angry": 0.36, "cold": 0.47, "sad": 0.12}.get(f.expression, 0.0)
        lash = 0.026 if f.person == "girl" else 0.02
        if lid:
            inner, outer = (x - side * rx * 1.08, x + side * rx * 1.08)
            top = y - ry * 1.1
            edge_y = y - ry * (1 - 2 * lid)
            inner_y = edge_y + (ry * 0.42 if f.expression == "angry" else -ry * 0.3 if f.expression == "sad" else 0)
            outer_y = edge_y - (ry * 0.42 if f.expression == "angry" else -ry * 0.4 if f.expression == "sad" else 0)
            c.fill([(inner, top), (outer, top), (outer, outer_y), (inner, inner_y)], skin, "face")
            c.line([(inner, inner_y), (outer, outer_y)], ink, lash, "eyes")
        else:
            c.line(_oval(x, y, rx, ry, 192, 348, 16), ink, lash, "eyes")
        if f.person == "girl":
            tip = (x + side * rx * 0.95, y - ry * (0.35 if not lid else 0.1))
            c.line([tip, (tip[0] + side * 0.034, tip[1] - 0.024)], ink, 0.018, "eyes")
        if f.expression == "sad" and side > 0:
            tear = [
                (x + 0.02, y + ry * 0.7),
                (x + 0.062, y + ry + 0.055),
                (x + 0.02, y + ry + 0.095),
                (x - 0.022, y + ry + 0.055),
            ]
            c.fill(_smooth(tear), (120, 205, 255), "eyes", (40, 130, 220), 0.01)


def _brows(c: _Canvas, f: Face) -> None:
    _, lift, slant, _ = _LOOKS[f.expression]
    colour = _dark(HAIR[f.hair], 0.62)
    width = 0.03 if f.person == "boy" or f.expression == "angry" else 0.022
    for side in (-1, 1):
        inner = (0.055 * side, -0.062 - lift + slant)
        outer = (0.175 * side, -0.062 - lift - slant * 0.6 + 0.008)
        middle = (0.115 * side, (inner[1] + outer[1]) / 2 - (0.0 if f.expression in ("angry", "cold") else 0.016))
        c.line(_smooth([inner, middle, outer], closed=False), colour, width, "face")


def _mouth(c: _Canvas, f: Face) -> None:
    ink = _dark(SKIN[f.skin], 0.8)
    red, tongue = (176, 30, 52), (250, 120, 130)
    kind = f.expression
    if kind == "happy":
        c.fill(np.concatenate([[(-0.1, 0.18)], _oval(0, 0.18, 0.1, 0.088, 0, 180, 16)]), red, "mouth", ink, 0.014)
        c.fill(_oval(0, 0.244, 0.052, 0.024, n=14), tongue, "mouth")
        c.fill([(-0.08, 0.184), (0.08, 0.184), (0.07, 0.204), (-0.07, 0.204)], (255, 255, 255), "mouth")
    elif kind == "angry":
        jaw = [(-0.088, 0.256), (-0.066, 0.194), (0.066, 0.194), (0.088, 0.256)]
        c.fill(jaw, (255, 255, 255), "mouth", ink, 0.018)
        for x in (-0.025, 0.025):
            c.line([(x, 0.195), (x, 0.255)], ink, 0.01, "mouth")
    elif kind == "cold":
        c.line([(-0.065, 0.222), (0.065, 0.222)], ink, 0.02, "mouth")
    elif kind == "sad":
        c.line(_oval(0, 0.262, 0.07, 0.062, 200, 340, 14), ink, 0.022, "mouth")
    elif kind == "surprised":
        c.fill(_oval(0, 0.217, 0.05, 0.062), red, "mouth", ink, 0.014)
        c.fill(_oval(0, 0.246, 0.03, 0.022, n=12), tongue, "mouth")
    else:
        colour = (200, 70, 90) if f.person == "girl" else ink
        c.line(_oval(0, 0.19, 0.058, 0.04, 25, 155, 10), colour, 0.02, "mouth")


def _marks(c: _Canvas, f: Face, rng: random.Random) -> None:
    """Signs that stand above everything on the head: the anger vein, and sparkles for lively faces."""
    if f.expression == "angry":
        x, y, r = 0.19, -0.17, 0.055
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            bend = [
                (x + sx * r, y + sy * r * 0.28),
                (x + sx * r * 0.3, y + sy * r * 0.3),
                (x + sx * r * 0.28, y + sy * r),
            ]
            c.line(bend, (255, 255, 255), 0.04, "face")
        for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            bend = [
                (x + sx * r, y + sy * r * 0.28),
                (x + sx * r * 0.3, y + sy * r * 0.3),
                (x + sx * r * 0.28, y + sy * r),
            ]
            c.line(bend, (222, 24, 34), 0.022, "face")
    if f.detail == "lively":
        for x, y, r in ((-0.38, -0.26, 0.075), (0.38, -0.1, 0.06), (-0.4, 0.12, 0.05)):
            y += 0.06 * rng.random()
            star = []
            for i in range(8):
                s = r if i % 2 == 0 else r * 0.3
                star.append((x + s * math.cos(i * math.pi / 4), y + s * math.sin(i * math.pi / 4)))
            c.fill(star, (255, 236, 90), "accessory", (236, 160, 30), 0.008)


def _glasses(c: _Canvas, f: Face) -> None:
    frame = (30, 28, 44)
    for x in (-0.118, 0.118):
        ring = _lenses(f.glasses, x)
        c.line([*ring, ring[0], ring[1]], frame, 0.02, "glasses")
    c.line([(-0.022, 0.045), (0.022, 0.045)], frame, 0.02, "glasses")
    for side in (-1, 1):
        c.line([(0.215 * side, 0.04), (0.245 * side, 0.03)], frame, 0.018, "glasses")


def _accessory(c: _Canvas, f: Face, side: int) -> None:
    hair = HAIR[f.hair]
    edge = _dark(hair, 0.55)
    if f.accessory == "cat ears":
        for s in (-1, 1):
            ear = [(s * 0.06, -0.26), (s * 0.245, -0.43), (s * 0.262, -0.13)]
            c.fill(ear, hair, "accessory", edge, 0.015)
            c.fill([(s * 0.115, -0.27), (s * 0.222, -0.365), (s * 0.232, -0.19)], (255, 170, 190), "accessory")
    elif f.accessory == "ribbon":
        red = (232, 38, 74) if f.hair not in ("red", "pink") else (60, 120, 235)
        x, y = 0.16 * side, -0.24
        for s in (-1, 1):
            wing = [(x, y), (x + s * 0.13, y - 0.085), (x + s * 0.145, y + 0.075)]
            c.fill(wing, red, "accessory", _dark(red), 0.013)
        c.fill(_oval(x, y, 0.034, 0.036, n=14), _dark(red, 0.15), "accessory", _dark(red), 0.012)
    elif f.accessory == "headphones":
        c.line(_oval(0, -0.02, 0.285, 0.3, 188, 352, 24), (58, 60, 72), 0.045, "accessory")
        for s in (-1, 1):
            c.fill(_oval(s * 0.275, 0.06, 0.06, 0.095), (58, 60, 72), "accessory", (24, 24, 34), 0.012)
            c.fill(_oval(s * 0.28, 0.06, 0.034, 0.062, n=18), (60, 220, 230), "accessory")


def _body(c: _Canvas, f: Face) -> None:
    """Neck and clothes; local coordinates with the origin at the base of the neck."""
    skin, cloth = SKIN[f.skin], CLOTH[f.colour]
    edge = _dark(cloth, 0.45)
    wide = 0.34 if f.person == "boy" else 0.3
    contrast = (255, 255, 255) if f.colour != "white" else (70, 84, 120)
    half = [(0.07, -0.02), (wide * 0.8, 0.05), (wide, 0.12), (wide + 0.05, 0.5)]
    shoulders = [*half, *[(-x, y) for x, y in reversed(half)]]

    def neck() -> None:
        c.fill(
            [(-0.068, -0.16), (0.068, -0.16), (0.075, 0.02), (0, 0.06), (-0.075, 0.02)],
            skin,
            "face",
            _dark(skin, 0.45),
            0.012,
        )
        c.fill([(-0.066, -0.1), (0.066, -0.1), (0.0, -0.03)], _dark(skin, 0.2), "face")

    if f.clothes == "dress":
        c.fill(shoulders, skin, "face", _dark(skin, 0.45), 0.013)
        neck()
        for s in (-1, 1):
            c.line([(s * 0.15, 0.02), (s * 0.15, 0.16)], cloth, 0.04, "clothes")
        c.fill([(-0.24, 0.14), (0.24, 0.14), (0.3, 0.5), (-0.3, 0.5)], cloth, "clothes", edge, 0.013)
        for x in np.linspace(-0.2, 0.2, 6):
            c.fill(_oval(x, 0.14, 0.045, 0.035, n=14), contrast, "clothes", edge, 0.008)
        return
    c.fill(_smooth(shoulders, n=4) if f.clothes == "hoodie" else shoulders, cloth, "clothes", edge, 0.015)
    neck()
    if f.clothes == "school uniform":
        for s in (-1, 1):
            collar = [(s * 0.06, -0.03), (s * 0.21, 0.05), (s * 0.2, 0.14), (0.0, 0.2)]
            c.fill(collar, contrast, "clothes", edge, 0.012)
            c.line([(s * 0.17, 0.07), (s * 0.165, 0.115), (s * 0.02, 0.165)], cloth, 0.014, "clothes")
        c.fill([(-0.05, 0.03), (0.05, 0.03), (0.0, 0.15)], skin, "face")
        bow = (226, 38, 60) if f.colour != "red" else (46, 70, 170)
        for s in (-1, 1):
            c.fill([(0, 0.17), (s * 0.1, 0.125), (s * 0.1, 0.225)], bow, "clothes", _dark(bow), 0.01)
    elif f.clothes == "hoodie":
        hood = [
            (-0.09, -0.09),
            (-0.2, -0.03),
            (-0.18, 0.07),
            (0.0, 0.13),
            (0.18, 0.07),
            (0.2, -0.03),
            (0.09, -0.09),
            (0.07, 0.01),
            (0, 0.05),
            (-0.07, 0.01),
        ]
        c.fill(
            _smooth(hood, n=4), _light(cloth, 0.22) if f.colour != "white" else (214, 216, 226), "clothes", edge, 0.014
        )
        for s in (-1, 1):
            c.line([(s * 0.06, 0.1), (s * 0.065, 0.24)], contrast, 0.02, "clothes")
    elif f.clothes == "shirt":
        for s in (-1, 1):
            c.fill(
                [(s * 0.07, -0.04), (s * 0.14, 0.03), (s * 0.09, 0.1), (0, 0.05)],
                _light(cloth, 0.4),
                "clothes",
                edge,
                0.013,
            )
        c.line([(0, 0.07), (0, 0.5)], edge, 0.01, "clothes")
        for y in (0.11, 0.18, 0.25):
            c.fill(_oval(0, y, 0.016, 0.016, n=10), contrast, "clothes", edge, 0.006)
    elif f.clothes == "suit":
        c.fill([(-0.085, -0.03), (0.085, -0.03), (0.0, 0.3)], (252, 252, 255), "clothes", edge, 0.01)
        tie = (206, 30, 48) if f.colour != "red" else (32, 36, 60)
        c.fill(
            [(-0.026, 0.035), (0.026, 0.035), (0.018, 0.08), (0.03, 0.24), (0, 0.29), (-0.03, 0.24), (-0.018, 0.08)],
            tie,
            "clothes",
        )
        for s in (-1, 1):
            lapel = [(s * 0.075, -0.045), (s * 0.15, 0.06), (s * 0.11, 0.09), (s * 0.13, 0.12), (0, 0.3)]
            c.fill(lapel, _dark(cloth, 0.25) if f.colour != "black" else (84, 84, 98), "clothes", edge, 0.012)
    else:
        flower = (255, 190, 205) if f.colour in ("black", "blue", "green", "red") else (232, 84, 120)
        for x, y in ((-0.22, 0.13), (0.24, 0.16), (-0.3, 0.24), (0.17, 0.23)):
            c.fill(_oval(x, y, 0.03, 0.03, n=12), flower, "clothes")
            c.fill(_oval(x, y, 0.011, 0.011, n=8), (255, 240, 160), "clothes")
        c.fill(
            [(-0.1, -0.04), (-0.05, -0.05), (0.0, 0.07), (0.05, -0.05), (0.1, -0.04), (-0.03, 0.25), (-0.08, 0.18)],
            contrast,
            "clothes",
            edge,
            0.01,
        )
        c.fill([(-0.045, -0.02), (0.045, -0.02), (0.0, 0.075)], skin, "face")
        sash = (250, 196, 60) if f.colour != "yellow" else (196, 46, 70)
        c.fill([(-0.34, 0.235), (0.34, 0.235), (0.36, 0.5), (-0.36, 0.5)], sash, "clothes", _dark(sash), 0.012)


# Defects: things for negative prompts to remove.


def _defect(image: Image.Image, kind: str, seed: int) -> Image.Image:
    size = image.width
    if kind == "blurry":
        return image.filter(ImageFilter.GaussianBlur(size * 0.032))
    if kind == "watermark":
        overlay = Image.new("RGBA", image.size, (0, 0, 0, 0))
        draw = ImageDraw.Draw(overlay)
        for row in (0.36, 0.62, 0.88):
            zigzag = [
                ((i + 0.5) / 12 * size, (row + (0.05 if i % 2 else -0.05) - 0.12 * (i / 12 - 0.5)) * size)
                for i in range(12)
            ]
            draw.line(zigzag, fill=(255, 255, 255, 190), width=max(1, round(size * 0.03)))
            draw.line(
                [(x, y + size * 0.02) for x, y in zigzag], fill=(60, 60, 60, 120), width=max(1, round(size * 0.015))
            )
        return Image.alpha_composite(image.convert("RGBA"), overlay).convert("RGB")
    if kind in ("low quality", "worst quality"):
        cells = 21 if kind == "low quality" else 13
        small = image.resize((cells, cells), Image.Resampling.BOX)
        pixels = np.asarray(small, dtype=np.float32)
        if kind == "worst quality":
            pixels = pixels + np.random.RandomState(seed % 2**32).uniform(-45, 45, pixels.shape)
        small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        return small.resize((size, size), Image.Resampling.NEAREST)
    return image


def render(face: Face, size: int = 64, *, masks: bool = False) -> Rendering:
    """Draws a face at size x size pixels; with masks, also which part each pixel shows."""
    rng = random.Random(face.seed ^ 0x5EED)
    c = _Canvas(size, masks)
    shift_x, shift_y = 0.035 * (2 * rng.random() - 1), 0.025 * (2 * rng.random() - 1)
    scale, tilt = 1 + 0.05 * (2 * rng.random() - 1), 0.09 * (2 * rng.random() - 1)
    side, fringe, sway = rng.choice((-1, 1)), rng.randrange(3), 0.03 * (2 * rng.random() - 1)
    x, y = 0.5 + shift_x, 0.435 + shift_y
    _background(c, face.background, random.Random(rng.random()))
    neck = y + 0.305 * scale
    head = body = scale
    if face.detail == "chibi":
        head, body, y = head * 1.14, body * 0.8, y + 0.02
        neck = y + 0.31 * head
    if face.defect == "cropped":
        x, y, head, body = x + side * 0.3, y - 0.12, head * 1.35, body * 1.35
        neck = y + 0.305 * head

    c.place(x, y, head, tilt)
    _back_hair(c, face, side, sway)
    c.place(x - tilt * 0.2, neck, body, 0)
    _body(c, face)
    c.place(x, y, head, tilt)
    _head(c, face)
    if face.glasses != "none":
        for dx in (-0.118, 0.118):
            c.fill(_lenses(face.glasses, dx), _mix(SKIN[face.skin], (225, 242, 255), 0.45), "glasses")
    _eyes(c, face)
    _mouth(c, face)
    if face.accessory == "cat ears":
        _accessory(c, face, side)
    _front_hair(c, face, fringe, side)
    if face.glasses != "none":
        _glasses(c, face)
    _brows(c, face)
    if face.accessory != "cat ears":
        _accessory(c, face, side)
    _marks(c, face, rng)

    image = _defect(c.image.reduce(SUPERSAMPLING), face.defect, face.seed)
    coverage = {}
    if c.label is not None:
        index = np.asarray(c.label).reshape(size, SUPERSAMPLING, size, SUPERSAMPLING)
        coverage = {part: (index == i).mean((1, 3), dtype=np.float32) for i, part in enumerate(PARTS)}
    boxes = {part: tuple(float(v) for v in box) for part, box in c.boxes.items()}
    return Rendering(np.asarray(image), coverage, boxes)  # type: ignore[arg-type]
