"""What the worker shows: a session of the server as its viewers see it, whatever draws it.

A show keeps what must not jump when what draws it is opened anew: the numbers of frames and of settings versions, and
the names that clients gave their pictures.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import HotloopError, InputError
from ..live.governor import Governor
from ..live.ledgers import SourceLedger
from ..live.session import Frame, Session
from ..live.settings import Settings
from ..live.stage import Stage
from ..live.watchdog import Watchdog
from .fields import Moved

__all__ = ["Incoming", "Made", "Opening", "Report", "Restyle", "Show", "Tell"]

_KEPT = 64  # names of pictures that may still be shown

Tell = Callable[..., object]  # a message, and bytes that follow it


class Opening(NamedTuple):
    """How a session is opened, or opened again: the numbers go on from `version` and `frame`, with its keyframe.
    home: the keyframe that a client brought, in place of the server's avatar."""

    name: str
    fps: float
    governed: bool
    values: Mapping[str, Any]
    version: int = 0
    frame: int = 0
    keyframe: Any = None
    home: Any = None


class Incoming(NamedTuple):
    """A source picture: the server's number of it, the client's, pixels uint8 [H, W, 3], its times (seconds)."""

    number: int
    source: int
    pixels: np.ndarray
    captured: float | None
    received: float


class Made(NamedTuple):
    """A finished frame: its number, its version, what its client calls its source, whether a signal led to it, and what
    it was drawn from where a viewer can draw that too."""

    frame: Frame
    number: int
    version: int
    source: int
    signal: bool
    moved: Moved | None = None


class Report:
    """Tells, once each: settings that could not be prepared, moves of the governor, faults that the watchdog found."""

    def __init__(self, name: str, tell: Tell) -> None:
        self._name, self._tell = name, tell
        self._unprepared = self._moves = self._faults = 0

    def look(
        self, settings: Settings[Any] | None, governor: Governor | None, watchdog: Watchdog, base: int,
        values: Callable[[], dict[str, Any]],
    ) -> None:  # fmt: skip
        """base: the number before the first version's."""
        if settings is not None and settings.unprepared > self._unprepared:
            self._unprepared = settings.unprepared
            self._tell({"do": "refused", "s": self._name, "error": settings.refusal, "values": values(),
                        "version": base + settings.active.number})  # fmt: skip
        if governor is not None and (moves := sum(governor.counts.values())) != self._moves:
            self._moves = moves
            if moves:  # else another ladder
                move = governor.moves[-1]
                self._event(event="rung", rung=move.taken, reason=move.reason)
        if (faults := sum(watchdog.counts.values())) > self._faults:
            self._faults = faults
            self._event(event="watchdog", faults=dict(watchdog.counts))

    def _event(self, **told: Any) -> None:
        self._tell({"do": "event", "s": self._name, **told})


class Show(Protocol):
    """kinds: the formats that are watched; nothing is made for its own sake while there are none."""

    name: str
    kinds: tuple[int, ...]

    def set(self, blend: int, values: Mapping[str, Any]) -> int: ...

    def values(self) -> dict[str, Any]: ...

    def push(self, picture: Incoming) -> None: ...

    def rest(self) -> None: ...

    def play(self, name: str) -> None: ...

    def bus(self, told: Mapping[str, Any]) -> None:
        """A deed of the server's bus."""

    def scene(self, number: int) -> bytes:
        """The pictures that frames of format warp move. Raises InputError for one that is not there."""

    def facts(self) -> dict[str, Any]:
        """What clients are told beside the settings."""

    def take(self) -> Made | None:
        """A frame that is new since the last call."""

    def look(self, now: float) -> float | None:
        """When there is something to do again; None: when something comes."""

    def stats(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class _Accounts(SourceLedger):
    """A session's ledger that knows what the server and the client call its pictures, and tells how each has ended."""

    def __init__(self, ended: Callable[[int, str], object]) -> None:
        super().__init__()
        self._ended = ended
        self._numbers: dict[int, int] = {}
        self._sources: OrderedDict[int, int] = OrderedDict()
        self.upcoming: tuple[int | None, int] = (None, 0)  # of the server (None: it is not told), of the client

    def arrive(self, picture: int) -> None:
        super().arrive(picture)
        number, self._sources[picture] = self.upcoming
        if number is not None:
            self._numbers[picture] = number
        while len(self._sources) > _KEPT:
            self._sources.popitem(last=False)

    def end(self, picture: int, how: str) -> None:
        super().end(picture, how)
        if (number := self._numbers.pop(picture, None)) is not None:
            self._ended(number, how)

    def source(self, picture: int | None) -> int:
        """The client's name for it; 0 where it has none."""
        return 0 if picture is None else self._sources.get(picture, 0)


class Restyle:
    """Redraws the pictures that come; dreams until one does, and again after `rest`.

    tell: events, and how pictures ended. The last picture is drawn again where only the settings have changed.
    """

    def __init__(self, stage: Stage, opening: Opening, tell: Tell, background: Executor) -> None:
        self.name, self.kinds = opening.name, tuple[int, ...]()
        self._stage, self._opening, self._tell, self._background = stage, opening, tell, background
        self._lock = threading.RLock()
        self._frames = itertools.count(opening.frame)
        self._last: Incoming | None = None
        self._waiting: Incoming | None = None
        self._changing = self._closed = False
        self._resting = True  # nobody says that pictures come
        self._base = opening.version  # the session's versions count from 1
        self._begin(self._open(source=False, values=opening.values))

    def _open(self, *, source: bool, values: Mapping[str, Any]) -> Session:
        opening = self._opening
        return self._stage.open(
            source=source, interval=1 / opening.fps, governed=opening.governed, paced=True, **values
        )

    def _begin(self, session: Session) -> None:
        self._accounts = session.pictures = _Accounts(self._ended)
        self._report = Report(self.name, self._tell)
        self._drawn = 0  # the version that the last picture was last handed over in
        self._session = session

    # What a client does.

    def set(self, blend: int, values: Mapping[str, Any]) -> int:
        with self._lock:
            return self._base + self._session.set(blend=blend, **values)

    def values(self) -> dict[str, Any]:
        return dict(self._session.settings.values)

    def push(self, picture: Incoming) -> None:
        with self._lock:
            self._resting = False
            if self._closed:
                self._ended(picture.number, "superseded")
            elif self._session.source and not self._changing:
                self._hand(picture, number=picture.number)
            else:
                before, self._waiting = self._waiting, picture
                if before is not None:
                    self._ended(before.number, "superseded")
                self._change(source=True)

    def rest(self) -> None:
        """No more pictures come: it dreams."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                self._ended(waiting.number, "superseded")
            self._resting = True
            if self._session.source:
                self._change(source=False)

    def play(self, name: str) -> None:
        raise InputError("live", "motions are of mode animate", name)

    # What the worker's loop does.

    def look(self, now: float) -> float | None:
        session = self._session
        session.paused = not self.kinds
        self._report.look(session.settings, session.governor, session.watchdog, self._base, self.values)
        if not session.source:
            return None if session.paused else session.due
        version = session.settings.active.number
        idle = not session.flying and not len(session.inbox)
        if idle and not session.paused and (session.sliding or version != self._drawn):
            with self._lock:
                if self._last is not None and session is self._session:
                    self._hand(self._last._replace(captured=None, received=now), number=None)
        return session.due if len(session.inbox) and not session.paused else None

    def bus(self, told: Mapping[str, Any]) -> None:
        """Nothing is moved by controls."""

    def scene(self, number: int) -> bytes:
        raise InputError("live", "scenes are of mode animate", number)

    def facts(self) -> dict[str, Any]:
        return {}

    def take(self) -> Made | None:
        session = self._session
        if (frame := session.outbox.take()) is None:
            return None
        stamp = frame.stamp
        source, signal = self._accounts.source(stamp.source), stamp.source is not None
        return Made(frame, next(self._frames), self._base + stamp.version, source, signal)

    def stats(self) -> dict[str, Any]:
        session = self._session
        told = session.stats()
        moves = told.pop("moves")
        return told | {
            "version": self._base + told["version"], "dreams": not session.source,
            "moves": [move._asdict() for move in list(moves)[-8:]],
            "interval": session.interval,
        }  # fmt: skip

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._waiting is not None:
                self._ended(self._waiting.number, "superseded")
                self._waiting = None
            self._session.close()

    # How.

    def _hand(self, picture: Incoming, number: int | None) -> None:
        self._last, self._drawn = picture, self._session.settings.active.number
        self._accounts.upcoming = number, picture.source
        self._session.push(picture.pixels, captured=picture.captured, received=picture.received)

    def _ended(self, number: int, how: str) -> None:
        self._tell({"do": "ended", "s": self.name, "picture": number, "how": how})

    def _change(self, *, source: bool) -> None:
        """From dreaming to redrawing or back, prepared beside the frames."""
        if not self._changing:
            self._changing = True
            self._background.submit(self._changed, source)

    def _changed(self, source: bool) -> None:
        before = self._session
        values = dict(before.settings.values)
        try:
            made = self._open(source=source, values=values)
        except HotloopError as error:  # a dream that these settings do not allow: what there is stays
            with self._lock:
                self._changing = False
                waiting, self._waiting = self._waiting, None
                if waiting is not None:
                    self._ended(waiting.number, "failed")
            self._tell({"do": "event", "s": self.name, "event": "source", "error": str(error)})
            return
        with self._lock:
            if (now := dict(before.settings.values)) != values:
                made.set(**now)
            # The numbers go on: what was asked for last keeps its own.
            self._base += before.settings.number - made.settings.number
            self._begin(made)
            self._changing = False
            waiting, self._waiting = self._waiting, None
            if self._closed:
                made.close()
            elif waiting is not None and made.source:
                self._hand(waiting, number=waiting.number)
            elif waiting is not None:
                self._waiting = waiting
                self._change(source=True)
            elif made.source and self._resting:  # the last word came while it was being opened
                self._change(source=False)
            if not made.source:
                self._last = None
            before.close()
