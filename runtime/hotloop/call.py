"""One call of a pipeline from its request to its result: conditions, noise, loop, decoder, and their seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import image as images
from . import loop
from .autoencoder import Autoencoder
from .checks import check_finite
from .conditioning import Cond, Conditioning
from .denoiser import Denoiser, DeviceDenoiser, Inpaint, Rescaled
from .errors import InputError
from .image.canvas import Frame
from .networks import Networks
from .noise import SeededNoise
from .request import Request
from .samplers import StepTable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Call", "Result", "noised"]


@dataclass(frozen=True)
class Result:
    """What a call made.

    images   PIL images, the prompts' in order, num_images_per_prompt of each
    seeds    the seed of each image: alone, with that seed, it comes out the same
    timings  seconds: text, prepare, loop (of which engine inside the UNet engine), vae, paste, total
    settings what stood for every argument, words, pictures and seed apart: num_inference_steps, sampler, width...
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


class Call:
    """What one call of a pipeline holds from its start to its end. It keeps the engines that it began with."""

    def __init__(self, request: Request, networks: Networks, autoencoder: Autoencoder) -> None:
        self.clock = _Clock()
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
            x = noised(table, known, eps)
        if blends and known is not None:
            return x, Inpaint(mask=mask, known=known, eps=eps)
        cond["extra"] = np.concatenate([mask, masked], axis=1)
        return x, None

    def draw(
        self, size: tuple[int, int], table: StepTable, x: np.ndarray, cond: Cond, inpaint: Inpaint | None = None
    ) -> Result:
        """Draw the steps' noise, run the loop, decode. Raises NonFiniteError instead of giving a broken picture."""
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
            if (callback := request["callback"]) is None:
                latents = loop.run(held, table, x, **given)
            else:
                for progress in loop.denoise(held, table, x, **given):
                    callback(progress)
                latents = progress.latents.copy()
            clock.lap("loop")
            clock.timings["engine"] = denoiser.seconds
        check_finite(request.place, "latents", latents)
        pixels = denoiser.pixels if isinstance(denoiser, DeviceDenoiser) else None
        made = images.from_array(vae.decode(self.networks, latents) if pixels is None else pixels)
        clock.lap("vae")
        return Result(made, request.seeds, clock.timings, request.settings(size), latents)


def noised(table: StepTable, known: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """An image's latents with the noise of the table's start on them."""
    return np.float32(table.start_img) * known + np.float32(table.start_eps) * eps
