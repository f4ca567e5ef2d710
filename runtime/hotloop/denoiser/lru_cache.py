"""A small LRU cache: what the networks split from a UNet gave, the least recently used dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

__all__ = ["LRUCache"]


class LRUCache:
    """What the networks split from a UNet gave for a prompt or a schedule, the last few of each. Safe across threads.

    It belongs to one set of weights.
    """

    def __init__(self, *, most: int = 8) -> None:
        self._most = most
        self._values: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The value of these bytes, read-only; made where it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()  # by two callers at once, at worst
        made.flags.writeable = False
        with self._lock:
            self._values[key] = made
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return made

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
