"""An avatar as a video track: colours over a ground of one colour, the newest frame only, at the time of its stamp."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from ..encoding import over
from ..viewer import Viewer
from .encoder import CLOCK, Encoder

__all__ = ["FPS", "AvatarTrack"]

FPS = 60.0  # at most
_AGAIN = 1.0  # seconds after which what stands still is sent once more: a lost packet is then made good

Ground = tuple[int, int, int]


class AvatarTrack(MediaStreamTrack):
    """What a viewer of format rgba-lz4 is offered, encoded on a thread of the pool.

    ended: whether there is no more to come
    """

    kind = "video"

    def __init__(self, viewer: Viewer, ground: Ground, pool: Executor, ended: Callable[[], bool]) -> None:
        super().__init__()
        self._viewer, self._ground, self._pool, self._ended = viewer, ground, pool, ended
        self._encoder: Encoder | None = None
        self._whole = True
        self._last: np.ndarray | None = None
        self._began: float | None = None
        self._pts = -1  # of the last frame

    def agree(self, kind: str) -> None:
        """What the peer takes: H264 or VP8."""
        self._encoder = Encoder(kind)

    def refresh(self) -> None:
        """The next frame is whole: the peer has lost one."""
        self._whole = True

    async def recv(self) -> av.Packet:
        viewer, since, loop = self._viewer, time.monotonic(), asyncio.get_running_loop()
        while self.readyState == "live" and not self._ended():
            viewer.texts()
            if (frame := viewer.frame()) is not None:
                packet = await loop.run_in_executor(self._pool, self._packed, frame.data)
                viewer.sent(frame, now := time.monotonic())
                viewer.acknowledge(frame.number & 0xFFFFFFFF, None, now)
                return packet
            if self._last is not None and time.monotonic() - since > _AGAIN:
                return await loop.run_in_executor(self._pool, self._packed, None)
            try:
                await asyncio.wait_for(viewer.wake.wait(), _AGAIN / 4)
            except TimeoutError:
                continue
            viewer.wake.clear()
        self.stop()
        raise MediaStreamError

    def _packed(self, data: bytes | None) -> av.Packet:
        """data: of a new frame; None: the last one again."""
        assert self._encoder is not None
        if data is None:
            at = time.monotonic()
        else:
            at, self._last = over(data, self._ground)
        if self._began is None:
            self._began = at
        self._pts = max(self._pts + 1, round((at - self._began) * CLOCK))
        whole, self._whole = self._whole, False
        assert self._last is not None
        return self._encoder.encode(self._last, self._pts, whole=whole)
