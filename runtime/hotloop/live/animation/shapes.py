"""Small functions of places that the rig's parts share, and how its fields are laid out."""

from __future__ import annotations

import numpy as np

__all__ = ["TABLE", "Field", "bump", "entry", "ramp", "rise", "spread"]

TABLE = 256  # entries of a curve that is looked up


def ramp(x: np.ndarray) -> np.ndarray:
    """x held in 0..1."""
    held: np.ndarray = np.minimum(np.maximum(x, np.float32(0)), np.float32(1))
    return held


def rise(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between them: x^2 (3 - 2 x)."""
    x = ramp(x)
    return x * x * (np.float32(3) - np.float32(2) * x)


def bump(x: np.ndarray) -> np.ndarray:
    """1 at 0, falling to 0 at 1 and -1, smooth: (1 - x^2)^2."""
    inside = np.maximum(np.float32(1) - x * x, np.float32(0))
    return inside * inside


def spread(curve: np.ndarray) -> np.ndarray:
    """A curve float32 [TABLE], finer."""
    return np.interp(np.linspace(0, 1, TABLE), np.linspace(0, 1, len(curve)), curve).astype(np.float32)


def entry(share: np.ndarray) -> np.ndarray:
    """The entry of a curve, int32, at shares 0..1 of its way."""
    return (ramp(share) * np.float32(TABLE - 1) + np.float32(0.5)).astype(np.int32)


class Field:
    """A field as `warp_blend` takes it: flows of every source, masks of all but the first, a colour if there is one.

    Sources of the rig, where irises and brows move by themselves: 0 the bare keyframe, 1 irises and brows, 2 the reveal
    texture, 3 that again, unmoved, for what lies before the eyes; else 0 the keyframe, 1 the reveal texture, 2 the
    keyframe again.
    """

    def __init__(self, sources: int, shape: tuple[int, ...], *, colour: bool) -> None:
        self.sources = sources
        self.array = np.zeros((3 * sources - 1 + 4 * colour, *shape), np.float32)

    def flow(self, source: int, flow: tuple[np.ndarray, np.ndarray]) -> None:
        self.array[2 * source], self.array[2 * source + 1] = flow

    def mask(self, source: int, mask: np.ndarray) -> None:
        self.array[2 * self.sources + source - 1] = mask

    def tint(self, colour: np.ndarray) -> None:
        self.array[-4:] = colour
