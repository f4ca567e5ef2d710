"""An ONNX file's initializers: where they lie, and the same graph with some of them made inputs or retyped.

Only protobuf's wire format is read (protobuf.dev, "Encoding") and the fields below (onnx.proto); what is not touched
is carried over byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ..errors import BundleError
from ..files import read_file
from ..weights import Weights

__all__ = ["Initializer", "OnnxFile"]

_FLOAT, _FLOAT16 = 1, 10
_DTYPES: dict[int, np.dtype] = {_FLOAT: np.dtype("<f4"), _FLOAT16: np.dtype("<f2")}
# Field numbers of onnx.proto, by message.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 1, 2, 8, 9, 13
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_TYPE_DTYPE, _TENSOR_TYPE_SHAPE = 1, 2, 1, 1, 2
_SHAPE_DIM, _DIM_VALUE = 1, 1
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


@dataclass(frozen=True)
class Initializer:
    """A weight of the graph: its shape, what it is stored as (None: not a float), the file and the place in it.

    length: bytes that the graph claims of another file; None where it claims none.

    at: of the byte that states its dtype; begin, end: of its whole field in the graph.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    file: str
    offset: int
    length: int | None
    at: int
    begin: int
    end: int


class OnnxFile:
    """The bytes of one .onnx file. Raises BundleError for one that is no protobuf message."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = read_file(path)
        try:
            self._graph = next((at, *span) for field, at, *span in _fields(self._raw, 0, len(self._raw))
                               if field == _MODEL_GRAPH)  # fmt: skip
            self.initializers = dict(self._initializers())
        except (IndexError, KeyError, ValueError, StopIteration) as error:
            raise BundleError("onnx", f"{path.name} must hold an ONNX graph") from error

    def check_weights(self, root: Path) -> None:
        """What lies in other files is whole tensors of safetensors files below `root`, or inside a file of raw bytes
        there: an engine library reads what a graph names, whatever it is. Raises BundleError naming the weight."""
        spans: dict[str, set[tuple[int, int]] | None] = {}
        sizes: dict[str, int] = {}
        for name, found in self.initializers.items():
            if not found.file:
                continue
            if found.file not in spans:
                path = self.path.parent / found.file
                if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
                    raise BundleError("onnx", f"weights of {self.path.name} must lie in the bundle", found.file)
                weights = Weights.open(path) if path.suffix == ".safetensors" else None
                spans[found.file] = None if weights is None else {weights.span(key) for key in weights}
                sizes[found.file] = path.stat().st_size
            end, known = found.offset + (found.length or 0), spans[found.file]
            whole = found.length is not None and (known is None or (found.offset, end) in known)
            if not whole or not 0 <= found.offset <= end <= sizes[found.file]:
                rule = f"{self.path.name} must name whole tensors of {found.file}: bytes {found.offset} and on are not"
                raise BundleError("onnx", rule, name)

    def read(self, name: str) -> np.ndarray:
        """An initializer in float32."""
        found = self.initializers[name]
        assert found.dtype is not None
        source = self.path.parent / found.file if found.file else self.path
        stored = np.memmap(source, found.dtype, "r", found.offset, (prod(found.shape),))
        return np.asarray(stored, np.float32).reshape(found.shape)

    def edited(self, *, inputs: Collection[str] = (), widened: Collection[str] = ()) -> bytes:
        """The file with the initializers `inputs` as inputs and `widened` stated, both in float32.

        ONNX Runtime takes values for an initializer in another file only in the dtype that the graph states. Ours may
        state FLOAT16, followed by a Cast to FLOAT; stated as FLOAT, the Cast does nothing.
        """
        raw = bytearray(self._raw)
        for name in widened:
            raw[self.initializers[name].at] = _FLOAT
        field, begin, end = self._graph
        graph, at = bytearray(), begin
        for found in sorted((self.initializers[name] for name in inputs), key=lambda one: one.begin):
            graph += raw[at : found.begin]
            at = found.end
        graph += raw[at:end]
        for name in inputs:
            graph += _sized(_GRAPH_INPUT, _value(name, self.initializers[name].shape))
        return bytes(raw[:field]) + _sized(_MODEL_GRAPH, bytes(graph)) + bytes(raw[end:])

    def _initializers(self) -> Iterator[tuple[str, Initializer]]:
        raw = self._raw
        for field, at, begin, end in _fields(raw, *self._graph[1:]):
            if field != _GRAPH_INITIALIZER:
                continue
            shape: list[int] = []
            dtype: np.dtype | None = None
            name, place, where, offset = "", 0, "", 0
            length: int | None = None
            for inner, _, first, last in _fields(raw, begin, end):
                if inner == _TENSOR_DIMS:
                    shape += _varints(raw, first, last)
                elif inner == _TENSOR_DTYPE:
                    place, dtype = first, _DTYPES.get(raw[first])
                elif inner == _TENSOR_NAME:
                    name = raw[first:last].decode()
                elif inner == _TENSOR_RAW:
                    offset = first
                elif inner == _TENSOR_EXTERNAL:
                    entry = {f: raw[a:b].decode() for f, _, a, b in _fields(raw, first, last)}
                    if entry[_ENTRY_KEY] == "location":
                        where = entry[_ENTRY_VALUE]
                    elif entry[_ENTRY_KEY] == "offset":
                        offset = int(entry[_ENTRY_VALUE])
                    elif entry[_ENTRY_KEY] == "length":
                        length = int(entry[_ENTRY_VALUE])
            yield name, Initializer(tuple(shape), dtype, where, offset, length, place, at, end)


def _fields(raw: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, begin of the field, begin and end of its value) of everything in a message."""
    while at < end:
        start = at
        tag, at = _varint(raw, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            _, after = _varint(raw, at)
        elif wire == 2:
            size, at = _varint(raw, at)
            after = at + size
        else:
            after = at + {1: 8, 5: 4}[wire]
        yield field, start, at, after
        at = after


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varints(raw: bytes, at: int, end: int) -> list[int]:
    """The numbers of a packed field; of one that is not packed, its number."""
    found = []
    while at < end:
        value, at = _varint(raw, at)
        found.append(value)
    return found


def _coded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _coded(field << 3) + _coded(value)


def _sized(field: int, value: bytes) -> bytes:
    return _coded(field << 3 | 2) + _coded(len(value)) + value


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    """A ValueInfoProto: a float32 tensor of this name and shape."""
    dims = b"".join(_sized(_SHAPE_DIM, _number(_DIM_VALUE, size)) for size in shape)
    tensor = _number(_TENSOR_TYPE_DTYPE, _FLOAT) + _sized(_TENSOR_TYPE_SHAPE, dims)
    return _sized(_VALUE_NAME, name.encode()) + _sized(_VALUE_TYPE, _sized(_TYPE_TENSOR, tensor))
