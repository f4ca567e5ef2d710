"""The CLIP pair of a face model: text and picture -> unit vectors that meet (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Net
from .clip import CLIPText
from .trunk import WIDTHS, Trunk

__all__ = ["ImageTower", "TextTower"]


class ImageTower(Net):
    """config: `size` pixels a side, `widths` of the trunk, `hidden` numbers before the last layer, `projection_dim`."""

    class_name = "ImageTower"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        widths, hidden = tuple(config.get("widths", WIDTHS)), config.get("hidden", 256)
        self.size, self.width = config.get("size", 128), config.get("projection_dim", 128)
        cells = (self.size // 2 ** len(widths)) ** 2
        self.trunk, self.squeeze = Trunk(widths), nn.Conv2d(widths[-1], 24, 1)
        self.mix = nn.Sequential(nn.Linear(24 * cells, hidden), nn.ReLU(), nn.Linear(hidden, self.width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, size, size] in [-1, 1] -> unit vectors [B, projection_dim]."""
        return F.normalize(self.mix(F.relu(self.squeeze(self.trunk(x)[-1])).flatten(1)).float(), dim=1)

    def constants(self) -> dict[str, int]:
        return {"clip_size": self.size, "clip_width": self.width}


class TextTower(Net):
    """config: CLIPText's, and `projection_dim`."""

    class_name = "TextTower"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        text = CLIPText(config)
        self.width = config.get("projection_dim", 128)
        self.encoder: nn.Module = text
        self.project = nn.Linear(text.width, self.width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B, T], padded with the end token -> unit vectors [B, projection_dim], from the first end token."""
        hidden = self.encoder(ids)[0]
        # The first of equals: largest where it counts down, so that no engine has a choice.
        first = ((ids == ids[:, -1:]) * torch.arange(ids.shape[1], 0, -1, device=ids.device)).argmax(1)
        end = hidden.gather(1, first[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        return F.normalize(self.project(end).float(), dim=1)

    def constants(self) -> dict[str, int]:
        return {"clip_width": self.width}
