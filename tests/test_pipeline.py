"""Pipelines on the built-in model: reproducible, honest about bad input, faithful outside the mask."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hotloop
from hotloop import loop
from hotloop.errors import InputError, NonFiniteError

PROMPT = "a smiling girl with purple hair and round glasses"
QUICK = dict(num_inference_steps=4, guidance_scale=4.0)


@pytest.fixture(scope="module")
def face(pipe: Any) -> Image.Image:
    image: Image.Image = pipe.txt2img(PROMPT, seed=7).images[0]
    return image


def top_half(size: tuple[int, int] = (64, 64)) -> Image.Image:
    array = np.zeros((size[1], size[0]), np.uint8)
    array[: size[1] // 2] = 255
    return Image.fromarray(array)


def test_the_same_seed_gives_the_same_bytes_twice(pipe: Any) -> None:
    one, two = (pipe.txt2img(PROMPT, seed=5, **QUICK).images[0].tobytes() for _ in range(2))
    assert one == two
    assert one != pipe.txt2img(PROMPT, seed=6, **QUICK).images[0].tobytes()


@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_a_pipeline_and_its_engines_are_freed_without_the_garbage_collector(engine: str) -> None:
    hotloop.load(engine=engine).txt2img(PROMPT, seed=1, **QUICK)  # a library's import may keep frames of ours
    gc.collect()
    gc.disable()
    try:
        pipe = hotloop.load(engine=engine)
        pipe.txt2img(PROMPT, seed=1, **QUICK)
        alive = [weakref.ref(pipe), *(weakref.ref(made) for made in pipe.networks.opened().values())]
        del pipe
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("sampler", ["plms", "euler_a"])
@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_image_i_of_a_batch_equals_the_single_run(pipe: Any, sampler: str, rng: str) -> None:
    options = dict(sampler=sampler, rng=rng, **QUICK)
    batch = pipe.txt2img(PROMPT, "blurry", seed=20, num_images_per_prompt=3, **options)
    assert batch.seeds == [20, 21, 22]
    for image, latents, seed in zip(batch.images, batch.latents, batch.seeds, strict=True):
        single = pipe.txt2img(PROMPT, "blurry", seed=seed, **options)
        assert np.array_equal(single.latents[0], latents)
        assert single.images[0].tobytes() == image.tobytes()


def test_a_list_of_prompts_equals_each_prompt_alone(pipe: Any) -> None:
    prompts = ["a boy with red hair", "a girl with blue hair, wearing a dress, night"]
    both = pipe.txt2img(prompts, seed=3, **QUICK)
    for i, prompt in enumerate(prompts):
        assert pipe.txt2img(prompt, seed=3 + i, **QUICK).images[0].tobytes() == both.images[i].tobytes()


def test_a_callback_sees_every_row_and_changes_nothing(pipe: Any) -> None:
    seen: list[tuple[int, int]] = []

    def callback(progress: loop.Progress) -> None:
        seen.append((progress.row, progress.rows))

    watched = pipe.txt2img(PROMPT, seed=5, callback=callback, sampler="plms", **QUICK)
    assert seen == [(i, 5) for i in range(5)]
    assert np.array_equal(watched.latents, pipe.txt2img(PROMPT, seed=5, sampler="plms", **QUICK).latents)


def test_a_callback_that_raises_cancels_and_leaves_the_pipeline_usable(pipe: Any) -> None:
    def cancel(progress: loop.Progress) -> None:
        raise KeyboardInterrupt

    before = pipe.txt2img(PROMPT, seed=5, **QUICK).latents
    with pytest.raises(KeyboardInterrupt):
        pipe.txt2img(PROMPT, seed=9, callback=cancel, **QUICK)
    assert np.array_equal(before, pipe.txt2img(PROMPT, seed=5, **QUICK).latents)


def test_concurrent_calls_do_not_mix(pipe: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = [pipe.txt2img(PROMPT, seed=seed, **QUICK).latents for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: pipe.txt2img(PROMPT, seed=seed, **QUICK).latents, range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_weights_of_one_change_nothing_and_other_weights_do(pipe: Any) -> None:
    plain = pipe.txt2img("girl, glasses", seed=1, **QUICK).latents
    assert np.array_equal(plain, pipe.txt2img("girl, (glasses:1.0)", seed=1, **QUICK).latents)
    assert not np.array_equal(plain, pipe.txt2img("girl, (glasses:1.4)", seed=1, **QUICK).latents)


def test_a_long_prompt_is_cut_with_a_warning_or_read_in_chunks(pipe: Any) -> None:
    prompt = PROMPT + ", floating_hair" * 60
    with pytest.warns(hotloop.TruncationWarning):
        cut = pipe.txt2img(prompt, seed=1, **QUICK)
    chunked = pipe.txt2img(prompt, seed=1, long_prompt="chunk", **QUICK)
    assert not np.array_equal(cut.latents, chunked.latents)


def test_given_latents_take_the_place_of_the_seed(pipe: Any) -> None:
    from hotloop.noise import normal

    noise = normal(5, (1, 4, 16, 16))
    given = pipe.txt2img(PROMPT, seed=99, latents=noise, **QUICK)
    assert np.array_equal(given.latents, pipe.txt2img(PROMPT, seed=5, **QUICK).latents)


@pytest.mark.parametrize(("sampler", "rows"), [("ddim", 30), ("plms", 31), ("heun", 59), ("kdpm2", 59)])
def test_img2img_runs_the_strengths_share_of_the_steps(pipe: Any, face: Image.Image, sampler: str, rows: int) -> None:
    seen: list[int] = []
    pipe.img2img(
        PROMPT, image=face, strength=0.6, num_inference_steps=50, sampler=sampler, seed=1,
        callback=lambda progress: seen.append(progress.row),
    )  # fmt: skip
    assert len(seen) == rows


def test_img2img_moves_away_from_the_image_as_strength_grows(pipe: Any, face: Image.Image) -> None:
    original = np.asarray(face, np.float64)
    distances = [
        np.abs(np.asarray(result.images[0], np.float64) - original).mean()
        for strength in (0.2, 0.4, 0.6, 0.8)
        for result in [pipe.img2img("a boy with green hair, night", image=face, strength=strength, seed=4)]
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize("size", [(64, 64), (90, 70)])
def test_inpaint_keeps_every_pixel_where_the_blurred_mask_is_black(
    pipe: Any, face: Image.Image, size: tuple[int, int]
) -> None:
    from PIL import ImageFilter

    image, mask = face.resize(size), top_half(size)
    result = pipe.inpaint("red hair", image=image, mask_image=mask, mask_blur=2, seed=1, **QUICK).images[0]
    kept = np.asarray(mask.filter(ImageFilter.GaussianBlur(2))) == 0
    assert result.size == image.size
    assert kept.sum() > 100
    assert np.array_equal(np.asarray(result)[kept], np.asarray(image)[kept])
    assert not np.array_equal(np.asarray(result)[~kept], np.asarray(image)[~kept])


def test_only_masked_draws_the_region_and_leaves_the_rest(pipe: Any, face: Image.Image) -> None:
    image = face.resize((256, 256))
    array = np.zeros((256, 256), np.uint8)
    array[100:140, 90:150] = 255
    result = pipe.inpaint(
        "glasses", image=image, mask_image=Image.fromarray(array), padding_mask_crop=8, mask_blur=0, seed=1,
        width=64, height=64, **QUICK,
    ).images[0]  # fmt: skip
    changed = np.any(np.asarray(result) != np.asarray(image), axis=-1)
    assert changed.any()
    assert not changed[array == 0].any()


def test_timings_add_up(pipe: Any) -> None:
    timings = pipe.txt2img(PROMPT, seed=1, **QUICK).timings
    stages = sum(timings[stage] for stage in ("text", "prepare", "loop", "vae"))
    assert stages == pytest.approx(timings["total"], rel=1e-6)
    assert 0 < timings["engine"] <= timings["loop"]


def test_warmup_makes_every_context_that_calls_use(face: Image.Image) -> None:
    fresh = hotloop.load()
    fresh.warmup([(64, 64)], (n for n in [2]))
    made: list[str] = []
    for engine in (fresh.networks[name] for name in fresh.entry.networks):

        def counted(context: Any = engine.context, name: str = engine.network.name, **dims: int) -> Any:
            made.append(name)
            return context(**dims)

        engine.context = counted
    fresh.txt2img(PROMPT, seed=1, num_images_per_prompt=2)
    fresh.img2img(PROMPT, image=face, seed=1, num_images_per_prompt=2, strength=1)
    assert made == []
    fresh.txt2img(PROMPT, seed=1, num_images_per_prompt=3)
    assert made == ["unet", "vae_decoder"]


@pytest.mark.parametrize("mode", ["default", "fill", "crop"])
def test_resize_modes_are_diffusers(pipe: Any, face: Image.Image, mode: str) -> None:
    from diffusers.image_processor import VaeImageProcessor

    wide = face.resize((128, 64)).crop((16, 0, 128, 64))
    options = dict(strength=0.3, seed=1, **QUICK)
    got = pipe.img2img(PROMPT, image=wide, width=64, height=64, resize_mode=mode, **options)
    theirs = VaeImageProcessor().resize(wide, 64, 64, resize_mode=mode)
    want = pipe.img2img(PROMPT, image=theirs, **options)
    assert np.abs(got.latents - want.latents).max() <= 1e-3
    if mode != "default":
        assert np.abs(got.latents - pipe.img2img(PROMPT, image=wide.resize((64, 64)), **options).latents).max() > 0.1


def test_sampler_options_reach_the_sampler_and_nothing_else(pipe: Any) -> None:
    plain = pipe.txt2img(PROMPT, sampler="ddim", seed=1, **QUICK).latents
    noisy = pipe.txt2img(PROMPT, sampler="ddim", seed=1, sampler_options={"eta": 1.0}, **QUICK).latents
    assert not np.array_equal(plain, noisy)
    pipe.txt2img(PROMPT, sampler="unipc", seed=1, sampler_options={"disable_corrector": [0]}, **QUICK)
    for name in ("start", "steps", "schedule", "sampler"):
        with pytest.raises(InputError, match=name):
            pipe.txt2img(PROMPT, sampler="ddim", seed=1, sampler_options={name: 1}, **QUICK)


def test_chunks_of_different_number_in_one_call_are_refused(pipe: Any) -> None:
    long = "a girl" + ", floating_hair" * 60
    with pytest.raises(InputError, match="windows"):
        pipe.txt2img(["a girl", long], seed=1, long_prompt="chunk", **QUICK)
    both = pipe.txt2img([long, long + ", smile"], seed=1, long_prompt="chunk", **QUICK)
    assert np.array_equal(both.latents[:1], pipe.txt2img(long, seed=1, long_prompt="chunk", **QUICK).latents)


def test_what_was_left_out_is_told_in_the_result(pipe: Any) -> None:
    settings = pipe.txt2img(PROMPT, seed=1).settings
    defaults = pipe.bundle.defaults
    assert settings | {
        "num_inference_steps": defaults["num_inference_steps"], "guidance_scale": defaults["guidance_scale"],
        "sampler": defaults["sampler"], "sampler_options": {}, "width": 64, "height": 64, "clip_skip": 0,
    } == settings  # fmt: skip


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("an unknown sampler", dict(sampler="eulr"), "euler"),
    ("a negative seed", dict(seed=-2), "seed"),
    ("a fractional seed", dict(seed=1.5), "seed"),
    ("a width off the grid", dict(width=66), "width must be a multiple of 4"),
    ("a height above the limit", dict(height=4096), "height"),
    ("a width of nothing", dict(width=0), "width"),
    ("no steps", dict(num_inference_steps=0), "num_inference_steps"),
    ("too many steps", dict(num_inference_steps=1001), "num_inference_steps"),
    ("steps that are no number", dict(num_inference_steps="ten"), "num_inference_steps"),
    ("gigantic guidance", dict(guidance_scale=10**400), "guidance_scale"),
    ("a seed of 5,000 digits", dict(seed=10**5000), "seed"),
    ("latents that are words", dict(latents="noise"), "latents"),
    ("a callback that cannot be called", dict(callback=5), "callback"),
    ("a sampler that is no name", dict(sampler=["euler"]), "sampler"),
    ("sampler options that are no mapping", dict(sampler_options=5), "sampler_options"),
    ("a sampler option that is an object", dict(sampler_options={"eta": {}}), "eta"),
    ("NaN guidance", dict(guidance_scale=math.nan), "guidance_scale"),
    ("infinite guidance", dict(guidance_scale=math.inf), "guidance_scale"),
    ("negative guidance", dict(guidance_scale=-1), "guidance_scale"),
    ("no images", dict(num_images_per_prompt=0), "num_images_per_prompt"),
    ("too many images", dict(num_images_per_prompt=65), "num_images_per_prompt"),
    ("two different image counts", dict(num_images=2, num_images_per_prompt=3), "num_images"),
    ("latents of another shape", dict(latents=np.zeros((1, 4, 8, 8))), "latents"),
    ("latents with NaN", dict(latents=np.full((1, 4, 16, 16), np.nan)), "latents"),
    ("a clip_skip beyond the exported layers", dict(clip_skip=2), "clip_skip"),
    ("an unknown syntax", dict(prompt_syntax="compel"), "prompt_syntax"),
    ("an unknown random generator", dict(rng="mersenne"), "rng"),
    ("an option the sampler does not take", dict(sampler="euler", sampler_options={"etta": 1}), "etta"),
    ("a list of negative prompts of another length", dict(negative_prompt=["a", "b"]), "negative_prompt"),
]


@pytest.mark.parametrize(("case", "options", "named"), BAD, ids=[case for case, _, _ in BAD])
def test_bad_arguments_are_refused_in_one_line(pipe: Any, case: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises((InputError, NonFiniteError)) as caught:
        pipe.txt2img(PROMPT, **{"seed": 1, **options})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("prompt", ["x" * 10**6, [], ["a", 5], 5])
def test_bad_prompts_are_refused_in_one_line(pipe: Any, prompt: Any) -> None:
    with pytest.raises(InputError) as caught:
        pipe.txt2img(prompt, seed=1)
    assert len(str(caught.value)) < 400


def test_a_strength_that_leaves_no_step_is_refused(pipe: Any, face: Image.Image) -> None:
    for strength in (0, 0.01, -0.5, 1.5, math.nan):
        with pytest.raises(InputError, match="strength"):
            pipe.img2img(PROMPT, image=face, strength=strength, seed=1)


def test_a_mask_of_another_size_is_refused(pipe: Any, face: Image.Image) -> None:
    with pytest.raises(InputError, match="mask"):
        pipe.inpaint(PROMPT, image=face, mask_image=top_half((32, 32)), seed=1)


@pytest.mark.parametrize("rows", [slice(0, 0), slice(33, 36)], ids=["black", "thinner than a latent cell"])
def test_a_mask_with_nothing_to_repaint_is_refused(pipe: Any, face: Image.Image, rows: slice) -> None:
    array = np.zeros((64, 64), np.uint8)
    array[rows] = 255
    with pytest.raises(InputError, match="white to repaint"):
        pipe.inpaint(PROMPT, image=face, mask_image=Image.fromarray(array), mask_blur=0, seed=1)
    array[20:44, 20:44] = 255
    with pytest.raises(InputError, match="blur of 20"):
        pipe.inpaint(PROMPT, image=face, mask_image=Image.fromarray(array), mask_blur=20, seed=1)


def test_a_photo_beyond_the_limit_asks_for_a_size_and_takes_one(pipe: Any, face: Image.Image) -> None:
    photo = face.resize((1600, 900))
    with pytest.raises(InputError, match="give width and height"):
        pipe.img2img(PROMPT, image=photo, seed=1)
    assert pipe.img2img(PROMPT, image=photo, width=64, height=64, seed=1, **QUICK).images[0].size == (64, 64)
    array = np.zeros((900, 1600), np.uint8)
    array[400:500, 700:800] = 255
    result = pipe.inpaint(PROMPT, image=photo, mask_image=Image.fromarray(array), padding_mask_crop=16, seed=1, **QUICK)
    assert result.images[0].size == (1600, 900)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"threads": -1}, "threads"),
        ({"threads": "x"}, "threads"),
        ({"engine": "tpu"}, "tpu"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_bad_ways_to_load_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        hotloop.load(**options)


def test_unreadable_images_are_refused(pipe: Any, face: Image.Image, tmp_path: Path) -> None:
    face.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("cut.png", "text.png", "missing.png"):
        with pytest.raises(InputError, match=name):
            pipe.img2img(PROMPT, image=tmp_path / name, seed=1)


def test_a_network_that_returns_nan_is_an_error_and_not_a_black_image(pipe: Any, monkeypatch: Any) -> None:
    from hotloop.engines import onnx

    run = onnx.HostContext.run

    def poisoned(self: Any, stream: int | None = None) -> None:
        run(self, stream)
        if "out" in self.outputs:
            self.outputs["out"].flat[3] = np.nan

    monkeypatch.setattr(onnx.HostContext, "run", poisoned)
    with pytest.raises(NonFiniteError, match="finite"):
        pipe.txt2img(PROMPT, seed=1, **QUICK)
