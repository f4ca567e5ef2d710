"""Rewrite `kv`: the keys and values of every cross-attention, which depend on the prompt alone, once per prompt.

    prompt: context [B, T, C] -> context_kv [B, T, kv_width], packed K0 | V0 | K1 | V1 ... in the order of the layers
    unet:   takes context_kv in place of the context

Saves 2 T C kv_width operations per row and evaluation: for SD 1.5 at 77 tokens 2.95 GFLOP, 0.37 % of 512x512.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..blocks import Columns, plant
from ..unet import UNet

__all__ = ["Prompt", "take_prompt"]


class Prompt(nn.Module):
    """The key and value layers of all cross-attentions, under the checkpoint's own keys."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.paths = tuple(layers)
        plant(self, layers)

    def forward(self, context: Tensor) -> Tensor:
        """Hidden states [B, T, C] -> packed keys and values [B, T, kv_width]."""
        return torch.cat([self.get_submodule(path)(context) for path in self.paths], dim=-1)


def take_prompt(unet: UNet) -> Prompt:
    """Take the key and value layers out of the UNet, which then reads their outputs from a packed row."""
    layers: dict[str, nn.Module] = {}
    for path, attention in unet.cross_attentions().items():
        begin, end = attention.columns
        middle = (begin + end) // 2
        for name, columns in (("to_k", Columns(begin, middle)), ("to_v", Columns(middle, end))):
            layers[f"{path}.{name}"] = getattr(attention, name)
            setattr(attention, name, columns)
    return Prompt(layers)
