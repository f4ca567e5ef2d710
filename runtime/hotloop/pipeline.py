"""txt2img, img2img and inpaint: a few lines each over tokenizer, samplers, noise, loop and engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from . import image as images
from .adapters import Adapters, Swap
from .autoencoder import Autoencoder
from .bundle import Bundle, Entry, builtin
from .call import Call, Result
from .checks import check_integer
from .conditioning import Conditioning, TextEncoder
from .denoiser import guidance_embedding
from .engines import Engine
from .errors import InputError
from .files import cache_folder
from .image.canvas import RESIZE_MODES, Canvas
from .networks import Networks, open_networks
from .passes import Passes
from .request import MAX_IMAGES, Img2Img, Inpaint, Request, Txt2Img, bundle_defaults, documented
from .samplers import StepTable
from .samplers.schedule import Schedule
from .selection import Choice, choose
from .spec import GeneratorFamily

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Pipeline", "Result", "load"]


def load(
    bundle: str | Path | None = None, *, engine: str = "auto", device: str = "auto", threads: int | None = None,
    vae: str | None = None, adapters: bool = False,
) -> Pipeline:  # fmt: skip
    """Open a bundle and its engines.

    bundle   a folder, or a built-in model's name, such as "avatar-tiny"; by default the first of these
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
        if isinstance(bundle.family, GeneratorFamily):
            raise InputError("load", "this bundle holds a generator: hotloop.load_generator opens it", str(bundle.path))
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
        # Nothing here may hold the pipeline: gigabytes of engines would stay until the garbage collector looks.
        self._passes = Passes(self.family, self.schedule, networks.entry)

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

    @documented("txt2img")
    def txt2img(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None, **given: Unpack[Txt2Img]
    ) -> Result:
        """Draw images from words.

        Raises InputError for an argument out of range, NonFiniteError instead of returning a broken image.
        """
        call = self._begin("txt2img", prompt, negative_prompt, given)
        self._refuse_inpainting_network(call.request)
        passes = self._passes.of(call.request)
        cond = call.condition(self.conditioning)
        noise = call.given_noise(passes[0].size)
        return call.draw(passes, noise * np.float32(passes[0].table.init_scale), cond)

    @documented("img2img")
    def img2img(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None, **given: Unpack[Img2Img]
    ) -> Result:
        """Redraw an image after a prompt: brought to width x height, its own size rounded down to the grid by default.

        Raises InputError and NonFiniteError as `txt2img` does.
        """
        call = self._begin("img2img", prompt, negative_prompt, given)
        request = call.request
        self._refuse_inpainting_network(request)
        source = images.open_image(request["image"])
        passes = self._passes.of(request, source.size)
        cond = call.condition(self.conditioning)
        known = images.to_float(RESIZE_MODES[request["resize_mode"]](source, passes[0].size))
        return call.draw(passes, call.noised(passes[0].table, call.encode(known)), cond)

    @documented("inpaint")
    def inpaint(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None, **given: Unpack[Inpaint]
    ) -> Result:
        """Repaint the white part of a mask; a strength of 1 starts from pure noise.

        With padding_mask_crop ("only masked") the region is drawn at width x height, by default the family's size.
        With a 4-channel UNet the known latents are blended in after every row; a 9-channel one sees them as input.
        Raises InputError and NonFiniteError as `txt2img` does.
        """
        call = self._begin("inpaint", prompt, negative_prompt, given)
        request = call.request
        original = images.open_image(request["image"])
        passes = self._passes.of(request, original.size if request["padding_mask_crop"] is None else None)
        canvas = _canvas(request, original, passes[0].size)
        cond = call.condition(self.conditioning)
        frame = canvas.frame(request.place, passes[0].size, self.family.vae_factor)
        x, blend = call.repainted(frame, passes[0].table, cond)
        return call.draw(passes, x, cond, blend, paste=canvas.put_back if request["paste"] else None)

    def live(self, **given: Any) -> Any:
        """A live session: `push` pictures, `set` settings, take `frames`; arguments as for `hotloop.live.Stage.open`.

        With mode="animate" an avatar that controls move: arguments as for `hotloop.live.open_avatar`.
        Raises InputError for settings that are refused.
        """
        return import_module("hotloop.live").open_session(self, **given)

    def table(self, sampler: str, steps: int, *, start: int = 0, options: Mapping[str, Any] | None = None) -> StepTable:
        """The compiled table of a sampler on this bundle's schedule; kept, since many calls share one."""
        return self._passes.table(sampler, steps, start=start, options=options)

    def warmup(
        self, sizes: Iterable[tuple[int, int]] | None = None, batches: Iterable[int] = (1,), *, guidance: bool = True
    ) -> None:
        """Allocate buffers and run every network once for each (width, height) and number of images, for the bundle's
        own sampler and number of steps (on which the buffers of a split UNet's time table depend)."""
        shapes = [self._passes.sides("warmup", *size) for size in sizes or [self.family.default_size]]
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
        n, family, defaults = shape[0], self.family, {**bundle_defaults(), **self.bundle.defaults}
        table = self.table(defaults["sampler"], defaults["num_inference_steps"])
        context = np.zeros((n, family.vocab_tokens, family.context_dim), np.float32)
        cond = {"context": context}
        if networks.told_guidance:
            cond["timestep_cond"] = guidance_embedding(np.ones(n), family.cond_width)
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

    def load_embedding(self, file: str | Path, *, token: str | None = None) -> str:
        """Learn a word, which it returns, from a textual inversion (diffusers' or A1111's safetensors): prompts know it
        from the next call on.

        token  what prompts call it, by default the file's own name for it

        Raises InputError for a file that is none, another model's, a word that exists, or more vectors than there is
        room for (78 in all, where the vocabulary is whole); then nothing has changed.
        """
        return self.adapters.embed(Path(file), token, self.tokenizer).result()

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents f32 [N, C, h, w] as they leave the loop -> pixels uint8 [N, H, W, 3]; one launch of the decoder."""
        if latents.ndim != 4 or latents.shape[1] != self.family.latent_channels:
            rule = f"latents must be [N, {self.family.latent_channels}, h, w]"
            raise InputError("decode", rule, latents.shape)
        return self.autoencoder.decode(self.networks, latents)

    def over(self, networks: Networks) -> Pipeline:
        """The same pipeline drawing with other engines of the same bundle, such as `adapters.shelf.networks` gives."""
        made = copy(self)
        made.adapters = Adapters(networks)
        return made

    # Steps the pipelines share.

    def _begin(
        self, place: str, prompt: str | Sequence[str], negative: str | Sequence[str] | None, given: Mapping[str, Any]
    ) -> Call:
        words = {"prompt": prompt, "negative_prompt": negative}
        defaults, networks = self.bundle.defaults, self.networks
        if place == "inpaint" and defaults.get("sampler") == "pndm":
            defaults = {**defaults, "sampler": "plms"}  # as stock pipelines, which repaint without Runge-Kutta steps
        request = Request.checked(place, {**words, **given}, defaults)
        if networks.told_guidance:
            request = replace(request, negatives=None)  # its guidance is an input: there is no second half
        return Call(request, networks, self.autoencoder)

    def _refuse_inpainting_network(self, request: Request) -> None:
        if self.family.inpaint_channels:
            rule = f"{self.family.name} takes mask and masked image as input: call inpaint"
            raise InputError(request.place, rule, f"{self.family.unet_channels} channels")


def _canvas(request: Request, original: Image, size: tuple[int, int]) -> Canvas:
    """The picture with its mask; what of it is drawn at size (width, height)."""
    paste, padding = request["paste"], request["padding_mask_crop"]
    if padding is not None and not paste:
        raise InputError(request.place, "padding_mask_crop needs paste=True", paste)
    blur = (original.width / 128 if paste else 0.0) if request["mask_blur"] is None else request["mask_blur"]
    canvas = Canvas.open(original, request["mask_image"], blur=blur)
    return canvas if padding is None else canvas.only_masked(padding, size)
