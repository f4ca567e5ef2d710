"""txt2img, img2img and inpaint: a few lines each over tokenizer, samplers, noise, loop and engines."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from . import image as images
from . import loop, samplers
from .adapters import Adapters, Swap
from .bundle import Bundle, Entry, builtin
from .denoiser import DeviceDenoiser, guidance_embedding
from .engines import Engine
from .errors import BundleError, InputError
from .files import cache_folder
from .networks import Networks
from .noise import SeededNoise
from .request import MAX_IMAGES, Options, Request, check_finite, check_integer, check_number
from .samplers import StepTable
from .samplers.schedule import Schedule
from .selection import Choice, choose
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


@dataclass(frozen=True)
class _Call:
    """What one call of a pipeline holds from its start to its end."""

    request: Request
    networks: Networks
    clock: _Clock


def load(
    bundle: str | Path | None = None, *, engine: str = "auto", device: str = "auto", threads: int | None = None,
    vae: str | None = None, adapters: bool = False,
) -> Pipeline:  # fmt: skip
    """Open a bundle directory (the built-in model by default) and its engines.

    engine   "auto": the fastest certified one that this machine can run; a kind of `hotloop.engines.KINDS`; or a kind
             with a precision, such as "openvino-bf16". `pipe.why` tells what was chosen and the reason.
    device   "auto", "cpu" or "cuda"
    threads  engine threads, all usable cores by default
    vae      "full" or "tiny", where the bundle carries a tiny VAE; the bundle's own choice by default
    adapters whether LoRAs will come and go: the engines are then opened so that the first shows as soon as it is
             merged, rather than after they are compiled again; each engine's module states what that costs per step

    Raises BundleError for a damaged bundle, InputError for an engine or device that is not there. With "auto" a faster
    engine that cannot run here is warned of.
    """
    opened = Bundle.open(builtin() if bundle is None else bundle)
    return Pipeline(opened, engine=engine, device=device, threads=threads, vae=vae, adapters=adapters)


class Pipeline:
    """A loaded model. `txt2img`, `img2img` and `inpaint` take diffusers' argument names; several threads may call.

    choice: an engine that was chosen before, in place of engine and device. given: engines that stand in place of the
    bundle's. keep_compiled: whether engines may keep what they compile in the user's cache folder.
    """

    def __init__(
        self, bundle: Bundle, *, engine: str = "auto", device: str = "auto", threads: int | None = None,
        vae: str | None = None, adapters: bool = False, choice: Choice | None = None,
        given: Mapping[str, Engine] | None = None, keep_compiled: bool = True,
    ) -> None:  # fmt: skip
        if threads is not None:
            check_integer("load", "threads", threads, 1, 1024)
        self.bundle, self.family = bundle, bundle.family
        self._vae = self._vae_prefix(vae or bundle.defaults.get("vae", "full"))
        choices = [choice] if choice else choose(bundle, engine, device)
        self.schedule = Schedule.from_config(bundle.scheduler_config, self.family.schedule)
        self.tokenizer = Tokenizer.from_dir(bundle.path / "tokenizer")
        networks, self.why = self._open(
            choices if "auto" in (engine, device) else choices[:1], threads, given, keep_compiled, adapters
        )
        self.adapters = Adapters(networks)
        self._grid = math.lcm(self.family.grid, self.entry.grid)
        # A schedule is fixed for the pipeline's life, so its compiled tables can be kept. The cache must not hold the
        # pipeline: gigabytes of engines would stay until the garbage collector looks.
        self._table = lru_cache(maxsize=64)(partial(_build_table, self.schedule))

    def _open(
        self, choices: Sequence[Choice], threads: int | None, given: Mapping[str, Engine] | None, keep_compiled: bool,
        adapters: bool,
    ) -> tuple[Networks, str]:  # fmt: skip
        """Open what every call needs, on the first choice that works; never silently on another."""
        for choice, after in zip(choices, [*choices[1:], None], strict=True):
            networks = Networks(
                self.bundle, choice.entry, device=choice.device, threads=threads, given=given, adapters=adapters,
                cache=cache_folder() / "compiled" / self.bundle.id if keep_compiled else None,
            )  # fmt: skip
            try:
                for name in ("text_encoder", "unet", self._vae + "vae_decoder"):
                    networks[name]
                return networks, choice.why
            except BundleError as error:
                if after is None:
                    raise
                instead = f"running {after.entry.name} on {after.device} instead"
                warnings.warn(f"{error}; {instead}", RuntimeWarning, stacklevel=4)
        raise AssertionError("there is at least one choice")

    def _vae_prefix(self, vae: str) -> str:
        """What the names of the VAE's networks begin with: nothing, or `tiny_`."""
        if vae not in ("full", "tiny"):
            raise InputError("load", "vae must be full or tiny", vae)
        if vae == "tiny" and "tiny_vae" not in self.bundle.manifest["weights"]:
            raise InputError("load", "this bundle carries no tiny VAE; export it with --vae", vae)
        return "tiny_" if vae == "tiny" else ""

    @property
    def networks(self) -> Networks:
        """The engines that the next call will use."""
        return self.adapters.networks

    @property
    def entry(self) -> Entry:
        """The engine of the bundle that runs."""
        return self.networks.entry

    @property
    def engine(self) -> str:
        """Its name, such as "openvino-bf16"."""
        return self.entry.name

    @property
    def device(self) -> str:
        return self.networks.device

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
        call = self._begin("txt2img", prompt, negative_prompt, options)
        request = call.request
        self._refuse_inpainting_network(request.place)
        width, height = self._size(request.place, width, height)
        table = self.table(request.sampler, request.steps, options=request.options)
        cond = self._encode_prompts(call)
        call.clock.lap("text")
        seeded = SeededNoise(request.seeds, request.rng)
        shape = self._latent_shape(width, height)
        noise = seeded.normal(shape) if latents is None else self._given_latents(latents, len(request.seeds), shape)
        x = noise * np.float32(table.init_scale)
        return self._finish(call, (width, height), table, x, cond, seeded)

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
        call = self._begin("img2img", prompt, negative_prompt, options)
        request = call.request
        self._refuse_inpainting_network(request.place)
        if resize_mode not in _RESIZE:
            raise InputError(request.place, "resize_mode must be one of " + ", ".join(_RESIZE), resize_mode)
        source = images.open_image(image)
        width, height = self._size(request.place, width, height, source.size)
        start = self._start(request, strength)
        table = self.table(request.sampler, request.steps, start=start, options=request.options)
        cond = self._encode_prompts(call)
        call.clock.lap("text")
        seeded = SeededNoise(request.seeds, request.rng)
        shape = self._latent_shape(width, height)
        pixels = images.to_float(_RESIZE[resize_mode](source, (width, height)))  # [1, 3, H, W]
        known = self._encode_image(call, pixels, seeded, shape)
        eps = seeded.normal(shape)
        x = np.float32(table.start_img) * known + np.float32(table.start_eps) * eps
        return self._finish(call, (width, height), table, x, cond, seeded)

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
        call = self._begin("inpaint", prompt, negative_prompt, options)
        request = call.request
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
        cond = self._encode_prompts(call)
        call.clock.lap("text")

        if region is None:
            source, source_mask = (images.resize(one, (width, height)) for one in (original, mask))
        else:  # a region at the picture's border may not reach the drawing's proportions
            source, source_mask = (images.fill(one.crop(region), (width, height)) for one in (original, mask))
        pixels = images.to_float(source)  # [1, 3, H, W]
        pixel_mask = images.mask_array(source_mask)  # [1, 1, H, W] of 0 and 1
        latent_mask = images.latent_mask(pixel_mask, self.family.vae_factor)  # [1, 1, h, w]
        if not latent_mask.any():
            rule = f"mask_image must leave white to repaint after a blur of {mask_blur:g}, at {width} x {height} pixels"
            raise InputError(request.place, rule, f"{int(np.sum(np.asarray(mask) >= 128))} white pixels")
        seeded = SeededNoise(request.seeds, request.rng)
        shape = self._latent_shape(width, height)

        # Draw order of the baseline: image posterior, noise, masked image posterior, then the steps.
        blend = not self.family.inpaint_channels
        known = self._encode_image(call, pixels, seeded, shape) if blend or start else None
        eps = seeded.normal(shape)
        masked = self._encode_image(call, pixels * (pixel_mask < 0.5), seeded, shape)
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
        result = self._finish(call, (width, height), table, x, cond, seeded, constraint)
        if paste:
            result.images[:] = [images.paste(original, drawn, mask, box=region) for drawn in result.images]
            call.clock.lap("paste")
        return result

    def table(self, sampler: str, steps: int, *, start: int = 0, options: Mapping[str, Any] | None = None) -> StepTable:
        """The compiled table of a sampler on this bundle's schedule; kept, since many calls share one."""
        return self._table(sampler, steps, start, tuple(sorted((options or {}).items())))

    def warmup(
        self, sizes: Iterable[tuple[int, int]] | None = None, batches: Iterable[int] = (1,), *, guidance: bool = True
    ) -> None:
        """Allocate buffers and run every network once for each (width, height) and number of images, for the bundle's
        own sampler and number of steps (on which the buffers of a split UNet's time table depend)."""
        shapes = [self._size("warmup", *size) for size in sizes or [self.family.default_size]]
        counts = list(batches)
        networks = self.networks
        encoder, decoder = (networks[self._vae + name] for name in ("vae_encoder", "vae_decoder"))
        for n in counts:
            check_integer("warmup", "batch", n, 1, MAX_IMAGES)
        networks["text_encoder"].prepare([{"B": 1, "T": self.family.vocab_tokens}])
        for width, height in shapes:
            for engine, batch in [(encoder, 1), *((decoder, n) for n in counts)]:
                engine.prepare([_pick(engine, self.family.dims(width=width, height=height, batch=batch))])
            for n in counts:
                self._warm_loop(networks, (n, *self._latent_shape(width, height)), guidance=guidance)

    def _warm_loop(self, networks: Networks, shape: tuple[int, ...], *, guidance: bool) -> None:
        """One step of the loop on zeros: makes the contexts that calls of this shape use."""
        n, family, defaults = shape[0], self.family, self.bundle.defaults
        table = self.table(defaults.get("sampler", "plms"), defaults.get("num_inference_steps", 50))
        context = np.zeros((n, family.vocab_tokens, family.context_dim), np.float32)
        cond = {"context": context}
        if self._told_guidance:
            cond["timestep_cond"] = self._guidance_embedding(n, 1.0)
        elif guidance:
            cond["negative_context"] = context
        if extra := family.unet_channels - family.latent_channels:
            cond["extra"] = np.zeros((n, extra, *shape[2:]), np.float32)
        with networks.denoiser() as denoiser:
            denoiser.begin(cond, table, shape)
            denoiser.step(np.zeros(shape, np.float32), np.zeros(n, np.int32))

    # Adapters.

    def load_lora(self, file: str | Path, scale: float | Mapping[str, float] = 1.0, *, name: str | None = None) -> Swap:
        """Draw with a LoRA file (kohya's, PEFT's or diffusers' keys; LoRA, LoCon, DoRA) from the next call on.

        scale  of the change, or block -> scale, such as {"down_blocks.1": 0.5, "text_encoder": 0}
        name   for `set_lora` and `unload_lora`, by default the file's

        Calls under way, in other threads, end with the weights they began with; those that begin while the new
        engines are made use the old ones. Waits until the switch; `pipe.adapters.load` gives a Future instead.
        Raises InputError for a LoRA that does not fit this model or an engine that cannot take one; then nothing has
        changed.
        """
        return self.adapters.load(Path(file), scale, name).result()

    def set_lora(self, name: str, scale: float | Mapping[str, float]) -> Swap:
        """Another scale for a loaded LoRA. Raises InputError for a name that is not loaded."""
        return self.adapters.set(name, scale).result()

    def unload_lora(self, name: str) -> Swap:
        """Take a LoRA away. Without any, images are again what they were, bit for bit."""
        return self.adapters.unload(name).result()

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents f32 [N, C, h, w] as they leave the loop -> pixels uint8 [N, H, W, 3]; one launch of the decoder."""
        if latents.ndim != 4 or latents.shape[1] != self.family.latent_channels:
            rule = f"latents must be [N, {self.family.latent_channels}, h, w]"
            raise InputError("decode", rule, latents.shape)
        return self._decode(self.networks, latents)

    def _decode(self, networks: Networks, latents: np.ndarray) -> np.ndarray:
        n, _, h, w = latents.shape
        factor = self.family.vae_factor
        dims = self.family.dims(width=w * factor, height=h * factor, batch=n)
        engine = networks[self._vae + "vae_decoder"]
        with engine.contexts.lease(**_pick(engine, dims)) as context:
            np.divide(latents, self._scaling, out=context.inputs["latents"])
            context.run()
            pixels = context.outputs["image"]
            check_finite("vae_decoder", "image", pixels)
            return images.to_rgb8(pixels)

    # Steps the pipelines share.

    def _begin(
        self,
        place: str,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        options: Options,
    ) -> _Call:
        clock = _Clock()
        defaults = self.bundle.defaults
        if place == "inpaint" and defaults.get("sampler") == "pndm":
            defaults = {**defaults, "sampler": "plms"}  # as stock pipelines, which repaint without Runge-Kutta steps
        request = Request.checked(
            place,
            prompt,
            negative_prompt,
            defaults=defaults,
            most_steps=self.schedule.num_train_timesteps,
            **options,
        )
        if self._told_guidance:
            request = replace(request, negatives=None)  # its guidance is an input: there is no second half
        return _Call(request, self.networks, clock)

    def _finish(
        self,
        call: _Call,
        size: tuple[int, int],
        table: StepTable,
        x: np.ndarray,
        cond: dict[str, np.ndarray],
        seeded: SeededNoise,
        inpaint: loop.Inpaint | None = None,
    ) -> Result:
        """Draw the steps' noise, run the loop, decode."""
        request, clock = call.request, call.clock
        # All noise of a run is made before the loop starts.
        draws = table.noises
        noise = np.stack([seeded.normal(x.shape[1:]) for _ in range(draws)]) if draws else None
        guidance = np.full(len(x), request.guidance, np.float32)
        clock.lap("prepare")
        decoder = self._vae + "vae_decoder"
        with call.networks.denoiser(decoder=decoder, scaling=float(self._scaling)) as denoiser:
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
        pixels = denoiser.pixels if isinstance(denoiser, DeviceDenoiser) else None
        if pixels is None:
            pixels = self._decode(call.networks, latents)
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

    @property
    def _scaling(self) -> np.float32:
        """Latents of the loop / scaling are the VAE's; the tiny one was trained on the loop's own."""
        return np.float32(1 if self._vae else self.family.scaling_factor)

    def _encode_prompts(self, call: _Call) -> dict[str, np.ndarray]:
        """Hidden states [N, chunks * T, C] of every prompt and, with guidance, of every negative prompt."""
        request, engine = call.request, call.networks["text_encoder"]
        texts = request.prompts if request.negatives is None else request.negatives + request.prompts
        # Each text is encoded once, however many images share it.
        unique = list(dict.fromkeys(texts))
        if request.long_prompt == "chunk":
            self._refuse_mixed_chunks(request)
        tokens = self.tokenizer.encode(unique, syntax=request.syntax, long_prompt=request.long_prompt)
        b, chunks, length = tokens.ids.shape
        output = "penultimate_hidden_state" if request.clip_skip else "last_hidden_state"
        hidden = np.empty((b, chunks, length, self.family.context_dim), np.float32)
        with engine.contexts.lease(B=chunks, T=length) as context:
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
        if self._told_guidance:
            return {"context": rows, "timestep_cond": self._guidance_embedding(n, request.guidance)}
        return {"context": rows} if request.negatives is None else {"negative_context": rows[:n], "context": rows[n:]}

    @property
    def _told_guidance(self) -> bool:
        """Whether the UNet takes its guidance as an input."""
        return "timestep_cond" in self.entry.groups

    def _guidance_embedding(self, n: int, guidance: float) -> np.ndarray:
        return guidance_embedding(np.full(n, guidance), self.family.cond_width)  # [N, cond_width]

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

    def _encode_image(self, call: _Call, pixels: np.ndarray, seeded: SeededNoise, shape: tuple[int, ...]) -> np.ndarray:
        """Pixels [1, 3, H, W] -> a posterior sample per image, scaled: f32 [N, C, h, w]."""
        _, _, height, width = pixels.shape
        dims = self.family.dims(width=width, height=height, batch=1)
        engine = call.networks[self._vae + "vae_encoder"]
        with engine.contexts.lease(**_pick(engine, dims)) as context:
            context.inputs["image"][:] = pixels
            context.run()
            mean, logvar = context.outputs["mean"].copy(), context.outputs["logvar"].copy()
        check_finite("vae_encoder", "latents", mean)
        deviation = np.exp(np.float32(0.5) * np.clip(logvar, -30, 20))
        return (mean + deviation * seeded.normal(shape)) * self._scaling

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
        grid, least, most = self._grid, self.family.min_cells * self.family.vae_factor, self.family.max_size
        default = self.family.default_size if source is None else tuple(side - side % grid for side in source)
        sides = []
        for name, asked, fallback in (("width", width, default[0]), ("height", height, default[1])):
            side = fallback if asked is None else asked
            if asked is None and not least <= side <= most:
                raise InputError(place, f"give width and height in {least}..{most} for an image of this size", source)
            check_integer(place, name, side, least, most)
            if side % grid:
                reason = f" with {self.engine}" if grid != self.family.grid else ""
                raise InputError(place, f"{name} must be a multiple of {grid}{reason}", side)
            sides.append(int(side))
        return sides[0], sides[1]


def _build_table(
    schedule: Schedule, sampler: str, steps: int, start: int, options: tuple[tuple[str, Any], ...]
) -> StepTable:
    known = samplers.options(sampler)
    for name, value in options:
        if name not in known:  # `start` and `steps` are the call's own, and no option can stand for them
            raise InputError("samplers", f"options of {sampler} must be among {', '.join(known)}", {name: value})
    return samplers.build(sampler, schedule, steps, start=start, **dict(options))


def _pick(engine: Engine, dims: Mapping[str, int]) -> dict[str, int]:
    """The symbols that this network's shapes use."""
    tensors = (*engine.network.inputs, *engine.network.outputs)
    used = {symbol for tensor in tensors for symbol in tensor.shape if isinstance(symbol, str)}
    return {symbol: dims[symbol] for symbol in used}
