"""Safetensors files, read and written without torch: memory-mapped, checked before a byte is used.

The format (huggingface/safetensors, README "Format"): eight bytes of header length, a JSON header name -> {dtype,
shape, data_offsets}, then the tensors' bytes without gaps. Nothing in it can run code; the other formats weights come
in can, so they are refused by their first bytes, whatever the file is called.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import BundleError
from ..files import open_file
from .keys import From

__all__ = ["Weights", "refuse_non_finite", "save"]

_HEADER_LIMIT = 100_000_000
_COUNT_LIMIT = 100_000
_RANK_LIMIT = 8
_NAME_LIMIT = 512
_ALIGNMENT = 64
_CHUNK = 1 << 20

# dtype in the header -> numpy's; BF16, which numpy lacks, is the upper half of a float32.
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items() if name != "BF16"}
# A value is NaN or infinite when all bits of its exponent are set.
_EXPONENT = {
    "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F80_0000), "F64": ("<u8", 0x7FF0 << 48),
}  # fmt: skip

_CONVERT = (
    "which can run code when it is opened: convert it where it came from, or with torch.load(file, weights_only=True) "
    "and safetensors.torch.save_file"
)
# First bytes -> what such a file is. Pickles of protocols 0 and 1 and tar files are told apart below.
_FOREIGN = {
    b"PK\x03\x04": f"a torch file (a zip of pickles), {_CONVERT}",
    b"PK\x05\x06": f"a zip file, {_CONVERT}",
    b"\x80\x02": f"a pickle, {_CONVERT}",
    b"\x80\x03": f"a pickle, {_CONVERT}",
    b"\x80\x04": f"a pickle, {_CONVERT}",
    b"\x80\x05": f"a pickle, {_CONVERT}",
    b"GGUF": "a GGUF file: export from the unquantised safetensors checkpoint",
    b"ggml": "a GGML file: export from the unquantised safetensors checkpoint",
    b"\x89HDF": "an HDF5 file: export from the safetensors checkpoint",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"<": "a web page or XML, not weights: download the file itself",
}


@dataclass(frozen=True)
class _Entry:
    """One tensor: `begin` and `end` are byte offsets in `path`, whose bytes `raw` maps."""

    path: Path
    raw: np.ndarray
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> np.ndarray:
        return self.raw[self.begin : self.end]

    def array(self) -> np.ndarray:
        values = self.bytes.view(_DTYPES[self.dtype])
        if self.dtype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        elif not values.flags.aligned:
            values = values.copy()
        values.flags.writeable = False
        return values.reshape(self.shape)


class Weights(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files by name, read when asked for. Make one with `Weights.open`.

    Arrays are read-only and memory-mapped, of the dtype stored; BF16 becomes float32, exactly.
    """

    def __init__(self, entries: Mapping[str, _Entry], *, path: Path, metadata: Mapping[str, str]) -> None:
        self._entries = dict(entries)
        self.path = path
        self.metadata = dict(metadata)

    @classmethod
    def open(cls, path: str | Path) -> Weights:
        """Map a file and check its whole header. Raises BundleError, one line, for one that breaks a rule."""
        path = Path(path)
        try:
            if not path.is_file():
                raise BundleError("weights", "no such file", str(path))
            size = path.stat().st_size
            with open_file(path) as file:
                head = file.read(512)
        except OSError as error:
            raise BundleError("weights", f"file must be readable: {error.strerror}", str(path)) from error
        length = int.from_bytes(head[:8], "little")
        # Eight bytes of length may look like any magic: what follows decides.
        if not (8 < length + 8 <= min(size, _HEADER_LIMIT + 8) and head[8:9] == b"{"):
            _refuse_foreign(path, head, size)
            if not 0 < length <= _HEADER_LIMIT:
                _refuse(path, f"its header must have 1 to {_HEADER_LIMIT:,} bytes, got {length}")
            if length + 8 > size:
                _refuse(path, f"it is truncated: header of {length} bytes in a file of {size}")
            _refuse(path, "its header must be a JSON object")
        raw = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        if raw.size != size:
            _refuse(path, "it changed while it was opened")
        metadata, header = _parse(path, raw[8 : 8 + length].tobytes())
        entries = {
            name: _entry(path, raw, name, described, start=8 + length)
            for name, described in header.items()
        }  # fmt: skip
        _check_layout(path, entries, start=8 + length, size=size)
        return cls(entries, path=path, metadata=metadata)

    @classmethod
    def join(cls, parts: Iterable[Weights]) -> Weights:
        """The tensors of all parts as one. Raises BundleError when two parts hold the same name."""
        parts = list(parts)
        if not parts:
            raise BundleError("weights", "a join needs at least one part")
        entries: dict[str, _Entry] = {}
        metadata: dict[str, str] = {}
        for part in parts:
            if twice := sorted(entries.keys() & part._entries.keys()):
                rule = (
                    f"a tensor may lie in one part only: {entries[twice[0]].path.name} and {part.path.name} both hold"
                )
                raise BundleError("weights", rule, twice[0])
            entries |= part._entries
            metadata |= part.metadata
        return cls(entries, path=parts[0].path, metadata=metadata)

    def view(self, table: Mapping[str, From]) -> Weights:
        """The same tensors under other names (see keys.py); nothing is copied. Raises BundleError for a tensor that
        is not there or cannot be divided as the table says.
        """
        entries = {}
        for name, source in table.items():
            if source.key not in self._entries:
                raise BundleError("weights", f"{self.path.name} lacks the tensor", source.key)
            entries[name] = _taken(self._entries[source.key], source)
        return Weights(entries, path=self.path, metadata=self.metadata)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._entries[name].array()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"Weights({str(self.path)!r}, {len(self)} tensors)"

    def dtype(self, name: str) -> str:
        """As the file names it: "F16", "BF16", "F32", ..."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def nbytes(self, name: str) -> int:
        """Bytes in the file."""
        return self._entries[name].end - self._entries[name].begin

    def span(self, name: str) -> tuple[int, int]:
        """Byte offsets (begin, end) in `file(name)`."""
        return self._entries[name].begin, self._entries[name].end

    def file(self, name: str) -> Path:
        """The file a tensor lies in."""
        return self._entries[name].path

    def bits(self, name: str) -> np.ndarray:
        """The stored bytes, uint8 [nbytes]."""
        return self._entries[name].bytes


def refuse_non_finite(weights: Weights) -> None:
    """Raises BundleError naming the first tensor that holds NaN or infinity. Reads every byte once, in chunks."""
    for name in weights:
        if weights.dtype(name) not in _EXPONENT:
            continue
        kind, mask = _EXPONENT[weights.dtype(name)]
        raw, step = weights.bits(name), _CHUNK * np.dtype(kind).itemsize
        for begin in range(0, raw.size, step):
            if np.any((raw[begin : begin + step].view(kind) & mask) == mask):
                rule = f"weights must be finite: NaN or infinity in {weights.file(name).name}"
                raise BundleError("weights", rule, name)


def save(
    tensors: Mapping[str, np.ndarray], path: str | Path, *, metadata: Mapping[str, str] | None = None,
    dtype: str | None = None,
) -> Path:  # fmt: skip
    """Write a safetensors file, one tensor in memory at a time; the same tensors give the same bytes.

    Widest dtypes first, then by name, so that every tensor is aligned to its own dtype; the header is padded to 64
    bytes. `dtype` ("F16", "F32") converts floating tensors on the way. The file appears whole or not at all. Raises
    BundleError for a dtype that cannot be stored, a value that is not finite in `dtype`, and a disk that is full.
    """
    path = Path(path)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    if len(tensors) > _COUNT_LIMIT:
        raise BundleError("weights.save", f"a file holds at most {_COUNT_LIMIT:,} tensors", len(tensors))
    kinds = {name: _stored_as(name, tensors[name], dtype) for name in tensors}
    names = sorted(kinds, key=lambda name: (-np.dtype(_DTYPES[kinds[name][0]]).itemsize, name))
    at = 0
    for name in names:
        kind, shape = kinds[name]
        end = at + math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with work.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name in names:
                file.write(_converted(name, tensors[name], kinds[name][0]).reshape(-1).view(np.uint8).data)
        work.replace(path)
    except OSError as error:
        raise BundleError("weights.save", f"file must be writable ({error.strerror})", str(path)) from error
    finally:
        work.unlink(missing_ok=True)
    return path


def _stored_as(name: str, value: np.ndarray, dtype: str | None) -> tuple[str, tuple[int, ...]]:
    if not _is_plain(name):
        raise BundleError("weights.save", "names must be plain text", name)
    if value.ndim > _RANK_LIMIT:
        raise BundleError("weights.save", f"{name} must have at most {_RANK_LIMIT} axes", value.ndim)
    kind = dtype if dtype and value.dtype.kind == "f" else _NAMES.get(value.dtype.newbyteorder("<"))
    if kind is None or kind not in _DTYPES or kind == "BF16":
        raise BundleError("weights.save", f"{name} must be of a dtype that can be stored", str(dtype or value.dtype))
    return kind, value.shape


def _converted(name: str, value: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(value, dtype=_DTYPES[kind])
    if out.dtype != value.dtype and out.dtype.kind == "f" and not np.isfinite(out).all():
        raise BundleError("weights.save", f"weights must be finite as {kind}", name)
    return out


def _refuse(path: Path, rule: str) -> NoReturn:
    raise BundleError("weights", f"{path.name} is not a readable safetensors file: {rule}")


def _refuse_foreign(path: Path, head: bytes, size: int) -> None:
    """Name what the file really is, if it shows."""
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            _refuse(path, f"it is {what}")
    if head[257:262] == b"ustar":
        _refuse(path, f"it is a tar file of pickles, {_CONVERT}")
    if head[:1] in b"(]}c" and size > 1:
        with open_file(path) as file:
            file.seek(-1, os.SEEK_END)
            if file.read() == b".":
                _refuse(path, f"it is a pickle, {_CONVERT}")


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """(metadata, header) of the JSON text."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"its header must be JSON ({error})")
    if not isinstance(header, dict):
        _refuse(path, "its header must be a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "its __metadata__ must map names to text")
    if len(header) > _COUNT_LIMIT:
        _refuse(path, f"it must hold at most {_COUNT_LIMIT:,} tensors, got {len(header)}")
    return metadata, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands in it twice")
    return table


def _is_plain(name: str) -> bool:
    """No NUL, control character or lone surrogate, no step up a folder, of sensible length."""
    return 0 < len(name) <= _NAME_LIMIT and name.isprintable() and ".." not in name and name != "__metadata__"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(path: Path, raw: np.ndarray, name: str, described: Any, *, start: int) -> _Entry:
    if not _is_plain(name):
        shown = ascii(name if len(name) <= 60 else name[:60] + "…")
        _refuse(path, f"tensor names must be plain text of at most {_NAME_LIMIT} characters without '..', got {shown}")
    if not isinstance(described, dict):
        _refuse(path, f"{name} must be described by an object")
    dtype, shape, offsets = (described.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        _refuse(path, f"{name} must be one of {', '.join(_DTYPES)}, got {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > _RANK_LIMIT or not all(map(_is_count, shape)):
        _refuse(path, f"{name} must have a shape of at most {_RANK_LIMIT} sizes, got {str(shape)[:60]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        _refuse(path, f"{name} must have two data_offsets, got {str(offsets)[:60]}")
    begin, end = offsets
    expected = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if end - begin != expected:
        _refuse(path, f"{name} must take {expected} bytes ({dtype} {shape}), got {end - begin}")
    return _Entry(path, raw, dtype, tuple(shape), start + begin, start + end)


def _check_layout(path: Path, entries: Mapping[str, _Entry], *, start: int, size: int) -> None:
    """The tensors cover the file's data once, without overlap, gap or rest, as the format demands."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.end > size:
            _refuse(path, f"it is truncated: {name} ends at byte {entry.end} of {size}")
        if entry.begin < at:
            _refuse(path, f"tensors must not overlap: {name} begins at byte {entry.begin}, the one before ends at {at}")
        if entry.begin > at:
            _refuse(path, f"tensors must leave no gap: {name} begins at byte {entry.begin}, expected at {at}")
        at = entry.end
    if at != size:
        _refuse(path, f"bytes must belong to tensors: the last one ends at byte {at} of {size}")


def _taken(entry: _Entry, source: From) -> _Entry:
    shape, begin, end = entry.shape, entry.begin, entry.end
    if source.of > 1:
        if not shape or shape[0] % source.of:
            raise BundleError("weights", f"{source.key} must have rows in {source.of} equal parts", shape)
        part = (end - begin) // source.of
        begin, end = begin + source.part * part, begin + (source.part + 1) * part
        shape = (shape[0] // source.of, *shape[1:])
    if source.matrix and len(shape) > 2:
        if set(shape[2:]) != {1}:
            raise BundleError("weights", f"{source.key} must be a matrix or a 1x1 convolution", shape)
        shape = shape[:2]
    return replace(entry, shape=shape, begin=begin, end=end)
