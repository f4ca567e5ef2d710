"""Guidance whose outputs keep the spread of the conditional ones: a wrapper around any Denoiser."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..samplers.table import StepTable
from .protocols import Denoiser

__all__ = ["Rescaled"]


class Rescaled:
    """Lin et al. 2024 (arXiv 2305.08891), section 3.4: m' = m (phi std(m_c) / std(m) + 1 - phi), each image its own.

    m = m_u + g (m_c - m_u) is what guidance makes, so the step's own guidance is off: step() gives (m', None). It is
    not linear in the outputs, so no table can hold it. Equal to diffusers' `rescale_noise_cfg` up to rounding.

    guidance  f32 [N], the scale g of every image; phi in (0, 1]: 0 is to do without this wrapper
    """

    def __init__(self, denoiser: Denoiser, guidance: NDArray[np.float32], phi: float) -> None:
        self._denoiser, self._phi = denoiser, np.float32(phi)
        self._guidance = guidance[:, None, None, None]

    def begin(self, cond: Mapping[str, np.ndarray], table: StepTable, shape: tuple[int, ...]) -> None:
        self._denoiser.begin(cond, table, shape)

    def step(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        m_c, m_u = self._denoiser.step(x, rows)
        if m_u is None:  # nothing to bring back
            return m_c, None
        m = m_u + self._guidance * (m_c - m_u)
        ratio = _spread(m_c) / _spread(m)  # [N, 1, 1, 1]
        return m * (self._phi * ratio + (1 - self._phi)), None


def _spread(m: np.ndarray) -> np.ndarray:
    """The standard deviation of every image [N, 1, 1, 1]."""
    return m.std(axis=(1, 2, 3), keepdims=True, ddof=1, dtype=np.float64).astype(np.float32)
