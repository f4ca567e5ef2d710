"""Tuning `qkv`: a self-attention's queries, keys and values from one matrix product.

The three weights become one [3 C, C] in memory, and stay what they were by name: parts of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unet import Attention, CrossAttention
from ..vae import OneHeadAttention

__all__ = ["Packed", "pack_qkv"]

_PARTS = ("to_q", "to_k", "to_v")


class Packed(nn.Module):
    """A self-attention with one projection."""

    packed: Tensor
    packed_bias: Tensor | None

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, self.packed, self.packed_bias).chunk(3, dim=-1)

    def repack(self) -> None:
        """Take the three layers' weights as they are now into one tensor, whose parts they become."""
        layers = [self.get_submodule(part) for part in _PARTS]
        for name, target in (("weight", "packed"), ("bias", "packed_bias")):
            parts = [getattr(layer, name) for layer in layers]
            packed = None if parts[0] is None else torch.cat([part.detach() for part in parts])
            self.register_buffer(target, packed, persistent=False)
            if packed is not None:
                for layer, part in zip(layers, packed.chunk(3), strict=True):
                    setattr(layer, name, nn.Parameter(part, requires_grad=False))


def pack_qkv(net: nn.Module) -> None:
    """Pack the projections of every self-attention of a UNet or a VAE."""
    for module in net.modules():
        if isinstance(module, (Attention, OneHeadAttention)) and not isinstance(module, (CrossAttention, Packed)):
            _pack(module)


# What a class becomes, be it the plain attention or one that another tuning has changed before.
_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _pack(attention: nn.Module) -> None:
    base = type(attention)
    if base not in _classes:
        _classes[base] = type(f"Packed{base.__name__}", (Packed, base), {})
    attention.__class__ = _classes[base]
    assert isinstance(attention, Packed)
    attention.repack()
