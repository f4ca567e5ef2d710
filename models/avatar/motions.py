"""The named clips of `hotloop.live.motions` as sequences, 2 seconds at any frame rate, and a CVAE that varies them.

A clip is a function of time in [0, 1] to controls; `sequence` samples it. The CVAE (`hotloop.nets.motions`) learns
sequences of 50 frames given the action and a personality, from clips drawn with random size, speed and timing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from controls import TABLE, clamp, to_vector
from torch import Tensor
from training import Options, Run, Stage

from hotloop.live.motions import CLIPS
from hotloop.nets.motions import Motions

__all__ = ["CLIPS", "CONFIG", "FRAMES", "PERSONALITIES", "clip", "drawn", "sequence", "stage"]

FRAMES = 50
# How large, how fast, how much idle head motion and smile.
PERSONALITIES: dict[str, tuple[float, float, float, float]] = {
    "lively": (1.15, 1.2, 1.0, 0.25), "calm": (0.8, 0.8, 0.5, 0.1), "shy": (0.6, 0.9, 0.6, 0.05),
    "cold": (0.5, 0.7, 0.25, 0.0),
}  # fmt: skip

CONFIG: dict[str, Any] = {
    "actions": list(CLIPS), "personalities": list(PERSONALITIES), "controls": TABLE, "frames": FRAMES, "z": 8,
}  # fmt: skip


def clip(name: str, t: float) -> dict[str, float]:
    """All controls of a clip at a time in [0, 1]."""
    if name not in CLIPS:
        raise ValueError(f"[motions] clips are {', '.join(CLIPS)}, got {name}")
    return clamp(CLIPS[name](t))


def sequence(name: str, frames: int = FRAMES) -> np.ndarray:
    """float32 [frames, controls], scaled as controls.to_vector."""
    return np.stack([to_vector(clip(name, i / (frames - 1))) for i in range(frames)])


def drawn(name: str, personality: str, rng: np.random.RandomState, frames: int = FRAMES) -> np.ndarray:
    """The clip as somebody of this personality might do it once: float32 [frames, controls]."""
    size, speed, idle, smile = PERSONALITIES[personality]
    size, speed = size * rng.uniform(0.85, 1.15), speed * rng.uniform(0.85, 1.15)
    begin = rng.uniform(0, 0.12)
    rows = []
    phases, rates = rng.uniform(0, 6.3, 3), rng.uniform(0.4, 1.2, 3)
    for i in range(frames):
        t = (i / (frames - 1) - begin) * speed
        held = {k: v * size for k, v in CLIPS[name](t).items()} if 0 <= t <= 1 else {}
        for name_, reach, phase, rate in zip(
            ("headYaw", "headRoll", "gazeX"), (2.5, 2.0, 0.1), phases, rates, strict=True
        ):
            drift = math.sin(phase + 6.3 * rate * i / frames)
            held[name_] = held.get(name_, 0.0) + idle * reach * drift
        held["mouthSmile"] = held.get("mouthSmile", 0.0) + smile
        rows.append(to_vector(held))
    return np.stack(rows)


def _batch(rng: np.random.RandomState, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences [B, 50, controls], and whose they are, one-hot."""
    actions, moods = rng.randint(len(CLIPS), size=size), rng.randint(len(PERSONALITIES), size=size)
    names, kinds = list(CLIPS), list(PERSONALITIES)
    rows = [drawn(names[a], kinds[p], rng) for a, p in zip(actions, moods, strict=True)]
    told = (F.one_hot(torch.from_numpy(v), count).float() for v, count in ((actions, len(names)), (moods, len(kinds))))
    return torch.from_numpy(np.stack(rows)), *told


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(15)
    net = Motions(CONFIG | {"encoder": True}).to(options.device)
    run, rng = Run(stage, {"motions": net}, options, needs=needs), np.random.RandomState(0)
    pool = [v.to(options.device) for v in _batch(rng, 32 if options.small else 3000)]
    while run.going():
        index = torch.randint(len(pool[0]), (64,), device=options.device)
        x, *asked = (v[index] for v in pool)
        mean, logvar = net.encode(x, *asked).chunk(2, dim=1)
        y = net.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean), *asked)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        error = ((x - y) ** 2).sum((1, 2)).mean()
        run.descend(error + 0.3 * kl, error=error, nats=kl)
    return run.close()
