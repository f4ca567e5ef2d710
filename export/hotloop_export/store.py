"""The exporter's cache: finished bundles under the hash of everything that went into them.

    bundles/<key>/     complete bundles; what the user gets are copies, which share their blocks where the file system
                       can (not hard links: onnx refuses weights that have two names)
    stamps/<path>.json inode, size and times of a bundle's files when they were last known to be whole
    graphs/<key>.onnx  traced graphs, which depend on the architecture only: another LoRA, or weights stored in another
                       precision, need no new tracing
    work/<key>.*/      a bundle being made; never looked at by anyone else; of an exporter that was killed, removed by
                       the next one that makes something
    locks/<key>.lock   held while a key is made, so that parallel exporters of one thing do the work once

A bundle appears under its key, and at the user's place, by one rename: killing the exporter at any moment leaves no
partial bundle to be seen. What it was making beside the user's place is hidden and removed by the next export there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hotloop.errors import BundleError, HotloopError, InputError
from hotloop.files import MOST_TEXT, cache_folder, read_file, sha256

__all__ = ["LIMIT", "Store", "beside", "check_place", "code_version", "copy", "full_disk_is_one_line", "key_of",
           "put", "swap"]  # fmt: skip

# Finished bundles beyond this many bytes go, the least recently used first.
LIMIT = 40 * 2**30
_MANIFEST = "manifest.json"
_MAKING = ".making"  # how the names of folders end that `beside` makes


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
            manifest = json.loads(read_file(path / _MANIFEST, most=MOST_TEXT))
            files = manifest["files"]
            stamps = {} if rehash else _read(self._stamp(path))
            whole = manifest["key"] == key and all(
                stamps.get(name) == _identity(path / name) or sha256(path / name) == digest
                for name, digest in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
        try:
            for name in ("bundles", "stamps", "work", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            rule = f"cache must be a folder that can be written, set HOTLOOP_CACHE elsewhere ({error.strerror})"
            raise BundleError("export", rule, str(self.root)) from error
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            self._remove_stale(key)
            work = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.root / "work"))
            work.chmod(0o755)
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
        finally:
            lock.release()

    def _remove_stale(self, key: str) -> None:
        """Remove what exporters left that were killed; `key` is locked by the caller, the others are if they live."""
        for stale in (self.root / "work").iterdir():
            other = stale.name.partition(".")[0]
            lock = FileLock(self.root / "locks" / f"{other}.lock")
            with contextlib.suppress(Timeout), contextlib.nullcontext() if other == key else lock.acquire(timeout=0):
                shutil.rmtree(stale, ignore_errors=True)

    def graph(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The graph of a key: from the cache, else `make` gives it."""
        found = self.root / "graphs" / f"{key}.onnx"
        try:
            raw = read_file(found)
            if hashlib.sha256(raw[32:]).digest() == raw[:32]:
                return raw[32:]
        except FileNotFoundError:
            pass
        made = make()
        work = found.with_name(f".{key}.{os.getpid()}")
        try:
            found.parent.mkdir(parents=True, exist_ok=True)
            work.write_bytes(hashlib.sha256(made).digest() + made)
            work.replace(found)
        except OSError:  # not kept, then: the graph itself is made
            with contextlib.suppress(OSError):
                work.unlink()
        return made

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
        value = json.loads(read_file(stamp, most=MOST_TEXT))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def check_place(out: Path, *, inputs: Iterable[Path] = ()) -> None:
    """Raises InputError when `out` is something that an export must not replace, or cannot be written.

    inputs  files and folders that the export reads: none may lie in `out`, nor `out` in one that is a sealed bundle
    """
    for read in (path.resolve() for path in inputs):
        if read == out or out in read.parents or (read in out.parents and (read / _MANIFEST).is_file()):
            raise InputError("export.out", f"must be apart from what is exported, {read}", str(out))
    nearest = next((path for path in out.parents if path.exists()), out)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError("export.out", "must be a place that can be written", str(out))
    if out.exists() and not ((out / _MANIFEST).is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise InputError("export.out", "must be a bundle to replace, an empty folder or a new name", str(out))


def put(bundle: Path, out: Path) -> None:
    """A copy of a finished bundle at `out`, by one rename.

    A bundle that was there goes only once the new one stands in its place.
    """
    with beside(out) as work:
        copy(bundle, work)
        swap(work, out)


def copy(bundle: Path, out: Path) -> None:
    """The files of a bundle into a folder."""
    shutil.copytree(bundle, out, copy_function=_clone, dirs_exist_ok=True)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new hidden folder beside `out`, which is removed in the end, and with it those of processes that were killed:
    a living one holds a lock on its folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as holding:
        with _held(out.parent, wait=True):  # a folder is made and locked before another process looks for stale ones
            for stale in out.parent.glob(f".{glob.escape(out.name)}.*{_MAKING}"):
                with _held(stale) as free:
                    if free:
                        shutil.rmtree(stale, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_MAKING, dir=out.parent))
            holding.enter_context(_held(work))
        try:
            work.chmod(0o755)
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a folder for this process's life at most; False when another process has it, or where locks are unknown."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(handle)


def swap(work: Path, out: Path) -> None:
    """Rename the folder `work` to `out` in one step; a bundle that was there is at `work` afterwards.

    At every moment there is a whole bundle at `out`, where the system can exchange two names (Linux).
    """
    try:
        work.rename(out)  # to a new name, or over an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if not _exchange(work, out):
        old = work.with_name(work.name.removesuffix(_MAKING) + ".old" + _MAKING)
        out.rename(old)
        try:
            work.rename(out)
        except OSError:
            old.rename(out)
            raise
        old.rename(work)


# renameat2 of linux/fs.h and fcntl.h: names are relative to the current folder; the two are exchanged.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


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
