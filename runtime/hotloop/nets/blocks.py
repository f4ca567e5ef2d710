"""Convolutional pieces that the UNet and the VAE share; attribute names are the checkpoints' keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Columns", "Downsample", "NormSilu", "ResBlock", "Upsample", "plant"]


class NormSilu(nn.GroupNorm):
    """Group normalisation and SiLU: what stands before most convolutions here."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions with a skip; the UNet's also take the time's signal [B, time_dim]."""

    def __init__(self, c_in: int, c_out: int, *, groups: int, eps: float, time_dim: int = 0) -> None:
        super().__init__()
        self.norm1 = NormSilu(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj: nn.Module | None = nn.Linear(time_dim, c_out) if time_dim else None
        self.norm2 = NormSilu(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.group = c_out // groups  # channels that norm2 takes together
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(self.norm2(h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def narrow(self, width: int) -> None:
        """Only so many channels between the convolutions, whole groups of norm2: those of a pruned network."""
        self.conv1 = nn.Conv2d(self.conv1.in_channels, width, 3, padding=1)
        if isinstance(self.time_emb_proj, nn.Linear):
            self.time_emb_proj = nn.Linear(self.time_emb_proj.in_features, width)
        self.norm2 = NormSilu(width // self.group, width, self.norm2.eps)
        self.conv2 = nn.Conv2d(width, self.conv2.out_channels, 3, padding=1)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2. Padding 0 means the VAE's: one row below and one column to the right."""

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, or to `size` where a skip has an odd one; then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        x = F.interpolate(x, size=size) if size is not None else F.interpolate(x, scale_factor=2.0)
        return self.conv(x)


class Columns(nn.Module):
    """Stands in place of a layer whose outputs were computed beforehand: its columns [begin, end) of a packed row."""

    def __init__(self, begin: int, end: int) -> None:
        super().__init__()
        self.begin, self.end = begin, end

    def forward(self, packed: Tensor) -> Tensor:
        return packed[..., self.begin : self.end]


def plant(root: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put every module below `root` at its dotted path: outside its network, a weight keeps the checkpoint's key."""
    for path, module in modules.items():
        *branches, leaf = path.split(".")
        at = root
        for name in branches:
            if name not in dict(at.named_children()):
                at.add_module(name, nn.Module())
            at = at.get_submodule(name)
        at.add_module(leaf, module)
