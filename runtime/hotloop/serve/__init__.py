"""The server: one address, live sessions over WebSockets, and a worker process that holds the engines.

`create_app(config)` is the application, `run(config)` serves it until it is told to end. Needs the extra `[serve]`.
The process that listens never opens an engine; nothing here is kept in a module.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"Config": "config", "Limits": "limits", "create_app": "app", "run": "server"}

__all__ = ["Config", "Limits", "create_app", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
