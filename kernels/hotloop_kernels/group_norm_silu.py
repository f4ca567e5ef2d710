"""group_norm_silu: group normalisation (Wu & He 2018), then x sigmoid(x), in one pass over the result.

y = (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of a group of channels of one image.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arrays, backend
from .checks import KernelError

__all__ = ["group_norm_silu", "reference"]

_OP = "group_norm_silu"


def group_norm_silu(
    x: Any,
    weight: Any,
    bias: Any,
    groups: int = 32,
    eps: float = 1e-5,
    *,
    silu: bool = True,
    channels_last: bool = False,
    out: Any = None,
    stream: int | None = None,
    unproved: bool = False,
) -> Any:
    """Normalise groups of neighbouring channels.

    x              [N, C, h, w], or [N, h, w, C] with channels_last; float32, float16 or bfloat16, any strides
    weight, bias   [C], of x's dtype
    groups         a divisor of C
    silu           False: normalise only
    channels_last  which axis of x and out holds the channels; their strides choose the way through memory
    out            like x, may be x itself; a new array when None
    stream         CUDA stream (the pointer as a number); None: the default stream
    unproved       run on a GPU that no gpu-check has proved

    Returns out. Raises KernelError.
    """
    dtype = arrays.float_dtype(_OP, "x", x)
    shape = x.shape
    if len(shape) != 4:
        raise KernelError(_OP, f"x must be {'[N, h, w, C]' if channels_last else '[N, C, h, w]'}", list(shape))
    channels = shape[3 if channels_last else 1]
    if groups < 1 or channels % groups or not channels:
        raise KernelError(_OP, "groups must divide the channels", f"{groups} groups of {channels} channels")
    arrays.check(_OP, "weight", weight, dtype, (channels,))
    arrays.check(_OP, "bias", bias, dtype, (channels,))
    if out is None:
        out = arrays.empty_like(_OP, x)
    else:
        arrays.check(_OP, "out", out, dtype, shape)
    if backend.ops is None:
        arrays.numpy_only(_OP, x, weight, bias, out)
        x, weight, bias = (a.astype(np.float32) for a in (x, weight, bias))
        out[...] = reference(x, weight, bias, groups, eps, silu=silu, channels_last=channels_last)
    else:
        backend.ops.group_norm_silu(
            x, weight, bias, groups, eps, silu, channels_last, out, stream or 0, unproved
        )  # fmt: skip
    return out


def reference(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    groups: int = 32,
    eps: float = 1e-5,
    *,
    silu: bool = True,
    channels_last: bool = False,
) -> np.ndarray:
    """group_norm_silu in NumPy, in the arrays' own precision and without checks."""
    nchw = np.moveaxis(x, 3, 1) if channels_last else x
    grouped = nchw.reshape(nchw.shape[0], groups, -1)  # [N, G, C / G h w]
    centred = grouped - grouped.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    y = (centred / np.sqrt(variance + x.dtype.type(eps))).reshape(nchw.shape)
    y = y * weight[:, None, None] + bias[:, None, None]
    if silu:
        y = y / (1 + np.exp(-y))
    return np.moveaxis(y, 1, 3) if channels_last else y
