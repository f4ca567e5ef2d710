"""The animator's networks as a performer: a keyframe is encoded once, a small decoder gives each frame's fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from ...checks import check_finite
from ...engines import Engine
from ...errors import InputError
from ..controls import ANIMATOR
from .geometry import PLACE
from .keyframe import Keyframe
from .performer import Drawing

__all__ = ["DECODER", "ENCODER", "AnimatorNetworks"]

ENCODER, DECODER = "animator_encoder", "animator"
_WANDER = 0.6  # standard deviations of the prior that z wanders


class Engines(Protocol):
    """name -> engine: a bundle's `Networks`, or a mapping."""

    def __getitem__(self, name: str, /) -> Engine: ...


class AnimatorNetworks:
    """engines  of `animator_encoder` and `animator`: a bundle's `Networks`, or any mapping
    table    the animator's controls (name, low, high), in the order it was trained with

    Raises InputError where the networks are not there or take other controls.
    """

    def __init__(self, engines: Engines, table: Sequence[Sequence[object]] = ANIMATOR) -> None:
        try:
            self._encoder, self._decoder = engines[ENCODER], engines[DECODER]
        except KeyError as error:
            raise InputError(PLACE, f"a bundle must hold {ENCODER} and {DECODER}", str(error)) from error
        self.table = table
        shapes = {tensor.name: tensor.shape for tensor in self._decoder.network.inputs}
        if shapes["controls"] != ("B", len(table)):
            raise InputError(PLACE, f"the animator's table must have {shapes['controls'][-1]} controls", len(table))
        self._side = int(self._encoder.network.inputs[0].shape[-1])

    def prepare(self, keyframe: Keyframe) -> AnimatedPerformance:
        """Encode a keyframe. Raises NonFiniteError."""
        small = Image.fromarray(keyframe.rgba).convert("RGBA")
        bands = [band.resize((self._side, self._side), Image.Resampling.BOX) for band in small.split()]
        rgba = np.stack([np.asarray(band, np.float32) for band in bands]) / 255
        with self._encoder.contexts.lease(B=1) as context:
            context.inputs["rgba"][:] = rgba
            context.run()
            known = {name: np.array(value, np.float32) for name, value in context.outputs.items()}
        for name, value in known.items():
            check_finite(PLACE, name, value)
        return AnimatedPerformance(keyframe, self._decoder, known)


class AnimatedPerformance:
    """One keyframe, encoded; it has a context of the decoder to itself."""

    def __init__(self, keyframe: Keyframe, decoder: Engine, known: Mapping[str, np.ndarray]) -> None:
        self.keyframe = keyframe
        self._context = decoder.context(B=1)
        for tensor in decoder.network.inputs:
            if tensor.name in known:
                self._context.inputs[tensor.name][...] = known[tensor.name]
        mean, logvar = np.split(known["prior"][0].astype(np.float64), 2)
        self._mean, self._spread = mean, _WANDER * np.exp(0.5 * np.clip(logvar, -20, 2))
        # Periods that no two dimensions share: the path never comes back to where it was.
        self._periods = 5.3 + 1.37 * np.sqrt(np.arange(1, len(mean) + 1))
        reveal = np.clip(known["reveal"][0], 0, 1).transpose(1, 2, 0)
        self._sources = (keyframe.rgba, np.ascontiguousarray(np.rint(255 * reveal).astype(np.uint8)))

    def z(self, t: float) -> np.ndarray:
        """float32 [z]: a slow walk about the prior's mean, which it begins at."""
        return (self._mean + self._spread * np.sin(2 * math.pi * t / self._periods)).astype(np.float32)

    def frame(self, controls: np.ndarray, t: float) -> Drawing:
        context = self._context
        context.inputs["controls"][...] = controls
        context.inputs["z"][...] = self.z(t)
        context.run()
        out = context.outputs
        whole, parts, boxes = (np.asarray(out[name][0], np.float32) for name in ("whole", "parts", "boxes"))
        return Drawing(self._sources, whole, list(parts), boxes.tolist())
