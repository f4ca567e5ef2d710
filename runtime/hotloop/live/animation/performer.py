"""What moves a keyframe: prepared once, then asked per frame for what `warp_blend` draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hotloop_kernels import warp_blend
from hotloop_kernels.warp_blend import reference

from .keyframe import Keyframe

__all__ = ["Drawing", "Performance", "Performer"]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A frame before it is drawn: `warp_blend`'s arguments.

    sources  premultiplied uint8 [h, w, 4]
    whole    float32 [C, gh, gw]: flows of each source, masks of each but the first, a colour if there is one
    parts    float32 [C, gh, gw] each, over boxes (x0, y0, x1, y1) in pictures, in place of the whole
    """

    sources: Sequence[np.ndarray]
    whole: np.ndarray
    parts: Sequence[np.ndarray] = ()
    boxes: Sequence[Sequence[float]] = ()

    def draw(self, side: int, out: np.ndarray | None = None) -> np.ndarray:
        """Premultiplied uint8 [side, side, 4]."""
        size = (side, side)
        drawn: np.ndarray = warp_blend(self.sources, self.whole, parts=self.parts, boxes=self.boxes, size=size, out=out)
        return drawn

    def redraw(self, side: int) -> np.ndarray:
        """The same by the operator's float32 reference: what a broken frame is made again with."""
        layers = [(self.whole, (0.0, 0.0, 1.0, 1.0)), *zip(self.parts, self.boxes, strict=True)]
        return reference(self.sources, layers, (side, side))


class Performance(Protocol):
    """One keyframe, ready to be moved. Nothing in it changes: frames depend on their arguments alone."""

    @property
    def keyframe(self) -> Keyframe: ...

    def frame(self, controls: np.ndarray, t: float) -> Drawing:
        """controls: float32, of the performer's `table`, each divided by its larger bound; t: seconds, of what no
        control says (sway). Raises NonFiniteError."""
        ...


class Performer(Protocol):
    """How keyframes are moved: by an animator's networks, or by geometry."""

    @property
    def table(self) -> Sequence[Sequence[object]]:
        """The controls it takes: name, low, high each, as `Face` takes them."""
        ...

    def prepare(self, keyframe: Keyframe) -> Performance:
        """Once for a keyframe; may take its time. Raises InputError for a keyframe that lacks what it needs."""
        ...
