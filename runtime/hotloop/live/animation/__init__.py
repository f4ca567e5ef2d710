"""Animate: a keyframe moved by controls, frame by frame, without a diffusion step. Names are loaded when used.

`AnimationSession` is one viewer's; `Rig` (geometry) and `AnimatorNetworks` are ways of moving a `Keyframe`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "AnimationSession": "session", "AnimatorNetworks": "networks", "Drawing": "performer", "fit": "fitting",
    "Geometry": "geometry", "Keyframe": "keyframe",
    "POINTS": "geometry", "Performance": "performer", "Performer": "performer", "Rig": "rig",
    "builtin_keyframe": "keyframe", "keyframe_from": "opening", "open_avatar": "opening",
    "replay_animation": "replaying",
}  # fmt: skip

__all__ = [
    "POINTS", "AnimationSession", "AnimatorNetworks", "Drawing", "Geometry", "Keyframe", "Performance", "Performer",
    "Rig", "builtin_keyframe", "fit", "keyframe_from", "open_avatar", "replay_animation",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
