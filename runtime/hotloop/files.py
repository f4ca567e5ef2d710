"""Files: what they hold, what they hash to, and where hotloop keeps what it can make again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import BundleError

__all__ = ["cache_folder", "read_json", "sha256"]


def cache_folder() -> Path:
    """`$HOTLOOP_CACHE`, else the user's cache folder. Not made here: a read-only machine is no error."""
    import platformdirs

    given = os.environ.get("HOTLOOP_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("hotloop", appauthor=False))


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, place: str, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file; {} for a file that is not there, where it is optional.

    Raises BundleError at `place`, naming the file: it cannot be read, is not JSON, or holds no object.
    """
    name = f"{path.parent.name}/{path.name}"
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(place, f"{name} must be readable ({error.strerror})", str(path)) from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise BundleError(place, f"{name} must be readable JSON ({reason})", str(path)) from error
    if not isinstance(value, dict):
        raise BundleError(place, f"{name} must hold a JSON object", type(value).__name__)
    return value
