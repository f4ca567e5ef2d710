"""What to export: a checkpoint, its adapters, the engines to build and how they are checked; all checked up front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotloop import samplers
from hotloop.checks import check_integer, check_number
from hotloop.engines import KINDS
from hotloop.errors import InputError
from hotloop.request import bundle_defaults
from hotloop.spec import GROUPS, REWRITES

__all__ = ["CERTIFY", "DEFAULTS", "PRECISIONS", "Recipe", "Target", "mixes", "parse_batches", "parse_shapes",
           "parse_target"]  # fmt: skip

# kind -> the precisions it can be exported in, the default first
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("bf16", "fp32", "fp16", "int8"),
    "tensorrt": ("fp16", "fp32", "bf16"),
    "tensorrt_rtx": ("fp16", "fp32", "bf16"),
    "native": ("fp32", "fp16", "bf16"),
}
# What a pipeline does when it is told nothing and the checkpoint does not tell: the habits of stock diffusers.
DEFAULTS: Mapping[str, Any] = bundle_defaults()
CERTIFY = ("quick", "full")
_LARGEST_SIDE, _LARGEST_BATCH = 4096, 64


@dataclass(frozen=True)
class Target:
    """An engine to build."""

    kind: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.precision}"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a bundle.

    source      a diffusers folder or a single .safetensors file; a generator's folder or .onnx file (`generators`)
    targets     the engines
    rewrites    exact rewrites of the UNet (`hotloop.spec.REWRITES`), carried by every engine
    groups      optional inputs of the UNet (`hotloop.spec.GROUPS`)
    loras       (file, scale), merged into the weights in this order
    embeddings  (file, word or None for the file's own): textual inversions that prompts can name
    vae         a VAE in place of the checkpoint's, or a tiny one beside it; `tiny`: the one in or beside the source
    family, prediction, tokenizer, variant   where the source does not tell (`sources.open_source`)
    shapes, batches   (width, height) and (least, most) images that an engine with profiles is built for
    keep_fp32   modules that stay in float32, or "auto": those that the bounds need
    certify     "quick": 2 prompts, 8 steps, at most 256 pixels; "full": 8 prompts, 20 steps, the family's size;
                never more steps than the default
    defaults    what a pipeline does when told nothing: sampler, num_inference_steps, guidance_scale; what is left out
                follows the checkpoint's own scheduler

    Raises InputError for what is wrong whatever the source holds.
    """

    source: Path
    targets: tuple[Target, ...] = (Target("onnx", "fp32"),)
    rewrites: tuple[str, ...] = ("kv", "time", "prefix")
    groups: tuple[str, ...] = ()
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: tuple[tuple[Path, str | None], ...] = ()
    vae: Path | str | None = None
    family: str | None = None
    prediction: str | None = None
    tokenizer: Path | None = None
    variant: str | None = None
    shapes: tuple[tuple[int, int], ...] = ()
    batches: tuple[int, int] = (1, 1)
    keep_fp32: tuple[str, ...] | str = ()
    certify: str = "quick"
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        place = "export"
        for what, names, known in (
            ("rewrites", self.rewrites, REWRITES), ("groups", self.groups, GROUPS),
            ("defaults", self.defaults, [*DEFAULTS]),
        ):  # fmt: skip
            if unknown := sorted(set(names) - set(known)):
                raise InputError(place, f"{what} must be among {', '.join(known)}", unknown)
            if len(set(names)) < len(names):
                raise InputError(place, f"{what} must differ from each other", list(names))
        if not self.targets or len({target.name for target in self.targets}) < len(self.targets):
            raise InputError(place, "engines must differ, and there must be one", [t.name for t in self.targets])
        profiled = any(target.kind in ("tensorrt", "tensorrt_rtx") for target in self.targets)
        if (self.shapes or self.batches != (1, 1)) and not profiled:
            engines = [target.name for target in self.targets]
            raise InputError(place, "shapes and batch are for engines with profiles (tensorrt, tensorrt-rtx)", engines)
        if self.certify not in CERTIFY:
            raise InputError(place, f"certify must be one of {', '.join(CERTIFY)}", self.certify)
        if isinstance(self.keep_fp32, str) and self.keep_fp32 != "auto":
            raise InputError(place, "keep_fp32 must be auto or module names", self.keep_fp32)
        if self.keep_fp32 and self.keep_fp32 != "auto" and not any(map(mixes, self.targets)):
            rule = "keep_fp32 names modules for int8 engines and for TensorRT's below fp32; there must be one"
            raise InputError(place, rule, [target.name for target in self.targets])
        defaults = {**DEFAULTS, **self.defaults}
        samplers.get(defaults["sampler"])
        check_integer(place, "num_inference_steps", defaults["num_inference_steps"], 1, 1000)
        check_number(place, "guidance_scale", defaults["guidance_scale"], 0, 1000)
        if not Path(self.source).exists():
            raise InputError(place, "source must be a folder, a .safetensors or an .onnx file", str(self.source))


def mixes(target: Target) -> bool:
    """Whether single modules of its networks can stay in float32."""
    return target.precision == "int8" or (target.kind.startswith("tensorrt") and target.precision != "fp32")


def parse_target(text: str, precision: str | None) -> Target:
    """Of `openvino` or `openvino:bf16`; `precision` stands where the text has none. Raises InputError."""
    kind, _, own = text.partition(":")
    kind = kind.replace("-", "_")
    if kind not in KINDS:
        raise InputError("export", "engine must be one of " + ", ".join(KINDS), text)
    chosen = own or precision or PRECISIONS[kind][0]
    if chosen not in PRECISIONS[kind]:
        reason = " (ONNX Runtime's CPU has no bf16 convolution)" if (kind, chosen) == ("onnx", "bf16") else ""
        rule = f"precision of {kind} must be one of {', '.join(PRECISIONS[kind])}{reason}"
        raise InputError("export", rule, chosen)
    return Target(kind, chosen)


def parse_shapes(text: str) -> tuple[tuple[int, int], ...]:
    """Of `512x512,768x512`, width first: ((512, 512), (768, 512)). Raises InputError."""
    shapes = []
    for part in text.split(","):
        sides = part.strip().lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) <= _LARGEST_SIDE for side in sides):
            raise InputError("export", f"shapes must be WIDTHxHEIGHT up to {_LARGEST_SIDE}, joined by commas", text)
        shapes.append((int(sides[0]), int(sides[1])))
    return tuple(dict.fromkeys(shapes))


def parse_batches(text: str) -> tuple[int, int]:
    """Of `4` or `1-4`: (least, most) images. Raises InputError."""
    least, dash, most = text.partition("-")
    bounds = [least, most if dash else least]
    if not all(b.strip().isdecimal() for b in bounds) or not 0 < int(bounds[0]) <= int(bounds[1]) <= _LARGEST_BATCH:
        raise InputError("export", f"batch must be a number or LEAST-MOST, from 1 to {_LARGEST_BATCH}", text)
    return int(bounds[0]), int(bounds[1])
