"""Tuning `attention`: softmax(q k^T) v as one operator on tokens as the projections leave them, [B, T, H, D].

A cross-attention's second set of keys, the identity's, is a segment of the same operator.
"""

from __future__ import annotations

from torch import Tensor, nn

import hotloop_kernels as kernels

from ..cuda_stream import stream_of
from ..unet import Attention, CrossAttention
from ..vae import OneHeadAttention

__all__ = ["fuse_attention"]


class _Fused(nn.Module):
    heads: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))
        return kernels.attention(q, k, v, stream=stream_of(q)).flatten(2)


class FusedAttention(_Fused, Attention):
    """Attention by the fused operator."""


class FusedCrossAttention(_Fused, CrossAttention):
    """CrossAttention by the fused operator."""

    def attend_to(self, q: Tensor, k: Tensor, v: Tensor, identity: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        if identity is None:
            return self.attend(q, k, v)
        heads = [x.unflatten(-1, (self.heads, -1)) for x in (q, k, v, *identity[:2])]
        weight = identity[2].float()[:, None, None]  # of every head and query
        return kernels.attention(*heads[:3], segments=[(*heads[3:], weight)], stream=stream_of(q)).flatten(2)


class FusedOneHeadAttention(_Fused, OneHeadAttention):
    """OneHeadAttention by the fused operator."""

    heads = 1


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    Attention: FusedAttention, CrossAttention: FusedCrossAttention, OneHeadAttention: FusedOneHeadAttention,
}  # fmt: skip


def fuse_attention(net: nn.Module) -> None:
    """Fuse every attention of a UNet or a VAE whose head size the operator has."""
    for module in net.modules():
        if (fused := _FUSED.get(type(module))) and _fits(module):
            module.__class__ = fused


def _fits(module: nn.Module) -> bool:
    width = module.get_submodule("to_out.0").get_parameter("weight").shape[0]
    size = width // getattr(module, "heads", 1)
    return size % 8 == 0 and (size <= 256 or size == 512)
