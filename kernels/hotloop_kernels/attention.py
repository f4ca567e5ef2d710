"""attention: out = softmax(q k^T scale + mask) v + sum over segments of weight softmax(q k_s^T scale) v_s.

Vaswani et al. 2017, eq. 1. Segments are further keys and values with a softmax of their own each, weighted per query:
image prompts (Ye et al. 2023, eq. 5), several people, spatial masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import arrays, backend
from .checks import KernelError

__all__ = ["MAX_SEGMENTS", "attention", "reference"]

_OP = "attention"
MAX_SEGMENTS = 8  # as in ops.h


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    scale: float | None = None,
    segments: Sequence[tuple[Any, Any, Any]] = (),
    out: Any = None,
    stream: int | None = None,
    unproved: bool = False,
) -> Any:
    """Attend from every query to all keys.

    q         [B, Tq, H, D], float32, float16 or bfloat16; D a multiple of 8 up to 256, or 512
    k, v      [B, Tk, H, D], of q's dtype, at least one token. The last axis must be contiguous, other strides are free
    mask      [B or 1, H or 1, Tq or 1, Tk], leading axes may be missing. Floats of any of the three dtypes are added to
              the scores; bools and uint8 let a query look where they are not 0. A query that may look at no key at all
              (its whole row masked or -inf) gets zeros, not NaN
    scale     of the scores; None: 1 / sqrt(D)
    segments  up to 8 of (k, v, weight): k, v [B, Ts, H, D]; weight float32 [B or 1, H or 1, Tq or 1], leading axes may
              be missing. Weight 0 is the same as no segment, bit for bit, whatever k and v hold
    out       like q, and no part of any other array; a new array when None
    stream    CUDA stream (the pointer as a number); None: the default stream
    unproved  run on a GPU that no gpu-check has proved

    Sums are float32. A query's result does not depend on the rest of the batch nor on the number of threads. Returns
    out. Raises KernelError.
    """
    dtype = arrays.float_dtype(_OP, "q", q)
    shape = q.shape
    if len(shape) != 4:
        raise KernelError(_OP, "q must be [B, T, H, D]", list(shape))
    batch, queries, heads, size = shape
    if (size % 8 or not 8 <= size <= 256) and size != 512:
        raise KernelError(_OP, "head size must be a multiple of 8 up to 256, or 512", size)
    tokens = _keys("k", k, "v", v, dtype, shape)
    if mask is not None:
        _broadcasts("mask", mask, (*arrays.FLOATS, "bool", "uint8"), (batch, heads, queries, tokens))
        if mask.shape[-1:] != (tokens,):
            raise KernelError(_OP, f"mask must have {tokens} keys", list(mask.shape))
    if len(segments) > MAX_SEGMENTS:
        raise KernelError(_OP, f"segments must be at most {MAX_SEGMENTS}", len(segments))
    for segment in segments:
        segment_k, segment_v, weight = segment
        _keys("a segment's k", segment_k, "a segment's v", segment_v, dtype, shape)
        _broadcasts("a segment's weight", weight, ("float32",), (batch, heads, queries))
    scale = 1 / math.sqrt(size) if scale is None else float(scale)
    if not math.isfinite(scale):
        raise KernelError(_OP, "scale must be finite", scale)
    if out is None:
        out = arrays.empty(_OP, q, shape)
    else:
        arrays.check(_OP, "out", out, dtype, shape)
    if backend.ops is None:
        given = [array for segment in segments for array in segment]
        arrays.numpy_only(_OP, q, k, v, mask, out, *given)
        q, k, v = (array.astype(np.float32) for array in (q, k, v))
        wide = [tuple(array.astype(np.float32) for array in segment) for segment in segments]
        out[...] = reference(q, k, v, mask=mask, scale=scale, segments=wide)
    else:
        backend.ops.attention(q, k, v, mask, scale, list(segments), out, stream or 0, unproved)
    return out


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    scale: float | None = None,
    segments: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = (),
) -> np.ndarray:
    """attention in NumPy, in q's precision and without checks."""
    scale = q.dtype.type(1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None and mask.dtype.kind in "bu":
        mask = np.where(mask, 0, -np.inf)
    out = _attend(q, k, v, scale, mask)
    for segment_k, segment_v, weight in segments:
        weight = np.broadcast_to(weight, (q.shape[0], q.shape[2], q.shape[1])).transpose(0, 2, 1)[
            ..., None
        ]  # [B, T, H, 1]
        out = np.where(weight == 0, out, out + weight.astype(q.dtype) * _attend(q, segment_k, segment_v, scale))
    return out


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: Any, mask: np.ndarray | None = None) -> np.ndarray:
    scores = np.matmul(q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1)) * scale  # [B, H, Tq, Tk]
    if mask is not None:
        scores = scores + mask.astype(q.dtype)
    most = scores.max(-1, keepdims=True)
    p = np.exp(scores - np.where(most == -np.inf, 0, most))
    total = p.sum(-1, keepdims=True)
    p /= np.where(total == 0, 1, total)
    return np.matmul(p, v.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def _keys(k_name: str, k: Any, v_name: str, v: Any, dtype: str, q: tuple[int, ...]) -> int:
    """Tk of keys and values that fit to queries of this shape."""
    batch, _, heads, size = q
    tokens = k.shape[1] if len(getattr(k, "shape", ())) > 1 else 0
    if tokens == 0 and hasattr(k, "shape"):
        raise KernelError(_OP, f"{k_name} must be [{batch}, Tk, {heads}, {size}] with Tk at least 1", list(k.shape))
    arrays.check(_OP, k_name, k, dtype, (batch, tokens, heads, size))
    arrays.check(_OP, v_name, v, dtype, (batch, tokens, heads, size))
    return tokens


def _broadcasts(name: str, array: Any, dtypes: tuple[str, ...], to: tuple[int, ...]) -> None:
    """The array has one of these dtypes and repeats along axes of size 1 and missing ones to this shape."""
    rule = f"{name} must be {' or '.join(dtypes)} that broadcasts to {list(to)}"
    if not hasattr(array, "dtype"):
        raise KernelError(_OP, rule, type(array).__name__)
    shape, dtype = array.shape, arrays.dtype_of(array)
    fits = len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))
    if dtype not in dtypes or not fits:
        raise KernelError(_OP, rule, f"{dtype} {list(shape)}")
