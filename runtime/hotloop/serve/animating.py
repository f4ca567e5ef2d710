"""A show that is animated: the worker's side of an `AnimationSession`, its controls mirrored from the server."""

from __future__ import annotations

import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np

from ..errors import InputError
from ..live.animation.geometry import Geometry
from ..live.animation.keyframe import Keyframe
from ..live.animation.opening import UnsureError, open_avatar
from ..live.animation.session import Painter
from ..live.bus import Bus
from ..live.motions import CLIPS
from ..live.session import Frame
from ..request import Request
from .beat import Beat
from .fields import Moved, Scenes
from .mirror import replay
from .shows import Incoming, Made, Opening, Report, Tell
from .wire import FORMATS

__all__ = ["Animate", "Desk", "packed", "unpacked"]

_WARP = FORMATS["warp"]


class Desk:
    """A bus that one thread writes and another samples, and the newest signal that came to it.

    signals: how many have come
    """

    def __init__(self, seed: int = 0) -> None:
        self._bus, self._lock = Bus(seed=seed), threading.Lock()
        self.signals = 0
        self._signal: tuple[float, bool] | None = None  # when it was sent, or (False) received

    def take(self, told: Mapping[str, Any]) -> None:
        with self._lock:
            replay(self._bus, told)
            if told["bus"] == "put":
                self.signals += 1
                self._signal = told["t"], told["captured"]

    def sample(self, t: float) -> np.ndarray:
        with self._lock:
            return self._bus.sample(t)

    @property
    def called(self) -> bool:
        """Whether a signal waits for a frame."""
        return self._signal is not None

    def signal(self) -> tuple[float, bool] | None:
        """What has come since this was last asked: its time, and whether that is its sender's."""
        with self._lock:
            signal, self._signal = self._signal, None
            return signal


class Animate:
    """Frames on the session's beat; nothing is sent where nothing has changed.

    avatar   as for `open_avatar`. The opening's keyframe, which the session had when its worker fell, is not drawn anew
    given    further arguments of `open_avatar`

    Of an avatar whose points are not known the page asks for them, `unsure` says why; until then hotloop's own is here.
    """

    def __init__(
        self, opening: Opening, tell: Tell, avatar: Any, *, background: Executor, painter: Painter | None,
        clock: Callable[[], float] = time.monotonic, **given: Any,
    ) -> None:  # fmt: skip
        self.name, self.kinds = opening.name, tuple[int, ...]()
        self.desk, self._clock, self._tell, self._background = Desk(), clock, tell, background
        if painter is not None and opening.keyframe is not None and opening.values.get("prompt"):
            painter = _Kept(painter, opening.keyframe)
        rest: dict[str, Any] = {
            "controls": self.desk, "interval": 1 / opening.fps, "governed": opening.governed, "painter": painter,
            "background": background, "clock": clock, "pipeline": given.pop("pipeline", None), **opening.values,
        }  # fmt: skip
        self.unsure = ""
        if opening.home is not None:
            avatar, given = opening.home, {"side": given["side"]} if "side" in given else {}
        try:
            self.session = open_avatar(avatar, **given, **rest)
        except UnsureError as error:
            if given.get("parts") is not None:  # the page knows nothing of masks
                raise
            self.unsure = str(error)
            print(f"hotloop: {error}; the page asks for them", file=sys.stderr, flush=True)
            self.session = open_avatar(None, **({"side": given["side"]} if "side" in given else {}), **rest)
        self._keyframe = self.session.keyframe
        self._scenes = Scenes()
        self._base, self._frame = opening.version, opening.frame
        self._beat = Beat(self.session.interval)
        self._report = Report(opening.name, tell)

    def set(self, blend: int, values: Mapping[str, Any]) -> int:
        given = dict(values) | ({"blend": blend} if blend else {})
        number = self.session.set(**given)
        return self._base + number

    def values(self) -> dict[str, Any]:
        settings = self.session.settings
        return dict(settings.values) if settings is not None else {}

    def push(self, picture: Incoming) -> None:
        raise InputError("live", "pictures are redrawn in mode restyle", "animate")

    def rest(self) -> None:
        """There is nothing that could cease."""

    def play(self, name: str) -> None:
        self.session.play(name)

    def bus(self, told: Mapping[str, Any]) -> None:
        self.desk.take(told)

    def scene(self, number: int) -> bytes:
        return self._scenes.packed(number)

    def facts(self) -> dict[str, Any]:
        return {"motions": list(CLIPS), "side": self.session.side, **({"unsure": self.unsure} if self.unsure else {})}

    def take(self) -> Made | None:
        now = self._clock()
        if not self.kinds or now < self._beat.next(self.desk.called):
            return None
        number, signal = self.desk.signals, self.desk.signal()
        self._beat.began(now, signal is not None)
        frame: Frame | None = self.session.tick(now, captured=signal[0] if signal and signal[1] else None)
        session = self.session
        self._report.look(session.settings, session.governor, session.watchdog, self._base, self.values)
        if session.keyframe is not self._keyframe:
            self._keyframe = session.keyframe
            self._background.submit(self._told, self._keyframe)
        if frame is None or frame.stamp.kind == "unchanged":
            return None
        if signal is not None and not signal[1]:
            frame.stamp.received = signal[0]
        self._frame += 1
        moved = None
        if session.last is not None and frame.stamp.kind == "drawn" and _WARP in self.kinds:
            performance, vector, t = session.last
            drawing = performance.frame(vector, t)
            moved = Moved(self._scenes.number(drawing.sources), drawing)
        return Made(frame, self._frame, self._base + frame.stamp.version, number, signal is not None, moved)

    def look(self, now: float) -> float | None:
        return self._beat.next(self.desk.called) if self.kinds else None

    def stats(self) -> dict[str, Any]:
        told = self.session.stats()
        return told | {
            "version": self._base + told["version"], "interval": self.session.interval,
            "moves": [move._asdict() for move in told["moves"][-8:]], "signals": self.desk.signals,
        }  # fmt: skip

    def close(self) -> None:
        self.session.close()

    def _told(self, keyframe: Keyframe) -> None:
        """The server keeps it, for a worker after this one."""
        told, body = packed(keyframe)
        self._tell({"do": "keyframe", "s": self.name, "keyframe": told}, body)


class _Kept:
    """A painter whose first keyframe is one that was drawn before."""

    def __init__(self, painter: Painter, keyframe: Keyframe) -> None:
        self._painter, self.gate, self._first = painter, painter.gate, [keyframe]

    def check(self, request: Request) -> None:
        self._painter.check(request)

    def paint(self, request: Request, current: Keyframe) -> Keyframe:
        return self._first.pop() if self._first else self._painter.paint(request, current)


def packed(keyframe: Keyframe) -> tuple[dict[str, Any], bytes]:
    """A keyframe as JSON and bytes."""
    parts, blobs = [], []
    for name, array in keyframe.arrays.items():
        if array is not None:
            blobs.append(zlib.compress(np.ascontiguousarray(array).tobytes(), 1))
            parts.append([name, list(array.shape), len(blobs[-1])])
    geometry = None if keyframe.geometry is None else keyframe.geometry.as_json()
    return {"name": keyframe.name, "geometry": geometry, "parts": parts}, b"".join(blobs)


def unpacked(told: Mapping[str, Any], body: bytes) -> Keyframe:
    arrays: dict[str, np.ndarray | None] = dict.fromkeys(("rgba", "reveal", "front"))
    at = 0
    for name, shape, size in told["parts"]:
        arrays[name] = np.frombuffer(zlib.decompress(body[at : at + size]), np.uint8).reshape(shape)
        at += size
    geometry = None if told["geometry"] is None else Geometry.of_json(told["geometry"])
    return Keyframe(**arrays, geometry=geometry, name=told["name"])  # type: ignore[arg-type]
