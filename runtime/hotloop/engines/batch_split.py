"""A batch cut into parts that run side by side, each on threads of its own.

Threads that share every operation meet after each: a small network's hundreds of operations of some microseconds leave
them waiting for each other. The rows of a batch have nothing to say to each other, so each thread may as well carry its
own rows through the whole network. Guidance alone makes two.

The built-in UNet's guided evaluation on two cores of an Intel processor, its halves side by side against whole, in
turns (`python benchmarks/spread.py`): ONNX Runtime, whose waiting threads sleep here, 1.55 [1.53, 1.60] times as fast;
OpenVINO 1.13 [1.10, 1.15] in fp32, 1.03 [0.90, 1.09] in bf16 and 0.97 [0.82, 1.15] in int8 (1.12 [1.06, 1.16] in a
quieter run), though each half then computes the prefix that they could share. A large network's operations are long
enough, and parts would read its weights once each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from ..process import after_fork
from ..spec import Network

__all__ = ["SMALL", "cut", "part_of", "parts", "side_by_side"]

# A network of fewer weights is small.
SMALL = 16 << 20


def parts(network: Network, dims: Mapping[str, int], most: int) -> int:
    """Into how many parts, `most` at most, a batch of this network can be cut; 1 where it cannot.

    A part has whole rows of every tensor: its size divides the number of images N where the network tells images from
    rows (row i of B belongs to image i mod N).
    """
    symbols = {str(tensor.shape[0]) for tensor in (*network.inputs, *network.outputs)}
    if not symbols <= {"N", "B"}:
        return 1
    sizes = [dims[symbol] for symbol in symbols]
    batch, images = max(sizes), min(sizes)
    return max(n for n in range(1, max(most, 1) + 1) if batch % n == 0 and (n == 1 or images % (batch // n) == 0))


def part_of(dims: Mapping[str, int], count: int) -> dict[str, int]:
    """The dimensions of one of `count` parts."""
    if count == 1:
        return dict(dims)
    batch = max(dims[symbol] for symbol in ("N", "B") if symbol in dims)
    return dict(dims) | {symbol: batch // count for symbol in ("N", "B") if symbol in dims}


def cut(arrays: Mapping[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    """Views of each part's rows; arrays with fewer rows than the batch come again."""
    if count == 1:
        return [dict(arrays)]
    step = max(map(len, arrays.values())) // count
    return [{name: array[i * step % len(array) :][:step] for name, array in arrays.items()} for i in range(count)]


def side_by_side(runs: Sequence[Callable[[], object]]) -> None:
    """Run them at once, the first on the caller's thread. Raises the first error when all have ended."""
    first, *others = runs
    if not others:
        first()
        return
    waiting = [_threads().submit(run) for run in others]
    failed: BaseException | None = None
    try:
        first()
    except BaseException as error:
        failed = error
    errors = [failed, *(one.exception() for one in waiting)]  # each when it has ended
    if first_error := next(filter(None, errors), None):
        raise first_error


@cache
def _threads() -> ThreadPoolExecutor:
    """Of the process: those that lie idle cost nothing, and a run waits for no other."""
    return ThreadPoolExecutor(thread_name_prefix="hotloop-rows")


after_fork(_threads.cache_clear)
