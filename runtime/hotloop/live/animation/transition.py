"""From one keyframe to the next without a double face: both are animated, brought to one place, and faded.

Eyes and mouth of both go to where they are on the way: an affine map each, from their three anchors to the anchors
between the two. So at every moment there is one pair of eyes and one mouth, which change their looks.
"""

from __future__ import annotations

import numpy as np

from hotloop_kernels import warp_blend

from .keyframe import Keyframe

__all__ = ["SECONDS", "crossed"]

SECONDS = 0.2
_NODES = 65


def crossed(
    before: np.ndarray, after: np.ndarray, mix: float, first: Keyframe, second: Keyframe, side: int
) -> np.ndarray:
    """Frames of two keyframes at the same controls, premultiplied uint8 [side, side, 4], a share `mix` of the way from
    one to the other."""
    whole = np.zeros((5, _NODES, _NODES), np.float32)
    whole[4] = mix
    if first.geometry is not None and second.geometry is not None:
        a, b = first.geometry.anchors, second.geometry.anchors
        between = a + mix * (b - a)
        whole[:2], whole[2:4] = (_flow(between, to, keyframe) for to, keyframe in ((a, first), (b, second)))
    crossed_: np.ndarray = warp_blend([before, after], whole, size=(side, side))
    return crossed_


def _flow(at: np.ndarray, to: np.ndarray, keyframe: Keyframe) -> np.ndarray:
    """[2, nodes, nodes]: the affine map that takes three points to three others, less where it started; held within
    the picture at borders with something on them."""
    steps = (np.arange(_NODES) + 0.5) / _NODES
    u, v = np.meshgrid(steps, steps)
    matrix = np.linalg.lstsq(np.column_stack([at, np.ones(3)]), to, rcond=None)[0]  # [3, 2]
    moved = np.stack([u * matrix[0, i] + v * matrix[1, i] + matrix[2, i] for i in (0, 1)])
    left, top, right, bottom = keyframe.solid
    for axis, (low, high) in enumerate(((left, right), (top, bottom))):
        moved[axis] = np.clip(moved[axis], steps[0] if low else -np.inf, steps[-1] if high else np.inf)
    flow: np.ndarray = (moved - np.stack([u, v])).astype(np.float32)
    return flow
