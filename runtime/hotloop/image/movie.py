"""Pictures one after another as a file: a folder of PNGs, an animated WebP, or an mp4."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..checks import check_number
from ..errors import InputError
from .image import save
from .video import VideoFile

__all__ = ["check_movie", "save_movie"]

_PLACE = "movie"


def check_movie(path: Path, fps: float) -> None:
    """Whether frames can be written there so. Raises InputError."""
    check_number(_PLACE, "fps", fps, 0.1, 240)
    suffix = path.suffix.lower()
    if suffix not in ("", ".webp", ".mp4") and not path.is_dir():
        raise InputError(_PLACE, "the file must be a folder, or end with .webp or .mp4", str(path))
    if suffix == ".mp4" and find_spec("av") is None:
        raise InputError(_PLACE, "an mp4 needs PyAV: pip install av", str(path))


def save_movie(frames: Sequence[np.ndarray] | np.ndarray, path: Path, *, fps: float = 12.0) -> list[Path]:
    """Write uint8 frames [H, W, 3] or, straight alpha, [H, W, 4] -> the files.

    path: a folder (0000.png and so on), a file .webp (lossless) or .mp4 (H.264; sides are cut to even numbers).
    Raises InputError.
    """
    check_movie(path, fps)
    suffix = path.suffix.lower()
    if suffix == "":
        return [save(Image.fromarray(frame), path / f"{i:04}.png") for i, frame in enumerate(frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".webp":
        first, *rest = (Image.fromarray(frame) for frame in frames)
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, lossless=True, method=4)
    else:
        height, width = (n // 2 * 2 for n in frames[0].shape[:2])
        film = VideoFile(path, rate=fps)
        for i, pixels in enumerate(frames):
            film.write(pixels[:height, :width, :3], i / fps)
        film.close()
    return [path]
