"""The probe that may enter losses, rankings and screening: a residual trunk whose maps other readers share."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from probe import Heads, train
from torch import Tensor, nn
from training import Options, Stage, load_weights

__all__ = ["Probe", "Trunk", "load", "stage"]

WIDTHS = (24, 40, 64, 96)


class _Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2015), batch-normalised."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.last = nn.BatchNorm2d(width)
        self.past = nn.Conv2d(before, width, 1, stride) if stride > 1 or before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(self.second(F.relu(self.norm(self.first(x))))) + self.past(x))


class Trunk(nn.Module):
    """[B, 3, 128, 128] in [-1, 1] -> maps of 64, 32, 16 and 8 cells a side, WIDTHS channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        self.blocks = nn.ModuleList(_Block(a, b, 2) for a, b in pairwise(WIDTHS))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


class Probe(nn.Module):
    """[B, 3, 128, 128] -> logits per attribute, controls [B, controls]; `features` [B, 160] are before the heads."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.squeeze = nn.Conv2d(WIDTHS[-1], 24, 1)
        self.mix = nn.Linear(24 * 8 * 8, width)
        self.heads = Heads(width)

    def features(self, x: Tensor) -> Tensor:
        return self.mix(F.relu(self.squeeze(self.trunk(x)[-1])).flatten(1))

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return self.heads(F.relu(self.features(x)))


def load(options: Options) -> Probe:
    """The trained probe, frozen."""
    probe = Probe()
    load_weights(options.weights / "probe_train.safetensors", {"probe": probe})
    return probe.eval().requires_grad_(False).to(options.device, memory_format=torch.channels_last)


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    return train(stage, Probe(), options, needs, kinds=("even", "pairs"), seed=1)
