"""`hotloop tracker`: fetches the face tracker's networks, and shows what it sees in a clip."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError

__all__ = ["tracker"]


def tracker(
    clip: Annotated[Path | None, typer.Argument(help="A clip or /dev/video0: one line of JSON a picture.")] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the networks, through pip, 35 MB; once.")] = False,
    wheel: Annotated[Path | None, typer.Option(help="Take them out of this wheel of mediapipe instead.")] = None,
    pip_args: Annotated[str, typer.Option(help="More options for pip, such as another index.")] = "",
    mirror: Annotated[bool, typer.Option("--mirror", help="As in a mirror: left and right change places.")] = False,
    paced: Annotated[bool, typer.Option("--paced", help="A clip's pictures in their own time, as a camera's.")] = False,
    calibrate: Annotated[bool, typer.Option(
        "--calibrate", help="The first 15 pictures show the face at rest.")] = False,
) -> None:  # fmt: skip
    """The camera tracker: a face's landmarks as the controls of an avatar."""
    from ..live.sources import face_files

    if fetch or wheel is not None:
        files = face_files.take(wheel) if wheel else face_files.fetch(pip_args=shlex.split(pip_args))
        for path in files.values():
            typer.echo(str(path))
    elif clip is None:
        raise InputError("tracker", "name a clip, or --fetch")
    if clip is None:
        return
    from ..live.sources.camera import Tracker
    from ..live.sources.video import Video

    began = time.monotonic()
    seen = Tracker(mirror=mirror)
    if calibrate:
        seen.calibrate()
    with Video(clip) as video:
        for shot in video:
            if paced and not video.live:
                time.sleep(max(began + shot.time - time.monotonic(), 0))
            at = time.monotonic() if shot.captured is None else shot.captured
            told = seen.feed(shot.pixels)
            rounded = None if told is None else {name: round(value, 3) for name, value in told.items()}
            line = {"t": round(shot.time, 4), "at": round(at, 6), "controls": rounded}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
