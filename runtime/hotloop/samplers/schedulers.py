"""The samplers by the names of diffusers' scheduler classes: what a checkpoint's scheduler_config.json asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PREDICT_NOISE", "SAMPLERS", "STAND_INS", "config_of", "sampler_of"]

# class -> the sampler that draws as it does. PNDM and the multistep DPM-Solver are two each: `sampler_of` tells which.
SAMPLERS: Mapping[str, str] = {
    "DDIMScheduler": "ddim", "DDIMParallelScheduler": "ddim", "DDPMScheduler": "ddpm", "DDPMParallelScheduler": "ddpm",
    "PNDMScheduler": "plms", "LMSDiscreteScheduler": "lms", "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a", "HeunDiscreteScheduler": "heun", "KDPM2DiscreteScheduler": "kdpm2",
    "DPMSolverMultistepScheduler": "dpmpp_2m", "UniPCMultistepScheduler": "unipc", "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}  # fmt: skip
# class -> the nearest sampler, of the same kind (with noise in the steps or without) and order.
STAND_INS: Mapping[str, str] = {
    "DPMSolverSinglestepScheduler": "dpmpp_2m", "DEISMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_2m_sde", "SASolverScheduler": "dpmpp_2m_sde",
    "KDPM2AncestralDiscreteScheduler": "euler_a", "IPNDMScheduler": "plms",
}  # fmt: skip
_ELSE = "plms"
# Algorithms that stock refuses, too, where the run is to end at sigma 0.
PREDICT_NOISE = ("dpmsolver", "sde-dpmsolver")
_ALGORITHMS = {"dpmsolver++": "dpmpp_2m", "deis": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}


def sampler_of(scheduler: str, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """(sampler, None), or (the sampler that stands in, what it stands in for in words).

    scheduler: a class of diffusers; config: its configuration as the file names it, so that what the file leaves out
    is what the class itself has.
    """
    if scheduler == "PNDMScheduler" and not config.get("skip_prk_steps", False):
        return "pndm", None
    if scheduler == "DPMSolverMultistepScheduler":
        algorithm = config.get("algorithm_type", "dpmsolver++")
        near = "dpmpp_2m_sde" if str(algorithm).startswith("sde") else "dpmpp_2m"
        if algorithm in PREDICT_NOISE and config.get("final_sigmas_type") == "sigma_min":
            return near, None
        if algorithm not in _ALGORITHMS:
            return near, f"{scheduler} with algorithm_type {algorithm}"
        return _ALGORITHMS[algorithm], None
    if scheduler in SAMPLERS:
        return SAMPLERS[scheduler], None
    return STAND_INS.get(scheduler, _ELSE), scheduler


def config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler configuration really names: without private keys and those that diffusers filled in by itself
    (`_use_default_values`), as its `from_config` reads it."""
    filled_in = config.get("_use_default_values", ())
    return {key: value for key, value in config.items() if key not in filled_in and not key.startswith("_")}
