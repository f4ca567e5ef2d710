"""Pictures with alpha: foreground and background apart, colours multiplied by alpha and not."""

from __future__ import annotations

import numpy as np

__all__ = ["over", "separated", "straight"]

F32 = np.ndarray
U8 = np.ndarray

# Of the larger side: windows that reach solid colours from a wide edge, then those of its neighbourhood.
_RADII = (1 / 8, 1 / 48)


def separated(pixels: U8, matte: F32) -> tuple[F32, F32]:
    """A picture uint8 [H, W, 3] of which the matte f32 [H, W] in [0, 1] is the foreground's share -> the colours of
    foreground and background, f32 [H, W, 3] in [0, 1]; where there is none of one near, the picture's own.

    Blur fusion, twice (Forte 2021, "Approximate fast foreground colour estimation", eqs. 3-5): colours are guessed as
    weighted means of a window, then moved to what composes to the picture.
    """
    image = pixels.astype(np.float64) / 255
    alpha = matte.astype(np.float64)[..., None]
    foreground = background = image
    for share in _RADII:
        radius = max(1, round(max(matte.shape) * share))
        mean = _weighted(foreground, alpha, radius, otherwise=image)
        background = _weighted(background, 1 - alpha, radius, otherwise=image)
        lacking = image - alpha * mean - (1 - alpha) * background
        foreground = (mean + alpha * lacking).clip(0, 1)
    background = (background + (1 - alpha) * lacking).clip(0, 1)
    return foreground.astype(np.float32), background.astype(np.float32)


def _weighted(values: np.ndarray, weights: np.ndarray, radius: int, *, otherwise: np.ndarray) -> np.ndarray:
    """The weighted mean in the window of 2 radius + 1 pixels around each; `otherwise` where nothing weighs."""
    total = _sums(weights, radius)
    return np.where(total > 1e-3, _sums(values * weights, radius) / np.maximum(total, 1e-3), otherwise)


def _sums(values: np.ndarray, radius: int) -> np.ndarray:
    """Sums over windows of 2 radius + 1 rows and columns, of [H, W, C], cut at the picture's borders."""
    for axis in (0, 1):
        length = values.shape[axis]
        first = [(1, 0) if i == axis else (0, 0) for i in range(3)]
        upto = np.pad(np.cumsum(values, axis=axis), first)
        at = np.arange(length)
        ends, starts = np.minimum(at + radius + 1, length), np.maximum(at - radius, 0)
        values = upto.take(ends, axis=axis) - upto.take(starts, axis=axis)
    return values


def straight(rgba: F32) -> U8:
    """Colours multiplied by alpha, f32 [H, W, 4] in [0, 1] -> not multiplied, as files hold them: uint8 [H, W, 4], all
    0 where alpha rounds to 0."""
    alpha = rgba[..., 3:].clip(0, 1)
    colours = np.divide(rgba[..., :3], alpha, out=np.zeros_like(rgba[..., :3]), where=alpha > 0).clip(0, 1)
    made = np.rint(np.concatenate([colours, alpha], axis=-1) * 255).astype(np.uint8)
    made[made[..., 3] == 0] = 0
    return made


def over(rgba: F32, ground: F32) -> U8:
    """Colours multiplied by alpha, f32 [H, W, 4] in [0, 1], over a ground f32 [H, W, 3]: uint8 [H, W, 3]."""
    alpha = rgba[..., 3:].clip(0, 1)
    return np.rint((rgba[..., :3].clip(0, 1) + (1 - alpha) * ground).clip(0, 1) * 255).astype(np.uint8)
