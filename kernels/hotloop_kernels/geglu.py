"""geglu: out = a gelu(b) for x = [a, b] along the last axis (Shazeer 2020), with the exact GELU, b Phi(b)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import arrays, backend
from .checks import KernelError

__all__ = ["geglu", "reference"]

_OP = "geglu"


def geglu(x: Any, *, out: Any = None, stream: int | None = None, unproved: bool = False) -> Any:
    """Gate the first half of the last axis with the GELU of the second.

    x         [.., 2C], float32, float16 or bfloat16, any strides
    out       [.., C], of x's dtype; a new array when None
    stream    CUDA stream (the pointer as a number); None: the default stream
    unproved  run on a GPU that no gpu-check has proved

    Returns out. Raises KernelError.
    """
    dtype = arrays.float_dtype(_OP, "x", x)
    (both,) = arrays.last_axis(_OP, "x", x)
    if both % 2:
        raise KernelError(_OP, "x must be [.., 2C]", list(x.shape))
    shape = (*x.shape[:-1], both // 2)
    if out is None:
        out = arrays.empty(_OP, x, shape)
    else:
        arrays.check(_OP, "out", out, dtype, shape)
    if backend.ops is None:
        arrays.numpy_only(_OP, x, out)
        out[...] = reference(x.astype(np.float32))
    else:
        backend.ops.geglu(x, out, stream or 0, unproved)
    return out


def reference(x: np.ndarray) -> np.ndarray:
    """geglu in NumPy, in the array's own precision and without checks."""
    value, gate = np.split(x, 2, axis=-1)
    erf = np.vectorize(math.erf, otypes=[np.float64])(gate / math.sqrt(2)) if gate.size else gate
    return value * (gate * (0.5 * (1 + erf)).astype(x.dtype))
