"""What moves a face without changing whose it is: names, ranges, and vectors of them.

Names are Apple ARKit's where ARKit has one. Left and right are the person's own, as in ARKit: `eyeBlinkLeft` closes
the eye on the *right* of the picture. Positive yaw looks to the right of the picture, positive pitch looks up,
positive roll tips the head's top to the right of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = [
    "CONTROLS", "EXPRESSIONS", "NAMES", "NEUTRAL", "TABLE", "Control", "clamp", "from_vector", "scale", "to_vector",
]  # fmt: skip


@dataclass(frozen=True)
class Control:
    """A control's range, and the value at which it does nothing."""

    name: str
    low: float
    high: float
    neutral: float = 0.0


# Expression weights; what they leave of 1 is the neutral face.
EXPRESSIONS = ("happy", "angry", "cold", "sad", "surprised")

CONTROLS: tuple[Control, ...] = (
    *(Control(name, 0.0, 1.0) for name in EXPRESSIONS),
    Control("jawOpen", 0.0, 1.0),
    *(Control(f"mouth{vowel}", 0.0, 1.0) for vowel in "AIUEO"),
    Control("mouthSmile", 0.0, 1.0),
    Control("mouthFrown", 0.0, 1.0),
    Control("eyeBlinkLeft", 0.0, 1.0),
    Control("eyeBlinkRight", 0.0, 1.0),
    Control("eyeWideLeft", 0.0, 1.0),
    Control("eyeWideRight", 0.0, 1.0),
    Control("browInnerUp", 0.0, 1.0),
    Control("browDownLeft", 0.0, 1.0),
    Control("browDownRight", 0.0, 1.0),
    Control("browOuterUpLeft", 0.0, 1.0),
    Control("browOuterUpRight", 0.0, 1.0),
    Control("gazeX", -1.0, 1.0),
    Control("gazeY", -1.0, 1.0),
    Control("headYaw", -25.0, 25.0),
    Control("headPitch", -12.0, 12.0),
    Control("headRoll", -20.0, 20.0),
    Control("shiftX", -1.0, 1.0),
    Control("shiftY", -1.0, 1.0),
    Control("breath", 0.0, 1.0),
    Control("blush", 0.0, 1.0),
    Control("tear", 0.0, 1.0),
)
# As the networks' configurations list them.
TABLE = [[control.name, control.low, control.high] for control in CONTROLS]
NAMES = tuple(control.name for control in CONTROLS)
NEUTRAL: dict[str, float] = {control.name: control.neutral for control in CONTROLS}

_LOW = np.array([control.low for control in CONTROLS], dtype=np.float32)
_HIGH = np.array([control.high for control in CONTROLS], dtype=np.float32)
_UNIT = np.maximum(np.abs(_LOW), np.abs(_HIGH))


def clamp(controls: Mapping[str, float]) -> dict[str, float]:
    """Every control, those not given neutral, each within its range."""
    if unknown := set(controls) - set(NAMES):
        raise ValueError(f"[controls] names are those of CONTROLS, got {', '.join(sorted(unknown))}")
    return {c.name: min(max(float(controls.get(c.name, c.neutral)), c.low), c.high) for c in CONTROLS}


def to_vector(controls: Mapping[str, float]) -> np.ndarray:
    """float32 [controls], in the order of CONTROLS, scaled to [0, 1] or, where the range has two sides, [-1, 1]."""
    return np.array(list(clamp(controls).values()), dtype=np.float32) / _UNIT


def from_vector(vector: np.ndarray) -> dict[str, float]:
    """The controls of a scaled vector [controls]."""
    return clamp(dict(zip(NAMES, (np.asarray(vector) * _UNIT).tolist(), strict=True)))


def scale() -> np.ndarray:
    """float32 [controls, 2]: the scaled range of every control."""
    return np.stack([_LOW / _UNIT, _HIGH / _UNIT], axis=1)
