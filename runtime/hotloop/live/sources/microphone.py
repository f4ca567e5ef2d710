"""A voice -> the shape of its mouth: weights of a, i, u, e, o and silence, 10 ms of 16 kHz audio at a time.

Each frame looks back 42 ms: two windows of 32 ms. A window becomes the cepstrum of its mel bands (Davis and Mermelstein
1980), without the term of loudness; linear discriminants (Fisher 1936) of it tell the vowels apart, which
`benchmarks/visemes.py` fits on synthetic speech: on a language it was not fitted on, 75 to 95 of 100 frames of vowels
are right. No recorded speech was tried. A voice is what is louder than the noise, followed upwards by 5 dB a second.
"""

from __future__ import annotations

import math

import numpy as np

from ...errors import InputError
from ..controls import VISEMES

__all__ = ["FRAME", "RATE", "Visemes", "cepstrum"]

RATE, FRAME = 16000, 160
_WINDOW, _BANDS, _TERMS = 512, 24, 12
_FLOOR = 1e-3  # of the loudest band: what is quieter is taken to be noise
_BLUR = 2.0  # divides the discriminants: neighbours of a vowel get some weight
_QUIETEST, _LOUDEST = -75.0, -40.0  # dB of full scale: where the noise may be
_ABOVE, _RISE = 14.0, 0.05  # dB of a voice over the noise; dB a frame that the noise may grow
_LONGEST = RATE  # samples in one call

# Rows: a i u e o; columns: 12 terms and a constant. Printed by `python benchmarks/visemes.py --fit`.
_DISCRIMINANTS = np.array(
    [
        [-0.871, -1.78, -1.51, -1.75, -0.137, -1.16, -1.49, -0.817, -1.61, -2.63, -0.882, -1.24, -10.8],
        [-1.47, 0.984, 0.999, -1.25, 0.596, -1.17, -1.53, -0.472, -1.43, -1.11, 0.31, -1.5, -12.4],
        [-0.32, 0.866, -0.398, -0.836, -0.409, -0.816, -1.28, -1.81, -2.15, -1.48, -0.599, -0.302, -7.02],
        [-1.16, 0.135, 0.296, -2.24, -1.77, -2.53, -2, -1.01, -0.67, -0.371, 0.307, -1.38, -12.5],
        [-0.926, -0.228, -1.12, -2.85, -0.861, -1.51, -2.01, -0.842, -1.99, -0.552, 0.374, -0.285, -11.8],
    ]
)


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def _bank() -> np.ndarray:
    """[bands, bins]: triangles, evenly spaced in mel from 100 to 5500 Hz."""
    edges = 700 * (10 ** (np.linspace(_mel(100), _mel(5500), _BANDS + 2) / 2595) - 1)
    bins = np.arange(_WINDOW // 2 + 1) * RATE / _WINDOW
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.clip(np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)), 0, None)


_BANK = _bank()
_SHAPE = np.hanning(_WINDOW)
_COSINES = np.sqrt(2 / _BANDS) * np.cos(np.pi * np.arange(1, _TERMS + 1)[:, None] * (np.arange(_BANDS) + 0.5) / _BANDS)
_VOICED = (np.arange(_WINDOW // 2 + 1) * RATE / _WINDOW < 1200) & (np.arange(_WINDOW // 2 + 1) > 2)


def _power(window: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(window * _SHAPE)) ** 2


def cepstrum(window: np.ndarray) -> np.ndarray:
    """512 samples -> float64 [12]. Loudness does not change it."""
    bands = _BANK @ _power(np.append(window[0], window[1:] - 0.97 * window[:-1]))
    return _COSINES @ np.log(bands + _FLOOR * bands.max() + 1e-12)


class Visemes:
    """One microphone. `silence`, in 0..1, is of the last frame."""

    def __init__(self) -> None:
        self._past = np.zeros(_WINDOW)
        self._rest = np.zeros(0)
        self._scores = np.zeros(len(VISEMES))
        self._noise = -60.0
        self._weights = dict.fromkeys(VISEMES, 0.0)
        self.silence = 1.0

    def feed(self, pcm: bytes | np.ndarray) -> dict[str, float]:
        """16 kHz, one channel: 16-bit little-endian bytes or int16, or floats in -1..1, of any length up to a second.

        Gives mouthA .. mouthO after the last whole frame of 160 samples; with `silence` they sum to 1. Broken audio
        raises InputError, and the next counts again.
        """
        self._rest = np.concatenate([self._rest, _samples(pcm)])
        while len(self._rest) >= FRAME:
            self._step(self._rest[:FRAME])
            self._rest = self._rest[FRAME:]
        return dict(self._weights)

    def _step(self, frame: np.ndarray) -> None:
        self._past = np.concatenate([self._past[FRAME:], frame])
        scores = _DISCRIMINANTS[:, :-1] @ cepstrum(self._past) + _DISCRIMINANTS[:, -1]
        mean, self._scores = (scores + self._scores) / 2, scores
        likely = np.exp((mean - mean.max()) / _BLUR)
        level = 10 * math.log10(float(_power(self._past)[_VOICED].sum()) / (_WINDOW * _SHAPE.sum()) * 2 + 1e-12)
        self._noise = min(max(min(level, self._noise + _RISE), _QUIETEST), _LOUDEST)
        voice = 1 / (1 + math.exp(-min(max(level - self._noise - _ABOVE, -60.0), 60.0) / 2))
        self.silence = 1 - voice
        self._weights = dict(zip(VISEMES, (voice * likely / likely.sum()).tolist(), strict=True))


def _samples(pcm: bytes | np.ndarray) -> np.ndarray:
    if isinstance(pcm, bytes):
        if len(pcm) % 2:
            raise InputError("microphone", "16-bit audio has an even number of bytes", len(pcm))
        pcm = np.frombuffer(pcm, "<i2")
    if pcm.ndim != 1 or len(pcm) > _LONGEST or pcm.dtype.kind not in "if":
        rule = f"audio is one channel of at most {_LONGEST} int16 or floats"
        raise InputError("microphone", rule, (pcm.shape, str(pcm.dtype)))
    told = pcm.astype(np.float64) / (32768 if pcm.dtype.kind == "i" else 1)
    if not np.isfinite(told).all():
        raise InputError("microphone", "samples must be finite numbers")
    return np.clip(told, -1, 1)
