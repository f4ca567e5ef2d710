"""A video file, by PyAV: H.264, each frame at its own time (variable rate)."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

__all__ = ["VideoFile"]

_PLACE = "video"
_TICKS = 90_000  # a second: MPEG's clock
# x264's constant rate factor; without its macroblock tree, which made other files of equal frames.
_OPTIONS = {"crf": "16", "x264-params": "mbtree=0"}
_BT709 = 1  # FFmpeg's number of it among matrices, primaries and transfer curves; also of the limited range


class VideoFile:
    """path: .mp4, .mov or .mkv; written beside itself and renamed when it is closed. rate: as announced.

    Raises InputError where it cannot be written, for frames of odd or changing size, and for times that go back.
    """

    endless = False

    def __init__(self, path: Path, *, rate: float | None) -> None:
        try:
            import av
        except ImportError:
            raise InputError(_PLACE, "video files need PyAV: pip install '.[live]'", str(path)) from None
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(_PLACE, "must be a place that can be written", str(path))
        self._av: Any = av
        self.frames, self._path, self._part = 0, path, path.with_name(path.name + ".part")
        self._rate = Fraction(rate or 30.0).limit_denominator(1001)
        kind = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}[path.suffix.lower()]
        options = {} if kind == "matroska" else {"movflags": "+faststart"}
        self._container: Any = av.open(str(self._part), "w", format=kind, options=options)
        self._stream: Any = None
        self._last = -1

    def _begin(self, width: int, height: int) -> None:
        if width % 2 or height % 2:
            raise InputError(_PLACE, "H.264 takes pictures of even width and height", [width, height])
        stream = self._container.add_stream("libx264", rate=self._rate, options=dict(_OPTIONS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # One thread: equal frames give an equal file.
        context = stream.codec_context
        context.time_base, context.thread_count = Fraction(1, _TICKS), 1
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
        self._stream = stream

    def write(self, pixels: np.ndarray, time: float) -> None:
        height, width = pixels.shape[:2]
        if self._stream is None:
            self._begin(width, height)
        if (width, height) != (self._stream.width, self._stream.height):
            rule = f"all frames of a video have one size, {self._stream.width} x {self._stream.height}"
            raise InputError(_PLACE, rule, [width, height])
        at = round(time * _TICKS)
        if at <= self._last:
            raise InputError(_PLACE, "a frame must be later than the one before", time)
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = at, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))
        self._last = at
        self.frames += 1

    def close(self) -> None:
        """Raises InputError where nothing was written to it."""
        if self._stream is None:
            self.abandon()
            raise InputError(_PLACE, "a video must have frames", str(self._path))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._part.replace(self._path)

    def abandon(self) -> None:
        self._container.close()
        self._part.unlink(missing_ok=True)
