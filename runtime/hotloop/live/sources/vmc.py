"""The VMC protocol (protocol.vmc.info): what VSeeFace, VMagicMirror, Warudo and the like send a renderer, as OSC.

Expressions come one message each and count from `/VMC/Ext/Blend/Apply` on; names are those of VRM 0, VRM 1 or ARKit, in
any case. Bones come as local rotations, quaternions in Unity's axes (x: the avatar's right, y: up, z: where it faces;
left-handed): the head's, with the neck's before it, is told as yaw, pitch and roll.
"""

from __future__ import annotations

import math
from typing import Any

from ..controls import NAMES
from .osc import Message

__all__ = ["PORTS", "SHAPES", "Vmc", "angles"]

PORTS = (39539, 39540)
_MOST_SHAPES = 256  # that wait for Apply
_GAZE = 30.0  # degrees of an eye that are a gaze of 1

# VRM 0's and VRM 1's names, in small letters, and what they move; relaxed and fun are a mild happiness.
SHAPES: dict[str, dict[str, float]] = {
    "joy": {"happy": 1.0}, "happy": {"happy": 1.0}, "fun": {"happy": 0.5}, "relaxed": {"happy": 0.5},
    "angry": {"angry": 1.0}, "sorrow": {"sad": 1.0}, "sad": {"sad": 1.0}, "surprised": {"surprised": 1.0},
    "neutral": {"neutral": 1.0},
    "a": {"mouthA": 1.0}, "i": {"mouthI": 1.0}, "u": {"mouthU": 1.0}, "e": {"mouthE": 1.0}, "o": {"mouthO": 1.0},
    "aa": {"mouthA": 1.0}, "ih": {"mouthI": 1.0}, "ou": {"mouthU": 1.0}, "ee": {"mouthE": 1.0}, "oh": {"mouthO": 1.0},
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "blink_l": {"eyeBlinkLeft": 1.0}, "blink_r": {"eyeBlinkRight": 1.0},
    "blinkleft": {"eyeBlinkLeft": 1.0}, "blinkright": {"eyeBlinkRight": 1.0},
    "lookup": {"gazeY": 1.0}, "lookdown": {"gazeY": -1.0}, "lookleft": {"gazeX": 1.0}, "lookright": {"gazeX": -1.0},
    **{name.lower(): {name: 1.0} for name in NAMES if name not in ("happy", "angry", "sad", "surprised", "neutral")},
}  # fmt: skip

Quaternion = tuple[float, float, float, float]


def angles(q: Quaternion) -> tuple[float, float, float] | None:
    """(x, y, z, w) in Unity's axes -> yaw, pitch, roll in degrees, the table's signs; None for no rotation at all.

    Unity's order: about z, then x, then y. Yaw to the right of the picture is to the avatar's left, Unity's -y.
    """
    norm = math.sqrt(sum(v * v for v in q))
    if not math.isfinite(norm) or norm < 1e-6:
        return None
    x, y, z, w = (v / norm for v in q)
    ahead = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))  # where z points to, turned
    yaw, pitch = math.atan2(-ahead[0], ahead[2]), math.asin(min(max(ahead[1], -1.0), 1.0))
    roll = math.atan2(2 * (x * y + w * z), 1 - 2 * (x * x + z * z))
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)


def _times(a: Quaternion, b: Quaternion) -> Quaternion:
    (ax, ay, az, aw), (bx, by, bz, bw) = a, b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


class Vmc:
    """Messages of one sender -> values of controls."""

    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}
        self._bones: dict[str, Quaternion] = {}
        self.counts = dict.fromkeys(("applied", "bones", "malformed", "others"), 0)
        self.available: bool | None = None  # what /VMC/Ext/OK said last
        self.time: float | None = None  # the sender's own, of /VMC/Ext/T

    def feed(self, messages: list[Message]) -> dict[str, Any]:
        """Values to put now, unknown names as they are: of bones at once, of shapes when they are applied."""
        told: dict[str, Any] = {}
        turned = False
        for message in messages:
            match message.address.lower(), message.values:
                case "/vmc/ext/blend/val", (str(name), int() | float() as value):
                    if len(self._shapes) < _MOST_SHAPES or name in self._shapes:
                        self._shapes[name] = value
                case "/vmc/ext/blend/apply", _:
                    self.counts["applied"] += 1
                    told |= self._applied()
                case "/vmc/ext/bone/pos", (str(name), *place) if len(place) == 7:
                    turned = self._turn(name.lower(), place) or turned
                case "/vmc/ext/ok", (int(loaded), *_):
                    self.available = bool(loaded)
                case "/vmc/ext/t", (int() | float() as t, *_):
                    self.time = float(t)
                case "/vmc/ext/blend/val" | "/vmc/ext/bone/pos", _:
                    self.counts["malformed"] += 1
                case _:
                    self.counts["others"] += 1
        return told | (self._posed() if turned else {})

    def _applied(self) -> dict[str, Any]:
        """Of several names for one control, the one that moves it furthest."""
        told: dict[str, Any] = {}
        for name, value in self._shapes.items():
            for control, factor in SHAPES.get(name.lower(), {name: 1.0}).items():
                if control not in told or abs(factor * value) > abs(told[control]):
                    told[control] = factor * value
        self._shapes = {}
        return told

    def _turn(self, name: str, place: list[Any]) -> bool:
        if name not in ("head", "neck", "lefteye", "righteye"):
            return False
        if not all(isinstance(v, (int, float)) for v in place) or angles(tuple(place[3:])) is None:
            self.counts["malformed"] += 1
            return False
        self.counts["bones"] += 1
        self._bones[name] = tuple(place[3:])
        return True

    def _posed(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if "head" in self._bones or "neck" in self._bones:
            still = (0.0, 0.0, 0.0, 1.0)
            turn = _times(self._bones.get("neck", still), self._bones.get("head", still))
            told.update(zip(("headYaw", "headPitch", "headRoll"), angles(turn) or (0.0, 0.0, 0.0), strict=True))
        if eyes := [a for name in ("lefteye", "righteye") if name in self._bones and (a := angles(self._bones[name]))]:
            told["gazeX"] = sum(yaw for yaw, _, _ in eyes) / len(eyes) / _GAZE
            told["gazeY"] = sum(pitch for _, pitch, _ in eyes) / len(eyes) / _GAZE
        return told
