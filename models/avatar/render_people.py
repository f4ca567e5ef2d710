"""Who is drawn: attributes, their natural chances, and faces, pairs of frames and couples made from seeds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from controls import CONTROLS, clamp

__all__ = [
    "ATTRIBUTES", "CLOTH", "EYES", "HAIR", "SKIN", "Colour", "Face", "Two", "held_out", "labels", "sample_face",
    "sample_pair", "sample_two",
]  # fmt: skip

Colour = tuple[int, int, int]

HAIR: dict[str, Colour] = {
    "black": (62, 58, 76), "brown": (138, 88, 60), "blonde": (250, 216, 122), "red": (214, 58, 54),
    "pink": (252, 156, 190), "purple": (150, 96, 214), "blue": (74, 124, 230), "green": (72, 172, 112),
    "silver": (220, 226, 238),
}  # fmt: skip
EYES: dict[str, Colour] = {
    "purple": (150, 66, 222), "blue": (36, 126, 246), "green": (30, 172, 84), "brown": (134, 76, 34),
    "red": (228, 34, 52), "golden": (252, 186, 24),
}  # fmt: skip
SKIN: dict[str, Colour] = {
    "pale": (255, 232, 220), "tan": (242, 196, 158), "brown": (196, 138, 98), "dark": (138, 92, 70),
}  # fmt: skip
CLOTH: dict[str, Colour] = {
    "black": (58, 58, 72), "white": (246, 246, 250), "red": (204, 54, 62), "blue": (62, 100, 190),
    "green": (66, 148, 100), "yellow": (248, 208, 92),
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
    "age": ("adult", "child", "elder"),
    "view": ("front", "left", "right"),
    "floating": ("none", "floating hair"),
    "detail": ("none", "highly detailed", "lively", "chibi"),
    "defect": ("none", "blurry", "watermark", "cropped", "low quality", "worst quality"),
}
# What people who leave a thing open expect to see. Attributes that are not here are spread evenly.
_NATURAL: dict[str, tuple[float, ...]] = {
    "expression": (0.36, 0.32, 0.08, 0.08, 0.08, 0.08),
    "glasses": (0.85, 0.075, 0.075),
    "accessory": (0.76, 0.08, 0.08, 0.08),
    "background": (0.2, 0.13, 0.15, 0.12, 0.15, 0.08, 0.09, 0.08),
    "person": (0.5, 0.36, 0.14),
    "age": (0.82, 0.1, 0.08),
    "view": (0.98, 0.01, 0.01),
    "floating": (0.9, 0.1),
    "detail": (0.76, 0.08, 0.08, 0.08),
    "defect": (0.88, 0.024, 0.024, 0.024, 0.024, 0.024),
}
# For readers of attributes, every value often enough to be learned.
_EVEN: dict[str, tuple[float, ...]] = {
    "age": (0.5, 0.25, 0.25),
    "floating": (0.84, 0.16),
    "view": (0.8, 0.1, 0.1),
    "detail": (0.55, 0.15, 0.15, 0.15),
    "defect": (0.75, 0.05, 0.05, 0.05, 0.05, 0.05),
}
_STYLES = {
    "girl": (0.1, 0.28, 0.2, 0.18, 0.18, 0.06),
    "boy": (0.45, 0.05, 0.04, 0.06, 0.0, 0.4),
    "person": (0.3, 0.18, 0.22, 0.1, 0.02, 0.18),
}
_CLOTHES = {
    "girl": (0.22, 0.16, 0.15, 0.22, 0.08, 0.17),
    "boy": (0.2, 0.24, 0.2, 0.0, 0.22, 0.14),
    "person": (0.17, 0.25, 0.25, 0.05, 0.14, 0.14),
}


@dataclass(frozen=True)
class Face:
    """One person: named attributes, the seed of everything about them that has no name (face shape, fringe, trims),
    the controls they are held at, and the seed of what neither says (sway of hair, cloth, light)."""

    seed: int
    attributes: Mapping[str, str]
    controls: Mapping[str, float] = field(default_factory=dict)
    moment: int = 0

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    def later(self, step: int = 1) -> Face:
        """The same person at another moment: what no control says (sway of hair, cloth, light) has moved on."""
        return replace(self, moment=(self.moment + 7_368_787 * step) % 2**31)

    def changed(self, **attributes: str) -> Face:
        """The same person with other attributes; an expression, age or view comes with its controls."""
        face = replace(self, attributes={**self.attributes, **attributes})
        if {"expression", "view"} & set(attributes):
            face = replace(face, controls=_held(face, random.Random(self.seed ^ 0xC0)))
        return face


@dataclass(frozen=True)
class Two:
    """Two people side by side before the left one's background."""

    seed: int
    left: Face
    right: Face


def _held(face: Face, rng: random.Random) -> dict[str, float]:
    """Controls of a sitter: the named expression, and a head that is nearly straight (or three-quarter, if named)."""
    held = {
        "headYaw": rng.gauss(0, 4.5), "headPitch": rng.gauss(0, 2.0), "headRoll": rng.gauss(0, 3.5),
        "gazeX": rng.gauss(0, 0.15), "gazeY": rng.gauss(0, 0.12), "breath": rng.random(),
        "shiftX": rng.gauss(0, 0.3), "shiftY": rng.gauss(0, 0.3),
    }  # fmt: skip
    if face["view"] != "front":
        held["headYaw"] = (-1 if face["view"] == "left" else 1) * rng.uniform(17, 25)
        held["gazeX"] = held["headYaw"] / 50
    if face["expression"] != "neutral":
        held[face["expression"]] = rng.uniform(0.85, 1.0)
    if face["expression"] == "happy":
        held["jawOpen"] = rng.choice((0.0, 0.0, 0.3))
    return {k: round(v, 4) for k, v in clamp(held).items() if v}


def sample_face(seed: int, *, natural: bool = True) -> Face:
    """The person of a seed, from the natural distribution, or with every attribute spread nearly evenly."""
    rng = random.Random(seed * 2 + natural)
    weights = _NATURAL if natural else _EVEN
    values = {name: rng.choices(choices, weights.get(name))[0] for name, choices in ATTRIBUTES.items()}
    if natural:
        values["style"] = rng.choices(ATTRIBUTES["style"], _STYLES[values["person"]])[0]
        values["clothes"] = rng.choices(ATTRIBUTES["clothes"], _CLOTHES[values["person"]])[0]
        if values["age"] == "elder" and rng.random() < 0.6:
            values["hair"] = "silver"
        if values["age"] == "child" and values["clothes"] == "suit":
            values["clothes"] = "hoodie"
    face = Face(seed, values, moment=rng.randrange(2**31))
    return replace(face, controls=_held(face, rng))


def labels(face: Face) -> np.ndarray:
    """int64 [attributes]: the class number of every attribute, in the order of ATTRIBUTES."""
    return np.array([values.index(face[name]) for name, values in ATTRIBUTES.items()])


def held_out(face: Face) -> bool:
    """True for the 2 % of attribute combinations that no training stage sees, whatever their seed."""
    key = "|".join(f"{k}={face[k]}" for k in sorted(ATTRIBUTES))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") % 50 == 0


def _frame(rng: random.Random) -> dict[str, float]:
    """Controls of one frame: a few of them busy, the rest near neutral."""
    drawn: dict[str, float] = {}
    busy = rng.choice((0.15, 0.35, 0.6))
    for control in CONTROLS:
        if control.name in ("happy", "angry", "cold", "sad", "surprised"):
            continue
        if rng.random() < busy:
            drawn[control.name] = rng.uniform(control.low, control.high)
    mood = rng.choice(("neutral", "neutral", "happy", "angry", "cold", "sad", "surprised"))
    if mood != "neutral":
        drawn[mood] = rng.choice((1.0, rng.random()))
        if rng.random() < 0.2:
            drawn[rng.choice([c.name for c in CONTROLS[:5] if c.name != mood])] = rng.random() * (1 - drawn[mood])
    vowels = [f"mouth{v}" for v in "AIUEO"]
    keep = rng.choice(vowels)
    for vowel in vowels:
        if vowel != keep and rng.random() < 0.8:
            drawn.pop(vowel, None)
    if rng.random() < 0.5:
        for name in ("eyeBlink", "eyeWide", "browDown", "browOuterUp"):
            if f"{name}Left" in drawn:
                drawn[f"{name}Right"] = drawn[f"{name}Left"]
    return clamp(drawn)


def sample_pair(seed: int) -> tuple[Face, dict[str, float], dict[str, float]]:
    """A person and two frames' controls. Draw the second frame of `face.later()`, whose hair, cloth and light have
    moved on by themselves."""
    rng = random.Random(seed * 7919 + 3)
    face = sample_face(rng.randrange(2**40), natural=rng.random() < 0.5)
    plain = face.changed(defect="none", view="front", expression="neutral")
    return replace(plain, controls={}, seed=face.seed), _frame(rng), _frame(rng)


def sample_two(seed: int) -> Two:
    """Two people that differ in hair or eyes, without defects."""
    rng = random.Random(seed * 104729 + 11)
    pair = [sample_face(rng.randrange(2**40)) for _ in range(2)]
    left, right = (face.changed(defect="none", view="front", detail="none", floating="none") for face in pair)
    return Two(seed, left, right)
