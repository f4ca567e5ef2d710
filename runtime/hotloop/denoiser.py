"""Denoisers: what the loop holds. The plain one here runs an engine's UNet, both guidance halves in one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import numpy as np

from .engines import Context, Engine
from .errors import InputError
from .samplers import StepTable

__all__ = ["Denoiser", "UNetDenoiser"]


class Denoiser(Protocol):
    """begin() once per run, then step() once per table row."""

    def begin(self, cond: Mapping[str, np.ndarray], table: StepTable, shape: tuple[int, ...]) -> None:
        """Take the run's conditions (a batch row per image), its table and the latents' shape [N, C, h, w]."""

    def step(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """One evaluation: x [N, C, h, w], rows [N] -> (m_c, m_u) [N, C, h, w]; m_u is None without guidance.
        Both are valid until the next step."""


class UNetDenoiser:
    """A UNet engine as a Denoiser.

    cond: `context` [N, T, C]; `negative_context` [N, T, C] turns guidance on (one evaluation of batch 2N, the
    unconditional half first); `extra` [N, 5, h, w] is the mask and masked image of a 9-channel inpainting network.
    Use it in a `with` block: it returns its buffers to the engine at the end.
    begin() raises InputError when `extra` is missing for a network that takes it, or given to one that does not.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._context: Context | None = None
        self._dims: dict[str, int] = {}
        self.seconds = 0.0  # spent inside the engine since begin()

    def __enter__(self) -> UNetDenoiser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._release()

    def begin(self, cond: Mapping[str, np.ndarray], table: StepTable, shape: tuple[int, ...]) -> None:
        self._release()
        given = shape[1] + (cond["extra"].shape[1] if "extra" in cond else 0)
        takes = self._engine.network.inputs[0].shape[1]
        if given != takes:
            raise InputError("denoiser", f"latents and extra channels together must be {takes}", given)
        context, negative = cond["context"], cond.get("negative_context")
        n, self._channels, h, w = shape
        self._halves = 1 if negative is None else 2
        self._dims = {"B": n * self._halves, "T": context.shape[1], "h": h, "w": w}
        self._context = self._engine.contexts.acquire(**self._dims)
        self._table, self._n = table, n
        self.seconds = 0.0
        inputs = self._context.inputs
        inputs["context"][:] = context if negative is None else np.concatenate([negative, context])
        for half in range(self._halves):
            if "extra" in cond:
                inputs["sample"][half * n : (half + 1) * n, self._channels :] = cond["extra"]

    def step(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        assert self._context is not None, "begin() comes first"
        n, inputs = self._n, self._context.inputs
        sample = inputs["sample"]
        np.multiply(x, self._table.c_in[rows][:, None, None, None], out=sample[:n, : self._channels])
        inputs["timestep"][:n] = self._table.timesteps[rows]
        if self._halves == 2:
            sample[n:, : self._channels] = sample[:n, : self._channels]
            inputs["timestep"][n:] = inputs["timestep"][:n]
        began = time.perf_counter()
        self._context.run()
        self.seconds += time.perf_counter() - began
        out = self._context.outputs["out"]
        return (out, None) if self._halves == 1 else (out[n:], out[:n])

    def _release(self) -> None:
        if self._context is not None:
            self._engine.contexts.release(self._context, **self._dims)
            self._context = None
