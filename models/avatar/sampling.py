"""Noise schedule and samplers in torch, for previews and scores while the model is being made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["alphas_cumprod", "ddim", "min_snr", "predictor", "timesteps"]

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # noisy latents, timesteps, context -> noise


def alphas_cumprod() -> Tensor:
    """float32 [1000], "scaled_linear" from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def min_snr(alphas: Tensor, gamma: float = 5.0) -> Tensor:
    """Weights of the noise loss by timestep (Hang et al. 2023)."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / snr


def timesteps(count: int) -> Tensor:
    """int64 [count]: one timestep from each of `count` equal strata, in random order: the same expectation as
    independent draws, a quieter gradient."""
    return ((torch.randperm(count) + torch.rand(1)) * (1000 / count)).long().clamp(max=999)


@torch.no_grad()
def ddim(
    predict: Predict, context: Tensor, empty: Tensor, *, steps: int = 20, guidance: float = 2.5, seed: int = 0,
    noise: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Scaled latents [B, 4, 32, 32] (Song et al. 2021) with classifier-free guidance; context [B, 77, width]."""
    alphas = alphas_cumprod().to(context.device)
    count = len(context)
    both = torch.cat([empty.expand_as(context), context])
    x = torch.randn(count, 4, 32, 32, generator=torch.Generator().manual_seed(seed)) if noise is None else noise
    x = x.to(context.device)
    ratio = 1000 // steps
    for t in [i * ratio + 1 for i in reversed(range(steps))]:
        out = predict(torch.cat([x, x]), torch.full((2 * count,), t, device=x.device), both).float()
        uncond, cond = out.chunk(2)
        eps = uncond + guidance * (cond - uncond)
        a, b = alphas[t], alphas[max(t - ratio, 0)]
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    return x


def predictor(unet: Any) -> Predict:
    """A UNet as a function, under bf16 autocast."""

    def predict(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            out: Tensor = unet(x, t, context, return_dict=False)[0]
        return out

    return predict
