"""The probe that may enter losses, rankings and screening: a residual trunk whose maps other readers share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from probe import Heads, train
from torch import Tensor, nn
from training import Options, Stage, load_weights

from hotloop.nets.trunk import WIDTHS, Trunk

__all__ = ["Probe", "load", "stage"]


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
