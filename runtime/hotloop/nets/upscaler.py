"""The x4 upscaler: a picture and its matte -> the foreground alone, four times as large, with exact edges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Net

__all__ = ["Upscaler"]


class Upscaler(Net):
    """Fully convolutional, so it may run in tiles: with five blocks, nothing further than 12 pixels matters.

    config: `width` of its layers, residual `blocks`.
    """

    class_name = "Upscaler"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        width = config.get("width", 32)
        self.enter = nn.Conv2d(4, width, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 3, 1, 1))
            for _ in range(config.get("blocks", 5))
        )
        self.leave = nn.Conv2d(width, 4 * 16, 3, 1, 1)
        # Leaky: while the last layer is still small, plain rectifiers before it die, all of them.
        nn.init.normal_(self.leave.weight, std=0.01)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, rgb: Tensor, matte: Tensor) -> Tensor:
        """RGB [B, 3, H, W] in [-1, 1], matte [B, 1, H, W] in [0, 1] -> premultiplied RGBA [B, 4, 4H, 4W], about
        [0, 1]: bilinear enlargement and what the network adds to it."""
        x = torch.cat([rgb, 2 * matte - 1], dim=1)
        plain = torch.cat([(rgb + 1) / 2 * matte, matte], dim=1)
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        fine = F.pixel_shuffle(self.leave(F.leaky_relu(h, 0.1)), 4)
        return F.interpolate(plain, scale_factor=4.0, mode="bilinear") + fine

    def enlarge(self, rgb: Tensor, matte: Tensor) -> Tensor:
        """The same within its bounds: alpha in [0, 1], no colour above it."""
        rgba = self(rgb, matte)
        alpha = rgba[:, 3:].clamp(0, 1)
        return torch.cat([rgba[:, :3].clamp(min=0).minimum(alpha), alpha], dim=1)
