"""A checkpoint is drawn as its own scheduler file says, with no argument given: against stock pipelines on one folder."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hotloop import samplers
from hotloop.bundle import Bundle, builtin
from hotloop.errors import InputError
from hotloop.evaluation.metrics import psnr
from hotloop.pipeline import Pipeline
from hotloop.samplers.schedulers import SAMPLERS, sampler_of
from hotloop_export import schedulers
from hotloop_export.recipe import DEFAULTS
from hotloop_export.sources import open_source

PROMPT = "A cute anime girl with pink hair, wearing a school uniform, smiling"
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
STEPS = 6

# A scheduler's file as checkpoints have it, beyond the constants of training; the sampler it must be drawn with.
FILES: dict[str, tuple[str, dict[str, Any], str]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}, "plms"),
    "pndm-offset-0": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 0}, "plms"),
    "pndm-bare": ("PNDMScheduler", {}, "pndm"),
    "ddim": ("DDIMScheduler", {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}, "ddim"),
    "ddim-bare": ("DDIMScheduler", {}, "ddim"),
    "ddim-clips": ("DDIMScheduler", {"clip_sample": True, "steps_offset": 0}, "ddim"),
    "ddim-zero-snr": ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
                                        "prediction_type": "v_prediction"}, "ddim"),
    "ddpm": ("DDPMScheduler", {"clip_sample": True, "steps_offset": 0}, "ddpm"),
    "lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}, "lms"),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 0}, "euler"),
    "turbo": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "steps_offset": 1}, "euler"),
    "euler-zero-snr": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
                                                  "prediction_type": "v_prediction"}, "euler"),
    "euler-a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "euler_a"),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, "heun"),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, "kdpm2"),
    "dpmpp-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "dpmpp_2m"),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
    "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "leading"}, "unipc"),
    "lcm": ("LCMScheduler", {"original_inference_steps": 40}, "lcm"),
    "tcd": ("TCDScheduler", {}, "tcd"),
}  # fmt: skip
FEW = {"turbo", "euler-a", "lcm", "tcd"}


def linked(folder: Path, *parts: str) -> Path:
    """The built-in model's files once more, as a checkpoint whose other files can be written."""
    for part in parts or ("text_encoder", "tokenizer", "unet", "vae"):
        (folder / part).mkdir(parents=True)
        for file in (builtin() / part).iterdir():
            os.link(file, folder / part / file.name)
    return folder


def write_scheduler(folder: Path, name: str, config: Mapping[str, Any], *, index: str | None = None) -> Path:
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": name, **TRAINED, **config}))
    told = json.loads((builtin() / "model_index.json").read_text()) | {"scheduler": ["diffusers", index or name]}
    (folder / "model_index.json").write_text(json.dumps(told))
    return folder


def exported(folder: Path, pipe: Any) -> tuple[Pipeline, Any]:
    """What an export of the folder draws when told nothing, on the built-in model's engines; and the source."""
    for name in ("text_encoder", "prompt", "time", "unet", "vae_decoder"):
        pipe.networks[name]
    source = open_source(folder)
    (folder / "scheduler/scheduler_config.json").unlink()  # what follows must come from what is written
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(source.scheduler))
    manifest = {**pipe.bundle.manifest, "defaults": {**DEFAULTS, **source.manner.defaults}}
    bundle = Bundle(folder, manifest, pipe.bundle.family)
    return Pipeline(bundle, engine=pipe.engine, given=pipe.networks.opened()), source


def drawn_by(stock: Any, folder: Path, **options: Any) -> Image.Image:
    """The stock pipeline on the folder, its modules those that are loaded already."""
    import diffusers
    import torch

    shared = {key: stock.txt2img.components[key] for key in ("unet", "vae", "text_encoder", "tokenizer")}
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, **shared, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    image: Image.Image = pipeline(PROMPT, generator=torch.Generator().manual_seed(7), **options).images[0]
    return image


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", FILES)
def test_a_checkpoint_draws_by_its_own_scheduler_when_told_nothing(
    pipe: Any, stock: Any, tmp_path: Path, kind: str
) -> None:
    name, config, sampler = FILES[kind]
    folder = write_scheduler(linked(tmp_path / "checkpoint"), name, config)
    # Noise in every row magnifies rounding under guidance, and so does a first signal of nearly nothing.
    guidance = 1.0 if kind in {"lcm", "tcd"} or "zero-snr" in kind else 2.5
    options = dict(num_inference_steps=STEPS, guidance_scale=guidance)
    theirs = drawn_by(stock, folder, **options)
    ours, source = exported(folder, pipe)
    assert source.manner.defaults["sampler"] == sampler and source.manner.missed is None
    assert (source.manner.defaults.get("num_inference_steps", 50) <= 4) == (kind in FEW)
    eta = {"sampler_options": {"eta": 0.0}} if sampler == "tcd" else {}  # stock pipelines hand their own eta, 0, to TCD
    result = ours.txt2img(PROMPT, seed=7, prompt_syntax="plain", **options, **eta)
    assert result.settings["sampler"] == sampler
    print(f"{kind}: {psnr(np.asarray(result.images[0]), np.asarray(theirs)):.1f} dB")
    assert psnr(np.asarray(result.images[0]), np.asarray(theirs)) >= 50
