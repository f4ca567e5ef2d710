"""A checkpoint is drawn as its own scheduler file says, with nothing told: against stock pipelines on one folder."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import hotloop
from hotloop import samplers
from hotloop.bundle import Bundle, builtin
from hotloop.denoiser import guidance_embedding
from hotloop.errors import BundleError, InputError
from hotloop.evaluation.metrics import psnr
from hotloop.pipeline import Pipeline
from hotloop.samplers.schedulers import SAMPLERS, STAND_INS, sampler_of
from hotloop_export import schedulers
from hotloop_export.bundle import _check_manner, write_bundle
from hotloop_export.recipe import DEFAULTS, Recipe, Target
from hotloop_export.sources import open_source
from hotloop_export.store import Store

PROMPT = "A cute anime girl with pink hair, wearing a school uniform, smiling"
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
STEPS = 6
WHITE = Image.new("L", (64, 64), 255)

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


def copied(folder: Path, *parts: str) -> Path:
    """The built-in model's files once more, as a checkpoint whose other files can be written."""
    for part in parts or ("text_encoder", "tokenizer", "unet", "vae"):
        (folder / part).mkdir(parents=True)
        for file in (builtin() / part).iterdir():
            shutil.copyfile(file, folder / part / file.name)
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
    folder = write_scheduler(copied(tmp_path / "checkpoint"), name, config)
    # Noise in every row magnifies rounding under guidance, and so does a first signal of nearly nothing.
    guidance = 1.0 if kind in {"lcm", "tcd"} or "zero-snr" in kind else 2.5
    options = dict(num_inference_steps=STEPS, guidance_scale=guidance)
    theirs = drawn_by(stock, folder, **options)
    ours, source = exported(folder, pipe)
    assert source.manner.defaults["sampler"] == sampler and source.manner.missed is None
    assert (source.manner.defaults.get("num_inference_steps", 50) <= 4) == (kind in FEW)
    if sampler == "pndm":  # stock pipelines for repainting never take its Runge-Kutta steps
        assert ours.inpaint(PROMPT, image=theirs, mask_image=WHITE, num_inference_steps=1).settings["sampler"] == "plms"
    eta = {"sampler_options": {"eta": 0.0}} if sampler == "tcd" else {}  # stock pipelines hand their own eta, 0, to TCD
    result = ours.txt2img(PROMPT, seed=7, prompt_syntax="plain", **options, **eta)
    assert result.settings["sampler"] == sampler
    assert np.std(np.asarray(theirs)) > 5, "a picture, not a plain colour"
    assert psnr(np.asarray(result.images[0]), np.asarray(theirs)) >= 50


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", FILES)
def test_a_bundle_of_a_checkpoint_draws_as_the_stock_pipeline_on_its_folder(
    stock: Any, tmp_path: Path, kind: str
) -> None:
    """The same through the whole export, with nothing told but the seed wherever stock pipelines' habits hold."""
    name, config, sampler = FILES[kind]
    folder = write_scheduler(copied(tmp_path / "checkpoint"), name, config)
    store = Store(tmp_path / "cache")
    bundle = write_bundle(Recipe(folder, targets=(Target("native", "fp32"),)), tmp_path / "bundle", store=store).path
    ours = hotloop.load(bundle)
    eta = {"sampler_options": {"eta": 0.0}} if sampler == "tcd" else {}
    usual = {"num_inference_steps": 20, "guidance_scale": 1.0} if kind not in FEW else {}
    result = ours.txt2img(PROMPT, seed=7, prompt_syntax="plain", **usual, **eta)
    told = {key: result.settings[key] for key in ("num_inference_steps", "guidance_scale")}
    theirs = drawn_by(stock, folder, **told)
    assert psnr(np.asarray(result.images[0]), np.asarray(theirs)) >= 50


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The built-in model with a guidance embedding, as full consistency checkpoints have one: folder, bundle, what the
    export said."""
    import torch
    from safetensors.torch import load_file, save_file

    place = tmp_path_factory.mktemp("told")
    folder = write_scheduler(copied(place / "checkpoint", "text_encoder", "tokenizer", "vae"), "LCMScheduler", {})
    (folder / "unet").mkdir()
    config = json.loads((builtin() / "unet/config.json").read_text()) | {"time_cond_proj_dim": 24}
    (folder / "unet/config.json").write_text(json.dumps(config))
    file = "unet/diffusion_pytorch_model.safetensors"
    tensors = {key: value.float() for key, value in load_file(builtin() / file).items()}
    made = torch.randn(config["block_out_channels"][0], 24, generator=torch.Generator().manual_seed(3))
    tensors["time_embedding.cond_proj.weight"] = made * 0.2
    save_file(tensors, folder / file, metadata={"format": "pt"})
    said: list[str] = []
    recipe = Recipe(folder, targets=(Target("native", "fp32"),))
    bundle = write_bundle(recipe, place / "bundle", store=Store(place / "cache"), say=said.append).path
    return folder, bundle, said


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("images", [1, 2])
def test_a_unet_that_is_told_its_guidance_is_drawn_with_it(told: Any, stock: Any, images: int) -> None:
    import diffusers

    folder, bundle, said = told
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    ours = hotloop.load(bundle)
    assert ours.bundle.manifest["parity"]["images"]["steps"] == 4, "judged by as many steps as it is drawn in"
    assert "defaults: num_inference_steps 4, guidance_scale 8.0, sampler lcm (a latent consistency model)" in said
    drawn = {}
    for guidance in (None, 3.0):
        options = {} if guidance is None else {"guidance_scale": guidance}
        result = ours.txt2img(PROMPT, seed=7, prompt_syntax="plain", num_images_per_prompt=images, **options)
        theirs = pipeline(
            PROMPT, num_inference_steps=4, guidance_scale=guidance or 8.0, num_images_per_prompt=images,
            generator=stock.generators([7 + i for i in range(images)]), output_type="latent",
        ).images.numpy()  # fmt: skip
        assert np.abs(result.latents - theirs).max() <= 1e-3 * np.abs(theirs).max()
        drawn[guidance] = result.latents
    assert np.abs(drawn[None] - drawn[3.0]).max() > 0.1, "its guidance must show"


def test_a_bundle_whose_engine_leaves_the_guidance_out_is_refused(told: Any) -> None:
    bundle = Bundle.open(told[1], verify=False)
    manifest = json.loads(json.dumps(bundle.manifest))
    manifest["engines"][0]["groups"] = []
    stripped = Bundle(bundle.path, manifest, bundle.family)
    with pytest.raises(BundleError, match="must take timestep_cond"):
        stripped.networks(stripped.entries[0])


@pytest.mark.parametrize("width", [6, 7, 256, 512])
def test_the_guidance_embedding_is_the_stock_one(width: int) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    for guidance in (0.0, 1.0, 1.5, 7.5, 8.0):
        w = torch.tensor(guidance - 1).repeat(2)
        want = StableDiffusionPipeline.get_guidance_scale_embedding(None, w, embedding_dim=width).numpy()
        got = guidance_embedding(np.full(2, guidance), width)
        assert got.shape == want.shape and got.dtype == want.dtype
        assert np.abs(got - want).max() <= 1e-4  # angles of 7000 radians in float32


# --- What the files say, and what is done with it ---------------------------------------------------------------


def repaired(name: str, config: Mapping[str, Any], **others: Any) -> tuple[dict[str, Any], list[str]]:
    return schedulers.repair_scheduler({"_class_name": name, **TRAINED, **config}, **others)


def test_every_repair_is_said_once_and_nothing_else_is() -> None:
    config, said = repaired("DDIMScheduler", {"steps_offset": 0})
    assert (config["steps_offset"], config["clip_sample"]) == (1, False)
    assert said == ["scheduler: steps_offset 0 -> 1, as stock pipelines do on load",
                    "scheduler: clip_sample not set -> false, as stock pipelines do on load"]  # fmt: skip
    assert repaired("DDIMScheduler", config) == (config, [])
    config, said = repaired("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1})
    assert config["clip_sample"] is False and not said, "PNDM never clips, but another sampler of it must not either"
    assert repaired("EulerDiscreteScheduler", {"timestep_spacing": "trailing"})[1] == [], "an offset without effect"
    defaults = {"steps_offset": 1, "clip_sample": False, "_use_default_values": ["clip_sample", "steps_offset"]}
    assert len(repaired("DDIMScheduler", defaults)[1]) == 2, "what diffusers filled in is not what the file names"


@pytest.mark.parametrize("skip", [None, False])
def test_pndm_repaints_without_its_runge_kutta_steps(skip: bool | None) -> None:
    named = {"steps_offset": 1} | ({} if skip is None else {"skip_prk_steps": skip})
    config, said = repaired("PNDMScheduler", named, inpaint=True)
    assert schedulers.manner(config, guidance_embedding=False).defaults["sampler"] == "plms"
    assert [line.split(",")[0].split(" -> ")[1] for line in said] == ["true"]
    assert repaired("PNDMScheduler", named)[1] == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("version", ["0.6.0", "0.8.1.dev0", "0.9.0.dev0", "0.9.0", "0.10.2", None])
@pytest.mark.parametrize("cells", [32, 64, [32, 32], None])
def test_an_old_unets_size_is_repaired_as_the_stock_pipeline_does(version: str | None, cells: Any) -> None:
    import diffusers
    from diffusers.configuration_utils import FrozenDict

    config = {"sample_size": cells} | ({"_diffusers_version": version} if version else {})
    unet = SimpleNamespace(config=FrozenDict(config))
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1, 1, 1, 1)))
    pipeline = object.__new__(diffusers.StableDiffusionPipeline)
    with mock.patch.multiple(pipeline.__class__, register_modules=lambda self, **parts: None,
                             register_to_config=lambda self, **parts: None):  # fmt: skip
        diffusers.StableDiffusionPipeline.__init__(pipeline, vae, None, None, unet, None, None, None)
    stock_size = getattr(unet, "_internal_dict", config)["sample_size"]
    own, said = schedulers.repair_unet(config)
    assert own["sample_size"] == stock_size
    assert len(said) == (stock_size != cells)


def test_every_scheduler_class_of_stable_diffusion_has_a_sampler_or_a_stand_in() -> None:
    import diffusers
    from diffusers.schedulers import KarrasDiffusionSchedulers

    for kind in KarrasDiffusionSchedulers:
        name, missed = sampler_of(kind.name, {"skip_prk_steps": True})
        assert name in samplers.NAMES
        assert (missed is None) == (kind.name in SAMPLERS)
    for name in [*SAMPLERS, *STAND_INS]:
        assert hasattr(diffusers, name)
    assert sampler_of("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver"})[0] == "dpmpp_2m_sde"


def test_a_solver_of_noise_is_repaired_only_where_its_runs_cannot_end() -> None:
    """Where diffusers refuses the file itself; a class or a file that says something else is left as it is."""
    multistep = {"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                 "beta_schedule": "scaled_linear", "steps_offset": 1}  # fmt: skip
    for algorithm, right, sampler in (("dpmsolver", "dpmsolver++", "dpmpp_2m"),
                                      ("sde-dpmsolver", "sde-dpmsolver++", "dpmpp_2m_sde")):  # fmt: skip
        config, said = schedulers.repair_scheduler({**multistep, "algorithm_type": algorithm})
        assert config["algorithm_type"] == right
        assert said == [f"scheduler: algorithm_type {algorithm} -> {right}, whose runs can end at sigma 0"]
        told = {"algorithm_type": algorithm, "final_sigmas_type": "sigma_min"}
        config, said = schedulers.repair_scheduler({**multistep, **told})
        assert config["algorithm_type"] == algorithm and not said
        assert sampler_of("DPMSolverMultistepScheduler", told) == (sampler, None)
    for name, algorithm in (("DEISMultistepScheduler", "deis"), ("DPMSolverSinglestepScheduler", "dpmsolver++")):
        config, said = schedulers.repair_scheduler({**multistep, "_class_name": name, "algorithm_type": algorithm})
        assert config["algorithm_type"] == algorithm and not said


def write(folder: Path, name: str, config: Mapping[str, Any]) -> Recipe:
    return Recipe(write_scheduler(copied(folder), name, config), targets=(Target("native", "fp32"),))


def test_a_class_without_a_sampler_is_a_warning_that_names_what_stands_in(tmp_path: Path) -> None:
    recipe = write(tmp_path / "checkpoint", "KDPM2AncestralDiscreteScheduler", {})
    source = open_source(recipe.source)
    with pytest.warns(UserWarning, match="no sampler for KDPM2AncestralDiscreteScheduler: euler_a stands in"):
        _check_manner(recipe, source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_manner(replace(recipe, defaults={"sampler": "euler_a"}), source)


def test_the_class_that_the_index_names_counts_as_in_stock_pipelines(tmp_path: Path) -> None:
    folder, config = copied(tmp_path / "checkpoint"), {"skip_prk_steps": True, "steps_offset": 1}
    write_scheduler(folder, "PNDMScheduler", config, index="EulerDiscreteScheduler")
    source = open_source(folder)
    assert source.manner.defaults["sampler"] == "euler"
    assert source.scheduler["_class_name"] == "EulerDiscreteScheduler"


def test_what_a_table_cannot_do_is_refused_before_the_work(tmp_path: Path) -> None:
    recipe = write(tmp_path / "checkpoint", "DDIMScheduler", {"thresholding": True})
    with pytest.raises(InputError, match=r"thresholding.*not linear.*name another \(--sampler") as caught:
        write_bundle(recipe, tmp_path / "bundle", store=Store(tmp_path / "cache"))
    assert "\n" not in str(caught.value) and not (tmp_path / "bundle").exists()
    _check_manner(replace(recipe, defaults={"sampler": "euler"}), open_source(recipe.source))


def test_constants_that_a_file_leaves_out_are_the_familys_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="does not name beta_end: taking the family's, not those of DDIMScheduler"):
        schedulers.repair_scheduler(
            {key: value for key, value in TRAINED.items() if key != "beta_end"}, cls="DDIMScheduler"
        )
    assert repaired("LCMScheduler", {})[1] == []
