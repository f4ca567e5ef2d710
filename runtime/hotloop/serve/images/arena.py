"""Pictures between the listening process and a worker, in memory that both have mapped.

A slot belongs to one request from when it is handed over until it is answered: first the files that came with it, then
the pixels that were drawn. Nothing is overwritten and nothing waited for; a slot that is given back holds no memory.
"""

from __future__ import annotations

import contextlib
import mmap

from ...spec import ENLARGED

__all__ = ["Arena", "slot_bytes"]

_PAGE = mmap.ALLOCATIONGRANULARITY


def slot_bytes(body: int, images: int, side: int) -> int:
    """Room for the files of a request's body, and for RGBA pixels of so many pictures, which an upscaler may have made
    larger. Memory that nothing was written to costs nothing."""
    most = max(body, 4 * images * (ENLARGED * side) ** 2)
    return -(-most // _PAGE) * _PAGE


class Arena:
    """slots of so many bytes each, over a descriptor of `slots * size` bytes."""

    def __init__(self, fd: int, slots: int, size: int) -> None:
        self.slots, self.size = slots, size
        self._map = mmap.mmap(fd, slots * size)

    def write(self, slot: int, offset: int, data: bytes | memoryview) -> int:
        """-> where the next may begin. Raises ValueError where the slot has no room for it."""
        if offset + len(data) > self.size:
            raise ValueError(f"{len(data)} bytes at {offset} of a slot of {self.size}")
        at = slot * self.size + offset
        self._map[at : at + len(data)] = data
        return offset + len(data)

    def read(self, slot: int, offset: int, size: int) -> bytes:
        if not 0 <= offset <= offset + size <= self.size:
            raise ValueError(f"{size} bytes at {offset} of a slot of {self.size}")
        at = slot * self.size + offset
        return self._map[at : at + size]

    def free(self, slot: int, used: int) -> None:
        """Its memory goes back to the system, where the system takes it; used: bytes that were written at most."""
        if used and hasattr(mmap, "MADV_REMOVE"):
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, slot * self.size, min(-(-used // _PAGE) * _PAGE, self.size))
