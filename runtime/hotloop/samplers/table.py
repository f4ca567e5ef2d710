"""StepTable, what a sampler compiles to, and the unit vectors and rows it is written with.

`X` is the state x, `S[1]..S[7]` are the saved states, `D` is what a row keeps of the network's output and `Z` is unit
noise: each a unit vector, so `X + dt * D` is literally a row of the table's update matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["D", "K", "Level", "Rows", "S", "StepTable", "Vector", "X", "Z", "combine", "outputs", "stacked"]

Vector = NDArray[np.float64]
F32 = NDArray[np.float32]

K = 7  # saved states; the same for every sampler, so that one kernel and one buffer serve them all
_UNIT = np.eye(K + 3)
X: Vector = _UNIT[0]
S: tuple[Vector, ...] = tuple(_UNIT[: K + 1])  # S[0] is x itself
D: Vector = _UNIT[K + 1]
Z: Vector = _UNIT[K + 2]


@dataclass(frozen=True, eq=False)
class StepTable:
    """One row per network evaluation (E rows), for N - start steps. All arrays are read-only.

    timesteps f32[E]             what the network is told
    steps     i32[E]             the step a row belongs to, counted from 0 at the table's own start
    c_in      f32[E]             the network's input is c_in x
    p_x, p_m  f32[E]             d = p_x x + p_m m, with m the network's (guided) output
    update    f32[E, K+1, K+3]   S' = update [x, s_1..s_K, d, z], with S = [x, s_1..s_K]
    draws     bool[E]            the row takes one unit-noise tensor from the seed's stream, even to multiply it by 0
    k_img, k_eps f32[E]          inpainting: after the row, the known region is k_img x_known + k_eps eps
    init_scale                   text to image starts at x = init_scale noise
    start_img, start_eps         image to image starts at x = start_img x_known + start_eps eps
    residual  f32[E, K+1] | None residual guidance: m_u = residual . S
    lengths                      of the tables that stand one after another in this one (`stacked`); none: it is one
    """

    sampler: str
    timesteps: F32
    steps: NDArray[np.int32]
    c_in: F32
    p_x: F32
    p_m: F32
    update: F32
    draws: NDArray[np.bool_]
    k_img: F32
    k_eps: F32
    init_scale: float
    start_img: float
    start_eps: float
    residual: F32 | None = None
    lengths: tuple[int, ...] = ()

    def __len__(self) -> int:
        """E, the number of network evaluations."""
        return len(self.timesteps)

    @property
    def noises(self) -> int:
        """How many unit-noise tensors a run consumes: the first axis of the loop's `noise`."""
        return int(self.draws.sum())


def stacked(tables: Sequence[StepTable]) -> StepTable:
    """Tables one after another, for what a denoiser asks of them: row e of table j is row (lengths before j) + e.

    Nothing starts from it: its start and init_scale are not numbers.
    """
    names = ("timesteps", "steps", "c_in", "p_x", "p_m", "update", "draws", "k_img", "k_eps")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
    return StepTable(
        "+".join(table.sampler for table in tables), init_scale=np.nan, start_img=np.nan, start_eps=np.nan,
        lengths=tuple(map(len, tables)), **arrays,
    )  # fmt: skip


class Level(NamedTuple):
    """x = img x_0 + eps noise."""

    img: float
    eps: float


class _Row(NamedTuple):
    step: int
    timestep: float
    update: Vector
    p: tuple[float, float]
    level: Level
    c_in: float
    draws: bool


class Rows:
    """Collects a sampler's rows in order; `init_scale` is the table's."""

    def __init__(self, *, init_scale: float = 1.0) -> None:
        self.init_scale = float(init_scale)
        self._rows: list[_Row] = []

    def add(
        self, step: int, timestep: float, x: Vector, *, level: Level, d: Vector = D, c_in: float = 1.0,
        save: Mapping[int, Vector] | None = None, draws: bool = False,
    ) -> None:  # fmt: skip
        """One network evaluation at `timestep`, belonging to `step` (absolute: 0 is the schedule's first).

        x      the new state, a combination of X, S[i], D and Z
        d      what D stands for, a combination of X and D where D is the raw network output
        save   new saved states {i: combination}; the others stay; all right-hand sides see the old states
        level  the noise level the known image is given before this row (`scheduler.add_noise` at its timestep)
        """
        update = np.vstack([x, *(save.get(i, S[i]) if save else S[i] for i in range(1, K + 1))])
        self._rows.append(_Row(step, timestep, update, (d[0], d[K + 1]), level, c_in, draws))

    def table(self, name: str) -> StepTable:
        """Stacks the rows. Raises InputError where a coefficient is not finite."""
        rows = self._rows
        after = [row.level for row in rows[1:]] + [Level(1.0, 0.0)]  # the last row leaves the clean image
        arrays: dict[str, Any] = {
            "timesteps": np.array([r.timestep for r in rows], np.float32),
            "steps": np.array([r.step - rows[0].step for r in rows], np.int32),
            "c_in": np.array([r.c_in for r in rows], np.float32),
            "p_x": np.array([r.p[0] for r in rows], np.float32),
            "p_m": np.array([r.p[1] for r in rows], np.float32),
            "update": np.stack([r.update for r in rows]).astype(np.float32),
            "draws": np.array([r.draws for r in rows], np.bool_),
            "k_img": np.array([level.img for level in after], np.float32),
            "k_eps": np.array([level.eps for level in after], np.float32),
        }
        for key, array in arrays.items():
            if not np.all(np.isfinite(array)):
                raise InputError(f"samplers.{name}", "these steps and options must give finite coefficients", key)
            array.setflags(write=False)
        start = rows[0].level
        for key, value in (("init_scale", self.init_scale), ("start", start.img), ("start", start.eps)):
            if not np.isfinite(np.float32(value)):
                raise InputError(f"samplers.{name}", "these steps and options must give finite coefficients", key)
        return StepTable(
            sampler=name, init_scale=self.init_scale, start_img=float(start.img), start_eps=float(start.eps), **arrays
        )


def combine(weights: Iterable[float], vectors: Iterable[Vector]) -> Vector:
    """The weighted sum of as many vectors as there are weights."""
    return np.sum([w * v for w, v in zip(weights, vectors, strict=False)], axis=0)


def outputs(prediction: str, level: Level, *, x: Vector = X) -> tuple[Vector, Vector]:
    """(x_0, eps) as combinations of x and the raw network output D, where x = alpha x_0 + sigma eps."""
    alpha, sigma = level
    if prediction == "epsilon":
        return (x - sigma * D) / np.float64(alpha), D
    if prediction == "sample":
        return D, (x - alpha * D) / sigma
    return alpha * x - sigma * D, alpha * D + sigma * x  # v = alpha eps - sigma x_0
