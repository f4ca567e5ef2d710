"""How good pictures are: against one picture (PSNR, SSIM), against words (accuracy), against a set (FID, KID).

FID and KID compare features, so they say as much as the network that gave the features can see; figures of two
networks, or of two numbers of pictures, are not to be set side by side.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

__all__ = ["Moments", "accuracy", "decibels", "fid", "frechet", "kid", "mse", "psnr", "ssim"]

F64 = NDArray[np.float64]

_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004, section III-C


# Against one picture.


def mse(got: ArrayLike, want: ArrayLike) -> float:
    """Mean squared difference of two arrays of one shape. Raises InputError for two shapes."""
    a, b = _pair(got, want)
    return float(np.mean((a - b) ** 2))


def decibels(error: float, *, peak: float = 255.0) -> float:
    """A mean squared difference as PSNR: 10 log10(peak^2 / error), infinite for none."""
    return 10 * math.log10(peak**2 / error) if error else math.inf


def psnr(got: ArrayLike, want: ArrayLike, *, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio of two arrays of one shape, dB; infinite for equal ones, NaN where a value is."""
    return decibels(mse(got, want), peak=peak)


def ssim(got: ArrayLike, want: ArrayLike, *, peak: float = 255.0) -> float:
    """Structural similarity of two pictures [H, W] or [H, W, C]: Wang et al. 2004, eq. 13, averaged over windows.

    Of every channel by itself, then averaged: hair of another colour may well have its old luma. Windows are 11 x 11
    Gaussian weights of deviation 1.5 that lie inside the picture; a side below 11 gets the largest odd length that
    fits. Raises InputError for two shapes or another number of axes.
    """
    a, b = _pair(got, want)
    if a.ndim not in (2, 3):
        raise InputError("quality", "pictures must be [H, W] or [H, W, C]", a.shape)
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    mu_a, mu_b = _windows(a), _windows(b)
    var_a, var_b, cov = _windows(a * a) - mu_a**2, _windows(b * b) - mu_b**2, _windows(a * b) - mu_a * mu_b
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return float(np.mean(luminance * structure))


def _windows(x: F64) -> F64:
    """The weighted mean of every window, [H - 10, W - 10(, C)] of a picture that is large enough."""
    for axis in (0, 1):
        length = min(_WINDOW, x.shape[axis] - (x.shape[axis] + 1) % 2)
        weights = np.exp(-((np.arange(length) - length // 2) ** 2) / (2 * _SIGMA**2))
        x = sliding_window_view(x, length, axis) @ (weights / weights.sum())
    return x


def _pair(got: ArrayLike, want: ArrayLike) -> tuple[F64, F64]:
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if a.shape != b.shape or not a.size:
        raise InputError("quality", f"pictures must have one shape, {b.shape}", a.shape)
    return a, b


# Against words.


def accuracy(guesses: NDArray[np.int64], truth: NDArray[np.int64]) -> F64:
    """The share of right guesses per attribute, [A]; NaN where nothing was asked for.

    guesses, truth: class numbers [N, A]; truth is -1 where a prompt does not state the attribute.
    """
    asked = truth >= 0
    right = ((guesses == truth) & asked).sum(0)
    return np.divide(right, asked.sum(0), out=np.full(truth.shape[1], np.nan), where=asked.any(0))


# Against a set of pictures.


class Moments:
    """Mean [F] and covariance [F, F] of feature vectors, gathered batch by batch in one pass (Chan et al. 1979)."""

    def __init__(self, features: ArrayLike | None = None) -> None:
        self.count = 0
        self._mean: F64 = np.zeros(0)
        self._scatter: F64 = np.zeros((0, 0))
        if features is not None:
            self.add(features)

    def add(self, features: ArrayLike) -> None:
        """[N, F]. Raises InputError for another shape or a value that is not finite."""
        x = _features(features)
        n, width = x.shape
        if not self.count:
            self._mean, self._scatter = np.zeros(width), np.zeros((width, width))
        elif width != len(self._mean):
            raise InputError("quality", f"feature vectors must have {len(self._mean)} values", width)
        mean = x.mean(0)
        between, centred, total = mean - self._mean, x - mean, self.count + n
        self._scatter += centred.T @ centred + np.outer(between, between) * (self.count * n / total)
        self._mean += between * (n / total)
        self.count = total

    @property
    def mean(self) -> F64:
        return self._mean

    @property
    def covariance(self) -> F64:
        """Unbiased. Raises InputError below two vectors."""
        if self.count < 2:
            raise InputError("quality", "a covariance needs at least 2 feature vectors", self.count)
        return self._scatter / (self.count - 1)


def frechet(mean_a: F64, cov_a: F64, mean_b: F64, cov_b: F64) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two Gaussians (Dowson & Landau 1982).

    The root's trace is the nuclear norm of S_a^(1/2) S_b^(1/2): no matrix that is not symmetric needs a root.
    """
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _root(covariance: F64) -> F64:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def fid(a: ArrayLike | Moments, b: ArrayLike | Moments) -> float:
    """Frechet distance of two feature sets [N, F], taken as Gaussians (Heusel et al. 2017).

    It is biased: fewer vectors give more. Raises InputError for fewer than two, or two widths.
    """
    x, y = (one if isinstance(one, Moments) else Moments(one) for one in (a, b))
    if x.mean.shape != y.mean.shape:
        raise InputError("quality", f"feature vectors must have {len(y.mean)} values", len(x.mean))
    return frechet(x.mean, x.covariance, y.mean, y.covariance)


def kid(a: ArrayLike, b: ArrayLike) -> float:
    """Squared MMD of two feature sets [N, F] with the kernel (x.y / F + 1)^3, unbiased (Binkowski et al. 2018).

    Raises InputError for fewer than two vectors, or two widths.
    """
    x, y = _features(a), _features(b)
    if x.shape[1] != y.shape[1]:
        raise InputError("quality", f"feature vectors must have {y.shape[1]} values", x.shape[1])
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise InputError("quality", "KID needs at least 2 feature vectors on either side", (n, m))
    xx, yy = _kernel(x, x), _kernel(y, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: F64, y: F64) -> F64:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _features(features: ArrayLike) -> F64:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not x.size:
        raise InputError("quality", "features must be [N, F]", x.shape)
    if not np.isfinite(x).all():
        raise InputError("quality", "features must be finite", int((~np.isfinite(x)).sum()))
    return x
