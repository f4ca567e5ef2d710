"""Quality figures against closed forms, other algorithms for the same quantity, and one pass against many."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from hotloop.errors import InputError
from hotloop.evaluation import metrics as quality

RNG = np.random.default_rng(7)


def picture(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


# PSNR.


@pytest.mark.parametrize("off", [1, 16, 255])
def test_psnr_of_a_constant_difference_is_its_closed_form(off: int) -> None:
    black = np.zeros((5, 7, 3), np.uint8)
    assert quality.psnr(black + np.uint8(off), black) == pytest.approx(20 * math.log10(255 / off), abs=1e-12)


def test_psnr_of_equal_pictures_is_infinite_and_of_half_wrong_ones_three_decibels_better() -> None:
    a = picture(8, 8, 3)
    assert quality.psnr(a, a) == math.inf
    wrong = np.zeros((2, 50))
    wrong[0] = 9
    assert quality.psnr(wrong, np.zeros((2, 50))) - quality.psnr(np.full(50, 9), np.zeros(50)) == pytest.approx(
        10 * math.log10(2)
    )


def test_psnr_of_what_is_no_number_is_none() -> None:
    assert math.isnan(quality.psnr([math.nan, 0.0], [0.0, 0.0]))


# SSIM.


def naive_ssim(a: np.ndarray, b: np.ndarray, length: int = 11) -> float:
    """Wang et al. 2004 by the letter: one channel, a loop over windows, moments about the window's own mean."""
    middle = length // 2
    weights = np.array([[math.exp(-((i - middle) ** 2 + (j - middle) ** 2) / (2 * 1.5**2)) for j in range(length)]
                        for i in range(length)])  # fmt: skip
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for top, left in itertools.product(range(a.shape[0] - length + 1), range(a.shape[1] - length + 1)):
        x, y = (one[top : top + length, left : left + length].astype(float) for one in (a, b))
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        cov = (weights * (x - mx) * (y - my)).sum()
        found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(found))


def test_ssim_is_the_papers_over_every_window() -> None:
    a = np.cumsum(picture(23, 18), axis=1).astype(np.uint8)
    b = np.clip(a.astype(int) + RNG.integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    assert quality.ssim(a, b) == pytest.approx(naive_ssim(a, b), abs=1e-10)


@pytest.mark.parametrize(("shape", "length"), [((11, 11), 11), ((8, 8), 7), ((5, 5), 5), ((1, 1), 1)])
def test_ssim_of_a_small_picture_takes_the_largest_odd_window(shape: tuple[int, int], length: int) -> None:
    a, b = picture(*shape), picture(*shape)
    assert quality.ssim(a, b) == pytest.approx(naive_ssim(a, b, length), abs=1e-10)


def test_ssim_of_colours_is_the_mean_over_channels() -> None:
    a, b = picture(14, 12, 3), picture(14, 12, 3)
    each = [naive_ssim(a[..., c], b[..., c]) for c in range(3)]
    assert quality.ssim(a, b) == pytest.approx(np.mean(each), abs=1e-10)


def test_ssim_is_one_for_equal_pictures_symmetric_and_of_flat_ones_the_luminance_term() -> None:
    a, b = picture(20, 20, 3), picture(20, 20, 3)
    assert quality.ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert quality.ssim(a, b) == pytest.approx(quality.ssim(b, a), abs=1e-12)
    c1 = 2.55**2
    flat = quality.ssim(np.full((16, 16), 100), np.full((16, 16), 150))
    assert flat == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), abs=1e-9)


@pytest.mark.parametrize("measure", [quality.psnr, quality.ssim])
def test_pictures_of_two_shapes_are_refused(measure: object) -> None:
    with pytest.raises(InputError, match="one shape"):
        measure(picture(8, 8, 3), picture(8, 8))  # type: ignore[operator]
    with pytest.raises(InputError):
        quality.ssim(picture(2, 8, 8, 3), picture(2, 8, 8, 3))


# Accuracy.


def test_accuracy_counts_only_what_was_asked_for() -> None:
    truth = np.array([[0, -1, -1], [2, 1, -1], [1, 0, -1]])
    guesses = np.array([[0, 5, 0], [2, 1, 0], [0, 3, 0]])
    np.testing.assert_array_equal(quality.accuracy(guesses, truth), [2 / 3, 1 / 2, np.nan])


# FID.


def gaussian(width: int, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    factor = RNG.normal(size=(width, rank or width))
    return RNG.normal(size=width), factor @ factor.T


def test_frechet_of_gaussians_that_commute_is_its_closed_form() -> None:
    """Covariances with common axes: the distance of the means and of the deviations along each axis."""
    axes = np.linalg.qr(RNG.normal(size=(24, 24)))[0]
    a, b = RNG.uniform(0, 3, (2, 24))  # deviations
    mean_a, mean_b = RNG.normal(size=(2, 24))
    found = quality.frechet(mean_a, (axes * a**2) @ axes.T, mean_b, (axes * b**2) @ axes.T)
    assert found == pytest.approx(((mean_a - mean_b) ** 2).sum() + ((a - b) ** 2).sum(), abs=1e-6)


def test_frechet_of_two_dimensional_gaussians_is_its_closed_form() -> None:
    """Tr (AB)^(1/2) of 2 x 2 matrices is sqrt(Tr AB + 2 sqrt(det AB)): they need not commute."""
    (mean_a, a), (mean_b, b) = gaussian(2), gaussian(2)
    trace = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * trace
    assert quality.frechet(mean_a, a, mean_b, b) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rank", [None, 9])
def test_frechet_equals_the_one_with_a_general_matrix_root(rank: int | None) -> None:
    (mean_a, a), (mean_b, b) = gaussian(30), gaussian(30, rank)
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    # The general root of a matrix without full rank is itself right to half the digits only.
    assert quality.frechet(mean_a, a, mean_b, b) == pytest.approx(expected, abs=1e-6 if rank is None else 1e-4)


def test_frechet_from_fewer_pictures_than_features_is_zero_to_itself() -> None:
    few = RNG.normal(size=(10, 64)) * 30
    assert quality.fid(few, few) == pytest.approx(0, abs=1e-6)


def test_fid_of_many_samples_approaches_the_gaussians_own() -> None:
    (mean_a, a), (mean_b, b) = gaussian(4), gaussian(4)
    x, y = RNG.multivariate_normal(mean_a, a, 60_000), RNG.multivariate_normal(mean_b, b, 60_000)
    assert quality.fid(x, y) == pytest.approx(quality.frechet(mean_a, a, mean_b, b), rel=0.03)


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [3, 64, 33], [99, 1]])
def test_moments_gathered_in_batches_are_those_of_all_at_once(sizes: list[int]) -> None:
    x = RNG.normal(size=(100, 12)) * 5 + 1e4  # far from zero: sums of squares would lose eight digits
    moments = quality.Moments()
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        moments.add(part)
    assert moments.count == 100
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=0, atol=1e-9)
    other = RNG.normal(size=(50, 12)) + 1e4
    assert quality.fid(moments, other) == pytest.approx(quality.fid(x, other), abs=1e-6)


# KID.


def test_kid_is_the_mean_over_pairs_of_different_pictures() -> None:
    """Binkowski et al. 2018, by loops."""
    a, b = RNG.normal(size=(9, 5)), RNG.normal(size=(7, 5)) + 0.5

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / 5 + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(one, 2)]) for one in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert quality.kid(a, b) == pytest.approx(sum(within) - 2 * across, abs=1e-9)


def test_kid_of_two_points_has_its_closed_form() -> None:
    """Clouds that are one point each, e and 0 in width F: (1/F + 1)^3 + 1 - 2."""
    one = np.zeros((4, 6))
    one[:, 2] = 1
    assert quality.kid(one, np.zeros((3, 6))) == pytest.approx((1 / 6 + 1) ** 3 - 1, abs=1e-12)


def test_kid_of_one_distribution_is_zero_on_average_and_may_be_negative() -> None:
    found = [quality.kid(*RNG.normal(size=(2, 40, 3))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20 and min(found) < 0


@pytest.mark.parametrize("measure", [quality.fid, quality.kid])
@pytest.mark.parametrize(
    ("a", "rule"),
    [
        (np.zeros((1, 4)), "at least 2"),
        (np.zeros((3, 5)), "must have 4 values"),
        (np.zeros(4), r"\[N, F\]"),
        (np.zeros((0, 4)), r"\[N, F\]"),
        (np.full((3, 4), np.nan), "finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(measure: object, a: np.ndarray, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        measure(a, RNG.normal(size=(6, 4)))  # type: ignore[operator]
