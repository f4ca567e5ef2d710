"""Every decision of a stage beside its inputs, so that it can be run again without a clock and give the same frames.

A recording holds what a camera saw: nothing is recorded unless it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files import read_file

if TYPE_CHECKING:
    from .animation.keyframe import Keyframe

__all__ = ["Recording", "digest"]

_PLACE = "live.recording"
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
        (folder / "decisions.jsonl").write_text("".join(lines), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Raises InputError for what is none."""
        made = cls()
        try:
            lines = read_file(folder / "decisions.jsonl").decode("utf-8").splitlines()
            made.decisions = [json.loads(line) for line in lines]
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
