"""What the training stages share: the clock-driven schedule, checkpoints that can be resumed, the log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Run", "batches"]


class Run:
    """One stage: its clock, its learning rate and its checkpoint.

    The learning rate follows the *time* already trained, not the step count: a machine that is slowed down still
    ends on schedule, with its cosine complete. A run of `steps` instead of minutes follows the step count (tests).
    """

    def __init__(
        self, path: Path, *, minutes: float = 0.0, steps: int = 0, peak: float = 1e-3, warmup: float = 0.02,
        save_every: float = 300.0,
    ) -> None:  # fmt: skip
        self.path, self.budget, self.steps, self.peak, self.warmup = path, minutes * 60, steps, peak, warmup
        self.save_every = save_every
        self.step, self.before, self.lost = 0, 0.0, 0.0
        self.begun = self.saved = self.logged = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds trained, over all resumptions."""
        return self.before + time.monotonic() - self.begun

    @property
    def progress(self) -> float:
        return self.step / self.steps if self.steps else min(1.0, self.elapsed / self.budget)

    @property
    def done(self) -> bool:
        return self.progress >= 1.0

    def rate(self) -> float:
        p = self.progress
        if p < self.warmup:
            return self.peak * max(p / self.warmup, 0.02)
        return self.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (p - self.warmup) / (1 - self.warmup))))

    def resume(self) -> dict[str, Any] | None:
        """The state of an interrupted run of this stage, if there is one."""
        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, weights_only=False)
        self.step, self.before = state["step"], state["elapsed"]
        self.begun = time.monotonic()
        return state

    def due(self) -> bool:
        """True when a checkpoint should be written."""
        return time.monotonic() - self.saved >= self.save_every

    def save(self, **state: Any) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save({"step": self.step, "elapsed": self.elapsed, **state}, temporary)
        os.replace(temporary, self.path)
        self.saved = time.monotonic()

    def log(self, every: int = 50, **values: float | torch.Tensor) -> None:
        if self.step % every == 0 or self.done:
            line = {"step": self.step, "minutes": round(self.elapsed / 60, 2), "rate": round(self.rate(), 7)}
            shown = {key: round(torch.as_tensor(value).item(), 5) for key, value in values.items()}
            print(json.dumps(line | shown), flush=True)


def batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of indices: every pass visits all of them once, in a new order."""
    order = np.random.RandomState(seed)
    while True:
        shuffled = order.permutation(count)
        for i in range(0, count - size + 1, size):
            yield np.sort(shuffled[i : i + size])
