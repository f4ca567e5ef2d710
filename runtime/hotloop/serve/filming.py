"""The main session's avatar as a camera of this machine: the newest frame, over a ground of one colour."""

from __future__ import annotations

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..errors import InputError
from ..live.animation.gate import step_back
from ..live.sinks.camera import VirtualCamera
from .encoding import over
from .sessions import Session
from .viewer import Viewer
from .wire import FORMATS

__all__ = ["Filming"]


class Filming:
    """device: the camera's name, None: the first that there is; ground: RGB."""

    def __init__(self, session: Session, device: str | None, ground: tuple[int, int, int]) -> None:
        self._session, self._ground = session, ground
        self._camera = VirtualCamera(device, rate=session.config.fps)
        self._viewer = Viewer("viewer", FORMATS["rgba-lz4"], session.config.fps)
        self._pool = ThreadPoolExecutor(1, "hotloop-camera", initializer=step_back)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises InputError where there is no such camera."""
        width, height = self._session.worker.facts.get("size") or (512, 512)
        if self._session.config.size is not None:
            width = height = self._session.config.size
        blank = np.full((height, width, 3), self._ground, np.uint8)
        await asyncio.get_running_loop().run_in_executor(self._pool, self._camera.write, blank, time.monotonic())
        self._session.join(self._viewer)
        self._task = asyncio.create_task(self._film())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._session.leave(self._viewer, time.monotonic())
        self._pool.submit(self._camera.close)
        self._pool.shutdown(wait=False)

    async def _film(self) -> None:
        viewer, loop = self._viewer, asyncio.get_running_loop()
        while True:
            await viewer.wake.wait()
            viewer.wake.clear()
            viewer.texts()
            if (frame := viewer.frame()) is None:
                continue
            try:
                await loop.run_in_executor(self._pool, self._show, frame.data)
            except (InputError, RuntimeError, OSError) as error:  # the device is gone
                print(f"hotloop: {error}", file=sys.stderr, flush=True)
                return
            viewer.sent(frame, now := time.monotonic())
            viewer.acknowledge(frame.number & 0xFFFFFFFF, None, now)

    def _show(self, data: bytes) -> None:
        self._camera.write(over(data, self._ground)[1], time.monotonic())
