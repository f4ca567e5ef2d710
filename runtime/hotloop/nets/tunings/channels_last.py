"""Tuning `channels_last`: convolutions on [B, h, w, C] in memory.

Maps and tokens are then the same bytes, so that a transformer reads a map without a transposition, and convolution
libraries need none of theirs. Weights are laid out once.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["lay_out_channels_last"]


def lay_out_channels_last(net: nn.Module) -> None:
    """Lay out every convolution's weight; a map takes the layout of the weight that it first meets."""
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 4:
                laid = parameter.detach().contiguous(memory_format=torch.channels_last)
                setattr(module, name, nn.Parameter(laid, requires_grad=False))
