"""Where a session's frames go when nobody looks: video files, pictures in a folder, a virtual camera.

A sink takes frames with their times, in order. A file is there as a whole or not at all: what is half made has another
name until it is closed. A camera ends when it is told to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from ...errors import InputError

__all__ = ["CAMERA", "Sink", "open_sink"]

CAMERA = "virtual-camera"
_VIDEOS = (".mp4", ".mov", ".mkv")
_PICTURES = (".png", ".webp")


class Sink(Protocol):
    """write   a frame uint8 [H, W, 3] and its time in seconds, later than the one before
    close   finish; abandon: leave nothing behind
    endless whether frames may go on without an end: Ctrl-C is one
    """

    frames: int
    endless: bool

    def write(self, pixels: np.ndarray, time: float) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


def open_sink(where: str | Path, *, rate: float | None = None) -> Sink:
    """`out.mp4` (.mov, .mkv): H.264; `out.webp`: one animated picture; `folder/*.webp`, `folder/*.png` or a folder
    (PNG): a picture a frame and their times in `times.json`; `virtual-camera`, `virtual-camera:/dev/video10`. rate:
    frames a second as announced.

    Raises InputError for other endings, and for a folder that has something in it.
    """
    name, _, device = str(where).partition(":")
    if name == CAMERA:
        from .camera import VirtualCamera

        return VirtualCamera(device or None, rate=rate)
    path = Path(where)
    if path.suffix.lower() in _VIDEOS:
        from ...image.video import VideoFile

        return VideoFile(path, rate=rate)
    if path.suffix.lower() in _PICTURES and path.stem != "*":
        if path.suffix.lower() == ".png":
            raise InputError("live.sink", "single frames need a folder: folder/*.png", str(where))
        from .pictures import AnimatedFile

        return AnimatedFile(path, rate=rate)
    if path.stem == "*" and path.suffix.lower() in _PICTURES:
        from .pictures import PictureFolder

        return PictureFolder(path.parent, path.suffix.lower())
    if not path.suffix:
        from .pictures import PictureFolder

        return PictureFolder(path, ".png")
    rule = f"must end with {', '.join(_VIDEOS)}, .webp, /*.png or /*.webp, or be a folder or {CAMERA}"
    raise InputError("live.sink", rule, str(where))
