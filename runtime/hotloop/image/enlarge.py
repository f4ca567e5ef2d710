"""What makes a drawing larger between the passes of hires, pixels or latents, by the filters that A1111 names; and what
holds the larger one to the first."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["A1111", "LATENTS", "NETWORK", "PIXELS", "UPSCALERS", "back_projected", "latents", "pictures"]

PIXELS = {
    "lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST,
}  # fmt: skip
LATENTS = {
    "latent": Image.Resampling.BILINEAR, "latent-bicubic": Image.Resampling.BICUBIC,
    "latent-nearest": Image.Resampling.NEAREST,
}  # fmt: skip

NETWORK = "upscaler"  # the bundle's own (hotloop.upscaling)
UPSCALERS = (*PIXELS, *LATENTS, NETWORK)
A1111 = {
    "Lanczos": "lanczos", "Nearest": "nearest", "Latent": "latent", "Latent (bicubic)": "latent-bicubic",
    "Latent (nearest)": "latent-nearest",
}  # fmt: skip


def pictures(drawn: list[Image.Image], size: tuple[int, int], upscaler: str) -> list[Image.Image]:
    """Pictures brought to size (width, height) by one of PIXELS."""
    return [one.resize(size, PIXELS[upscaler]) for one in drawn]


def latents(drawn: np.ndarray, cells: tuple[int, int], upscaler: str) -> np.ndarray:
    """f32 [N, C, h, w] -> the same at cells (w, h), by one of LATENTS."""
    return _resized(drawn, cells, LATENTS[upscaler])


def back_projected(large: np.ndarray, first: np.ndarray, share: float = 1.0) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] with that share of what they lack of smaller ones, uint8 [N, h, w, 3], when they are
    made as small; what is finer than those can show stays.

    Back-projection, Irani and Peleg 1991, "Improving resolution by image registration", eq. 3. One round of it: more
    would come closer, and ring where the factor is no whole number.
    """
    wanted = first.transpose(0, 3, 1, 2).astype(np.float32)
    own = large.transpose(0, 3, 1, 2).astype(np.float32)
    (height, width), (h, w) = own.shape[2:], wanted.shape[2:]
    lacking = wanted - _resized(own, (w, h), Image.Resampling.BICUBIC)
    made = own + np.float32(share) * _resized(lacking, (width, height), Image.Resampling.BICUBIC)
    return np.rint(made).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _resized(planes: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """f32 [N, C, H, W] -> the same at size (width, height), every channel a picture of its own."""
    flat = np.ascontiguousarray(planes).reshape(-1, *planes.shape[2:])
    each = [np.asarray(Image.fromarray(one).resize(size, resample)) for one in flat]
    return np.stack(each).reshape(*planes.shape[:2], size[1], size[0])
