"""iFacialMocap: an iPhone's face tracking as text over UDP (ifacialmocap.com/for-developer).

The phone sends to whoever asked it with `HELLO`:
`mouthSmile_L&37|..|=head#x,y,z,px,py,pz|rightEye#x,y,z|leftEye#x,y,z|`, blendshapes in percent, angles in degrees,
places in metres, in ARKit's axes of a face (x: its own left, y: up, z: out of it; right-handed). Version 1 has `-`
for `&`.
"""

from __future__ import annotations

import math
import re

from ...errors import InputError
from ..controls import ARKIT

__all__ = ["HELLO", "PORT", "FacialMocap"]

PORT = 49983
HELLO = b"iFacialMocap_sahuasouryya9218sauhuiayeta91555dy3719|sendDataVersion=v2"
_MOST = 256  # fields
_GAZE = 30.0  # degrees of an eye that are a gaze of 1
_FIELD = re.compile(r"([A-Za-z_]+)[&-](-?[0-9.]+(?:[eE][+-]?[0-9]+)?)")
_NAMES = {name.lower(): name for name in ARKIT}


class FacialMocap:
    """Datagrams of one phone -> values of controls. Where the head is counts from where it was first seen."""

    def __init__(self) -> None:
        self._origin: tuple[float, ...] | None = None

    def feed(self, datagram: bytes) -> dict[str, float]:
        """Values by name, unknown names as they came. What is not such a text raises InputError."""
        try:
            text = datagram.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError("ifacialmocap", "a datagram must be text in UTF-8", datagram[:20]) from None
        shapes, mark, bones = text.partition("=")
        fields = [field for field in shapes.split("|") if field]
        if not mark or len(fields) > _MOST:
            raise InputError("ifacialmocap", f"a text is at most {_MOST} shapes, `=` and bones", text[:40])
        told: dict[str, float] = {}
        for field in fields:
            if field.startswith("trackingStatus"):
                continue
            if not (match := _FIELD.fullmatch(field)):
                raise InputError("ifacialmocap", "a shape must be name&percent", field[:40])
            told[_name(match[1])] = _number(match[2]) / 100
        for field in bones.split("|"):
            name, mark, numbers = field.partition("#")
            if mark:
                self._bone(name, [_number(number) for number in numbers.split(",")], told)
        return told

    def _bone(self, name: str, numbers: list[float], told: dict[str, float]) -> None:
        if name == "head" and len(numbers) in (3, 6):
            told["headPitch"], told["headYaw"], told["headRoll"] = -numbers[0], numbers[1], -numbers[2]
            if place := numbers[3:]:
                self._origin = self._origin or tuple(place)
                moved = (100 * (now - then) for now, then in zip(place, self._origin, strict=True))
                told |= dict(zip(("headX", "headY", "headZ"), moved, strict=True))
        elif name in ("leftEye", "rightEye") and len(numbers) == 3:
            # The shapes say it too; then they count.
            if not any(shape.startswith("eyeLook") for shape in told):
                told["gazeX"] = told.get("gazeX", 0.0) + numbers[1] / 2 / _GAZE
                told["gazeY"] = told.get("gazeY", 0.0) - numbers[0] / 2 / _GAZE
        elif name in ("head", "leftEye", "rightEye"):
            raise InputError("ifacialmocap", f"{name} takes 3 numbers, the head 3 or 6", len(numbers))


def _name(short: str) -> str:
    """mouthSmile_L -> mouthSmileLeft; a name that is not ARKit's stays as it is."""
    whole = re.sub(r"_([LR])$", lambda side: {"L": "Left", "R": "Right"}[side[1]], short)
    return _NAMES.get(whole.lower(), short)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError("ifacialmocap", "values must be finite numbers", text[:40])
    return number
