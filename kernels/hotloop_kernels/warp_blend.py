"""warp_blend: a picture moved by coarse flows, blended with what it hides, coloured where neither has what is needed.

frame = colour + (1 - alpha) ((1 - mask) key(u + flow_key) + mask reveal(u + flow_reveal)) at every place u of the
picture, flows, mask and colour going linearly between the nodes of a grid (half-pixel centres, edges repeated: torch's
`interpolate`), sources between their pixels, transparent outside (torch's `grid_sample`, both align_corners=False). It
is the field form of animation by dense motion and occlusion masks (Siarohin et al. 2019, eq. 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import arrays, backend
from .checks import KernelError

__all__ = ["MAX_LAYERS", "MAX_SOURCES", "reference", "warp_blend"]

_OP = "warp_blend"
MAX_SOURCES = 4  # as in ops.h
MAX_LAYERS = 16
LARGEST = 16384
FARTHEST = 16  # pictures
LEAST = 1 / 2048
OUTERMOST = 1e6


def warp_blend(
    sources: Sequence[Any],
    whole: Any,
    *,
    parts: Any = (),
    boxes: Any = (),
    size: tuple[int, int] | None = None,
    out: Any = None,
    stream: int | None = None,
    unproved: bool = False,
) -> Any:
    """A frame, premultiplied uint8 [H, W, 4].

    sources   one to four premultiplied uint8 [h, w, 4], each of its own size: the keyframe, then what is blended over
    whole     float32 [C, gh, gw], a grid over the whole picture. Channels: flow x, y of each source, in pictures and
              backward (the pixel at u shows the source at u + flow); the mask of each source but the first; then, where
              there is a colour, its premultiplied r, g, b, a. So C is 5 or 9 for two sources
    parts     up to 15 such grids of any size, a sequence or one array [P, C, gh, gw]: inside its box a part stands for
              the whole and for the parts before it
    boxes     [P, 4], the parts' x0, y0, x1, y1 in pictures: numbers of the host. A box has the pixels whose centres lie
              in it. It may reach beyond the picture, overlap others and be empty
    size      (H, W); the first source's when None
    out       like the result, and no part of any other array; a new array when None
    stream    CUDA stream (the pointer as a number); None: the default stream
    unproved  run on a GPU that no gpu-check has proved

    At a node a flow that is NaN or farther than 16 pictures counts as 16 (so that it shows nothing), a mask or colour
    that is NaN or below 1/2048 as 0, above 1 as 1. A byte is within 1 of the exact value; with flow and mask 0 and at
    equal size the keyframe's bytes come back. The same bytes on every CPU and for every count of threads.

    Quickest where the pixels of sources and out lie side by side; rows may have any distance. Raises KernelError.
    """
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise KernelError(_OP, f"sources must be 1 to {MAX_SOURCES}", len(sources))
    for source in sources:
        _shape("a source", source, "uint8", ("h", "w", 4))
    channels = _shape("whole", whole, "float32", ("C", "gh", "gw"))[0]
    least = 3 * len(sources) - 1
    if channels not in (least, least + 4):
        raise KernelError(_OP, f"whole must have {least} channels, or {least + 4} with a colour", channels)
    if len(parts) >= MAX_LAYERS:
        raise KernelError(_OP, f"parts must be at most {MAX_LAYERS - 1}", len(parts))
    for part in parts:
        _shape("a part", part, "float32", (channels, "gh", "gw"))
    corners = _corners(boxes, len(parts))
    height, width = tuple(sources[0].shape[:2]) if size is None else size
    if not (1 <= height <= LARGEST and 1 <= width <= LARGEST):
        raise KernelError(_OP, f"sizes must lie in 1..{LARGEST}", f"{height} x {width}")
    shape = (int(height), int(width), 4)
    if out is None:
        out = arrays.empty(_OP, sources[0], shape, "uint8")
    else:
        arrays.check(_OP, "out", out, "uint8", shape)
    layers = [(whole, (0.0, 0.0, 1.0, 1.0)), *zip(parts, corners, strict=True)]
    if backend.ops is None:
        arrays.numpy_only(_OP, *sources, *(field for field, _ in layers), out)
        out[...] = reference(sources, layers, shape[:2])
    else:
        backend.ops.warp_blend(list(sources), layers, out, stream or 0, unproved, False)
    return out


def reference(
    sources: Sequence[np.ndarray], layers: Sequence[tuple[np.ndarray, Sequence[float]]], size: tuple[int, int]
) -> np.ndarray:
    """warp_blend in NumPy, in float32 and without checks. layers: (grid, box), the first over the whole picture."""
    frame = np.zeros((*size, 4), np.uint8)
    count = len(sources)
    for field, (x0, y0, x1, y1) in layers:
        rows, columns = _pixels(y0, y1, size[0]), _pixels(x0, x1, size[1])
        if not rows.size or not columns.size:
            continue
        nodes = np.concatenate([_flows(field[: 2 * count]), _shares(field[2 * count :])])
        nodes = _between(nodes, 1, *_taps(_nodes(rows, y0, y1, size[0], field.shape[1]), field.shape[1]))
        values = _between(nodes, 2, *_taps(_nodes(columns, x0, x1, size[1], field.shape[2]), field.shape[2]))
        masks, colour = values[2 * count : 3 * count - 1], values[3 * count - 1 :]  # [S - 1, h, w], [4 or 0, h, w]
        mixed = _sample(sources[0], values[:2], rows, columns, size)
        for s in range(1, count):
            over = _sample(sources[s], values[2 * s : 2 * s + 2], rows, columns, size)
            mixed += masks[s - 1][..., None] * (over - mixed)
        if len(colour):
            mixed = np.float32(255) * np.moveaxis(colour, 0, -1) + (1 - colour[3])[..., None] * mixed
        frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = np.clip(np.rint(mixed), 0, 255)
    return frame


def _flows(nodes: np.ndarray) -> np.ndarray:
    """NaN to the farthest as well."""
    return np.where(np.isnan(nodes), np.float32(-FARTHEST), np.clip(nodes, -FARTHEST, FARTHEST))


def _shares(nodes: np.ndarray) -> np.ndarray:
    return np.where(nodes >= LEAST, np.minimum(nodes, np.float32(1)), np.float32(0))


def _pixels(low: float, high: float, count: int) -> np.ndarray:
    """The pixels whose centres lie in low <= u < high."""
    first, end = (int(np.clip(np.ceil(at * count - 0.5), 0, count)) for at in (low, high))
    return np.arange(first, end)


def _nodes(pixels: np.ndarray, low: float, high: float, count: int, nodes: int) -> np.ndarray:
    """Where the pixels' centres lie among the nodes of a box, edges repeated."""
    return np.clip(((pixels + 0.5) / count - low) / (high - low) * nodes - 0.5, 0, nodes - 1)


def _taps(places: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes before and after each place, and how far it is from the first to the second."""
    first = places.astype(int)
    return first, np.minimum(first + 1, count - 1), (places - first).astype(np.float32)


def _between(values: np.ndarray, axis: int, first: np.ndarray, second: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    a, b = np.take(values, first, axis), np.take(values, second, axis)
    return a + beyond.reshape([-1 if i == axis else 1 for i in range(values.ndim)]) * (b - a)


def _sample(
    source: np.ndarray, flow: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """[h, w, 4], float32: the source at every pixel's centre plus flow [2, h, w], linear between pixels, 0 outside."""
    h, w = source.shape[:2]
    y = ((rows + 0.5) * h / size[0] - 0.5).astype(np.float32)[:, None] + np.float32(h) * flow[1]
    x = ((columns + 0.5) * w / size[1] - 0.5).astype(np.float32)[None] + np.float32(w) * flow[0]
    j, i = np.floor(y).astype(int), np.floor(x).astype(int)
    total = np.zeros((*x.shape, 4), np.float32)
    for row, along_y in ((j, 1 - (y - j)), (j + 1, y - j)):
        for column, along_x in ((i, 1 - (x - i)), (i + 1, x - i)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            weight = np.where(inside, along_y * along_x, 0).astype(np.float32)
            total += weight[..., None] * source[np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)]
    return total


def _shape(name: str, array: Any, dtype: str, axes: tuple[int | str, ...]) -> tuple[int, ...]:
    """The shape of an array of this dtype and these axes: numbers as they are, letters from 1 to LARGEST."""
    rule = f"{name} must be {dtype} [{', '.join(map(str, axes))}], sizes 1..{LARGEST}"
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise KernelError(_OP, rule, type(array).__name__)
    shape = tuple(array.shape)
    fits = len(shape) == len(axes) and all(
        1 <= n <= LARGEST if isinstance(axis, str) else n == axis for n, axis in zip(shape, axes, strict=True)
    )
    if arrays.dtype_of(array) != dtype or not fits:
        raise KernelError(_OP, rule, f"{arrays.dtype_of(array)} {list(shape)}")
    return shape


def _corners(boxes: Any, parts: int) -> list[list[float]]:
    """The boxes as numbers."""
    rule = f"boxes must be numbers [{parts}, 4] of the host, within {OUTERMOST:.0f} pictures"
    try:
        corners = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise KernelError(_OP, rule, type(boxes).__name__) from error
    if corners.shape != (parts, 4) and not (corners.size == 0 and parts == 0):
        raise KernelError(_OP, rule, list(corners.shape))
    if not (np.abs(corners) <= OUTERMOST).all():
        raise KernelError(_OP, rule, corners[~(np.abs(corners) <= OUTERMOST)][0])
    return corners.tolist()
