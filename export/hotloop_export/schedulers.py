"""How a checkpoint is meant to be drawn: what its scheduler file says, repaired as stock pipelines repair it on load.

The repairs are those of diffusers 0.42 (`StableDiffusionPipeline.__init__`, `...Img2ImgPipeline`,
`...InpaintPipeline`), which the files of old checkpoints need.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hotloop import samplers
from hotloop.samplers.schedulers import PREDICT_NOISE, config_of, sampler_of

__all__ = ["Manner", "manner", "repair_scheduler", "repair_unet", "scheduler_for_name"]

_AS_STOCK = "as stock pipelines do on load"
# What a scheduler's file must name for its training schedule; most classes have others of their own than any SD.
_CONSTANTS = ("beta_start", "beta_end", "beta_schedule")
_OWN_CONSTANTS = ("LCMScheduler", "TCDScheduler")  # whose classes have Stable Diffusion's
_TRAILING = ("euler", "euler_a")
_FEW = 4


@dataclass(frozen=True)
class Manner:
    """What a pipeline does when told nothing.

    defaults  sampler; num_inference_steps and guidance_scale where the files tell them, with the reason
    missed    what the sampler stands in for
    """

    defaults: Mapping[str, Any]
    reason: str | None = None
    missed: str | None = None


def manner(scheduler: Mapping[str, Any], *, guidance_embedding: bool) -> Manner:
    """The sampler of a scheduler configuration's class, and steps and guidance where the files tell the family.

    guidance_embedding: the UNet is told its guidance (`time_cond_proj_dim`).

    Turbo (Sauer et al. 2023): Euler on trailing timesteps, epsilon; consistency models (Luo et al. 2023): LCM, 8 with
    a guidance embedding; trajectory consistency (Zheng et al. 2024): TCD. All draw in few steps, without a second half.
    """
    name, missed = sampler_of(scheduler["_class_name"], config_of(scheduler))
    plain = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    defaults: dict[str, Any] = {"sampler": name}
    reason = None
    if name == "lcm":
        defaults |= {"num_inference_steps": _FEW, "guidance_scale": 8.0 if guidance_embedding else 1.0}
        reason = "a latent consistency model"
    elif name == "tcd":
        defaults |= {"num_inference_steps": _FEW, "guidance_scale": 0.0}
        reason = "a trajectory consistency model"
    elif name in _TRAILING and plain and not missed and scheduler.get("timestep_spacing") == "trailing":
        defaults |= {"num_inference_steps": _FEW, "guidance_scale": 0.0}
        reason = "Euler on trailing timesteps: a turbo model"
    return Manner(defaults, reason, missed)


def repair_scheduler(
    scheduler: Mapping[str, Any], *, cls: str | None = None, inpaint: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """(the configuration that stock pipelines draw with, a line for each repair that changes an image).

    cls      the class that model_index.json names, which counts before the file's own
    inpaint  the checkpoint's pipeline repaints, and so never takes PNDM's Runge-Kutta steps

    `steps_offset` is always named, and so is `clip_sample`: another sampler of the checkpoint is to find them too.
    """
    named = config_of(scheduler)
    cls = cls or scheduler.get("_class_name") or "PNDMScheduler"
    name, _ = sampler_of(cls, named)
    own = samplers.options(name)
    said = []

    def repair(key: str, right: Any, wrong: bool, *, shown: bool) -> None:
        if wrong and shown:
            said.append(f"scheduler: {key} {_shown(named.get(key))} -> {_shown(right)}, {_AS_STOCK}")
        if wrong or key not in named:
            named[key] = right

    offset, clips = (named.get(key, own.get(key)) for key in ("steps_offset", "clip_sample"))
    leads = named.get("timestep_spacing", own.get("spacing")) == "leading"  # else the offset has no effect
    repair("steps_offset", 1, offset not in (1, None), shown="steps_offset" in own and leads)
    repair("clip_sample", False, clips is True, shown="clip_sample" in own)
    if cls == "PNDMScheduler" and inpaint:
        repair("skip_prk_steps", True, not named.get("skip_prk_steps", False), shown=True)
    ends_at_zero = named.get("final_sigmas_type", "zero") == "zero"
    if "algorithm_type" in own and named.get("algorithm_type") in PREDICT_NOISE and ends_at_zero:
        # Stock itself refuses the form that predicts noise where the run ends at sigma 0.
        right = own["algorithm_type"]
        said.append(f"scheduler: algorithm_type {named['algorithm_type']} -> {right}, whose runs can end at sigma 0")
        named["algorithm_type"] = right
    absent = [key for key in _CONSTANTS if key not in named]
    if absent and named.get("trained_betas") is None and cls not in _OWN_CONSTANTS:
        rule = f"scheduler_config.json does not name {', '.join(absent)}"
        warnings.warn(f"[export] {rule}: taking the family's, not those of {cls}", stacklevel=4)
    kept = {key: value for key, value in scheduler.items() if key == "_diffusers_version"}
    return {"_class_name": cls, **kept, **named}, said


def repair_unet(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the UNet's configuration, repairs): before diffusers 0.9 the default size was often that of the training."""
    cells, version = config.get("sample_size"), re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version", "")))
    old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    if old and isinstance(cells, int) and cells < 64:
        return {**config, "sample_size": 64}, [f"unet: sample_size {cells} -> 64, {_AS_STOCK}"]
    return dict(config), []


def scheduler_for_name(scheduler: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The scheduler of a model whose file carries none, but a name that says how it was distilled."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    if "lcm" in words:
        return {**scheduler, "_class_name": "LCMScheduler"}
    if words & {"turbo", "lightning"}:
        return {**scheduler, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    return dict(scheduler)


def _shown(value: object) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
