"""A recorded animation run again: every frame from what it was made of, without a clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import InputError
from ..recording import Recording, digest
from .geometry import Geometry
from .keyframe import Keyframe
from .performer import Performance, Performer
from .rig import Rig
from .session import STEPS, drawn

__all__ = ["replay_animation"]

_PLACE = "live.recording"


def replay_animation(recording: Recording, performer: Performer | None = None) -> list[tuple[int, int, str]]:
    """(session, frame, digest) of every frame as it is drawn again.

    performer: the way the recorded one moved its keyframes, by default the geometric rig. Raises InputError at the
    first frame that is not the recorded one.
    """
    performer = Rig() if performer is None else performer
    ready: dict[str, Performance] = {}
    pixels: np.ndarray | None = None
    shown: list[tuple[int, int, str]] = []
    for one in recording.decisions:
        if one["do"] == "keyframe":
            ready[one["key"]] = performer.prepare(_keyframe(recording, one))
        elif one["do"] == "animate":
            if one["key"] not in ready or one["before"] not in (None, *ready):
                raise InputError(_PLACE, "a frame must be of keyframes that came before it", one["key"])
            before = None if one["before"] is None else ready[one["before"]]
            vector = np.array(one["controls"], np.float32) / np.float32(STEPS)
            pixels = drawn(ready[one["key"]], before, one["mix"], vector, one["t"], one["side"])
        elif one["do"] == "shown":
            if one["kind"] == "drawn" and (pixels is None or digest(pixels) != one["sha256"]):
                raise InputError(_PLACE, f"frame {one['frame']} of the replay must be the recorded one", one["sha256"])
            shown.append((one["session"], one["frame"], one["sha256"]))
    return shown


def _keyframe(recording: Recording, one: dict[str, Any]) -> Keyframe:
    """A keyframe as it was noted. Raises InputError where it is another one."""
    pictures = {
        name: None if one[name] is None else recording.inputs.get(one[name])
        for name in ("rgba", "reveal", "bare", "loose", "front")
    }
    geometry = None if one["geometry"] is None else Geometry.of_json(one["geometry"])
    if pictures["rgba"] is None:
        raise InputError(_PLACE, "a keyframe's pictures must be among the inputs", one["name"])
    made = Keyframe(**pictures, geometry=geometry, name=one["name"])  # type: ignore[arg-type]
    if made.id != one["key"]:
        raise InputError(_PLACE, "a keyframe must be the recorded one", one["name"])
    return made
