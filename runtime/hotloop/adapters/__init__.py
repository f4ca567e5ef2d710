"""Adapters: LoRA files, and their coming and going on a running pipeline."""

from .shelf import Shelf, scanned
from .swap import (
    Adapters,
    Swap,
    per_network,
)

__all__ = [
    "Adapters",
    "Shelf",
    "Swap",
    "per_network",
    "scanned",
]
