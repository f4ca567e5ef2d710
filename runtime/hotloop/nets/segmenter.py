"""The part segmenter: picture -> what each pixel shows, and the matte of the person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Net
from .trunk import WIDTHS, Trunk

__all__ = ["Segmenter"]


class _Head(nn.Module):
    """Maps of a trunk, the coarsest first, each added to the enlarged one before -> [B, out, H, W]."""

    def __init__(self, widths: Sequence[int], width: int, out: int) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(w, width, 1) for w in widths)
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in widths)
        self.edge = nn.Conv2d(3, 8, 3, 1, 1)
        self.out = nn.Conv2d(width + 8, out, 3, 1, 1)

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        y = F.relu(self.mix[-1](self.narrow[-1](maps[-1])))
        for narrow, mix, level in zip(self.narrow[-2::-1], self.mix[-2::-1], maps[-2::-1], strict=True):
            y = _to(level, y) + narrow(level)
            y = y + F.relu(mix(F.relu(y)))
        return self.out(torch.cat([_to(x, y), F.relu(self.edge(x))], dim=1))


def _to(like: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=False)


class Segmenter(Net):
    """config: `parts`, the names of what it tells apart, in the order of its masks; `widths` of the trunk, `width` of
    the head. Any size goes in; trained faces fill 128 x 128."""

    class_name = "Segmenter"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.parts, widths = len(config["parts"]), tuple(config.get("widths", WIDTHS))
        self.factor = 2 ** len(widths)
        self.trunk, self.head = Trunk(widths), _Head(widths, config.get("width", 32), self.parts + 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> logits of the parts [B, parts, H, W], matte [B, 1, H, W] in [0, 1]."""
        out = self.head(x, self.trunk(x))
        return out[:, :-1], out[:, -1:].sigmoid()

    def segment(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The same with probabilities: over the parts they sum to 1."""
        logits, matte = self(image)
        return logits.softmax(dim=1), matte

    def constants(self) -> dict[str, int]:
        return {"parts": self.parts}
