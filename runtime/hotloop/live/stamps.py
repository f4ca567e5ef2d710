"""What a frame tells of itself, and what is known from such stamps alone: latencies, their percentiles, clocks.

All times are seconds on one monotonic clock, which the caller owns; a sender's are brought to it by `SenderClock`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Histogram", "Offset", "SenderClock", "Stamp"]


@dataclass
class Stamp:
    """A frame's history; what has not happened is None.

    frame, source  ids: of the frame, and of the source picture or control sample it shows (None: a dream)
    version        of the settings that it was begun with; a frame ends with those
    bucket, slot   where it ran (`hotloop.batch.Place`)
    captured       by the sender's clock, brought to ours; None where the transport gives no clock: latency then counts
                   from `received`
    rows           the end of each evaluation
    controls       what the session's control source gave for the frame's time
    kind           "drawn"; "held": the last good frame again, because `fault` was found; "unchanged": the last frame
                   again, because nothing has changed
    """

    frame: int
    source: int | None
    version: int
    captured: float | None = None
    received: float | None = None
    taken: float | None = None
    bucket: int = 1
    slot: int = 0
    rows: list[float] = field(default_factory=list)
    decoded: float | None = None
    encoded: float | None = None
    sent: float | None = None
    controls: Any = None
    kind: str = "drawn"
    fault: str = ""

    @property
    def since(self) -> str:
        """What `latency` counts from."""
        return "capture" if self.captured is not None else "receipt"

    @property
    def latency(self) -> float | None:
        """Seconds from capture (or receipt) to the last stage that the frame has reached: signal to wire when sent."""
        began = self.captured if self.captured is not None else self.received
        ended = next((t for t in (self.sent, self.encoded, self.decoded) if t is not None), None)
        return None if began is None or ended is None else ended - began


class Histogram:
    """Latencies counted in classes 1 % wide, from 10 microseconds to 100 s: any number of them in fixed memory.

    A percentile is the upper edge of its class, so at most 1 % above the true one; `most` is exact. Values outside the
    range count in the first and the last class.
    """

    _LEAST, _RATIO, _CLASSES = 1e-5, math.log(1.01), 1621

    def __init__(self) -> None:
        self._counts = np.zeros(self._CLASSES, np.int64)
        self.most = 0.0
        self._last: float | None = None
        self._jitter = 0.0

    def __len__(self) -> int:
        return int(self._counts.sum())

    def add(self, seconds: float) -> None:
        place = math.ceil(math.log(max(seconds, self._LEAST) / self._LEAST) / self._RATIO - 1e-9)
        self._counts[min(place, self._CLASSES - 1)] += 1
        self.most = max(self.most, seconds)
        if self._last is not None:  # RFC 3550, section 6.4.1
            self._jitter += (abs(seconds - self._last) - self._jitter) / 16
        self._last = seconds

    @property
    def jitter(self) -> float:
        """The smoothed difference of neighbours, as RTP counts it (RFC 3550)."""
        return self._jitter

    def percentile(self, share: float) -> float:
        """The least edge that `share` (0..1) of the values do not exceed; NaN without values."""
        total = len(self)
        if not total:
            return math.nan
        rank = max(math.ceil(share * total), 1)
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(self._LEAST * math.exp(place * self._RATIO), self.most)

    def summary(self) -> dict[str, float]:
        """count, p50, p95, p99, max, jitter; seconds."""
        shares = {f"p{round(100 * share)}": self.percentile(share) for share in (0.50, 0.95, 0.99)}
        return {"count": len(self), **shares, "max": self.most, "jitter": self.jitter}


class Offset(NamedTuple):
    """sender's clock - ours, in seconds, and by how much it may err."""

    seconds: float
    error: float

    def __str__(self) -> str:
        return f"sender's clock {1e3 * self.seconds:+.2f} ms, +-{1e3 * self.error:.2f} ms"


class SenderClock:
    """A remote sender's clock, from pings: it answers each with its own time.

    The answer was written somewhere between our sending and our receiving, so the offset of the middle errs by half of
    the round trip at most: NTP's clock filter (RFC 5905, section 10) takes the smallest of the last ones. What a clock
    drifts since then, `DRIFT` at most, is added to the bound; newer pings replace older ones, which follows the drift.
    """

    KEPT, DRIFT = 16, 100e-6

    def __init__(self) -> None:
        self._pings: deque[tuple[float, float, float]] = deque(maxlen=self.KEPT)  # (round trip, offset, when)

    def ping(self, sent: float, answer: float, received: float) -> None:
        """A ping that left and came back at these times of ours, answered at that time of the sender's."""
        if received >= sent:
            self._pings.append((received - sent, answer - (sent + received) / 2, received))

    def offset(self, now: float) -> Offset | None:
        """None before the first ping."""
        if not self._pings:
            return None
        bounds = [(trip / 2 + self.DRIFT * max(now - when + trip / 2, 0), offset) for trip, offset, when in self._pings]
        error, offset = min(bounds)
        return Offset(offset, error)

    def ours(self, theirs: float, now: float) -> float | None:
        """A time of the sender's on our clock."""
        found = self.offset(now)
        return None if found is None else theirs - found.seconds
