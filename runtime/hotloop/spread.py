"""A batch cut into parts that run side by side, each on threads of its own.

Threads that share every operation meet after each: a small network's hundreds of operations of some microseconds leave
them waiting for each other. The rows of a batch have nothing to say to each other, so each thread may as well carry its
own rows through the whole network. Guidance alone makes two.

The built-in UNet's guided evaluation on two cores takes 1.2 times less with its halves side by side, though each half
then computes the prefix that they could share (benchmarks/spread.py). A large network's operations are long enough,
and parts would read its weights once each.
"""

from __future__ import annotations

from collections.abc import Mapping

from .spec import Network

__all__ = ["part_of", "parts", "rows"]


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


def rows(size: int, part: int, step: int) -> slice:
    """Where part number `part`, of `step` rows, lies in a tensor of `size` rows."""
    first = part * step % size
    return slice(first, first + step)
