"""A box with one slot: what comes last is what there is. Nothing ever queues in it."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """The newest wins. Any thread may put, any may take."""

    def __init__(self) -> None:
        self._held: list[T] = []
        self._lock = threading.Lock()
        self._came = threading.Event()

    def put(self, item: T) -> T | None:
        """Leave an item -> the one that it supersedes, if that had not been taken."""
        with self._lock:
            before = self._held.pop() if self._held else None
            self._held.append(item)
            self._came.set()
            return before

    def take(self) -> T | None:
        """The item, if there is one; the box is then empty."""
        with self._lock:
            self._came.clear()
            return self._held.pop() if self._held else None

    def wait(self, seconds: float | None) -> bool:
        """Until there is something to take, or `wake` is called, so many seconds at most -> whether it came to that."""
        return self._came.wait(seconds)

    def wake(self) -> None:
        """Let whoever waits look."""
        self._came.set()

    def __len__(self) -> int:
        return len(self._held)
