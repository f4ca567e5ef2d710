"""A figure cut out of a plain ground, where there is no segmenter: what is like the border and joined to it goes."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["plain_matte"]

_SIDE = 128
_PLAIN, _LIKE = 14.0, 34.0  # levels: how much a plain border varies; how far from it ground may be
_LEAST, _MOST = 0.2, 0.85  # of the picture that a figure may be


def plain_matte(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of a picture uint8 [H, W, 3]: 255 where the figure is; everywhere where the border is not plain, or
    what is left of the picture can be no figure."""
    h, w = pixels.shape[:2]
    small = np.asarray(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    border = np.concatenate([small[: _SIDE // 2, 0], small[: _SIDE // 2, -1], small[0]])
    ground = np.median(border, axis=0)
    whole = np.full((h, w), 255, np.uint8)
    if np.abs(border - ground).max(-1).mean() > _PLAIN:
        return whole
    like = np.abs(small - ground).max(-1) < _LIKE
    joined = np.zeros_like(like)
    joined[0], joined[:, 0], joined[:, -1] = like[0], like[:, 0], like[:, -1]
    while True:
        grown = joined.copy()
        grown[1:] |= joined[:-1]
        grown[:-1] |= joined[1:]
        grown[:, 1:] |= joined[:, :-1]
        grown[:, :-1] |= joined[:, 1:]
        grown &= like
        if (grown == joined).all():
            break
        joined = grown
    if not _LEAST <= 1 - joined.mean() <= _MOST:
        return whole
    figure = Image.fromarray(np.where(joined, 0, 255).astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    # The edge half a pixel further in: of the ground's colour nothing shall stay.
    return np.asarray(np.clip((np.asarray(figure, np.float32) - 96) * 1.9, 0, 255).astype(np.uint8))
