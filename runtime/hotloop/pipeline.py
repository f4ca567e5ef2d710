"""txt2img, img2img and inpaint: a few lines each over tokenizer, samplers, noise, loop and engines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from . import image as images
from . import loop, samplers
from .adapters import Adapters, Swap
from .autoencoder import Autoencoder
from .bundle import Bundle, Entry, builtin
from .checks import check_finite, check_integer, check_number
from .conditioning import Cond, Conditioning, TextEncoder
from .denoiser import DeviceDenoiser, Inpaint
from .engines import Engine
from .errors import InputError
from .files import cache_folder
from .image.canvas import Canvas, Frame
from .networks import Networks, open_networks
from .noise import SeededNoise
from .request import MAX_IMAGES, Options, Request, drawing_size
from .samplers import StepTable
from .samplers.schedule import Schedule
from .selection import Choice, choose

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
        self.autoencoder = Autoencoder(bundle, vae or bundle.defaults.get("vae", "full"))
        choices = [choice] if choice else choose(bundle, engine, device)
        self.schedule = Schedule.from_config(bundle.scheduler_config, self.family.schedule)
        self.conditioning = Conditioning([TextEncoder.open(bundle)])
        self.tokenizer = self.conditioning.encoders[0].tokenizer
        networks, self.why = open_networks(
            bundle, choices if "auto" in (engine, device) else choices[:1],
            ("text_encoder", "unet", self.autoencoder.decoder), threads=threads, given=given, adapters=adapters,
            cache=cache_folder() / "compiled" / bundle.id if keep_compiled else None,
        )  # fmt: skip
        self.adapters = Adapters(networks)
        # A schedule is fixed for the pipeline's life, so its compiled tables can be kept. The cache must not hold the
        # pipeline: gigabytes of engines would stay until the garbage collector looks.
        self._table = lru_cache(maxsize=64)(partial(_build_table, self.schedule))

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
        size = self._size(request.place, width, height)
        table = self.table(request.sampler, request.steps, options=request.options)
        cond = self._condition(call)
        seeded, shape = SeededNoise(request.seeds, request.rng), self.autoencoder.latent_shape(*size)
        noise = seeded.normal(shape) if latents is None else _given_latents(latents, (len(request.seeds), *shape))
        return self._draw(call, size, table, noise * np.float32(table.init_scale), cond, seeded)

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
        size = self._size(request.place, width, height, source.size)
        table = self.table(request.sampler, request.steps, start=request.start(strength), options=request.options)
        cond = self._condition(call)
        seeded = SeededNoise(request.seeds, request.rng)
        pixels = images.to_float(_RESIZE[resize_mode](source, size))  # [1, 3, H, W]
        known = self.autoencoder.encode(call.networks, pixels, seeded)
        x = _noised(table, known, seeded.normal(known.shape[1:]))
        return self._draw(call, size, table, x, cond, seeded)

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
        only_masked = padding_mask_crop is not None
        size = self._size(request.place, width, height, None if only_masked else original.size)
        blur = (original.width / 128 if paste else 0.0) if mask_blur is None else mask_blur
        check_number(request.place, "mask_blur", blur, 0, 256)
        if only_masked and not paste:
            raise InputError(request.place, "padding_mask_crop needs paste=True", paste)
        canvas = Canvas.open(original, mask_image, blur=blur)
        if padding_mask_crop is not None:
            check_integer(request.place, "padding_mask_crop", padding_mask_crop, 0, 4096)
            canvas = canvas.only_masked(padding_mask_crop, size)
        start = request.start(strength)
        table = self.table(request.sampler, request.steps, start=start, options=request.options)
        cond = self._condition(call)
        frame = canvas.frame(request.place, size, self.family.vae_factor)
        seeded = SeededNoise(request.seeds, request.rng)
        known, eps, masked = self._masked_latents(call, frame, seeded, needs_known=start > 0)
        # At full strength the baseline starts from pure noise, not from the image with the last step's noise on it.
        x = np.float32(table.init_scale) * eps if strength == 1 or known is None else _noised(table, known, eps)
        mask = np.repeat(frame.latent_mask, len(x), axis=0)
        blend = None
        if self.family.inpaint_channels:
            cond["extra"] = np.concatenate([mask, masked], axis=1)
        elif known is not None:
            blend = Inpaint(mask=mask, known=known, eps=eps)
        result = self._draw(call, size, table, x, cond, seeded, blend)
        if paste:
            result.images[:] = [canvas.put_back(drawn) for drawn in result.images]
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
        for n in counts:
            check_integer("warmup", "batch", n, 1, MAX_IMAGES)
        networks = self.networks
        networks["text_encoder"].prepare([{"B": 1, "T": self.family.vocab_tokens}])
        for size in shapes:
            self.autoencoder.prepare(networks, *size, counts)
            for n in counts:
                self._warm_loop(networks, (n, *self.autoencoder.latent_shape(*size)), guidance=guidance)

    def _warm_loop(self, networks: Networks, shape: tuple[int, ...], *, guidance: bool) -> None:
        """One step of the loop on zeros: makes the contexts that calls of this shape use."""
        n, family, defaults = shape[0], self.family, self.bundle.defaults
        table = self.table(defaults.get("sampler", "plms"), defaults.get("num_inference_steps", 50))
        context = np.zeros((n, family.vocab_tokens, family.context_dim), np.float32)
        cond = {"context": context} | ({"negative_context": context} if guidance else {})
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
        return self.autoencoder.decode(self.networks, latents)

    # Steps the pipelines share.

    def _begin(
        self, place: str, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None, options: Options
    ) -> _Call:
        clock = _Clock()
        request = Request.checked(
            place, prompt, negative_prompt, defaults=self.bundle.defaults,
            most_steps=self.schedule.num_train_timesteps, **options,
        )  # fmt: skip
        return _Call(request, self.networks, clock)

    def _size(
        self, place: str, width: int | None, height: int | None, source: tuple[int, int] | None = None
    ) -> tuple[int, int]:
        grid, engine = self.entry.grid, self.engine
        return drawing_size(place, self.family, width, height, source=source, grid=grid, engine=engine)

    def _refuse_inpainting_network(self, place: str) -> None:
        if self.family.inpaint_channels:
            rule = f"{self.family.name} takes mask and masked image as input: call inpaint"
            raise InputError(place, rule, f"{self.family.unet_channels} channels")

    def _condition(self, call: _Call) -> Cond:
        cond = self.conditioning.encode(call.networks, call.request)
        call.clock.lap("text")
        return cond

    def _masked_latents(
        self, call: _Call, frame: Frame, seeded: SeededNoise, *, needs_known: bool
    ) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
        """The image, unit noise and the image without what the mask covers, each f32 [N, C, h, w].

        Drawn in the baseline's order: image posterior, noise, masked image's posterior, then the steps. A network that
        sees mask and image itself needs the first only to start from it.
        """
        encode = partial(self.autoencoder.encode, call.networks)
        known = encode(frame.pixels, seeded) if needs_known or not self.family.inpaint_channels else None
        eps = seeded.normal(self.autoencoder.latent_shape(*frame.size))
        return known, eps, encode(frame.masked_pixels, seeded)

    def _draw(
        self, call: _Call, size: tuple[int, int], table: StepTable, x: np.ndarray, cond: Cond, seeded: SeededNoise,
        inpaint: Inpaint | None = None,
    ) -> Result:  # fmt: skip
        """Draw the steps' noise, run the loop, decode."""
        request, clock = call.request, call.clock
        # All noise of a run is made before the loop starts.
        draws = table.noises
        noise = np.stack([seeded.normal(x.shape[1:]) for _ in range(draws)]) if draws else None
        given: dict[str, Any] = dict(
            cond=cond, guidance=np.full(len(x), request.guidance, np.float32), noise=noise, inpaint=inpaint
        )
        clock.lap("prepare")
        vae = self.autoencoder
        with call.networks.denoiser(decoder=vae.decoder, scaling=float(vae.scaling)) as denoiser:
            if request.callback is None:
                latents = loop.run(denoiser, table, x, **given)
            else:
                for progress in loop.denoise(denoiser, table, x, **given):
                    request.callback(progress)
                latents = progress.latents.copy()
            clock.lap("loop")
            clock.timings["engine"] = denoiser.seconds
        check_finite(request.place, "latents", latents)
        pixels = denoiser.pixels if isinstance(denoiser, DeviceDenoiser) else None
        made = images.from_array(vae.decode(call.networks, latents) if pixels is None else pixels)
        clock.lap("vae")
        settings = dict(
            num_inference_steps=request.steps, guidance_scale=request.guidance, sampler=request.sampler,
            width=size[0], height=size[1],
        )  # fmt: skip
        return Result(made, request.seeds, clock.timings, settings, latents)


def _noised(table: StepTable, known: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """An image's latents with the noise of the table's start on them."""
    return np.float32(table.start_img) * known + np.float32(table.start_eps) * eps


def _given_latents(latents: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        latents = np.asarray(latents, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError("txt2img", f"latents must be numbers of shape {shape}", latents) from error
    if latents.shape != shape:
        raise InputError("txt2img", f"latents must have the shape {shape}", latents.shape)
    check_finite("txt2img", "latents", latents)
    return latents


def _build_table(
    schedule: Schedule, sampler: str, steps: int, start: int, options: tuple[tuple[str, Any], ...]
) -> StepTable:
    known = samplers.options(sampler)
    for name, value in options:
        if name not in known:  # `start` and `steps` are the call's own, and no option can stand for them
            raise InputError("samplers", f"options of {sampler} must be among {', '.join(known)}", {name: value})
    return samplers.build(sampler, schedule, steps, start=start, **dict(options))
