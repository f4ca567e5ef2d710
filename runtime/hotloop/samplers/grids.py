"""What a sampler compiles from: the schedule, N, the start, its settled options, and the grids its steps lie on.

Options default to what the diffusers scheduler would have that `from_config` makes from the bundle's configuration.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import InputError
from .schedule import SPACINGS, Schedule, exponential, karras, noise_levels, sigma_to_t, spaced, zero_terminal_snr
from .table import Level, Vector, X, outputs

__all__ = ["VE", "Grid", "Solver", "checked"]


def _one_of(*allowed: object) -> tuple[str, Callable[[Any], bool]]:
    return "must be one of " + ", ".join(map(str, allowed)), lambda value: value in allowed


def _within(low: float, high: float) -> tuple[str, Callable[[Any], bool]]:
    return f"must be a number from {low} to {high}", lambda v: _number(v) and low <= v <= high


def _whole(low: int, high: int) -> tuple[str, Callable[[Any], bool]]:
    return f"must be a whole number from {low} to {high}", lambda v: _integer(v) and low <= v <= high


def _number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _sequence(value: object) -> bool:
    return isinstance(value, (list, tuple))


_BOOLEAN = ("must be True or False", lambda value: isinstance(value, bool))
# A rule with one allowed value names what diffusers can do and a table cannot (or nobody uses): refused, not ignored.
_NOT_LINEAR = ("must be False: it is not linear, so it cannot be compiled", lambda value: not value)
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "spacing": _one_of(*SPACINGS),
    "sigmas": _one_of("default", "karras", "exponential"),
    "steps_offset": _whole(0, 1000),
    "eta": _within(0, 1),
    "history": _one_of("own", "diffusers"),
    "order": _whole(1, 4),
    "solver_order": _whole(1, 3),
    "solver_type": _one_of("midpoint", "heun", "bh1", "bh2", "logrho"),
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "algorithm_type": _one_of("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis"),
    "variance_type": _one_of("fixed_small", "fixed_small_log", "fixed_large"),
    "set_alpha_to_one": _BOOLEAN,
    "lower_order_final": _BOOLEAN,
    "euler_at_final": _BOOLEAN,
    "rescale_betas_zero_snr": _BOOLEAN,
    "disable_corrector": ("must be a list of step numbers", lambda v: _sequence(v) and all(map(_integer, v))),
    "original_inference_steps": _whole(1, 100_000),
    "timestep_scaling": _within(0, 1e9),
    "clip_sample": _NOT_LINEAR,
    "thresholding": _NOT_LINEAR,
    "interpolation_type": _one_of("linear"),
    "timestep_type": _one_of("discrete"),
    "predict_x0": _one_of(True),
    "use_lu_lambdas": _one_of(False),
    "use_flow_sigmas": _one_of(False),
    "lambda_min_clipped": _one_of(-math.inf),
}


@dataclass(frozen=True, eq=False)
class VE:
    """Variance-exploding form: x = x_0 + sigma eps, the network sees x / sqrt(sigma^2 + 1) (Karras et al. 2022).

    timesteps [N], sigmas [N + 1] (the last is where the run ends), init_scale for pure noise.
    """

    timesteps: Vector
    sigmas: Vector
    init_scale: float
    prediction: str

    def at(self, i: int) -> dict[str, Any]:
        """Level, input scale and the derivative dx/dsigma = (x - x_0) / sigma of a row that sits on sigma i."""
        return {"level": Level(1.0, self.sigmas[i]), **self.on(self.sigmas[i])}

    def on(self, sigma: float) -> dict[str, Any]:
        """Input scale and derivative at any sigma."""
        c = (sigma**2 + 1) ** -0.5
        _, eps = outputs(self.prediction, Level(c, sigma * c), x=c * X)
        return {"c_in": c, "d": eps}


@dataclass(frozen=True, eq=False)
class Solver:
    """Variance-preserving form of the exponential integrators: x = alpha x_0 + sigma eps, lambda = log(alpha / sigma).

    timesteps [N]; alpha, sigma, lam [N + 1] (the last is where the run ends; lam is infinite where sigma is 0).
    """

    timesteps: Vector
    alpha: Vector
    sigma: Vector
    lam: Vector
    prediction: str

    def at(self, i: int, *, noise: bool = False) -> dict[str, Any]:
        """Level of row i, and d: x_0, or the noise."""
        level = Level(self.alpha[i], self.sigma[i])
        return {"level": level, "d": outputs(self.prediction, level)[noise]}


@dataclass(frozen=True, eq=False)
class Grid:
    """What a sampler compiles from: schedule, N = steps, start, and its options: `grid["eta"]`."""

    sampler: str
    schedule: Schedule
    steps: int
    start: int
    options: Mapping[str, Any]

    def __getitem__(self, option: str) -> Any:
        return self.options[option]

    @property
    def indices(self) -> range:
        """The steps to run: start..N-1."""
        return range(self.start, self.steps)

    @property
    def stride(self) -> int:
        """T // N, the distance diffusers' DDIM and PNDM assume between timesteps whatever the spacing."""
        return self.schedule.num_train_timesteps // self.steps

    def refuse(self, option: str, rule: str, got: object) -> InputError:
        return InputError(f"samplers.{self.sampler}.{option}", rule, got)

    @cached_property
    def alphas_cumprod(self) -> Vector:
        """a_t with the terminal signal removed if the options ask for it."""
        a = self.schedule.alphas_cumprod
        return zero_terminal_snr(a) if self.options.get("rescale_betas_zero_snr") else a

    def level(self, t: int, *, final: float | None = None) -> Level:
        """(sqrt(a_t), sqrt(1 - a_t)); before the first timestep (t < 0) a is `final`."""
        a = self.alpha_cumprod(t, final=final)
        return Level(math.sqrt(a), math.sqrt(1 - a))

    def alpha_cumprod(self, t: int, *, final: float | None = None) -> float:
        """a_t, or `final` before the first timestep."""
        if t < 0 and final is not None:
            return final
        return float(self.alphas_cumprod[t])

    @property
    def final_alpha(self) -> float:
        """a before the first timestep: 1, or a_0 where set_alpha_to_one is off."""
        return 1.0 if self["set_alpha_to_one"] else float(self.alphas_cumprod[0])

    def timesteps(self) -> list[int]:
        """N whole timesteps, falling."""
        T = self.schedule.num_train_timesteps
        t = spaced(self["spacing"], self.steps, T, offset=self["steps_offset"]).round().astype(int)
        if t[0] >= T:
            raise self.refuse("steps", f"with steps_offset {self['steps_offset']} must stay below {T}", self.steps)
        return t.tolist()

    def ve(self, *, round_karras: bool = False) -> VE:
        """The sigma grid of the Euler, Heun, KDPM2 and K-LMS schedulers."""
        spacing, train = self["spacing"], self.train_sigmas
        t = spaced(spacing, self.steps, len(train), offset=self["steps_offset"]).astype(np.float32).astype(np.float64)
        sigma = np.interp(t, np.arange(len(train)), train)
        t, sigma = self._respaced(t, sigma, sigma[0], sigma[-1], round_karras)
        sigma = self._ended(sigma)
        top = sigma.max()
        init_scale = top if spacing in ("linspace", "trailing") else math.hypot(top, 1)
        return VE(t, sigma, init_scale, self.schedule.prediction_type)

    def solver(self, *, round_karras: bool = True) -> Solver:
        """The grid of the DPM-Solver and UniPC schedulers: N of N + 1 points, whole timesteps."""
        spacing, train = self["spacing"], self.train_sigmas
        points = self.steps if spacing == "trailing" else self.steps + 1
        if points > len(train):
            raise self.refuse("steps", f"with {spacing} spacing must be at most {len(train) - 1}", self.steps)
        t = spaced(spacing, points, len(train))[: self.steps].round()
        t += self["steps_offset"] if spacing == "leading" else 0
        sigma = np.interp(t, np.arange(len(train)), train)
        t, sigma = self._respaced(t, sigma, train[-1], train[0], round_karras)
        sigma = self._ended(sigma)
        alpha = (sigma**2 + 1) ** -0.5
        lam = -np.log(sigma)  # log(alpha) - log(alpha sigma)
        return Solver(np.trunc(t), alpha, sigma * alpha, lam, self.schedule.prediction_type)

    @cached_property
    def train_sigmas(self) -> Vector:
        a = self.alphas_cumprod.copy()
        if a[-1] == 0:
            a[-1] = 2.0**-24  # diffusers' stand-in for no signal: sigma = 4096
        return noise_levels(a)

    def _respaced(self, t: Vector, sigma: Vector, top: float, bottom: float, whole: bool) -> tuple[Vector, Vector]:
        """Karras or exponential sigmas between top and bottom, and the timesteps at which the network knows them."""
        curve = {"karras": karras, "exponential": exponential}.get(self.options.get("sigmas", "default"))
        if curve is None:
            return t, sigma
        sigma = curve(self._bound("sigma_max", top), self._bound("sigma_min", bottom), self.steps)
        t = sigma_to_t(sigma, self.train_sigmas)
        return (t.round() if whole and curve is karras else t), sigma

    def _bound(self, key: str, own: float) -> float:
        """The configuration's, where it names one."""
        value = self.schedule.config.get(key)
        if value is None:
            return float(own)
        if not _number(value) or not 0 < value < 1e9:
            raise self.refuse(key, "must be a number above 0", value)
        return float(value)

    def _ended(self, sigma: Vector) -> Vector:
        """The sigmas with the one the run ends at, rounded as diffusers keeps them."""
        last = self.train_sigmas[0] if self.options.get("final_sigmas_type") == "sigma_min" else 0.0
        return np.append(sigma, last).astype(np.float32).astype(np.float64)


def checked(
    name: str, schedule: Schedule, steps: int, start: int, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> Grid:
    """Checks everything a caller can get wrong and settles every option."""
    place, last = f"samplers.{name}", schedule.num_train_timesteps
    if not _integer(steps) or not 1 <= steps <= last:
        raise InputError(f"{place}.steps", f"must be a whole number from 1 to {last}", steps)
    if not _integer(start) or not 0 <= start < steps:
        raise InputError(f"{place}.start", f"must be a whole number from 0 to steps - 1 = {steps - 1}", start)
    for key in given:
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=2, cutoff=0.5)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise InputError(place, f"options are {', '.join(defaults)}{hint}", key)
    settled = {key: given.get(key, _configured(schedule.config, key, default)) for key, default in defaults.items()}
    for key, value in settled.items():
        rule, holds = _RULES.get(key, ("", lambda _: True))
        if not holds(value):
            raise InputError(f"{place}.{key}", rule, value)
    return Grid(name, schedule, operator.index(steps), operator.index(start), settled)


def _configured(config: Mapping[str, Any], key: str, default: object) -> object:
    """What the bundle's scheduler configuration says of an option, else the default."""
    if key == "spacing":
        return config.get("timestep_spacing", default)
    if key == "sigmas":
        kinds = [kind for kind in ("karras", "exponential", "beta") if config.get(f"use_{kind}_sigmas")]
        return kinds[0] if kinds else default
    return config.get(key, default)
