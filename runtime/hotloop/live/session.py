"""Everything that belongs to one viewer: settings, conditions, noise, rows in flight, mailboxes, ledgers, counters."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from .. import image as images
from ..errors import InputError
from ..noise import MAX_SEED, normal
from .conditions import Mix, Prepared, fits, mixed, slerp
from .governor import Governor
from .ledgers import ProducedLedger, SourceLedger
from .mailbox import Mailbox
from .similarity import StandStill
from .stamps import Histogram, Stamp
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .rungs import Rungs
    from .settings import Settings, Version
    from .stage import Stage

__all__ = ["Controls", "Frame", "Picture", "Ready", "Session"]


class Controls(Protocol):
    """Where a session's controls come from: the bus, or anything that can be asked for their values at a time."""

    def sample(self, t: float) -> Any: ...


class Frame(NamedTuple):
    """pixels uint8 [H, W, 3], and where they come from."""

    pixels: np.ndarray
    stamp: Stamp


class Picture(NamedTuple):
    """A source picture as it came: its number, RGB uint8 [H, W, 3], and its times."""

    number: int
    pixels: np.ndarray
    captured: float | None
    received: float


@dataclass(frozen=True, eq=False)
class Ready:
    """A version, prepared; rungs: of a governed session."""

    prepared: Prepared
    rungs: Rungs | None


@dataclass(eq=False)
class _Slide:
    """On the way from one version's prompts and noise to another's: k of n frames."""

    begin: Mix
    frames: int
    k: int = 0


class Session:
    """One viewer's. Made by `Stage.open`; any thread may push, set and take frames.

    source    whether pictures are pushed; without, it dreams
    depth     frames in flight at most; interval: seconds between frames
    controls  sampled at every frame's time
    paced     no frame begins earlier than an interval after the one before; paused: none begins at all
    added_latency  seconds that the chosen depth adds over depth 1, as timed when it was chosen
    """

    def __init__(
        self, stage: Stage, number: int, settings: Settings[Ready], *, source: bool, depth: int, interval: float,
        controls: Controls | None, added_latency: float = 0.0, paced: bool = False,
    ) -> None:  # fmt: skip
        self.stage, self.number, self.settings = stage, number, settings
        self.source, self.depth, self.interval, self.controls = source, depth, interval, controls
        self.paced, self.paused, self.due = paced, False, -math.inf
        self.added_latency = added_latency
        self.inbox: Mailbox[Picture] = Mailbox()
        self.outbox: Mailbox[Frame] = Mailbox()
        self.pictures, self.produced = SourceLedger(), ProducedLedger()
        self.watchdog, self.still, self.latencies = Watchdog(), StandStill(), Histogram()
        self.governor: Governor | None = None
        self.closed = False
        self.flying: list[int] = []  # frames, the oldest first
        self.prepared = settings.active.prepared.prepared
        self.mix = self.prepared.mix
        self.last_begun: float | None = None
        self._slide: _Slide | None = None
        self._numbers, self._frames, self._dreamt = itertools.count(), itertools.count(), 0
        self._showed: tuple[np.ndarray | None, Any] | None = None
        self._ahead: dict[int, np.ndarray] = {}  # a dream's noise, by how many seeds it is ahead
        self._lock = threading.Lock()

    # What a viewer does.

    def push(self, image: Any, *, captured: float | None = None, received: float | None = None) -> int:
        """A source picture (a path, a PIL image or uint8 [H, W, 3]) -> its number. The newest wins.

        captured, received: when it was taken and when it came, on the stage's clock; by default unknown, and now.
        Raises InputError for what is no picture; the stream goes on.
        """
        now = self.stage.clock() if received is None else received
        with self._lock:
            if self.closed or not self.source:
                rule = "a closed session takes no pictures" if self.closed else "a dream takes no pictures"
                raise InputError("live", rule)
            number = next(self._numbers)
            self.pictures.arrive(number)
            try:
                pixels = np.array(images.open_image(image, place="live"))
            except InputError:
                self.pictures.end(number, "refused")
                raise
            self.stage.note("push", session=self.number, picture=number, pixels=pixels)
            before = self.inbox.put(Picture(number, pixels, captured, now))
            if before is not None:
                self.superseded(before)
            return number

    def set(self, *, blend: int = 0, **given: Any) -> int:
        """Other settings, from a frame soon on -> the number of their version; `blend` frames slide there.

        Raises InputError for what is refused; the old ones then stay.
        """
        number = self.settings.set(blend=blend, **given)
        self.inbox.wake()
        return number

    def frames(self, *, wait: float | None = None) -> Iterator[Frame]:
        """The newest frames as they are made, on the caller's thread; it ends when the session is closed.

        wait: seconds to wait for a picture before it ends; None: for ever.
        """
        while True:
            if (frame := self.outbox.take()) is not None:
                yield frame
            elif self.closed and not self.flying:
                return
            elif self.stage.tick():
                continue
            elif not self.source or len(self.inbox):  # at a lower rate, until its time comes
                time.sleep(self.interval / 8)
            elif not self.closed and not self.inbox.wait(wait):
                return

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it, and the stage with the last of its sessions."""
        self.close()
        if not set(self.stage.sessions) - {self.number}:
            self.stage.close()

    def close(self) -> None:
        """No more pictures; what is in flight ends."""
        with self._lock:
            self.closed = True
            if (left := self.inbox.take()) is not None:
                self.superseded(left)
        self.inbox.wake()

    def stats(self) -> dict[str, Any]:
        """Ledgers, latencies in seconds, versions and what was refused, faults, the governor's rung and moves."""
        settings, governor = self.settings, self.governor
        evaluations = self.prepared.evaluations
        return {
            "source": self.pictures.counts(), "frames": self.produced.counts(), "latency": self.latencies.summary(),
            "version": settings.active.number, "refused": settings.refused, "refusal": settings.refusal,
            "faults": dict(self.watchdog.counts), "depth": min(self.depth, evaluations), "evaluations": evaluations,
            "added_latency": self.added_latency,
            "flying": len(self.flying),
            "rung": governor.rung.name if governor else None, "moves": list(governor.moves) if governor else [],
        }  # fmt: skip

    # What the stage asks.

    def superseded(self, picture: Picture) -> None:
        self.pictures.end(picture.number, "superseded")
        self.stage.note("superseded", session=self.number, picture=picture.number)

    def swapped(self, version: Version[Ready]) -> None:
        """A version takes over between two frames."""
        self.prepared = version.prepared.prepared
        self._slide = _Slide(self.mix, version.blend) if version.blend else None
        if self._slide is None:
            self.mix = self.prepared.mix
        self._ahead = {}
        self.still.reset()

    def on_rung(self, prepared: Prepared) -> None:
        """What frames begin with on another rung. A slide goes on where the rung has its size and steps."""
        self.prepared = prepared
        slide = self._slide
        if slide is None or not fits(slide.begin, prepared.mix):
            self._slide, self.mix = None, prepared.mix
        self._ahead = {}

    def moved(self, picture: Picture | None, controls: Any) -> bool:
        """Whether what a frame shows differs from what the one before showed."""
        now = (None if picture is None else picture.pixels, controls)
        before, self._showed = self._showed, now
        return before is not None and not (np.array_equal(before[0], now[0]) and np.array_equal(before[1], now[1]))  # type: ignore[arg-type]

    @property
    def sliding(self) -> bool:
        """Whether it is on the way from one version to another."""
        return self._slide is not None

    def began(self, now: float, rate: int) -> None:
        """A frame has begun. The next is due on the beat, whatever this one was late by; after a rest on a new one."""
        self.last_begun = now
        if self.paced:
            period = rate * self.interval
            self.due = max(self.due + period, now + period / 2)

    def give(self, frame: Frame, *, again: bool) -> None:
        held = frame.stamp.kind == "held"
        self.produced.held += held
        self.produced.drawn += not held
        self.produced.again += again and not held
        self.outbox.put(frame)
        if frame.stamp.latency is not None:
            self.latencies.add(frame.stamp.latency)

    def next_mix(self) -> Mix:
        """The words and the noise of the frame that begins now."""
        if (slide := self._slide) is not None:
            slide.k += 1
            self.mix = mixed(slide.begin, self.prepared.mix, slide.k / slide.frames)
            if slide.k >= slide.frames:
                self._slide = None
        return self.mix if self.source else self._drifted(self.mix)

    def next_frame(self) -> int:
        return next(self._frames)

    def _drifted(self, mix: Mix) -> Mix:
        """A dream's start moves from its seed's noise to the next seed's, and on."""
        request = self.prepared.request
        period = request["drift"]
        if not period:
            return mix
        leg, k = divmod(self._dreamt, period)
        self._dreamt += 1
        begin = mix.start if leg == 0 else self._seeds_noise(leg, mix.start.shape)
        return replace(mix, start=slerp(begin, self._seeds_noise(leg + 1, mix.start.shape), k / period))

    def _seeds_noise(self, ahead: int, shape: tuple[int, ...]) -> np.ndarray:
        request = self.prepared.request
        if ahead not in self._ahead:
            seed = (request.seeds[0] + ahead) % (MAX_SEED + 1)
            self._ahead = {n: noise for n, noise in self._ahead.items() if n == ahead - 1}
            self._ahead[ahead] = normal(seed, shape, rng=request["rng"])
        return self._ahead[ahead]
