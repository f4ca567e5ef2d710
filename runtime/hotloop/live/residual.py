"""Residual guidance: the negative side of guidance without a second evaluation in every step.

StreamDiffusion (Kodaira et al. 2023, arXiv 2312.12491), section 3.2. With x_tau = sqrt(a) x_0 + sqrt(b) eps, the
*virtual* negative output at x_tau is the noise that would lead back to a known x_0:

    eps' = (x_tau - sqrt(a) x_0) / sqrt(b)
    eps_cfg = delta eps' + gamma (eps_c - delta eps')

`self` takes the picture's own latents as x_0. `initialize` (one-time negative) asks the negative prompt once, at the
first noise level, and takes what that predicts: x_0 = (x_tau0 - sqrt(b_0) eps_neg) / sqrt(a_0).

Both are rows of a table: x_0 lies in the last saved state, and `residual[e]` is delta eps' as a combination of states.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..errors import InputError
from ..samplers.table import K, Level, S, StepTable, Vector, X, outputs

__all__ = ["KEPT", "first_negative", "with_residual"]

KEPT = K  # the saved state that holds x_0


def with_residual(table: StepTable, prediction: str, delta: float) -> StepTable:
    """The same sampler with delta eps' as m_u; the run's saved state KEPT begins as x_0, f32 [1, C, h, w].

    Raises InputError for a sampler that uses that state itself.
    """
    kept = np.zeros(K + 3)
    kept[KEPT] = 1
    others = np.delete(table.update, KEPT, axis=1)
    if np.any(others[:, :, KEPT]) or np.any(table.update[:, KEPT] != kept):
        raise InputError("live", f"{table.sampler} leaves no state for residual guidance: use lcm, tcd or ddim")
    rows = [delta * _virtual(level, prediction)[: K + 1] for level in _levels(table)]
    return replace(table, residual=np.stack(rows).astype(np.float32))


def first_negative(table: StepTable, prediction: str) -> StepTable:
    """One row at the table's start that leaves x as it is and keeps what the network predicts as x_0."""
    level = _levels(table)[0]
    alpha, sigma, size = _preserving(level)
    update = np.eye(K + 1, K + 3)
    update[KEPT] = outputs(prediction, Level(alpha, sigma), x=X / size)[0]
    one = np.ones(1, np.float32)
    return replace(
        table, timesteps=table.timesteps[:1], steps=table.steps[:1], c_in=table.c_in[:1], p_x=0 * one, p_m=one,
        update=update[None].astype(np.float32), draws=np.zeros(1, np.bool_), k_img=one * level.img,
        k_eps=one * level.eps,
    )  # fmt: skip


def _levels(table: StepTable) -> list[Level]:
    """x = img x_0 + eps noise, before each row."""
    after = zip(table.k_img[:-1].tolist(), table.k_eps[:-1].tolist(), strict=True)
    return [Level(table.start_img, table.start_eps), *(Level(*one) for one in after)]


def _preserving(level: Level) -> tuple[float, float, float]:
    """(sqrt(a), sqrt(b), |x| over that of the form whose squares add up to 1)."""
    size = math.hypot(level.img, level.eps)
    return level.img / size, level.eps / size, size


def _virtual(level: Level, prediction: str) -> Vector:
    """The virtual negative output, in what the network predicts."""
    alpha, sigma, _ = _preserving(level)
    eps, x0 = (X - level.img * S[KEPT]) / level.eps, S[KEPT]
    if prediction == "epsilon":
        return eps
    return x0 if prediction == "sample" else alpha * eps - sigma * x0
