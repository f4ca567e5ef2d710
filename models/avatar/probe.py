"""What both probes share: heads for attributes and controls, their loss, their training, their scores.

A probe reads a picture's attributes and the controls its face is held at. There are two, of different architecture,
data and weights: `probe_train.py`, which may enter losses, rankings and screening, and `probe_judge.py`, which may not:
what nothing was fitted to is what judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from controls import CONTROLS
from data import Shards, composite
from pixels import to_tensor
from render import ATTRIBUTES
from torch import Tensor, nn
from training import Options, Run, Stage, batches

__all__ = ["NAMES", "Batch", "Heads", "accuracy", "clean", "faces", "frames", "predict", "scores", "train"]

NAMES = list(ATTRIBUTES)
_DEFECT = NAMES.index("defect")


class Heads(nn.Module):
    """Features [B, width] -> logits per attribute and controls [B, controls], scaled as controls.to_vector has them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
        self.controls = nn.Linear(width, len(CONTROLS))

    def forward(self, features: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {name: head(features) for name, head in self.attributes.items()}, self.controls(features)


def clean(labels: np.ndarray) -> np.ndarray:
    """int64 labels, -1 for everything but the defect where there is a defect: nobody can read those."""
    truth = labels.astype(np.int64)
    others = [i for i in range(len(NAMES)) if i != _DEFECT]
    truth[np.ix_(truth[:, _DEFECT] > 0, others)] = -1
    return truth


@dataclass(frozen=True)
class Batch:
    """images uint8 [B, 128, 128, 3]; labels int64 [B, attributes], -1 unknown; controls float32 [B, controls]; posed
    bool [B]: whether the controls can be read off the picture."""

    images: np.ndarray
    labels: np.ndarray
    controls: np.ndarray
    posed: np.ndarray


def frames(pairs: Shards, index: np.ndarray, frame: int) -> Batch:
    """One frame of pairs before their backdrops."""
    rgba, behind, labels, controls = pairs.rows(index, ("keys", "targets")[frame], "backdrops", "labels", "controls")
    return Batch(composite(rgba, behind), labels.astype(np.int64), controls[:, frame].astype(np.float32),
                 np.ones(len(index), bool))  # fmt: skip


def faces(even: Shards, index: np.ndarray) -> Batch:
    images, labels, controls = even.rows(index, "images", "labels", "controls")
    return Batch(images, clean(labels), controls.astype(np.float32), labels[:, _DEFECT] == 0)


def _mixed(even: Shards, pairs: Shards, size: int, seed: int) -> Iterator[Batch]:
    """Half faces, half frames of pairs, without end."""
    half = size // 2
    frame = np.random.RandomState(seed)
    for one, two in zip(batches(len(even), half, seed), batches(len(pairs), size - half, seed + 1), strict=False):
        a, b = faces(even, one), frames(pairs, two, frame.randint(2))
        yield Batch(
            *(np.concatenate([getattr(a, n), getattr(b, n)]) for n in ("images", "labels", "controls", "posed"))
        )


def disturb(x: Tensor, rng: np.random.RandomState) -> Tensor:
    """Shift, gain, noise and, every third time, a loss of resolution: probes are to read decoded pictures too."""
    dx, dy = (int(v) for v in rng.randint(-2, 3, 2))
    x = torch.roll(x, (dy, dx), (2, 3))
    if rng.rand() < 0.3:
        small = F.interpolate(x, scale_factor=float(rng.uniform(0.55, 0.9)), mode="bilinear", antialias=True)
        x = F.interpolate(small, size=x.shape[2:], mode="bilinear")
    gain = 0.94 + 0.12 * torch.rand(len(x), 1, 1, 1, device=x.device)
    return x * gain + float(rng.uniform(0, 0.06)) * torch.randn_like(x)


def loss(out: tuple[dict[str, Tensor], Tensor], labels: Tensor, controls: Tensor, posed: Tensor) -> Tensor:
    """Cross-entropy over the known attributes and a robust distance of the controls that can be read."""
    logits, held = out
    total = torch.stack([
        F.cross_entropy(logits[name].float(), labels[:, i], ignore_index=-1, reduction="sum")
        / (labels[:, i] >= 0).sum().clamp(min=1)
        for i, name in enumerate(NAMES)
    ]).sum()  # fmt: skip
    error = F.smooth_l1_loss(held.float(), controls, beta=0.1, reduction="none").mean(1)
    return total + 12 * (error * posed).sum() / posed.sum().clamp(min=1)


def train(
    stage: Stage, probe: nn.Module, options: Options, needs: dict[str, str], *, kinds: tuple[str, str], seed: int,
    batch: int = 48,
) -> bool:  # fmt: skip
    """One segment of a probe, on rows of these two kinds (faces and pairs); True when it is complete."""
    torch.manual_seed(seed)
    even, pairs = (Shards(options.build / "data", kind) for kind in kinds)
    probe = probe.to(options.device, memory_format=torch.channels_last).train()
    run = Run(stage, {"probe": probe}, options, needs=needs, weight_decay=1e-3)
    batch = 8 if options.small else batch
    rng = np.random.RandomState(seed + run.step)
    for rows in _mixed(even, pairs, batch, seed + run.step):
        if not run.going():
            break
        x = disturb(to_tensor(rows.images, options.device), rng)
        labels, controls, posed = (
            torch.from_numpy(v).to(options.device) for v in (rows.labels, rows.controls, rows.posed)
        )
        with torch.autocast(options.device, torch.bfloat16):
            out = probe(x)
        run.descend(loss(out, labels, controls, posed))
    with run.average.applied():
        figures = held_out_scores(probe.eval(), options, kinds) if run.over else {}
    return run.close(**figures)


@torch.no_grad()
def predict(probe: nn.Module, images: np.ndarray, *, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers int64 [N, attributes] and controls float32 [N, controls] of uint8 pictures [N, 128, 128, 3]."""
    device = str(next(probe.parameters()).device.type)
    guesses, held = [], []
    for i in range(0, len(images), batch):
        with torch.autocast(device, torch.bfloat16):
            logits, controls = probe(to_tensor(images[i : i + batch], device))
        guesses.append(torch.stack([value.argmax(1) for value in logits.values()], dim=1).cpu().numpy())
        held.append(controls.float().cpu().numpy())
    return np.concatenate(guesses), np.concatenate(held)


def accuracy(guesses: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Per attribute, over the rows where it is known (truth >= 0); attributes that nobody knows are left out."""
    known = truth >= 0
    right = ((guesses == truth) & known).sum(0)
    return {name: round(float(right[i] / known[:, i].sum()), 4) for i, name in enumerate(NAMES) if known[:, i].any()}


def scores(held: np.ndarray, truth: np.ndarray) -> dict[str, tuple[float, float]]:
    """Per control, the correlation with the truth and the mean error as a share of its range."""
    out = {}
    for i, control in enumerate(CONTROLS):
        width = (control.high - control.low) / max(abs(control.low), abs(control.high))
        error = float(np.abs(held[:, i] - truth[:, i]).mean()) / width
        r = float(np.corrcoef(held[:, i], truth[:, i])[0, 1]) if truth[:, i].std() > 0 else float("nan")
        out[control.name] = (round(r, 4), round(error, 4))
    return out


def held_out_scores(probe: nn.Module, options: Options, kinds: tuple[str, str], most: int = 1024) -> dict[str, Any]:
    """Accuracy and control correlations on people that no stage was trained on."""
    even, pairs = (Shards(options.build / "data", kind, held=True) for kind in kinds)
    if not len(even) or not len(pairs):
        return {}
    some = faces(even, np.arange(min(most, len(even))))
    posed = frames(pairs, np.arange(min(most, len(pairs))), 1)
    guesses, _ = predict(probe, some.images)
    _, held = predict(probe, posed.images)
    found = scores(held, posed.controls)
    return {
        "held-out accuracy": accuracy(guesses, some.labels),
        "controls: r, mean error": found,
        "worst r": min(found.items(), key=lambda item: item[1][0])[0],
    }
