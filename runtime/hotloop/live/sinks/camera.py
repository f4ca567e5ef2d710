"""Frames as a camera of this machine, for whatever looks at cameras: pyvirtualcam over v4l2loopback, OBS's camera."""

from __future__ import annotations

import time as clocks
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import image as images
from ...errors import InputError

__all__ = ["VirtualCamera"]

_PLACE = "live.sink"


class VirtualCamera:
    """device  its name, by default the first that there is; rate: as announced

    Opened with the first frame, in that frame's size; others are brought to it. A frame is shown when its time has come
    since the first one, on the caller's thread. Raises InputError where there is no such camera.
    """

    endless = True

    def __init__(
        self, device: str | None = None, *, rate: float | None = None, clock: Callable[[], float] = clocks.monotonic,
        sleep: Callable[[float], object] = clocks.sleep,
    ) -> None:  # fmt: skip
        try:
            import pyvirtualcam
        except ImportError:
            rule = "a virtual camera needs pyvirtualcam: pip install '.[camera]'"
            raise InputError(_PLACE, rule, device or "the first") from None
        self._library: Any = pyvirtualcam
        self.frames, self._device, self._rate = 0, device, rate or 30.0
        self._clock, self._sleep, self._began = clock, sleep, 0.0
        self._camera: Any = None

    def write(self, pixels: np.ndarray, time: float) -> None:
        if self._camera is None:
            self._camera = self._opened(pixels.shape[1], pixels.shape[0])
            self._began = self._clock() - time
        size = (self._camera.width, self._camera.height)
        if (pixels.shape[1], pixels.shape[0]) != size:
            pixels = np.asarray(images.resize(images.from_array(pixels[None])[0], size))
        if (wait := self._began + time - self._clock()) > 0:
            self._sleep(wait)
        self._camera.send(np.ascontiguousarray(pixels))
        self.frames += 1

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    abandon = close

    def _opened(self, width: int, height: int) -> Any:
        try:
            return self._library.Camera(width=width, height=height, fps=self._rate, device=self._device)
        except (RuntimeError, ValueError) as error:
            rule = f"a virtual camera must be there ({str(error).splitlines()[0]})"
            raise InputError(_PLACE, rule, self._device or "the first") from None
