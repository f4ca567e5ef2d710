"""The worker process of a server of pictures: `python -m hotloop.serve.images.engine CHANNEL MEMORY SLOTS BYTES`.

One thread receives, one decodes pictures, one gives signs of life, and the main one draws: between two rows of the
batch requests come, go and are dropped, so none waits for another one's end. When the listening process goes away, so
does this one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...batch import Batch
from ...call import Drawing, Ran, Result, Run
from ...errors import DeviceMemoryError, HotloopError, InputError, NonFiniteError, TruncationWarning
from ...loop import Progress
from ..channel import Channel, resident
from .arena import Arena
from .log import fault
from .model import Model, read

__all__ = ["Engine", "Job", "main"]

_BEAT = 1.0  # seconds between signs of life
_TELL = 0.05  # seconds between two words of progress of a request

Told = dict[str, Any]


class Alone:
    """A run that cannot share rows with others, a row at a time."""

    def __init__(self, run: Run) -> None:
        self._stack = ExitStack()
        denoiser, self._own = self._stack.enter_context(run.denoiser())
        self._rows: Iterator[Progress] = run.rows(denoiser)
        self.latents: np.ndarray | None = None
        self.row = 0

    def step(self) -> Ran | None:
        """One row; what came of the run after the last one."""
        progress = next(self._rows, None)
        if progress is not None:
            self.latents, self.row = progress.latents, self.row + 1
            return None
        assert self.latents is not None
        return Ran(self.latents.copy(), None, self._own.seconds)

    def close(self) -> None:
        self._stack.close()


@dataclass(eq=False)
class Job:
    """A request while it is drawn. waiting: for its LoRAs; told_at: when its progress was last told."""

    number: int
    told: Told
    pictures: dict[str, Image.Image]
    waiting: Future[Any] | None = None
    drawing: Drawing | None = None
    run: Run | None = None
    alone: Alone | None = None
    slots: int = 0
    ended: int = 0
    told_at: float = 0.0
    partials: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def deadline(self) -> float | None:
        at: float | None = self.told["deadline"]
        return at


class Engine:
    """opened: called with a bundle's path and the setup, gives its `Model`."""

    def __init__(self, channel: Channel, arena: Arena, opened: Callable[[Path, Told], Any] | None = None) -> None:
        self.channel, self.arena = channel, arena
        self._opened = opened or _opened
        self.models: dict[str, Any] = {}
        self.jobs: dict[int, Job] = {}
        self.batch = Batch()
        self._inbox: list[Job] = []
        self._cancelled: set[int] = set()
        self._most = 0
        self._lock, self._wake, self._ending = threading.Lock(), threading.Event(), threading.Event()
        self._decoding = ThreadPoolExecutor(1, "hotloop-decode")
        self._noticed: list[str] = []

    # What is received.

    def receive(self) -> None:
        """Until the other side is gone, or says good-bye."""
        while not self._ending.is_set():
            try:
                told, _ = self.channel.receive()
            except (EOFError, OSError):
                break
            if told["do"] == "bye":
                break
            if told["do"] == "cancel":
                with self._lock:
                    self._cancelled.add(told["job"])
            elif told["do"] == "draw":
                self._decoding.submit(self._take, told)
            self._wake.set()
        self._ending.set()
        self._wake.set()

    def _take(self, told: Told) -> None:
        """Its pictures are decoded beside what is drawn."""
        try:
            files = [
                (one["field"], one["reads"], self.arena.read(told["slot"], one["offset"], one["size"]))
                for one in told["pictures"]
            ]
            pictures = read(files, self._most, fill=told["fill"])
        except Exception:  # whatever is wrong with a file, its request has an end
            self.channel.send({"do": "failed", "job": told["job"], "code": "invalid_picture"})
            return
        with self._lock:
            self._inbox.append(Job(told["job"], told, pictures))
        self._wake.set()

    def configure(self) -> bool:
        """The first message: open the bundles -> whether there is anything to do."""
        try:
            told, _ = self.channel.receive()
        except (EOFError, OSError):
            return False
        self._most = told["picture_pixels"]
        try:
            for name, path in told["bundles"].items():
                self.models[name] = self._opened(Path(path), told)
        except HotloopError as error:
            self.channel.send({"do": "answer", "id": told["id"], "error": str(error)})
            return False
        facts = {name: model.facts() for name, model in self.models.items()}
        self.channel.send({"do": "answer", "id": told["id"], "bundles": facts})
        return True

    # Drawing.

    def run(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = self._notice  # type: ignore[assignment]
            while not self._ending.is_set():
                self._wake.clear()
                self._begin()
                self._drop()
                if not self._step():
                    self._wake.wait(self._until())

    def _notice(self, message: Warning | str, category: type[Warning], *where: Any) -> None:
        """A warning's own words may be a prompt's: which kind it was is all that is told."""
        if issubclass(category, TruncationWarning):
            self._noticed.append("the prompt was longer than the text encoder reads, and was cut")

    def _until(self) -> float:
        deadlines = [job.deadline for job in self.jobs.values() if job.deadline is not None]
        pause = 0.02 if any(job.waiting for job in self.jobs.values()) else _BEAT
        return max(0.0, min([pause, *(at - time.monotonic() for at in deadlines)]))

    def _begin(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
        for job in inbox:
            self.jobs[job.number] = job
        for job in [one for one in self.jobs.values() if one.drawing is None]:
            if not self._unwanted(job):
                self._doing(job, lambda job=job: self._open(job))  # type: ignore[misc]

    def _open(self, job: Job) -> None:
        told, model = job.told, self.models[job.told["bundle"]]
        if job.waiting is None:
            job.waiting = model.networks(tuple((name, scale) for name, scale in told["loras"]))
            job.waiting.add_done_callback(lambda _: self._wake.set())
            for networks in model.evicted:
                self.batch.forget(networks)
            used = {id(one.run.networks) for one in self.jobs.values() if one.run is not None}
            model.evicted = [networks for networks in model.evicted if id(networks) in used]
        if job.waiting.done():
            try:
                networks, job.waiting = job.waiting.result(), None
            except HotloopError as error:
                self._fail(job, "invalid_lora", error)
                return
            job.drawing = model.drawing(told["pipeline"], told["values"], job.pictures, networks)
            self._go_on(job, None)

    def _go_on(self, job: Job, ran: Ran | None) -> None:
        """To the call's next run, or its end."""
        assert job.drawing is not None
        try:
            run = next(job.drawing) if ran is None else job.drawing.send(ran)
        except StopIteration as ended:
            self._finish(job, ended.value)
            return
        job.run, job.ended, job.alone, job.slots = run, 0, None, 0
        if not run.joins:
            job.alone = Alone(run)
            return
        for i in range(len(run.x)):
            one = slice(i, i + 1)
            self.batch.admit(
                (job.number, i), {name: value[one] for name, value in run.cond.items()}, run.table, run.x[one],
                weights=run.networks, guidance=float(run.guidance[i]),
                noise=None if run.noise is None else np.ascontiguousarray(run.noise[:, one]),
                inpaint=None if run.inpaint is None else run.inpaint.of(i),
                deadline=float("inf") if job.deadline is None else job.deadline,
            )  # fmt: skip
            job.slots = i + 1

    def _unwanted(self, job: Job) -> bool:
        return job.number in self._cancelled or (job.deadline is not None and time.monotonic() >= job.deadline)

    def _drop(self) -> None:
        for job in [one for one in self.jobs.values() if self._unwanted(one)]:
            self._fail(job, "cancelled" if job.number in self._cancelled else "expired")
        if self._cancelled:
            with self._lock:  # what was decoded meanwhile is still to come
                self._cancelled &= {*self.jobs, *(job.number for job in self._inbox)}

    def _step(self) -> bool:
        """One row of the batch's group whose turn it is, and of each run that is alone -> whether there was any."""
        worked = False
        if len(self.batch):
            worked = True
            try:
                ended = self.batch.step()
            except Exception as error:
                code = _code(error)
                for job in [one for one in self.jobs.values() if one.slots]:
                    self._fail(job, code, error)
                ended = []
            for slot in ended:
                if (of := self.jobs.get(slot[0])) is not None:  # type: ignore[index]
                    of.ended += 1
        for job in list(self.jobs.values()):
            if job.alone is not None:
                worked = True
                self._doing(job, lambda job=job: self._alone(job))  # type: ignore[misc]
            elif job.slots:
                self._tell(job)
                if job.ended == job.slots:
                    self._doing(job, lambda job=job: self._go_on(job, self._retired(job)))  # type: ignore[misc]
        return worked

    def _alone(self, job: Job) -> None:
        assert job.alone is not None
        if (ran := job.alone.step()) is None:
            self._tell(job)
        else:
            job.alone.close()
            self._go_on(job, ran)

    def _retired(self, job: Job) -> Ran:
        states = [self.batch.retire((job.number, i))[0] for i in range(job.slots)]
        job.slots = 0
        return Ran(np.concatenate(states))

    def _doing(self, job: Job, deed: Callable[[], None]) -> None:
        try:
            deed()
            job.warnings += self._noticed
        except Exception as error:
            self._fail(job, _code(error), error)
        finally:
            self._noticed.clear()

    # What is told.

    def _tell(self, job: Job) -> None:
        run = job.run
        assert run is not None
        row = job.alone.row if job.alone is not None else self.batch.row((job.number, 0))
        done, rows = run.before[0] + row, run.whole[0]
        step = run.before[1] + int(run.table.steps[row - 1]) + 1 if row else run.before[1]
        where = {"job": job.number, "row": done, "rows": rows, "step": step, "steps": run.whole[1]}
        wanted = job.told["partials"]
        if job.partials < wanted and done >= (job.partials + 1) * rows / (wanted + 1) and done < rows:
            latents = job.alone.latents[:1] if job.alone is not None else self.batch.latents((job.number, 0))  # type: ignore[index]
            pixels = self.models[job.told["bundle"]].preview(run, row, latents)
            size = {"width": pixels.shape[1], "height": pixels.shape[0]}
            self.channel.send({"do": "partial", "index": job.partials, **where, **size}, pixels.tobytes())
            job.partials += 1
        elif (now := time.monotonic()) - job.told_at >= _TELL:
            job.told_at = now
            self.channel.offer({"do": "progress", **where})

    def _finish(self, job: Job, result: Result) -> None:
        places, at, slot = [], 0, job.told["slot"]
        for image in result.images:
            data = image.tobytes()
            places.append((image.width, image.height, at, len(data)))
            at = self.arena.write(slot, at, data)
        job.warnings += self._noticed
        self.channel.send({
            "do": "done", "job": job.number, "pictures": places, "seeds": result.seeds, "timings": result.timings,
            "settings": result.settings, "warnings": list(dict.fromkeys(job.warnings)),
        })  # fmt: skip
        del self.jobs[job.number]

    def _fail(self, job: Job, code: str, error: Exception | None = None) -> None:
        for i in range(job.slots):
            self.batch.retire((job.number, i))
        job.slots = 0
        for thing in (job.alone, job.drawing):
            if thing is not None:
                thing.close()
        told: Told = {"do": "failed", "job": job.number, "code": code}
        if isinstance(error, HotloopError):
            told["rule"] = error.rule if isinstance(error, InputError) else ""
        elif error is not None:
            fault(f"job {job.number}", error)
        self.channel.send(told)
        self.jobs.pop(job.number, None)

    def beat(self) -> None:
        """Signs of life, whatever is being drawn."""
        while not self._ending.wait(_BEAT):
            self.channel.offer({"do": "beat", "cpu": time.process_time(), "rss": resident()})


def _code(error: Exception) -> str:
    kinds = (
        (InputError, "invalid_value"), (NonFiniteError, "non_finite_output"), (DeviceMemoryError, "out_of_memory"),
        (MemoryError, "out_of_memory"),
    )  # fmt: skip
    return next((code for kind, code in kinds if isinstance(error, kind)), "internal")


def _opened(path: Path, told: Told) -> Model:
    loras = {name: Path(file) for name, file in told["loras"].items()}
    return Model(path, loras, engine=told["engine"], device=told["device"], threads=told["threads"],
                 windows=told["windows"])  # fmt: skip


def main(arguments: list[str], opened: Callable[[Path, Told], Any] | None = None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the listening process says when
    sys.setswitchinterval(0.0005)  # lanes wait no longer for one another's Python
    channel_fd, memory_fd, slots, size = map(int, arguments)
    channel = Channel(socket.socket(fileno=channel_fd))
    engine = Engine(channel, Arena(memory_fd, slots, size), opened)
    if engine.configure():
        threading.Thread(target=engine.receive, name="receive", daemon=True).start()
        threading.Thread(target=engine.beat, name="beat", daemon=True).start()
        engine.run()
    sys.stderr.flush()
    os._exit(0)  # engines' threads are not waited for


if __name__ == "__main__":
    main(sys.argv[1:])
