"""An avatar as a video track: colours over a ground of one colour, the newest frame only, its time that of its stamp.

aiortc encodes on a thread: H.264 in the baseline profile, which has no B-frames, or VP8.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from fractions import Fraction

import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import VideoFrame

from ..encoding import over
from ..viewer import Finished, Viewer

__all__ = ["FPS", "AvatarTrack"]

FPS = 30  # aiortc's encoders count in thirtieths of a second
_CLOCK = 90_000
_AGAIN = 1.0  # seconds after which what stands still is sent once more: a lost packet is then made good

Ground = tuple[int, int, int]


class AvatarTrack(MediaStreamTrack):
    """What a viewer of format rgba-lz4 is offered. ended: whether there is no more to come."""

    kind = "video"

    def __init__(self, viewer: Viewer, ground: Ground, pool: Executor, ended: Callable[[], bool]) -> None:
        super().__init__()
        self._viewer, self._ground, self._pool, self._ended = viewer, ground, pool, ended
        self._last: np.ndarray | None = None
        self._began: float | None = None
        self._beat = -1  # of the last frame, in thirtieths since the first

    async def recv(self) -> VideoFrame:
        viewer, since = self._viewer, time.monotonic()
        while self.readyState == "live" and not self._ended():
            viewer.texts()
            if (frame := viewer.frame()) is not None:
                return await self._drawn(frame)
            if self._last is not None and time.monotonic() - since > _AGAIN:
                return self._timed(self._last, time.monotonic())
            try:
                await asyncio.wait_for(viewer.wake.wait(), _AGAIN / 4)
            except TimeoutError:
                continue
            viewer.wake.clear()
        self.stop()
        raise MediaStreamError

    async def _drawn(self, frame: Finished) -> VideoFrame:
        loop = asyncio.get_running_loop()
        taken, pixels = await loop.run_in_executor(self._pool, over, frame.data, self._ground)
        self._last = pixels
        self._viewer.sent(frame, now := time.monotonic())
        self._viewer.acknowledge(frame.number & 0xFFFFFFFF, None, now)
        return self._timed(pixels, taken)

    def _timed(self, pixels: np.ndarray, at: float) -> VideoFrame:
        if self._began is None:
            self._began = at
        self._beat = max(self._beat + 1, round((at - self._began) * FPS))
        made = VideoFrame.from_ndarray(pixels, format="rgb24")
        made.pts, made.time_base = self._beat * _CLOCK // FPS, Fraction(1, _CLOCK)
        return made
