"""txt2img, img2img and inpaint: a few lines each over tokenizer, samplers, noise, loop and engines."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from . import image as images
from . import loop, samplers
from .bundle import Bundle, builtin
from .denoiser import UNetDenoiser
from .engines import Engine, devices, open_engine
from .errors import BundleError, InputError
from .noise import Streams
from .request import MAX_IMAGES, Options, Request, check_finite, check_integer, check_number
from .samplers import StepTable
from .schedule import Schedule
from .tokenizer import Tokenizer, apply_weights

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Pipeline", "Result", "load"]

_RESIZE = {"default": images.resize, "fill": images.letterbox, "crop": images.centre_crop}  # diffusers' names


@dataclass(frozen=True)
class Result:
    """What a call made.

    images   PIL images, the prompts' in order, num_images_per_prompt of each
    seeds    the seed of each image: alone, with that seed, it comes out the same
    timings  seconds: text, prepare, loop (of which engine inside the UNet engine), vae, paste, total
    settings what stood for the arguments left out: num_inference_steps, guidance_scale, sampler, width, height
    latents  f32 [N, C, h, w], as they left the loop
    """

    images: list[Image]
    seeds: list[int]
    timings: dict[str, float]
    settings: dict[str, Any]
    latents: np.ndarray = field(repr=False)


class _Clock:
    """Seconds per named stage."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()
        self.timings: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings[stage] = self.timings.get(stage, 0.0) + now - self._last
        self.timings["total"] = now - self._begin
        self._last = now


def load(
    bundle: str | Path | None = None, *, engine: str = "auto", device: str = "auto", threads: int | None = None
) -> Pipeline:
    """Open a bundle directory (the built-in model by default) and its engines.

    engine: "auto" or a kind of `hotloop.engines.KINDS`; device: "auto", "cpu" or "cuda"; threads: engine threads,
    all usable cores by default. Raises BundleError for a damaged bundle, InputError for an unknown engine or device.
    """
    return Pipeline(Bundle.open(builtin() if bundle is None else bundle), engine=engine, device=device, threads=threads)


class Pipeline:
    """A loaded model. `txt2img`, `img2img` and `inpaint` take diffusers' argument names; several threads may call."""

    def __init__(
        self, bundle: Bundle, *, engine: str = "auto", device: str = "auto", threads: int | None = None
    ) -> None:
        if threads is not None:
            check_integer("load", "threads", threads, 1, 1024)
        self.bundle, self.family = bundle, bundle.family
        self.engine = _choose_engine(bundle, engine)
        self._threads = threads
        self.schedule = Schedule.from_config(bundle.scheduler_config, self.family.schedule)
        self.tokenizer = Tokenizer.from_dir(bundle.path / "tokenizer")
        self._open_on(device)
        # A schedule is fixed for the pipeline's life, so its compiled tables can be kept.
        self._table = lru_cache(maxsize=64)(self._build_table)

    @cached_property
    def vae_encoder(self) -> Engine:
        """Opened when an image comes in for the first time."""
        return self._open("vae_encoder")

    def _open_on(self, device: str) -> None:
        """Open what every call needs; with "auto" on the fastest device that works, and never silently on another."""
        self.device = devices(self.engine)[0] if device == "auto" else device
        try:
            self.text_encoder = self._open("text_encoder")
            self.unet = self._open("unet")
            self.vae_decoder = self._open("vae_decoder")
        except BundleError as error:
            if device != "auto" or self.device == "cpu":
                raise
            warnings.warn(f"{error}; running on the CPU instead", RuntimeWarning, stacklevel=4)
            self._open_on("cpu")

    def _open(self, network: str) -> Engine:
        spec = self.family.networks[network]
        return open_engine(
            self.engine, self.bundle.network_file(network), spec, device=self.device, threads=self._threads
        )

    # Pipelines.

    def txt2img(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        width: int | None = None,
        height: int | None = None,
        latents: np.ndarray | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Draw images from words.

        prompt, negative_prompt: text or a list of texts. width, height: pixels, multiples of the family's factor.
        latents: f32 [N, C, h, w] of unit noise, in place of the seed's own.
        options: as listed in `hotloop.request.Options`.
        Raises InputError for an argument out of range, NonFiniteError instead of returning a broken image.
        """
        clock = _Clock()
        request = self._checked("txt2img", prompt, negative_prompt, options)
        self._refuse_inpainting_network(request.place)
        width, height = self._size(request.place, width, height)
        table = self.table(request.sampler, request.steps, options=request.options)
        cond = self._encode_prompts(request)
        clock.lap("text")
        streams = Streams(request.seeds, request.rng)
        shape = self._latent_shape(width, height)
        noise = streams.normal(shape) if latents is None else self._given_latents(latents, len(request.seeds), shape)
        x = noise * np.float32(table.init_scale)
        return self._finish(request, (width, height), table, x, cond, streams, clock)

    def img2img(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        image: Any,
        strength: float = 0.6,
        width: int | None = None,
        height: int | None = None,
        resize_mode: str = "default",
        **options: Unpack[Options],
    ) -> Result:
        """Redraw an image after a prompt.

        image: path, PIL image or uint8 [H, W, 3]; brought to width x height (its own size rounded down to the grid by
        default) as resize_mode says: "default" stretches, "fill" adds bars, "crop" takes the middle.
        strength in (0, 1]: the share of the steps that is run, N - min(int(N * strength), N) are skipped.
        Everything else as in `txt2img`.
        """
        clock = _Clock()
        request = self._checked("img2img", prompt, negative_prompt, options)
        self._refuse_inpainting_network(request.place)
        if resize_mode not in _RESIZE:
            raise InputError(request.place, "resize_mode must be one of " + ", ".join(_RESIZE), resize_mode)
        source = images.open_image(image)
        width, height = self._size(request.place, width, height, source.size)
        start = self._start(request, strength)
        table = self.table(request.sampler, request.steps, start=start, options=request.options)
        cond = self._encode_prompts(request)
        clock.lap("text")
        streams = Streams(request.seeds, request.rng)
        shape = self._latent_shape(width, height)
        pixels = images.to_float(_RESIZE[resize_mode](source, (width, height)))  # [1, 3, H, W]
        known = self._encode_image(pixels, streams, shape)
        eps = streams.normal(shape)
        x = np.float32(table.start_img) * known + np.float32(table.start_eps) * eps
        return self._finish(request, (width, height), table, x, cond, streams, clock)

    def inpaint(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        image: Any,
        mask_image: Any,
        strength: float = 1.0,
        paste: bool = True,
        mask_blur: float | None = None,
        padding_mask_crop: int | None = None,
        width: int | None = None,
        height: int | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Repaint the white part of a mask.

        image as in `img2img`; mask_image: path, PIL image or uint8 [H, W] of the image's size, white = repaint.
        strength: 1 starts from pure noise. mask_blur: standard deviation in pixels of the image (default: 1/128 of
        its width) by which the mask's edge is softened. paste: put the original back where the blurred mask is 0, bit
        for bit; the result then has the original's size. padding_mask_crop: draw only the masked region, with that
        many pixels around it, at width x height (the family's default size), and paste it back ("only masked").
        With a 4-channel UNet the known latents are blended in after every row; a 9-channel one sees them as input.
        """
        clock = _Clock()
        request = self._checked("inpaint", prompt, negative_prompt, options)
        original = images.open_image(image)
        mask = images.open_mask(mask_image, size=original.size)
        only_masked = padding_mask_crop is not None
        width, height = self._size(request.place, width, height, None if only_masked else original.size)
        if mask_blur is None:
            mask_blur = original.width / 128 if paste else 0.0
        check_number(request.place, "mask_blur", mask_blur, 0, 256)
        mask = images.blur(mask, mask_blur)
        region = None
        if padding_mask_crop is not None:
            if not paste:
                raise InputError(request.place, "padding_mask_crop needs paste=True", paste)
            check_integer(request.place, "padding_mask_crop", padding_mask_crop, 0, 4096)
            region = images.mask_region(mask, padding=padding_mask_crop, aspect=width / height)
        start = self._start(request, strength)
        table = self.table(request.sampler, request.steps, start=start, options=request.options)
        cond = self._encode_prompts(request)
        clock.lap("text")

        source, source_mask = (original, mask) if region is None else (original.crop(region), mask.crop(region))
        pixels = images.to_float(images.resize(source, (width, height)))  # [1, 3, H, W]
        pixel_mask = images.mask_array(images.resize(source_mask, (width, height)))  # [1, 1, H, W] of 0 and 1
        latent_mask = images.latent_mask(pixel_mask, self.family.vae_factor)  # [1, 1, h, w]
        if not latent_mask.any():
            rule = f"mask_image must leave white to repaint after a blur of {mask_blur:g}, at {width} x {height} pixels"
            raise InputError(request.place, rule, f"{int(np.sum(np.asarray(mask) >= 128))} white pixels")
        streams = Streams(request.seeds, request.rng)
        shape = self._latent_shape(width, height)

        # Draw order of the baseline: image posterior, noise, masked image posterior, then the steps.
        blend = not self.family.inpaint_channels
        known = self._encode_image(pixels, streams, shape) if blend or start else None
        eps = streams.normal(shape)
        masked = self._encode_image(pixels * (pixel_mask < 0.5), streams, shape)
        # At full strength the baseline starts from pure noise, not from the image with the last step's noise on it.
        if strength == 1.0 or known is None:
            x = np.float32(table.init_scale) * eps
        else:
            x = np.float32(table.start_img) * known + np.float32(table.start_eps) * eps
        constraint = None
        if blend:
            assert known is not None
            constraint = loop.Inpaint(mask=np.repeat(latent_mask, len(x), axis=0), known=known, eps=eps)
        else:
            cond["extra"] = np.concatenate([np.repeat(latent_mask, len(x), axis=0), masked], axis=1)
        result = self._finish(request, (width, height), table, x, cond, streams, clock, constraint)
        if paste:
            result.images[:] = [images.paste(original, drawn, mask, box=region) for drawn in result.images]
            clock.lap("paste")
        return result

    def table(self, sampler: str, steps: int, *, start: int = 0, options: Mapping[str, Any] | None = None) -> StepTable:
        """The compiled table of a sampler on this bundle's schedule; kept, since many calls share one."""
        return self._table(sampler, steps, start, tuple(sorted((options or {}).items())))

    def warmup(
        self, sizes: Iterable[tuple[int, int]] | None = None, batches: Iterable[int] = (1,), *, guidance: bool = True
    ) -> None:
        """Allocate buffers and run every network once for each (width, height) and number of images."""
        halves = 2 if guidance else 1
        shapes = [self._size("warmup", *size) for size in sizes or [self.family.default_size]]
        counts = list(batches)
        for n in counts:
            check_integer("warmup", "batch", n, 1, MAX_IMAGES)
        for width, height in shapes:
            for engine, batch in [
                (self.text_encoder, 1),
                (self.vae_encoder, 1),
                *((self.unet, halves * n) for n in counts),
                *((self.vae_decoder, n) for n in counts),
            ]:
                engine.prepare([_pick(engine, self.family.dims(width=width, height=height, batch=batch))])

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents f32 [N, C, h, w] as they leave the loop -> pixels uint8 [N, H, W, 3]; one launch of the decoder."""
        if latents.ndim != 4 or latents.shape[1] != self.family.latent_channels:
            rule = f"latents must be [N, {self.family.latent_channels}, h, w]"
            raise InputError("decode", rule, latents.shape)
        n, _, h, w = latents.shape
        factor = self.family.vae_factor
        dims = self.family.dims(width=w * factor, height=h * factor, batch=n)
        with self.vae_decoder.contexts.lease(**_pick(self.vae_decoder, dims)) as context:
            np.divide(latents, np.float32(self.family.scaling_factor), out=context.inputs["latents"])
            context.run()
            pixels = context.outputs["image"]
            check_finite("vae_decoder", "image", pixels)
            return images.to_rgb8(pixels)

    # Steps the pipelines share.

    def _checked(
        self,
        place: str,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        options: Options,
    ) -> Request:
        return Request.checked(
            place,
            prompt,
            negative_prompt,
            defaults=self.bundle.defaults,
            most_steps=self.schedule.num_train_timesteps,
            **options,
        )

    def _finish(
        self,
        request: Request,
        size: tuple[int, int],
        table: StepTable,
        x: np.ndarray,
        cond: dict[str, np.ndarray],
        streams: Streams,
        clock: _Clock,
        inpaint: loop.Inpaint | None = None,
    ) -> Result:
        """Draw the steps' noise, run the loop, decode."""
        # All noise of a run is made before the loop starts.
        draws = table.noises
        noise = np.stack([streams.normal(x.shape[1:]) for _ in range(draws)]) if draws else None
        guidance = np.full(len(x), request.guidance, np.float32)
        clock.lap("prepare")
        with UNetDenoiser(self.unet) as denoiser:
            if request.callback is None:
                latents = loop.run(denoiser, table, x, cond=cond, guidance=guidance, noise=noise, inpaint=inpaint)
            else:
                rows = loop.denoise(denoiser, table, x, cond=cond, guidance=guidance, noise=noise, inpaint=inpaint)
                for progress in rows:
                    request.callback(progress)
                latents = progress.latents.copy()
            clock.lap("loop")
            clock.timings["engine"] = denoiser.seconds
        check_finite(request.place, "latents", latents)
        pixels = self.decode(latents)
        made = images.from_array(pixels)
        clock.lap("vae")
        settings = dict(
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            sampler=request.sampler,
            width=size[0],
            height=size[1],
        )
        return Result(made, request.seeds, clock.timings, settings, latents)

    def _encode_prompts(self, request: Request) -> dict[str, np.ndarray]:
        """Hidden states [N, chunks * T, C] of every prompt and, with guidance, of every negative prompt."""
        texts = request.prompts if request.negatives is None else request.negatives + request.prompts
        # Each text is encoded once, however many images share it.
        unique = list(dict.fromkeys(texts))
        if request.long_prompt == "chunk":
            self._refuse_mixed_chunks(request)
        tokens = self.tokenizer.encode(unique, syntax=request.syntax, long_prompt=request.long_prompt)
        b, chunks, length = tokens.ids.shape
        output = "penultimate_hidden_state" if request.clip_skip else "last_hidden_state"
        hidden = np.empty((b, chunks, length, self.family.context_dim), np.float32)
        with self.text_encoder.contexts.lease(B=chunks, T=length) as context:
            # One text at a time: what stands beside a prompt must not reach its last bits.
            for i in range(b):
                context.inputs["input_ids"][:] = tokens.ids[i]
                context.run()
                hidden[i] = context.outputs[output]
        if np.any(tokens.weights != 1):
            flat = hidden.reshape(b * chunks, length, -1)
            hidden = apply_weights(flat, tokens.weights.reshape(b * chunks, length)).reshape(hidden.shape)
        states = hidden.reshape(b, chunks * length, -1)
        check_finite("text_encoder", "hidden states", states)
        rows = states[[unique.index(text) for text in texts]]
        n = len(request.prompts)
        return {"context": rows} if request.negatives is None else {"negative_context": rows[:n], "context": rows[n:]}

    def _refuse_mixed_chunks(self, request: Request) -> None:
        """A batch shares one number of windows; a shorter prompt padded to it would not be its single run."""
        pairs = set(zip(request.prompts, request.negatives or request.prompts, strict=True))
        encode = partial(self.tokenizer.encode, syntax=request.syntax, long_prompt="chunk")
        if len(counts := {encode(list(pair)).ids.shape[1] for pair in pairs}) > 1:
            rule = "long_prompt='chunk' needs prompts of one number of 75-token windows per call"
            raise InputError(request.place, rule, sorted(counts))

    def _refuse_inpainting_network(self, place: str) -> None:
        if self.family.inpaint_channels:
            rule = f"{self.family.name} takes mask and masked image as input: call inpaint"
            raise InputError(place, rule, f"{self.family.unet_channels} channels")

    def _encode_image(self, pixels: np.ndarray, streams: Streams, shape: tuple[int, ...]) -> np.ndarray:
        """Pixels [1, 3, H, W] -> a posterior sample per image, scaled: f32 [N, C, h, w]."""
        _, _, height, width = pixels.shape
        dims = self.family.dims(width=width, height=height, batch=1)
        with self.vae_encoder.contexts.lease(**_pick(self.vae_encoder, dims)) as context:
            context.inputs["image"][:] = pixels
            context.run()
            mean, logvar = context.outputs["mean"].copy(), context.outputs["logvar"].copy()
        check_finite("vae_encoder", "latents", mean)
        deviation = np.exp(np.float32(0.5) * np.clip(logvar, -30, 20))
        return (mean + deviation * streams.normal(shape)) * np.float32(self.family.scaling_factor)

    def _build_table(self, sampler: str, steps: int, start: int, options: tuple[tuple[str, Any], ...]) -> StepTable:
        known = samplers.options(sampler)
        for name, value in options:
            if name not in known:  # `start` and `steps` are the call's own, and no option can stand for them
                raise InputError("samplers", f"options of {sampler} must be among {', '.join(known)}", {name: value})
        return samplers.build(sampler, self.schedule, steps, start=start, **dict(options))

    def _start(self, request: Request, strength: float) -> int:
        check_number(request.place, "strength", strength, 0, 1)
        start = request.steps - min(int(request.steps * strength), request.steps)
        if start == request.steps:
            raise InputError(
                request.place, f"strength times {request.steps} steps must leave at least one step", strength
            )
        return start

    def _latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.family.latent_channels, height // self.family.vae_factor, width // self.family.vae_factor

    def _given_latents(self, latents: np.ndarray, n: int, shape: tuple[int, ...]) -> np.ndarray:
        try:
            latents = np.asarray(latents, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError("txt2img", f"latents must be numbers of shape {(n, *shape)}", latents) from error
        if latents.shape != (n, *shape):
            raise InputError("txt2img", f"latents must have the shape {(n, *shape)}", latents.shape)
        check_finite("txt2img", "latents", latents)
        return latents

    def _size(
        self, place: str, width: int | None, height: int | None, source: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """The size to draw at: as asked, else the source's rounded down to the grid, else the family's default."""
        grid, least, most = self.family.grid, self.family.min_cells * self.family.vae_factor, self.family.max_size
        default = self.family.default_size if source is None else tuple(side - side % grid for side in source)
        sides = []
        for name, asked, fallback in (("width", width, default[0]), ("height", height, default[1])):
            side = fallback if asked is None else asked
            if asked is None and not least <= side <= most:
                raise InputError(place, f"give width and height in {least}..{most} for an image of this size", source)
            check_integer(place, name, side, least, most)
            if side % grid:
                raise InputError(place, f"{name} must be a multiple of {grid}", side)
            sides.append(int(side))
        return sides[0], sides[1]


def _choose_engine(bundle: Bundle, asked: str) -> str:
    built = [entry["kind"] for entry in bundle.manifest["engines"]]
    if asked == "auto":
        return built[0]
    if asked not in built:
        raise InputError("load", f"engine must be auto or one this bundle was built with: {', '.join(built)}", asked)
    return asked


def _pick(engine: Engine, dims: Mapping[str, int]) -> dict[str, int]:
    """The symbols that this network's shapes use."""
    tensors = (*engine.network.inputs, *engine.network.outputs)
    used = {symbol for tensor in tensors for symbol in tensor.shape if isinstance(symbol, str)}
    return {symbol: dims[symbol] for symbol in used}
