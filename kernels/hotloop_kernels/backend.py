"""The compiled operators, if this install has them: what they run on, and where their CUDA code has been proved."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from .checks import KernelError
from .cores import quota, usable_cores

__all__ = ["build_info", "compiled", "ops", "proved", "set_threads", "threads"]

ops: Any
try:
    ops = import_module("hotloop_kernels._ops")
except ImportError as error:  # built without a compiler, or for another Python
    ops = None
    _why = str(error)

# Architecture -> operators whose tests passed on such a GPU: {"sm_90": ["layer_norm", ..]}. `make gpu-check` writes it.
# "attention_wgmma" is attention by its Hopper kernel, which is only chosen when it is listed.
proved: dict[str, list[str]] = json.loads(Path(__file__).with_name("proved.json").read_text())


def compiled() -> bool:
    """True when the operators run compiled code, False when they run the NumPy references."""
    return ops is not None


def build_info() -> dict[str, Any]:
    """What runs here: `compiled`, and either `reason`, or `compiler`, `isa`, `threads` and `cuda`.

    isa: the instruction set in use, scalar, avx2 or avx512; cuda: the architectures compiled for, such as sm_90a.
    """
    if ops is None:
        return {"compiled": False, "reason": _why}
    architectures = [f"sm_{name.split('-')[0]}" for name in ops.cuda_architectures.split()]
    return {
        "compiled": True, "compiler": ops.compiler, "isa": ops.isa(), "threads": ops.threads(), "cuda": architectures,
    }  # fmt: skip


def threads() -> int:
    """How many threads an operator may use."""
    return ops.threads() if ops is not None else 1


def set_threads(count: int) -> None:
    """Let an operator use this many threads; at first all usable cores, or HOTLOOP_THREADS."""
    if ops is not None:
        ops.set_threads(count)


def _configure(environment: dict[str, str]) -> None:
    """HOTLOOP_ISA (lower only) and HOTLOOP_THREADS; the compiled code itself knows the affinity and no quota."""
    if name := environment.get("HOTLOOP_ISA"):
        ops.set_isa(name)
    if count := environment.get("HOTLOOP_THREADS"):
        if not count.isascii() or not count.isdigit():
            raise KernelError("kernels", "HOTLOOP_THREADS must be a whole number from 1", count)
        ops.set_threads(int(count))
    elif quota() is not None:
        ops.set_threads(usable_cores())


if ops is not None:
    ops.set_proved(proved)
    if hasattr(ops, "attention_use_wgmma"):  # built with CUDA
        ops.attention_use_wgmma("attention_wgmma" in proved.get("sm_90", ()))
    _configure(dict(os.environ))
