"""Denoisers, what the loop holds: the protocols, any engine's UNet, and the one whose state stays on its device."""

from .guidance import guidance_embedding
from .lru_cache import LRUCache
from .protocols import Denoiser, DeviceDenoiser, Inpaint
from .unet import UNetDenoiser

__all__ = ["Denoiser", "DeviceDenoiser", "Inpaint", "LRUCache", "UNetDenoiser", "guidance_embedding"]
