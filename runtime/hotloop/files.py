"""Where hotloop keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """`$HOTLOOP_CACHE`, else the user's cache folder. Not made here: a read-only machine is no error."""
    import platformdirs

    given = os.environ.get("HOTLOOP_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("hotloop", appauthor=False))
