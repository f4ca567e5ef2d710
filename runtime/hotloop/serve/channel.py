"""Messages between the listening process and its worker: JSON, and bytes that follow it. Never a pickle.

u32 bytes of the JSON, u32 bytes that follow, little endian; the JSON; the bytes
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import Any

__all__ = ["Channel", "pack", "receive", "resident"]

_HEAD = struct.Struct("<II")
_MOST_JSON, _MOST_BODY = 4 << 20, 64 << 20

Told = dict[str, Any]


def pack(told: Told, body: bytes = b"") -> bytes:
    text = json.dumps(told, separators=(",", ":")).encode()
    return b"".join((_HEAD.pack(len(text), len(body)), text, body))


def _sizes(head: bytes) -> tuple[int, int]:
    text, body = _HEAD.unpack(head)
    if text > _MOST_JSON or body > _MOST_BODY:
        raise EOFError(f"a message of {text} + {body} bytes")
    return text, body


async def receive(reader: asyncio.StreamReader) -> tuple[Told, bytes]:
    """The next message. Raises EOFError where the other side is gone."""
    text, body = _sizes(await reader.readexactly(_HEAD.size))
    return json.loads(await reader.readexactly(text)), await reader.readexactly(body)


class Channel:
    """The worker's end: one thread receives, any thread sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._file, self._lock = sock, sock.makefile("rb"), threading.Lock()

    def receive(self) -> tuple[Told, bytes]:
        """Raises EOFError where the other side is gone."""
        text, body = _sizes(self._read(_HEAD.size))
        return json.loads(self._read(text)), self._read(body)

    def send(self, told: Told, body: bytes = b"") -> None:
        """What must arrive. Where the other side is gone, its end of the channel tells the receiving thread."""
        try:
            with self._lock:
                self._sock.sendall(pack(told, body))
        except OSError:
            pass

    def offer(self, told: Told) -> bool:
        """What may be lost -> whether it was sent: not while the other side does not read."""
        if not select.select([], [self._sock], [], 0)[1]:
            return False
        self.send(told)
        return True

    def _read(self, size: int) -> bytes:
        data = self._file.read(size) if size else b""
        if len(data) != size:
            raise EOFError("the other side is gone")
        return data


def resident() -> int:
    """Bytes of memory in use; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
