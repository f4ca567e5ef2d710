"""What a route was asked for, as a request of the one table: names of other protocols, limits, defaults, seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ...fields import Kind
from ...request import Request, aliases, canonical, fields, schema
from ...spec import ENLARGED
from .limits import Limits
from .pictures import Picture
from .refusals import Refusal

__all__ = ["ALIASES", "Asked", "Names", "body_schema", "carried", "enlarged", "without_unknown"]

# Names that other programs' clients have for a field, beside the aliases of the table itself.
ALIASES: Mapping[str, str] = {
    "rng_seed": "seed", "steps": "num_inference_steps", "step": "num_inference_steps", "cfg_scale": "guidance_scale",
    "denoising_strength": "strength", "scheduler": "sampler", "sampler_name": "sampler", "n": "num_images_per_prompt",
}  # fmt: skip
_FIRST = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Asked:
    """A request that may be drawn: checked, within the limits, its seeds drawn.

    values    the arguments that a worker gives the pipeline, as JSON
    pictures  field -> file; fill: the masked part is filled from around it first
    partials  how many pictures are told on the way
    settled   every field's value
    """

    bundle: str
    pipeline: str
    values: dict[str, Any]
    seeds: list[int]
    settled: Mapping[str, Any]
    size: tuple[int, int]
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    loras: tuple[tuple[str, float], ...] = ()
    fill: bool = False
    partials: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """What requests can name: bundles with what their worker tells of them, LoRAs."""

    bundles: Mapping[str, Mapping[str, Any]]
    loras: frozenset[str]
    limits: Limits

    def bundle(self, name: Any) -> str:
        """The first one where none is named. Raises Refusal."""
        if name is None or name == "":
            return next(iter(self.bundles))
        if not isinstance(name, str) or name not in self.bundles:
            raise Refusal("unknown_model", param="model")
        return name

    def ask(
        self, pipeline: str, bundle: str, given: Mapping[str, Any], pictures: Mapping[str, Picture] | None = None, *,
        loras: Any = (), fill: bool = False, partials: int = 0, warnings: Iterable[str] = (),
    ) -> Asked:  # fmt: skip
        """Raises Refusal with the rule that is broken, or the limit."""
        pictures, facts = dict(pictures or {}), self.bundles[bundle]
        values = {"long_prompt": "chunk", **{name: one for name, one in given.items() if one is not None}}
        try:
            values = canonical(pipeline, values)
            self._limits(values, facts)
            stand_ins = dict.fromkeys(pictures, "")
            request = Request.checked(pipeline, {**values, **stand_ins}, facts["defaults"])
        except InputError as error:
            raise refused(pipeline, error) from None
        if request["alpha"] and "segmenter" not in facts["networks"]:
            raise Refusal("invalid_value", "alpha needs a segmenter, which this model lacks", param="alpha")
        if request["upscale"] and "upscaler" not in facts["networks"]:
            raise Refusal("invalid_value", "upscale needs an upscaler, which this model lacks", param="upscale")
        size = self._size(request, facts, pictures)
        values |= {"seed": request.seeds, "num_images_per_prompt": len(request.seeds)}
        return Asked(
            bundle, pipeline, values, request.seeds, request.values, size, pictures, self._loras(loras), fill, partials,
            tuple(warnings),
        )  # fmt: skip

    def _limits(self, values: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        limits = self.limits
        for name, most in (
            ("num_inference_steps", limits.steps), ("hires_steps", limits.steps), ("width", limits.side),
            ("height", limits.side), ("num_images_per_prompt", limits.images),
        ):  # fmt: skip
            value = values.get(name)
            if isinstance(value, (int, float)) and value > most:
                raise InputError("limits", f"{name} must be at most {most} here")
        for name in ("prompt", "negative_prompt"):
            text = values.get(name, "")
            if not isinstance(text, str):
                raise InputError("limits", f"{name} must be text")
            if len(text) > limits.prompt:
                raise InputError("limits", f"{name} must have at most {limits.prompt} characters")
            if "\0" in text:
                raise InputError("limits", f"{name} must have no NUL")
        if isinstance(values.get("seed"), (list, tuple)):
            raise InputError("limits", "seed must be one integer")

    def _size(
        self, request: Request, facts: Mapping[str, Any], pictures: Mapping[str, Picture]
    ) -> tuple[int, int]:  # fmt: skip
        """(width, height) of what is drawn. Raises Refusal for sides off the model's grid, or beyond the limits."""
        grid, least, most = facts["grid"], facts["least"], min(facts["most"], self.limits.side)
        whole = request.values.get("padding_mask_crop") is None
        source = pictures["image"].size if "image" in pictures and whole else None
        given = facts["size"] if source is None else [side - side % grid for side in source]
        sides = []
        for name, default in (("width", given[0]), ("height", given[1])):
            asked = request[name]
            side = default if asked is None else asked
            if not least <= side <= most or side % grid:
                what = "the picture's sides, or width and height," if asked is None else name
                rule = f"{what} must be in {least}..{most} and a multiple of {grid} for this model"
                raise Refusal("invalid_value", rule, param=name)
            sides.append(side)
        if (factor := request.values.get("hires")) is not None and max(sides) * factor > most:
            raise Refusal("invalid_value", f"hires must leave width and height within {most}", param="hires")
        return sides[0], sides[1]

    def _loras(self, given: Any) -> tuple[tuple[str, float], ...]:
        if given in (None, "", (), []):
            return ()
        if not isinstance(given, (list, tuple)) or len(given) > self.limits.loras:
            rule = f"loras must be a list of at most {self.limits.loras}, each with name and scale"
            raise Refusal("invalid_value", rule, param="loras")
        found: dict[str, float] = {}
        for one in given:
            name, scale = (one.get("name"), one.get("scale", 1.0)) if isinstance(one, dict) else (None, None)
            if isinstance(one, dict) and set(one) - {"name", "scale"}:
                name = None
            number = isinstance(scale, (int, float)) and not isinstance(scale, bool) and abs(scale) <= 10
            if not isinstance(name, str) or not number:
                rule = "a LoRA must have a name, and a scale in -10..10"
                raise Refusal("invalid_value", rule, param="loras")
            if name not in self.loras:
                raise Refusal("unknown_lora", param="loras")
            found[name] = found.get(name, 0.0) + float(scale)  # type: ignore[arg-type]
        return tuple(found.items())


def carried(pipeline: str) -> dict[str, Kind]:
    """The table's names that JSON can carry, aliases too, with their kinds."""
    kinds = {name: row.kind for name, row in fields(pipeline).items()}
    kinds |= {name: row.kind for name, row in aliases(pipeline).items()}
    return {name: kind for name, kind in kinds.items() if kind.schema() is not None}


def refused(pipeline: str, error: InputError) -> Refusal:
    """The rule that an argument broke, and the field that it names; never what was given."""
    word = _FIRST.match(error.rule)
    param = word.group() if word and word.group() in {*fields(pipeline), *aliases(pipeline)} else None
    if error.rule.endswith("is no argument") or " is no argument" in error.rule:
        return Refusal("invalid_value", "there is a field that this route does not have", param=param)
    return Refusal("invalid_value", error.rule, param=param)


def without_unknown(
    given: Mapping[str, Any], known: Iterable[str], *, strict: bool, ignored: Iterable[str] = ()
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """The fields that a route knows, and a warning for each of the others; in strict mode Refusal for those.

    ignored: what clients of the protocol send and nothing comes of: told, never refused
    """
    takes, without = set(known), set(ignored)
    kept, warnings = {}, []
    for name, value in given.items():
        if name in takes:
            kept[name] = value
        elif strict and name not in without:
            raise Refusal("invalid_body", "there is a field that this route does not have")
        else:
            warnings.append(f"{name[:64]} is without effect" if name.isidentifier() else "an unknown field is ignored")
    return kept, warnings[:32]


def body_schema(pipeline: str, limits: Limits, *, names: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The table's own JSON schema of a pipeline's request, held to the limits; names: fields beside them."""
    said = schema(pipeline)
    properties = dict(said["properties"])
    for name, most in (
        ("num_inference_steps", limits.steps), ("hires_steps", limits.steps), ("width", limits.side),
        ("height", limits.side), ("num_images_per_prompt", limits.images),
    ):  # fmt: skip
        if name in properties:
            properties[name] = properties[name] | {"maximum": most}
    for name in ("prompt", "negative_prompt"):
        properties[name] = properties[name] | {"maxLength": limits.prompt}
    properties |= dict(names or {})
    return {**said, "properties": properties}


def enlarged(asked: Asked) -> tuple[int, int]:
    """(width, height) of what comes out."""
    factor = (asked.settled.get("hires") or 1) * (ENLARGED if asked.settled["upscale"] else 1)
    return round(asked.size[0] * factor), round(asked.size[1] * factor)
