"""One call of a pipeline from its request to its result: conditions, noise, loop, decoder, and their seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import image as images
from . import loop, upscaling
from .autoencoder import Autoencoder
from .checks import check_finite
from .conditioning import Cond, Conditioning
from .denoiser import Denoiser, DeviceDenoiser, Inpaint, Rescaled
from .errors import InputError
from .image import enlarge
from .image.canvas import Frame
from .loop import Progress
from .networks import Networks
from .noise import SeededNoise
from .passes import Pass
from .request import Callback, Request
from .samplers import StepTable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Call", "Result"]


@dataclass(frozen=True)
class Result:
    """What a call made.

    images   PIL images, the prompts' in order, num_images_per_prompt of each: RGB, [H, W, 3] as arrays, or with alpha
             RGBA, [H, W, 4], colours not multiplied by alpha
    seeds    the seed of each image: alone, with that seed, it comes out the same
    timings  seconds: text, prepare, loop (of which engine inside the UNet engine), vae, paste, upscale, total; both
             passes of hires together
    settings what stood for every argument, words, pictures and seed apart: num_inference_steps, sampler, width (of
             the first pass)...
    latents  f32 [N, C, h, w], as they left the loop, of hires the second
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


class Call:
    """What one call of a pipeline holds from its start to its end. It keeps the engines that it began with."""

    def __init__(self, request: Request, networks: Networks, autoencoder: Autoencoder) -> None:
        self.clock = _Clock()
        upscaling.check(networks, request)
        self.request, self.networks, self.autoencoder = request, networks, autoencoder
        self.seeded = SeededNoise(request.seeds, request["rng"])

    def condition(self, conditioning: Conditioning) -> Cond:
        cond = conditioning.encode(self.networks, self.request)
        self.clock.lap("text")
        return cond

    def noise(self, size: tuple[int, int]) -> np.ndarray:
        """Unit noise f32 [N, C, h, w] of a picture of size (width, height)."""
        return self.seeded.normal(self.autoencoder.latent_shape(*size))

    def given_noise(self, size: tuple[int, int]) -> np.ndarray:
        """The same, or what was given in its place. Raises InputError, NonFiniteError."""
        latents, place = self.request["latents"], self.request.place
        if latents is None:
            return self.noise(size)
        shape = (len(self.request.seeds), *self.autoencoder.latent_shape(*size))
        try:
            latents = np.asarray(latents, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(place, f"latents must be numbers of shape {shape}", latents) from error
        if latents.shape != shape:
            raise InputError(place, f"latents must have the shape {shape}", latents.shape)
        check_finite(place, "latents", latents)
        return latents

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels f32 [1, 3, H, W] -> a posterior sample per image f32 [N, C, h, w]."""
        return self.autoencoder.encode(self.networks, pixels, self.seeded)

    def repainted(self, frame: Frame, table: StepTable, cond: Cond) -> tuple[np.ndarray, Inpaint | None]:
        """The start of an inpainting run, f32 [N, C, h, w], and what keeps the rest; a 9-channel network finds that in
        `cond["extra"]`.

        Drawn in the baseline's order: image posterior, noise, masked image's posterior, then the steps. A network that
        sees mask and image itself needs the first only to start from it.
        """
        request, blends = self.request, not self.autoencoder.family.inpaint_channels
        known = self.encode(frame.pixels) if blends or request.start else None
        eps = self.noise(frame.size)
        masked = self.encode(frame.masked_pixels)
        mask = np.repeat(frame.latent_mask, len(eps), axis=0)
        # At full strength the baseline starts from pure noise, not from the image with the last step's noise on it.
        if known is None or request["strength"] == 1:
            x = np.float32(table.init_scale) * eps
        else:
            x = _noised(table, known, eps)
        if blends and known is not None:
            return x, Inpaint(mask=mask, known=known, eps=eps)
        cond["extra"] = np.concatenate([mask, masked], axis=1)
        return x, None

    def noised(self, table: StepTable, known: np.ndarray) -> np.ndarray:
        """A picture's latents f32 [N, C, h, w] with the noise of the table's start on them."""
        return _noised(table, known, self.seeded.normal(known.shape[1:]))

    def draw(
        self, passes: Sequence[Pass], x: np.ndarray, cond: Cond, inpaint: Inpaint | None = None,
        paste: Callable[[Image], Image] | None = None,
    ) -> Result:  # fmt: skip
        """Draw every pass, the first from x f32 [N, C, h, w], the next from the one before made larger, and finish the
        pictures: paste, upscale, alpha.

        paste: what puts a drawing in its place. Raises NonFiniteError instead of giving a broken picture.
        """
        request, tables = self.request, [one.table for one in passes]
        told = _Told(request["callback"], tables) if request["callback"] else None
        latents, pixels = self._run(tables[0], x, cond, inpaint, told)
        for larger in passes[1:]:
            latents, pixels = self._redrawn(larger, latents, pixels, cond, told)
        made = images.from_array(pixels)
        if paste:
            made = [paste(one) for one in made]
            self.clock.lap("paste")
        if request["upscale"] or request["alpha"]:
            made = [upscaling.finished(self.networks, one, request) for one in made]
            self.clock.lap("upscale")
        return Result(made, request.seeds, self.clock.timings, request.settings(passes[0].size), latents)

    def _redrawn(
        self, larger: Pass, latents: np.ndarray, pixels: np.ndarray, cond: Cond, told: Callback | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A pass over what another one gave, held to it as far as hires_fidelity says.

        After every row the latents are mixed with the first pass's at that row's noise (skip residual: Du et al. 2024,
        "DemoFusion", section 3.3), up to a quarter of them; then the pixels get back what they lost.
        """
        upscaler, fidelity = self.request["hires_upscaler"], self.request["hires_fidelity"]
        if upscaler in enlarge.LATENTS:
            _, h, w = self.autoencoder.latent_shape(*larger.size)
            known = enlarge.latents(latents, (w, h), upscaler)
        else:
            first = images.from_array(pixels)
            if upscaler == enlarge.NETWORK:
                first, upscaler = [upscaling.larger(self.networks, one) for one in first], "lanczos"
            pictures = enlarge.pictures(first, larger.size, upscaler)
            known = self.encode(np.concatenate([images.to_float(one) for one in pictures]))
        eps = self.noise(larger.size)
        held = None
        if fidelity:
            mask = np.full((len(known), 1, *known.shape[2:]), 1 - fidelity / 4, np.float32)
            held = Inpaint(mask=mask, known=known, eps=eps)
        latents, drawn = self._run(larger.table, _noised(larger.table, known, eps), cond, held, told)
        if fidelity:
            drawn = enlarge.back_projected(drawn, pixels, fidelity)
            self.clock.lap("vae")
        return latents, drawn

    def _run(
        self, table: StepTable, x: np.ndarray, cond: Cond, inpaint: Inpaint | None, told: Callback | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the steps' noise, run the loop, decode: latents f32 [N, C, h, w] and pixels uint8 [N, H, W, 3]."""
        request, clock, vae = self.request, self.clock, self.autoencoder
        # All noise of a run is made before the loop starts.
        draws = table.noises
        noise = np.stack([self.seeded.normal(x.shape[1:]) for _ in range(draws)]) if draws else None
        guidance = np.full(len(x), request["guidance_scale"], np.float32)
        given: dict[str, Any] = dict(cond=cond, guidance=guidance, noise=noise, inpaint=inpaint)
        clock.lap("prepare")
        with self.networks.denoiser(decoder=vae.decoder, scaling=float(vae.scaling)) as denoiser:
            phi = request["guidance_rescale"]
            held: Denoiser = Rescaled(denoiser, guidance, phi) if phi else denoiser
            if told is None:
                latents = loop.run(held, table, x, **given)
            else:
                for progress in loop.denoise(held, table, x, **given):
                    told(progress)
                latents = progress.latents.copy()
            clock.lap("loop")
            clock.timings["engine"] = clock.timings.get("engine", 0.0) + denoiser.seconds
        check_finite(request.place, "latents", latents)
        pixels = denoiser.pixels if isinstance(denoiser, DeviceDenoiser) else None
        if pixels is None:
            pixels = vae.decode(self.networks, latents)
        clock.lap("vae")
        return latents, pixels


class _Told:
    """A caller's callback, told the rows and steps of all passes together."""

    def __init__(self, callback: Callback, tables: Sequence[StepTable]) -> None:
        self._callback = callback
        self._rows, self._steps = sum(map(len, tables)), sum(int(table.steps[-1]) + 1 for table in tables)
        self._row = self._step = 0  # of the passes before

    def __call__(self, of_pass: Progress) -> None:
        row, step = self._row + of_pass.row, self._step + of_pass.step
        self._callback(replace(of_pass, row=row, rows=self._rows, step=step, steps=self._steps))
        if of_pass.row + 1 == of_pass.rows:
            self._row, self._step = row + 1, step + 1


def _noised(table: StepTable, known: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """An image's latents with the noise of the table's start on them."""
    return np.float32(table.start_img) * known + np.float32(table.start_eps) * eps
