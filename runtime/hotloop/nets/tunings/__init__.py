"""How the native engine runs a network: tunings, applied from outside, which change no result beyond rounding.

Each stands in a file of its own and has a switch. `hotloop.spec` knows nothing of them: what a network takes and gives
stays the same, unlike under the rewrites.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

import hotloop_kernels as kernels

from ...errors import InputError
from ..parts import Call
from .channels_last import lay_out_channels_last
from .fused_attention import fuse_attention
from .fused_geglu import fuse_geglu
from .fused_norms import fuse_norms
from .packed_qkv import pack_qkv

__all__ = ["TUNINGS", "at_hand", "operators_at_hand", "tune"]

# name -> the fused operators it needs
TUNINGS: dict[str, tuple[str, ...]] = {
    "channels_last": (), "qkv": (), "attention": ("attention",), "norms": ("layer_norm", "group_norm_silu"),
    "geglu": ("geglu",),
}  # fmt: skip


def operators_at_hand(device: str) -> set[str]:
    """The operators that run fused on this device: on CUDA, those proved on its architecture."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return set(kernels.proved.get(f"sm_{major}{minor}", ()))
    return set(kernels.OPERATORS) if device == "cpu" and kernels.compiled() else set()


def at_hand(device: str) -> list[str]:
    """The tunings whose operators run fused on this device."""
    fused = operators_at_hand(device)
    return [name for name, operators in TUNINGS.items() if fused.issuperset(operators)]


def tune(call: Call, tunings: Collection[str]) -> Call:
    """Apply them to the network itself, in its precision; returns it. Raises InputError for an unknown one."""
    if unknown := sorted(set(tunings) - set(TUNINGS)):
        raise InputError("nets.tunings", f"tunings must be among {', '.join(TUNINGS)}", unknown[0])
    if "channels_last" in tunings:
        lay_out_channels_last(call.net)
    if "attention" in tunings:
        fuse_attention(call.net)
    if "qkv" in tunings:
        pack_qkv(call.net)
    if "norms" in tunings:
        fuse_norms(call.net, call.dtype)
    if "geglu" in tunings:
        fuse_geglu(call.net)
    return call
