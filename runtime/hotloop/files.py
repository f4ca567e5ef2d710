"""Files: what they hold, what they hash to, and where hotloop keeps what it can make again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import BundleError

__all__ = ["MOST_TEXT", "cache_folder", "open_file", "read_file", "read_json", "sha256"]

# Bytes of a configuration, a vocabulary, a list of merges: CLIP's own is a megabyte, tokenizer.json four.
MOST_TEXT = 64 << 20


def cache_folder() -> Path:
    """`$HOTLOOP_CACHE`, else the user's cache folder. Not made here: a read-only machine is no error."""
    import platformdirs

    given = os.environ.get("HOTLOOP_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("hotloop", appauthor=False))


def open_file(path: str | os.PathLike[str], *, most: int | None = None) -> BufferedReader:
    """A file that comes from outside, opened to be read: a regular one of at most `most` bytes.

    Whatever may never end is not waited for: a pipe, a device, a socket, a link to one. Raises OSError, whose
    `strerror` says the rule, for those as for what is not there; ValueError for a name that no file can have.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(number)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it must be a regular file", str(path))
        if most is not None and found.st_size > most:
            raise OSError(errno.EFBIG, f"it must have at most {most:,} bytes, not {found.st_size:,}", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_file(path: str | os.PathLike[str], *, most: int | None = None) -> bytes:
    """The bytes of a file that `open_file` opens. Raises as it does."""
    with open_file(path, most=most) as file:
        return file.read() if most is None else file.read(most)  # it may have grown since


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises OSError."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, place: str, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file; {} for a file that is not there, where it is optional.

    Raises BundleError at `place`, naming the file: it cannot be read, is not JSON, or holds no object.
    """
    name = f"{path.parent.name}/{path.name}"
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(read_file(path, most=MOST_TEXT).decode("utf-8"))
    except OSError as error:
        raise BundleError(place, f"{name} must be readable ({error.strerror})", str(path)) from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise BundleError(place, f"{name} must be readable JSON ({reason})", str(path)) from error
    if not isinstance(value, dict):
        raise BundleError(place, f"{name} must hold a JSON object", type(value).__name__)
    return value
