"""Live: from a signal or a camera to a frame, in a bounded time. No HTTP here; names are loaded when used.

`Session` is one viewer's, `Stage` runs all sessions' rows; the `Bus` gives them their controls.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Bus": "bus", "Control": "controls", "CONTROLS": "controls", "Face": "controls", "Idle": "idle",
    "Controls": "session", "Frame": "session", "Session": "session", "Stage": "stage", "Recording": "recording",
    "AnimationSession": "animation.session", "Keyframe": "animation.keyframe", "Rig": "animation.rig",
    "builtin_keyframe": "animation.keyframe", "choose_depth": "depth", "interpolate": "interpolation",
    "open_avatar": "animation.opening", "open_session": "opening", "replay": "playback",
}  # fmt: skip

__all__ = [
    "CONTROLS", "AnimationSession", "Bus", "Control", "Controls", "Face", "Frame", "Idle", "Keyframe", "Recording",
    "Rig", "Session", "Stage", "builtin_keyframe", "choose_depth",
    "interpolate", "open_avatar",
    "open_session", "replay",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
