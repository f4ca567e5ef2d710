"""Denoisers: what the loop holds."""

from .unet import (
    Denoiser,
    Kept,
    Resident,
    UNetDenoiser,
)

__all__ = [
    "Denoiser",
    "Kept",
    "Resident",
    "UNetDenoiser",
]
