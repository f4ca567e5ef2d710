"""`hotloop tracker`: fetches the face tracker's networks, and shows what it sees in a clip."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError

__all__ = ["tracker"]


def tracker(
    clip: Annotated[str | None, typer.Argument(
        help="A clip, an address or /dev/video0: a line of JSON a picture; -: pictures of the server.")] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the networks, through pip, 35 MB; once.")] = False,
    wheel: Annotated[Path | None, typer.Option(help="Take them out of this wheel of mediapipe instead.")] = None,
    pip_args: Annotated[str, typer.Option(help="More options for pip, such as another index.")] = "",
    mirror: Annotated[bool, typer.Option("--mirror", help="As in a mirror: left and right change places.")] = False,
    paced: Annotated[bool, typer.Option(
        "--paced", help="A clip as a camera: in its own time, the newest picture wins.")] = False,
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
    from ..live.sources.camera import Camera, Tracker
    from ..live.sources.video import Video

    seen = Tracker(mirror=mirror)
    if calibrate:
        seen.calibrate()
    if clip == "-":
        from ..live.sources.tracking import given_pictures

        for at, pixels in given_pictures(sys.stdin.buffer):
            _say(at=at, controls=seen.feed(pixels))
        return
    with Video(clip) as video:
        if paced or video.live:
            camera = Camera(video, seen, lambda source, at, told: _say(at=at, controls=told), paced=paced)
            camera.wait()
            if camera.said:
                raise InputError("tracker", camera.said)
            return
        for shot in video:
            _say(t=shot.time, controls=seen.feed(shot.pixels))


def _say(*, controls: Mapping[str, float] | None, **times: float) -> None:
    told = None if controls is None else {name: round(value, 3) for name, value in controls.items()}
    line = {name: round(value, 6) for name, value in times.items()} | {"controls": told}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
