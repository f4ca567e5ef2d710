"""Pictures out of files, addresses and devices, by PyAV (FFmpeg's libraries).

A file is read frame by frame, each with its own time; a device (`/dev/video0`) or an address (`rtsp://..`, whatever
FFmpeg opens) is *live*: it goes on whether anyone looks or not, and a `Follower` reads it on a thread, so that the
newest picture wins. An address is opened only because a caller gave it: a file may not lead to one (FFmpeg's list of
protocols).
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError

__all__ = ["Follower", "Shot", "Video"]

_PLACE = "live.source"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LASTING = re.compile(r"(rtsps?|rtmps?|rtp|srt|udp|tcp)://", re.IGNORECASE)  # what has no end of its own
_DEVICE = re.compile(r"/dev/video\d+")
_PATIENCE = 10.0  # seconds for an address to answer, and for its next picture
_MOST_PIXELS = 64 << 20
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 10.0  # seconds between attempts to find a source again


@dataclass(frozen=True, eq=False)
class Shot:
    """time      seconds after the first picture, by the source's own stamps
    captured  of a device: when the driver took it, CLOCK_MONOTONIC; else None
    pixels    RGB uint8 [H, W, 3], upright
    """

    number: int
    time: float
    captured: float | None
    pixels: np.ndarray


class Video:
    """where: a file's path, an address with its scheme, or a V4L2 device.

    size    (width, height) as announced; a stream may change it, and its pictures then have another
    rate    pictures a second as announced, None where nothing is
    live    whether it goes on by itself; lasting: and has no end, so that one is a loss
    broken  how many pictures could not be decoded: left out, the stream goes on

    Use it in a `with` block. Raises InputError for what cannot be opened or shows no pictures.
    """

    def __init__(self, where: str | Path, *, threads: int | None = None) -> None:
        try:
            import av
        except ImportError:
            raise InputError(_PLACE, "files and devices need PyAV: pip install '.[live]'", str(where)) from None
        text = str(where)
        self.device, self.address = bool(_DEVICE.fullmatch(text)), bool(_ADDRESS.match(text))
        self.lasting = self.device or bool(_LASTING.match(text))
        self.live = self.device or (self.address and not text.lower().startswith("file:"))
        if not self.live and not Path(text).is_file():
            raise InputError(_PLACE, "must be a file, an address (rtsp://..) or a device (/dev/video0)", text)
        # A playlist on the disk must not make anything be fetched.
        options = {} if self.live else {"protocol_whitelist": "file"}
        if text.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        if self.device:
            options["timestamps"] = "default"  # the driver's
        self._av: Any = av
        self._errors, self._where, self._options, self._threads = av.error.FFmpegError, text, options, threads
        self._reading, self._closed, self.broken = threading.Lock(), False, 0
        self._open()

    def _open(self) -> None:
        text = self._where
        try:
            self._container = self._av.open(
                text, format="v4l2" if self.device else None, options=dict(self._options),
                timeout=_PATIENCE if self.address else None,
            )  # fmt: skip
        except (self._errors, OSError, ValueError) as error:
            raise InputError(_PLACE, f"cannot be opened ({_reason(error)})", text) from None
        streams = self._container.streams.video
        if not streams or not streams[0].width or not streams[0].height:
            self._container.close()
            raise InputError(_PLACE, "must hold moving pictures", text)
        self._stream: Any = streams[0]
        self._stream.thread_type = "AUTO"
        if self._threads is not None:
            self._stream.codec_context.thread_count = self._threads
        self.size = (self._stream.width, self._stream.height)
        if self.size[0] * self.size[1] > _MOST_PIXELS:
            self._container.close()
            raise InputError(_PLACE, f"a picture has at most {_MOST_PIXELS} pixels", self.size)
        announced: Fraction | None = self._stream.average_rate or self._stream.guessed_rate
        self.rate = float(announced) if announced else None

    def again(self) -> None:
        """Open it once more. Raises InputError while it is not there, or closed."""
        with self._reading:
            if self._closed:
                raise InputError(_PLACE, "is closed", self._where)
            self._container.close()
            self._open()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for a picture that another thread is reading; one that does not come keeps the source open."""
        if self._reading.acquire(timeout=2 * _PATIENCE):
            self._closed = True
            self._container.close()
            self._reading.release()

    def __iter__(self) -> Iterator[Shot]:
        """Every picture in the order of its time, until the end. Raises InputError where a stream breaks off before
        its first one, and where an address stops answering."""
        first, last, number = None, -1.0, 0
        for frame in self._frames():
            taken = float(frame.time) if frame.pts is not None and frame.time is not None else None
            if first is None:
                first = taken or 0.0
            time = number / (self.rate or 30.0) if taken is None else taken - first
            if time <= last:  # a stamp that does not go on: by the rate
                time = last + 1 / (self.rate or 30.0)
            last = time
            yield Shot(number, time, taken if self.device else None, _upright(frame))
            number += 1
        if not number:
            raise InputError(_PLACE, "must hold pictures that can be decoded", self._where)

    def _frames(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while (frames := self._decoded(packets)) is not None:
            for frame in frames:
                if frame.width * frame.height > _MOST_PIXELS:
                    self.broken += 1
                else:
                    yield frame

    def _decoded(self, packets: Iterator[Any]) -> list[Any] | None:
        """The next packet's pictures; None at the end."""
        with self._reading:
            if self._closed:
                return None
            try:
                packet = next(packets, None)
            except self._errors as error:
                if self.live:
                    raise InputError(_PLACE, f"has stopped ({_reason(error)})", self._where) from None
                self.broken += 1  # a file that is cut off
                return None
            try:
                return None if packet is None else list(packet.decode())
            except self._errors:
                self.broken += 1
                return []


class Follower:
    """Reads a video on a thread of its own and hands every picture on.

    take      called with each; it may raise InputError for one that it refuses: the next comes all the same
    ended     called when the source has no more, with the one line that says why where it broke off
    patience  seconds in which a source that was lost is looked for, after 1, 2, 4, 8, 10, 10.. seconds; its pictures'
              numbers and times then go on. An address that may end, as a film's, is looked for only when it broke off
    lost      called with the one line, and with None when the source is back
    """

    def __init__(
        self, video: Video, take: Callable[[Shot], object], *, ended: Callable[[str], object] = lambda why: None,
        patience: float = 0.0, lost: Callable[[str | None], object] = lambda why: None,
    ) -> None:  # fmt: skip
        self._video, self._take, self._ended = video, take, ended
        self._patience, self._lost = patience, lost
        self._number, self._time = 0, -1.0  # of the next picture, of the last one
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="hotloop-video", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        why = self._follow(0.0)
        while not self._stopped.is_set() and (why or self._video.lasting) and self._patience:
            began = time.monotonic()
            self._lost(why or f"[{_PLACE}] has ended")
            if not self._found(began):
                break
            self._lost(None)
            why = self._follow(max(self._time, 0.0) + time.monotonic() - began)
        self._ended(why)

    def _follow(self, start: float) -> str:
        """Until it ends -> the one line where it broke off. start: the first picture's time."""
        try:
            for shot in self._video:
                if self._stopped.is_set():
                    break
                shot = replace(shot, number=self._number, time=start + shot.time)
                self._number, self._time = shot.number + 1, shot.time
                with contextlib.suppress(InputError):
                    self._take(shot)
        except InputError as error:
            return str(error)
        return ""

    def _found(self, began: float) -> bool:
        wait = _FIRST_WAIT
        while time.monotonic() - began < self._patience and not self._stopped.wait(wait):
            try:
                self._video.again()
                return True
            except InputError:
                wait = min(2 * wait, _LONGEST_WAIT)
        return False

    def stop(self, wait: float = 2 * _PATIENCE) -> None:
        """No picture is handed on after the next one; waits for the thread that long."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(wait)


def _upright(frame: Any) -> np.ndarray:
    """RGB uint8 [H, W, 3], turned as the file says that it is to be shown."""
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
