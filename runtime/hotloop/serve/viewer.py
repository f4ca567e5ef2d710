"""One viewer of a session: its ledger, its pace, its clock, and what is to be sent to it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any, NamedTuple

from ..errors import InputError
from ..live.ledgers import ViewerLedger
from ..live.stamps import Histogram, SenderClock

__all__ = ["Finished", "Viewer", "plain"]

_MOST_TEXTS = 256


class Finished(NamedTuple):
    """A frame's bytes. begun: when; since: when the signal that led to it was sent, or (not `captured`) received, None:
    there was none. Seconds."""

    data: bytes
    number: int
    begun: float
    since: float | None
    captured: bool


class Viewer:
    """role  owner, viewer or monitor; kind: of `wire.FORMATS`, 0 takes no frames; fps: at most

    Nothing queues: of frames the newest waits, and texts beyond a bound end the connection.
    """

    def __init__(self, role: str, kind: int, fps: float, name: str = "") -> None:
        self.role, self.kind, self.name, self.interval = role, kind, name, 1 / fps
        self.ledger: ViewerLedger[Finished] = ViewerLedger()
        self.wire, self.frames, self.canvas, self.clock = Histogram(), Histogram(), Histogram(), SenderClock()
        self.wake = asyncio.Event()
        self.too_slow = False
        self._texts: deque[dict[str, Any]] = deque()
        self._next: Finished | None = None
        self._sent: Finished | None = None
        self._due, self._newest = -math.inf, -1

    def offer(self, frame: Finished, now: float) -> None:
        if frame.number <= self._newest or now < self._due:
            return
        self._newest = frame.number
        self._due = max(self._due + self.interval, now + self.interval / 4)
        self._send(self.ledger.offer(frame))

    def acknowledge(self, number: int, canvas: float | None, now: float) -> None:
        """canvas: ms on its own clock, when the frame was shown. Raises InputError for another frame than was sent."""
        sent = self._sent
        if sent is None or sent.number & 0xFFFFFFFF != number:
            raise InputError("live", "ack must name the frame that was sent", number)
        self._sent = None
        shown = None if canvas is None else self.clock.ours(canvas / 1000, now)
        if shown is not None and sent.since is not None and 0 <= shown - sent.since < 60:
            self.canvas.add(shown - sent.since)
        self._send(self.ledger.acknowledge())

    def _send(self, frame: Finished | None) -> None:
        if frame is not None:
            self._next = frame
            self.wake.set()

    def frame(self) -> Finished | None:
        """What is to be sent now."""
        frame, self._next = self._next, None
        self._sent = frame or self._sent
        return frame

    def sent(self, frame: Finished, now: float) -> None:
        """Its last byte was written."""
        self.frames.add(now - frame.begun)
        if frame.since is not None:
            self.wire.add(now - frame.since)

    def say(self, told: dict[str, Any]) -> None:
        if len(self._texts) >= _MOST_TEXTS:
            self.too_slow = True
        else:
            self._texts.append(told)
        self.wake.set()

    @property
    def pending(self) -> int:
        """Texts that wait to be sent."""
        return len(self._texts)

    def texts(self) -> list[dict[str, Any]]:
        texts, self._texts = list(self._texts), deque()
        return texts

    def stats(self, now: float) -> dict[str, Any]:
        """In seconds: wire, from a signal to a frame's last byte written; canvas, to when the client showed it; frames,
        from a frame's begin to its last byte written."""
        offset = self.clock.offset(now)
        return {
            **self.ledger.counts(), "wire": self.wire.summary(), "frames": self.frames.summary(),
            "canvas": self.canvas.summary(),
            "clock": None if offset is None else {"offset": offset.seconds, "error": offset.error},
        }  # fmt: skip


def plain(value: Any) -> Any:
    """The same for JSON, which has no NaN: that becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
