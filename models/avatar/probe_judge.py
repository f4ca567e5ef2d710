"""The probe that only judges: plain strided convolutions with group normalisation, on faces and weights of its own.

No module that trains, ranks or screens imports this one (a test looks), so nothing is ever fitted to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from probe import Heads, train
from quick import quicken
from torch import Tensor, nn
from training import Options, Stage, load_weights

__all__ = ["Judge", "load", "stage"]


class Judge(nn.Module):
    """[B, 3, 128, 128] -> logits per attribute, controls; `features` [B, 192], before the last non-linearity, are
    what FID-p and KID-p compare."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 64, 80, 96), width: int = 192) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, w in enumerate(widths):
            size, stride = (5, 2) if i == 0 else (3, 1 if i == len(widths) - 1 else 2)
            layers += [nn.Conv2d(before, w, size, stride, size // 2), nn.GroupNorm(8, w), nn.SiLU()]
            before = w
        self.body = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(before, 24, 1)
        self.mix = nn.Linear(24 * 8 * 8, width)
        self.heads = Heads(width)

    def features(self, x: Tensor) -> Tensor:
        return self.mix(F.silu(self.squeeze(self.body(x))).flatten(1))

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return self.heads(F.silu(self.features(x)))


def load(options: Options) -> Judge:
    """The trained judge, frozen."""
    judge = Judge()
    load_weights(options.weights / "probe_judge.safetensors", {"probe": judge})
    return judge.eval().requires_grad_(False).to(options.device, memory_format=torch.channels_last)


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    return train(stage, quicken(Judge()), options, needs, kinds=("other", "judged"), seed=2)
