"""The compiled operators, if this install has them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["build_info", "compiled", "ops"]

ops: Any
try:
    ops = import_module("hotloop_kernels._ops")
except ImportError as error:  # built without a compiler, or for another Python
    ops = None
    _why = str(error)


def compiled() -> bool:
    """True when the operators run compiled code, False when they run the NumPy references."""
    return ops is not None


def build_info() -> dict[str, str | bool]:
    """What runs here: `compiled`, and either `compiler` and `isa` (the instruction set chosen at load) or `reason`."""
    if ops is None:
        return {"compiled": False, "reason": _why}
    return {"compiled": True, "compiler": ops.compiler, "isa": ops.isa}
