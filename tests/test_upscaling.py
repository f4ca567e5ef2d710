"""upscale and alpha: tiles that are one call, edges without fringes over any ground, files that keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import hotloop
from doubles.network import Computed
from helpers import psnr, randomise
from PIL import Image

from hotloop import upscaling
from hotloop.engines import open_engine
from hotloop.errors import InputError, NonFiniteError
from hotloop.image import alpha as alphas
from hotloop.image import contact_sheet, open_image, save
from hotloop.nets.upscaler import Upscaler
from hotloop.pipeline import Pipeline
from hotloop.spec import family

PROMPT = "a smiling girl with purple hair"
QUICK = dict(num_inference_steps=2, guidance_scale=2.0, seed=7)
ROWS = family("avatar-tiny").networks
GROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "green": (0, 255, 0)}


def disc(side: int, *, soft: float) -> np.ndarray:
    """The matte f32 [side, side] of a disc whose edge is so many pixels wide."""
    at = np.arange(side) - (side - 1) / 2
    return np.clip((0.34 * side - np.hypot(at[:, None], at)) / soft + 0.5, 0, 1).astype(np.float32)


def over(rgba: Image.Image, ground: tuple[int, int, int]) -> np.ndarray:
    """PIL's own composite, in [0, 1]."""
    behind = Image.new("RGBA", rgba.size, (*ground, 255))
    return np.asarray(Image.alpha_composite(behind, rgba).convert("RGB"), np.float64) / 255


def given(pipe: Any, **functions: Any) -> tuple[Pipeline, dict[str, Computed]]:
    """The built-in model with networks that are functions beside its own."""
    engines = {name: Computed(ROWS[name], function) for name, function in functions.items()}
    return Pipeline(pipe.bundle, engine=pipe.engine, given=pipe.networks.opened() | engines), engines


def segmented(image: np.ndarray) -> dict[str, np.ndarray]:
    _, _, h, w = image.shape
    return {"matte": np.asarray(Image.fromarray(disc(64, soft=6)).resize((w, h)))[None, None]}


def nearest(rgb: np.ndarray, matte: np.ndarray) -> dict[str, np.ndarray]:
    rgba = np.concatenate([(rgb + 1) / 2 * matte, matte], axis=1)
    return {"rgba": rgba.repeat(4, 2).repeat(4, 3)}


# --- The upscaler ---


def test_tiles_give_the_pixels_of_one_call(tmp_path: Path, monkeypatch: Any) -> None:
    """Of the true architecture: nothing beyond the halo reaches a pixel, and every pixel comes from one tile."""
    net = randomise(Upscaler({"width": 32, "blocks": 5}))
    net.save(tmp_path, dtype=torch.float32)
    engine = open_engine("native", tmp_path, ROWS["upscaler"], threads=1)

    class Networks(dict[str, Any]):
        rows, bundle = ROWS.keys() - {"segmenter"}, type("bundle", (), {"family": family("avatar-tiny")})

        def opened(self) -> dict[str, Any]:
            return {}

    networks: Any = Networks(upscaler=engine)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 91, 3), np.uint8))
    whole = np.asarray(upscaling.larger(networks, picture, alpha=True), int)
    monkeypatch.setattr(upscaling, "TILE", 40)
    assert [len(list(upscaling.tiles(side))) for side in (40, 41, 56, 57, 91)] == [1, 2, 2, 3, 5]
    tiled = np.asarray(upscaling.larger(networks, picture, alpha=True), int)
    assert whole.shape == (280, 364, 4) and whole.std() > 20
    # Convolutions of another shape may round another way.
    assert np.abs(tiled - whole).max() <= 1 and (tiled != whole).mean() < 1e-4
    monkeypatch.setattr(upscaling, "HALO", 9)
    assert (np.abs(np.asarray(upscaling.larger(networks, picture, alpha=True), int) - whole) > 1).any()


def test_without_a_segmenter_everything_is_foreground(pipe: Any) -> None:
    own, engines = given(pipe, upscaler=nearest)
    small, large = (own.txt2img(PROMPT, **QUICK, **more).images[0] for more in ({}, {"upscale": 4}))
    assert large.mode == "RGB" and large.size == (256, 256)
    assert np.array_equal(np.asarray(large), np.asarray(small.resize((256, 256), Image.Resampling.NEAREST)))
    assert [one["matte"].min() for one in engines["upscaler"].seen] == [1.0]
    timings = own.txt2img(PROMPT, upscale=4, **QUICK).timings
    assert sum(timings[stage] for stage in ("text", "prepare", "loop", "vae", "upscale")) == pytest.approx(
        timings["total"], rel=1e-6
    )


def test_with_one_the_background_is_enlarged_behind_the_foreground(pipe: Any) -> None:
    def inverted(rgb: np.ndarray, matte: np.ndarray) -> dict[str, np.ndarray]:
        return nearest(-rgb, matte)

    own, engines = given(pipe, upscaler=inverted, segmenter=segmented)
    results = [own.txt2img(PROMPT, **QUICK, num_images=2, **more) for more in ({}, {"upscale": 4})]
    for small, large in zip(*(result.images for result in results), strict=True):
        pixels, behind = (np.asarray(one, int) for one in (large, small.resize((256, 256), Image.Resampling.BICUBIC)))
        matte = disc(64, soft=6).repeat(4, 0).repeat(4, 1)
        inside, outside = matte == 1, disc(64, soft=12).repeat(4, 0).repeat(4, 1) == 0
        assert np.array_equal(pixels[inside], 255 - np.asarray(small, int).repeat(4, 0).repeat(4, 1)[inside])
        assert np.abs(pixels[outside] - behind[outside]).mean() < 2
    assert len(engines["upscaler"].seen) == 2  # one call a picture


def test_hires_and_inpainting_end_in_the_upscaler(pipe: Any) -> None:
    own, engines = given(pipe, upscaler=nearest)
    large = own.txt2img(PROMPT, hires=2, hires_upscaler="upscaler", upscale=4, **QUICK | {"num_inference_steps": 3})
    assert large.images[0].size == (512, 512)
    assert [one["rgb"].shape[2:] for one in engines["upscaler"].seen] == [(64, 64), (128, 128)]
    face, mask = own.txt2img(PROMPT, **QUICK).images[0].resize((70, 50)), np.zeros((50, 70), np.uint8)
    mask[:20] = 255
    options = dict(image=face, mask_image=mask, **QUICK)
    painted, finer = (own.inpaint("red hair", **options, **more).images[0] for more in ({}, {"upscale": 4}))
    assert np.array_equal(np.asarray(finer), np.asarray(painted).repeat(4, 0).repeat(4, 1))


def test_a_broken_upscaler_is_an_error_and_no_picture(pipe: Any) -> None:
    own, _ = given(pipe, upscaler=lambda rgb, matte: {"rgba": nearest(rgb, matte)["rgba"] * np.float32(np.nan)})
    with pytest.raises(NonFiniteError, match="upscaler"):
        own.txt2img(PROMPT, upscale=4, **QUICK)


# --- Alpha ---


def scene(side: int = 128, soft: float = 6.0) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A shaded disc on a green wall as it was photographed, its own colours [0, 1], and its matte."""
    y, x = np.mgrid[:side, :side] / side
    own = np.stack([0.9 - 0.5 * x, 0.25 + 0.4 * y, 0.35 + 0.3 * x * y], axis=-1)
    wall = np.stack([0.1 + 0.1 * y, 0.75 - 0.1 * x, 0.2 + 0 * x], axis=-1)
    matte = disc(side, soft=soft)
    seen = own * matte[..., None] + wall * (1 - matte[..., None])
    return Image.fromarray(np.rint(seen * 255).astype(np.uint8)), own, matte


def edge_error(rgba: Image.Image, own: np.ndarray, matte: np.ndarray) -> float:
    """The mean error over black, white and green where the matte is neither."""
    band, weight = (matte > 0.02) & (matte < 0.98), matte[..., None]
    truth = {name: own * weight + (1 - weight) * np.array(ground) / 255 for name, ground in GROUNDS.items()}
    return float(np.mean([np.abs(over(rgba, GROUNDS[name]) - one)[band].mean() for name, one in truth.items()]))


@pytest.mark.parametrize("soft", [1.5, 6.0, 14.0])
def test_a_cut_out_brings_no_fringe_of_its_wall_over_any_ground(soft: float) -> None:
    picture, own, matte = scene(soft=soft)
    colours, wall = alphas.separated(np.asarray(picture), matte)
    weight = matte[..., None]
    cut = Image.fromarray(alphas.straight(np.concatenate([colours * weight, weight], axis=-1)))
    naive = np.concatenate([np.asarray(picture), np.rint(255 * weight).astype(np.uint8)], axis=-1)
    assert 3 * edge_error(cut, own, matte) < edge_error(Image.fromarray(naive), own, matte)
    assert edge_error(cut, own, matte) <= 0.02
    assert np.array_equal(np.rint(colours[matte == 1] * 255), np.asarray(picture)[matte == 1])
    assert np.array_equal(np.rint(wall[matte == 0] * 255), np.asarray(picture)[matte == 0])


def test_what_is_multiplied_by_alpha_comes_back_over_any_ground() -> None:
    rng = np.random.default_rng(0)
    alpha = np.concatenate([rng.random((60, 64, 1)), np.zeros((2, 64, 1)), np.full((2, 64, 1), 1e-3)])
    rgba = np.concatenate([rng.random((64, 64, 3)) * alpha, alpha], axis=-1).astype(np.float32)
    made = alphas.straight(rgba)
    for ground in GROUNDS.values():
        behind = np.array(ground, np.float64) / 255
        want = rgba[..., :3] + (1 - rgba[..., 3:]) * behind
        assert np.abs(over(Image.fromarray(made), ground) - want).max() <= 1.6 / 255
        assert np.abs(alphas.over(rgba, np.broadcast_to(behind, (64, 64, 3))) / 255 - want).max() <= 0.51 / 255
    assert not made[60:].any()


def test_alpha_cuts_out_what_was_drawn(pipe: Any) -> None:
    own, _ = given(pipe, segmenter=segmented)
    drawn, cut = (own.txt2img(PROMPT, **QUICK, **more).images[0] for more in ({}, {"alpha": True}))
    pixels, matte = np.asarray(cut), disc(64, soft=6)
    assert cut.mode == "RGBA" and np.array_equal(pixels[..., 3], np.rint(matte * 255))
    assert not pixels[matte == 0].any()
    assert np.array_equal(pixels[matte == 1][:, :3], np.asarray(drawn)[matte == 1])


def test_with_upscale_the_upscalers_own_colours_are_cut_out(pipe: Any) -> None:
    truth = np.concatenate([scene(256)[1], disc(256, soft=9)[..., None]], axis=-1).astype(np.float32)
    truth[..., :3] *= truth[..., 3:]
    own, engines = given(
        pipe, segmenter=segmented, upscaler=lambda rgb, matte: {"rgba": truth.transpose(2, 0, 1)[None]}
    )
    cut = own.txt2img(PROMPT, alpha=True, upscale=4, **QUICK).images[0]
    assert np.array_equal(np.asarray(cut), alphas.straight(truth))
    assert edge_error(cut, scene(256)[1], disc(256, soft=9)) <= 1.6 / 255
    assert np.array_equal(engines["upscaler"].seen[0]["matte"], segmented(np.zeros((1, 3, 64, 64)))["matte"])


def test_a_picture_beyond_the_models_size_is_segmented_at_that_size(pipe: Any) -> None:
    own, engines = given(pipe, segmenter=segmented)
    cut = own.txt2img(PROMPT, alpha=True, width=128, height=96, **QUICK).images[0]
    assert cut.size == (128, 96) and engines["segmenter"].seen[0]["image"].shape == (1, 3, 48, 64)
    want = np.asarray(Image.fromarray(disc(64, soft=6)).resize((64, 48)).resize((128, 96), Image.Resampling.BICUBIC))
    assert np.abs(np.asarray(cut)[..., 3] - want.clip(0, 1) * 255).max() <= 1


# --- Files, and what is refused ---


def test_png_and_webp_keep_alpha_and_jpeg_is_refused(tmp_path: Path) -> None:
    picture, _, matte = scene()
    rgba = np.concatenate([np.asarray(picture), np.rint(255 * matte[..., None]).astype(np.uint8)], axis=-1)
    rgba[rgba[..., 3] == 0] = 0
    image = Image.fromarray(rgba)
    assert np.array_equal(np.asarray(Image.open(save(image, tmp_path / "a.png"))), rgba)
    webp = Image.open(save(image, tmp_path / "a.webp"))
    assert webp.mode == "RGBA" and np.array_equal(np.asarray(webp)[..., 3], rgba[..., 3])
    assert psnr(over(webp, GROUNDS["white"]) * 255, over(image, GROUNDS["white"]) * 255) > 35
    with pytest.raises(InputError, match="alpha must be written as PNG or WebP"):
        save(image, tmp_path / "a.jpg")
    assert not (tmp_path / "a.jpg").exists()
    # Read as a source, it lies on white; so it does on a sheet.
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png"))[matte == 0], np.full((np.sum(matte == 0), 3), 255))
    assert np.array_equal(np.asarray(contact_sheet([image])), np.asarray(open_image(tmp_path / "a.png")))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (dict(upscale=4), "upscale needs the network upscaler, which this bundle lacks, got 4"),
        (dict(alpha=True), "alpha needs the network segmenter, which this bundle lacks, got True"),
        (dict(hires=2, hires_upscaler="upscaler"), "hires_upscaler needs the network upscaler"),
        (dict(upscale=2), "upscale must be 4, got 2"),
        (dict(upscale=4.0), "upscale must be 4, got 4.0"),
        (dict(alpha=1), "alpha must be True or False"),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_bundle_lacks_is_named_in_one_line(pipe: Any, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        pipe.txt2img(PROMPT, **QUICK, **asked)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--upscale", "4"], "network upscaler"), (["--alpha", "--out", "a.jpg"], "alpha")],
    ids=["upscale", "alpha"],
)
def test_the_command_line_says_so_and_writes_nothing(tmp_path: Path, more: list[str], said: str) -> None:
    done = hotloop("txt2img", PROMPT, "--steps", "2", *more, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
