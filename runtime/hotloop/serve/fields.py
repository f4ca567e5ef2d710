"""Frames that whoever watches draws: the pictures of a scene once, then for each frame the fields that move them.

    scene   u32 sources; of each u16 width, u16 height, u32 bytes; then the sources, premultiplied RGBA, LZ4 blocks
    fields  u16 layers, u16 channels, u16 bytes of a number (2: half floats), u16 0, u32 bytes unpacked, u32 number of
            the scene; of each layer f32 x0, y0, x1, y1 of its box, u16 grid's width, u16 grid's height; then all grids
            [channels, height, width], one LZ4 block

Little endian. What is done with them is `hotloop_kernels.warp_blend`'s arithmetic.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import lz4.block
import numpy as np

from ..errors import InputError
from ..live.animation.performer import Drawing

__all__ = ["Moved", "Scenes", "pack_fields", "pack_scene"]

_KEPT = 3  # scenes: the present one, and those that a slow viewer may still ask for
_WHOLE = (0.0, 0.0, 1.0, 1.0)


class Moved(NamedTuple):
    """A frame before it is drawn, and the number of its scene."""

    scene: int
    drawing: Drawing


class Scenes:
    """The sources that a session's frames were made of, numbered as they come."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[np.ndarray, ...]] = {}
        self._count = 0

    def number(self, sources: Sequence[np.ndarray]) -> int:
        """Of the scene with these very arrays, a new one where there is none."""
        for number, kept in self._kept.items():
            if len(kept) == len(sources) and all(a is b for a, b in zip(kept, sources, strict=True)):
                return number
        self._count += 1
        newest = {**self._kept, self._count: tuple(sources)}
        self._kept = dict(list(newest.items())[-_KEPT:])  # whole, for another thread asks for them
        return self._count

    def packed(self, number: int) -> bytes:
        """Raises InputError for a scene that is not there."""
        if (sources := self._kept.get(number)) is None:
            raise InputError("live", "there is no such scene", number)
        return pack_scene(sources)


def pack_scene(sources: Sequence[np.ndarray]) -> bytes:
    blocks = [lz4.block.compress(np.ascontiguousarray(one), store_size=False) for one in sources]
    table = [
        struct.pack("<HHI", one.shape[1], one.shape[0], len(block)) for one, block in zip(sources, blocks, strict=True)
    ]
    return b"".join((struct.pack("<I", len(sources)), *table, *blocks))


def pack_fields(moved: Moved) -> bytes:
    drawing = moved.drawing
    grids = [np.asarray(grid, np.float16) for grid in (drawing.whole, *drawing.parts)]
    raw = b"".join(grid.tobytes() for grid in grids)
    head = struct.pack("<HHHHII", len(grids), len(grids[0]), 2, 0, len(raw), moved.scene)
    table = [
        struct.pack("<4f2H", *box, grid.shape[2], grid.shape[1])
        for box, grid in zip((_WHOLE, *drawing.boxes), grids, strict=True)
    ]
    return b"".join((head, *table, lz4.block.compress(raw, store_size=False)))
