"""Frames as pictures: a numbered file each, lossless, or one animated WebP."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np

from ... import image as images
from ...errors import InputError

__all__ = ["AnimatedFile", "PictureFolder"]

_PLACE = "live.sink"
_MOST_BYTES = 1 << 30  # of an animated picture's frames, which its encoder takes all at once


class PictureFolder:
    """000000.png, 000001.png, .. and times.json: {"times": seconds of each}. suffix: .png or .webp, both lossless.

    Raises InputError for a folder that is there and not empty, or cannot be made.
    """

    endless = False

    def __init__(self, folder: Path, suffix: str) -> None:
        self.frames, self._suffix, self._times = 0, suffix, list[float]()
        self._folder, self._part = folder, folder.with_name(folder.name + ".part")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(_PLACE, "the folder must be new or empty", str(folder))
        try:
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir(parents=True)
        except OSError as error:
            raise InputError(_PLACE, f"must be a place that can be written ({error.strerror})", str(folder)) from None

    def write(self, pixels: np.ndarray, time: float) -> None:
        picture = images.from_array(pixels[None])[0]
        path = self._part / f"{self.frames:06d}{self._suffix}"
        if self._suffix == ".webp":
            picture.save(path, "WEBP", lossless=True, method=0)
        else:
            picture.save(path, "PNG", compress_level=1)
        self._times.append(time)
        self.frames += 1

    def close(self) -> None:
        (self._part / "times.json").write_text(json.dumps({"times": self._times}) + "\n", "utf-8")
        if self._folder.exists():
            self._folder.rmdir()
        self._part.rename(self._folder)

    def abandon(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)


class AnimatedFile:
    """One animated WebP. Times are kept to the millisecond, which is the format's unit."""

    endless = False

    def __init__(self, path: Path, *, rate: float | None) -> None:
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(_PLACE, "must be a place that can be written", str(path))
        self.frames, self._path, self._last = 0, path, 1 / (rate or 30.0)
        self._pixels, self._times = list[np.ndarray](), list[float]()

    def write(self, pixels: np.ndarray, time: float) -> None:
        if (self.frames + 1) * pixels.nbytes > _MOST_BYTES:
            rule = f"an animated picture has at most {_MOST_BYTES >> 20} MiB of frames: write a video"
            raise InputError(_PLACE, rule, self.frames + 1)
        if self._pixels and pixels.shape != self._pixels[0].shape:
            raise InputError(_PLACE, "all frames of an animated picture have one size", list(pixels.shape))
        self._pixels.append(pixels.copy())
        self._times.append(time)
        self.frames += 1

    def close(self) -> None:
        if not self._pixels:
            return
        edges = [round(1000 * t) for t in [*self._times, self._times[-1] + self._last]]
        shown = [max(b - a, 1) for a, b in pairwise(edges)]
        first, *others = images.from_array(np.stack(self._pixels))
        part = self._path.with_name(self._path.name + ".part")
        try:
            first.save(part, "WEBP", save_all=True, append_images=others, duration=shown, loop=0, quality=90,
                       allow_mixed=False, minimize_size=False, kmin=0, kmax=0)  # fmt: skip
            part.replace(self._path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def abandon(self) -> None:
        self._pixels.clear()
