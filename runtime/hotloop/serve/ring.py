"""Finished frames on their way from the worker to the listening process, in memory that both have mapped.

Slots are written in turn and never waited for: whoever reads a slot says which writing it means, and finds out, after
copying, whether that was what it copied. The memory has no name and is gone with its processes.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

__all__ = ["Ring", "frame_bytes", "memory"]

_HEAD = struct.Struct("<QQ")  # the number of the writing, odd while it goes on; bytes


def memory(size: int) -> int:
    """A file descriptor of `size` bytes of memory."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("hotloop-frames")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def frame_bytes(side: int) -> int:
    """What a slot needs for a frame of at most side x side pixels: RGBA that LZ4 could not make smaller."""
    return side * side * 4 + side * side // 200 + 4096


class Ring:
    """slots of so many bytes each over a descriptor of `slots * size` bytes: one process writes, one reads."""

    def __init__(self, fd: int, slots: int, size: int) -> None:
        self.slots, self.size = slots, size
        self._map = mmap.mmap(fd, slots * size)
        self._writing = 0

    def write(self, *parts: bytes | memoryview) -> tuple[int, int] | None:
        """-> the slot and the number of this writing; None where the parts together do not fit a slot."""
        total = sum(len(part) for part in parts)
        if total > self.size - _HEAD.size:
            return None
        slot = self._writing // 2 % self.slots
        self._writing += 2
        at = slot * self.size
        _HEAD.pack_into(self._map, at, self._writing - 1, total)
        end = at + _HEAD.size
        for part in parts:
            self._map[end : end + len(part)] = part
            end += len(part)
        _HEAD.pack_into(self._map, at, self._writing, total)
        return slot, self._writing

    def read(self, slot: int, writing: int) -> bytes | None:
        """What was written then; None where it has been overwritten since."""
        at = slot * self.size
        number, total = _HEAD.unpack_from(self._map, at)
        if number != writing:
            return None
        data = self._map[at + _HEAD.size : at + _HEAD.size + total]
        return data if _HEAD.unpack_from(self._map, at)[0] == writing else None

    def close(self) -> None:
        self._map.close()
