"""Skipping what stands still: a source picture that is like the one last drawn is not drawn again."""

from __future__ import annotations

import numpy as np

__all__ = ["StandStill", "similarity"]


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """1 - the root mean square difference of two pictures of 8 bits over their range; 1: equal."""
    difference = a.astype(np.float32) - b.astype(np.float32)
    return 1 - float(np.sqrt(np.mean(difference * difference))) / 255


class StandStill:
    """Compares with the last picture that was drawn, not the last that came: slow changes add up until one is drawn.

    Deterministic, unlike StreamDiffusion's filter, which draws lots.
    """

    def __init__(self) -> None:
        self._drawn: np.ndarray | None = None
        self._in_a_row = 0

    def skips(self, picture: np.ndarray, threshold: float, most: int) -> bool:
        """Whether this picture needs no drawing: more like the last drawn one than the threshold (1: never), and not
        `most` in a row already. Otherwise it counts as drawn."""
        last = self._drawn
        if (
            last is not None and threshold < 1 and self._in_a_row < most and last.shape == picture.shape
            and similarity(last, picture) > threshold
        ):  # fmt: skip
            self._in_a_row += 1
            return True
        self._drawn, self._in_a_row = picture, 0
        return False

    def reset(self) -> None:
        """The next picture is drawn whatever it shows: settings have changed."""
        self._drawn, self._in_a_row = None, 0
