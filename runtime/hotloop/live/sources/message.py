"""The JSON message of a browser or any client of the session's WebSocket.

    {"t": 1234.5, "controls": {"jawOpen": 0.4}, "expression": "happy", "prompt": "...", "settings": {"steps": 2}}

All are optional. `t` is milliseconds on the sender's clock; values of controls are checked by the bus, settings by the
session.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ..controls import expression

__all__ = ["LARGEST", "Message", "parse", "read"]

LARGEST = 65536  # characters
_MOST = 256  # controls, settings
_FIELDS = ("t", "controls", "expression", "prompt", "negative_prompt", "settings", "play")


@dataclass(frozen=True)
class Message:
    """t: milliseconds on the sender's clock, None where it gave none. settings: prompts among them. play: a motion."""

    t: float | None = None
    controls: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    play: str | None = None


def parse(text: str | bytes) -> Message:
    """One message. Anything else raises InputError with one line for the sender."""
    if len(text) > LARGEST:
        raise InputError("message", f"at most {LARGEST} characters", len(text))
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise InputError("message", "must be JSON in UTF-8", text[:40]) from None
    if not isinstance(told, dict):
        raise InputError("message", "must be an object", text[:40])
    return read(told)


def read(told: dict[str, Any]) -> Message:
    """A message that is no longer text. Raises InputError as `parse`."""
    if unknown := [name for name in told if name not in _FIELDS]:
        raise InputError("message", f"fields are {', '.join(_FIELDS)}", unknown[0])
    t = told.get("t")
    if t is not None and (isinstance(t, bool) or not isinstance(t, (int, float)) or not _finite(t)):
        raise InputError("message", "t must be a finite number of milliseconds", t)
    controls, settings = (_object(told, name) for name in ("controls", "settings"))
    for name in ("prompt", "negative_prompt", "expression", "play"):
        if name in told and not isinstance(told[name], str):
            raise InputError("message", f"{name} must be text", told[name])
    settings |= {name: told[name] for name in ("prompt", "negative_prompt") if name in told}
    if "expression" in told:
        controls = expression(told["expression"]) | controls
    return Message(None if t is None else float(t), controls, settings, told.get("play"))


def _finite(t: float) -> bool:
    try:
        return math.isfinite(float(t))
    except OverflowError:
        return False


def _object(told: dict[str, Any], name: str) -> dict[str, Any]:
    value = told.get(name, {})
    if not isinstance(value, dict) or len(value) > _MOST:
        raise InputError("message", f"{name} must be an object of at most {_MOST} names", value)
    return dict(value)
