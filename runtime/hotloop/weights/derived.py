"""Weights computed from a checkpoint's own, in numpy: the runtime computes them anew when an adapter changes those.

A derived weight has a name of its own, made from the name of what it is computed from. In a bundle the derived weights
of a folder lie in its `derived.safetensors`, in float32: a rounded sum would not be the same network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

__all__ = ["FILE", "PHASES", "derive", "is_derived", "phase_weights"]

FILE = "derived.safetensors"
# Row and column parity of the outputs that a phase makes.
PHASES = ("phase_00", "phase_01", "phase_10", "phase_11")
# The convolutions that follow an upsampling, in the UNet and in the VAE's decoder.
_UPSAMPLING = re.compile(r"(?P<stem>(?:.*\.)?upsamplers\.0\.)conv\.weight")


def phase_weights(weight: np.ndarray) -> dict[str, np.ndarray]:
    """A 3x3 convolution [O, I, 3, 3] of a map doubled by nearest neighbour, as four 2x2 ones [O, I, 2, 2] of the map.

    Along an axis, output 2i sees the inputs i-1, i, i and output 2i+1 sees i, i, i+1; so the taps are W0, W1+W2 and
    W0+W1, W2. The sums are made in float32, or in float64 where the weight is.
    """
    dtype = np.promote_types(weight.dtype, np.float32)
    made = {}
    for phase in PHASES:
        taps = weight.astype(dtype)
        for axis, parity in zip((2, 3), phase[-2:], strict=True):
            w0, w1, w2 = np.moveaxis(taps, axis, 0)
            taps = np.stack([w0, w1 + w2] if parity == "0" else [w0 + w1, w2], axis=axis)
        made[phase] = np.ascontiguousarray(taps)
    return made


def derive(tensors: Mapping[str, np.ndarray], keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Every derived weight that comes of `keys` (default: all of `tensors`), by its own name."""
    made: dict[str, np.ndarray] = {}
    for key in tensors if keys is None else keys:
        if found := _UPSAMPLING.fullmatch(key):
            made |= {found["stem"] + phase: value for phase, value in phase_weights(tensors[key]).items()}
    return made


def is_derived(name: str) -> bool:
    """Whether a weight's name is a derived one's."""
    return name.rpartition(".")[2] in PHASES
