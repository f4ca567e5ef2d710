"""The sessions of a server: what they are set to, their controls and ledgers, who watches them.

All of this outlives the worker. When one is started again, every session is opened in it once more, its settings
whole, its versions and frames counted on, its controls repeated.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..live.ledgers import SourceLedger
from .config import Config
from .mirror import Mirror
from .ring import Ring
from .supervisor import Supervisor, gone
from .viewer import Finished, Viewer, plain
from .wire import Picture

__all__ = ["MAIN", "Session", "Sessions"]

PLACE = "live"
MAIN = "main"
_LOST = 1.0  # seconds
_PROMPT = "a smiling girl"  # where the server was told none
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")

Told = dict[str, Any]


class Session:
    """One session, whoever draws it. open: whether the worker has it. All on the event loop's thread."""

    def __init__(self, name: str, config: Config, worker: Supervisor[Ring]) -> None:
        self.name, self.mode, self.config, self.worker = name, config.mode, config, worker
        self.values: Told = ({"prompt": _PROMPT} if config.mode == "restyle" else {}) | dict(config.settings)
        self.version = self.frame = 0
        self.size: tuple[int, int] | None = None
        self.open = False
        self.viewers: set[Viewer] = set()
        self.pictures = SourceLedger()
        self.frames_lost = 0  # overwritten in the ring before they were read
        self.left: float | None = time.monotonic()  # when its last client went
        self.bus = Mirror(self._forward)
        self.keyframe: tuple[Told, bytes] = ({}, b"")  # as the worker packs it, for one after it
        self.home: tuple[Told, bytes] = ({}, b"")  # the avatar that a client brought, in place of the server's
        self.facts: Told = {}
        self._numbers = itertools.count()
        self._waiting: tuple[int, Picture, float | None, float] | None = None
        self._in_channel = False
        self._kinds: tuple[int, ...] = ()
        self._sources: dict[int, Viewer] = {}  # pictures in flight -> who sent them
        self._camera: Viewer | None = None  # who sent the last one
        self._pushed: float | None = None  # when it came
        self._picture: Picture | None = None  # it
        self._recent: tuple[float, int, float] = (time.monotonic(), 0, 0.0)  # since, frames, frames a second

    # The worker.

    async def begin(self) -> None:
        """Open it in the worker. Raises InputError."""
        values = dict(self.values)
        if self.config.size is not None and not {"size", "width", "height"} & values.keys():
            values["size"] = self.config.size
        self.open = False
        answer = await self.worker.ask({
            "do": "open", "s": self.name, "mode": self.mode, "fps": self.config.fps, "governed": self.config.governed,
            "values": values, "version": self.version, "frame": self.frame + 1, "keyframe": self.keyframe[0],
            "home": self.home[0],
        }, self.keyframe[1] + self.home[1])  # fmt: skip
        self.open, self._in_channel, self._kinds = True, False, ()
        self.values, self.version = answer["values"], answer["version"]
        self.facts = answer.get("facts", {})
        now = time.monotonic()
        self.bus.repeat(now)
        self.watch()
        if self._camera is not None and self._picture is not None:  # it may be the only one that is to come
            self.push(self._picture, self._camera, None, now)

    def fell(self) -> None:
        """The worker is gone, and with it what it had taken."""
        self.open = self._in_channel = False
        for number in list(self._sources):
            self.ended(number, "failed")
        self._waiting = None

    def watch(self) -> None:
        """Tell the worker what is to be made of frames."""
        kinds = tuple(sorted({viewer.kind for viewer in self.viewers if viewer.kind}))
        if self.open and kinds != self._kinds:
            self._kinds = kinds
            self.worker.tell({"do": "watch", "s": self.name, "kinds": kinds})

    async def _ask(self, told: Told, body: bytes = b"") -> Told:
        if not self.open:
            raise gone()
        return await self.worker.ask({"s": self.name, **told}, body)

    def _forward(self, told: Told) -> None:
        if self.open and self.mode != "restyle":
            self.worker.tell({"do": "bus", "s": self.name, **told})

    # Who is there.

    def join(self, viewer: Viewer) -> None:
        self.viewers.add(viewer)
        self.left = None
        self.watch()
        if self.open and viewer.kind:
            self.worker.tell({"do": "again", "s": self.name, "kind": viewer.kind})

    def leave(self, viewer: Viewer, now: float) -> None:
        self.viewers.discard(viewer)
        if viewer.name:
            self.bus.release(viewer.name)
        if viewer is self._camera:
            self.rest()
        if not self.viewers:
            self.left = now
        self.watch()

    def say(self, told: Told) -> None:
        for viewer in self.viewers:
            viewer.say(told)

    # What clients do.

    async def set(self, given: Mapping[str, Any], blend: int = 0, *, by: Viewer | None = None) -> int:
        """Other settings -> their version; all but who asked are told. Raises InputError, and nothing has changed."""
        values = self.config.limits.settings(given)
        answer = await self._ask({"do": "set", "blend": blend, "values": values})
        if answer["version"] > self.version:
            self.version, self.values = answer["version"], answer["values"]
        for viewer in self.viewers - {by}:
            viewer.say({"settings": self.values, "version": self.version})
        return int(answer["version"])

    async def play(self, name: str) -> None:
        """Raises InputError for a motion that is not there."""
        await self._ask({"do": "play", "name": name[:64]})

    async def avatar(self, told: Told, picture: bytes) -> Told:
        """A client's picture as the avatar, or a guess of its points -> what the client is told. Raises InputError."""
        answer = await self._ask({"do": "avatar", **told}, picture)
        if "home" in answer:
            self.home = answer["home"], bytes(answer["body"])
            self.facts = {name: value for name, value in self.facts.items() if name != "unsure"}
        return dict(answer["avatar"])

    async def scene(self, number: int) -> bytes:
        """Of frames in format warp. Raises InputError for one that is not there."""
        answer = await self._ask({"do": "scene", "number": number})
        return bytes(answer["body"])

    def push(self, picture: Picture, viewer: Viewer, captured: float | None, received: float) -> None:
        """A source picture. The newest wins, here as anywhere."""
        number = next(self._numbers)
        self.pictures.arrive(number)
        self._sources[number] = self._camera = viewer
        if self._pushed is None:
            self.say({"event": "source", "state": "here"})
        self._pushed, self._picture = received, picture
        if not self.open:
            self.ended(number, "failed")
            return
        before, self._waiting = self._waiting, (number, picture, captured, received)
        if before is not None:
            self.ended(before[0], "superseded")
        self._hand()

    def rest(self) -> None:
        """No more pictures come."""
        self._camera = self._pushed = self._picture = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:  # else it would come after the last word
            self.ended(waiting[0], "superseded")
        if self.open and self.mode == "restyle":
            self.worker.tell({"do": "rest", "s": self.name})

    def miss(self, now: float) -> None:
        """Say so where pictures came and come no more; the last one stays."""
        if self._pushed is not None and now - self._pushed > _LOST:
            self._pushed = None
            self.say({"event": "source", "state": "lost"})

    def _hand(self) -> None:
        """One picture at a time is on its way to the worker."""
        if self._in_channel or self._waiting is None:
            return
        (number, picture, captured, received), self._waiting = self._waiting, None
        self._in_channel = self.worker.tell(
            {"do": "picture", "s": self.name, "picture": number, "source": picture.source, "captured": captured,
             "received": received}, picture.data,
        )  # fmt: skip
        if not self._in_channel:
            self.ended(number, "superseded")

    # What the worker says.

    def took(self) -> None:
        self._in_channel = False
        self._hand()

    def ended(self, number: int, how: str, error: str | None = None) -> None:
        viewer = self._sources.pop(number, None)
        if viewer is None:
            return
        self.pictures.end(number, how)
        if error is not None:
            viewer.say({"error": error})

    def finished(self, told: Told, now: float) -> None:
        """A frame lies in the ring."""
        assert self.worker.memory is not None
        data = self.worker.memory.read(told["slot"], told["writing"])
        self.size = told["size"][0], told["size"][1]
        if told["frame"] != self.frame:
            self._count(now)
        self.frame = told["frame"]
        if data is None:
            self.frames_lost += 1
            return
        frame = Finished(data, told["frame"], told["begun"], told["since"], told["captured"])
        for viewer in self.viewers:
            if viewer.kind == told["kind"]:
                viewer.offer(frame, now)

    def _count(self, now: float) -> None:
        since, frames, rate = self._recent
        if now - since >= 1:
            self._recent = now, 1, frames / (now - since)
        else:
            self._recent = since, frames + 1, rate

    def refused(self, told: Told) -> None:
        """Settings that were taken could not be prepared."""
        self.values, self.version = told["values"], max(self.version, told["version"])
        self.say({"error": told["error"]})
        self.say({"settings": self.values, "version": self.version})

    async def stats(self, viewer: Viewer, now: float) -> Told:
        """Ledgers, latencies in seconds, versions, faults. Raises InputError while there is no worker."""
        told: Told = (await self._ask({"do": "stats"}))["stats"]
        told["source"] = self.pictures.counts()
        beat = self.worker.beat
        stale = now - self._recent[0] > 2
        told |= {
            "fps": 0.0 if stale else self._recent[2], "viewer": viewer.stats(now), "viewers": len(self.viewers),
            "frames_lost": self.frames_lost, "engine": self.worker.facts.get("engine"),
            "worker": {"restarts": self.worker.restarts, "pid": self.worker.pid, "cpu": beat.get("cpu"),
                       "rss": beat.get("rss")},
            "server": {"cpu": time.process_time()},
        }  # fmt: skip
        return plain(told)


class Sessions:
    """All sessions. `main` is there as long as the server; others go when nobody has been there for a while."""

    def __init__(self, config: Config, worker: Supervisor[Ring]) -> None:
        self.config, self.worker = config, worker
        self.all: dict[str, Session] = {}
        self.ending = False
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def main(self) -> Session:
        """Raises InputError where it cannot be opened as the server was told to."""
        return await self.find(None)

    async def find(self, name: str | None) -> Session:
        """The session of this name, None: the main one, "new": one of its own. Raises InputError."""
        name = MAIN if name is None else name
        if name in self.all:
            return self.all[name]
        if name not in ("new", MAIN):
            raise InputError(PLACE, "there is no such session", name if _NAME.fullmatch(name) else "another name")
        async with self._opening:
            if name in self.all:
                return self.all[name]
            if len(self.all) >= self.config.limits.sessions and not self._make_room():
                raise InputError(PLACE, f"at most {self.config.limits.sessions} sessions at once", len(self.all))
            made = Session(MAIN if name == MAIN else secrets.token_hex(8), self.config, self.worker)
            await made.begin()
            self.all[made.name] = made
            return made

    def sweep(self, now: float) -> None:
        """Close what nobody came back to; miss pictures that have ceased to come."""
        for session in self.all.values():
            session.miss(now)
        for session in self._left():
            if now - session.left > self.config.limits.idle:  # type: ignore[operator]
                self._close(session)

    def _left(self) -> list[Session]:
        """Those that nobody is in, the longest left first."""
        left = [one for one in self.all.values() if one.name != MAIN and one.left is not None]
        return sorted(left, key=lambda one: one.left or 0.0)

    def _make_room(self) -> bool:
        """Whoever is here goes before who may come back."""
        for session in self._left()[:1]:
            self._close(session)
            return True
        return False

    def _close(self, session: Session) -> None:
        del self.all[session.name]
        self.worker.tell({"do": "close", "s": session.name})

    def heard(self, told: Told, body: bytes = b"") -> None:
        """A message of the worker's."""
        session = self.all.get(told.get("s") or "")
        if session is None:
            return
        do = told["do"]
        if do == "frame":
            session.finished(told, time.monotonic())
        elif do == "ended":
            session.ended(told["picture"], told["how"], told.get("error"))
        elif do == "took":
            session.took()
        elif do == "keyframe":
            session.keyframe = told["keyframe"], body
            session.say({"event": "keyframe", "name": told["keyframe"]["name"]})
        elif do == "refused":
            session.refused(told)
        elif told.get("event") == "error":
            session.say({"error": told["error"]})
        else:
            session.say({key: value for key, value in told.items() if key not in ("do", "s")})

    def changed(self, state: str) -> None:
        """The worker's state."""
        for session in self.all.values():
            if state != "ready":
                session.fell()
            if state != "ready" or self.worker.restarts:
                session.say({"event": "worker", "state": state})
        if state == "ready" and self.all:
            task = asyncio.get_running_loop().create_task(self._resume())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _resume(self) -> None:
        for session in list(self.all.values()):
            try:
                await session.begin()
            except InputError as error:
                session.say({"error": str(error)})
                continue
            session.say({"event": "worker", "state": "resumed"})
            session.say({"settings": session.values, "version": session.version})

    def end(self) -> None:
        """Tell everyone that this is the end."""
        self.ending = True
        for session in self.all.values():
            session.say({"event": "ending"})

    @property
    def counts(self) -> Told:
        return {name: len(session.viewers) for name, session in self.all.items()}
