"""The training queue: `python models/avatar/train.py --minutes 60` goes on where the last one stopped.

--stages data,base   only these       --status   how far each stage is       --pause, --resume   for benchmarks
--gpu                on a CUDA device --rehearse the GPU's path in small, here, in a temporary folder

Stages stand in order of worth; a row is one cosine of a stage, and a stage's later cosines come after the first ones of
stages that are worth more than them. Several of these processes may work side by side: each stage is locked. Training
is nice (19) by itself and stands still while anything is timed (`--pause`).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch
import training
from data import fill
from training import Options, Stage, digest, progress

__all__ = ["DATA", "QUEUE", "STAGES", "main", "renderer_version", "work"]

TEXTBOOK = ("gan", "gan-class", "dcgan", "wgan", "style", "cvae")
STAGES = {stage.name: stage for stage in (
    Stage("probe_train", "probe_train", (6, 20, 40), peak=2e-3, data={"even": 4096, "pairs": 2048}),
    Stage("autoencoder", "autoencoder", (8, 20, 30, 20), peak=8e-4, data={"even": 4096}),
    Stage("text", "text", (5,), peak=2e-3),
    Stage("base", "base", (15, 60, 60, 60, 60, 60), peak=1.2e-3, needs=("autoencoder", "text"), data={"faces": 3072}),
    Stage("decoder", "decoder", (20,), peak=6e-4, needs=("autoencoder",), data={"faces": 4096}),
    Stage("student", "student", (20, 40), peak=5e-4, needs=("autoencoder", "text", "base"), data={"faces": 6144}),
    Stage("upscaler", "upscaler", (12, 30), peak=1e-3, needs=("autoencoder",), data={"large": 512}),
    Stage("animator", "animation", (25, 60, 60), peak=1e-3, needs=("autoencoder", "probe_train"),
          data={"pairs": 2048}),
    Stage("sharpening", "sharpening", (15,), peak=2e-4, needs=("animator",), data={"pairs": 2048}),
    Stage("tinyvae", "tinyvae", (20, 30), needs=("autoencoder", "probe_train"), data={"even": 4096}),
    Stage("segmenter", "segmenter", (15,), peak=1e-3, needs=("probe_train",), data={"parts": 1024}),
    Stage("clip", "clip", (20, 30), peak=5e-4, needs=("probe_train", "text"), data={"faces": 4096}),
    Stage("motions", "motions", (3,)),
    *(Stage(name, "textbook", (8,), needs=(), data={"even": 4096}) for name in TEXTBOOK),
    Stage("probe_judge", "probe_judge", (6, 20), peak=2e-3, data={"other": 3072, "judged": 2048}),
)}  # fmt: skip
VOCABULARY = Path(__file__).parent / "tokenizer" / "vocab.json"
# Rows of each kind: enough to begin with, then all.
DATA = {
    "even": (4096, 10240), "pairs": (2048, 10240), "faces": (6144, 24576), "other": (3072, 8192),
    "judged": (2048, 6144), "large": (512, 2560), "parts": (1024, 3072),
}  # fmt: skip
HELD = {"even": 1024, "pairs": 512, "faces": 512, "other": 512, "judged": 512, "large": 128, "parts": 256}
# Minutes of one cosine on a GPU: base, student and animator in seven.
ON_GPU = {"base": 3.6, "student": 1.2, "animator": 1.4}
# (stage, how many of its segments are to be done by then), in order of worth; the probe first, whole: it reads for the
# autoencoder's gate.
QUEUE: tuple[tuple[str, int], ...] = (
    ("probe_train", 2), ("autoencoder", 4), ("text", 1), ("base", 1), ("probe_judge", 1), ("upscaler", 1),
    ("base", 2), ("probe_train", 3), ("animator", 1), ("probe_judge", 2), ("decoder", 1), ("base", 6), ("student", 2),
    ("upscaler", 2), ("animator", 3), ("sharpening", 1), ("tinyvae", 2), ("segmenter", 1), ("clip", 2), ("motions", 1),
    *((name, 1) for name in TEXTBOOK),
)  # fmt: skip


def renderer_version() -> str:
    """A hash of a few drawings: changes when the renderer draws differently, not when its code is tidied."""
    from render import render, sample_face

    drawn = [render(sample_face(seed, natural=False), 48).image.tobytes() for seed in range(12)]
    return hashlib.sha256(b"".join(drawn)).hexdigest()[:16]


def _data_version(options: Options) -> str:
    """The renderer that drew build/data, or today's."""
    path = options.build / "data" / "version"
    return path.read_text() if path.exists() else renderer_version()


def _mark_version(options: Options) -> None:
    """build/data is one renderer's; another's drawings join it only when told to, and then it says so."""
    path, now = options.build / "data" / "version", renderer_version()
    path.parent.mkdir(parents=True, exist_ok=True)
    then = path.read_text() if path.exists() else now
    if now not in then.split("+"):
        if not options.adopt:
            raise SystemExit(f"[train] build/data is by renderer {then}, today's is {now}: remove it, or --adopt")
        then = f"{then}+{now}"
    path.write_text(then)


def _data(options: Options, processes: int = 1) -> bool:
    """Draws what the queue needs; the held-out rows and enough to begin with come first."""
    small = options.small
    _mark_version(options)
    wanted = []
    for part in (0, 1):
        for kind in DATA:
            wanted.append((kind, 16 if small else DATA[kind][part], False))
            if part == 0 and kind in HELD:
                wanted.append((kind, 16 if small else HELD[kind], True))
    return fill(options.build / "data", wanted, processes=processes, shard=16 if small else 0, stop=_stopped)


def _stopped() -> bool:
    """Waits while training is paused."""
    while training.paused() and not training.Stop.now():
        time.sleep(1)
    return training.Stop.now()


@contextmanager
def _locked(options: Options, name: str) -> Iterator[bool]:
    """True if this process alone works at the stage; the lock goes when the process does."""
    options.build.mkdir(parents=True, exist_ok=True)
    file: IO[str]
    with open(options.build / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        file.write(str(os.getpid()))
        file.flush()
        yield True


def _drawn(options: Options, stage: Stage) -> bool:
    """Whether there is enough data to begin."""
    from data import Shards

    least = 1 if options.small else None
    return all(len(Shards(options.build / "data", k)) >= (least or n) for k, n in stage.data.items())


def _missing(options: Options, stage: Stage) -> list[str]:
    """Stages to be finished before this one; nothing is built on an autoencoder that has not passed its gate."""
    missing = [n for n in stage.needs if progress(options, n).get("segments", 0) < len(STAGES[n].segments)]
    gate = progress(options, "autoencoder").get("figures", {}).get("gate")
    if "autoencoder" in stage.needs and gate is False and not (options.small or options.adopt):
        missing.append("the autoencoder's gate")
    return missing


def _needs(options: Options, stage: Stage, version: str) -> dict[str, str]:
    """The versions of what a stage is made with: the renderer, if it sees drawings; the vocabulary; earlier stages."""
    needs = {"renderer": version} if stage.data else {}
    if "text" in (stage.name, *stage.needs):
        needs["vocabulary"] = digest(VOCABULARY)
    return needs | {n: digest(options.weights / f"{n}.safetensors") for n in stage.needs}


def _try(options: Options, name: str, version: str) -> bool:
    """One segment of a stage, if nobody else is at it and it can begin; True if it was worked at."""
    stage = STAGES[name]
    if _missing(options, stage) or not _drawn(options, stage):
        return False
    with _locked(options, name) as mine:
        if not mine:
            return False
        print(json.dumps({"stage": name, "time": time.strftime("%H:%M:%S"), "begins": os.getpid()}), flush=True)
        importlib.import_module(stage.module).stage(stage, options, _needs(options, stage, version))
        return True


def work(options: Options, names: list[str], rows: tuple[tuple[str, int], ...] = QUEUE, *, processes: int = 1) -> None:
    """Goes through the rows until all are done, nothing can begin any more, or somebody asks to stop."""
    if "data" in names:
        with _locked(options, "data") as mine:
            if mine:
                _data(options, processes)
    version = _data_version(options)
    tried = 0
    while not training.Stop.now():
        left = [(n, k) for n, k in rows if n in names and progress(options, n).get("segments", 0) < k]
        if not left:
            return
        if any(_try(options, name, version) for name, _ in left):
            tried = 0
            continue
        tried += 1
        if tried == 1:
            waits = {name: _missing(options, STAGES[name]) or "data, or another process" for name, _ in left}
            print(json.dumps({"waiting for": waits}), flush=True)
        if options.small or tried > 360:
            return
        time.sleep(10)  # data or another process's stage is on its way


def status(options: Options) -> None:
    for name, stage in STAGES.items():
        now = progress(options, name)
        stale = [k for k, v in now.get("needs", {}).items() if k in STAGES
                 and v != digest(options.weights / f"{k}.safetensors")]  # fmt: skip
        line = f"{name:<14} segment {now.get('segments', 0)}/{len(stage.segments)} step {now.get('step', 0):>7}"
        print(line, "STALE: " + ", ".join(stale) if stale else "", json.dumps(now.get("figures", {}))[:300])


def _gpu_rows(options: Options, names: list[str]) -> tuple[tuple[str, int], ...]:
    """One more cosine of each of these stages, its minutes those of a GPU."""
    rows = []
    for name in names:
        if name in ON_GPU:
            more = progress(options, name).get("segments", 0) + 1
            STAGES[name] = replace(STAGES[name], segments=(ON_GPU[name],) * more)
            rows.append((name, more))
    return tuple(rows)


def rehearse(names: list[str], options: Options) -> None:
    """The path of a GPU run in small, on this machine, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        small = replace(options, root=Path(folder), small=True, steps=options.steps or 3)
        rows = tuple((name, 1) for name in STAGES if name in names or any(name in STAGES[n].needs for n in names))
        for name, _ in rows:
            STAGES[name] = replace(STAGES[name], segments=(1,))
        work(small, ["data", *(name for name, _ in rows)], rows)
        done = {name: progress(small, name).get("step", 0) for name, _ in rows}
        print(json.dumps({"rehearsed": done}), flush=True)
        if not all(done.values()):
            sys.exit("[train] not every stage ran")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0, help="stop, saved, after so many minutes")
    parser.add_argument("--stages", default="", help="comma-separated; all of them unless given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that draw data")
    parser.add_argument("--steps", type=int, default=0, help="so many steps a segment (trials)")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--adopt", action="store_true", help="go on although what a stage was made with has changed")
    for name in ("pause", "resume", "status", "rehearse"):
        parser.add_argument(f"--{name}", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.pause or chosen.resume:
        training.PAUSE.write_text("0") if chosen.pause else training.PAUSE.unlink(missing_ok=True)
        return
    options = Options(device="cuda" if chosen.gpu else "cpu", threads=chosen.threads, steps=chosen.steps,
                      adopt=chosen.adopt)  # fmt: skip
    if chosen.status:
        status(options)
        return
    os.nice(max(0, 19 - os.nice(0)))
    torch.set_num_threads(chosen.threads)
    training.Stop.catch()
    if chosen.minutes:
        training.Stop.deadline = time.monotonic() + 60 * chosen.minutes
    names = chosen.stages.split(",") if chosen.stages else ["data", *STAGES]
    if unknown := set(names) - {"data", *STAGES}:
        parser.error(f"stages are data, {', '.join(STAGES)}; got {', '.join(sorted(unknown))}")
    if chosen.rehearse:
        rehearse([n for n in names if n in (ON_GPU if not chosen.stages else STAGES)], options)
    elif chosen.gpu:
        work(options, ["data", *names], _gpu_rows(options, names), processes=chosen.processes)
    else:
        work(options, names, processes=chosen.processes)


if __name__ == "__main__":
    main()
