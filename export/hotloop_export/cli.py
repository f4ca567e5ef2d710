"""`hotloop export`, `build` and `prune`: a source to a bundle, another engine into one, a source made smaller. torch is
imported late."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from hotloop.cli.generate import named, scaled
from hotloop.engines import KINDS
from hotloop.errors import InputError
from hotloop.spec import FAMILIES, GROUPS, REWRITES

if TYPE_CHECKING:
    from .bundle import Outcome

__all__ = ["build", "export", "prune"]

_FAMILIES = [name for name, row in FAMILIES.items() if row.unet_channels]  # those of checkpoints
_KINDS = ", ".join(kind.replace("_", "-") for kind in KINDS)
Engine = Annotated[list[str] | None, typer.Option(
    help=f"{_KINDS}; with a precision of its own as KIND:PRECISION. Repeatable.", show_default=False)]  # fmt: skip
Precision = Annotated[str | None, typer.Option(
    help="fp32, fp16, bf16 or int8 [default: openvino bf16, tensorrt fp16, else fp32].")]  # fmt: skip
Shapes = Annotated[str, typer.Option(help="Sizes for engines with profiles: 512x512,768x512 [default: the model's].")]
Batch = Annotated[str, typer.Option(help="Images per call for engines with profiles: 4 or 1-4.")]
Keep = Annotated[str, typer.Option(help="Modules kept in fp32, joined by commas; auto: those that the bounds need.")]


def export(
    source: Annotated[Path, typer.Argument(
        help="A diffusers folder, a single .safetensors checkpoint, or a generator: its folder or an .onnx file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle to write; a bundle there is replaced.")],
    engine: Engine = None,
    precision: Precision = None,
    rewrites: Annotated[str, typer.Option(
        help=f"Exact rewrites of the UNet, joined by commas: {', '.join(REWRITES)}; all or none.")] = "kv,time,prefix",
    groups: Annotated[str, typer.Option(help=f"Optional UNet inputs, joined by commas: {', '.join(GROUPS)}.")] = "",
    lora: Annotated[list[str] | None, typer.Option(help="FILE or FILE:SCALE, merged in. Repeatable.")] = None,
    embedding: Annotated[list[str] | None, typer.Option(help="A textual inversion: FILE or FILE:WORD.")] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE, or a tiny one; tiny: the one near the source.")] = None,
    family: Annotated[str | None, typer.Option(help=f"One of {', '.join(_FAMILIES)} [default: found out].")] = None,
    prediction: Annotated[str | None, typer.Option(help="eps or v, where the source does not tell.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A single file's tokenizer folder [default: found].")] = None,
    variant: Annotated[str | None, typer.Option(help="Which weights of a folder, such as fp16.")] = None,
    shapes: Shapes = "",
    batch: Batch = "1",
    keep_fp32: Keep = "",
    certify: Annotated[str, typer.Option(help="quick: 2 prompts, at most 8 steps and 256 pixels; or full.")] = "quick",
    sampler: Annotated[str | None, typer.Option(help="The bundle's sampler [default: the checkpoint's own].")] = None,
    steps: Annotated[int | None, typer.Option(help="The bundle's steps [default: the checkpoint's, or 50].")] = None,
    guidance: Annotated[float | None, typer.Option(help="Its guidance [default: the checkpoint's, or 7.5].")] = None,
    rehash: Annotated[bool, typer.Option(help="Hash every file anew, whatever is remembered.")] = False,
    range_: Annotated[str | None, typer.Option("--range", help="An .onnx generator's pixels: -1,1 or 0,1.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of one that draws flat rows.")] = None,
    labels: Annotated[str | None, typer.Option(
        help="A generator's classes: ATTRIBUTE=NAME,NAME,... or how many.")] = None,
    controls: Annotated[str | None, typer.Option(help="Names of an .onnx generator's condition: NAME,NAME,...")] = None,
) -> None:  # fmt: skip
    """Export a checkpoint or a generator as a bundle that runs without torch, certified against torch."""
    bundle = _bundle()
    from .generators import Told, is_generator, write_generator
    from .recipe import Recipe, Target, parse_batches, parse_shapes, parse_target

    given = {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": guidance}
    recipe = Recipe(
        source,
        targets=tuple(parse_target(text, precision) for text in engine or []) or (Target("onnx", precision or "fp32"),),
        rewrites=REWRITES if rewrites == "all" else () if rewrites == "none" else tuple(_split(rewrites)),
        groups=tuple(_split(groups)),
        loras=tuple(scaled(text) for text in lora or []),
        embeddings=tuple(named(text) for text in embedding or []),
        vae=vae, family=family, prediction=prediction, tokenizer=tokenizer, variant=variant,
        shapes=parse_shapes(shapes) if shapes else (),
        batches=parse_batches(batch),
        keep_fp32="auto" if keep_fp32 == "auto" else tuple(_split(keep_fp32)),
        certify=certify,
        defaults={key: value for key, value in given.items() if value is not None},
    )  # fmt: skip
    told = Told(
        range_, parse_shapes(size)[0] if size else None, _labels(labels), tuple(_split(controls or ""))
    )  # fmt: skip
    if is_generator(source):
        _report(write_generator(recipe, out, told, rehash=rehash, say=_say))
    elif told != Told():
        raise InputError("export", "range, size, labels and controls are for generators", str(source))
    else:
        _report(bundle.write_bundle(recipe, out, rehash=rehash, say=_say))


def build(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    engine: Engine = None,
    precision: Precision = None,
    shapes: Shapes = "",
    batch: Batch = "1",
    keep_fp32: Keep = "",
) -> None:
    """Add engines, built for this machine, to a bundle."""
    bundle = _bundle()
    from .recipe import parse_batches, parse_shapes, parse_target

    if not engine:
        raise InputError("build", "name an engine with --engine: " + _KINDS)
    outcome = bundle.add_engines(
        path,
        [parse_target(text, precision) for text in engine],
        shapes=parse_shapes(shapes) if shapes else (),
        batches=parse_batches(batch),
        keep_fp32="auto" if keep_fp32 == "auto" else tuple(_split(keep_fp32)),
        say=_say,
    )
    _report(outcome)


def prune(
    source: Annotated[Path, typer.Argument(help="A generator's folder, or with --unet a diffusers folder.")],
    out: Annotated[Path, typer.Argument(help="The source folder to write.")],
    keep: Annotated[float, typer.Option(help="Share of the parameters that is kept, at most.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Steps of distillation, four minutes at most; 0: none.")] = 400,
    unet: Annotated[bool, typer.Option("--unet", help="Prune a checkpoint's UNet.")] = False,
    seed: Annotated[int, typer.Option(help="Of the inputs that it is measured and distilled on.")] = 0,
) -> None:
    """Take the channels out of a network that matter least, and distil what is left."""
    _bundle()
    from .pruned import prune_folder

    report = prune_folder(source, out, keep=keep, steps=steps, unet=unet, seed=seed, say=_say)
    for line in report.lines():
        _say(line)
    typer.echo(out)


def _bundle() -> ModuleType:
    try:
        from . import bundle
    except ImportError as error:
        rule = f"needs packages that are not installed: pip install '.[export]' in hotloop's folder ({error})"
        raise InputError("export", rule) from error
    return bundle


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _labels(text: str | None) -> dict[str, list[str]] | int:
    """Of `hair=black,brown` or `2`."""
    if text is None or text.isdecimal():
        return int(text or 0)
    name, equals, classes = text.partition("=")
    if not name or not equals or not _split(classes):
        raise InputError("export", "labels must be ATTRIBUTE=NAME,NAME,... or a number of classes", text)
    return {name: _split(classes)}


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _report(outcome: Outcome) -> None:
    seconds = sum(seconds for _, seconds, _ in outcome.stages)
    peak = max(peak for _, _, peak in outcome.stages) / 2**30
    how = "from the cache" if outcome.hit else f"peak memory {peak:.1f} GB"
    _say(f"{outcome.key[:12]} in {seconds:.1f} s, {how}")
    typer.echo(outcome.path)
