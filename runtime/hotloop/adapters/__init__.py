"""Adapters: LoRA files, and their coming and going on a running pipeline."""

from .swap import (
    Adapters,
    Swap,
    per_network,
)

__all__ = [
    "Adapters",
    "Swap",
    "per_network",
]
