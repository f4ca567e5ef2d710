"""Named clips in control space, emotes on demand: a function of time in 0..1 to controls, in their own units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..errors import InputError

__all__ = ["CLIPS", "SECONDS", "at"]

SECONDS = 2.0
Clip = Callable[[float], Mapping[str, float]]


def _swell(t: float) -> float:
    """0 at both ends, 1 in the middle, smooth."""
    return math.sin(math.pi * min(max(t, 0.0), 1.0)) ** 2


def _wave(t: float, turns: float) -> float:
    return math.sin(2 * math.pi * turns * t) * _swell(t) ** 0.5


def _nod(t: float) -> dict[str, float]:
    return {"headPitch": -9 * _swell(2 * t % 1.0), "mouthSmile": 0.3 * _swell(t)}


def _shake(t: float) -> dict[str, float]:
    return {"headYaw": 14 * _wave(t, 2), "browInnerUp": 0.3 * _swell(t)}


def _laugh(t: float) -> dict[str, float]:
    up = _swell(t)
    return {"happy": up, "jawOpen": up * (0.45 + 0.35 * math.sin(2 * math.pi * 5 * t)), "headPitch": 5 * up,
            "eyeBlinkLeft": 0.8 * up, "eyeBlinkRight": 0.8 * up, "shiftY": 0.25 * _wave(t, 5)}  # fmt: skip


def _bow(t: float) -> dict[str, float]:
    down = _swell(t)
    return {"headPitch": -12 * down, "shiftY": 0.9 * down, "eyeBlinkLeft": down, "eyeBlinkRight": down}


def _wink(t: float) -> dict[str, float]:
    shut = _swell(2.5 * t - 0.7)
    return {"eyeBlinkLeft": shut, "mouthSmile": 0.8 * _swell(t), "headRoll": 6 * _swell(t)}


def _sigh(t: float) -> dict[str, float]:
    out = _swell(t)
    return {"breath": 1 - out, "mouthO": 0.35 * out, "browInnerUp": 0.6 * out, "headPitch": -5 * out,
            "eyeBlinkLeft": 0.45 * out, "eyeBlinkRight": 0.45 * out, "mouthFrown": 0.3 * out}  # fmt: skip


def _talk(t: float) -> dict[str, float]:
    vowel = "AIUEO"[int(t * 9) % 5]
    inside = _swell(t * 9 % 1.0)
    return {f"mouth{vowel}": 0.9 * inside, "jawOpen": 0.35 * inside, "headYaw": 3 * _wave(t, 1.5),
            "browOuterUpLeft": 0.25 * _wave(t, 1) ** 2, "browOuterUpRight": 0.25 * _wave(t, 1) ** 2}  # fmt: skip


CLIPS: dict[str, Clip] = {
    "nod": _nod, "shake": _shake, "laugh": _laugh, "bow": _bow, "wink": _wink, "sigh": _sigh, "talk": _talk,
}  # fmt: skip


def at(name: str, t: float) -> Mapping[str, float]:
    """The controls that a clip moves, at a time in 0..1. An unknown name raises InputError."""
    if name not in CLIPS:
        raise InputError("live", f"motion must be one of {', '.join(CLIPS)}", name)
    return CLIPS[name](t)
