"""Whether a frame would be the one before: equal arguments make equal frames, so nothing is drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Still"]

_SEEN = 0.04  # of a scaled control's range: a change that must show in the picture


class Still:
    """The last frame and what it was made of."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._pixels: np.ndarray | None = None
        self._vector: np.ndarray | None = None

    def same(self, key: tuple[Any, ...]) -> np.ndarray | None:
        """The last frame, if it was made of this."""
        return self._pixels if key == self._key else None

    def moved(self, vector: np.ndarray) -> bool:
        """Whether controls are so far from those of the last frame that a frozen picture would be a fault."""
        before = self._vector
        return before is not None and bool(np.abs(vector - before).max() > _SEEN)

    def keep(self, key: tuple[Any, ...], pixels: np.ndarray, vector: np.ndarray) -> None:
        self._key, self._pixels, self._vector = key, pixels, vector
