"""A peer's video as source pictures: the newest decoded frame waits, alone, while the one before is packed.

aiortc keeps decoded frames in a queue without a bound; it is emptied as it fills, whatever packing takes. A peer whose
frames are decoded later and later is sent away: what waits to be decoded cannot be left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import simplejpeg
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import VideoFrame

from ...errors import InputError
from .offers import PLACE

__all__ = ["follow", "packed"]

_QUALITY = 90
_LATE = 2.0  # seconds behind the quickest frame

Take = Callable[[bytes, float], Awaitable[None]]


async def follow(
    track: MediaStreamTrack, take: Take, *, side: Callable[[], int], most_pixels: int, pool: Executor,
    came: Callable[[float], object] = lambda now: None,
) -> None:  # fmt: skip
    """Until the track ends. take: given a JPEG and when it came; side: of it, the shorter one's pixels at most.

    Raises InputError where frames are too large, or come faster than they are decoded.
    """
    waiting: list[tuple[Any, float]] = []
    wake = asyncio.Event()

    async def read() -> None:
        quickest: float | None = None
        while True:
            try:
                frame: Any = await track.recv()
            except MediaStreamError:
                return
            now = time.monotonic()
            came(now)
            if frame.width * frame.height > most_pixels:
                rule = f"a picture must have at most {most_pixels} pixels"
                raise InputError(PLACE, rule, f"{frame.width} x {frame.height}")
            if frame.time is not None:
                behind = now - frame.time
                quickest = behind if quickest is None else min(quickest, behind)
                if behind - quickest > _LATE:
                    raise InputError(PLACE, f"frames must not be decoded {_LATE:g} s late: send smaller or fewer ones")
            waiting[:] = [(frame, now)]
            wake.set()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: wake.set())
    loop = asyncio.get_running_loop()
    try:
        while not reading.done() or waiting:
            await wake.wait()
            wake.clear()
            if waiting:
                frame, now = waiting.pop()
                await take(await loop.run_in_executor(pool, packed, frame, side()), now)
        await reading
    finally:
        reading.cancel()


def packed(frame: VideoFrame, side: int) -> bytes:
    """A JPEG whose shorter side has so many pixels at most."""
    scale = min(1.0, side / min(frame.width, frame.height))
    width, height = (max(16, round(scale * one)) for one in (frame.width, frame.height))
    pixels = frame.to_ndarray(width=width, height=height, format="rgb24")
    return bytes(simplejpeg.encode_jpeg(pixels, _QUALITY, "RGB", "420", True))
