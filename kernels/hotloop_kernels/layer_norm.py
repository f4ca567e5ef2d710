"""layer_norm: y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016)."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arrays, backend

__all__ = ["layer_norm", "reference"]

_OP = "layer_norm"


def layer_norm(
    x: Any,
    weight: Any,
    bias: Any,
    eps: float = 1e-5,
    *,
    out: Any = None,
    stream: int | None = None,
    unproved: bool = False,
) -> Any:
    """Normalise the last axis.

    x             [.., C], float32, float16 or bfloat16, any strides
    weight, bias  [C], of x's dtype
    out           like x, may be x itself; a new array when None
    stream        CUDA stream (the pointer as a number); None: the default stream
    unproved      run on a GPU that no gpu-check has proved

    Returns out. Raises KernelError.
    """
    dtype = arrays.float_dtype(_OP, "x", x)
    shape = x.shape
    channels = arrays.last_axis(_OP, "x", x)
    arrays.check(_OP, "weight", weight, dtype, channels)
    arrays.check(_OP, "bias", bias, dtype, channels)
    if out is None:
        out = arrays.empty_like(_OP, x)
    else:
        arrays.check(_OP, "out", out, dtype, shape)
    if backend.ops is None:
        arrays.numpy_only(_OP, x, weight, bias, out)
        x, weight, bias = (a.astype(np.float32) for a in (x, weight, bias))
        out[...] = reference(x, weight, bias, eps)
    else:
        backend.ops.layer_norm(x, weight, bias, eps, out, stream or 0, unproved)
    return out


def reference(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """layer_norm in NumPy, in the arrays' own precision and without checks."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + x.dtype.type(eps)) * weight + bias
