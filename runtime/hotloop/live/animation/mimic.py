"""What 32 controls ask of a face's parts, in numbers of face coordinates: how far lids, brows, lips and jaw go.

The sums are those of models/avatar's renderer, so that one control means the same drawn, learned or rigged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Lid", "Lips", "Mimic", "mimic_of"]

_REST = {"width": 0.039, "corners": 0.2}


@dataclass(frozen=True)
class Lid:
    """opening: 1 at rest, 0 closed; slant of the upper lid (+ angry, - sad); squint: lower lid raised; arch: how much
    a closed lid turns upwards; iris: its size; inner, outer: the brow's lift at its ends; heavy: its thickness."""

    opening: float
    slant: float
    squint: float
    arch: float
    iris: float
    inner: float
    outer: float
    heavy: float


@dataclass(frozen=True)
class Lips:
    """wider: what is added to the half width; opening; corners: lifted, as a change from rest; round; jaw: its drop."""

    wider: float
    opening: float
    corners: float
    round: float
    jaw: float


@dataclass(frozen=True)
class Mimic:
    """lids: of the eye at the left of the picture (the person's right), then the other. Angles in radians, shifts in
    pictures; veils and blush, tear in 0..1."""

    lids: tuple[Lid, Lid]
    lips: Lips
    gaze: tuple[float, float]
    yaw: float
    pitch: float
    roll: float
    shift: tuple[float, float]
    breath: float
    blush: float
    gloom: float
    rage: float
    tear: float


def mimic_of(c: Mapping[str, float]) -> Mimic:
    """c: the controls by name, in their own units."""
    return Mimic(
        lids=(_lid(c, "Right"), _lid(c, "Left")), lips=_lips(c), gaze=(c["gazeX"], c["gazeY"]),
        yaw=math.radians(c["headYaw"]), pitch=math.radians(c["headPitch"]), roll=math.radians(c["headRoll"]),
        shift=(0.06 * c["shiftX"], 0.045 * c["shiftY"]), breath=c["breath"],
        blush=min(1.0, c["blush"] + 0.45 * c["happy"] + 0.15 * c["sad"]), gloom=c["cold"], rage=c["angry"],
        tear=max(c["tear"], min(1.0, max(0.0, (c["sad"] - 0.3) / 0.5)) * 0.9),
    )  # fmt: skip


def _lid(c: Mapping[str, float], side: str) -> Lid:
    happy, angry, cold, sad, surprised = (c[k] for k in ("happy", "angry", "cold", "sad", "surprised"))
    wide, down, outer = (c[f"{name}{side}"] for name in ("eyeWide", "browDown", "browOuterUp"))
    inner = c["browInnerUp"]
    opening = 1 - 0.06 * happy - 0.2 * angry - 0.44 * cold - 0.14 * sad + 0.22 * surprised + 0.26 * wide
    return Lid(
        opening=max(0.0, opening * (1 - c[f"eyeBlink{side}"])),
        slant=1.25 * angry - 0.75 * sad + 0.1 * cold,
        squint=0.32 * happy + 0.2 * angry + 0.12 * cold,
        arch=min(1.0, happy),
        iris=1 + 0.04 * happy - 0.1 * angry - 0.03 * cold - 0.26 * surprised - 0.1 * wide,
        inner=0.012 * happy - 0.045 * angry - 0.022 * cold + 0.034 * sad + 0.04 * surprised + 0.042 * inner
        - 0.034 * down,
        outer=0.014 * happy + 0.02 * angry - 0.012 * cold - 0.026 * sad + 0.036 * surprised + 0.044 * outer
        - 0.02 * down,
        heavy=1 + 0.5 * angry,
    )  # fmt: skip


def _lips(c: Mapping[str, float]) -> Lips:
    happy, angry, cold, sad, surprised = (c[k] for k in ("happy", "angry", "cold", "sad", "surprised"))
    a, i, u, e, o = (c[f"mouth{vowel}"] for vowel in "AIUEO")
    jaw, smile, frown = c["jawOpen"], c["mouthSmile"], c["mouthFrown"]
    wider = 0.02 * happy + 0.014 * angry + 0.004 * cold - 0.006 * sad + 0.002 * surprised
    wider += 0.008 * a + 0.026 * i - 0.018 * u + 0.016 * e - 0.011 * o + 0.024 * smile + 0.012 * jaw
    opening = 0.043 * happy + 0.02 * angry + 0.004 * sad + 0.058 * surprised + 0.05 * jaw
    opening += 0.062 * a + 0.026 * i + 0.026 * u + 0.034 * e + 0.05 * o
    room = 0.062 + 0.018 * jaw
    opening /= (1 + (opening / room) ** 3) ** (1 / 3)
    corners = 0.8 * happy - 0.9 * angry - 0.3 * cold - 1.1 * sad - 0.2 * surprised + 0.9 * smile - 1.1 * frown
    rounded = min(1.0, 0.9 * u + 0.8 * o + surprised + 0.5 * a + 0.6 * jaw)
    return Lips(max(0.018 - _REST["width"], wider), opening, max(-1.5, min(1.1, corners)), rounded, 0.02 * jaw
                + 0.2 * opening)  # fmt: skip
