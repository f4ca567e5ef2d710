"""Weights: safetensors files, the names weights are known by, and weights computed from others."""

from .safetensors import (
    Weights,
    refuse_non_finite,
    save,
)

__all__ = [
    "Weights",
    "refuse_non_finite",
    "save",
]
