"""Trains the part segmenter: picture -> part masks and matte, on the trunk of the first probe.

The trunk starts from `probe_train`'s and learns on with a smaller rate; the probe itself keeps its own weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import probe_train
import torch
import torch.nn.functional as F
from data import Shards
from pixels import to_tensor
from render import PARTS
from torch import Tensor
from training import Options, Run, Stage, batches, load_weights

from hotloop.nets.segmenter import Segmenter

__all__ = ["CONFIG", "iou", "load", "stage"]

CONFIG: dict[str, Any] = {"parts": list(PARTS)}


def _loss(logits: Tensor, matte: Tensor, parts: Tensor, alpha: Tensor) -> Tensor:
    """Cross-entropy, small parts weighing more, and the matte's L1."""
    weight = torch.ones(len(PARTS), device=logits.device)
    for name in ("eyes", "mouth", "brows", "glasses", "accessory"):
        weight[PARTS.index(name)] = 3.0
    return F.cross_entropy(logits.float(), parts, weight=weight) + 2 * (matte.float() - alpha).abs().mean()


def _worn(x: Tensor, rng: np.random.RandomState) -> Tensor:
    """Noise and, now and then, a loss of resolution; nothing may shift."""
    if rng.rand() < 0.4:
        small = F.interpolate(x, scale_factor=float(rng.uniform(0.6, 0.95)), mode="bilinear", antialias=True)
        x = F.interpolate(small, size=x.shape[2:], mode="bilinear")
    return x + float(rng.uniform(0, 0.06)) * torch.randn_like(x)


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(10)
    net = Segmenter(CONFIG)
    net.trunk.load_state_dict(probe_train.load(options).trunk.state_dict())
    net = net.to(options.device, memory_format=torch.channels_last).train()
    run = Run(stage, {"trunk": net.trunk, "head": net.head}, options, needs=needs, slow=["trunk"])
    rows, rng = Shards(options.build / "data", "parts"), np.random.RandomState(run.step)
    for index in batches(len(rows), 4 if options.small else 16, 11 + run.step):
        if not run.going():
            break
        images, parts, mattes = rows.rows(index, "images", "parts", "mattes")
        x = to_tensor(images, options.device)
        x = _worn(x, rng)
        truth = torch.from_numpy(parts).long().to(options.device)
        alpha = torch.from_numpy(mattes)[:, None].float().to(options.device) / 255
        with torch.autocast(options.device, torch.bfloat16):
            logits, matte = net(x)
        run.descend(_loss(logits, matte, truth, alpha))
    with run.average.applied():
        figures = judged(net.eval(), options) if run.over else {}
    return run.close(**figures)


def iou(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Intersection over union per part, over all pixels of all pictures where either has it."""
    out = {}
    for i, part in enumerate(PARTS):
        a, b = guess == i, truth == i
        if (a | b).any():
            out[part] = round(float((a & b).sum() / (a | b).sum()), 4)
    return out


@torch.no_grad()
def judged(net: Segmenter, options: Options, most: int = 256) -> dict[str, Any]:
    rows = Shards(options.build / "data", "parts", held=True)
    if not len(rows):
        return {}
    guesses, errors = [], []
    images, parts, mattes = rows.rows(np.arange(min(most, len(rows))), "images", "parts", "mattes")
    for i in range(0, len(images), 32):
        logits, matte = net(to_tensor(images[i : i + 32], options.device))
        guesses.append(logits.argmax(1).cpu().numpy())
        errors.append(np.abs(matte[:, 0].cpu().numpy() - mattes[i : i + 32] / 255).mean())
    found = iou(np.concatenate(guesses), parts)
    mean = round(float(np.mean(list(found.values()))), 4)
    return {"iou": found, "mean iou": mean, "matte error": round(float(np.mean(errors)), 4)}


def load(options: Options) -> Segmenter:
    net = Segmenter(CONFIG)
    load_weights(options.weights / "segmenter.safetensors", {"trunk": net.trunk, "head": net.head})
    return net.eval().requires_grad_(False).to(options.device, memory_format=torch.channels_last)
