"""Lets background work begin only where the next frame leaves room for it: between two of its engine calls."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

__all__ = ["Gate", "step_back"]

_MOST = 0.25  # seconds that one step waits: frames that come thick must not starve it for ever
_NICENESS = 10
_local = threading.local()


class Gate:
    """Frames close it while they are made, and open it until shortly before the next. Work in the background asks
    before each engine call; one call at most then reaches into a frame's time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free = threading.Event()
        self._free.set()
        self._until = float("inf")
        self.waited = 0.0

    def close(self) -> None:
        self._free.clear()

    def open(self, until: float) -> None:
        """until: by the clock, when the next frame is due."""
        self._until = until
        self._free.set()

    def wait(self) -> None:
        """Until it is open, so long at most that the work goes on in the end."""
        began = now = time.monotonic()
        while now - began < _MOST and not (self._free.is_set() and self._clock() < self._until):
            self._free.wait(0.002)
            if self._free.is_set():
                time.sleep(0.0005)
            now = time.monotonic()
        self.waited += now - began


def step_back() -> None:
    """The calling thread yields to others from now on, where the system knows niceness of threads."""
    if getattr(_local, "done", False):
        return
    _local.done = True
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
