"""The animator as it is trained: its configuration, and `Posterior`, which only training needs.

The networks that ship are `hotloop.nets.animator`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from controls import CONTROLS, TABLE
from torch import Tensor, nn

__all__ = ["CONFIG", "Posterior"]

CONFIG: dict[str, Any] = {"controls": TABLE, "z": 8, "size": 128}
_Z: int = CONFIG["z"]


def _conv(before: int, after: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, 2, size // 2)


class Posterior(nn.Module):
    """Target and keyframe premultiplied [B, 4, 128, 128], controls -> means and log-variances of z [B, 2 z]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(8, 16, 5), nn.SiLU(), _conv(16, 32), nn.SiLU(), _conv(32, 48), nn.SiLU(), _conv(48, 64), nn.SiLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.out = nn.Sequential(nn.Linear(64 * 64 + len(CONTROLS), 96), nn.SiLU(), nn.Linear(96, 2 * _Z))

    def forward(self, target: Tensor, key: Tensor, controls: Tensor) -> Tensor:
        seen = self.body(torch.cat([target, key], dim=1))
        return self.out(torch.cat([seen.float(), controls], dim=1))
