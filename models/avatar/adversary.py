"""Adversarial losses, each with its closed form in the tests: of logits [B], real and fake."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LOSSES", "gradient_penalty", "hinge", "least_squares", "non_saturating", "parameters", "r1", "wasserstein"]


def non_saturating(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Discriminator -log s(real) - log(1 - s(fake)), generator -log s(fake) (Goodfellow et al. 2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean(), F.softplus(-fake).mean()


def least_squares(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Labels 1, 0 and 1 (Mao et al. 2016)."""
    return 0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean(), 0.5 * ((fake - 1) ** 2).mean()


def hinge(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Margins of 1 (Lim and Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean(), -fake.mean()


def wasserstein(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The critic's difference of means (Arjovsky et al. 2017); wants `gradient_penalty` beside it."""
    return fake.mean() - real.mean(), -fake.mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "non-saturating": non_saturating, "least squares": least_squares, "hinge": hinge, "wgan-gp": wasserstein,
}  # fmt: skip


def _slopes(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Norms [B] of the critic's gradients at x."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).float().sum(), x, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """(|slope| - 1)^2 on the way from real to fake (Gulrajani et al. 2017)."""
    at = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
    return ((_slopes(critic, at * real + (1 - at) * fake) - 1) ** 2).mean()


def r1(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Half the squared slope at real pictures (Mescheder et al. 2018)."""
    return 0.5 * (_slopes(critic, real) ** 2).mean()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
