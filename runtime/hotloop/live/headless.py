"""A clip redrawn, or an avatar moved by the face in it, with nobody looking: a frame for every picture, at its time.

A file is not live: nothing is skipped because it came too late, and the same clip and settings give the same frames.
A device or an address goes on by itself: there the newest picture wins, as before a viewer.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_integer
from ..errors import InputError
from ..pipeline import Pipeline
from .animation import AnimationSession
from .ledgers import ENDS
from .session import Frame, Session
from .sinks import CAMERA, Sink, open_sink
from .sources.camera import Camera, Tracker
from .sources.video import Follower, Shot, Video
from .stage import Stage

__all__ = ["Outcome", "act", "run"]

_PLACE = "live"
_PATIENCE = 60.0  # seconds after which a live source that was lost has ended; for a camera of ours it never has


@dataclass(frozen=True)
class Outcome:
    """frames   in the sink
    source   where the source's pictures have gone: `SourceLedger.counts`
    broken   pictures of the source that could not be decoded: left out
    seconds  from the first picture to the last frame
    """

    frames: int
    source: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    seconds: float = 0.0


def run(
    pipeline: Pipeline, source: str | Path | None, sink: str | Path | Sink, *, frames: int | None = None,
    rate: float = 30.0, depth: int = 1, say: Callable[[int], object] = lambda frames: None, **settings: Any,
) -> Outcome:  # fmt: skip
    """source -> sink (`open_sink`). A skipped or broken frame repeats the one before, so that the sink has a frame for
    every picture of a file.

    source  a file, an address, a device (`Video`), or None: a dream of so many `frames`, `rate` a second
    frames  at most so many; needed where there is no end by itself
    depth   pictures in flight
    say     called with the number of frames so far
    settings  as of `Session.set`

    Raises InputError, and then the sink is not made.
    """
    if frames is not None:
        check_integer(_PLACE, "frames", frames, 1, 10**9)
    elif source is None and not (str(sink).startswith(CAMERA) or getattr(sink, "endless", False)):
        raise InputError(_PLACE, "a dream does not end: frames must say how many")
    video = None if source is None else Video(source)
    try:
        with Stage(pipeline) as stage:
            session = stage.open(source=video is not None, depth=depth, interval=1 / rate, **settings)
            out = open_sink(sink, rate=(video.rate if video else rate)) if isinstance(sink, (str, Path)) else sink
            began = time.monotonic()
            with _whole(out):
                patience = math.inf if out.endless else _PATIENCE
                pairs = _pairs(session, video, frames, rate, patience)
                _fill(out, pairs, frames, say, endless=video is not None and video.live)
                session.close()
                while stage.tick():
                    pass
            broken = 0 if video is None else video.broken
            return Outcome(out.frames, session.pictures.counts(), broken, time.monotonic() - began)
    finally:
        if video is not None:
            video.close()


def act(
    session: AnimationSession, source: str | Path, sink: str | Path | Sink, *, tracker: Tracker | None = None,
    ground: tuple[int, int, int] = (255, 255, 255), frames: int | None = None,
    say: Callable[[int], object] = lambda frames: None,
) -> Outcome:  # fmt: skip
    """The face in a clip moves an avatar into a sink: a frame for every picture, over a ground of one colour. Of a
    device or a stream the newest picture counts, and frames come at the session's own rate: where none comes, idle life
    goes on.

    session  whose controls are a `Bus`; tracker: by default one that takes the first 15 pictures for the face at rest

    The outcome's source counts pictures as shown, and as skipped where no face was found: idle life goes on there.
    Raises InputError, and BundleError where the tracker's networks are not here.
    """
    if tracker is None:
        tracker = Tracker()
        tracker.calibrate()
    bus, counts = session.bus, dict.fromkeys(("in", *ENDS, "in_flight"), 0)

    def pairs(video: Video) -> Iterator[tuple[np.ndarray, float]]:
        for shot in video:
            told = tracker.feed(shot.pixels)
            if told is not None:
                bus.put("camera", shot.time, told)
            counts["in"] += 1
            counts["skipped" if told is None else "shown"] += 1
            frame = session.tick(shot.time)
            if frame is not None:
                yield _over(frame.pixels, ground), shot.time

    def lively(video: Video) -> Iterator[tuple[np.ndarray, float]]:
        camera, began = Camera(video, tracker, bus.put, clock=session.clock), session.clock()
        try:
            for frame in session.frames():
                if camera.wait(0):
                    return
                if frame.stamp.kind != "unchanged":
                    yield _over(frame.pixels, ground), session.clock() - began
        finally:
            camera.close()
            counts.update({"in": camera.pictures, "shown": camera.faces, "superseded": camera.superseded})
            counts["skipped"] = camera.pictures - camera.faces - camera.superseded

    with Video(source) as video:
        out = open_sink(sink, rate=video.rate) if isinstance(sink, (str, Path)) else sink
        began = time.monotonic()
        with _whole(out):
            _fill(out, (lively if video.live else pairs)(video), frames, say, endless=video.live)
        return Outcome(out.frames, counts, video.broken, time.monotonic() - began)


def _over(rgba: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:
    """Premultiplied uint8 [H, W, 4] over one colour -> [H, W, 3]."""
    over = (255 - rgba[..., 3:].astype(np.uint16)) * np.array(ground, np.uint16)
    return rgba[..., :3] + ((over + 127) // 255).astype(np.uint8)


def _fill(
    out: Sink, pairs: Iterator[tuple[np.ndarray, float]], most: int | None, say: Callable[[int], object], *,
    endless: bool,
) -> None:  # fmt: skip
    """endless: Ctrl-C is the end of what has none, and what there is stays. So it is of a camera."""
    try:
        for pixels, at in pairs:
            out.write(pixels, at)
            say(out.frames)
            if out.frames == most:
                return
    except KeyboardInterrupt:
        if not (endless or out.endless):
            raise


@contextmanager
def _whole(out: Sink) -> Iterator[None]:
    """The sink is there as a whole, or not at all."""
    try:
        yield
        if not out.frames:
            raise InputError(_PLACE, "no frame could be made")
        out.close()
    except BaseException:
        out.abandon()
        raise


def _pairs(
    session: Session, video: Video | None, most: int | None, rate: float, patience: float
) -> Iterator[tuple[np.ndarray, float]]:
    """Frames uint8 [H, W, 3] and their times. patience: seconds that a source that was lost is looked for."""
    if video is None:
        yield from ((frame.pixels, k / rate) for k, frame in enumerate(session.frames()))
    elif video.live:
        yield from _followed(session, video, patience)
    else:
        yield from _drawn(session, video, most)


def _lost(why: str | None) -> None:
    """The last frame stands meanwhile."""
    line = "[live.source] is back" if why is None else f"{why}: looking for it"
    print(f"hotloop: {line}", file=sys.stderr, flush=True)


def _drawn(session: Session, video: Video, most: int | None) -> Iterator[tuple[np.ndarray, float]]:
    """One picture after another, as many in flight as the session's depth allows; frames come in order."""
    times, shown = list[float](), 0  # of pictures, by number; how many have a frame
    last: np.ndarray | None = None

    def given(frame: Frame | None, until: int) -> Iterator[tuple[np.ndarray, float]]:
        """A frame for every picture before `until`: this one for its own, what was shown for the others."""
        nonlocal shown, last
        while shown < until:
            own = frame is not None and frame.stamp.source == shown
            last = frame.pixels if own and frame is not None else last
            if last is not None:
                yield last, times[shown]
            shown += 1

    for shot in video:
        if shot.number == most:
            break
        times.append(shot.time)
        session.push(shot.pixels)
        while len(session.inbox):
            session.stage.tick()
            if (frame := session.outbox.take()) is not None:
                yield from given(frame, int(frame.stamp.source or 0) + 1)
    while True:
        ran = session.stage.tick()
        if (frame := session.outbox.take()) is not None:
            yield from given(frame, int(frame.stamp.source or 0) + 1)
        elif not ran:
            break
    yield from given(None, len(times))


def _followed(session: Session, video: Video, patience: float) -> Iterator[tuple[np.ndarray, float]]:
    times, lock = dict[int, float](), threading.Lock()

    def take(shot: Shot) -> None:
        with lock:
            times[session.push(shot.pixels, captured=shot.captured)] = shot.time

    follower = Follower(video, take, ended=lambda why: session.close(), patience=patience, lost=_lost)
    try:
        for frame in session.frames():  # until it has ended, which a silent address does after a while
            number = int(frame.stamp.source or 0)
            with lock:
                at = times[number]
                for old in [n for n in times if n < number]:
                    del times[old]
            yield frame.pixels, at
    finally:
        follower.stop()
