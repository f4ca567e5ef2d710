"""What the loop holds: the two protocols of a denoiser, and what inpainting tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..samplers.table import StepTable

__all__ = ["Denoiser", "DeviceDenoiser", "Inpaint"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Keep the known image where the mask is 0.

    mask f32 [N, 1, h, w] (1 = repaint), known f32 [N, C, h, w] (clean latents), eps f32 [N, C, h, w] (its noise).
    """

    mask: F32
    known: F32
    eps: F32

    def of(self, image: int) -> Inpaint:
        """That image's own."""
        one = slice(image, image + 1)
        return Inpaint(self.mask[one], self.known[one], self.eps[one])


class Denoiser(Protocol):
    """begin() once per run, then step() once per table row."""

    def begin(self, cond: Mapping[str, np.ndarray], table: StepTable, shape: tuple[int, ...]) -> None:
        """Take the run's conditions (a batch row per image), its table and the latents' shape [N, C, h, w]."""

    def step(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """One evaluation: x [N, C, h, w], rows [N] -> (m_c, m_u) [N, C, h, w]; m_u is None without guidance.
        Both are valid until the next step."""


@runtime_checkable
class DeviceDenoiser(Denoiser, Protocol):
    """A Denoiser that keeps the state too, where its network is: the loop hands it whole runs.

    After begin(), start() takes what the loop was given; then advance() does a row, or run() all of them at once; both
    give the latents f32 [N, C, h, w], bit for bit the same.
    pixels: uint8 [N, H, W, C] of the last run(), where the decoder's work is part of it.
    """

    pixels: np.ndarray | None

    def start(
        self, x: np.ndarray, *, guidance: np.ndarray, noise: np.ndarray | None, inpaint: Inpaint | None
    ) -> None: ...

    def advance(self) -> np.ndarray: ...

    def run(self) -> np.ndarray: ...
