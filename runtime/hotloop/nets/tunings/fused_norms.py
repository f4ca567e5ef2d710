"""Tuning `norms`: normalisations as one operator each, with the SiLU that follows most of them.

The operators sum in float32 whatever they read, so in half precision no float32 copy of a map is made.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hotloop_kernels as kernels

from ..blocks import NormSilu
from ..cuda_stream import stream_of

__all__ = ["fuse_norms"]


class FusedGroupNorm(nn.GroupNorm):
    """GroupNorm as one operator."""

    silu = False

    def forward(self, x: Tensor) -> Tensor:
        return kernels.group_norm_silu(
            x, self.weight, self.bias, self.num_groups, self.eps, silu=self.silu, stream=stream_of(x)
        )


class FusedNormSilu(FusedGroupNorm):
    """NormSilu as one operator."""

    silu = True


class FusedLayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis as one operator."""

    def forward(self, x: Tensor) -> Tensor:
        return kernels.layer_norm(x, self.weight, self.bias, self.eps, stream=stream_of(x))


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    NormSilu: FusedNormSilu, nn.GroupNorm: FusedGroupNorm, nn.LayerNorm: FusedLayerNorm,
}  # fmt: skip


def fuse_norms(net: nn.Module, dtype: torch.dtype) -> None:
    """Fuse every normalisation; `dtype` is what the network computes in. Islands of float32 around norms go."""
    for module in net.modules():
        if fused := _FUSED.get(type(module)):
            module.__class__ = fused
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
