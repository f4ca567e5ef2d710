"""noise.py against torch.randn, the published Philox vectors and the normal distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hotloop import noise
from hotloop.errors import InputError

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63, 2**64 - 1]
SHAPES = [(1,), (2,), (15,), (16,), (17,), (31,), (100,), (3, 5, 7), (1, 4, 16, 16), (4, 64, 64)]


def torch_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_torch_stream_equals_torch_randn(seed: int, shape: tuple[int, ...]) -> None:
    want = torch.randn(shape, generator=torch_generator(seed)).numpy()
    got = noise.normal(seed, shape)
    assert got.dtype == np.float32 and got.shape == shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_successive_draws_of_mixed_sizes_equal_one_torch_generator(seed: int) -> None:
    generator, stream = torch_generator(seed), noise.NoiseSource(seed)
    sizes = np.random.default_rng(seed % 1000).choice([0, 1, 2, 3, 7, 15, 16, 17, 31, 64, 100, 1024, 16384], 60)
    for size in sizes.tolist():
        want = torch.randn(size, generator=generator).numpy()
        np.testing.assert_allclose(stream.normal((size,)), want, rtol=0, atol=1e-6)


def test_the_far_tail_stays_within_1e_6_of_torch() -> None:
    n = 4_000_000
    want = torch.randn(n, generator=torch_generator(7)).numpy()
    assert np.abs(noise.normal(7, (n,)) - want).max() <= 1e-6


def test_only_the_low_32_bits_of_a_torch_seed_count_as_in_torch() -> None:
    np.testing.assert_array_equal(noise.normal(5, (64,)), noise.normal(2**32 + 5, (64,)))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox4x32_10_gives_the_published_random123_vectors(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    got = noise.philox4x32(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert got.tolist() == words


def test_any_philox_element_can_be_made_alone() -> None:
    stream = noise.NoiseSource(2**40 + 3, "philox")
    draws = [stream.normal((4, 7, 5)).reshape(-1) for _ in range(3)]
    for draw, whole in enumerate(draws):
        picked = np.array([139, 0, 1, 2, 3, 77, 76, 0])
        np.testing.assert_array_equal(noise.philox_normal(2**40 + 3, draw, picked), whole[picked])
        for element in (0, 6, 139):
            assert noise.philox_normal(2**40 + 3, draw, np.array(element)) == whole[element]


def test_philox_follows_its_documented_layout_written_out_for_one_element() -> None:
    seed, draw, element = 0x0123456789ABCDEF, 2, 4 * 1000 + 3
    words = noise.philox4x32(np.array([1000, 0, draw, 0], np.uint32), np.array([0x89ABCDEF, 0x01234567], np.uint32))
    w2, w3 = int(words[2]), int(words[3])
    want = math.sqrt(-2 * math.log((w2 + 0.5) / 2**32)) * math.sin(2 * math.pi * w3 / 2**32)
    assert noise.philox_normal(seed, draw, np.array([element]))[0] == pytest.approx(want, abs=1e-6)


def test_philox_uses_all_64_bits_of_the_seed_and_every_draw_differs() -> None:
    stream = noise.NoiseSource(5, "philox")
    first, second = stream.normal((64,)), stream.normal((64,))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, noise.normal(2**32 + 5, (64,), rng="philox"))


@pytest.mark.parametrize("rng", list(noise.RNGS))
def test_the_numbers_are_standard_normal(rng: str) -> None:
    n = 400_000
    x = np.sort(noise.normal(3, (n,), rng=rng).astype(np.float64))
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x[::100]])
    kolmogorov = np.abs(cdf - (np.arange(0, n, 100) + 0.5) / n).max()
    assert kolmogorov < 1.95 / math.sqrt(n)  # p = 0.001
    assert abs(x.mean()) < 4 / math.sqrt(n) and abs(x.var() - 1) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("rng", list(noise.RNGS))
def test_image_i_of_a_batch_is_the_single_run_with_seed_plus_i(rng: str) -> None:
    seeds = noise.seeds_for(11, 3)
    batch = noise.SeededNoise(seeds, rng)
    singles = [noise.NoiseSource(11 + i, rng) for i in range(3)]
    assert len(batch) == 3
    for shape in [(4, 16, 16), (1, 3), (4, 16, 16)]:
        got = batch.normal(shape)
        assert got.shape == (3, *shape) and got.dtype == np.float32
        np.testing.assert_array_equal(got, np.stack([single.normal(shape) for single in singles]))


@pytest.mark.parametrize("seed", [-1, 2**64, True, False, 1.0, 0.5, "7", None, np.float32(3), np.bool_(True)])
def test_a_seed_that_is_no_64_bit_integer_is_refused(seed: object) -> None:
    with pytest.raises(InputError, match=r"^\[noise\] seed must be an integer from 0 to 2\*\*64 - 1, got "):
        noise.normal(seed, (4,))  # type: ignore[arg-type]


def test_numpy_integers_are_seeds() -> None:
    np.testing.assert_array_equal(noise.normal(np.uint64(9), (20,)), noise.normal(9, (20,)))  # type: ignore[arg-type]


def test_a_batch_that_runs_past_the_last_seed_is_refused() -> None:
    assert noise.seeds_for(2**64 - 2, 2) == [2**64 - 2, 2**64 - 1]
    with pytest.raises(InputError):
        noise.seeds_for(2**64 - 2, 3)


def test_an_unknown_rng_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"rng must be one of torch, philox, got 'cuda'"):
        noise.normal(0, (4,), rng="cuda")
