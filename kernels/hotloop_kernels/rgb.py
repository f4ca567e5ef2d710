"""rgb: network pixels to bytes and back.

pack gives the bytes of the baseline's image processor: (x / 2 + 0.5) clamped to 0..1, times 255, rounded half to even,
each step in float32.
"""

from __future__ import annotations

import numpy as np

from . import backend
from .checks import KernelError, tensor

__all__ = ["pack", "reference_pack", "reference_unpack", "unpack"]


def pack(images: np.ndarray) -> np.ndarray:
    """float32 [N, C, h, w] in [-1, 1] -> uint8 [N, h, w, C]. Values outside are clamped.

    Raises KernelError on NaN or infinity, which would be a silent black or white pixel.
    """
    tensor("rgb.pack", "images", images, ("N", "C", "h", "w"))
    if backend.ops is None:
        finite = bool(np.isfinite(images).all())
        out = reference_pack(images) if finite else None
    else:
        n, c, h, w = images.shape
        out = np.empty((n, h, w, c), np.uint8)
        finite = backend.ops.rgb_pack(np.ascontiguousarray(images), out)
    if out is None or not finite:
        bad = int(images.size - np.isfinite(images).sum())
        raise KernelError("rgb.pack", "images must be finite", f"{bad} values that are NaN or infinite")
    return out


def unpack(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, h, w, C] -> float32 [N, C, h, w] in [-1, 1]. Raises KernelError."""
    tensor("rgb.unpack", "pixels", pixels, ("N", "h", "w", "C"), dtype=np.uint8)
    if backend.ops is None:
        return reference_unpack(pixels)
    n, h, w, c = pixels.shape
    out = np.empty((n, c, h, w), np.float32)
    backend.ops.rgb_unpack(np.ascontiguousarray(pixels), out)
    return out


def reference_pack(images: np.ndarray) -> np.ndarray:
    """pack in NumPy, for finite values."""
    half = np.float32(0.5)
    unit = np.clip(images * half + half, 0, 1)
    return np.ascontiguousarray(np.rint(unit * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1))


def reference_unpack(pixels: np.ndarray) -> np.ndarray:
    """unpack in NumPy."""
    x = pixels.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
