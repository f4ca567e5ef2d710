"""Pictures as tensors, and the losses that compare them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["detail", "edges", "gradient_loss", "psnr", "to_images", "to_tensor"]


def to_tensor(images: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1], channels last."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x: Tensor) -> np.ndarray:
    """float32 [B, C, H, W] in [-1, 1] -> uint8 [B, H, W, C]."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def gradient_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical steps."""
    return torch.stack([(a - b).abs().mean() for a, b in zip(edges(x), edges(y), strict=True)]).sum()


def detail(boxes: np.ndarray, size: int, margin: float = 0.016) -> Tensor:
    """float32 [B, 1, size, size]: 1 inside the boxes float [B, n, 4] of eyes and mouth, where the expression is."""
    mask = torch.zeros(len(boxes), 1, size, size)
    for row, several in enumerate(np.asarray(boxes, np.float32)):
        for x0, y0, x1, y1 in several:
            if x1 > x0:
                a, b, c, d = (round(float(v) * size) for v in (x0 - margin, y0 - margin, x1 + margin, y1 + margin))
                mask[row, :, max(0, b) : d + 1, max(0, a) : c + 1] = 1
    return mask


def psnr(x: Tensor, y: Tensor) -> float:
    """Mean over the batch, in dB, of pictures in [-1, 1]."""
    error = F.mse_loss(x.float().clamp(-1, 1), y.float().clamp(-1, 1), reduction="none").mean((1, 2, 3)) / 4
    return float((-10 * error.clamp(min=1e-8).log10()).mean())
