"""Keeps a worker process: starts it, hears it, starts it again when it is gone, and leaves it when that does not help.

The worker is spawned, never forked: it has nothing of this process but its end of a socket and the memory that pictures
are left in. What is kept from there (`mapped`) and what is said is its owner's.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ..errors import InputError
from .channel import pack, receive
from .ring import memory

__all__ = ["WORKER", "Supervisor", "gone"]

WORKER = (sys.executable, "-P", "-m", "hotloop.serve.worker")
MOST, WITHIN = 5, 60.0  # crashes, seconds
_STILL = 20.0  # seconds without a sign of life after which a worker counts as stuck
_LEAVE = 3.0  # seconds that it has to end by itself
_BACKLOG = 1 << 20  # bytes that wait to be written to the worker, above which what may be lost is

Told = dict[str, Any]


Mapped = TypeVar("Mapped")


class Supervisor(Generic[Mapped]):
    """setup    the worker's first message
    mapped   called with a descriptor, a number of slots and their size: this process's side of a new worker's memory
    heard    called with every message that is no answer
    changed  called with "ready", "down" and "stopped"
    again    seconds after which a worker that fell too often is tried once more; None: never

    state    "starting", "ready", "down" (starting again), "stopped" (it fell too often) or "ended"
    """

    def __init__(
        self, setup: Told, mapped: Callable[[int, int, int], Mapped], slots: int, size: int, *,
        heard: Callable[[Told, bytes], object], changed: Callable[[str], object], command: Sequence[str] = WORKER,
        again: float | None = None,
    ) -> None:  # fmt: skip
        self.state, self.restarts, self.pid, self.facts = "starting", -1, 0, Told()
        self.beat: Told = {}
        self.memory: Mapped | None = None
        self._setup, self._heard, self._changed, self._command = setup, heard, changed, tuple(command)
        self._mapped, self._slots, self._size, self._again = mapped, slots, size, again
        self._crashes: deque[float] = deque(maxlen=MOST)
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Told]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._alive = 0.0

    async def start(self) -> None:
        """Until the first worker is ready. Raises InputError with what it says of its setup."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep(first), name="supervisor")
        try:
            await first
        except BaseException:
            await self.close()
            raise

    async def close(self, leave: float | None = None) -> None:
        """The worker ends, by itself or, after `leave` seconds, not."""
        self.state = "ended"
        self.tell({"do": "bye"})
        until = time.monotonic() + (_LEAVE if leave is None else leave)
        while self._process is not None and self._process.poll() is None and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._kill()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_LEAVE)
            self._task.cancel()

    def tell(self, told: Told, body: bytes = b"") -> bool:
        """Say something -> whether it was said: there may be no worker, or one that does not read."""
        writer = self._writer
        if writer is None or writer.transport.get_write_buffer_size() > _BACKLOG:
            return False
        writer.write(pack(told, body))
        return True

    async def ask(self, told: Told, body: bytes = b"") -> Told:
        """Say something and wait for the answer; bytes that follow it are its "body".

        Raises InputError where that is an error, or there is no worker.
        """
        number = next(self._ids)
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            if not self.tell(told | {"id": number}, body):
                raise gone()
            answer = await future
        finally:
            self._asked.pop(number, None)
        if "error" in answer:
            raise _Said(answer["error"])
        return answer

    # How.

    async def _keep(self, first: asyncio.Future[None]) -> None:
        while self.state != "ended":
            self.restarts += 1
            try:
                await self._run(first)
            except _Said as error:  # what it was set up with is refused: starting again would not help
                if not first.done():
                    first.set_exception(error)
                    return
                print(f"hotloop: worker: {error}", file=sys.stderr, flush=True)
            if self.state == "ended":
                return
            now = time.monotonic()
            self._crashes.append(now)
            often = len(self._crashes) == MOST and now - self._crashes[0] < WITHIN
            self.state = "stopped" if often else "down"
            if often:
                print(f"hotloop: the worker fell {MOST} times within {WITHIN:g} s; it is left alone", file=sys.stderr)
                if not first.done():
                    first.set_exception(InputError("serve", "the worker must start; its log says why it does not"))
            self._changed(self.state)
            if often and (self._again is None or not first.done() or first.exception() is not None):
                return
            if often and self._again is not None:
                self._crashes.clear()
                await asyncio.sleep(self._again)

    async def _run(self, first: asyncio.Future[None]) -> None:
        """One worker's life."""
        ours, theirs = socket.socketpair()
        fd = memory(self._slots * self._size)
        try:
            self.memory = self._mapped(fd, self._slots, self._size)
            arguments = (str(theirs.fileno()), str(fd), str(self._slots), str(self._size))
            self._process = subprocess.Popen(
                (*self._command, *arguments), pass_fds=(theirs.fileno(), fd), stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        finally:
            theirs.close()
            os.close(fd)
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        hearing = asyncio.create_task(self._hear(reader))
        watching = asyncio.create_task(self._watch())
        try:
            self.facts = await self.ask(self._setup)
            if self.state != "ended":
                self.state, self._alive = "ready", time.monotonic()
                self._changed("ready")
                if not first.done():
                    first.set_result(None)
            await hearing
        except InputError as error:
            if isinstance(error, _Said):
                raise
        finally:
            watching.cancel()
            hearing.cancel()
            self._writer.close()
            self._writer = None
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(gone())
            self._kill()
            self._process.wait()  # killed: it is gone at once

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                told, body = await receive(reader)
                self._alive = time.monotonic()
                if told["do"] == "answer":
                    future = self._asked.get(told["id"])
                    if future is not None and not future.done():
                        future.set_result(told | {"body": body})
                elif told["do"] == "beat":
                    self.beat = told
                else:
                    self._heard(told, body)
        except (EOFError, OSError):  # asyncio's IncompleteReadError is an EOFError
            pass
        for future in self._asked.values():
            if not future.done():
                future.set_exception(gone())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            if self.state == "ready" and time.monotonic() - self._alive > _STILL:
                print(f"hotloop: the worker gave no sign of life for {_STILL:g} s", file=sys.stderr, flush=True)
                self._kill()

    def kill(self) -> None:
        """A worker that does not do what it is told: it is started again."""
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()


class _Said(InputError):
    """A line of the worker's, as it is."""

    def __init__(self, line: str) -> None:
        place, _, rule = line.removeprefix("[").partition("] ")
        super().__init__(place, rule)


def gone() -> InputError:
    """What is answered while there is no worker."""
    return InputError("live", "the worker is starting again: ask once more in a moment")
