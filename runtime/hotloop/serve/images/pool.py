"""The workers: which one draws a request, how many wait for it, when they have waited too long.

Each worker has a queue of its own, in this process, so that a worker's fall costs what it was drawing and nothing else.
A request goes where its bundle and LoRAs were before (rendezvous hashing, Thaler and Ravishankar 1998), unless there is
no lane free there and one elsewhere; a worker that has nothing to do takes the oldest that waits for another.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..supervisor import Supervisor
from .arena import Arena, slot_bytes
from .asking import Asked
from .ledger import Drawn, Progress, Ticket
from .refusals import Refusal
from .settings import Settings

__all__ = ["ENGINE", "Pool", "Worker"]

ENGINE = (sys.executable, "-P", "-m", "hotloop.serve.images.engine")
AGAIN = 60.0  # seconds that a worker which fell too often is left alone
STUCK = 30.0  # seconds that a worker has to let go of what it was told to
_WEIGHT = 0.2  # of the newest in the mean of service times

Told = dict[str, Any]


class Worker:
    """One worker process, what it draws and what waits for it."""

    def __init__(self, pool: Pool, number: int, setup: Told, command: Sequence[str]) -> None:
        settings = pool.settings
        self.pool, self.number = pool, number
        self.queue: deque[Ticket] = deque()
        self.running: dict[int, tuple[Ticket, int, float]] = {}  # number -> ticket, slot, when it was handed over
        self.lanes = settings.lanes
        self._slots = list(range(settings.lanes))
        self._leaving: dict[int, asyncio.TimerHandle] = {}
        limits = settings.limits
        self.supervisor: Supervisor[Arena] = Supervisor(
            setup, Arena, settings.lanes, slot_bytes(limits.body, limits.images, limits.side), heard=self._heard,
            changed=self._changed, command=command, again=AGAIN,
        )  # fmt: skip

    @property
    def state(self) -> str:
        return self.supervisor.state

    @property
    def free(self) -> bool:
        return self.state == "ready" and bool(self._slots) and not self.queue

    def enter(self, ticket: Ticket) -> None:
        ticket.worker = self
        ticket.move("queued")
        self.queue.append(ticket)
        self.go_on()

    def leave(self, ticket: Ticket) -> None:
        """It is not wanted any more: out of the queue, or the worker stops it before its next row."""
        if ticket in self.queue:
            self.queue.remove(ticket)
            return
        for number, (running, _, _) in self.running.items():
            if running is ticket and number not in self._leaving:
                self.supervisor.tell({"do": "cancel", "job": number})
                loop = asyncio.get_running_loop()
                self._leaving[number] = loop.call_later(STUCK, self.supervisor.kill)

    def go_on(self) -> None:
        """What waits is handed over where there is a lane for it."""
        while self._slots and self.state == "ready" and (self.queue or self.pool.give(self)):
            ticket = self.queue.popleft()
            if time.monotonic() >= ticket.deadline:
                ticket.fail(Refusal("expired"))
            elif not ticket.drawn.done():
                self._hand_over(ticket)

    def _hand_over(self, ticket: Ticket) -> None:
        asked, arena = ticket.asked, self.supervisor.memory
        assert asked is not None and arena is not None
        slot, number = self._slots.pop(), next(self.pool.numbers)
        pictures, at = [], 0
        for name, one in asked.pictures.items():
            end = arena.write(slot, at, one.data)
            pictures.append({"field": name, "offset": at, "size": end - at, "reads": one.reads})
            at = end
        told = {
            "do": "draw", "job": number, "slot": slot, "bundle": asked.bundle, "pipeline": asked.pipeline,
            "values": asked.values, "pictures": pictures, "loras": asked.loras, "fill": asked.fill,
            "deadline": None if math.isinf(ticket.deadline) else ticket.deadline, "partials": asked.partials,
        }  # fmt: skip
        ticket.move("running")
        if not self.supervisor.tell(told):
            self._slots.append(slot)
            ticket.fail(Refusal("worker_lost", retry=1))
            return
        self.running[number] = ticket, slot, time.monotonic()

    def _heard(self, told: Told, body: bytes) -> None:
        number = told.get("job", -1)
        if number not in self.running:
            return
        ticket, slot, since = self.running[number]
        if told["do"] == "progress":
            ticket.tell(Progress(told["row"], told["rows"], told["step"], told["steps"]))
            return
        if told["do"] == "partial":
            picture = told["width"], told["height"], body
            ticket.tell(Progress(told["row"], told["rows"], told["step"], told["steps"], told["index"], picture))
            return
        arena = self.supervisor.memory
        assert arena is not None
        if told["do"] == "done":
            pictures = [(w, h, arena.read(slot, at, size)) for w, h, at, size in told["pictures"]]
            drawn = Drawn(pictures, told["seeds"], told["settings"], told["timings"], told["warnings"])
            self.pool.took(time.monotonic() - since)
            ticket.succeed(drawn)
        else:
            ticket.fail(Refusal(told["code"], told.get("rule", ""), param=told.get("param")))
        del self.running[number]
        if (timer := self._leaving.pop(number, None)) is not None:
            timer.cancel()
        sent = sum(len(one.data) for one in ticket.asked.pictures.values()) if ticket.asked else 0
        came = max((at + size for *_, at, size in told.get("pictures", ())), default=0)
        arena.free(slot, max(sent, came))
        self._slots.append(slot)
        self.go_on()

    def _changed(self, state: str) -> None:
        if state == "ready":
            self.go_on()
            return
        for ticket, _, _ in self.running.values():
            ticket.fail(Refusal("worker_lost", retry=1))
        self.running.clear()
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        self._slots = list(range(self.lanes))
        if state == "stopped":
            waiting, self.queue = list(self.queue), deque()
            for ticket in waiting:
                try:
                    self.pool.enter(ticket)
                except Refusal as refusal:
                    ticket.fail(refusal)


class Pool:
    """All workers. draining: nothing new is taken."""

    def __init__(self, settings: Settings, setup: Told, command: Sequence[str] = ENGINE) -> None:
        self.settings = settings
        self.numbers = itertools.count(1)
        self.workers = [Worker(self, i, setup, command) for i in range(settings.workers)]
        self.draining = False
        self.seconds = 0.0  # a request's time in a worker, lately

    @property
    def ready(self) -> bool:
        return not self.draining and any(worker.state == "ready" for worker in self.workers)

    @property
    def facts(self) -> Told:
        """What the workers said of the bundles."""
        return next((one.supervisor.facts["bundles"] for one in self.workers if one.supervisor.facts), {})

    async def start(self) -> None:
        """Raises InputError where a worker cannot start."""
        await asyncio.gather(*(worker.supervisor.start() for worker in self.workers))

    async def close(self, leave: float | None = None) -> None:
        """leave: seconds that workers have to end by themselves."""
        await asyncio.gather(*(worker.supervisor.close(leave) for worker in self.workers))

    def took(self, seconds: float) -> None:
        self.seconds = seconds if not self.seconds else (1 - _WEIGHT) * self.seconds + _WEIGHT * seconds

    @property
    def retry(self) -> int:
        """Seconds until it is worth asking again: those that wait, one service time each."""
        waiting = sum(len(worker.queue) for worker in self.workers)
        return max(1, math.ceil(waiting * self.seconds / len(self.workers)))

    def enter(self, ticket: Ticket) -> None:
        """A ticket whose request is known begins to wait. Raises Refusal where it may not."""
        assert ticket.asked is not None
        if self.draining:
            raise Refusal("draining", retry=5, again=False)
        if time.monotonic() >= ticket.deadline:
            raise Refusal("expired")
        there = [worker for worker in self.workers if worker.state in ("ready", "down", "starting")]
        if not there:
            raise Refusal("unavailable", retry=10)
        liked = sorted(there, key=lambda worker: _weight(ticket.asked, worker.number), reverse=True)
        worker = next((one for one in liked if one.free), None) or min(liked, key=lambda one: len(one.queue))
        if len(worker.queue) >= self.settings.queue:
            raise Refusal("overloaded", retry=self.retry)
        if ticket.timer is None:
            left = ticket.deadline - time.monotonic()
            ticket.timer = asyncio.get_running_loop().call_later(left, self._expire, ticket)
        worker.enter(ticket)

    def give(self, idle: Worker) -> bool:
        """The oldest request that waits for another worker is put before this one, where there is any."""
        waiting = [(worker.queue[0].times["queued"], worker.number) for worker in self.workers if worker.queue]
        if not waiting:
            return False
        ticket = self.workers[min(waiting)[1]].queue.popleft()
        ticket.worker = idle
        idle.queue.append(ticket)
        return True

    def leave(self, ticket: Ticket, refusal: Refusal) -> None:
        """It ends here, and its worker stops drawing it."""
        if not ticket.drawn.done():
            if ticket.worker is not None:
                ticket.worker.leave(ticket)
            ticket.fail(refusal)

    def _expire(self, ticket: Ticket) -> None:
        self.leave(ticket, Refusal("expired"))

    async def drain(self, force: asyncio.Event) -> None:
        """Until nothing waits or runs, the time for it is over, or `force` is set."""
        self.draining = True
        until = time.monotonic() + self.settings.drain
        while not force.is_set() and time.monotonic() < until:
            if not any(worker.queue or worker.running for worker in self.workers):
                return
            await asyncio.sleep(0.02)


def _weight(asked: Asked | None, worker: int) -> bytes:
    assert asked is not None
    return hashlib.blake2b(repr((asked.bundle, asked.loras, worker)).encode(), digest_size=8).digest()
