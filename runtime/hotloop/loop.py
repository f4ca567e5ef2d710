"""The hot loop: runs any StepTable on any Denoiser, and knows neither by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotloop_kernels import cfg_step

from .checks import check_array
from .denoiser import Denoiser, DeviceDenoiser, Inpaint
from .samplers.table import K, StepTable

__all__ = ["Inpaint", "Progress", "denoise", "run"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Progress:
    """The state after a row: row of rows evaluations, step of steps (a pipeline's count both passes of hires), the
    timestep the network was told.

    latents [N, C, h, w] is a view that is valid until the next row; copy it to keep it.
    """

    row: int
    rows: int
    step: int
    steps: int
    timestep: float
    latents: F32


def denoise(
    denoiser: Denoiser, table: StepTable, x: F32, *, cond: Mapping[str, NDArray], guidance: F32,
    noise: F32 | None = None, inpaint: Inpaint | None = None,
) -> Iterator[Progress]:  # fmt: skip
    """Yields after every row; the last Progress holds the result. Closing the iterator cancels the run.

    x         f32 [N, C, h, w], the start: init_scale * noise, or start_img * known + start_eps * eps; not modified
    cond      the denoiser's conditions, a batch row per image
    guidance  f32 [N], the guidance scale of every image (unused where the denoiser gives no m_u)
    noise     f32 [table.noises, N, C, h, w], unit noise in the order the rows draw it, all made before the loop
    inpaint   blends the known image back after every row

    Raises InputError at once (not at the first row) when a shape does not fit.
    """
    shape = x.shape
    check_array("loop.x", x, shape if len(shape) == 4 else ("N", "C", "h", "w"))
    check_array("loop.guidance", guidance, shape[:1])
    if table.noises:
        check_array("loop.noise", noise, (table.noises, *shape))
    if inpaint is not None:
        check_array("loop.mask", inpaint.mask, (shape[0], 1, *shape[2:]))
        check_array("loop.known", inpaint.known, shape)
        check_array("loop.eps", inpaint.eps, shape)
    return _rows(denoiser, table, x, cond, guidance, noise, inpaint)


def run(
    denoiser: Denoiser, table: StepTable, x: F32, *, cond: Mapping[str, NDArray], guidance: F32,
    noise: F32 | None = None, inpaint: Inpaint | None = None,
) -> F32:  # fmt: skip
    """The same rows without a consumer, bit for bit: f32 [N, C, h, w]. Arguments and errors as for `denoise`."""
    rows = denoise(denoiser, table, x, cond=cond, guidance=guidance, noise=noise, inpaint=inpaint)
    if isinstance(denoiser, DeviceDenoiser):
        denoiser.begin(cond, table, x.shape)
        denoiser.start(x, guidance=guidance, noise=noise, inpaint=inpaint)
        return denoiser.run()
    for progress in rows:
        result = progress.latents
    return result.copy()


def _rows(
    denoiser: Denoiser, table: StepTable, x: F32, cond: Mapping[str, NDArray], guidance: F32,
    noise: F32 | None, inpaint: Inpaint | None,
) -> Iterator[Progress]:  # fmt: skip
    count, steps = len(table), int(table.steps[-1]) + 1
    if isinstance(denoiser, DeviceDenoiser):
        denoiser.begin(cond, table, x.shape)
        denoiser.start(x, guidance=guidance, noise=noise, inpaint=inpaint)
        for e in range(count):
            latents = denoiser.advance()
            yield Progress(e, count, int(table.steps[e]), steps, float(table.timesteps[e]), latents)
        return
    state = np.zeros((K + 1, *x.shape), np.float32)  # [K + 1, N, C, h, w]: x and the saved states
    state[0] = x
    rows = np.zeros(len(x), np.int32)
    draws = iter(noise if noise is not None else ())
    blend: dict[str, Any] = {} if inpaint is None else {
        "mask": inpaint.mask, "known": inpaint.known, "eps": inpaint.eps, "k_img": table.k_img, "k_eps": table.k_eps,
    }  # fmt: skip
    denoiser.begin(cond, table, x.shape)
    for e in range(count):
        rows[:] = e
        m_c, m_u = denoiser.step(state[0], rows)
        z = next(draws) if table.draws[e] else None
        cfg_step(
            state, m_c, m_u, rows, guidance, table.update, table.p_x, table.p_m,
            z=z, residual=table.residual, **blend,
        )  # fmt: skip
        yield Progress(e, count, int(table.steps[e]), steps, float(table.timesteps[e]), state[0])
