"""The guidance that a distilled UNet is told, in place of a second, unconditional half (Meng et al. 2023; LCM)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["guidance_embedding"]

_PERIOD, _SCALE = 10_000.0, 1000.0


def guidance_embedding(guidance_scale: NDArray | float, width: int) -> NDArray[np.float32]:
    """Guidance scales [N] -> `timestep_cond` f32 [N, width]: sines, then cosines of 1000 (scale - 1) at falling rates.

    In float32 as diffusers' `get_guidance_scale_embedding` computes it: the angles run to thousands of radians, where
    its rounding shows.
    """
    w = (np.atleast_1d(np.asarray(guidance_scale, np.float64)) - 1).astype(np.float32) * np.float32(_SCALE)
    half = width // 2
    rate = np.float32(math.log(_PERIOD)) / np.float32(half - 1)
    # The products are float32; their exponentials are rounded once, as torch rounds them.
    falling = np.exp((np.arange(half, dtype=np.float32) * -rate).astype(np.float64)).astype(np.float32)
    angles = w[:, None] * falling
    return np.pad(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), ((0, 0), (0, width % 2)))
