"""Arrays of numpy, torch and cupy at the border of an operator: what its rules ask of dtype and shape, and new outputs.

Devices, strides and alignment are checked where the compiled operator imports the arrays. No library is imported here:
an array brings its own.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .checks import KernelError

__all__ = ["check", "dtype_of", "empty", "empty_like", "float_dtype", "last_axis", "numpy_only"]

FLOATS = ("float32", "float16", "bfloat16")

_names: dict[Any, str] = {}


def dtype_of(array: Any) -> str:
    """The name of an array's dtype, the same for every library: "float32", "bfloat16".."""
    dtype = array.dtype
    name = _names.get(dtype)
    if name is None:
        name = _names[dtype] = getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
    return name


def float_dtype(op: str, name: str, array: Any) -> str:
    """The dtype of an array, which must be float32, float16 or bfloat16."""
    dtype = dtype_of(array) if hasattr(array, "dtype") else type(array).__name__
    if dtype not in FLOATS:
        raise KernelError(op, f"{name} must be float32, float16 or bfloat16", dtype)
    return dtype


def check(op: str, name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """The array must have this dtype and shape."""
    if not hasattr(array, "dtype"):
        raise KernelError(op, f"{name} must be {dtype} {list(shape)}", type(array).__name__)
    if dtype_of(array) != dtype or array.shape != shape:
        raise KernelError(op, f"{name} must be {dtype} {list(shape)}", f"{dtype_of(array)} {list(array.shape)}")


def last_axis(op: str, name: str, array: Any) -> tuple[int]:
    """[C] of an array [.., C], which must have such an axis with something on it."""
    shape = array.shape
    if not shape or shape[-1] == 0:
        raise KernelError(op, f"{name} must be [.., C] with C at least 1", list(shape))
    return (shape[-1],)


def empty_like(op: str, array: Any) -> Any:
    """A new array of the same kind, shape, dtype and device, and of the same order of axes in memory."""
    if isinstance(array, np.ndarray):
        return np.empty_like(array)
    if _is_torch(array):
        return sys.modules["torch"].empty_like(array)
    return empty(op, array, array.shape)


def empty(op: str, like: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """A new contiguous array of the same kind and on the same device; dtype: `like`'s unless given."""
    if _is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=like.dtype if dtype is None else getattr(torch, dtype), device=like.device)
    wanted = like.dtype if dtype is None else _numpy_dtype(dtype)
    if isinstance(like, np.ndarray):
        return np.empty(shape, wanted)
    if type(like).__module__.partition(".")[0] == "cupy":
        with like.device:
            return sys.modules["cupy"].empty(shape, wanted)
    raise KernelError(op, "out must be given for arrays that are not of numpy, torch or cupy", type(like).__name__)


def numpy_only(op: str, *arrays: Any) -> None:
    """The references take numpy arrays alone."""
    for array in arrays:
        if array is not None and not isinstance(array, np.ndarray):
            rule = "arrays must be of numpy where the operators are not compiled (see hotloop_kernels.build_info())"
            raise KernelError(op, rule, type(array).__name__)


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")  # also of classes derived from its Tensor, such as Parameter
    return torch is not None and isinstance(array, torch.Tensor)


def _numpy_dtype(name: str) -> np.dtype:
    if name == "bfloat16":  # numpy has none of its own
        from importlib import import_module

        return np.dtype(import_module("ml_dtypes").bfloat16)
    return np.dtype(name)
