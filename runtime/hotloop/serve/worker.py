"""The worker process: engines, sessions, encoding. `python -m hotloop.serve.worker CHANNEL RING SLOTS BYTES`.

One thread receives what the listening process says, two decode source pictures, one makes frames, one encodes them
where several sessions are watched, one prepares settings at a low priority. Frames are left in the ring. When the
listening process goes away, so does this one.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import HotloopError, InputError
from ..live.animation.gate import step_back
from ..live.animation.keyframe import SIDE
from ..live.animation.painting import PipelinePainter
from ..live.motions import CLIPS
from ..live.recording import WrittenRecording
from ..live.stage import Stage
from ..pipeline import Pipeline, load
from .animating import Animate, packed, unpacked
from .avatars import guess_of, keyframe_of
from .channel import Channel, resident
from .encoding import encode, open_picture
from .ring import Ring
from .shows import Incoming, Made, Opening, Restyle, Show
from .wire import frame_header

__all__ = ["Worker", "main"]

_BEAT = 1.0  # seconds between signs of life
_SWEEP, _PATIENCE = 5.0, 20.0  # seconds between garbage collections: in a pause between frames, and if none comes

Told = dict[str, Any]


class Worker:
    """opens: mode -> what makes a show of it."""

    def __init__(self, channel: Channel, ring: Ring) -> None:
        self.channel, self.ring = channel, ring
        self.shows: dict[str, Show] = {}
        self.clock = time.monotonic
        self.background = ThreadPoolExecutor(1, "hotloop-live", initializer=step_back)
        self.decoding = ThreadPoolExecutor(2, "hotloop-decode")
        self.encoding = ThreadPoolExecutor(1, "hotloop-encode")
        self._encoded: deque[Future[None]] = deque()  # frames that are being encoded, or wait for it
        self._taking: dict[str, Future[None]] = {}  # of each session the picture that is being decoded
        self.opens: dict[str, Callable[[Opening], Show]] = {"restyle": self._restyle, "animate": self._animate}
        self.limits: Told = {}
        self._avatar: Told = {}
        self._record: Path | None = None
        self._recordings = 0
        self._painter: PipelinePainter | None = None
        self._pipeline: Pipeline | None = None
        self._stage: Stage | None = None
        self._last: dict[str, Made] = {}
        self._again: dict[str, tuple[int, ...]] = {}
        self._wake, self._ending = threading.Event(), threading.Event()

    # What is received.

    def receive(self) -> None:
        """Until the other side is gone, or says good-bye."""
        while not self._ending.is_set():
            try:
                told, body = self.channel.receive()
            except (EOFError, OSError):
                break
            try:
                getattr(self, f"_do_{told['do']}")(told, body)
            except HotloopError as error:
                self._answer(told, error=str(error))
            except Exception as error:
                print(f"hotloop: worker: {told.get('do')}: {error!r}", file=sys.stderr, flush=True)
                self._answer(told, error="[live] this could not be done; the log says more")
            self._wake.set()
        self._ending.set()
        self._wake.set()

    def _answer(self, told: Told, body: bytes = b"", **answer: Any) -> None:
        if (number := told.get("id")) is not None:
            self.channel.send({"do": "answer", "id": number, **answer}, body)
        elif "error" in answer:
            self.channel.send({"do": "event", "s": told.get("s"), "event": "error", "error": answer["error"]})

    def _do_config(self, told: Told, body: bytes) -> None:
        self.limits, self._avatar = told["limits"], told["avatar"]
        bundle = told["bundle"]
        if told["record"] is not None:
            self._record = _place(Path(told["record"]))
        loras = told["loras"]
        self._pipeline = load(
            None if bundle is None else Path(bundle), engine=told["engine"], threads=told["threads"],
            adapters=bool(loras),
        )  # fmt: skip
        shelf = self._pipeline.adapters.shelf
        for name, file in loras.items():
            shelf.put(name, Path(file))
        if loras:  # an engine that takes none says so now, and one that does is ready for all that these change
            shelf.networks([(name, 1.0) for name in loras])
        family = self._pipeline.family
        animate = told["mode"] == "animate"
        self._answer(
            told, engine=self._pipeline.engine, model=family.name, modes=list(self.opens),
            size=[SIDE, SIDE] if animate else list(family.default_size), motions=list(CLIPS) if animate else [],
        )  # fmt: skip

    def _do_open(self, told: Told, body: bytes) -> None:
        self.background.submit(self._open, told, body)

    def _open(self, told: Told, body: bytes) -> None:
        try:
            keyframes = []
            for name in ("keyframe", "home"):  # one after the other in the body
                size = sum(part[2] for part in told[name].get("parts", ()))
                keyframes.append(unpacked(told[name], body[:size]) if size else None)
                body = body[size:]
            opening = Opening(
                told["s"], told["fps"], told["governed"], told["values"], told["version"], told["frame"], *keyframes
            )
            show = self.opens[told["mode"]](opening)
        except HotloopError as error:
            self._answer(told, error=str(error))
            return
        except Exception as error:
            print(f"hotloop: worker: open: {error!r}", file=sys.stderr, flush=True)
            self._answer(told, error="[live] the session could not be opened; the log says more")
            return
        gc.collect()
        gc.freeze()  # what is there now stays: later collections need not look at it
        self.shows = {**self.shows, show.name: show}
        self._answer(told, values=show.values(), version=opening.version + 1, facts=show.facts())
        self._wake.set()

    def _recording(self) -> WrittenRecording | None:
        """A folder of its own, where everything is recorded."""
        if self._record is None:
            return None
        self._recordings += 1
        folder = self._record / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{self._recordings}"
        return WrittenRecording(folder, ended=lambda why: print(f"hotloop: {why}", file=sys.stderr, flush=True))

    def _animate(self, opening: Opening) -> Show:
        assert self._pipeline is not None
        if self._painter is None:
            self._painter = PipelinePainter(self._pipeline)
        values = {"prompt": "", **opening.values}
        side = values.pop("size", SIDE)
        show = Animate(
            opening._replace(values=values), self.channel.send, self._avatar["picture"], background=self.background,
            painter=self._painter, clock=self.clock, side=side, pipeline=self._pipeline,
            points=self._avatar["points"], parts=self._avatar["parts"], recording=self._recording(),
        )  # fmt: skip
        if not self._painter.warmed:
            self.background.submit(self._painter.warm)
        return show

    def _restyle(self, opening: Opening) -> Show:
        if self._stage is None:
            assert self._pipeline is not None
            self._stage = Stage(
                self._pipeline, background=self.background, plain=_plain(self._pipeline), recording=self._recording()
            )
        return Restyle(self._stage, opening, self.channel.send, self.background)

    def _show(self, told: Told) -> Show:
        try:
            return self.shows[told["s"]]
        except KeyError:
            raise InputError("live", "there is no such session", told["s"]) from None

    def _do_close(self, told: Told, body: bytes) -> None:
        show = self._show(told)
        self.shows = {name: one for name, one in self.shows.items() if name != show.name}
        self._taking.pop(show.name, None)
        show.close()

    def _do_set(self, told: Told, body: bytes) -> None:
        show = self._show(told)
        version = show.set(told["blend"], told["values"])
        self._answer(told, version=version, values=show.values())

    def _do_picture(self, told: Told, body: bytes) -> None:
        """Decoded beside what else is received: a large picture delays nobody's controls. A session's next one comes
        when this one was taken, so they stay in order."""
        show = self._show(told)
        self._taking[show.name] = self.decoding.submit(self._picture, show, told, body)

    def _picture(self, show: Show, told: Told, body: bytes) -> None:
        number = told["picture"]
        try:
            pixels = open_picture(body, self.limits["picture_pixels"])
            show.push(Incoming(number, told["source"], pixels, told["captured"], told["received"]))
        except InputError as error:
            self.channel.send({"do": "ended", "s": show.name, "picture": number, "how": "refused", "error": str(error)})
        finally:
            self.channel.send({"do": "took", "s": show.name})
            self._wake.set()

    def _do_rest(self, told: Told, body: bytes) -> None:
        """Behind the picture that came before it."""
        show = self._show(told)
        if (taking := self._taking.pop(show.name, None)) is None:
            show.rest()
        else:
            taking.add_done_callback(lambda _: show.rest())

    def _do_play(self, told: Told, body: bytes) -> None:
        self._show(told).play(told["name"])
        self._answer(told)

    def _do_avatar(self, told: Told, body: bytes) -> None:
        """Beside the frames, where keyframes are drawn."""
        self.background.submit(self._avatar_of, told, body)

    def _avatar_of(self, told: Told, body: bytes) -> None:
        try:
            show = self._show(told)
            if not isinstance(show, Animate):
                raise InputError("live", "an avatar is of mode animate", "restyle")
            if told["points"] is None:
                self._answer(told, avatar=guess_of(body, told, self.limits["picture_pixels"], self._pipeline))
                return
            keyframe = keyframe_of(body, told, self.limits["picture_pixels"], SIDE)
            show.session.show(keyframe)
            home, data = packed(keyframe)
            self._answer(told, data, avatar={"shown": keyframe.name}, home=home)
            self._wake.set()
        except HotloopError as error:
            self._answer(told, error=str(error))
        except Exception as error:
            print(f"hotloop: worker: avatar: {error!r}", file=sys.stderr, flush=True)
            self._answer(told, error="[live] this picture could not be made an avatar; the log says more")

    def _do_bus(self, told: Told, body: bytes) -> None:
        self._show(told).bus(told)

    def _do_watch(self, told: Told, body: bytes) -> None:
        self._show(told).kinds = tuple(told["kinds"])

    def _do_again(self, told: Told, body: bytes) -> None:
        """The last frame once more: whoever begins to watch what stands still sees it too."""
        self._again = {**self._again, told["s"]: (*self._again.get(told["s"], ()), told["kind"])}

    def _do_stats(self, told: Told, body: bytes) -> None:
        self._answer(told, stats=self._show(told).stats())

    def _do_scene(self, told: Told, body: bytes) -> None:
        self._answer(told, self._show(told).scene(told["number"]))

    def _do_bye(self, told: Told, body: bytes) -> None:
        self._ending.set()

    # Frames.

    def run(self) -> None:
        """The frame loop. No garbage is collected in it, but for pauses that are long enough."""
        gc.disable()
        beaten = swept = self.clock()
        while not self._ending.is_set():
            self._wake.clear()
            worked = self._stage is not None and self._stage.tick()
            due: list[float] = []
            for show in self.shows.values():
                if (made := show.take()) is not None:
                    worked = True
                    self._last[show.name] = made
                    self._encode(show, made, show.kinds)
                if (at := show.look(self.clock())) is not None:
                    due.append(at)
            if self._again:
                self._show_again()
            now = self.clock()
            if now - beaten >= _BEAT:
                beaten = now
                self.channel.offer({"do": "beat", "cpu": time.process_time(), "rss": resident()})
            until = min([*due, beaten + _BEAT])
            if not worked and now - swept > _SWEEP and until - now > 0.01:
                swept = now
                gc.collect()
            elif now - swept > _PATIENCE:  # no pause comes: what has come since the last time is looked at alone
                swept = now
                gc.collect(0)
            elif not worked and until > now:
                self._wake.wait(until - now)
        self.close()

    def _show_again(self) -> None:
        again, self._again = self._again, {}
        self._last = {name: last for name, last in self._last.items() if name in self.shows}
        for name, kinds in again.items():
            if (show := self.shows.get(name)) is not None and (last := self._last.get(name)) is not None:
                self._encode(show, last, kinds)

    def _encode(self, show: Show, made: Made, kinds: tuple[int, ...]) -> None:
        """Where others are watched too, on a thread of its own while their frames are made; in order, and no more wait
        than there are sessions."""
        watched = sum(1 for one in self.shows.values() if one.kinds)
        while self._encoded and (watched < 2 or len(self._encoded) >= watched or self._encoded[0].done()):
            self._encoded.popleft().result()  # raises what went wrong in it
        if watched < 2:
            self._publish(show, made, kinds)
        else:
            self._encoded.append(self.encoding.submit(self._publish, show, made, kinds))

    def _publish(self, show: Show, made: Made, kinds: tuple[int, ...]) -> None:
        frame, number, version, source, signal, moved = made
        stamp, size = frame.stamp, (frame.pixels.shape[1], frame.pixels.shape[0])
        for kind in kinds:
            done = encode(frame.pixels, kind, moved)
            stamp.encoded = self.clock()
            header = frame_header(
                stamp, done.kind, size, len(done.colour), len(done.alpha), source=source, version=version, frame=number
            )
            if (place := self.ring.write(header, done.colour, done.alpha)) is None:
                continue
            self.channel.offer({
                "do": "frame", "s": show.name, "kind": kind, "frame": number, "slot": place[0], "writing": place[1],
                "begun": stamp.taken, "captured": stamp.captured is not None, "size": size,
                "since": (stamp.captured if stamp.captured is not None else stamp.received) if signal else None,
            })  # fmt: skip

    def close(self) -> None:
        for show in self.shows.values():
            show.close()
        if self._stage is not None:
            self._stage.close()
        for pool in (self.decoding, self.encoding, self.background):
            pool.shutdown(wait=False, cancel_futures=True)


def _place(folder: Path) -> Path:
    """Where recordings lie. Raises InputError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError
    except OSError as error:
        raise InputError("serve", "record must be a folder that can be written", str(folder)) from error
    return folder


def _plain(pipeline: Pipeline) -> Pipeline | None:
    """The float32 engine of the same bundle, for frames that are made again."""
    if pipeline.engine.endswith("-fp32"):
        return None
    entry = next((one for one in pipeline.bundle.entries if one.name == f"{one.kind}-fp32"), None)
    return Pipeline(pipeline.bundle, engine=entry.name, device="cpu") if entry else None


def main(arguments: list[str], made: Callable[[Channel, Ring], Worker] = Worker) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the listening process says when
    sys.setswitchinterval(0.0005)  # the frame loop waits no longer for the thread that receives
    channel_fd, ring_fd, slots, size = map(int, arguments)
    channel = Channel(socket.socket(fileno=channel_fd))
    worker = made(channel, Ring(ring_fd, slots, size))
    threading.Thread(target=worker.receive, name="receive", daemon=True).start()
    worker.run()
    sys.stderr.flush()
    os._exit(0)  # engines' threads and what is being prepared are not waited for


if __name__ == "__main__":
    main(sys.argv[1:])
