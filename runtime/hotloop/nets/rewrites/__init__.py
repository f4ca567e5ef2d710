"""The exact rewrites, applied from outside to a plain network; whatever is not rewritten stays shared with it.

None changes the result beyond rounding. `hotloop.spec` says what the rewritten networks take and give.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from ...errors import BundleError, InputError
from ...spec import REWRITES
from ..unet import UNet
from ..vae import AutoencoderKL
from .kv import take_prompt
from .phase import unfold_upsampling
from .prefix import share_prefix
from .time_table import take_time_table

__all__ = ["REWRITES", "constants", "split", "with_phase"]

M = TypeVar("M", bound=nn.Module)


def split(unet: UNet, rewrites: Sequence[str]) -> dict[str, nn.Module]:
    """The UNet with these rewrites as "unet", with `kv` also "prompt", with `time` also "time"; `unet` stays plain.

    The weights are `unet`'s own, under their own keys; only `phase` makes new ones (`hotloop.weights.derived`).
    Raises InputError for an unknown rewrite, BundleError for one that the architecture has no place for.
    """
    if unknown := sorted(set(rewrites) - set(REWRITES)):
        raise InputError("nets.rewrites", "rewrites must be among " + ", ".join(REWRITES), unknown)
    changed = _sharing(unet)
    parts: dict[str, nn.Module] = {"unet": changed}
    if "kv" in rewrites:
        parts["prompt"] = take_prompt(changed)
    if "time" in rewrites:
        parts["time"] = take_time_table(changed)
    if "phase" in rewrites:
        unfold_upsampling(changed)
    if "prefix" in rewrites:
        share_prefix(changed)
    return parts


def with_phase(vae: AutoencoderKL) -> AutoencoderKL:
    """The autoencoder with its decoder's upsampling rewritten; `vae` stays plain, all other weights are its own."""
    changed = _sharing(vae)
    unfold_upsampling(changed.decoder)
    return changed


def constants(unet: UNet) -> dict[str, Any]:
    """The constants of `hotloop.spec.Family` that a UNet decides, for a bundle's manifest.

    Raises BundleError for a UNet with other numbers of blocks in its levels, which the spec does not describe.
    """
    layers = {len(level.resnets) for level in unet.levels}
    blocks = unet.res_blocks()
    if len(layers) > 1:
        raise BundleError("nets.rewrites", "layers_per_block must be the same in all levels", sorted(layers))
    found: dict[str, Any] = {
        "unet_widths": [blocks[f"down_blocks.{i}.resnets.0"].conv2.out_channels for i in range(len(unet.levels))],
        "unet_layers": layers.pop(),
        "kv_width": unet.kv_width,
        "time_width": sum(block.conv1.out_channels for block in blocks.values()),
    }
    if width := unet.config.get("time_cond_proj_dim"):
        found["cond_width"] = width
    return found


def _sharing(net: M) -> M:
    """Other modules, the same parameters."""
    return copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})
