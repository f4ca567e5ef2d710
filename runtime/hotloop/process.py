"""What does not come through a fork: the threads of an engine's library, and with them every engine that was loaded.

A child that used one would wait for ever for threads that it does not have. It is told so in one line instead, and what
would wait in a destructor is kept alive in it.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Any

from .errors import InputError

__all__ = ["Origin", "after_fork", "keep_in_children"]

_RULE = "an engine runs in the process that loaded it (a fork leaves its threads behind): load after the fork, or spawn"
_AGAIN = "{} ran before this process was forked and cannot start again in it: load after the fork only, or spawn"


class Origin:
    """The process that something was made in."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    @property
    def here(self) -> bool:
        return self.pid == os.getpid()

    def check(self, place: str, *, library: str | None = None) -> None:
        """Raises InputError in a forked child; library: one that is then of no more use to this process at all."""
        if not self.here:
            rule = _AGAIN.format(library) if library else _RULE
            raise InputError(place, rule, f"loaded in process {self.pid}, used in {os.getpid()}")


def after_fork(act: Callable[[], object]) -> None:
    """Call this in every child that a fork makes."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)


_kept: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_in_children(owner: Any) -> None:
    """Never destroy this in a forked child: its destructor would wait for threads that are not there, at the latest at
    exit."""
    _kept.add(owner)


@after_fork
def _keep() -> None:
    for owner in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
