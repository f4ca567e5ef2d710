"""hires: a second, larger pass. Stock img2img on the enlarged first one, close to it, without seams; and the words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import hotloop
from helpers import psnr
from PIL import Image

from hotloop import request as table
from hotloop.errors import InputError
from hotloop.image import enlarge, save
from hotloop.image.metadata import StoredRequest
from hotloop.loop import Progress

PROMPT, NEGATIVE = "a smiling girl with purple hair and glasses", "blurry, watermark, low quality"
QUICK = dict(num_inference_steps=3, guidance_scale=2.0)


def checked(pipeline: str = "txt2img", **given: Any) -> table.Request:
    pictures = {name: "a.png" for name in table.required(pipeline) if name != "prompt"}
    return table.Request.checked(pipeline, {"prompt": "a", **pictures, **given}, {})


# --- The picture ---


@pytest.mark.parametrize(("sampler", "upscaler"), [("ddim", "lanczos"), ("euler_a", "latent")])
def test_the_second_pass_is_stock_img2img_with_the_seeds_further_noise(
    pipe: Any, stock: Any, sampler: str, upscaler: str
) -> None:
    import torch
    import torch.nn.functional as F

    options = dict(num_inference_steps=10, guidance_scale=4.0)
    ours = dict(sampler=sampler, seed=7, prompt_syntax="plain", **options)
    first = pipe.txt2img(PROMPT, NEGATIVE, **ours)
    made = pipe.txt2img(PROMPT, NEGATIVE, hires=2, hires_upscaler=upscaler, hires_fidelity=0, **ours)
    generator = torch.Generator().manual_seed(7)
    for _ in range(1 + pipe.table(sampler, 10).noises):  # what the first pass drew: its start, and its steps
        torch.randn(1, 4, 16, 16, generator=generator)
    larger: Any = first.images[0].resize((128, 128), Image.Resampling.LANCZOS)
    if upscaler == "latent":
        larger = F.interpolate(torch.from_numpy(first.latents), scale_factor=2, mode="bilinear")
    stock.use(sampler)
    theirs = stock.img2img(
        PROMPT, negative_prompt=NEGATIVE, image=larger, strength=0.4, generator=generator, output_type="latent",
        eta=0.0, **options,
    ).images.numpy()  # fmt: skip
    assert made.images[0].size == (128, 128)
    assert np.abs(made.latents - theirs).max() <= 1e-3
    vae = stock.img2img.vae
    with torch.no_grad():
        decoded = vae.decode(torch.from_numpy(theirs) / vae.config.scaling_factor).sample
    assert psnr(made.images[0], stock.img2img.image_processor.postprocess(decoded)[0]) >= 50


def test_a_pass_that_is_held_is_stock_img2img_whose_steps_are_mixed_with_the_first_pass(pipe: Any, stock: Any) -> None:
    import torch

    options = dict(num_inference_steps=10, guidance_scale=4.0)
    ours = dict(sampler="ddim", seed=7, prompt_syntax="plain", **options)
    first = pipe.txt2img(PROMPT, NEGATIVE, **ours).images[0]
    larger = first.resize((128, 128), Image.Resampling.LANCZOS)
    made = pipe.txt2img(PROMPT, NEGATIVE, hires=2, hires_fidelity=0.8, **ours)
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    for generator in generators:
        torch.randn(1, 4, 16, 16, generator=generator)
    stock.use("ddim")
    vae, scheduler = stock.img2img.vae, stock.img2img.scheduler
    with torch.no_grad():
        posterior = vae.encode(stock.img2img.image_processor.preprocess(larger)).latent_dist
        known = posterior.sample(generators[0]) * vae.config.scaling_factor
    eps = torch.randn(1, 4, 32, 32, generator=generators[0])

    def mixed(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        after = scheduler.timesteps[-4:][step + 1 : step + 2]
        there = scheduler.add_noise(known, eps, after) if len(after) else known
        return {"latents": 0.8 * tensors["latents"] + 0.2 * there}

    theirs = stock.img2img(
        PROMPT, negative_prompt=NEGATIVE, image=larger, strength=0.4, generator=generators[1], output_type="latent",
        eta=0.0, callback_on_step_end=mixed, **options,
    ).images.numpy()  # fmt: skip
    assert np.abs(made.latents - theirs).max() <= 1e-3


@pytest.mark.parametrize("factor", [2, 3, 1.5])
def test_what_was_lost_is_put_back_and_nothing_else_touched(factor: float) -> None:
    rng = np.random.default_rng(0)
    side, scene = int(48 * factor), Image.fromarray(rng.integers(60, 196, (12, 12, 3), np.uint8))
    first = np.asarray(scene.resize((48, 48), Image.Resampling.BICUBIC))[None]
    large = np.asarray(scene.resize((side, side), Image.Resampling.BICUBIC)) + rng.normal(15, 12, (1, side, side, 3))
    large = np.rint(large).clip(0, 255).astype(np.uint8)
    for kernel in (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        before, after = (
            psnr(Image.fromarray(one[0]).resize((48, 48), kernel), first[0])
            for one in (large, enlarge.back_projected(large, first))
        )
        assert before < 25 and after >= 30
    assert np.array_equal(enlarge.back_projected(large, first, 0.0), large)
    if factor == 2:  # detail at the limit of resolution, of which a small picture knows nothing, stays
        large = large.clip(20, 235)
        detail = np.tile([[9, -9], [-9, 9]], (48, 48))[None, ..., None]
        with_and_without = (np.uint8(large + more) for more in (0, detail))
        plain, fine = (enlarge.back_projected(one, first).astype(int) for one in with_and_without)
        inside = np.s_[:, 4:-4, 4:-4]
        assert np.abs(fine - plain - detail)[inside].max() <= 1


def test_made_small_again_it_is_the_first_pass_and_has_no_seams(pipe: Any) -> None:
    prompts = [PROMPT, "an angry boy with red hair, wearing a hoodie, night"]
    options = dict(seed=7, guidance_scale=2.0, num_inference_steps=10)
    first, large = (pipe.txt2img(prompts, NEGATIVE, **options, **more).images for more in ({}, {"hires": 2}))
    for small, made in zip(first, large, strict=True):
        for kernel in (Image.Resampling.BOX, Image.Resampling.LANCZOS):
            assert psnr(made.resize(small.size, kernel), small) >= 28
        detail = np.asarray(made, np.float64) - np.asarray(small.resize(made.size, Image.Resampling.BICUBIC))
        assert detail.std() > 3
        blocks = np.random.default_rng(0).normal(0, 8, (8, 8, 1)).repeat(16, 0).repeat(16, 1)
        for period in (4, 8, 16):  # cells of latents, of their halves, and of their quarters
            assert seams(detail, period) < 1.4
        assert seams(detail + blocks, 16) > 1.4


def seams(picture: np.ndarray, period: int) -> float:
    """How much more a picture changes from one row or column to the next where blocks of a period meet."""
    each = [np.abs(np.diff(picture, axis=axis)).mean(axis=(1 - axis, 2)) for axis in (0, 1)]
    at = np.s_[period - 1 :: period]
    return float(sum(one[at].mean() for one in each) / sum(np.delete(one, at).mean() for one in each))


@pytest.mark.parametrize("upscaler", ["lanczos", "latent-bicubic"])
def test_image_i_of_a_batch_is_the_single_run(pipe: Any, upscaler: str) -> None:
    options = dict(hires=1.5, hires_upscaler=upscaler, sampler="euler_a", width=68, height=60, **QUICK)
    both = pipe.txt2img([PROMPT, "a boy with red hair"], seed=3, **options)
    single = pipe.txt2img("a boy with red hair", seed=4, **options)
    assert np.array_equal(both.latents[1], single.latents[0])
    assert both.images[1].tobytes() == single.images[0].tobytes()
    # On the grid of 4, the nearest to 102 x 90.
    assert both.images[1].size == (104, 92) and both.latents.shape == (2, 4, 23, 26)


def test_img2img_is_drawn_and_then_drawn_larger(pipe: Any) -> None:
    face = pipe.txt2img(PROMPT, seed=7, **QUICK).images[0]
    options = dict(image=face, strength=0.6, seed=1, **QUICK)
    first, large = (pipe.img2img("a boy", **options, **more).images[0] for more in ({}, {"hires": 2}))
    assert large.size == (128, 128)
    assert psnr(large.resize((64, 64), Image.Resampling.BOX), first) >= max(28, 6 + psnr(face, first))


def test_progress_counts_both_passes_and_cancels_in_the_second(pipe: Any) -> None:
    seen: list[Progress] = []

    def cancel(progress: Progress) -> None:
        if progress.row == 4:
            raise KeyboardInterrupt

    options = dict(seed=5, sampler="heun", hires=2, hires_strength=0.5, hires_steps=4, **QUICK)
    watched = pipe.txt2img(PROMPT, callback=seen.append, **options)
    # Heun: two evaluations a step, one in the last.
    assert [(one.row, one.rows) for one in seen] == [(i, 8) for i in range(8)]
    assert [(one.step, one.steps) for one in seen] == [(i, 5) for i in (0, 0, 1, 1, 2, 3, 3, 4)]
    assert [one.latents.shape[2] for one in seen] == [16] * 5 + [32] * 3
    stages = ("text", "prepare", "loop", "vae")
    assert sum(watched.timings[stage] for stage in stages) == pytest.approx(watched.timings["total"], rel=1e-6)
    assert 0 < watched.timings["engine"] <= watched.timings["loop"]
    with pytest.raises(KeyboardInterrupt):
        pipe.txt2img(PROMPT, callback=cancel, **options)
    assert np.array_equal(watched.latents, pipe.txt2img(PROMPT, **options).latents)


def test_the_native_engine_draws_the_same(pipe: Any) -> None:
    import hotloop as package

    native = package.load(engine="native")
    made = [one.txt2img(PROMPT, seed=5, hires=2, **QUICK).images[0] for one in (pipe, native)]
    assert psnr(*made) >= 45


@pytest.mark.parametrize(("name", "mode"), [("latent", "bilinear"), ("latent-bicubic", "bicubic")])
def test_latents_are_enlarged_as_torch_does(name: str, mode: str) -> None:
    import torch
    import torch.nn.functional as F

    drawn = np.random.default_rng(0).standard_normal((2, 4, 9, 7)).astype(np.float32)
    # With antialias torch's kernels are PIL's: bicubic ones of a = -0.5.
    theirs = F.interpolate(torch.from_numpy(drawn), size=(20, 13), mode=mode, antialias=True).numpy()
    assert np.abs(enlarge.latents(drawn, (13, 20), name) - theirs).max() <= 1e-5


# --- The request ---


def test_a1111s_names_are_known() -> None:
    request = checked(hr_scale=1.5, denoising_strength=0.7, hr_upscaler="Latent (bicubic)", hr_second_pass_steps=0)
    assert [request[name] for name in ("hires", "hires_strength", "hires_upscaler", "hires_steps")] == [
        1.5, 0.7, "latent-bicubic", None,
    ]  # fmt: skip
    for name, near in (("enable_hr", "hires"), ("denoising_strength", "strength")):
        with pytest.raises(InputError, match=f"did you mean {near}"):
            checked("img2img", **{name: 1})


def test_what_is_said_of_the_second_pass_has_no_value_without_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(table.schema("txt2img"))
    assert checked(hires=2)["hires_strength"] == 0.4 and checked()["hires_strength"] is None
    assert not [name for name in checked().settings((64, 64)) if name.startswith("hires")]
    for given in ({"hires_strength": 0.5}, {"hires_steps": 9}, {"hires_upscaler": "latent"}):
        assert not validator.is_valid({"prompt": "a", **given})
        assert validator.is_valid({"prompt": "a", "hires": 2, **given})
        with pytest.raises(InputError, match=f"{next(iter(given))} must come with hires"):
            checked(**given)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("smaller", dict(hires=0.5), "hires must be a number in 1..4"),
    ("beyond the limit", dict(hires=4, width=512, height=64), "within 1024, got '2048 x 256'"),
    ("no strength", dict(hires=2, hires_strength=0), "hires_strength times 3 steps must leave at least one step"),
    ("a strength below one step", dict(hires=2, hires_steps=2), "hires_strength times 2 steps"),
    ("another upscaler", dict(hires=2, hires_upscaler="R-ESRGAN 4x+"), "hires_upscaler must be one of lanczos"),
    ("two scales", dict(hires=2, hr_scale=3), "hr_scale and hires must not both tell hires"),
]


@pytest.mark.parametrize(("options", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_cannot_be_is_refused_before_anything_is_drawn(pipe: Any, options: dict[str, Any], said: str) -> None:
    drawn: list[Progress] = []
    with pytest.raises(InputError) as caught:
        pipe.txt2img(PROMPT, seed=1, callback=drawn.append, **{**QUICK, **options})
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not drawn


def test_inpaint_takes_no_second_pass(pipe: Any) -> None:
    face = Image.new("RGB", (64, 64))
    with pytest.raises(InputError, match="hires is no argument of inpaint, but of txt2img, img2img"):
        pipe.inpaint(PROMPT, image=face, mask_image=Image.new("L", (64, 64), 255), hires=2)


def test_the_command_line_draws_it_and_reruns_it_byte_for_byte(pipe: Any, tmp_path: Path) -> None:
    face = pipe.txt2img(PROMPT, seed=7, **QUICK).images[0]
    save(face, tmp_path / "face.png")
    said = ["--hires", "1.5", "--hires-strength", "0.5", "--hires-fidelity", "0.5", "--steps", "3", "--guidance", "2"]
    done = hotloop("img2img", "angry", "--image", "face.png", *said, "--seed", "7", "--out", "a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    options = dict(hires=1.5, hires_strength=0.5, hires_fidelity=0.5, **QUICK)
    made = pipe.img2img("angry", image=face, seed=7, **options).images[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(made))
    stored = StoredRequest.read(tmp_path / "a.png").arguments
    assert stored["width"] == 64 and stored["hires"] == 1.5 and "hires_steps" not in stored
    assert hotloop("rerun", "a.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "a-rerun.png").read_bytes()
