"""Named clips in control space: emotes on demand, 2 seconds at any frame rate, and a small CVAE that varies them.

A clip is a function of time in [0, 1] to controls; `sequence` samples it. The CVAE (`hotloop.nets.motions`) learns
sequences of 50 frames given the action and a personality, from clips drawn with random size, speed and timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from controls import TABLE, clamp, to_vector
from torch import Tensor
from training import Options, Run, Stage

from hotloop.nets.motions import Motions

__all__ = ["CLIPS", "CONFIG", "FRAMES", "PERSONALITIES", "clip", "drawn", "sequence", "stage"]

FRAMES = 50
# How large, how fast, how much idle head motion and smile.
PERSONALITIES: dict[str, tuple[float, float, float, float]] = {
    "lively": (1.15, 1.2, 1.0, 0.25), "calm": (0.8, 0.8, 0.5, 0.1), "shy": (0.6, 0.9, 0.6, 0.05),
    "cold": (0.5, 0.7, 0.25, 0.0),
}  # fmt: skip
Clip = Callable[[float], Mapping[str, float]]


def _swell(t: float) -> float:
    """0 at both ends, 1 in the middle, smooth."""
    return math.sin(math.pi * min(max(t, 0.0), 1.0)) ** 2


def _wave(t: float, turns: float) -> float:
    return math.sin(2 * math.pi * turns * t) * _swell(t) ** 0.5


def _nod(t: float) -> dict[str, float]:
    return {"headPitch": -9 * _swell(2 * t % 1.0), "mouthSmile": 0.3 * _swell(t)}


def _shake(t: float) -> dict[str, float]:
    return {"headYaw": 14 * _wave(t, 2), "browInnerUp": 0.3 * _swell(t)}


def _laugh(t: float) -> dict[str, float]:
    up = _swell(t)
    return {"happy": up, "jawOpen": up * (0.45 + 0.35 * math.sin(2 * math.pi * 5 * t)), "headPitch": 5 * up,
            "eyeBlinkLeft": 0.8 * up, "eyeBlinkRight": 0.8 * up, "shiftY": 0.25 * _wave(t, 5)}  # fmt: skip


def _bow(t: float) -> dict[str, float]:
    down = _swell(t)
    return {"headPitch": -12 * down, "shiftY": 0.9 * down, "eyeBlinkLeft": down, "eyeBlinkRight": down}


def _wink(t: float) -> dict[str, float]:
    shut = _swell(2.5 * t - 0.7)
    return {"eyeBlinkLeft": shut, "mouthSmile": 0.8 * _swell(t), "headRoll": 6 * _swell(t)}


def _sigh(t: float) -> dict[str, float]:
    out = _swell(t)
    return {"breath": 1 - out, "mouthO": 0.35 * out, "browInnerUp": 0.6 * out, "headPitch": -5 * out,
            "eyeBlinkLeft": 0.45 * out, "eyeBlinkRight": 0.45 * out, "mouthFrown": 0.3 * out}  # fmt: skip


def _talk(t: float) -> dict[str, float]:
    vowel = "AIUEO"[int(t * 9) % 5]
    inside = _swell(t * 9 % 1.0)
    return {f"mouth{vowel}": 0.9 * inside, "jawOpen": 0.35 * inside, "headYaw": 3 * _wave(t, 1.5),
            "browOuterUpLeft": 0.25 * _wave(t, 1) ** 2, "browOuterUpRight": 0.25 * _wave(t, 1) ** 2}  # fmt: skip


CLIPS: dict[str, Clip] = {
    "nod": _nod, "shake": _shake, "laugh": _laugh, "bow": _bow, "wink": _wink, "sigh": _sigh, "talk": _talk,
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
