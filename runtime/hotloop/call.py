"""One call of a pipeline from its request to its result: conditions, noise, loop, decoder, and their seconds.

A call does not run the loop. It is a generator of what the loop is to run, is sent what came of it, and ends with the
pictures: whoever drives it may run one after the other (`finish`), or a row of many calls at a time (`Batch`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import image as images
from . import loop, upscaling
from .autoencoder import Autoencoder
from .checks import check_finite
from .conditioning import Cond, Conditioning, composed
from .denoiser import Composed, Composition, Denoiser, DeviceDenoiser, Inpaint, Rescaled, UNetDenoiser
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

__all__ = ["Call", "Drawing", "Ran", "Result", "Run", "finish"]


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


@dataclass(frozen=True, eq=False)
class Run:
    """What a call has the loop do: the arguments of `loop.run`, a row of x per image.

    networks       the engines of the call; decoder, scaling: as for `Networks.denoiser`
    words          what the rows are told where that is more than cond holds (`Composed`)
    rescale        how far guided outputs are brought back (`Rescaled`), 0: not at all
    before, whole  (rows, steps) of the call's earlier runs, and of all of them
    """

    networks: Networks
    decoder: str
    scaling: float
    table: StepTable
    x: np.ndarray
    cond: Cond
    guidance: np.ndarray
    noise: np.ndarray | None
    inpaint: Inpaint | None
    words: Composition | None
    rescale: float
    before: tuple[int, int]
    whole: tuple[int, int]

    @property
    def joins(self) -> bool:
        """Whether its images can be slots of a `Batch`, each with its networks as the weights."""
        return not self.rescale and self.words is None and not self.networks.resident

    @contextmanager
    def denoiser(self) -> Iterator[tuple[Denoiser, UNetDenoiser]]:
        """What the loop holds, and the one of the engine inside it."""
        with self.networks.denoiser(decoder=self.decoder, scaling=self.scaling) as own:
            told = own if self.words is None else Composed(own, self.words)
            yield (Rescaled(told, self.guidance, self.rescale) if self.rescale else told), own

    def rows(self, denoiser: Denoiser) -> Iterator[Progress]:
        """`loop.denoise`, whose progress is that of the whole call."""
        (row, step), (rows, steps) = self.before, self.whole
        for one in loop.denoise(denoiser, self.table, self.x, **self._given()):
            yield replace(one, row=row + one.row, rows=rows, step=step + one.step, steps=steps)

    def alone(self, callback: Callback | None = None) -> Ran:
        """Run it by itself."""
        with self.denoiser() as (denoiser, own):
            if callback is None:
                latents = loop.run(denoiser, self.table, self.x, **self._given())
            else:
                for progress in self.rows(denoiser):
                    callback(progress)
                latents = progress.latents.copy()
            return Ran(latents, own.pixels if isinstance(own, DeviceDenoiser) else None, own.seconds)

    def _given(self) -> dict[str, Any]:
        return dict(cond=self.cond, guidance=self.guidance, noise=self.noise, inpaint=self.inpaint)


class Ran(NamedTuple):
    """What came of a run: latents f32 [N, C, h, w]; pixels uint8 [N, H, W, 3] where decoding was part of it; seconds
    inside the UNet engine."""

    latents: np.ndarray
    pixels: np.ndarray | None = None
    seconds: float = 0.0


Drawing = Generator[Run, Ran, Result]


def finish(drawing: Drawing, callback: Callback | None = None) -> Result:
    """Run what a call asks for, one after the other, to its result."""
    try:
        run = next(drawing)
        while True:
            run = drawing.send(run.alone(callback))
    except StopIteration as ended:
        result: Result = ended.value
        return result


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
        self.words: list[Composition] = []  # of every pass, where cond cannot hold them

    def condition(self, conditioning: Conditioning, passes: Sequence[Pass]) -> Cond:
        if composed(self.request):
            cond, self.words = conditioning.compose(self.networks, self.request, [one.table for one in passes])
        else:
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
    ) -> Drawing:  # fmt: skip
        """Draw every pass, the first from x f32 [N, C, h, w], the next from the one before made larger, and finish the
        pictures: paste, upscale, alpha.

        paste: what puts a drawing in its place. Raises NonFiniteError instead of giving a broken picture.
        """
        request, tables = self.request, [one.table for one in passes]
        latents, pixels = yield from self._run(tables, 0, x, cond, inpaint)
        for i, larger in enumerate(passes[1:], 1):
            latents, pixels = yield from self._redrawn(larger, tables, i, latents, pixels, cond)
        made = images.from_array(pixels)
        if paste:
            made = [paste(one) for one in made]
            self.clock.lap("paste")
        if request["upscale"] or request["alpha"]:
            made = [upscaling.finished(self.networks, one, request) for one in made]
            self.clock.lap("upscale")
        return Result(made, request.seeds, self.clock.timings, request.settings(passes[0].size), latents)

    def _redrawn(
        self, larger: Pass, tables: Sequence[StepTable], i: int, latents: np.ndarray, pixels: np.ndarray, cond: Cond
    ) -> Generator[Run, Ran, tuple[np.ndarray, np.ndarray]]:
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
        latents, drawn = yield from self._run(tables, i, _noised(larger.table, known, eps), cond, held)
        if fidelity:
            drawn = enlarge.back_projected(drawn, pixels, fidelity)
            self.clock.lap("vae")
        return latents, drawn

    def _run(
        self, tables: Sequence[StepTable], i: int, x: np.ndarray, cond: Cond, inpaint: Inpaint | None
    ) -> Generator[Run, Ran, tuple[np.ndarray, np.ndarray]]:
        """Draw the steps' noise of pass i, have the loop run, decode: latents f32 [N, C, h, w] and pixels uint8
        [N, H, W, 3]."""
        request, clock, vae, table = self.request, self.clock, self.autoencoder, tables[i]
        # All noise of a run is made before the loop starts.
        draws = table.noises
        noise = np.stack([self.seeded.normal(x.shape[1:]) for _ in range(draws)]) if draws else None
        guidance = np.full(len(x), request["guidance_scale"], np.float32)
        clock.lap("prepare")
        latents, pixels, seconds = yield Run(
            self.networks, vae.decoder, float(vae.scaling), table, x, cond, guidance, noise, inpaint,
            self.words[i] if self.words else None, request["guidance_rescale"], _length(tables[:i]), _length(tables),
        )  # fmt: skip
        clock.lap("loop")
        clock.timings["engine"] = clock.timings.get("engine", 0.0) + seconds
        check_finite(request.place, "latents", latents)
        if pixels is None:
            pixels = vae.decode(self.networks, latents)
        clock.lap("vae")
        return latents, pixels


def _length(tables: Sequence[StepTable]) -> tuple[int, int]:
    """Rows and steps."""
    return sum(map(len, tables)), sum(int(table.steps[-1]) + 1 for table in tables)


def _noised(table: StepTable, known: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """An image's latents with the noise of the table's start on them."""
    return np.float32(table.start_img) * known + np.float32(table.start_eps) * eps
