"""rgb: network pixels to bytes and back, with a resize on the way in.

pack gives the bytes of the baseline's image processor: (x / 2 + 0.5) clamped to 0..1, times 255, rounded half to even,
each step in float32.

unpack's resize works along x, then along y, in float32. `area` is the mean over what an output pixel covers, `linear`
goes between the two nearest pixel centres (half-pixel centres, edges repeated), `fit` takes area along an axis that
shrinks and linear along one that grows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arrays, backend
from .checks import KernelError

__all__ = ["FILTERS", "pack", "reference_pack", "reference_unpack", "unpack"]

FILTERS = ("fit", "area", "linear")
LARGEST = 16384


def pack(images: Any, *, out: Any = None, bad: Any = None, stream: int | None = None, unproved: bool = False) -> Any:
    """float [N, C, h, w] in [-1, 1] -> uint8 [N, h, w, C]. Values outside are clamped.

    images    float32, float16 or bfloat16, any strides
    out       the result's array; a new one when None
    bad       int32 [1], on a GPU only, where the host does not wait: how many values were NaN or infinite
    stream    CUDA stream (the pointer as a number); None: the default stream
    unproved  run on a GPU that no gpu-check has proved

    Raises KernelError, on the CPU also on NaN or infinity, which would be a silent black or white pixel.
    """
    op = "rgb.pack"
    shape = _four_axes(op, "images", images, arrays.FLOATS, "[N, C, h, w]")
    n, c, h, w = shape
    if out is None:
        out = arrays.empty(op, images, (n, h, w, c), "uint8")
    else:
        arrays.check(op, "out", out, "uint8", (n, h, w, c))
    if bad is not None:
        arrays.check(op, "bad", bad, "int32", (1,))
    if backend.ops is None:
        arrays.numpy_only(op, images, out)
        count = int(images.size - np.isfinite(images).sum())
        if not count:
            out[...] = reference_pack(images.astype(np.float32))
    else:
        count = backend.ops.rgb_pack(images, out, bad, stream or 0, unproved)
    if count:
        raise KernelError(op, "images must be finite", f"{count} values that are NaN or infinite")
    return out


def unpack(
    pixels: Any,
    *,
    size: tuple[int, int] | None = None,
    filter: str = "fit",
    dtype: str = "float32",
    out: Any = None,
    stream: int | None = None,
    unproved: bool = False,
) -> Any:
    """uint8 [N, h, w, C] -> float [N, C, H, W] in [-1, 1].

    pixels    any strides
    size      (H, W); the picture's own when None
    filter    of a resize: fit, area or linear
    dtype     of a new result: float32, float16 or bfloat16
    out       the result's array, of one of these dtypes; a new one when None
    stream    CUDA stream (the pointer as a number); None: the default stream
    unproved  run on a GPU that no gpu-check has proved

    Raises KernelError.
    """
    op = "rgb.unpack"
    n, h, w, c = _four_axes(op, "pixels", pixels, ("uint8",), "[N, h, w, C]")
    height, width = (h, w) if size is None else size
    if filter not in FILTERS:
        raise KernelError(op, f"filter must be one of {', '.join(FILTERS)}", filter)
    if (height, width) != (h, w) and not (min(h, w, height, width) >= 1 and max(h, w, height, width) <= LARGEST):
        raise KernelError(op, f"sizes must lie in 1..{LARGEST}", f"{h} x {w} to {height} x {width}")
    if out is None:
        if dtype not in arrays.FLOATS:
            raise KernelError(op, "dtype must be float32, float16 or bfloat16", dtype)
        out = arrays.empty(op, pixels, (n, c, height, width), dtype)
    else:
        arrays.check(op, "out", out, arrays.float_dtype(op, "out", out), (n, c, height, width))
    if backend.ops is None:
        arrays.numpy_only(op, pixels, out)
        out[...] = reference_unpack(pixels, (height, width), filter)
    else:
        backend.ops.rgb_unpack(pixels, out, filter, stream or 0, unproved, False)
    return out


def reference_pack(images: np.ndarray) -> np.ndarray:
    """pack in NumPy, for finite values."""
    half = np.float32(0.5)
    unit = np.clip(images * half + half, 0, 1)
    return np.ascontiguousarray(np.rint(unit * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1))


def reference_unpack(pixels: np.ndarray, size: tuple[int, int] | None = None, filter: str = "fit") -> np.ndarray:
    """unpack in NumPy."""
    x = pixels.astype(np.float32)
    if size is not None and size != pixels.shape[1:3]:
        x = _resample(_resample(x, 2, size[1], filter), 1, size[0], filter)
    x = x / np.float32(255) * np.float32(2) - np.float32(1)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _resample(x: np.ndarray, axis: int, count: int, filter: str) -> np.ndarray:
    """Along one axis to `count` outputs, the taps of each added from the first to the last."""
    index, weight = _taps(x.shape[axis], count, filter)
    per_output = tuple(slice(None) if a == axis else None for a in range(x.ndim))
    total = np.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)
    for i, w in zip(index, weight, strict=True):
        total += w[per_output] * np.take(x, i, axis)
    return total


def _taps(size: int, count: int, filter: str) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, weights), both [taps, count]; a weight of 0 fills up where an output has fewer taps."""
    o = np.arange(count)
    if filter == "area" or (filter == "fit" and count < size):
        first = o * size // count
        taps = np.arange((((o + 1) * size + count - 1) // count - first).max(initial=0))[:, None]
        begin = np.maximum(o * size, (first + taps) * count)
        end = np.minimum((o + 1) * size, (first + taps + 1) * count)
        parts, whole = np.maximum(end - begin, 0), size
    else:
        place = (2 * o + 1) * size - count  # of the output's centre, over 2 count
        first = np.maximum(place // (2 * count), -1)
        beyond = place - first * 2 * count
        taps = np.arange(2)[:, None]
        parts, whole = np.stack([2 * count - beyond, beyond]), 2 * count
    weight = parts.astype(np.float32) / np.float32(whole)
    return np.clip(first + taps, 0, size - 1), weight


def _four_axes(op: str, name: str, array: Any, dtypes: tuple[str, ...], axes: str) -> tuple[int, int, int, int]:
    """The shape of an array of one of these dtypes with four axes."""
    known = hasattr(array, "dtype") and hasattr(array, "shape")
    if known and arrays.dtype_of(array) in dtypes and len(array.shape) == 4:
        return tuple(array.shape)
    allowed = " or ".join(filter(None, [", ".join(dtypes[:-1]), dtypes[-1]]))
    got = f"{arrays.dtype_of(array)} {list(array.shape)}" if known else type(array).__name__
    raise KernelError(op, f"{name} must be {allowed} {axes}", got)
