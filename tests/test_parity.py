"""End to end on the built-in weights: hotloop against stock diffusers, same seed, same steps, every shared sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import psnr
from PIL import Image, ImageDraw

from hotloop import samplers

PROMPT = "A cute anime girl with pink hair, wearing a school uniform, smiling"
NEGATIVE = "blurry, watermark, low quality"
STEPS = 10
GUIDANCE = 4.0
# The stock image pipelines mis-step these at strength < 1: PNDM's step counter restarts on a sliced list, and LMS takes
# the order from the absolute step, so that fourth-order coefficients meet a history of one. test_samplers.py proves
# our tables for them against the schedulers themselves; compatible="diffusers" mis-steps as they do.
MISSTEPPED = {"plms", "pndm", "lms"}
COMMON = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE)
PARITY = dict(prompt_syntax="plain")


def common(sampler: str) -> dict[str, Any]:
    """LCM jumps to x0 and adds fresh noise in every row: under guidance that magnifies rounding a hundredfold from run
    to run of either pipeline. It is compared as it is used, without guidance."""
    return COMMON | ({"guidance_scale": 1.0} if sampler == "lcm" else {})


def eta(sampler: str) -> float:
    """Stock pipelines hand their own eta, 0, to every scheduler that takes one; TCD's own is 0.3."""
    return float(samplers.options(sampler).get("eta", 0.0))


def scene() -> Image.Image:
    """A drawn picture: what the VAE makes of it does not matter here, only that both pipelines see the same."""
    image = Image.new("RGB", (64, 64), (120, 160, 220))
    draw = ImageDraw.Draw(image)
    draw.ellipse((14, 12, 50, 58), fill=(240, 205, 180))
    draw.pieslice((10, 4, 54, 44), 180, 360, fill=(90, 50, 30))
    draw.ellipse((22, 30, 28, 38), fill=(40, 80, 200))
    draw.ellipse((36, 30, 42, 38), fill=(40, 80, 200))
    return image


def mask() -> Image.Image:
    image = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(image).rectangle((8, 4, 55, 27), fill=255)
    return image


def compare(ours: Any, latents: Any, picture: Image.Image) -> None:
    assert np.abs(ours.latents - latents).max() <= 1e-3
    assert psnr(ours.images[0], picture) >= 50


def stock_images(pipeline: Any, latents: np.ndarray) -> list[Image.Image]:
    import torch

    with torch.no_grad():
        decoded = pipeline.vae.decode(torch.from_numpy(latents) / pipeline.vae.config.scaling_factor).sample
    images: list[Image.Image] = pipeline.image_processor.postprocess(decoded)
    return images


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_txt2img_equals_the_baseline(pipe: Any, stock: Any, sampler: str) -> None:
    ours = pipe.txt2img(PROMPT, NEGATIVE, sampler=sampler, seed=11, **common(sampler), **PARITY)
    stock.use(sampler)
    theirs = stock.txt2img(
        PROMPT,
        negative_prompt=NEGATIVE,
        generator=stock.generators([11]),
        output_type="latent",
        eta=eta(sampler),
        **common(sampler),
    ).images.numpy()
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


@pytest.mark.parametrize("sampler", [name for name in samplers.NAMES if name not in MISSTEPPED])
def test_img2img_equals_the_baseline(pipe: Any, stock: Any, sampler: str) -> None:
    ours = pipe.img2img(
        PROMPT, NEGATIVE, image=scene(), strength=0.6, sampler=sampler, seed=3, **common(sampler), **PARITY
    )
    stock.use(sampler)
    theirs = stock.img2img(
        PROMPT, negative_prompt=NEGATIVE, image=scene(), strength=0.6, generator=stock.generators([3]),
        output_type="latent", eta=eta(sampler), **common(sampler),
    ).images.numpy()  # fmt: skip
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [(name, 1.0) for name in samplers.NAMES] + [(name, 0.6) for name in samplers.NAMES if name not in MISSTEPPED],
)
def test_inpaint_equals_the_baseline(pipe: Any, stock: Any, sampler: str, strength: float) -> None:
    options = dict(image=scene(), mask_image=mask(), strength=strength, **common(sampler))
    ours = pipe.inpaint(PROMPT, NEGATIVE, sampler=sampler, seed=5, paste=False, mask_blur=0, **options, **PARITY)
    stock.use(sampler)
    theirs = stock.inpaint(
        PROMPT, negative_prompt=NEGATIVE, generator=stock.generators([5]), output_type="latent",
        eta=eta(sampler), height=64, width=64, **options,
    ).images.numpy()  # fmt: skip
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


@pytest.mark.parametrize("sampler", ["plms", "pndm", "lms", "tcd"])
def test_compatible_draws_the_stock_picture_where_ours_differs_on_purpose(pipe: Any, stock: Any, sampler: str) -> None:
    """Nothing else is told: eta, prompt syntax, paste and blur are then stock's own."""
    given = dict(image=scene(), strength=0.6, **COMMON)
    stock.use(sampler)
    theirs = stock.img2img(
        PROMPT, negative_prompt=NEGATIVE, generator=stock.generators([3]), output_type="latent", **given
    ).images.numpy()
    picture = stock_images(stock.txt2img, theirs)[0]
    compare(pipe.img2img(PROMPT, NEGATIVE, sampler=sampler, seed=3, compatible="diffusers", **given), theirs, picture)
    assert psnr(pipe.img2img(PROMPT, NEGATIVE, sampler=sampler, seed=3, **given, **PARITY).images[0], picture) < 45

    given |= dict(mask_image=mask())
    theirs = stock.inpaint(
        PROMPT, generator=stock.generators([5]), output_type="latent", height=64, width=64, **given
    ).images.numpy()
    ours = pipe.inpaint(PROMPT, sampler=sampler, seed=5, compatible="diffusers", **given)
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


def test_compatible_with_nothing_else_told_is_the_stock_picture(pipe: Any, stock: Any) -> None:
    """Steps, guidance and strength too; emphasis in brackets is text there."""
    prompt = "a (smiling:1.4) girl with [purple] hair"
    ours = pipe.img2img(prompt, image=scene(), generator=stock.generators([3]), compatible="diffusers")
    stock.use("plms")
    theirs = stock.img2img(prompt, image=scene(), generator=stock.generators([3]), output_type="latent").images.numpy()
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_guidance_rescale_equals_the_baseline(pipe: Any, stock: Any, sampler: str) -> None:
    options = COMMON | dict(guidance_scale=7.5, guidance_rescale=0.7)
    ours = pipe.txt2img(PROMPT, NEGATIVE, sampler=sampler, seed=2, num_images=2, **options, **PARITY)
    stock.use(sampler)
    theirs = stock.txt2img(
        PROMPT, negative_prompt=NEGATIVE, generator=stock.generators([2, 3]), num_images_per_prompt=2,
        output_type="latent", **options,
    ).images.numpy()  # fmt: skip
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])
    plain = pipe.txt2img(PROMPT, NEGATIVE, sampler=sampler, seed=2, num_images=2, **COMMON | {"guidance_scale": 7.5})
    assert psnr(plain.images[0], ours.images[0]) < 40


def test_guidance_rescale_of_nothing_is_bit_for_bit_none(pipe: Any) -> None:
    options = dict(seed=2, num_inference_steps=3)
    zero = pipe.txt2img(PROMPT, guidance_scale=4.0, guidance_rescale=0.0, **options).latents
    assert np.array_equal(zero, pipe.txt2img(PROMPT, guidance_scale=4.0, **options).latents)
    # Without guidance there is nothing to bring back.
    off = pipe.txt2img(PROMPT, guidance_scale=1.0, guidance_rescale=0.7, **options).latents
    assert np.array_equal(off, pipe.txt2img(PROMPT, guidance_scale=1.0, **options).latents)


def band(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("L", size, 0)
    image.paste(255, box)
    return image


@pytest.mark.parametrize(
    ("size", "masked", "drawn"),
    [
        ((96, 64), (0, 0, 96, 64), (64, 64)),  # as large as the picture
        ((128, 40), (4, 2, 60, 38), (64, 64)),  # as high
        ((64, 96), (0, 10, 64, 90), (96, 64)),  # as wide, and drawn wide
        ((96, 96), (30, 30, 60, 60), (64, 64)),  # a region that reaches the proportions
    ],
)
def test_only_masked_inpainting_equals_the_baseline(pipe: Any, stock: Any, size: Any, masked: Any, drawn: Any) -> None:
    """A region that cannot take the drawing's proportions keeps its own."""
    image, area = scene().resize(size), band(size, masked)
    width, height = drawn
    options = dict(image=image, mask_image=area, padding_mask_crop=4, strength=1.0, width=width, height=height)
    ours = pipe.inpaint(PROMPT, NEGATIVE, sampler="ddim", seed=5, mask_blur=0, **options, **COMMON, **PARITY)
    stock.use("ddim")
    theirs = stock.inpaint(PROMPT, negative_prompt=NEGATIVE, generator=stock.generators([5]), **options, **COMMON)
    assert psnr(ours.images[0], theirs.images[0]) >= 50


@pytest.mark.parametrize("prompt", ["", " "])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_an_empty_prompt_equals_the_baseline(pipe: Any, stock: Any, prompt: str, guidance: float) -> None:
    """Unconditional img2img, and what is used to take objects away."""
    options = dict(image=scene(), strength=0.6, num_inference_steps=5, guidance_scale=guidance)
    ours = pipe.img2img(prompt, "", sampler="ddim", seed=3, **options, **PARITY)
    stock.use("ddim")
    theirs = stock.img2img(
        prompt, negative_prompt="", generator=stock.generators([3]), output_type="latent", **options
    ).images.numpy()
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


def test_a_mask_array_of_0_and_1_equals_the_baseline(pipe: Any, stock: Any) -> None:
    options = dict(image=scene(), mask_image=(np.asarray(mask()) > 0).astype(np.uint8), strength=1.0)
    ours = pipe.inpaint("", sampler="ddim", seed=5, paste=False, mask_blur=0, **options, **COMMON, **PARITY)
    stock.use("ddim")
    theirs = stock.inpaint(
        "", generator=stock.generators([5]), output_type="latent", height=64, width=64, **options, **COMMON
    ).images.numpy()
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


def test_a_batch_equals_the_baseline_with_one_generator_per_image(pipe: Any, stock: Any) -> None:
    ours = pipe.txt2img(PROMPT, sampler="euler_a", seed=40, num_images_per_prompt=3, **COMMON, **PARITY)
    stock.use("euler_a")
    theirs = stock.txt2img(
        PROMPT, num_images_per_prompt=3, generator=stock.generators([40, 41, 42]), output_type="latent", **COMMON
    ).images.numpy()
    assert ours.seeds == [40, 41, 42]
    for mine, picture in zip(ours.images, stock_images(stock.txt2img, theirs), strict=True):
        assert psnr(mine, picture) >= 50


def test_guidance_of_one_equals_the_baseline_without_guidance(pipe: Any, stock: Any) -> None:
    options = dict(num_inference_steps=STEPS, guidance_scale=1.0)
    ours = pipe.txt2img(PROMPT, sampler="ddim", seed=2, **options, **PARITY)
    stock.use("ddim")
    theirs = stock.txt2img(PROMPT, generator=stock.generators([2]), output_type="latent", **options).images.numpy()
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


def test_a_size_off_the_unets_own_grid_equals_the_baseline(pipe: Any, stock: Any) -> None:
    options = dict(width=76, height=52, **COMMON)
    ours = pipe.txt2img(PROMPT, sampler="ddim", seed=2, **options, **PARITY)
    stock.use("ddim")
    # Stock diffusers asks for multiples of 8 pixels, a literal; given latents it takes any.
    import torch

    noise = torch.randn((1, 4, 13, 19), generator=torch.Generator().manual_seed(2))
    stock.txt2img.check_inputs = lambda *args, **kwargs: None
    try:
        theirs = stock.txt2img(PROMPT, latents=noise, output_type="latent", **options).images.numpy()
    finally:
        del stock.txt2img.check_inputs
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


def test_pictures_that_are_not_at_the_size_drawn_equal_the_baseline(pipe: Any, stock: Any) -> None:
    stock.use("ddim")
    large, common = scene().resize((90, 70)), dict(output_type="latent", **COMMON)
    ours = pipe.img2img(PROMPT, image=large, strength=0.6, sampler="ddim", seed=3, **COMMON, **PARITY)
    theirs = stock.img2img(PROMPT, image=large, strength=0.6, generator=stock.generators([3]), **common).images.numpy()
    assert ours.images[0].size == (88, 68)
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])

    options = dict(image=large, mask_image=mask().resize((90, 70)), width=64, height=64)
    ours = pipe.inpaint(PROMPT, sampler="ddim", seed=5, paste=False, mask_blur=0, **options, **COMMON, **PARITY)
    theirs = stock.inpaint(PROMPT, generator=stock.generators([5]), **options, **common).images.numpy()
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


def test_clip_skip_equals_the_baseline(pipe: Any, stock: Any) -> None:
    import torch

    def penultimate(text: str) -> torch.Tensor:
        # As the stock pipeline does it; its own code reaches for a module that transformers 5 has flattened away.
        ids = stock.txt2img.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        encoder = stock.txt2img.text_encoder
        with torch.no_grad():
            hidden = encoder(ids, output_hidden_states=True).hidden_states[-2]
            return encoder.final_layer_norm(hidden)

    ours = pipe.txt2img(PROMPT, NEGATIVE, sampler="ddim", seed=8, clip_skip=1, **COMMON, **PARITY)
    stock.use("ddim")
    theirs = stock.txt2img(
        prompt_embeds=penultimate(PROMPT), negative_prompt_embeds=penultimate(NEGATIVE),
        generator=stock.generators([8]), output_type="latent", **COMMON,
    ).images.numpy()  # fmt: skip
    compare(ours, theirs, stock_images(stock.txt2img, theirs)[0])


@pytest.fixture(scope="module", params=["native", pytest.param("onnx", marks=pytest.mark.long)])
def nine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A narrow inpainting network of 9 channels with random weights: hotloop's pipeline and the stock one.

    Tracing it for ONNX takes a minute; test_graphs.py holds a graph of 9 channels to the network.
    """
    import shutil

    import diffusers
    import torch
    import transformers

    import hotloop
    from hotloop.bundle import builtin
    from hotloop_export.bundle import write_bundle
    from hotloop_export.recipe import Recipe, Target
    from hotloop_export.store import Store

    torch.manual_seed(0)
    source = tmp_path_factory.mktemp("nine") / "source"
    for part in ("tokenizer", "vae", "scheduler"):
        shutil.copytree(builtin() / part, source / part)
    shutil.copy(builtin() / "model_index.json", source)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(source / "tokenizer")
    end = tokenizer.eos_token_id
    transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=768,
            num_hidden_layers=2,
            num_attention_heads=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
        )
    ).save_pretrained(source / "text_encoder")
    diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=9, block_out_channels=(32, 48, 48, 48), layers_per_block=1,
        cross_attention_dim=768, attention_head_dim=4, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).save_pretrained(source / "unet")  # fmt: skip
    recipe = Recipe(source, family="sd15-inpaint", targets=(Target(request.param, "fp32"),))
    bundle = write_bundle(recipe, source.with_name("bundle"), store=Store(source.with_name("cache"))).path
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        bundle, safety_checker=None, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return hotloop.load(bundle), pipeline


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_nine_channel_inpaint_equals_the_baseline(nine: Any, stock: Any, sampler: str, strength: float) -> None:
    ours_pipe, theirs_pipe = nine
    stock.use(sampler, theirs_pipe)
    options = dict(image=scene(), mask_image=mask(), strength=strength, **COMMON)
    ours = ours_pipe.inpaint(PROMPT, NEGATIVE, sampler=sampler, seed=5, paste=False, mask_blur=0, **options, **PARITY)
    theirs = theirs_pipe(
        PROMPT, negative_prompt=NEGATIVE, generator=stock.generators([5]), output_type="latent",
        height=64, width=64, **options,
    ).images.numpy()  # fmt: skip
    compare(ours, theirs, stock_images(theirs_pipe, theirs)[0])


def test_a_nine_channel_network_is_for_inpainting_only(nine: Any) -> None:
    from hotloop.errors import InputError

    for call in (lambda: nine[0].txt2img(PROMPT, seed=1), lambda: nine[0].img2img(PROMPT, image=scene(), seed=1)):
        with pytest.raises(InputError, match="inpaint"):
            call()
