"""Seeded noise: torch's CPU stream without torch, and a counter-based stream that is the same on every device.

`rng="torch"` gives the numbers of `torch.randn(shape, generator=torch.Generator().manual_seed(seed))`, draw after draw:
the same seed makes the same image as the baseline. `rng="philox"` gives numbers that depend on (seed, draw, element)
alone, so that any device, and any part of a tensor, can make them without the rest.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = [
    "RNGS", "NoiseSource", "SeededNoise", "check_seed", "generator_seeds", "normal", "philox4x32", "philox_normal",
    "seeds_for",
]  # fmt: skip

MAX_SEED = 2**64 - 1

_BLOCK = 16  # torch fills tensors of at least this size in blocks of this size
_TAU = 2.0 * math.pi
_TAU32 = np.float32(_TAU)

F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]


def check_seed(seed: object) -> int:
    """The seed as an int. Raises InputError unless it is an integer from 0 to 2**64 - 1: no bool, no float."""
    rule = "seed must be an integer from 0 to 2**64 - 1"
    if isinstance(seed, (bool, np.bool_)):
        raise InputError("noise", rule, seed)
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise InputError("noise", rule, seed) from None
    if not 0 <= value <= MAX_SEED:
        raise InputError("noise", rule, seed)
    return value


def seeds_for(seed: int, n: int) -> list[int]:
    """The seeds of a batch: image i is the single run with seed + i. Raises InputError where one leaves the range."""
    first = check_seed(seed)
    return [check_seed(first + i) for i in range(n)]


def generator_seeds(generator: Any) -> int | list[int]:
    """The seed of a generator as diffusers takes it: a number, an object with initial_seed(), or a list of them.

    A single object is one image's: stock pipelines draw all images of a call from it in turn, which is no seed's own.
    """
    if isinstance(generator, (int, np.integer)):
        return int(generator)
    each = generator if isinstance(generator, (list, tuple)) else [generator]
    return [int(one) if isinstance(one, (int, np.integer)) else _initial_seed(one) for one in each]


def _initial_seed(generator: Any) -> int:
    place, device = "request", getattr(getattr(generator, "device", None), "type", "cpu")
    if not callable(getattr(generator, "initial_seed", None)):
        raise InputError(place, "generator must be a seed, a torch.Generator or a list of them", generator)
    if device != "cpu":
        raise InputError(place, "generator must be one of the CPU: another device's numbers are not a seed's", device)
    seed: int = generator.initial_seed()
    if hasattr(generator, "clone_state"):
        fresh = generator.clone_state()
        fresh.manual_seed(seed)
        if not bool((fresh.get_state() == generator.get_state()).all()):
            raise InputError(place, "generator must be fresh: numbers have been drawn from it already", seed)
    return seed


class _Source(Protocol):
    def normal(self, size: int) -> F32: ...


class TorchNormal:
    """The normal numbers of torch's CPU generator (ATen's mt19937 and its two Box-Muller paths), without torch.

    The generator is the plain mt19937 of Matsumoto and Nishimura, seeded with the low 32 bits of the seed. Tensors of
    16 elements and more take one 24-bit uniform per element and turn them to normals in blocks of 16; smaller ones take
    two 53-bit uniforms per pair of normals and keep the second for the next small draw.
    """

    def __init__(self, seed: int) -> None:
        # RandomState(int) is frozen by NumPy's compatibility policy: init_genrand, as in the 2002 reference code.
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)
        self._spare: float | None = None

    def _words(self, n: int) -> U32:
        return self._bits.randint(0, 1 << 32, size=n, dtype=np.uint32)

    def _uniforms(self, n: int) -> F32:
        return (self._words(n) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)

    def normal(self, size: int) -> F32:
        """The next `size` numbers of the stream, f32[size]."""
        if size < _BLOCK:
            return np.array([self._scalar() for _ in range(size)], np.float32)
        whole = size // _BLOCK * _BLOCK
        uniforms = self._uniforms(size)
        out = np.empty(size, np.float32)
        out[:whole] = _box_muller_blocks(uniforms[:whole])
        if whole != size:  # the last 16 values are made again from fresh uniforms, over the tail of the last block
            out[-_BLOCK:] = _box_muller_blocks(self._uniforms(_BLOCK))
        return out

    def _scalar(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        high0, low0, high1, low1 = self._words(4).tolist()
        u1 = ((high0 << 32 | low0) & (2**53 - 1)) * 2.0**-53
        u2 = ((high1 << 32 | low1) & (2**53 - 1)) * 2.0**-53
        radius, theta = math.sqrt(-2.0 * math.log1p(-u2)), _TAU * u1
        self._spare = radius * math.sin(theta)
        return radius * math.cos(theta)


def _box_muller_blocks(uniforms: F32) -> F32:
    """f32[16 k] uniforms -> f32[16 k] normals; in each block the first 8 give radii, the last 8 angles."""
    pairs = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2.0 * np.log(1.0 - pairs[:, 0].astype(np.float64)))
    # torch rounds the angle to float32: in the far tail that is worth more than 1e-6.
    theta = (_TAU32 * pairs[:, 1]).astype(np.float64)
    out = np.empty(pairs.shape, np.float32)
    out[:, 0] = radius * np.cos(theta)
    out[:, 1] = radius * np.sin(theta)
    return out.reshape(-1)


def philox4x32(counter: U32, key: U32, *, rounds: int = 10) -> U32:
    """Philox4x32, Salmon et al. 2011, section 3.3: counter u32[..., 4], key u32[..., 2] -> random words u32[..., 4]."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = (key[..., i].astype(np.uint64) for i in range(2))
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(rounds):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ k0, b & low, (a >> shift) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def philox_normal(seed: int, draw: int, elements: npt.NDArray[np.integer]) -> F32:
    """Normal numbers by position: elements int[n] (flat indices) of draw number `draw` -> f32[n].

    Layout: the key is (seed low, seed high); the counter is (block low, block high, draw low, draw high), where
    block = element // 4. The four words w of a block give two Box-Muller pairs, (w0, w1) for elements 4 b and 4 b + 1
    and (w2, w3) for 4 b + 2 and 4 b + 3: radius = sqrt(-2 ln((w_even + 1/2) / 2^32)), angle = 2 pi w_odd / 2^32, in
    float64; even elements are radius cos(angle), odd ones radius sin(angle), rounded to float32.
    """
    elements = np.asarray(elements, np.uint64)
    blocks, which = np.unique(elements >> np.uint64(2), return_inverse=True)
    lanes = (elements & np.uint64(3)).astype(np.intp)
    return _philox_blocks(seed, draw, blocks)[which.reshape(elements.shape), lanes]


def _philox_blocks(seed: int, draw: int, blocks: npt.NDArray[np.uint64]) -> F32:
    """Blocks u64[n] -> their four normals each, f32[n, 4]."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = np.empty((*blocks.shape, 4), np.uint32)
    counter[..., 0], counter[..., 1] = blocks & low, blocks >> shift
    counter[..., 2], counter[..., 3] = draw & 0xFFFFFFFF, draw >> 32
    words = philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((words[..., 0::2] + 0.5) * 2.0**-32))  # [n, 2]
    theta = (_TAU * 2.0**-32) * words[..., 1::2]
    out = np.empty((*blocks.shape, 4), np.float32)
    out[..., 0::2] = radius * np.cos(theta)
    out[..., 1::2] = radius * np.sin(theta)
    return out


class PhiloxNormal:
    """Successive draws of the Philox stream: draw number d of a seed is `philox_normal(seed, d, ...)`."""

    def __init__(self, seed: int) -> None:
        self._seed, self._draw = seed, 0

    def normal(self, size: int) -> F32:
        """The elements 0 .. size - 1 of the next draw, f32[size]."""
        blocks = np.arange((size + 3) // 4, dtype=np.uint64)
        out = _philox_blocks(self._seed, self._draw, blocks).reshape(-1)[:size]
        self._draw += 1
        return out


RNGS: dict[str, Callable[[int], _Source]] = {"torch": TorchNormal, "philox": PhiloxNormal}


class NoiseSource:
    """One image's noise: successive draws from one seed, as one `torch.Generator` would give them.

    Raises InputError for a seed outside 0 .. 2**64 - 1 or an unknown rng.
    """

    def __init__(self, seed: int, rng: str = "torch") -> None:
        if rng not in RNGS:
            raise InputError("noise", "rng must be one of " + ", ".join(RNGS), rng)
        self.seed, self.rng = check_seed(seed), rng
        self._source = RNGS[rng](self.seed)

    def normal(self, shape: Sequence[int]) -> F32:
        """The next draw: f32 of `shape`, unit normal."""
        return self._source.normal(math.prod(shape)).reshape(tuple(shape))


class SeededNoise:
    """The noise of a batch: one stream per image, so that image i is the single run with its seed."""

    def __init__(self, seeds: Sequence[int], rng: str = "torch") -> None:
        self._sources = [NoiseSource(seed, rng) for seed in seeds]

    def __len__(self) -> int:
        return len(self._sources)

    def normal(self, shape_per_image: Sequence[int]) -> F32:
        """The next draw of every image: f32[N, *shape_per_image]."""
        out = np.empty((len(self._sources), *shape_per_image), np.float32)
        for image, stream in zip(out, self._sources, strict=True):
            image[...] = stream.normal(shape_per_image)
        return out


def normal(seed: int, shape: Sequence[int], *, rng: str = "torch") -> F32:
    """The first draw of a seed: f32 of `shape`. Raises InputError as NoiseSource does."""
    return NoiseSource(seed, rng).normal(shape)
