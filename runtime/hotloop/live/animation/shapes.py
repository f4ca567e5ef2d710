"""Small functions of places that the rig's parts share, and how its fields are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hotloop_kernels.formula import ramp

__all__ = ["TABLE", "Field", "entry", "spread"]

TABLE = 256  # entries of a curve that is looked up


def spread(curve: np.ndarray) -> np.ndarray:
    """A curve float32 [TABLE], finer."""
    return np.interp(np.linspace(0, 1, TABLE), np.linspace(0, 1, len(curve)), curve).astype(np.float32)


def entry(share: Any) -> Any:
    """The entry of a curve, a whole number, at shares 0..1 of its way."""
    return np.floor(ramp(share) * np.float32(TABLE - 1) + np.float32(0.5))


class Field:
    """A field as `warp_blend` takes it: flows of every source, masks of all but the first, a colour if there is one.

    Sources of the rig, where irises and brows move by themselves: 0 the bare keyframe, 1 irises and brows, 2 the reveal
    texture, 3 that again, unmoved, for what lies before the eyes; else 0 the keyframe, 1 the reveal texture, 2 the
    keyframe again.
    """

    def __init__(self, sources: int, *, colour: bool) -> None:
        self.sources = sources
        self.channels: list[Any] = [np.float32(0)] * (3 * sources - 1 + 4 * colour)

    def flow(self, source: int, flow: tuple[Any, Any]) -> None:
        self.channels[2 * source : 2 * source + 2] = flow

    def mask(self, source: int, mask: Any) -> None:
        self.channels[2 * self.sources + source - 1] = mask

    def tint(self, colour: Sequence[Any]) -> None:
        self.channels[-4:] = colour
