"""Three ledgers that are exact at any moment: where every source picture and every frame has gone.

    source    in       = shown + superseded + skipped + refused + failed + in flight
    produced  produced = drawn + held
    viewer    offered  = acknowledged + superseded + unacknowledged (<= 2)

A picture or frame has one end only; a second one, or the end of what never came, is a fault of ours and raises.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Generic, TypeVar

__all__ = ["ENDS", "ProducedLedger", "SourceLedger", "ViewerLedger"]

T = TypeVar("T")
ENDS = ("shown", "superseded", "skipped", "refused", "failed")


class SourceLedger:
    """The source pictures of a session. Any thread may write, and reads are exact."""

    def __init__(self) -> None:
        self.arrived = 0
        self._ends: Counter[str] = Counter()
        self._flying: set[int] = set()
        self._lock = threading.Lock()

    def arrive(self, picture: int) -> None:
        with self._lock:
            if picture in self._flying:
                raise ValueError(f"picture {picture} has come before")
            self.arrived += 1
            self._flying.add(picture)

    def end(self, picture: int, how: str) -> None:
        with self._lock:
            if how not in ENDS or picture not in self._flying:
                raise ValueError(f"picture {picture} cannot end as {how}")
            self._flying.remove(picture)
            self._ends[how] += 1

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {"in": self.arrived, **{how: self._ends[how] for how in ENDS}, "in_flight": len(self._flying)}


class ProducedLedger:
    """The frames that a session gave. again: of the drawn ones, those that were made a second time, in float32."""

    def __init__(self) -> None:
        self.drawn = self.held = self.again = 0

    @property
    def produced(self) -> int:
        return self.drawn + self.held

    def counts(self) -> dict[str, int]:
        return {"produced": self.produced, "drawn": self.drawn, "held": self.held, "again": self.again}


class ViewerLedger(Generic[T]):
    """The frames of one viewer: one on its way, and the newest that waits for its acknowledgement.

    A slow viewer so gets fewer frames, never older ones.
    """

    def __init__(self) -> None:
        self.offered = self.acknowledged = self.superseded = 0
        self._sent: list[T] = []
        self._waiting: list[T] = []

    def offer(self, frame: T) -> T | None:
        """A new frame -> it, if it is to be sent now; else it waits in place of the one that waited."""
        self.offered += 1
        if not self._sent:
            self._sent.append(frame)
            return frame
        if self._waiting:
            self._waiting.clear()
            self.superseded += 1
        self._waiting.append(frame)
        return None

    def acknowledge(self) -> T | None:
        """The viewer has the frame that was sent -> the one to send now, if one waits."""
        if not self._sent:
            raise ValueError("nothing was sent that could be acknowledged")
        self._sent.clear()
        self.acknowledged += 1
        if not self._waiting:
            return None
        self._sent.append(self._waiting.pop())
        return self._sent[0]

    @property
    def unacknowledged(self) -> int:
        return len(self._sent) + len(self._waiting)

    def counts(self) -> dict[str, int]:
        return {
            "offered": self.offered, "acknowledged": self.acknowledged, "superseded": self.superseded,
            "unacknowledged": self.unacknowledged,
        }  # fmt: skip
