"""SHA-256 of large files, remembered: a checkpoint that has not changed is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from hotloop.errors import BundleError
from hotloop.files import MOST_TEXT, cache_folder, open_file, read_file

__all__ = ["file_sha256"]

_MEMO = "hashes.json"
_KEPT = 4096
# A file changed again within the clock's resolution keeps its times: one this young is not remembered.
_SETTLED_NS = 2_000_000_000


def file_sha256(path: str | Path, *, rehash: bool = False) -> str:
    """Of a file's bytes, in hexadecimal; remembered by path, inode, size and times unless `rehash`.

    The memory is `hashes.json` in the cache folder: losing, garbling or not being able to write it costs time only.
    Raises BundleError for a file that cannot be read or that changes while it is read.
    """
    path = Path(path).resolve()
    memo = _read()
    try:
        with open_file(path) as file:
            before = _identity(os.fstat(file.fileno()))
            known = memo.get(str(path))
            if not rehash and known is not None and known[:-1] == before:
                return str(known[-1])
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise BundleError("export", f"file must be readable: {error.strerror}", str(path)) from error
    if _identity(after) != before:
        raise BundleError("export", "file must not change while it is read", str(path))
    if time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > _SETTLED_NS:
        _write({**{key: value for key, value in memo.items() if key != str(path)}, str(path): [*before, digest]})
    return digest


def _identity(stat: os.stat_result) -> list[int]:
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read() -> dict[str, list[Any]]:
    try:
        memo = json.loads(read_file(cache_folder() / _MEMO, most=MOST_TEXT))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(memo, dict):
        return {}
    return {key: value for key, value in memo.items() if isinstance(value, list) and len(value) == 5}


def _write(memo: dict[str, list[Any]]) -> None:
    """Newest entries last; replaced in one piece, so that two processes at once lose an entry at worst."""
    folder = cache_folder()
    work = folder / f".{_MEMO}.{os.getpid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        work.write_text(json.dumps(dict(list(memo.items())[-_KEPT:])), "utf-8")
        work.replace(folder / _MEMO)
