"""A frame by itself: its start from a picture or from noise, and all its rows in one go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import image as images
from ..batch import Batch
from ..checks import check_finite
from ..image.canvas import RESIZE_MODES
from ..networks import Networks
from ..pipeline import Pipeline
from .conditions import Mix, Prepared
from .residual import KEPT
from .settings import PLACE

__all__ = ["Start", "redrawn", "start"]


@dataclass(frozen=True, eq=False)
class Start:
    """x f32 [1, C, h, w], and what the run's saved states begin with."""

    x: np.ndarray
    saved: dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class _Kept:
    """Noise that was drawn before, where a stream is asked for."""

    noise: np.ndarray

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.noise


def start(
    pipeline: Pipeline, prepared: Prepared, mix: Mix, picture: np.ndarray | None, *, networks: Networks | None = None
) -> Start:
    """From a picture uint8 [H, W, 3] of any size, else from noise alone. networks: others than the version's own."""
    table = prepared.legs[-1].table
    if picture is None:
        return Start(mix.start * np.float32(table.init_scale), {})
    image = RESIZE_MODES[prepared.request["resize_mode"]](images.from_array(picture[None])[0], prepared.size)
    kept: Any = _Kept(mix.posterior)
    known = pipeline.autoencoder.encode(networks or prepared.networks, images.to_float(image), kept)
    x = np.float32(table.start_img) * known + np.float32(table.start_eps) * mix.start
    return Start(x, {KEPT: known})


def redrawn(pipeline: Pipeline, prepared: Prepared, mix: Mix, picture: np.ndarray | None) -> np.ndarray:
    """The whole frame, alone, by this pipeline's engines: uint8 [H, W, 3]. Raises NonFiniteError."""
    networks = pipeline.networks
    begun = start(pipeline, prepared, mix, picture, networks=networks)
    x, saved = begun.x, begun.saved
    with Batch() as batch:
        for leg in prepared.legs:
            batch.admit(
                0, prepared.cond(leg, mix), leg.table, x, weights=networks, guidance=prepared.guidance, saved=saved,
                noise=mix.steps if leg.table.noises else None,
            )  # fmt: skip
            while not batch.step():
                pass
            state = batch.retire(0)
            x, saved = state[0], {KEPT: state[KEPT]}
    check_finite(PLACE, "latents", x)
    return pipeline.autoencoder.decode(networks, x)[0]
