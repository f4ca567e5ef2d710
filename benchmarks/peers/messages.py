"""What client and worker say to each other: a JSON header and named arrays, each message preceded by its lengths.

    b"HLPM"  u32 header bytes  header  the arrays' bytes, one after another

The header is an object whose "arrays" lists (name, dtype, shape). Nothing is ever unpickled: a header is data, and an
array has one of the plain dtypes below.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Closed", "receive", "send"]

_MAGIC = b"HLPM"
_LENGTHS = struct.Struct("<4sI")
_DTYPES = {name: np.dtype(name) for name in ("uint8", "float32", "float64", "int64")}
_LONGEST = 2**33  # bytes of one array


class Closed(ConnectionError):
    """The other side is gone."""


def send(connection: socket.socket, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Raises Closed when nobody reads, TypeError for a dtype that does not travel."""
    named = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    for name, array in named.items():
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"[messages] {name} must be one of {', '.join(_DTYPES)}, got {array.dtype}")
    listed = [(name, array.dtype.name, array.shape) for name, array in named.items()]
    text = json.dumps({**header, "arrays": listed}).encode()
    try:
        connection.sendall(_LENGTHS.pack(_MAGIC, len(text)) + text)
        for array in named.values():
            connection.sendall(array.reshape(-1).view(np.uint8).data)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed("the other side is gone") from error


def receive(connection: socket.socket) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(header without "arrays", arrays). Raises Closed at the end of the stream, ValueError for what is no message."""
    magic, length = _LENGTHS.unpack(_read(connection, _LENGTHS.size))
    if magic != _MAGIC:
        raise ValueError(f"[messages] a message must begin with {_MAGIC!r}, got {magic!r}")
    header = json.loads(bytes(_read(connection, length)))
    arrays = {}
    for name, kind, shape in header.pop("arrays"):
        size = math.prod(shape) * _DTYPES[kind].itemsize
        if not 0 <= size <= _LONGEST:
            raise ValueError(f"[messages] {name} must be at most {_LONGEST} bytes, got shape {shape}")
        arrays[name] = np.frombuffer(_read(connection, size), _DTYPES[kind]).reshape(shape)
    return header, arrays


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        try:
            count = connection.recv_into(view)
        except ConnectionResetError as error:
            raise Closed("the other side is gone") from error
        if not count:
            raise Closed("the other side is gone")
        view = view[count:]
    return data
