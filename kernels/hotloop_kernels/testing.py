"""For the tests: run an operator by its compiled code and by its reference in turn."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import backend

__all__ = ["BACKENDS", "can_compile", "use"]

BACKENDS = ("reference", "compiled") if backend.ops is not None else ("reference",)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run the operators by `reference` or `compiled` inside the block."""
    loaded = backend.ops
    if name == "compiled" and loaded is None:
        raise RuntimeError("[kernels] the compiled operators are not installed")
    backend.ops = loaded if name == "compiled" else None
    try:
        yield
    finally:
        backend.ops = loaded


def can_compile() -> bool:
    """True when this machine has what the build of the compiled operators looks for: a C++ compiler and Python.h."""
    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
    return compiler and Path(sysconfig.get_path("include"), "Python.h").is_file()
