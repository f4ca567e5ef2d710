"""One viewer's avatar: controls in, frames out. It has no thread and no clock of its own.

`tick(now)` makes the frame of that time: the controls are sampled, a motion that plays is added, a performance turns
them into fields, `warp_blend` draws. A keyframe that was drawn in the background takes over by a transition. Where
nothing has changed, nothing is drawn, and the frame says so.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...checks import check_finite, check_integer, check_number
from ...errors import InputError, NonFiniteError
from ...request import Request
from .. import motions
from ..bus import Bus
from ..controls import INDEX, Face
from ..governor import Governor, Rung, animate_ladder
from ..ledgers import ProducedLedger
from ..recording import Recording, digest
from ..session import Controls, Frame
from ..settings import PLACE, Settings
from ..stamps import Histogram, Stamp
from ..watchdog import Watchdog
from . import transition
from .gate import Gate
from .keyframe import SIDE, Keyframe, builtin_keyframe
from .performer import Drawing, Performance, Performer
from .rig import Rig
from .still import Still

__all__ = ["STEPS", "AnimationSession", "Painter", "drawn"]

# Of keyframes: four steps of img2img, which keep the face where it is.
_DEFAULTS: dict[str, Any] = {"prompt": "", "num_inference_steps": 4, "strength": 0.65}
_READY = 2  # drawn keyframes that wait for their turn
_HELD = 1.0  # seconds that settings wait on a rung that pauses keyframes, at most
_MARGIN = 0.003  # seconds before a frame in which no background work begins
STEPS = 1024  # a scaled control is told in so many steps


class Painter(Protocol):
    """What draws new keyframes, on the thread that settings are prepared on; gate: asked between its engine calls."""

    gate: Gate

    def check(self, request: Request) -> None: ...

    def paint(self, request: Request, current: Keyframe) -> Keyframe: ...


@dataclass(eq=False)
class _Playing:
    name: str
    since: float


class AnimationSession:
    """An avatar that lives: it blinks and breathes by itself and does what its controls say.

    keyframe    who it is at first, by default the avatar that comes with hotloop
    performer   how keyframes are moved, by default the geometric rig
    controls    sampled at every frame's time; by default a `Bus` of its own with idle life, `session.bus`
    interval    seconds between frames; side: pixels a side
    governed    cheaper ways to make a frame are warmed now, and taken to hold the interval
    painter     draws keyframes from prompts; without one, `set` takes no settings but `expression`
    background  where keyframes are drawn; None: between frames, at the next tick
    clock       seconds, monotonic: what frames cost is measured by it
    idle        seed of the idle life of a bus of its own; `seed` is a setting, of keyframes that are drawn
    settings    of THE table, "live", for keyframes that are drawn

    Frames are premultiplied RGBA, uint8 [side, side, 4]. Raises InputError.
    """

    def __init__(
        self, keyframe: Keyframe | None = None, performer: Performer | None = None, *, controls: Controls | None = None,
        interval: float = 1 / 60, side: int = SIDE, governed: bool = False, painter: Painter | None = None,
        background: Executor | None = None, recording: Recording | None = None,
        clock: Callable[[], float] = time.monotonic, number: int = 0, idle: int = 0, sway: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        check_number(PLACE, "interval", interval, 1e-4, 3600)
        check_integer(PLACE, "side", side, 16, 4096)
        self.number, self.interval, self.side, self.clock, self.sway = number, interval, side, clock, sway
        self.performer = Rig() if performer is None else performer
        self.controls = Bus(seed=idle) if controls is None else controls
        self.painter = painter
        self.produced, self.latencies, self.watchdog = ProducedLedger(), Histogram(), Watchdog()
        self.unchanged = self.drawn_keyframes = 0
        self.closed = False
        self.governor: Governor | None = None
        self._face = Face(self.performer.table)
        self._background, self._preparing = background, None if background is None else _done()
        self._recording, self._lock = recording, threading.RLock()
        self._frames = itertools.count()
        keyframe = builtin_keyframe() if keyframe is None else keyframe
        self._home = (
            keyframe  # what new ones are drawn over: a prompt and a seed give the same one, whatever came between
        )
        self._performance = self.performer.prepare(keyframe)
        self._ready: Performance | None = None
        self._before: tuple[Performance, float] | None = None  # what it turns from, and since when
        self._playing: _Playing | None = None
        self._expression: str | None = None
        self._still = Still()
        self.last: tuple[Performance, np.ndarray, float] | None = None  # what the last frame was made of; None: of two
        self._last_begun: float | None = None
        self._asked_since: float | None = None  # when settings began to wait
        self._version = 1
        self._prepared: dict[str, Performance] = {}  # keyframes that were drawn, ready
        self.settings: Settings[Keyframe] | None = None
        if painter is not None:
            kept = Settings(_DEFAULTS | settings, check=self._check, prepare=self._paint)
            self.settings = kept
            if kept.active.prepared is not keyframe:
                self._performance = self.performer.prepare(kept.active.prepared)
        elif settings:
            self._refuse_settings(settings)
        if governed:
            self.governor = self._warmed()

    # What a viewer does.

    @property
    def keyframe(self) -> Keyframe:
        return self._performance.keyframe

    @property
    def bus(self) -> Bus:
        """The controls, where they come from a bus. Raises InputError where they do not."""
        if not isinstance(self.controls, Bus):
            raise InputError(PLACE, "this session's controls do not come from a bus", type(self.controls).__name__)
        return self.controls

    def set(self, **given: Any) -> int:
        """Other settings -> the number of the version that will have them: a keyframe is drawn in the background and
        takes over when it is there. expression: one of the controls' expressions, shown at once, or None.

        Raises InputError for what is refused; nothing has changed then.
        """
        given = dict(given)
        if "expression" in given:
            name = given.pop("expression")
            if name is not None and name not in ("neutral", *_MOODS):
                raise InputError(PLACE, f"expression must be one of {', '.join(_MOODS)}, neutral", name)
            if given:
                number = self.set(**given)
                self._expression = name
                return number
            self._expression = name
            return self._version
        if self.settings is None:
            self._refuse_settings(given)
            return self._version
        return self.settings.set(**given)

    def show(self, keyframe: Keyframe) -> None:
        """This keyframe from the next frame on, by a transition; new ones are drawn over it.

        Raises InputError for one that cannot be moved.
        """
        ready = self.performer.prepare(keyframe)
        with self._lock:
            self._ready, self._home = ready, keyframe

    def play(self, name: str) -> float:
        """A motion, now: one of `hotloop.live.motions.CLIPS` -> its seconds. The one that plays ends."""
        motions.at(name, 0.0)
        with self._lock:
            self._playing = _Playing(name, self.clock())
        return motions.SECONDS

    def frames(self, *, seconds: float | None = None) -> Iterator[Frame]:
        """Frames as their times come, on the caller's thread, until it is closed or so many seconds are over."""
        begun = due = self.clock()
        while not self.closed and (seconds is None or due - begun < seconds):
            now = self.clock()
            if now < due:
                time.sleep(min(due - now, 0.05))
                continue
            due = max(due + self.interval, now - self.interval)  # late frames are left out, not caught up with
            if (frame := self.tick(now)) is not None:
                yield frame

    def close(self) -> None:
        with self._lock:
            if not self.closed:
                self.closed = True
                self._note("close", session=self.number)

    def __enter__(self) -> AnimationSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> dict[str, Any]:
        """Frames, latencies in seconds, the version and what was refused, faults, the governor's rung and moves."""
        settings, governor = self.settings, self.governor
        return {
            "frames": self.produced.counts() | {"unchanged": self.unchanged}, "latency": self.latencies.summary(),
            "version": self._version, "refused": settings.refused if settings else 0,
            "refusal": settings.refusal if settings else "", "faults": dict(self.watchdog.counts),
            "keyframe": self.keyframe.name, "keyframes": self.drawn_keyframes, "turning": self._before is not None,
            "playing": self._playing.name if self._playing else None,
            "rung": governor.rung.name if governor else None, "moves": list(governor.moves) if governor else [],
        }  # fmt: skip

    # Frames.

    def tick(self, now: float | None = None, *, captured: float | None = None) -> Frame | None:
        """The frame of this time; None where a lower rate leaves it out, or the session is closed.

        captured: when what moves it was taken, where a sender told it.
        """
        now = self.clock() if now is None else now
        gate = None if self.painter is None or self._background is None else self.painter.gate
        if gate is not None:
            gate.close()
        try:
            with self._lock:
                return None if self.closed else self._tick(now, captured)
        finally:
            if gate is not None:
                gate.open(now + self.interval - _MARGIN)

    def _tick(self, now: float, captured: float | None) -> Frame | None:
        self._settle(now)
        rung = self.governor.rung if self.governor else None
        rate = rung.intervals if rung else 1
        if rate > 1 and self._last_begun is not None and now - self._last_begun < (rate - 0.5) * self.interval:
            return None
        self._last_begun = now
        stamp = Stamp(next(self._frames), None, self._version, captured=captured, received=now, taken=now)
        sample = self.controls.sample(now)
        vector = self._vector(sample, now)
        stamp.controls = sample
        t = now if self.sway else 0.0
        side = int(rung.changes.get("side", self.side)) if rung else self.side
        return self._made(stamp, vector, t, side, now)

    def _made(self, stamp: Stamp, vector: np.ndarray, t: float, side: int, now: float) -> Frame:
        mix, before = self._turning(now)
        key = (self._performance, before, mix, side, t, vector.tobytes())
        if (same := self._still.same(key)) is not None:
            self.unchanged += 1
            stamp.kind, stamp.decoded = "unchanged", self.clock()
            return Frame(same, stamp)
        self.last = None if before is not None else (self._performance, vector, t)
        performances = (self._performance, before)
        seen = self.watchdog.see(
            lambda: drawn(*performances, mix, vector, t, side),
            lambda: drawn(*performances, mix, vector, t, side, again=True),
            moved=self._still.moved(vector),
        )  # fmt: skip
        stamp.decoded, stamp.fault, stamp.kind = self.clock(), seen.fault, "held" if seen.held else "drawn"
        pixels = np.zeros((side, side, 4), np.uint8) if seen.pixels is None else seen.pixels
        self._still.keep(key, pixels, vector)
        self.produced.held += seen.held
        self.produced.drawn += not seen.held
        self.produced.again += seen.again and not seen.held
        if stamp.latency is not None:
            self.latencies.add(stamp.latency)
        self._note_frame(stamp, before, mix, vector, t, side, pixels)
        if self.governor is not None and stamp.taken is not None:
            self._govern(stamp.decoded, stamp.decoded - stamp.taken)
        return Frame(pixels, stamp)

    def _vector(self, sample: np.ndarray, now: float) -> np.ndarray:
        """The performer's controls, in steps so small that nobody sees them: what is equal is then equal."""
        vector = self._face.vector(sample)
        added: dict[str, float] = {}
        if self._playing is not None:
            share = (now - self._playing.since) / motions.SECONDS
            if share >= 1:
                self._playing = None
            else:
                added = dict(motions.at(self._playing.name, max(share, 0.0)))
        if self._expression is not None and self._expression in _MOODS:
            rest = max(0.0, 1.0 - sum(float(sample[INDEX[name]]) for name in _MOODS))
            added[self._expression] = added.get(self._expression, 0.0) + rest
        if added:
            vector = self._face.plus(vector, added)
        return np.round(vector * STEPS).astype(np.float32) / np.float32(STEPS)

    def _turning(self, now: float) -> tuple[float, Performance | None]:
        """How much of the present keyframe shows, and what it turns from."""
        if self._before is None:
            return 1.0, None
        before, since = self._before
        share = (now - since) / transition.SECONDS
        if share >= 1:
            self._before = None
            return 1.0, None
        share = max(share, 0.0)
        return round(share * share * (3 - 2 * share) * STEPS) / STEPS, before

    # Settings and keyframes.

    def _settle(self, now: float) -> None:
        settings = self.settings
        if settings is not None:
            if self._may_draw(settings, now):
                if self._background is None:
                    settings.prepare()
                elif self._preparing is not None and self._preparing.done():
                    self._preparing = self._background.submit(settings.prepare)
            if (version := settings.swap()) is not None:
                self._version = version.number
                if version.prepared is not self.keyframe:
                    self._ready = self._prepared.pop(version.prepared.id, None) or self.performer.prepare(
                        version.prepared
                    )
        if self._ready is not None and self._before is None:
            self._before, self._performance, self._ready = (self._performance, now), self._ready, None
            if self.settings is None:
                self._version += 1

    def _may_draw(self, settings: Settings[Keyframe], now: float) -> bool:
        """Whether there are settings to be prepared now."""
        if not settings.pending:
            self._asked_since = None
            return False
        if self._asked_since is None:
            self._asked_since = now
        paused = self.governor is not None and bool(self.governor.rung.changes.get("paused"))
        return not paused or now - self._asked_since > _HELD

    def _check(self, request: Request, blend: int) -> None:
        if blend:
            raise InputError(PLACE, "keyframes turn in a fixed time: blend must be 0", blend)
        assert self.painter is not None
        self.painter.check(request)

    def _paint(self, request: Request, blend: int) -> Keyframe:
        """On the background's thread."""
        assert self.painter is not None
        if not request["prompt"] or not any(request.prompts):
            return self._home
        made = self.painter.paint(request, self._home)
        ready = self.performer.prepare(made)
        with self._lock:
            self._prepared[made.id] = ready
            while len(self._prepared) > _READY:  # those that a newer version has overtaken
                del self._prepared[next(iter(self._prepared))]
        self.drawn_keyframes += 1
        return made

    def _refuse_settings(self, given: dict[str, Any]) -> None:
        name = next(iter(given), None)
        if name is not None:
            rule = "this session draws no keyframes, so it takes no settings but expression: open it with a model"
            raise InputError(PLACE, rule, name)

    # Deadlines.

    def _warmed(self) -> Governor:
        """Every rung is drawn once before it can be taken."""
        governor = Governor(animate_ladder(self.side, painting=self.painter is not None), self.interval)
        vector = self._face.vector(np.zeros(len(INDEX)))
        for rung in governor.ladder:
            for _ in range(2):
                begun = self.clock()
                drawn(self._performance, None, 1.0, vector, 0.0, int(rung.changes.get("side", self.side)))
                cost = self.clock() - begun
            governor.warm(rung, cost)
        return governor

    def _govern(self, now: float, cost: float) -> None:
        assert self.governor is not None
        move = self.governor.frame(now, cost)
        if move is not None:
            self._note("rung", session=self.number, rung=move.taken, reason=move.reason)

    @property
    def rung(self) -> Rung | None:
        return self.governor.rung if self.governor else None

    # Recording.

    def _note(self, do: str, **what: Any) -> None:
        if self._recording is not None:
            self._recording.note(do, **what)

    def _note_frame(
        self, stamp: Stamp, before: Performance | None, mix: float, vector: np.ndarray, t: float, side: int,
        pixels: np.ndarray,
    ) -> None:  # fmt: skip
        if self._recording is None:
            return
        shown = [one.keyframe for one in (self._performance, before) if one is not None]
        for keyframe in shown:
            self._recording.keyframe(keyframe)
        self._note(
            "animate", session=self.number, frame=stamp.frame, version=stamp.version, key=shown[0].id,
            before=shown[1].id if before is not None else None, mix=mix,
            controls=[int(v) for v in np.rint(vector * STEPS)], t=t, side=side,
        )  # fmt: skip
        self._note("shown", session=self.number, frame=stamp.frame, sha256=digest(pixels), kind=stamp.kind)


_MOODS = ("happy", "angry", "cold", "sad", "surprised")


def drawn(
    performance: Performance, before: Performance | None, mix: float, vector: np.ndarray, t: float, side: int,
    *, again: bool = False,
) -> np.ndarray:  # fmt: skip
    """Premultiplied uint8 [side, side, 4]. again: by the operator's reference. Raises NonFiniteError."""

    def one(of: Performance) -> np.ndarray:
        drawing = of.frame(vector, t)
        _check(drawing)
        return drawing.redraw(side) if again else drawing.draw(side)

    if before is None:
        return one(performance)
    return transition.crossed(one(before), one(performance), mix, before.keyframe, performance.keyframe, side)


def _check(drawing: Drawing) -> None:
    """A field that is not finite would be drawn as nothing; a sum tells, at a tenth of the price of looking at each."""
    for field in (drawing.whole, *drawing.parts):
        if not np.isfinite(field.sum()):
            check_finite(PLACE, "fields", field)
            raise NonFiniteError(PLACE, "fields must not overflow")


def _done() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
