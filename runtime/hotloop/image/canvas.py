"""A picture to be repainted: the region that is drawn, what the networks see of it, and the way back into the whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from . import image as images

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["RESIZE_MODES", "Canvas", "Frame"]

# diffusers' names of the ways to another shape
RESIZE_MODES = {"default": images.resize, "fill": images.fill, "crop": images.centre_crop}


@dataclass(frozen=True, eq=False)
class Frame:
    """What the networks see: pixels f32 [1, 3, H, W] in [-1, 1], pixel_mask f32 [1, 1, H, W] and latent_mask
    f32 [1, 1, h, w] of 0 and 1 (repaint)."""

    pixels: np.ndarray
    pixel_mask: np.ndarray
    latent_mask: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[3], self.pixels.shape[2]

    @property
    def masked_pixels(self) -> np.ndarray:
        """The pixels that stay; grey where the mask is."""
        return self.pixels * (self.pixel_mask < 0.5)


@dataclass(frozen=True)
class Canvas:
    """The whole picture (RGB), its mask (L, blurred by `blur` pixels), and the box that is drawn (None: all of it)."""

    original: Image
    mask: Image
    blur: float
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def open(cls, original: Image, mask: Any, *, blur: float) -> Canvas:
        """mask: what `open_mask` takes, of the picture's size; blur: 0 .. 1000 pixels. Raises InputError."""
        return cls(original, images.blur(images.open_mask(mask, size=original.size), blur), blur)

    def only_masked(self, padding: int, size: tuple[int, int]) -> Canvas:
        """The same with the box around the mask, padded, in the proportions of size (width, height)."""
        box = images.mask_region(self.mask, padding=padding, aspect=size[0] / size[1])
        return replace(self, box=box)

    def frame(self, place: str, size: tuple[int, int], factor: int) -> Frame:
        """The part that is drawn, at size (width, height), for a VAE of `factor` pixels per latent cell.

        Raises InputError at `place` where no latent cell is left to repaint.
        """
        both = (self.original, self.mask)
        if self.box is None:
            source, mask = (images.resize(one, size) for one in both)
        else:  # a box at the picture's border may not reach the drawing's proportions
            source, mask = (images.fill(one.crop(self.box), size) for one in both)
        pixels, pixel_mask = images.to_float(source), images.mask_array(mask)
        latent_mask = images.latent_mask(pixel_mask, factor)
        if not latent_mask.any():
            at = f"at {size[0]} x {size[1]} pixels"
            rule = f"mask_image must leave white to repaint after a blur of {self.blur:g}, {at}"
            raise InputError(place, rule, f"{int(np.sum(np.asarray(self.mask) >= 128))} white pixels")
        return Frame(pixels, pixel_mask, latent_mask)

    def put_back(self, drawn: Image) -> Image:
        """What was drawn in its place; the original where the mask is 0, bit for bit."""
        return images.paste(self.original, drawn, self.mask, box=self.box)
