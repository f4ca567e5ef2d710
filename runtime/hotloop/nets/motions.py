"""Motions on demand: two seconds of controls for an action and a personality (a conditional VAE, Sohn et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .base import Net

__all__ = ["Motions"]


def _layers(before: int, width: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, after)
    )


class Motions(Net):
    """config: names of `actions` and `personalities`; `controls`, a (name, low, high) each; `frames` of a sequence;
    `z`; `width` of the layers; `encoder`: whether it has the half that only training needs.

    Actions and personalities are weights: one-hot as in training, or a blend that sums to 1.
    """

    class_name = "Motions"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.frames, self.controls, self.z = config.get("frames", 50), len(config["controls"]), config.get("z", 8)
        self.actions, self.personalities = len(config["actions"]), len(config["personalities"])
        flat, told, width = self.frames * self.controls, self.actions + self.personalities, config.get("width", 192)
        if config.get("encoder"):
            self.encoder = _layers(flat + told, width, 2 * self.z)
        self.decoder = _layers(self.z + told, width, flat)

    def encode(self, controls: Tensor, action: Tensor, personality: Tensor) -> Tensor:
        """Sequences [B, frames, controls] and weights as in `decode` -> z's means and log-variances [B, 2 z]."""
        moments: Tensor = self.encoder(torch.cat([controls.flatten(1), action, personality], dim=1))
        return moments

    def decode(self, z: Tensor, action: Tensor, personality: Tensor) -> Tensor:
        """z [B, z], weights [B, actions], [B, personalities] -> controls [B, frames, controls], each scaled so that its
        larger bound is 1."""
        out: Tensor = self.decoder(torch.cat([z, action, personality], dim=1))
        return out.unflatten(1, (self.frames, self.controls))

    def constants(self) -> dict[str, int]:
        return {
            "controls": self.controls, "frames": self.frames, "motion_z": self.z, "actions": self.actions,
            "personalities": self.personalities,
        }  # fmt: skip
