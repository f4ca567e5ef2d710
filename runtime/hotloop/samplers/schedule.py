"""The noise schedule a network was trained on, and the ways to space timesteps and sigmas over it.

Values are rounded to float32 exactly where diffusers rounds them, then kept in float64: timesteps that are
found by inverting sigma and truncated to an integer would otherwise fall on the wrong side of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import spec
from ..errors import InputError

__all__ = [
    "PREDICTIONS", "SPACINGS", "Schedule", "exponential", "karras", "noise_levels", "sigma_to_t", "spaced",
    "zero_terminal_snr",
]  # fmt: skip

Array = NDArray[np.float64]

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
_LONGEST = 1_000_000  # training timesteps; beyond it is a mistake, and memory


@dataclass(frozen=True, eq=False)
class Schedule:
    """Signal and noise level at every training timestep: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps.

    num_train_timesteps  T
    alphas_cumprod       a_t, float64 [T], falling
    prediction_type      what the network's output is: epsilon, v_prediction or sample (x_0)
    config               the scheduler configuration it came from; samplers take their defaults from it
    """

    num_train_timesteps: int
    alphas_cumprod: Array
    prediction_type: str
    config: Mapping[str, Any]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], family_schedule: spec.ScheduleConstants | None = None) -> Schedule:
        """From a diffusers scheduler_config.json as it lies in a bundle.

        Keys that diffusers filled in by itself (`_use_default_values`) are dropped, as its `from_config` does.
        Training constants that the file does not name are the family's. Raises InputError, naming the key, for a
        value out of range or of the wrong type.
        """
        filled_in = config.get("_use_default_values", ())
        if not isinstance(filled_in, (list, tuple)):
            raise InputError("schedule._use_default_values", "must be a list of names", filled_in)
        named = {k: v for k, v in config.items() if k not in filled_in and not k.startswith("_")}
        values = {**asdict(family_schedule or spec.ScheduleConstants()), **named}
        steps, prediction = values["num_train_timesteps"], values["prediction_type"]
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _LONGEST:
            raise InputError("schedule.num_train_timesteps", f"must be a whole number from 1 to {_LONGEST}", steps)
        if prediction not in PREDICTIONS:
            raise InputError("schedule.prediction_type", "must be one of " + ", ".join(PREDICTIONS), prediction)
        alphas = (np.float32(1) - _betas(values)).astype(np.float64)
        cumprod = np.cumprod(alphas).astype(np.float32).astype(np.float64)
        cumprod.setflags(write=False)
        return cls(steps, cumprod, prediction, MappingProxyType(named))

    @cached_property
    def sigmas(self) -> Array:
        """sqrt((1 - a_t) / a_t), float64 [T], rising: the noise level when the signal is scaled to 1."""
        return noise_levels(self.alphas_cumprod)


def _betas(values: Mapping[str, Any]) -> NDArray[np.float32]:
    """Variance added at each training step, float32 [T]."""
    kind, steps = values["beta_schedule"], values["num_train_timesteps"]
    if values.get("trained_betas") is not None:
        betas = _trained(values["trained_betas"], steps)
    elif kind == "linear":
        betas = _linspace32(_beta(values, "beta_start"), _beta(values, "beta_end"), steps)
    elif kind == "scaled_linear":
        betas = _linspace32(_beta(values, "beta_start") ** 0.5, _beta(values, "beta_end") ** 0.5, steps) ** 2
    elif kind == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, eq. 17
        angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2
        alpha_bar = np.cos(angle) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2"
        raise InputError("schedule.beta_schedule", f"must be one of {known}", kind)
    if not (np.all(betas > 0) and np.all(betas < 1)):
        raise InputError("schedule", "betas must lie between 0 and 1", [float(betas.min()), float(betas.max())])
    return betas


def _beta(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if not isinstance(value, (int, float)) or not 0 < value < 1:  # so no bool, and false for NaN
        raise InputError(f"schedule.{key}", "must be a number between 0 and 1", value)
    return float(value)


def _trained(value: object, steps: int) -> NDArray[np.float32]:
    try:
        betas = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        betas = np.empty(0, object)
    if betas.shape != (steps,) or betas.dtype.kind not in "iuf":
        raise InputError("schedule.trained_betas", f"must hold {steps} numbers", value)
    return betas.astype(np.float32)


def _linspace32(start: float, stop: float, count: int) -> NDArray[np.float32]:
    """Evenly spaced float32, counted from the nearer end and rounded once: bit-equal to torch.linspace."""
    first, last = np.float32(start), np.float32(stop if count > 1 else start)
    step = np.float64((last - first) / np.float32(max(count - 1, 1)))
    i = np.arange(count)
    return np.where(i < count // 2, first + step * i, last - step * (count - 1 - i)).astype(np.float32)


def noise_levels(alphas_cumprod: Array) -> Array:
    """sqrt((1 - a) / a), computed in float32."""
    a = alphas_cumprod.astype(np.float32)
    return np.sqrt((np.float32(1) - a) / a).astype(np.float64)


def zero_terminal_snr(alphas_cumprod: Array) -> Array:
    """Shift and scale sqrt(a_t) so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    return np.asarray(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2, np.float64)


def spaced(kind: str, steps: int, num_train_timesteps: int, *, offset: int = 0) -> Array:
    """`steps` timesteps from noisy to clean, unrounded for linspace (Lin et al. 2023, table 2). float64 [steps]."""
    if kind == "linspace":
        return np.linspace(0, num_train_timesteps - 1, steps, dtype=np.float64)[::-1]
    if kind == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (num_train_timesteps // steps) + offset
    if kind == "trailing":
        # arange can run one past the end by rounding.
        return np.arange(num_train_timesteps, 0, -num_train_timesteps / steps)[:steps].round() - 1
    raise InputError("schedule.spacing", "must be one of " + ", ".join(SPACINGS), kind)


def karras(sigma_max: float, sigma_min: float, steps: int, *, rho: float = 7.0) -> Array:
    """Sigmas evenly spaced in sigma^(1/rho), falling (Karras et al. 2022, eq. 5). float64 [steps]."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.asarray((high + ramp * (low - high)) ** rho, np.float64)


def exponential(sigma_max: float, sigma_min: float, steps: int) -> Array:
    """Sigmas evenly spaced in log sigma, falling. float64 [steps]."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))


def sigma_to_t(sigma: Array, train_sigmas: Array) -> Array:
    """The (fractional) timestep with this sigma: log-linear between training timesteps, clipped to them."""
    log_train = np.log(train_sigmas.astype(np.float32)).astype(np.float64)
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    low = np.clip(np.searchsorted(log_train, log_sigma, side="right") - 1, 0, len(log_train) - 2)
    w = np.clip((log_train[low] - log_sigma) / (log_train[low] - log_train[low + 1]), 0, 1)
    return (1 - w) * low + w * (low + 1)
