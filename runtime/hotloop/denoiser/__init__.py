"""Denoisers, what the loop holds: protocols, any engine's UNet, the one whose state stays on its device, wrappers."""

from .composed import Composed, Composition, Words
from .guidance import guidance_embedding
from .lru_cache import LRUCache
from .protocols import Denoiser, DeviceDenoiser, Inpaint
from .rescaled import Rescaled
from .unet import UNetDenoiser

__all__ = [
    "Composed", "Composition", "Denoiser", "DeviceDenoiser", "Inpaint", "LRUCache", "Rescaled", "UNetDenoiser", "Words",
    "guidance_embedding",
]  # fmt: skip
