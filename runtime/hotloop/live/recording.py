"""Every decision of a stage beside its inputs, so that it can be run again without a clock and give the same frames.

A recording holds what a camera saw: nothing is recorded unless it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files import read_file

if TYPE_CHECKING:
    from .animation.keyframe import Keyframe

__all__ = ["Recording", "WrittenRecording", "digest"]

_PLACE = "live.recording"
_DECISIONS, _INPUTS = "decisions.jsonl", "inputs"
_MOST = 10 << 30  # bytes
_NEEDS = {
    "open": {"session", "source", "depth", "interval", "governed", "values"},
    "swap": {"session", "version", "values", "blend"}, "push": {"session", "picture", "pixels"},
    "superseded": {"session", "picture"},
    "skipped": {"session", "picture"}, "begin": {"session", "picture", "frame", "deadline"}, "step": set(),
    "shown": {"session", "frame", "sha256", "kind"}, "rung": {"session", "rung", "reason"}, "close": {"session"},
    # Of animation: a keyframe as it was first shown, and what a frame was made of.
    "keyframe": {"key", "rgba", "reveal", "bare", "loose", "front", "geometry", "name"},
    "animate": {"session", "frame", "version", "key", "before", "mix", "controls", "t", "side"},
}  # fmt: skip


def digest(pixels: np.ndarray) -> str:
    """SHA-256 of a picture's shape and bytes."""
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


class Recording:
    """decisions  in their order, each {"do": ..., ...}; inputs: digest -> picture uint8 [H, W, 3]"""

    def __init__(self) -> None:
        self.decisions: list[dict[str, Any]] = []
        self.inputs: dict[str, np.ndarray] = {}
        self._keyframes: set[str] = set()

    @property
    def whole(self) -> bool:
        """Whether every session in it has ended."""
        count = [sum(one["do"] == do for one in self.decisions) for do in ("open", "close")]
        return count[0] == count[1]

    def note(self, do: str, **what: Any) -> None:
        assert what.keys() == _NEEDS[do], do
        self.decisions.append({"do": do, **what})

    def keep(self, pixels: np.ndarray) -> str:
        key = digest(pixels)
        self.inputs.setdefault(key, pixels.copy())
        return key

    def keyframe(self, keyframe: Keyframe) -> None:
        """A keyframe that frames are made of: noted when it first comes."""
        if keyframe.id in self._keyframes:
            return
        self._keyframes.add(keyframe.id)
        arrays = {name: None if one is None else self.keep(one) for name, one in keyframe.arrays.items()}
        geometry = None if keyframe.geometry is None else keyframe.geometry.as_json()
        self.note("keyframe", key=keyframe.id, geometry=geometry, name=keyframe.name, **arrays)

    def save(self, folder: Path) -> None:
        """decisions.jsonl and inputs.npz in a new folder. Raises InputError where there is one already."""
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(_PLACE, "the folder must be new and writable", str(folder)) from error
        np.savez_compressed(folder / "inputs.npz", **self.inputs)  # type: ignore[arg-type]
        lines = [json.dumps(decision) + "\n" for decision in self.decisions]
        (folder / _DECISIONS).write_text("".join(lines), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Raises InputError for what is none. One that was cut off ends with its last whole decision."""
        made = Recording()
        try:
            lines = read_file(folder / _DECISIONS).decode("utf-8").split("\n")[:-1]
            made.decisions = [json.loads(line) for line in lines]
            if (folder / _INPUTS).is_dir():
                files = (folder / _INPUTS).glob("*.npy")
                made.inputs = {file.stem: np.load(file, allow_pickle=False) for file in files}
            else:
                with np.load(folder / "inputs.npz", allow_pickle=False) as inputs:
                    made.inputs = {name: inputs[name] for name in inputs.files}
        except (OSError, ValueError) as error:
            raise InputError(_PLACE, "must be a folder that a recording was saved to", str(folder)) from error
        for one in made.decisions:
            if not isinstance(one, dict) or _NEEDS.get(one.get("do", "")) != one.keys() - {"do"}:
                raise InputError(_PLACE, f"decisions must be among {', '.join(_NEEDS)}, with their fields", one)
            if one["do"] == "push" and digest(made.inputs.get(one["pixels"], np.zeros(0))) != one["pixels"]:
                raise InputError(_PLACE, "every picture must be among the inputs, unaltered", one["pixels"])
        return made


class WrittenRecording(Recording):
    """One that is written as it goes, into a new folder that only its owner reads: decisions.jsonl, and a file for each
    picture. Whatever ends it, what is there replays.

    most   bytes, after which nothing more is written
    ended  called with the one line when that comes to pass, or the disk is full; frames go on

    Raises InputError where there is such a folder already.
    """

    def __init__(self, folder: Path, *, most: int = _MOST, ended: Callable[[str], object] = lambda why: None) -> None:
        super().__init__()
        try:
            folder.mkdir(mode=0o700)
            (folder / _INPUTS).mkdir()
            self._file = (folder / _DECISIONS).open("wb", buffering=0)
        except OSError as error:
            raise InputError(_PLACE, "the folder must be new and writable", str(folder)) from error
        self._folder, self._left, self._ended = folder, most, ended
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._open = True

    def note(self, do: str, **what: Any) -> None:
        assert what.keys() == _NEEDS[do], do
        with self._lock:
            self._write(json.dumps({"do": do, **what}).encode() + b"\n", self._file.write)

    def keep(self, pixels: np.ndarray) -> str:
        key = digest(pixels)
        with self._lock:
            if key not in self._seen:
                self._seen.add(key)
                self._write(pixels, lambda one: np.save(self._folder / _INPUTS / f"{key}.npy", one, allow_pickle=False))
        return key

    def close(self) -> None:
        with self._lock:
            self._open = False
            self._file.close()

    def _write(self, what: Any, write: Callable[[Any], object]) -> None:
        if not self._open:
            return
        try:
            if (size := len(what) if isinstance(what, bytes) else what.nbytes) > self._left:
                raise OSError(f"it may have {_MOST} bytes at most")
            self._left -= size
            write(what)
        except OSError as error:
            self._open = False
            self._ended(f"[{_PLACE}] nothing more is recorded ({error.strerror or error})")
