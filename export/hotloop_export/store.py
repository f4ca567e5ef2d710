"""The exporter's cache: finished bundles under the hash of everything that went into them.

    bundles/<key>/     complete bundles; what the user gets are copies, which share their blocks where the file system
                       can (not hard links: onnx refuses weights that have two names)
    stamps/<path>.json inode, size and times of a bundle's files when they were last known to be whole
    graphs/<key>.onnx  graphs, which depend on architecture and layout only: another LoRA needs no new tracing
    work/<key>.*/      a bundle being made; never looked at by anyone else, removed by the next export of that key
    locks/<key>.lock   held while a key is made, so that parallel exporters of one thing do the work once

A bundle appears under its key, and at the user's place, by one rename: killing the exporter at any moment leaves no
partial bundle to be seen.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hotloop.bundle import sha256
from hotloop.cache import cache_folder
from hotloop.errors import BundleError, HotloopError, InputError

__all__ = ["LIMIT", "Store", "check_place", "code_version", "full_disk_is_one_line", "key_of", "put", "swap"]

# Finished bundles beyond this many bytes go, the least recently used first.
LIMIT = 40 * 2**30
_MANIFEST = "manifest.json"


def code_version(*parts: str) -> str:
    """Of the code that decides what an export writes: two checkouts of one version number may differ.

    parts: modules and packages, such as "hotloop.nets"; both packages whole by default.
    """
    digest = hashlib.sha256()
    for name in parts or ("hotloop", "hotloop_export"):
        place = Path(str(import_module(name).__file__))
        files = sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place]
        for file in files:
            digest.update(f"{name}/{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def key_of(parts: Mapping[str, Any]) -> str:
    """The content address of an export: SHA-256 over all that decides its bytes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Store:
    """The cache under one folder: `$HOTLOOP_CACHE`, else the user's cache folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_folder()) / "exports"

    def find(self, key: str, *, rehash: bool = False) -> Path | None:
        """The finished bundle of a key, or None. One with an altered or missing file is removed, to be made anew."""
        path = self.root / "bundles" / key
        if self.holds(path, key, rehash=rehash):
            os.utime(path)
            return path
        if path.exists():
            shutil.rmtree(path)
        return None

    def holds(self, path: Path, key: str, *, rehash: bool = False) -> bool:
        """Whether the bundle of a key is at `path`, whole.

        Files that changed since they were known to be whole are hashed again, with `rehash` all are.
        """
        try:
            manifest = json.loads((path / _MANIFEST).read_text("utf-8"))
            files = manifest["files"]
            stamps = {} if rehash else _read(self._stamp(path))
            whole = manifest["key"] == key and all(
                stamps.get(name) == _identity(path / name) or sha256(path / name) == digest
                for name, digest in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if whole:
            self.stamp(path)
        return whole

    def stamp(self, path: Path) -> None:
        """Remember that the bundle at `path` is whole."""
        stamps = {file.relative_to(path).as_posix(): _identity(file) for file in path.rglob("*") if file.is_file()}
        place = self._stamp(path)
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(stamps), "utf-8")

    def _stamp(self, path: Path) -> Path:
        return self.root / "stamps" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()}.json"

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

    def graph(self, key: str, out: Path, make: Callable[[Path], None]) -> bool:
        """Put the graph of a key at `out`: from the cache, else `make(out)` writes it. True when the cache had it."""
        found = self.root / "graphs" / f"{key}.onnx"
        try:
            raw = found.read_bytes()
            if hashlib.sha256(raw[32:]).digest() == raw[:32]:
                out.write_bytes(raw[32:])
                return True
        except FileNotFoundError:
            pass
        make(out)
        raw = out.read_bytes()
        found.parent.mkdir(parents=True, exist_ok=True)
        work = found.with_name(f".{key}.{os.getpid()}")
        work.write_bytes(hashlib.sha256(raw).digest() + raw)
        work.replace(found)
        return False

    def keep(self, work: Path, key: str) -> Path:
        """Make the folder the bundle of its key, and drop the least recently used beyond LIMIT."""
        path = self.root / "bundles" / key
        work.rename(path)
        self.stamp(path)
        kept = 0
        bundles = sorted((self.root / "bundles").iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for bundle in bundles:
            kept += sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
            if kept > LIMIT and bundle != path:
                shutil.rmtree(bundle, ignore_errors=True)
                self._stamp(bundle).unlink(missing_ok=True)
        return path


def _identity(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


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
    """A copy of a finished bundle at `out`, by one rename.

    A bundle that was there goes only once the new one stands in its place.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        work.chmod(0o755)
        shutil.copytree(bundle, work, copy_function=_clone, dirs_exist_ok=True)
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


# ioctl FICLONE of linux/fs.h: the target shares the source's blocks until one of them is written.
_FICLONE = 0x40049409


def _clone(source: str, target: str) -> str:
    try:
        import fcntl

        with open(source, "rb") as old, open(target, "wb") as new:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        shutil.copystat(source, target)
    except (ImportError, OSError):
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
