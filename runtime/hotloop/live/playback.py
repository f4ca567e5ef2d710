"""A recording run again: its decisions followed in their order, without a clock."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..pipeline import Pipeline
from .recording import Recording
from .session import Picture, Session
from .stage import Stage

__all__ = ["replay"]

_PLACE = "live.recording"


def replay(recording: Recording, pipeline: Pipeline) -> list[tuple[int, int, str]]:
    """(session, frame, digest) of every frame as it is shown again.

    Raises InputError at the first that is not the recorded one: another bundle, other engines, or LoRAs that a
    recording does not hold.
    """
    again = Recording()
    stage = Stage(pipeline, clock=lambda: 0.0, recording=again, deciding=False)
    sessions: dict[int, Session] = {}
    pictures: dict[tuple[int, int], Picture] = {}
    for one in recording.decisions:
        do = one["do"]
        if do == "open":
            given = {name: one[name] for name in ("source", "depth", "interval", "governed")}
            sessions[one["session"]] = stage.open(**given, **one["values"])
        elif do == "step":
            stage.step()
        elif do in ("shown", "close"):
            continue
        elif one["session"] not in sessions:
            raise InputError(_PLACE, "a decision must be of a session that was opened", one)
        else:
            _follow(stage, sessions[one["session"]], one, recording, pictures)
    shown, expected = (_shown(each) for each in (again, recording))
    if not recording.whole:  # it was cut off between a frame and the note of it
        shown = shown[: len(expected)]
    for i in range(max(len(shown), len(expected))):
        if shown[i : i + 1] != expected[i : i + 1]:
            raise InputError(_PLACE, f"frame {i} of the replay must be the recorded one", shown[i : i + 1])
    stage.close()
    return shown


def _follow(
    stage: Stage, session: Session, one: dict[str, Any], recording: Recording, pictures: dict[tuple[int, int], Picture]
) -> None:
    do, key = one["do"], (session.number, one.get("picture", -1))
    if do == "swap":
        session.settings.set(blend=one["blend"], **one["values"])
        session.settings.prepare()
        stage.swap(session)
    elif do == "push":
        pictures[key] = Picture(one["picture"], recording.inputs[one["pixels"]], None, 0.0)
        session.pictures.arrive(one["picture"])
    elif do in ("superseded", "skipped"):
        del pictures[key]
        session.pictures.end(one["picture"], do)
    elif do == "rung":
        stage.take_rung(session, one["rung"], one["reason"])
    else:
        picture = None if one["picture"] is None else pictures.pop(key)
        stage.begin(session, picture, 0.0, one["deadline"])


def _shown(recording: Recording) -> list[tuple[int, int, str]]:
    return [(one["session"], one["frame"], one["sha256"]) for one in recording.decisions if one["do"] == "shown"]
