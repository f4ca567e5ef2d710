"""What every training stage shares: the clock and the learning rate, the average, pausing, saving and going on.

A stage's state lives twice. `build/<stage>.pt` (ignored by git) holds everything and is what an interrupted stage goes
on from. `weights/<stage>.safetensors` and `.json` (committed) hold the averaged weights in fp16 and how far they got:
from these alone a stage goes on too, with AdamW anew and a warm-up on its next cosine.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = [
    "HERE", "Average", "Options", "Run", "Stage", "Stop", "batches", "digest", "load_weights", "paused", "progress",
    "save_weights",
]  # fmt: skip

HERE = Path(__file__).parent
PAUSE = Path(os.environ.get("HOTLOOP_TRAINING_PAUSE", Path(tempfile.gettempdir()) / "hotloop-training.pause"))


@dataclass(frozen=True)
class Options:
    """Where and how stages run. steps: a bound on the steps of every stage (tests, rehearsals); small: tiny sizes."""

    root: Path = HERE
    device: str = "cpu"
    threads: int = 1
    steps: int = 0
    small: bool = False
    adopt: bool = False

    @property
    def build(self) -> Path:
        return self.root / "build"

    @property
    def weights(self) -> Path:
        return self.root / "weights"


@dataclass(frozen=True)
class Stage:
    """One stage of the queue. segments: minutes of each cosine; needs: stages whose weights it is made with."""

    name: str
    module: str
    segments: Sequence[float]
    peak: float = 1e-3
    decay: float = 0.999
    needs: tuple[str, ...] = ()
    data: Mapping[str, int] = field(default_factory=dict)


# Pausing: benchmarks write their process id into a file; training waits while that process lives.


def paused() -> bool:
    """True while a file says so: its content is the id of the process that wants quiet, or 0 until it is removed."""
    try:
        owner = int(PAUSE.read_text() or 0)
    except (OSError, ValueError):
        return False
    if owner and not Path(f"/proc/{owner}").exists():
        PAUSE.unlink(missing_ok=True)
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Training on this machine stands still inside (for benchmarks); the step at work may take two seconds to end."""
    PAUSE.write_text(str(os.getpid()))
    time.sleep(2)
    try:
        yield
    finally:
        PAUSE.unlink(missing_ok=True)


class Stop:
    """Set by SIGTERM, SIGINT or a deadline: every loop ends after its step, saved."""

    asked = False
    deadline = math.inf

    @classmethod
    def catch(cls) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: setattr(cls, "asked", True))

    @classmethod
    def now(cls) -> bool:
        return cls.asked or time.monotonic() >= cls.deadline


# Weights.


def digest(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256; "none" where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else "none"


def save_weights(path: Path, modules: Mapping[str, nn.Module], average: Average | None = None) -> None:
    """ "module.key" -> fp16 (integers as they are); parameters from the average where there is one."""
    means = dict(zip(map(id, average.live), average.mean, strict=True)) if average else {}
    tensors = {}
    for name, module in modules.items():
        live = dict(module.named_parameters())
        for key, value in module.state_dict().items():
            kept = means.get(id(live.get(key)), value).detach().cpu()
            tensors[f"{name}.{key}"] = (kept.half() if kept.is_floating_point() else kept).contiguous().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def load_weights(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Fills the modules, in fp32, from a file of `save_weights`."""
    stored = load_file(path)
    for name, module in modules.items():
        part = {k[len(name) + 1 :]: v for k, v in stored.items() if k.startswith(f"{name}.")}
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in part.items()})


def progress(options: Options, name: str) -> dict[str, Any]:
    """How far a stage has got, {} if it has not begun."""
    path = options.weights / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


class Average:
    """Exponential moving average of parameters."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.live = [p for m in modules for p in m.parameters()]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The modules hold the average inside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, m in zip(self.live, self.mean, strict=True):
            held = p.detach().clone()
            p.copy_(m)
            m.copy_(held)


# One stage at work.


class Run:
    """A stage's loop: `while run.going(): run.descend(loss)`, then `run.close()`.

    Time is the process's own (CPU seconds per thread), so that pauses and other people's work cost no learning: the
    cosine ends complete. A run of `options.steps` counts steps instead.
    """

    def __init__(
        self, stage: Stage, modules: Mapping[str, nn.Module], options: Options, *, needs: Mapping[str, str],
        scratch: Mapping[str, nn.Module] | None = None, slow: Sequence[str] = (), save_every: float = 300.0,
        publish_every: float = 1200.0, clip: float = 1.0, weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        self.stage, self.modules, self.options, self.needs = stage, dict(modules), options, dict(needs)
        self.scratch = dict(scratch or {})  # trained and kept locally, not shipped
        self.save_every, self.publish_every, self.clip = save_every, publish_every, clip
        everything = self.modules | self.scratch
        self.groups = [
            {"params": [*m.parameters()], "factor": 0.5 if name in slow else 1.0} for name, m in everything.items()
        ]
        self.parameters = [p for g in self.groups for p in g["params"]]
        self.optimizer = torch.optim.AdamW(
            self.groups, lr=stage.peak, betas=(0.9, 0.99), weight_decay=weight_decay,
            fused=self.parameters[0].is_floating_point(),
        )  # fmt: skip
        self.average = Average(everything.values(), stage.decay)
        self.step = self.begun_at = self.segment = 0
        self.spent = self.start = 0.0  # minutes in this segment; where its cosine starts
        known = progress(options, stage.name)
        self.figures: dict[str, Any] = dict(known.get("figures", {}))
        self.judged: int = known.get("judged", 0)  # the step that the figures on held-out rows belong to
        self.recent: dict[str, list[float]] = {}
        self.local = options.build / f"{stage.name}.pt"
        self.public = options.weights / f"{stage.name}.safetensors"
        options.build.mkdir(parents=True, exist_ok=True)
        self._resume()
        self.tick = self._now()
        self.saved = self.published = time.monotonic()

    # Clock and rate.

    def _now(self) -> float:
        return (
            time.process_time() / self.options.threads / 60 if self.options.device == "cpu" else time.monotonic() / 60
        )

    @property
    def length(self) -> float:
        return self.stage.segments[min(self.segment, len(self.stage.segments) - 1)]

    @property
    def part(self) -> float:
        """How much of the segment is over, 0 to 1."""
        if self.options.steps:
            return (self.step - self.begun_at) / self.options.steps
        return min(1.0, self.spent / self.length) if self.length else 1.0

    @property
    def over(self) -> bool:
        """True when the segment is complete, False when it was stopped: then there is no time to judge it."""
        return self.part >= 1

    def rate(self, warmup: float = 0.03) -> float:
        """Warm-up, then a cosine to 2 % over what is left of the segment; later segments peak lower."""
        p = (self.part - self.start) / max(1e-6, 1 - self.start)
        peak = self.stage.peak * 0.75**self.segment
        if p < warmup:
            return peak * max(p / warmup, 0.02)
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (p - warmup) / (1 - warmup))))

    def going(self) -> bool:
        """False when the segment is over or somebody asked to stop; waits while training is paused."""
        while paused() and not Stop.now():
            time.sleep(1)
            self.tick = self._now()
        return self.part < 1 and not Stop.now()

    # Steps.

    def descend(self, loss: Tensor, **values: float | Tensor) -> None:
        """One step of AdamW down the loss; logs, and saves when it is time."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate() * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.count(loss=loss, **values)

    def count(self, **values: float | Tensor) -> None:
        """One step done (by `descend` or by the stage itself)."""
        self.step += 1
        self.average.update(self.step)
        now = self._now()
        self.spent, self.tick = self.spent + now - self.tick, now
        for name, value in values.items():
            self.recent.setdefault(name, []).append(float(value.detach() if isinstance(value, Tensor) else value))
        if self.step % 100 == 0 or (self.options.steps and self.part >= 1):
            self.log()
        if time.monotonic() - self.saved > self.save_every:
            self.save()
        if time.monotonic() - self.published > self.publish_every:
            self.publish()

    def log(self) -> None:
        means = {k: round(float(np.mean(v)), 5) for k, v in self.recent.items() if v}
        self.figures |= means
        line = {"stage": self.stage.name, "time": time.strftime("%H:%M:%S"), "step": self.step,
                "segment": self.segment, "minutes": round(self.spent, 2), "rate": round(self.rate(), 7)}  # fmt: skip
        print(json.dumps(line | means), flush=True)
        self.recent = {}

    # Saving and going on.

    def save(self) -> None:
        state = {name: module.state_dict() for name, module in (self.modules | self.scratch).items()}
        temporary = self.local.with_suffix(".tmp")
        kept = {"step": self.step, "segment": self.segment, "spent": self.spent, "start": self.start}
        torch.save({"modules": state, "optimizer": self.optimizer.state_dict(), "average": self.average.mean,
                    "needs": self.needs, **kept}, temporary)  # fmt: skip
        os.replace(temporary, self.local)
        self.saved = time.monotonic()

    def publish(self, **figures: Any) -> None:
        """Averaged weights and progress, where they are committed."""
        save_weights(self.public, self.modules, self.average)
        self.figures |= figures
        over = self.over
        state = {
            "stage": self.stage.name, "step": self.step, "segments": self.segment + over,
            "spent": 0.0 if over else round(self.spent, 2), "needs": self.needs, "weights": digest(self.public),
            "judged": self.judged, "figures": self.figures,
        }  # fmt: skip
        path = self.public.with_suffix(".json")
        old = json.loads(path.read_text()) if path.exists() else {}
        state["history"] = [*old.get("history", []), {"step": self.step, "time": time.strftime("%Y-%m-%d %H:%M")}][-9:]
        path.write_text(json.dumps(state, indent=1) + "\n")
        self.published = time.monotonic()

    def close(self, **figures: Any) -> bool:
        """Saves all; True when the segment is complete."""
        self.judged = self.step if self.over else self.judged
        self.save()
        self.publish(**figures)
        return self.over

    def _check(self, recorded: Mapping[str, str]) -> None:
        stale = {k: (v, self.needs[k]) for k, v in recorded.items() if k in self.needs and self.needs[k] != v}
        if stale and not self.options.adopt:
            raise SystemExit(
                f"[train] {self.stage.name} was trained with other versions than today's (then, now): {stale}; "
                f"remove weights/{self.stage.name}.* and build/{self.stage.name}.pt, or go on with --adopt"
            )

    def _resume(self) -> None:
        known = progress(self.options, self.stage.name)
        if self.local.exists():
            state = torch.load(self.local, weights_only=True, map_location=self.options.device)
            if state["step"] >= known.get("step", 0):
                self._restore(state)
                return
        if not known or not self.public.exists():
            return
        self._check(known["needs"])
        load_weights(self.public, self.modules)
        self.average = Average((self.modules | self.scratch).values(), self.stage.decay)
        self.step = self.begun_at = known["step"]
        self.segment, self.spent = known["segments"], min(known["spent"], 0.75 * self.stage.segments[-1])
        self.start = min(self.part, 0.75) if not self.options.steps else 0.0

    def _restore(self, state: dict[str, Any]) -> None:
        self._check(state["needs"])
        for name, module in (self.modules | self.scratch).items():
            module.load_state_dict(state["modules"][name])
        self.average.mean = state["average"]
        self.step = self.begun_at = state["step"]
        self.segment, self.spent, self.start = state["segment"], state["spent"], state["start"]
        if self.part >= 1 and not self.options.steps:
            # A new cosine: the old momenta belong to a smaller rate.
            self.segment, self.spent, self.start = self.segment + 1, 0.0, 0.0
        else:
            self.optimizer.load_state_dict(state["optimizer"])


def batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of indices: every pass visits all of them once, in a new order."""
    order = np.random.RandomState(seed)
    while True:
        shuffled = order.permutation(count)
        for i in range(0, max(1, count - size + 1), size):
            yield np.sort(shuffled[i : i + size])
