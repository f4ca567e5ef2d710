"""The exporter's cache: finished bundles under the hash of everything that went into them.

    bundles/<key>/     complete bundles; what the user gets are hard links to their files, or copies
    stamps/<key>.json  inode, size and time of their files when they were hashed
    work/<key>.*/      a bundle being made; never looked at by anyone else, removed by the next export of that key
    locks/<key>.lock   held while a key is made, so that parallel exporters of one thing do the work once

A bundle appears under its key, and at the user's place, by one rename: killing the exporter at any moment leaves no
partial bundle to be seen.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hotloop.bundle import sha256
from hotloop.cache import cache_folder
from hotloop.errors import BundleError, HotloopError, InputError

__all__ = ["LIMIT", "Store", "check_place", "full_disk_is_one_line", "key_of", "put", "swap"]

# Finished bundles beyond this many bytes go, the least recently used first.
LIMIT = 40 * 2**30
_MANIFEST = "manifest.json"


def key_of(parts: Mapping[str, Any]) -> str:
    """The content address of an export: SHA-256 over all that decides its bytes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Store:
    """The cache under one folder: `$HOTLOOP_CACHE`, else the user's cache folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_folder()) / "exports"

    def find(self, key: str, *, rehash: bool = False) -> Path | None:
        """The finished bundle of a key; None when there is none.

        Files that changed since they were sealed are hashed again, with `rehash` all are. A bundle with an altered or
        missing file is removed: it will be made again.
        """
        path = self.root / "bundles" / key
        if not path.exists():
            return None
        try:
            files = json.loads((path / _MANIFEST).read_text("utf-8"))["files"]
            stamps = {} if rehash else _read(self._stamp(key))
            whole = all(
                stamps.get(name) == _identity(path / name) or sha256(path / name) == digest
                for name, digest in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            self._stamp(key).write_text(json.dumps({name: _identity(path / name) for name in files}), "utf-8")
            os.utime(path)
            return path
        shutil.rmtree(path)
        return None

    def _stamp(self, key: str) -> Path:
        return self.root / "stamps" / f"{key}.json"

    @contextmanager
    def making(self, key: str, *, waiting: Callable[[], None]) -> Iterator[Path]:
        """A new folder to fill, while no other process makes the same key; it is removed unless `keep` was called.

        waiting: called once when another process is at it already.
        """
        for name in ("bundles", "stamps", "work", "locks"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            for stale in (self.root / "work").glob(f"{key}.*"):  # of an exporter that was killed
                shutil.rmtree(stale, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.root / "work"))
            work.chmod(0o755)
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
        finally:
            lock.release()

    def keep(self, work: Path, key: str) -> Path:
        """Make the folder the bundle of its key, and drop the least recently used beyond LIMIT."""
        path = self.root / "bundles" / key
        work.rename(path)
        stamps = {file.relative_to(path).as_posix(): _identity(file) for file in path.rglob("*") if file.is_file()}
        self._stamp(key).write_text(json.dumps(stamps), "utf-8")
        kept = 0
        bundles = sorted((self.root / "bundles").iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for bundle in bundles:
            kept += sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
            if kept > LIMIT and bundle != path:
                shutil.rmtree(bundle, ignore_errors=True)
                self._stamp(bundle.name).unlink(missing_ok=True)
        return path


def _identity(file: Path) -> list[int]:
    """Without the inode's own time, which every hard link changes."""
    stat = file.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _read(stamp: Path) -> dict[str, Any]:
    try:
        value = json.loads(stamp.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_place(out: Path) -> None:
    """Raises InputError when `out` is something that an export must not replace."""
    if out.exists() and not ((out / _MANIFEST).is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise InputError("export.out", "must be a bundle to replace, an empty folder or a new name", str(out))


def put(bundle: Path, out: Path) -> None:
    """Hard links (copies on another file system) of a finished bundle at `out`, by one rename.

    A bundle that was there goes only once the new one stands in its place.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        work.chmod(0o755)
        shutil.copytree(bundle, work, copy_function=_link, dirs_exist_ok=True)
        swap(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def swap(work: Path, out: Path) -> None:
    """Rename `work` to `out`; what was there goes afterwards."""
    if not out.exists():
        work.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)
    try:
        work.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


@contextmanager
def full_disk_is_one_line(place: Path) -> Iterator[None]:
    """A full disk or a place that cannot be written becomes a BundleError of one line."""
    try:
        yield
    except HotloopError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
        rule = f"{error.strerror} at {error.filename or place}; nothing was left behind"
        raise BundleError("export", rule, f"{free / 2**30:.1f} GB free") from error
