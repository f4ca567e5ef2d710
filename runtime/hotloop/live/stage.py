"""The engines and all sessions' rows: one `tick` takes what has come, runs one row of a batch, gives what has ended.

No thread and no clock of its own: whoever ticks passes the clock in, and an executor where settings shall be prepared
beside the frames. A rolling batch: with depth d of E evaluations a picture is taken every E / d steps, and rows of
several pictures run in each step.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..batch import Batch
from ..checks import check_finite, check_integer, check_number
from ..denoiser import DeviceDenoiser
from ..errors import HotloopError, InputError
from ..pipeline import Pipeline
from ..request import Request
from .conditions import Mix, Prepared, check, fits, prepare
from .depth import choose_depth, step_costs
from .recording import Recording, digest
from .redrawing import redrawn, start
from .residual import KEPT
from .rungs import Rungs, governor_of, warmed
from .session import Controls, Frame, Picture, Ready, Session
from .settings import PLACE, Settings
from .stamps import Stamp

__all__ = ["Stage"]


@dataclass(eq=False)
class _Flight:
    """A frame whose rows are running. It ends with what it began with. latents: when they have all been taken."""

    session: Session
    picture: Picture | None
    stamp: Stamp
    prepared: Prepared
    mix: Mix
    deadline: float
    leg: int = 0
    latents: np.ndarray | None = None


class Stage:
    """pipeline    whose engines run, with the LoRAs that it has
    clock       seconds, monotonic
    background  where settings are prepared; None: between frames
    plain       a float32 pipeline of the same bundle, which makes broken frames again; by default the same one
    recording   notes every decision
    deciding    False: whoever holds it decides what happens when (`replay`)

    Use it in a `with` block: its contexts go back to the engines at the end. Raises InputError for a pipeline whose
    rows cannot join others, or whose UNet was made for inpainting.
    """

    def __init__(
        self, pipeline: Pipeline, *, clock: Callable[[], float] = time.monotonic, background: Executor | None = None,
        plain: Pipeline | None = None, recording: Recording | None = None, deciding: bool = True,
    ) -> None:  # fmt: skip
        if pipeline.family.inpaint_channels:
            raise InputError(PLACE, "an inpainting UNet redraws masks, not streams", pipeline.family.name)
        if isinstance(pipeline.networks.denoiser(), DeviceDenoiser):
            rule = "an engine that keeps a run's state on its device cannot share steps: load with another engine"
            raise InputError(PLACE, rule, pipeline.engine)
        self.pipeline, self.clock, self.plain = pipeline, clock, plain or pipeline
        self.sessions: dict[int, Session] = {}
        self._background, self._preparing = background, dict[int, Future[None]]()
        self._recording, self._deciding, self._batch = recording, deciding, Batch()
        self._flights: dict[tuple[int, int], _Flight] = {}
        self._lock = threading.RLock()
        self._opened = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(
        self, *, source: bool = True, depth: int | None = 1, interval: float = 1 / 30, governed: bool = False,
        controls: Controls | None = None, paced: bool = False, **settings: Any,
    ) -> Session:  # fmt: skip
        """A session. It is prepared while the others' frames go on.

        source    pictures are pushed; without, it dreams: words, seed and noise move
        depth     frames in flight at most; None: steps are timed now, and the smallest that is fast enough is chosen
        interval  seconds between frames
        governed  a ladder of cheaper frames is warmed, now and whenever the steps or the size change, and taken to
                  hold the interval
        paced     at most one frame an interval
        settings  of THE table, "live"

        Raises InputError.
        """
        if depth is not None:
            check_integer(PLACE, "depth", depth, 1, 64)
        check_number(PLACE, "interval", interval, 1e-4, 3600)
        pipeline, last = self.pipeline, list[Ready]()

        def allowed(request: Request, blend: int) -> None:
            check(pipeline, request, blend, last[0].prepared if last else None, source=source)

        def ready(request: Request, blend: int) -> Ready:
            allowed(request, blend)  # what it slides from may have changed since it was asked for
            prepared, rungs = prepare(pipeline, request, source=source), None
            if blend and last and not fits(last[0].prepared.mix, prepared.mix):
                raise InputError(PLACE, "blend needs prompts of one length", blend)
            if governed:
                before = last[0].rungs if last else None
                rungs = warmed(pipeline, prepared, before, source=source, clock=self.clock)
            last[:] = [Ready(prepared, rungs)]
            return last[0]

        kept = Settings(settings, check=allowed, prepare=ready)
        added = 0.0
        if depth is None:
            first = kept.active.prepared.prepared
            depth, added = choose_depth(step_costs(first, self.clock), first.evaluations, interval)
        with self._lock:
            made = Session(
                self, self._opened, kept, source=source, depth=depth, interval=interval, controls=controls,
                added_latency=added, paced=paced,
            )  # fmt: skip
            self._ascend(made, None)
            self.sessions[made.number] = made
            self._opened += 1
            self.note("open", session=made.number, source=source, depth=depth, interval=interval, governed=governed,
                      values=made.settings.active.values)  # fmt: skip
            return made

    def tick(self) -> bool:
        """Swap settings, take pictures, run one row, give frames -> whether a row was run."""
        with self._lock:
            for session in list(self.sessions.values()):
                self._settle(session)
                self._take(session)
                if session.closed and not session.flying:
                    self._leave(session)
            if not self._flights:
                return False
            self.step()
            return True

    def close(self) -> None:
        """End all sessions; the engines get their contexts back."""
        with self._lock:
            for flight in self._flights.values():
                if flight.picture is not None:
                    flight.session.pictures.end(flight.picture.number, "superseded")
            self._flights.clear()
            self._batch.__exit__(None, None, None)
            for session in list(self.sessions.values()):
                session.flying.clear()
                self._leave(session)
                session.close()

    def note(self, do: str, **what: Any) -> None:
        """Record a decision, if this stage is recorded."""
        if self._recording is not None:
            if do == "push":
                what["pixels"] = self._recording.keep(what["pixels"])
            self._recording.note(do, **what)

    # Decisions.

    def _settle(self, session: Session) -> None:
        settings = session.settings
        if settings.active.prepared.prepared.own is not self.pipeline.networks and not settings.pending:
            settings.touch()  # a LoRA came or went
        if settings.pending:
            running = self._preparing.get(session.number)
            if self._background is None:
                settings.prepare()
            elif running is None or running.done():
                self._preparing[session.number] = self._background.submit(settings.prepare)
        self.swap(session)

    def _take(self, session: Session) -> None:
        now = self.clock()
        if session.closed or not self._has_room(session, now):
            return
        if not session.source:
            self.begin(session, None, now)
        elif (picture := session.inbox.take()) is not None:
            request = session.prepared.request
            if session.still.skips(picture.pixels, request["similarity"], request["similarity_most"]):
                session.pictures.end(picture.number, "skipped")
                self.note("skipped", session=session.number, picture=picture.number)
            else:
                self.begin(session, picture, now)

    def _has_room(self, session: Session, now: float) -> bool:
        """Frames in flight stand E / depth rows apart, and at a lower rate some intervals."""
        rate = _rate(session)
        if session.paused or now < session.due:
            return False
        if rate > 1 and session.last_begun is not None and now - session.last_begun < (rate - 0.5) * session.interval:
            return False
        evaluations = session.prepared.evaluations
        depth = min(session.depth, evaluations)
        if len(session.flying) >= depth:
            return False
        if not session.flying:
            return True
        youngest = self._flights[session.number, session.flying[-1]]
        return len(youngest.stamp.rows) >= math.ceil(evaluations / depth)

    def _govern(self, session: Session, flight: _Flight) -> None:
        governor, stamp = session.governor, flight.stamp
        if governor is None or not self._deciding or stamp.decoded is None or stamp.taken is None:
            return
        depth = min(session.depth, flight.prepared.evaluations)
        move = governor.frame(stamp.decoded, (stamp.decoded - stamp.taken) / depth)
        if move is not None:
            self.take_rung(session, move.taken, move.reason)

    # Deeds, which a replay does again.

    def swap(self, session: Session) -> None:
        """Between two frames: settings that are ready take over."""
        before = session.settings.active.prepared
        if (version := session.settings.swap()) is None:
            return
        session.swapped(version)
        self._ascend(session, before.rungs)
        self.note("swap", session=session.number, version=version.number, values=version.values, blend=version.blend)
        left = before.prepared.networks
        if not any(one.settings.active.prepared.prepared.networks is left for one in self.sessions.values()):
            self._batch.forget(left)

    def _ascend(self, session: Session, before: Rungs | None) -> None:
        """A new version's ladder: the same rung of a ladder that stayed, else the first."""
        rungs = session.settings.active.prepared.rungs
        if rungs is None:
            return
        if session.governor is None or before is None or before.ladder != rungs.ladder:
            session.governor = governor_of(rungs, session.interval)
        session.on_rung(rungs.prepared[session.governor.rung.name])

    def take_rung(self, session: Session, name: str, reason: str) -> None:
        """Frames begin on this rung of the session's ladder from now on."""
        rungs = session.settings.active.prepared.rungs
        if session.governor is None or rungs is None or name not in rungs.prepared:
            raise InputError(PLACE, "a rung must be of the session's ladder", name)
        session.governor.stand(name)
        session.on_rung(rungs.prepared[name])
        self.note("rung", session=session.number, rung=name, reason=reason)

    def begin(self, session: Session, picture: Picture | None, now: float, deadline: float | None = None) -> None:
        """A frame of this picture, or of a dream; deadline: by default its evaluations' intervals from receipt."""
        frame, prepared = session.next_frame(), session.prepared
        number = None if picture is None else picture.number
        received = now if picture is None else picture.received
        if deadline is None:
            deadline = received + session.interval * prepared.evaluations
        stamp = Stamp(frame, number, session.settings.active.number, received=received, taken=now)
        stamp.captured = None if picture is None else picture.captured
        self.note("begin", session=session.number, picture=number, frame=frame, deadline=deadline)
        session.began(now, _rate(session))
        if session.controls is not None:
            stamp.controls = session.controls.sample(now)
        try:
            mix = session.next_mix()
            flight = _Flight(session, picture, stamp, prepared, mix, deadline)
            begun = start(self.pipeline, prepared, mix, None if picture is None else picture.pixels)
            self._admit(flight, begun.x, begun.saved)
        except HotloopError as error:
            self._fail(session, picture, error)
            return
        self._flights[session.number, frame] = flight
        session.flying.append(frame)

    def _admit(self, flight: _Flight, x: np.ndarray, saved: Mapping[int, np.ndarray]) -> None:
        prepared, leg = flight.prepared, flight.prepared.legs[flight.leg]
        flight.stamp.bucket, flight.stamp.slot = self._batch.admit(
            (flight.session.number, flight.stamp.frame), prepared.cond(leg, flight.mix), leg.table, x,
            weights=prepared.networks, guidance=prepared.guidance, saved=saved, deadline=flight.deadline,
            noise=flight.mix.steps if leg.table.noises else None,
        )  # fmt: skip

    def step(self) -> None:
        """One row of one group of the batch; what has ended with it is decoded and shown."""
        self.note("step")
        before = {slot: self._batch.row(slot) for slot in self._flights if slot in self._batch}
        try:
            ended = set(self._batch.step())
        except HotloopError as error:  # an engine that does not run: what is in flight is lost, the sessions live
            for slot, flight in self._flights.items():
                if slot in self._batch:
                    self._batch.retire(slot)
                flight.session.flying.remove(flight.stamp.frame)
                self._fail(flight.session, flight.picture, error)
            self._flights.clear()
            return
        now = self.clock()
        for slot, flight in list(self._flights.items()):
            if slot in before and self._batch.row(slot) > before[slot]:
                flight.stamp.rows.append(now)
            if slot not in ended:
                continue
            state = self._batch.retire(slot)
            flight.leg += 1
            if flight.leg < len(flight.prepared.legs):
                self._admit(flight, state[0], {KEPT: state[KEPT]})
            else:
                flight.latents = state[0]
                self._show_in_order(flight.session)

    def _show_in_order(self, session: Session) -> None:
        """A frame of fewer rows, begun after a change of settings, waits for those that were begun before it."""
        while session.flying:
            oldest = self._flights[session.number, session.flying[0]]
            if oldest.latents is None:
                return
            self._show(oldest, oldest.latents)

    def _show(self, flight: _Flight, latents: np.ndarray) -> None:
        session, stamp, picture = flight.session, flight.stamp, flight.picture
        del self._flights[session.number, stamp.frame]
        session.flying.remove(stamp.frame)

        def decode() -> np.ndarray:
            check_finite(PLACE, "latents", latents)
            return self.pipeline.autoencoder.decode(flight.prepared.networks, latents)[0]

        def again() -> np.ndarray:
            prepared = flight.prepared
            plain = self.pipeline.over(prepared.networks) if prepared.request["lora"] else self.plain
            return redrawn(plain, prepared, flight.mix, None if picture is None else picture.pixels)

        try:
            seen = session.watchdog.see(decode, again, moved=session.moved(flight.picture, stamp.controls))
        except HotloopError as error:
            self._fail(session, picture, error)
            return
        stamp.decoded, stamp.fault, stamp.kind = self.clock(), seen.fault, "held" if seen.held else "drawn"
        if picture is not None:
            session.pictures.end(picture.number, "failed" if seen.held else "shown")
        if seen.pixels is not None:
            session.give(Frame(seen.pixels, replace(stamp)), again=seen.again)
            if self._recording is not None:
                self.note("shown", session=session.number, frame=stamp.frame, sha256=digest(seen.pixels),
                          kind=stamp.kind)  # fmt: skip
        self._govern(session, flight)

    def _fail(self, session: Session, picture: Picture | None, error: HotloopError) -> None:
        """A frame that an engine could not make: the session lives, and its last frame stays."""
        session.watchdog.counts[f"[{error.place}] {error.rule}"] += 1
        if picture is not None:
            session.pictures.end(picture.number, "failed")

    def _leave(self, session: Session) -> None:
        if self.sessions.pop(session.number, None) is not None:
            self._preparing.pop(session.number, None)
            self.note("close", session=session.number)


def _rate(session: Session) -> int:
    """The intervals that a frame of its rung may take."""
    return session.governor.rung.intervals if session.governor else 1
