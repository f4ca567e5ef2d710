"""Every request for pictures from its arrival to its one end: `received = sum(outcomes) + inflight + queued`, always.

The left side is counted when a ticket is opened, the outcomes when it is closed, the rest by looking at what is open.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .refusals import REFUSALS, Refusal

if TYPE_CHECKING:
    from .asking import Asked

__all__ = ["OUTCOMES", "Drawn", "Ledger", "Progress", "Ticket"]

# A ticket is closed with one of these; "gone": the client went away.
OUTCOMES = ("completed", "gone", *dict.fromkeys(row.outcome for row in REFUSALS.values()))


class Drawn(NamedTuple):
    """What a worker made: RGB or RGBA pixels of each picture as (width, height, bytes), and what the call told."""

    pictures: list[tuple[int, int, bytes]]
    seeds: list[int]
    settings: dict[str, Any]
    timings: dict[str, float]
    warnings: list[str]


class Progress(NamedTuple):
    """Rows are evaluations of the network; picture: what there is so far, where it was asked for."""

    row: int
    rows: int
    step: int
    steps: int
    nth: int = -1
    picture: tuple[int, int, bytes] | None = None


NOTHING = Progress(0, 0, 0, 0)


@dataclass(eq=False)
class Ticket:
    """One request. place: "reading", "queued", "running", "answering" or "ended".

    deadline  of the event loop's clock
    drawn     the pictures, or the Refusal that it ends with
    """

    ledger: Ledger
    family: str
    id: str
    begun: float
    deadline: float
    place: str = "reading"
    outcome: str = ""
    asked: Asked | None = None
    worker: Any = None
    progress: Progress = NOTHING
    kept: bool = False  # its end comes after its answer: a stream, a job
    times: dict[str, float] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    drawn: asyncio.Future[Drawn] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    listeners: set[Callable[[Progress | None], object]] = field(default_factory=set)

    def move(self, place: str) -> None:
        if self.place != "ended":
            self.place = place
            self.times[place] = time.monotonic()

    def tell(self, progress: Progress) -> None:
        self.progress = progress if progress.picture is None else self.progress
        for listener in tuple(self.listeners):
            listener(progress)

    def succeed(self, drawn: Drawn) -> None:
        if not self.drawn.done():
            self.move("answering")
            self.drawn.set_result(drawn)
            self._told()

    def fail(self, refusal: Refusal) -> None:
        if not self.drawn.done():
            self.move("answering")
            self.drawn.set_exception(refusal)
            self.drawn.exception()  # it is known: whoever waited may be gone
            self._told()

    def _told(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        for listener in tuple(self.listeners):
            listener(None)

    def end(self, outcome: str, status: int = 0) -> None:
        """The one end; a second one is a fault, which is counted and changes nothing."""
        if self.place == "ended":
            self.ledger.twice += 1
            return
        self.place, self.outcome = "ended", outcome
        if self.timer is not None:
            self.timer.cancel()
        self.ledger.closed(self, status)


class Ledger:
    """closing: called with each ticket that has ended and the status that it was answered."""

    def __init__(self, closing: Callable[[Ticket, int], object] = lambda ticket, status: None) -> None:
        self.received: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.open: set[Ticket] = set()
        self.twice = 0
        self._closing = closing

    def ticket(self, family: str, id: str, timeout: float) -> Ticket:
        now = time.monotonic()
        ticket = Ticket(self, family, id, now, now + timeout)
        self.received[family] += 1
        self.open.add(ticket)
        return ticket

    def closed(self, ticket: Ticket, status: int) -> None:
        assert ticket.outcome in OUTCOMES, ticket.outcome
        self.open.remove(ticket)
        self.outcomes[ticket.family, ticket.outcome] += 1
        self._closing(ticket, status)

    def balance(self) -> dict[str, int]:
        """difference: what received, outcomes, inflight and queued do not account for; anything but 0 is a fault."""
        queued = sum(ticket.place == "queued" for ticket in self.open)
        received, ended = sum(self.received.values()), sum(self.outcomes.values())
        inflight = len(self.open) - queued
        return {
            "received": received, "ended": ended, "inflight": inflight, "queued": queued,
            "difference": received - ended - inflight - queued,
        }  # fmt: skip
