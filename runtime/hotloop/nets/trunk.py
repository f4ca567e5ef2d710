"""The residual trunk that readers of faces share: what tells parts apart also tells pictures apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WIDTHS", "Trunk"]

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
    """[B, 3, H, W] in [-1, 1] -> maps of half, a quarter, an eighth... of H x W, of `widths` channels."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 4, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.blocks = nn.ModuleList(_Block(a, b, 2) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps
