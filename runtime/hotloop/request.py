"""THE table of a request's fields, and a call's arguments checked by it: everything behind can trust them.

A field is one line of `Words`, `Common`, `Hires`, `Txt2Img`, `Edit`, `Img2Img` or `Inpaint`: its name and type for
Python, and the row (`Field`) that says what it takes, what stands for it when it is left out, and how the command line
calls it. An `Alias` is another name of a field. Signatures, checks, help, the command line, stored requests and JSON
schemas are all computed from these lines.
"""

from __future__ import annotations

import difflib
import inspect
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Required, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from .errors import InputError
from .fields import RANDOM, Alias, Choice, Field, Flag, Integer, Name, Number, Options, Picture, Seed, Text, Unchecked
from .fields import Loras as LoraSet
from .image.canvas import RESIZE_MODES
from .image.enlarge import A1111, UPSCALERS
from .loop import Progress
from .noise import RNGS, check_seed, generator_seeds
from .samplers.names import STOCK, resolve
from .spec import ENLARGED
from .tokenizer import LONG_PROMPTS, MAX_CHARACTERS, SYNTAXES

if TYPE_CHECKING:
    from .image.metadata import StoredRequest

__all__ = [
    "MAX_IMAGES", "PIPELINES", "Callback", "Img2Img", "Inpaint", "Live", "Request", "Txt2Img", "aliases",
    "bundle_defaults", "canonical", "check_stored", "documented", "fields", "schema",
]  # fmt: skip

MAX_IMAGES = 64  # per call: more are asked for in several calls, each reproducible from its own seeds
MAX_STEPS = 1000

Callback = Callable[[Progress], object]
Function = TypeVar("Function", bound=Callable[..., Any])


def _option(name: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {name: value}


def _sigmas(kind: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {"sigmas": kind} if value else {}


# One line a field, whatever its length says to a formatter.
# fmt: off
class Words(TypedDict, total=False):
    """What every pipeline takes by position."""

    prompt: Required[Annotated[str | Sequence[str], Field(
        Text(MAX_CHARACTERS), "what to draw: text, or a list of texts", flag="prompt", settled=True)]]
    negative_prompt: Annotated[str | Sequence[str] | None, Field(
        Text(MAX_CHARACTERS), "what to keep out: one text, or one for each prompt", "", flag="--negative")]


class Common(TypedDict, total=False):
    """What every pipeline takes by name."""

    num_inference_steps: Annotated[int | None, Field(
        Integer(1, MAX_STEPS), "denoising steps", 50, 50, bundle=True, flag="--steps", settled=True)]
    guidance_scale: Annotated[float | None, Field(
        Number(0, 1000), "at or below 1 guidance is off", 7.5, 7.5, bundle=True, flag="--guidance", settled=True)]
    guidance_rescale: Annotated[float | None, Field(
        Number(0, 1), "how far guided outputs are brought back to the spread of unguided ones, against overexposure",
        0.0, flag="--guidance-rescale")]
    sampler: Annotated[str | None, Field(
        Name(), "one of `hotloop samplers`, diffusers' class or A1111's name for it", "plms", bundle=True,
        flag="--sampler", settled=True)]
    sampler_options: Annotated[Mapping[str, Any] | None, Field(
        Options(), "what that sampler takes, NAME=VALUE on the command line", {}, flag="--sampler-option")]
    seed: Annotated[int | Sequence[int] | None, Field(
        Seed(), "image i has seed + i, or a list of one each; -1: a fresh one, told in the result", RANDOM,
        flag="--seed", stored=False)]
    num_images_per_prompt: Annotated[int | None, Field(
        Integer(1, MAX_IMAGES), "images of each prompt", 1, flag="--num-images", stored=False)]
    width: Annotated[int | None, Field(
        Integer(1, 2**16), "pixels [default: the model's or the image's own]", flag="--width", settled=True)]
    height: Annotated[int | None, Field(
        Integer(1, 2**16), "pixels [default: the model's or the image's own]", flag="--height", settled=True)]
    rng: Annotated[str | None, Field(
        Choice(tuple(RNGS)), "torch: the baseline's noise; philox: counter-based, the same on every device", "torch",
        flag="--rng")]
    prompt_syntax: Annotated[str | None, Field(
        Choice(SYNTAXES), "a1111 reads (word:1.3), ((word)), [word]; plain takes the text as it is", "a1111", "plain",
        flag="--prompt-syntax")]
    long_prompt: Annotated[str | None, Field(
        Choice(LONG_PROMPTS), "truncate warns and cuts at 75 tokens; chunk reads up to 32 windows of 75, and all "
        "prompts of a call must need the same number of windows", "truncate", flag="--long-prompt")]
    clip_skip: Annotated[int | None, Field(
        Integer(0, 1), "0: the text encoder's last layer; 1: the last but one", 0, flag="--clip-skip")]
    compatible: Annotated[str | None, Field(
        Choice(("diffusers",)), "diffusers: what is left out is as in stock pipelines, and so is what samplers do "
        "(`hotloop samplers` tells where they differ)", flag="--compatible")]
    upscale: Annotated[int | None, Field(
        Choice((ENLARGED,)), "what was drawn, that many times as large by the bundle's upscaler", flag="--upscale")]
    alpha: Annotated[bool | None, Field(
        Flag(), "RGBA pictures: what was drawn, cut out by the bundle's segmenter", False, flag="--alpha")]
    callback: Annotated[Callback | None, Field(
        Unchecked("callable", callable), "called with a `loop.Progress` after every row; raise from it to cancel",
        stored=False)]

    num_images: Annotated[int | None, Alias("num_images_per_prompt", Integer(1, MAX_IMAGES))]
    generator: Annotated[Any, Alias("seed", Unchecked(), generator_seeds)]
    eta: Annotated[float | None, Alias(
        "sampler_options", Number(0, 1), _option("eta"), "noise in every step: ddim and tcd", "--eta")]
    timestep_spacing: Annotated[str | None, Alias(
        "sampler_options", Name(), _option("spacing"), "leading, linspace or trailing", "--spacing")]
    rescale_betas_zero_snr: Annotated[bool | None, Alias(
        "sampler_options", Flag(), _option("rescale_betas_zero_snr"), "no signal at the last timestep", "--zero-snr")]
    use_karras_sigmas: Annotated[bool | None, Alias(
        "sampler_options", Flag(), _sigmas("karras"), "Karras' spacing of the sigmas", "--karras")]
    use_exponential_sigmas: Annotated[bool | None, Alias("sampler_options", Flag(), _sigmas("exponential"))]


class Hires(Common, total=False):
    """What is common to the pipelines that draw whole pictures: a second, larger pass, with A1111's names for it."""

    hires: Annotated[float | None, Field(
        Number(1, 4), "draw once more, that many times as large, from the picture enlarged", flag="--hires")]
    hires_strength: Annotated[float | None, Field(
        Number(0, 1), "share of its steps that the larger pass runs", 0.4, flag="--hires-strength", beside="hires")]
    hires_steps: Annotated[int | None, Field(
        Integer(1, MAX_STEPS), "steps of the larger pass [default: num_inference_steps]", flag="--hires-steps",
        beside="hires")]
    hires_upscaler: Annotated[str | None, Field(
        Choice(tuple(UPSCALERS)), "what enlarges between the passes: pixels, latents, or the bundle's upscaler",
        "lanczos", flag="--hires-upscaler", beside="hires")]
    hires_fidelity: Annotated[float | None, Field(
        Number(0, 1), "0: the larger pass is free, as A1111's; 1: made small again, it is the first pass", 1.0,
        flag="--hires-fidelity", beside="hires")]
    hr_scale: Annotated[float | None, Alias("hires", Number(1, 4))]
    hr_second_pass_steps: Annotated[int | None, Alias(
        "hires_steps", Integer(0, MAX_STEPS), lambda steps: steps or None)]
    hr_upscaler: Annotated[str | None, Alias("hires_upscaler", Name(), lambda name: A1111.get(name, name))]


class Txt2Img(Hires, total=False):
    """What txt2img takes by name."""

    latents: Annotated[np.ndarray | None, Field(
        Unchecked(), "f32 [N, C, h, w] of unit noise, in place of the seed's own", stored=False)]
    denoising_strength: Annotated[float | None, Alias("hires_strength", Number(0, 1))]


class Edit(Common, total=False):
    """What is common to the pipelines that begin with a picture."""

    image: Required[Annotated[Any, Field(
        Picture(), "the picture to start from: path, PIL image or uint8 [H, W, 3]", flag="--image", stored=False)]]
    strength: Annotated[float | None, Field(
        Number(0, 1), "share of the steps that is run, above 0 up to 1: N - min(int(N * strength), N) are skipped",
        {"img2img": 0.6, "inpaint": 1.0}, {"img2img": 0.8, "inpaint": 1.0}, flag="--strength")]


class Img2Img(Hires, Edit, total=False):
    """What img2img takes by name."""

    resize_mode: Annotated[str | None, Field(
        Choice(tuple(RESIZE_MODES)), "to another shape: default stretches, fill repeats its edges, crop cuts them",
        "default", flag="--resize-mode")]


class Inpaint(Edit, total=False):
    """What inpaint takes by name."""

    mask_image: Required[Annotated[Any, Field(
        Picture(), "mask of the picture's size, white = repaint: path, PIL image or uint8 [H, W]", flag="--mask",
        stored=False)]]
    paste: Annotated[bool | None, Field(
        Flag(), "put the original back where the blurred mask is 0, bit for bit, at the original's size", True, False,
        flag="--paste")]
    mask_blur: Annotated[float | None, Field(
        Number(0, 256), "standard deviation, in pixels of the image, by which the mask's edge is softened "
        "[default: 1/128 of its width with paste, else 0]", None, 0.0, flag="--mask-blur")]
    padding_mask_crop: Annotated[int | None, Field(
        Integer(0, 4096), "draw only the masked region with that many pixels around it, and paste it back",
        flag="--only-masked")]


class Live(Common, total=False):
    """The settings of a live session, by name."""

    steps: Annotated[int | None, Alias("num_inference_steps", Integer(1, MAX_STEPS))]
    strength: Annotated[float | None, Field(
        Number(0.01, 1), "how noisy each picture is made before it is redrawn: steps are those that are run", 0.5)]
    resize_mode: Annotated[str | None, Field(
        Choice(tuple(RESIZE_MODES)), "to another shape: default stretches, fill repeats its edges, crop cuts them",
        "crop")]
    cfg_type: Annotated[str | None, Field(
        Choice(("none", "full", "self", "initialize")), "how guidance above 1 is made: not at all, from the negative "
        "prompt, from the picture itself, or from the negative prompt in the first step only", "full")]
    delta: Annotated[float | None, Field(Number(0, 10), "weight of the negative side of self and initialize", 1.0)]
    similarity: Annotated[float | None, Field(
        Number(0, 1), "pictures more like the last drawn one than this are not drawn again; 1: all are", 1.0)]
    similarity_most: Annotated[int | None, Field(Integer(1, 1_000_000), "pictures skipped in a row at most", 10)]
    lora: Annotated[Mapping[str, float] | Sequence[Mapping[str, Any]] | None, Field(
        LoraSet(), "LoRAs that the pipeline has by name, each with its scale", ())]
    drift: Annotated[int | None, Field(
        Integer(0, 1_000_000), "without a source, frames from one seed's noise to the next one's; 0: it stays", 30)]
# fmt: on


PIPELINES: Mapping[str, type] = {"txt2img": Txt2Img, "img2img": Img2Img, "inpaint": Inpaint}
_TABLES: Mapping[str, type] = {**PIPELINES, "live": Live}


# --- The table, read ---


@dataclass(frozen=True)
class _Row:
    type: Any
    row: Field | Alias
    required: bool


@cache
def _rows(pipeline: str) -> dict[str, _Row]:
    rows = {}
    for table in (Words, _TABLES[pipeline]):
        for name, hint in get_type_hints(table, include_extras=True).items():
            required = get_origin(hint) is Required
            kind, row = get_args(get_args(hint)[0] if required else hint)[:2]
            rows[name] = _Row(kind, row, required)
    return rows


@cache
def fields(pipeline: str) -> Mapping[str, Field]:
    """Of a pipeline: name -> row, in the table's order."""
    return {name: one.row for name, one in _rows(pipeline).items() if isinstance(one.row, Field)}


@cache
def aliases(pipeline: str) -> Mapping[str, Alias]:
    return {name: one.row for name, one in _rows(pipeline).items() if isinstance(one.row, Alias)}


def required(pipeline: str) -> list[str]:
    """The fields that must be given."""
    return [name for name, one in _rows(pipeline).items() if one.required]


def _of(pipeline: str, value: Any) -> Any:
    """A default that may differ from pipeline to pipeline."""
    return value.get(pipeline) if isinstance(value, Mapping) and set(value) & set(PIPELINES) else value


def default_of(pipeline: str, name: str, *, stock: bool = False) -> Any:
    """What stands for a field that is left out; None is what its help says."""
    row = fields(pipeline)[name]
    return _of(pipeline, row.stock if stock and row.stock is not None else row.default)


def bundle_defaults() -> dict[str, Any]:
    """The fields that a bundle may have a default of its own for, with what stands where it has none."""
    return {name: row.default for name, row in fields("txt2img").items() if row.bundle}


def schema(pipeline: str) -> dict[str, Any]:
    """A JSON Schema (2020-12) of a pipeline's request: its fields that JSON can carry."""
    properties = {}
    for name, row in fields(pipeline).items():
        if (said := row.kind.schema()) is not None:
            default = default_of(pipeline, name)
            shown = {} if default is None or row.bundle else {"default": default}
            properties[name] = said | {"description": row.help} | shown
    needs = {name: [row.beside] for name, row in fields(pipeline).items() if row.beside}
    return {
        "type": "object", "properties": properties, "required": [n for n in properties if n in required(pipeline)],
        "additionalProperties": False, "dependentRequired": needs,
    }  # fmt: skip


def documented(pipeline: str) -> Callable[[Function], Function]:
    """Gives a method of the pipeline the table's arguments as its signature, and their help below its docstring."""

    def dress(method: Function) -> Function:
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        lines = []
        for name, one in _rows(pipeline).items():
            word, row = name in Words.__annotations__, one.row
            place = inspect.Parameter.POSITIONAL_OR_KEYWORD if word else inspect.Parameter.KEYWORD_ONLY
            default = inspect.Parameter.empty if one.required else None
            parameters.append(inspect.Parameter(name, place, default=default, annotation=one.type))
            if isinstance(row, Alias):
                lines.append(f"{name:<23} another name for {row.of}")
            else:
                shown = default_of(pipeline, name)
                own = "the bundle's own" if row.bundle else repr(shown)
                lines.append(f"{name:<23} {row.help}" + (f" [{own}]" if shown is not None else ""))
        signature = inspect.Signature(parameters, return_annotation="Result")
        method.__signature__ = signature  # type: ignore[attr-defined]
        method.__doc__ = inspect.cleandoc(method.__doc__ or "") + "\n\n" + "\n".join(lines) + "\n"
        return method

    return dress


# --- A call's arguments ---


@dataclass(frozen=True)
class Request:
    """A call's checked arguments, `request["strength"]`; one prompt, negative prompt and seed per image.

    place  the pipeline; negatives: None where guidance is off: that half is neither encoded nor evaluated
    """

    place: str
    values: Mapping[str, Any]
    prompts: list[str]
    negatives: list[str] | None
    seeds: list[int]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @classmethod
    def checked(cls, pipeline: str, given: Mapping[str, Any], bundle: Mapping[str, Any]) -> Request:
        """What a pipeline was given, with the bundle's defaults and the table's in place of what was left out.

        Raises InputError naming the pipeline, the rule and the value.
        """
        values = _settled(pipeline, canonical(pipeline, given), bundle)
        prompts, negatives, each = values["prompt"], values["negative_prompt"], values["num_images_per_prompt"]
        if len(prompts) * each > MAX_IMAGES:
            raise InputError(pipeline, f"images per call must be at most {MAX_IMAGES}", len(prompts) * each)
        if len(negatives) not in (1, len(prompts)):
            raise InputError(pipeline, f"negative_prompt must be one text or {len(prompts)}", len(negatives))
        negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
        return cls(
            pipeline, values, [text for text in prompts for _ in range(each)],
            [text for text in negatives for _ in range(each)] if values["guidance_scale"] > 1 else None,
            seeds_of(pipeline, values["seed"], len(prompts) * each),
        )  # fmt: skip

    @property
    def start(self) -> int:
        """The first step to run: 0 of what is drawn from noise. Raises InputError where strength leaves none."""
        return self.first_of(self["num_inference_steps"], "strength") if "strength" in self.values else 0

    def first_of(self, steps: int, share: str) -> int:
        """Of so many steps, the first to run: N - min(int(N strength), N). Raises InputError where none is left.

        share: the field that tells the strength
        """
        first: int = steps - min(int(steps * self[share]), steps)
        if first == steps:
            raise InputError(self.place, f"{share} times {steps} steps must leave at least one step", self[share])
        return first

    def settings(self, size: tuple[int, int]) -> dict[str, Any]:
        """What stood for every argument, words, pictures and seed apart, drawn at (width, height)."""
        values = {**self.values, "width": size[0], "height": size[1]}
        rows = fields(self.place).items()
        names = [name for name, row in rows if row.stored and not isinstance(row.kind, Text)]
        return {name: values[name] for name in names if values[name] is not None}


def canonical(pipeline: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given under the fields' own names, aliases resolved; None and what is left out are not in it.

    Raises InputError for a name that is no argument, with the near miss, and for two values of one field.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value in given.items():
        if name not in _rows(pipeline):
            raise _unknown(pipeline, name, value)
        if value is None:
            continue
        alias = aliases(pipeline).get(name)
        own = alias.of if alias else name
        kind = fields(pipeline)[own].kind
        if alias:
            value = alias.value(alias.kind.check(pipeline, name, value))
            if value is None:
                continue
        if isinstance(kind, Options):  # several names may give parts of it
            value, before = kind.check(pipeline, own, value), values.get(own, {})
            clash = any(before[key] != value[key] for key in set(before) & set(value))
            value = {**before, **value}
        else:
            clash = own in values and values[own] != value
        if clash:
            raise InputError(pipeline, f"{name} and {origins[own]} must not both tell {own}; give one", given[name])
        values[own], origins[own] = value, name
    return values


def _settled(pipeline: str, values: Mapping[str, Any], bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Every field checked, with what stands for those that were left out."""
    settled: dict[str, Any] = {}
    stock = values.get("compatible") == "diffusers"
    only_masked = values.get("padding_mask_crop") is not None
    for name, row in fields(pipeline).items():
        value = values.get(name)
        if row.beside and values.get(row.beside) is None:
            if value is not None:
                raise InputError(pipeline, f"{name} must come with {row.beside}", value)
            settled[name] = None
            continue
        if value is None and name in required(pipeline):
            raise InputError(pipeline, f"{name} must be given")
        if value is None:
            # Stock pipelines paste where they draw only the masked region, as ours do.
            differs = stock and row.stock is not None and not (name == "paste" and only_masked)
            value = default_of(pipeline, name, stock=differs)
            if row.bundle and not differs:
                value = bundle.get(name, value)
        settled[name] = None if value is None else row.kind.check(pipeline, name, value)
    sampler, own = resolve(settled["sampler"])
    stocks = STOCK.get(sampler, {}) if stock else {}
    settled |= {"sampler": sampler, "sampler_options": {**stocks, **own, **settled["sampler_options"]}}
    return settled


# Names of other programs' arguments, and what there is here instead.
_INSTEAD = {
    "callback_on_step_end": "callback", "scheduler": "sampler", "scheduler_name": "sampler", "sampler_name": "sampler",
    "cfg_scale": "guidance_scale", "steps": "num_inference_steps", "denoising_strength": "strength",
    "mask": "mask_image", "init_image": "image", "batch_size": "num_images_per_prompt",
    "n_iter": "num_images_per_prompt", "enable_hr": "hires",
}  # fmt: skip


def _unknown(pipeline: str, name: str, value: object) -> InputError:
    """The near miss of a name that is no argument."""
    known = _rows(pipeline)
    flags = {row.flag.lstrip("-").replace("-", "_"): own for own, row in fields(pipeline).items() if row.flag}
    near = _INSTEAD.get(name) or flags.get(name)
    others = [other for other in PIPELINES if name in _rows(other)]
    if near not in known:
        near = None if others else next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)
    if near is not None:
        return InputError(pipeline, f"{name} is no argument: did you mean {near}?")
    if others:
        return InputError(pipeline, f"{name} is no argument of {pipeline}, but of {', '.join(others)}")
    return InputError(pipeline, f"{name} is no argument; there are {', '.join(fields(pipeline))}", value)


def seeds_of(place: str, seed: int | list[int], n: int) -> list[int]:
    """The seed of each of n images; RANDOM draws a fresh one. Raises InputError where one leaves 0 .. 2**64 - 1."""
    if isinstance(seed, list):
        if len(seed) != n:
            raise InputError(place, f"seed must be one, or a list of {n}: one for each image", len(seed))
        return [secrets.randbelow(2**32) if one == RANDOM else one for one in seed]
    first = secrets.randbelow(2**32) if seed == RANDOM else seed
    return [check_seed(first + i) for i in range(n)]


# --- Stored requests ---


def check_stored(stored: StoredRequest) -> None:
    """A stored request by the table. Raises InputError naming the argument, the rule and the value.

    It may come from anyone: a prompt is one text, files are regular ones, and nothing is there that the table does not
    list. Fields that are newer than the picture may be missing.
    """
    place = "rerun"
    if stored.command not in PIPELINES:
        raise InputError(place, f"command of the stored request must be one of {', '.join(PIPELINES)}", stored.command)
    rows = fields(stored.command)
    for name, value in stored.arguments.items():
        if name not in rows or not rows[name].stored:
            raise InputError(place, f"{stored.command} stores no argument of this name", name)
        if isinstance(rows[name].kind, Text) and not isinstance(value, str):
            raise InputError(place, f"{name} of the stored request must be text", value)
        if value is not None:
            rows[name].kind.check(place, name, value)
    for name, row in rows.items():
        if row.settled and stored.arguments.get(name) is None:
            raise InputError(place, "the stored request must tell its argument", name)
    pictures = {name for name, row in rows.items() if isinstance(row.kind, Picture)}
    if set(stored.files) != pictures:
        raise InputError(place, f"{stored.command} reads {sorted(pictures)}", sorted(stored.files))
    check_seed(stored.seed)
