"""One WebSocket of a session: who it is, what it says, what it is sent. Nothing that a client sends ends a stream."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import HotloopError, InputError
from ..live.controls import expression
from ..live.sources.datagrams import Bucket
from .auth import Tokens, address_of
from .avatars import MAGIC, Brought, brought, number_of
from .limits import Limits
from .sessions import Session, Sessions
from .viewer import Viewer, plain
from .wire import FORMATS, Ask, Hello, ask, hello, picture

__all__ = ["Connections"]

PLACE = "live"
_PING = 1.0  # seconds between questions for a client's clock
_MONITOR = 0.05  # seconds between two looks at the controls
_ANSWERS = 32
_REFUSED, _TOO_MANY, _ENDING = 1008, 1013, 1001


class Connections:
    """All of a server's. At most so many at once, and each has to say who it is."""

    def __init__(self, sessions: Sessions, tokens: Tokens, limits: Limits) -> None:
        self.sessions, self.tokens, self.limits = sessions, tokens, limits
        self.open: set[Connection] = set()
        self._numbers = itertools.count(1)

    async def serve(self, socket: WebSocket) -> None:
        await socket.accept()
        if self.sessions.ending:
            await _end(socket, _ENDING, "[live] the server is ending")
        elif len(self.open) >= self.limits.connections:
            await _end(socket, _TOO_MANY, f"[live] at most {self.limits.connections} connections at once")
        else:
            one = Connection(self, socket, next(self._numbers))
            self.open.add(one)
            try:
                await one.serve()
            except (WebSocketDisconnect, RuntimeError, OSError):  # it went while something was sent to it
                pass
            finally:
                self.open.discard(one)


class Connection:
    def __init__(self, all_: Connections, socket: WebSocket, number: int) -> None:
        self._sessions, self._tokens, self._limits = all_.sessions, all_.tokens, all_.limits
        self._socket, self._name = socket, f"client {number}"
        self._messages = Bucket(self._limits.messages, self._limits.burst)
        self._errors = Bucket(self._limits.errors, 2 * self._limits.errors)
        self._tasks: set[asyncio.Task[None]] = set()
        self._joined = False
        self._brought, self._dressing = b"", False  # an avatar's picture, and whether one is being made of it

    async def serve(self) -> None:
        if (told := await self._hello()) is None:
            return
        try:
            session = await self._sessions.find(told.session)
        except InputError as error:
            await _end(self._socket, _TOO_MANY, str(error))
            return
        # Who asks for all that there are is held to no pace: signals may hurry a frame a little.
        fps = told.fps if told.fps < session.config.fps else math.inf
        viewer = Viewer(told.role, FORMATS[told.format], fps, self._name)
        session.join(viewer)
        try:
            viewer.say(self._welcome(session))
            sending = asyncio.create_task(self._send(viewer))
            others = [asyncio.create_task(self._ping(viewer))]
            if told.role == "monitor":
                others.append(asyncio.create_task(self._monitor(session, viewer)))
            receiving = asyncio.create_task(self._receive(session, viewer))
            try:
                await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, receiving, *others, *self._tasks):
                    task.cancel()
                await asyncio.gather(sending, receiving, *others, *self._tasks, return_exceptions=True)
        finally:
            session.leave(viewer, time.monotonic())

    async def _hello(self) -> Hello | None:
        """Who it is; None where it was sent away."""
        address = address_of(self._socket.scope)
        try:
            message = await asyncio.wait_for(self._socket.receive(), self._limits.hello)
            if message["type"] == "websocket.disconnect":
                return None
            if (text := message.get("text")) is None or len(text) > self._limits.text:
                raise InputError(PLACE, 'the first message must be {"hello": 1, ...}', "bytes" if not text else "")
            told = hello(text, self._limits.fps)
        except TimeoutError:
            await _end(self._socket, _REFUSED, f"[live] say hello within {self._limits.hello:g} s")
            return None
        except InputError as error:
            await _end(self._socket, _REFUSED, str(error))
            return None
        if self._tokens.blocked(address):
            await _end(self._socket, _REFUSED, "[live] too many wrong tokens: wait a minute")
            return None
        if not self._tokens.allows(told.token):
            self._tokens.failed(address)
            await _end(self._socket, _REFUSED, "[live] the token is wrong")
            return None
        return told

    def _welcome(self, session: Session) -> dict[str, Any]:
        width, height = session.size or (session.worker.facts.get("size") or (0, 0))
        return {
            "welcome": 1, "session": session.name, "mode": session.mode, "width": width, "height": height,
            "fps": session.config.fps, "settings": session.values, "version": session.version,
            "controls": controls_of(session), "server": 1000 * time.monotonic(),
            "recording": session.config.record is not None, **session.facts,
        }  # fmt: skip

    # What it is sent.

    async def _send(self, viewer: Viewer) -> None:
        while not viewer.too_slow:
            await viewer.wake.wait()
            viewer.wake.clear()
            for told in viewer.texts():
                await self._socket.send_text(json.dumps(plain(told), separators=(",", ":")))
                if told.get("event") == "ending":
                    await self._socket.close(_ENDING, "the server is ending")
                    return
            if (frame := viewer.frame()) is not None:
                await self._socket.send_bytes(frame.data)
                viewer.sent(frame, time.monotonic())
        await self._socket.close(_REFUSED, "too slow to be answered")

    async def _ping(self, viewer: Viewer) -> None:
        while True:
            viewer.say({"ping": 1000 * time.monotonic()})
            await asyncio.sleep(_PING)

    async def _monitor(self, session: Session, viewer: Viewer) -> None:
        while True:
            now = time.monotonic()
            session.bus.sample(now)
            if not viewer.pending:  # a slow one sees fewer, not older ones
                viewer.say({"controls": session.bus.snapshot(now)})
            await asyncio.sleep(_MONITOR)

    # What it says.

    async def _receive(self, session: Session, viewer: Viewer) -> None:
        dropped = False
        while True:
            while viewer.pending > _ANSWERS:  # who does not read its answers is not read either
                await asyncio.sleep(0.01)
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            now = time.monotonic()
            if not self._messages.takes(now):
                if not dropped:
                    self._refuse(viewer, f"[live] at most {self._limits.messages:g} messages a second", now)
                dropped = True
                continue
            dropped = False
            try:
                if (data := message.get("bytes")) is not None:
                    if data[:4] == MAGIC:
                        self._avatar(session, viewer, data)
                    else:
                        self._picture(session, viewer, data, now)
                else:
                    self._ask(session, viewer, ask(message["text"], self._limits.text), now)
            except HotloopError as error:
                self._refuse(viewer, str(error), now)

    def _refuse(self, viewer: Viewer, line: str, now: float, **names: Any) -> None:
        if self._errors.takes(now):
            viewer.say({"error": line, **names})

    def _picture(self, session: Session, viewer: Viewer, data: bytes, now: float) -> None:
        _owner(viewer, "send pictures")
        if session.mode != "restyle":
            raise InputError(PLACE, "pictures are redrawn in mode restyle", session.mode)
        told = picture(data, self._limits.picture_bytes)
        session.push(told, viewer, _ours(viewer, told.captured, now), now)

    def _avatar(self, session: Session, viewer: Viewer, data: bytes) -> None:
        _owner(viewer, "bring an avatar")
        if session.mode != "animate":
            raise InputError(PLACE, "an avatar is of mode animate", session.mode)
        try:
            if self._dressing:
                raise InputError(PLACE, "one avatar at a time: wait for the answer", 2)
            told = brought(data, self._limits, self._brought)
        except InputError as error:
            self._refuse(viewer, str(error), time.monotonic(), id=number_of(data))
            return
        self._brought = told.data
        self._later(self._dressed(session, viewer, told))
        self._dressing = True

    async def _dressed(self, session: Session, viewer: Viewer, told: Brought) -> None:
        try:
            viewer.say({"avatar": await session.avatar(told.told(), told.data), "id": told.id})
        except InputError as error:
            self._refuse(viewer, str(error), time.monotonic(), id=told.id)
        finally:
            self._dressing = False

    def _ask(self, session: Session, viewer: Viewer, told: Ask, now: float) -> None:
        message = told.message
        if told.ack is not None:
            viewer.acknowledge(told.ack, told.canvas, now)
        if told.ping is not None:
            viewer.say({"pong": told.ping, "server": 1000 * now})
        if told.pong is not None and told.client is not None:
            viewer.clock.ping(told.pong / 1000, told.client / 1000, now)
        if told.source is False:
            _owner(viewer, "say that no pictures come")
            session.rest()
        if message.controls:
            _owner(viewer, "move controls")
            self._join(session, viewer)
            t = None if message.t is None else _ours(viewer, message.t, now)
            line = session.bus.put(viewer.name, now if t is None else t, message.controls, captured=t is not None)
            if line is not None:
                self._refuse(viewer, line, now)
        given = (told.set or {}) | message.settings
        if "expression" in given:  # a control, wherever it is said
            _owner(viewer, "move controls")
            self._join(session, viewer)
            session.bus.put(viewer.name, now, expression(given.pop("expression")))
        if told.set is not None or message.settings:
            _owner(viewer, "change settings")
            self._later(self._set(session, viewer, given, told))
        if message.play is not None:
            _owner(viewer, "play motions")
            self._later(self._answered(viewer, session.play(message.play), told.id))
        if told.stats:
            self._later(self._stats(session, viewer, told.id))
        if told.record:
            raise InputError(PLACE, "whether a server records is told at its start (--record)")

    def _join(self, session: Session, viewer: Viewer) -> None:
        """What it says stays until it says otherwise, or goes. Raises InputError where the bus has too many sources."""
        if not self._joined:
            session.bus.join(viewer.name, smooth=False, timeout=math.inf)
            self._joined = True

    def _later(self, work: Any) -> None:
        """What waits for the worker, beside what this client says next."""
        if len(self._tasks) >= 64:
            work.close()
            raise InputError(PLACE, "at most 64 questions at once")
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set(self, session: Session, viewer: Viewer, given: dict[str, Any], told: Ask) -> None:
        names = {} if told.id is None else {"id": told.id}
        try:
            version = await session.set(given, told.blend, by=viewer) if given else session.version
        except InputError as error:
            self._refuse(viewer, str(error), time.monotonic(), **names)
            return
        viewer.say({"settings": session.values, "version": version, **names})

    async def _answered(self, viewer: Viewer, work: Any, name: Any) -> None:
        names = {} if name is None else {"id": name}
        try:
            await work
        except InputError as error:
            self._refuse(viewer, str(error), time.monotonic(), **names)
        else:
            if names:
                viewer.say({"done": 1, **names})

    async def _stats(self, session: Session, viewer: Viewer, name: Any) -> None:
        names = {} if name is None else {"id": name}
        try:
            viewer.say({"stats": await session.stats(viewer, time.monotonic()), **names})
        except InputError as error:
            self._refuse(viewer, str(error), time.monotonic(), **names)


def controls_of(session: Session) -> dict[str, float]:
    now = time.monotonic()
    session.bus.sample(now)
    return {row["name"]: round(row["value"], 4) for row in session.bus.snapshot(now)["controls"]}


def _owner(viewer: Viewer, deed: str) -> None:
    if viewer.role != "owner":
        raise InputError(PLACE, f"only an owner may {deed}", viewer.role)


def _ours(viewer: Viewer, milliseconds: float, now: float) -> float | None:
    """A client's time on our clock, not in the future; None while its clock is unknown, or where it makes no sense."""
    t = viewer.clock.ours(milliseconds / 1000, now)
    return None if t is None or now - t > 60 else min(t, now)


async def _end(socket: WebSocket, code: int, line: str) -> None:
    """One line, and the end."""
    try:
        await socket.send_text(json.dumps({"error": line}))
        await socket.close(code, line[:120])
    except (WebSocketDisconnect, RuntimeError, OSError):
        pass
