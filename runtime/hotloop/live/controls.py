"""THE table of controls that move a face, and how they become the vector that an animator was trained on.

Names are Apple ARKit's where ARKit has one. Left and right are the person's own: `eyeBlinkLeft` closes the eye on the
*right* of the picture. Positive yaw looks to the right of the picture, positive pitch up, positive roll tips the head's
top to the right of the picture; gaze as yaw and pitch. Angles are degrees, positions centimetres (right, up, towards
the viewer), all else are weights in 0..1, gaze in -1..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError

__all__ = [
    "ALIASES", "ANIMATOR", "ARKIT", "CONTROLS", "EXPRESSIONS", "INDEX", "NAMES", "VISEMES", "Control", "Face",
    "expression",
]  # fmt: skip


@dataclass(frozen=True)
class Control:
    """One row: its range, how it is smoothed, foreseen and lost.

    cutoff  Hz, of the one-euro filter at rest; 0: not smoothed
    beta    Hz for each unit a second: what speed adds to the cutoff
    ahead   seconds: the furthest that `Bus.sample` extrapolates; 0: the newest value stays
    ease    seconds that a new value takes to be reached: of what is switched rather than measured
    timeout seconds without a value after which its source has lost it
    """

    name: str
    low: float
    high: float
    cutoff: float
    beta: float
    ahead: float
    ease: float = 0.0
    timeout: float = 1.0
    unit: str = "weight"


# The 52 blendshapes of ARKit's face tracking.
_SIDED = (
    "browDown", "browOuterUp", "cheekSquint", "eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp",
    "eyeSquint", "eyeWide", "mouthDimple", "mouthFrown", "mouthLowerDown", "mouthPress", "mouthSmile", "mouthStretch",
    "mouthUpperUp", "noseSneer",
)  # fmt: skip
_SINGLE = (
    "browInnerUp", "cheekPuff", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthFunnel",
    "mouthLeft", "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "tongueOut",
)  # fmt: skip
ARKIT = tuple(sorted((*_SINGLE, *(name + side for name in _SIDED for side in ("Left", "Right")))))
EXPRESSIONS = ("happy", "angry", "cold", "sad", "surprised", "neutral")
VISEMES = tuple(f"mouth{vowel}" for vowel in "AIUEO")


def _arkit(name: str) -> Control:
    """Lids are fast: hardly smoothed. Everything else of a face takes a tenth of a second or more."""
    if name.startswith("eyeBlink"):
        return Control(name, 0.0, 1.0, 6.0, 16.0, 0.03)
    if name.startswith(("jaw", "mouth")):
        return Control(name, 0.0, 1.0, 3.0, 8.0, 0.04)
    return Control(name, 0.0, 1.0, 1.5, 4.0, 0.04)


CONTROLS: tuple[Control, ...] = (
    *(_arkit(name) for name in ARKIT),
    *(Control(name, 0.0, 1.0, 3.0, 8.0, 0.04) for name in VISEMES),
    Control("gazeX", -1.0, 1.0, 2.0, 8.0, 0.04),
    Control("gazeY", -1.0, 1.0, 2.0, 8.0, 0.04),
    Control("headYaw", -60.0, 60.0, 1.5, 0.3, 0.05, unit="degrees"),
    Control("headPitch", -45.0, 45.0, 1.5, 0.3, 0.05, unit="degrees"),
    Control("headRoll", -45.0, 45.0, 1.5, 0.3, 0.05, unit="degrees"),
    Control("headX", -15.0, 15.0, 1.5, 0.5, 0.05, unit="cm"),
    Control("headY", -15.0, 15.0, 1.5, 0.5, 0.05, unit="cm"),
    Control("headZ", -15.0, 15.0, 1.5, 0.5, 0.05, unit="cm"),
    *(Control(name, 0.0, 1.0, 0.0, 0.0, 0.0, 0.12) for name in EXPRESSIONS),
    *(Control(name, 0.0, 1.0, 0.0, 0.0, 0.0, 0.12) for name in ("breath", "blush", "tear")),
)
NAMES = tuple(control.name for control in CONTROLS)
INDEX: dict[str, int] = {name: i for i, name in enumerate(NAMES)}

# Names that stand for others, with a factor: the animator's own that the table has in two, or in other units.
ALIASES: dict[str, tuple[tuple[str, float], ...]] = {
    "mouthSmile": (("mouthSmileLeft", 1.0), ("mouthSmileRight", 1.0)),
    "mouthFrown": (("mouthFrownLeft", 1.0), ("mouthFrownRight", 1.0)),
    "shiftX": (("headX", 15.0),),
    "shiftY": (("headY", -15.0),),
}

# What the animator of the avatar model is trained on, in its order: name, low, high. A bundle's animator carries its
# own table (its configuration's `controls`), which `Face` takes; this is the one before there is a bundle.
ANIMATOR: tuple[tuple[str, float, float], ...] = (
    *((name, 0.0, 1.0) for name in EXPRESSIONS[:-1]),
    ("jawOpen", 0.0, 1.0),
    *((name, 0.0, 1.0) for name in VISEMES),
    *((name, 0.0, 1.0) for name in ("mouthSmile", "mouthFrown", "eyeBlinkLeft", "eyeBlinkRight")),
    *((name, 0.0, 1.0) for name in ("eyeWideLeft", "eyeWideRight", "browInnerUp", "browDownLeft", "browDownRight")),
    *((name, 0.0, 1.0) for name in ("browOuterUpLeft", "browOuterUpRight")),
    ("gazeX", -1.0, 1.0),
    ("gazeY", -1.0, 1.0),
    ("headYaw", -25.0, 25.0),
    ("headPitch", -12.0, 12.0),
    ("headRoll", -20.0, 20.0),
    ("shiftX", -1.0, 1.0),
    ("shiftY", -1.0, 1.0),
    *((name, 0.0, 1.0) for name in ("breath", "blush", "tear")),
)

# The animator's controls that are more than the bus's of that name: sums, each then held in its range.
_SUMS: dict[str, dict[str, float]] = {
    "jawOpen": {"jawOpen": 1.0, "mouthClose": -1.0},
    "mouthI": {"mouthI": 1.0, "mouthStretchLeft": 0.5, "mouthStretchRight": 0.5},
    "mouthU": {"mouthU": 1.0, "mouthPucker": 1.0},
    "mouthO": {"mouthO": 1.0, "mouthFunnel": 1.0},
    "mouthSmile": {"mouthSmileLeft": 0.5, "mouthSmileRight": 0.5},
    "mouthFrown": {"mouthFrownLeft": 0.5, "mouthFrownRight": 0.5},
    "gazeX": {
        "gazeX": 1.0, "eyeLookOutLeft": 0.5, "eyeLookInRight": 0.5, "eyeLookInLeft": -0.5, "eyeLookOutRight": -0.5,
    },
    "gazeY": {
        "gazeY": 1.0, "eyeLookUpLeft": 0.5, "eyeLookUpRight": 0.5, "eyeLookDownLeft": -0.5, "eyeLookDownRight": -0.5,
    },
    "shiftX": {"headX": 1 / 15},
    "shiftY": {"headY": -1 / 15},
}  # fmt: skip


class Face:
    """The bus's controls -> what one animator takes.

    table   the animator's controls, [name, low, high] each; names that the bus lacks raise InputError
    """

    def __init__(self, table: Iterable[Sequence[object]] = ANIMATOR) -> None:
        rows = [(str(name), float(low), float(high)) for name, low, high in table]  # type: ignore[arg-type]
        self.names = tuple(name for name, _, _ in rows)
        self._low = np.array([low for _, low, _ in rows], np.float32)
        self._high = np.array([high for _, _, high in rows], np.float32)
        self._unit = np.maximum(np.abs(self._low), np.abs(self._high))
        self._places = {name: i for i, name in enumerate(self.names)}
        self._sums = np.zeros((len(rows), len(CONTROLS)), np.float32)
        for i, name in enumerate(self.names):
            parts = _SUMS.get(name, {name: 1.0})
            if not parts.keys() <= INDEX.keys():
                raise InputError("controls", "an animator's controls are names that the bus can make", name)
            for part, factor in parts.items():
                self._sums[i, INDEX[part]] = factor
        self._moods = np.array([i for i, name in enumerate(self.names) if name in EXPRESSIONS], np.intp)
        self._all_moods = np.array([INDEX[name] for name in EXPRESSIONS], np.intp)

    def vector(self, sample: np.ndarray) -> np.ndarray:
        """A sample of the bus [CONTROLS] -> float32 [animator's controls], each divided by its larger bound.

        Weights of expressions that sum to more than 1, with that of neutral, are scaled down to 1.
        """
        values = self._sums @ sample
        values[self._moods] /= max(1.0, float(sample[self._all_moods].sum()))
        return np.clip(values, self._low, self._high) / self._unit

    def plus(self, vector: np.ndarray, added: Mapping[str, float]) -> np.ndarray:
        """A vector with controls of this animator added, by name and in their own units; unknown ones do nothing."""
        made = vector.copy()
        for name, value in added.items():
            if (i := self._places.get(name)) is not None:
                made[i] = min(max(made[i] * self._unit[i] + value, self._low[i]), self._high[i]) / self._unit[i]
        return made


def expression(name: object, weight: float = 1.0) -> dict[str, float]:
    """Values that show one expression alone. An unknown name raises InputError."""
    if name not in EXPRESSIONS:
        raise InputError("controls", f"expression must be one of {', '.join(EXPRESSIONS)}", name)
    return {other: weight if other == name else 0.0 for other in EXPRESSIONS}
