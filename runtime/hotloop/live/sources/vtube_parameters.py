"""The parameters that plugins of VTube Studio write, and what each moves.

Names and ranges are VTube Studio's; its horizontal angles and positions grow to the right of the picture, as ours.
Every control of the bus can be written by its own name too.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..controls import CONTROLS

__all__ = ["PARAMETERS", "Parameter", "changed", "moved"]


@dataclass(frozen=True)
class Parameter:
    """moves: control -> (factor, offset); what comes out on the other side of the control's rest is 0."""

    name: str
    low: float
    high: float
    default: float = 0.0
    moves: tuple[tuple[str, float, float], ...] = ()
    owner: str = "VTube Studio"


def _same(name: str, low: float, high: float, *controls: str, factor: float = 1.0) -> Parameter:
    return Parameter(name, low, high, 0.0, tuple((control, factor, 0.0) for control in controls))


def _brow(name: str, *sides: str) -> Parameter:
    """0.5 is at rest; above the brow is up, below down."""
    up = [(f"browOuterUp{side}", 2.0, -1.0) for side in sides]
    down = [(f"browDown{side}", -2.0, 1.0) for side in sides]
    return Parameter(name, 0.0, 1.0, 0.5, (*up, *down, *((("browInnerUp", 2.0, -1.0),) if len(sides) == 2 else ())))


_ROWS = (
    _same("FacePositionX", -15, 15, "headX"),
    _same("FacePositionY", -15, 15, "headY"),
    _same("FacePositionZ", -10, 10, "headZ"),
    _same("FaceAngleX", -30, 30, "headYaw"),
    _same("FaceAngleY", -30, 30, "headPitch"),
    _same("FaceAngleZ", -90, 90, "headRoll"),
    _same("MouthSmile", 0, 1, "mouthSmileLeft", "mouthSmileRight"),
    _same("MouthOpen", 0, 1, "jawOpen"),
    Parameter("MouthX", -1, 1, 0.0, (("mouthLeft", 1.0, 0.0), ("mouthRight", -1.0, 0.0))),
    _brow("Brows", "Left", "Right"),
    _brow("BrowLeftY", "Left"),
    _brow("BrowRightY", "Right"),
    Parameter("EyeOpenLeft", 0, 1, 1.0, (("eyeBlinkLeft", -1.0, 1.0),)),
    Parameter("EyeOpenRight", 0, 1, 1.0, (("eyeBlinkRight", -1.0, 1.0),)),
    *(_same(f"Eye{side}{axis}", -1, 1, f"gaze{axis}") for side in ("Left", "Right") for axis in "XY"),
    _same("TongueOut", 0, 1, "tongueOut"),
    _same("CheekPuff", 0, 1, "cheekPuff"),
    _same("FaceAngry", 0, 1, "angry"),
    *(_same(f"Voice{vowel}", 0, 1, f"mouth{vowel}") for vowel in "AIUEO"),
    _same("VoiceSilence", 0, 1),
    _same("VoiceVolume", 0, 1),
    _same("VoiceFrequency", 0, 1),
    _same("VoiceVolumePlusMouthOpen", 0, 1, "jawOpen"),
    _same("VoiceFrequencyPlusMouthSmile", 0, 1, "mouthSmileLeft", "mouthSmileRight"),
    _same("MousePositionX", -1, 1),
    _same("MousePositionY", -1, 1),
    *(Parameter(c.name, c.low, c.high, 0.0, ((c.name, 1.0, 0.0),), owner="hotloop") for c in CONTROLS),
)
PARAMETERS: dict[str, Parameter] = {row.name: row for row in _ROWS}
_RANGE = {c.name: (c.low, c.high) for c in CONTROLS}


def moved(values: dict[str, float]) -> dict[str, float]:
    """Values by parameter -> by control, in range; of several for one control the one that moves it furthest."""
    told: dict[str, float] = {}
    for name, value in values.items():
        for control, factor, offset in PARAMETERS[name].moves if name in PARAMETERS else ():
            low, high = _RANGE[control]
            x = min(max(factor * value + offset, low), high)
            if control not in told or abs(x) > abs(told[control]):
                told[control] = x
    return told


def changed(values: dict[str, float]) -> dict[str, float]:
    """Differences by parameter -> by control: sums."""
    told: dict[str, float] = {}
    for name, value in values.items():
        for control, factor, _ in PARAMETERS[name].moves if name in PARAMETERS else ():
            told[control] = told.get(control, 0.0) + factor * value
    return told
