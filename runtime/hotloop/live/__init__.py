"""Live: from a signal or a camera to a frame, in a bounded time. No HTTP here; names are loaded when used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"Bus": "bus", "Control": "controls", "CONTROLS": "controls", "Face": "controls", "Idle": "idle"}

__all__ = ["CONTROLS", "Bus", "Control", "Face", "Idle"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
