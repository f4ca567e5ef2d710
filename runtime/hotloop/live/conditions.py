"""What frames of a version begin with, prepared off the frame path: engines, conditions, tables and noise; and slides
from one version to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..conditioning import Cond
from ..errors import InputError
from ..networks import Networks
from ..noise import SeededNoise
from ..passes import Passes
from ..pipeline import Pipeline
from ..request import Request
from ..samplers import StepTable
from .residual import first_negative, with_residual
from .settings import PLACE

__all__ = ["Leg", "Mix", "Prepared", "check", "fits", "mixed", "prepare", "resized", "slerp"]


@dataclass(frozen=True, eq=False)
class Leg:
    """A part of a frame's run: its table, and which of the prompts it reads. A run of two legs carries its states on.

    reads  "both": guided; "prompt" or "negative": that one alone
    """

    table: StepTable
    reads: str


@dataclass(frozen=True, eq=False)
class Mix:
    """What slides from version to version.

    context, negative  f32 [1, T, C]; negative None where no leg reads it
    posterior, start   f32 [1, C, h, w], unit noise of the picture's latents and of the run's start
    steps              f32 [noises, 1, C, h, w]
    """

    context: np.ndarray
    negative: np.ndarray | None
    posterior: np.ndarray
    start: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True, eq=False)
class Prepared:
    """One version, ready: nothing of it is made on the frame path. own: the pipeline's engines, of which `networks` are
    those with the version's LoRAs."""

    networks: Networks
    own: Networks
    request: Request
    size: tuple[int, int]
    legs: tuple[Leg, ...]
    mix: Mix
    others: Cond  # conditions beside the words
    guidance: float

    @property
    def evaluations(self) -> int:
        """Rows of a frame."""
        return sum(len(leg.table) for leg in self.legs)

    def cond(self, leg: Leg, mix: Mix) -> Cond:
        words = {"context": mix.negative if leg.reads == "negative" else mix.context}
        if leg.reads == "both":
            words["negative_context"] = mix.negative
        return {**self.others, **words}  # type: ignore[dict-item]


def check(pipeline: Pipeline, request: Request, blend: int, last: Prepared | None, *, source: bool) -> None:
    """Whether this can be prepared. Raises InputError."""
    if request["lora"]:
        pipeline.adapters.shelf.check(request["lora"])
    size, legs = _size(pipeline, request), _legs(pipeline, request, source)
    if not source and _form(pipeline, request) == "self":
        raise InputError(PLACE, "cfg_type self is guided by the source's pictures: a dream has none", "self")
    if blend and last is not None and (size != last.size or legs[-1].table.noises != last.legs[-1].table.noises):
        raise InputError(PLACE, "blend needs the size, the sampler and the steps to stay", blend)


def prepare(pipeline: Pipeline, request: Request, *, source: bool) -> Prepared:
    """Encode the words, compile the tables, draw the noise: in the order in which `img2img` draws it from this seed."""
    own, form = pipeline.networks, _form(pipeline, request)
    networks = pipeline.adapters.shelf.networks(request["lora"]) if request["lora"] else own
    read = request if form in ("full", "initialize") else replace(request, negatives=None)
    cond = pipeline.conditioning.encode(networks, read)
    context, negative = cond.pop("context"), cond.pop("negative_context", None)
    size, legs = _size(pipeline, request), _legs(pipeline, request, source)
    mix = Mix(context, negative, *_noise(pipeline, request, size, legs, source))
    return Prepared(networks, own, request, size, legs, mix, cond, float(request["guidance_scale"]))


def resized(pipeline: Pipeline, prepared: Prepared, request: Request, *, source: bool) -> Prepared:
    """The same words at other steps or another size: quick enough for the frame path."""
    size, legs = _size(pipeline, request), _legs(pipeline, request, source)
    posterior, start, steps = _noise(pipeline, request, size, legs, source)
    mix = replace(prepared.mix, posterior=posterior, start=start, steps=steps)
    return replace(prepared, request=request, size=size, legs=legs, mix=mix)


def fits(a: Mix, b: Mix) -> bool:
    """Whether there is a way from a to b."""
    pairs = ((a.context, b.context), (a.start, b.start), (a.steps, b.steps))
    return all(x.shape == y.shape for x, y in pairs)


def mixed(a: Mix, b: Mix, t: float) -> Mix:
    """A share t of the way from a to b; the ends are exact. Where only b has a negative side, that is b's at once.

    Raises InputError where they have not the same shapes.
    """
    if t <= 0 or t >= 1:
        return a if t <= 0 else b
    if not fits(a, b):
        raise InputError(PLACE, "blend needs prompts of one length and the size to stay", list(b.context.shape))
    none = a.negative is None or b.negative is None
    return Mix(
        slerp(a.context, b.context, t), b.negative if none else slerp(a.negative, b.negative, t),  # type: ignore[arg-type]
        slerp(a.posterior, b.posterior, t), slerp(a.start, b.start, t),
        np.array([slerp(x, y, t) for x, y in zip(a.steps, b.steps, strict=True)], np.float32).reshape(b.steps.shape),
    )  # fmt: skip


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """Spherical interpolation (Shoemake 1985) of tensors as vectors, their lengths sliding along; a straight line where
    they point the same way."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if not all(lengths):
        return (x + t * (y - x)).astype(np.float32)
    cosine = float(np.vdot(x, y)) / (lengths[0] * lengths[1])
    if abs(cosine) > 1 - 1e-9:
        return (x + t * (y - x)).astype(np.float32)
    angle = math.acos(cosine)
    size = lengths[0] + t * (lengths[1] - lengths[0])
    ahead, behind = math.sin(t * angle) / math.sin(angle), math.sin((1 - t) * angle) / math.sin(angle)
    return (size * (behind / lengths[0] * x + ahead / lengths[1] * y)).astype(np.float32)


def _form(pipeline: Pipeline, request: Request) -> str:
    """How the request is guided; a network that is told its guidance has no negative side."""
    form: str = request["cfg_type"] if request["guidance_scale"] > 1 else "none"
    if pipeline.networks.told_guidance:
        if form in ("self", "initialize"):
            raise InputError(PLACE, "this model is told its guidance: cfg_type must be full or none", form)
        return "none"
    return form


def _size(pipeline: Pipeline, request: Request) -> tuple[int, int]:
    passes = Passes(pipeline.family, pipeline.schedule, pipeline.entry)
    return passes.sides(PLACE, request["width"], request["height"])


def _legs(pipeline: Pipeline, request: Request, source: bool) -> tuple[Leg, ...]:
    """steps counts the evaluations' steps that are run, so strength never changes what a frame costs."""
    steps, options = request["num_inference_steps"], request["sampler_options"]
    whole = max(math.ceil(steps / request["strength"] - 1e-9), steps) if source else steps
    table = pipeline.table(request["sampler"], whole, start=whole - steps, options=options)
    form = _form(pipeline, request)
    if form in ("none", "full"):
        return (Leg(table, "both" if form == "full" else "prompt"),)
    prediction = pipeline.schedule.prediction_type
    rest = Leg(with_residual(table, prediction, request["delta"]), "prompt")
    return (rest,) if form == "self" else (Leg(first_negative(table, prediction), "negative"), rest)


def _noise(
    pipeline: Pipeline, request: Request, size: tuple[int, int], legs: Sequence[Leg], source: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    stream, shape = SeededNoise(request.seeds, request["rng"]), pipeline.autoencoder.latent_shape(*size)
    start = stream.normal(shape)
    posterior, start = (start, stream.normal(shape)) if source else (np.zeros_like(start), start)
    count = legs[-1].table.noises
    steps = np.array([stream.normal(shape) for _ in range(count)], np.float32).reshape(count, 1, *shape)
    return posterior, start, steps
