"""`hotloop ...`: a thin shell over the Python API. Every error is one line on stderr with exit code 2."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .. import __version__
from ..errors import HotloopError, InputError

if TYPE_CHECKING:
    from ..image.metadata import StoredRequest
    from ..loop import Progress
    from ..pipeline import Result

__all__ = ["app", "main"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_BATCHES = 10_000

app = typer.Typer(
    name="hotloop",
    help="Low-latency Stable Diffusion runtime.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Prompt = Annotated[str, typer.Argument(help="What to draw.", show_default=False)]
Negative = Annotated[str, typer.Option(help="What to keep out.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps [default: the model's own].")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale, 1 = off [default: the model's own].")]
Sampler = Annotated[str | None, typer.Option(help="One of `hotloop samplers` [default: the model's own].")]
Seed = Annotated[int | None, typer.Option(help="Seed of the first image; image i has seed + i [default: fresh].")]
NumImages = Annotated[int, typer.Option(help="Images per batch.")]
Batches = Annotated[int, typer.Option(help="Batches, one after the other; seeds go on counting.")]
Width = Annotated[int | None, typer.Option(help="Pixels [default: the model's or the image's own].")]
Height = Annotated[int | None, typer.Option(help="Pixels [default: the model's or the image's own].")]
Image = Annotated[Path, typer.Option(help="The picture to start from (PNG, JPEG, WebP).", show_default=False)]
Mask = Annotated[Path, typer.Option(help="Mask of the picture's size, white = repaint.", show_default=False)]
Model = Annotated[Path | None, typer.Option(help="Bundle directory [default: the built-in model].")]
Engine = Annotated[str, typer.Option(help="auto, a kind (openvino) or a kind and precision (openvino-bf16).")]
LongPrompt = Annotated[str, typer.Option(help="Beyond 75 tokens: truncate (with a warning) or chunk.")]
Out = Annotated[
    Path, typer.Option(help="A picture's name (.png, .jpg, .webp), or a directory. Only PNG carries its request.")
]
Json = Annotated[bool, typer.Option("--json", help="Print files, seeds and timings as JSON.")]


@app.command()
def txt2img(
    prompt: Prompt,
    negative: Negative = "",
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    seed: Seed = None,
    num_images: NumImages = 1,
    batches: Batches = 1,
    width: Width = None,
    height: Height = None,
    long_prompt: LongPrompt = "truncate",
    model: Model = None,
    engine: Engine = "auto",
    out: Out = Path("out"),
    json_: Json = False,
) -> None:
    """Draw pictures from words."""
    arguments = dict(
        prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, sampler=sampler,
        width=width, height=height, long_prompt=long_prompt,
    )  # fmt: skip
    _draw("txt2img", arguments, {}, seed, num_images, batches, model, engine, out, json_)


@app.command()
def img2img(
    prompt: Prompt,
    image: Image,
    strength: Annotated[float, typer.Option(help="Share of the steps that is run, above 0 up to 1.")] = 0.6,
    resize_mode: Annotated[str, typer.Option(help="To another shape: default (stretch), fill or crop.")] = "default",
    negative: Negative = "",
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    seed: Seed = None,
    num_images: NumImages = 1,
    batches: Batches = 1,
    width: Width = None,
    height: Height = None,
    long_prompt: LongPrompt = "truncate",
    model: Model = None,
    engine: Engine = "auto",
    out: Out = Path("out"),
    json_: Json = False,
) -> None:
    """Redraw a picture after words."""
    arguments = dict(
        prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, sampler=sampler,
        width=width, height=height, long_prompt=long_prompt, strength=strength, resize_mode=resize_mode,
    )  # fmt: skip
    _draw("img2img", arguments, {"image": image}, seed, num_images, batches, model, engine, out, json_)


@app.command()
def inpaint(
    prompt: Prompt,
    image: Image,
    mask: Mask,
    strength: Annotated[float, typer.Option(help="Share of the steps that is run, above 0 up to 1.")] = 1.0,
    paste: Annotated[bool, typer.Option(help="Keep every pixel where the blurred mask is 0.")] = True,
    mask_blur: Annotated[float | None, typer.Option(help="Softness of the mask's edge, pixels.")] = None,
    only_masked: Annotated[int | None, typer.Option(help="Draw only the masked region with this padding.")] = None,
    negative: Negative = "",
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    seed: Seed = None,
    num_images: NumImages = 1,
    batches: Batches = 1,
    width: Width = None,
    height: Height = None,
    long_prompt: LongPrompt = "truncate",
    model: Model = None,
    engine: Engine = "auto",
    out: Out = Path("out"),
    json_: Json = False,
) -> None:
    """Repaint the white part of a mask after words."""
    arguments = dict(
        prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, sampler=sampler,
        width=width, height=height, long_prompt=long_prompt, strength=strength, paste=paste, mask_blur=mask_blur,
        padding_mask_crop=only_masked,
    )  # fmt: skip
    files = {"image": image, "mask_image": mask}
    _draw("inpaint", arguments, files, seed, num_images, batches, model, engine, out, json_)


@app.command()
def rerun(
    file: Annotated[Path, typer.Argument(help="A PNG that hotloop wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to write [default: NAME-rerun.png].")] = None,
    json_: Json = False,
) -> None:
    """Draw a picture again from the request stored in it, byte for byte."""
    from ..image.metadata import StoredRequest, source

    stored = StoredRequest.read(file)

    def found(path: str) -> Path:
        # As it was typed then, or beside the picture.
        return Path(path) if Path(path).exists() else file.parent / path

    paths = {name: found(entry["path"]) for name, entry in stored.files.items()}
    for name, path in paths.items():
        if source(path)["sha256"] != stored.files[name]["sha256"]:
            raise InputError("rerun", f"{name} must be the file the picture was made from", str(path))
    target = out or file.with_name(f"{file.stem}-rerun.png")
    _draw(stored.command, dict(stored.arguments), paths, stored.seed, 1, 1,
          found(stored.model) if stored.model else None, stored.engine, target, json_, stored=stored)  # fmt: skip


@app.command()
def samplers(json_: Json = False) -> None:
    """List the samplers with their network evaluations for 20 steps and their options."""
    from .. import samplers as module
    from ..bundle import Bundle, builtin
    from ..samplers.schedule import Schedule

    bundle = Bundle.open(builtin(), verify=False)
    schedule = Schedule.from_config(bundle.scheduler_config, bundle.family.schedule)
    rows: list[dict[str, Any]] = []
    for name in module.NAMES:
        table = module.build(name, schedule, 20)
        # The first line of a sampler's docstring cites its source.
        summary = (module.get(name).__doc__ or "").strip().splitlines()[0]
        options = dict(module.options(name))
        rows.append({"name": name, "evaluations_at_20_steps": len(table), "summary": summary, "options": options})
    if json_:
        _print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<14} {row['evaluations_at_20_steps']:>3}  {row['summary']}")
        typer.echo(f"{'':<19}{', '.join(row['options'])}")


@app.command()
def compare(
    path: Annotated[Path | None, typer.Argument(help="A bundle [default: the built-in model].")] = None,
    samplers: Annotated[str, typer.Option(help="Names, separated by commas.")] = "ddim,plms,lms,dpmpp_2m",
    steps: Annotated[str, typer.Option(help="Numbers of steps, separated by commas.")] = "5,10,20,50",
    engines: Annotated[str, typer.Option(help="As --engine elsewhere; several, separated by commas.")] = "auto",
    prompts: Annotated[int, typer.Option(help="Pictures per point that quality is measured on.")] = 16,
    guidance: Guidance = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT [default: the model's own].")] = None,
    batch: Annotated[int, typer.Option(help="Pictures per call; times are per picture.")] = 1,
    rounds: Annotated[int, typer.Option(help="At least so many timed calls of each point.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; picture i has seed + i.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A directory for JSON lines and a contact sheet per engine.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Add JSON lines to this file.")] = None,
) -> None:
    """Latency against quality over samplers x steps x engines. Ctrl-C keeps the rounds that are whole."""
    from tqdm import tqdm

    from .. import image as images
    from ..bundle import Bundle, builtin
    from ..evaluation.comparison import Comparison
    from ..evaluation.records import append

    comparison = Comparison(
        Bundle.open(path or builtin()), samplers=_listed(samplers), engines=_listed(engines) or ["auto"],
        steps=[_whole("steps", text) for text in _listed(steps)], prompts=prompts, guidance=guidance,
        size=_size(size) if size else None, batch=batch, rounds=rounds, seed=seed,
    )  # fmt: skip
    files = [file for file in (json_, out / "compare.jsonl" if out else None) if file]
    for file in files:
        _make_room("compare", file)
    interrupted = False
    try:
        for _ in tqdm(comparison.run(), "compare", len(comparison), leave=False, disable=not sys.stderr.isatty()):
            pass
    except KeyboardInterrupt:
        if not comparison.done:
            raise
        interrupted = True
    typer.echo(comparison.table())
    lines = comparison.records(model=path.name if path else "built-in")
    for file in files:
        append(file, lines)
        typer.echo(file)
    if out:
        for engine, sheet in comparison.sheets().items():
            typer.echo(images.save(sheet, out / f"{engine}.png"))
    if interrupted:
        raise KeyboardInterrupt


@app.command()
def doctor(json_: Json = False) -> None:
    """Say which engines, kernels and models this machine has, and what to install for the rest."""
    from .doctor import examine

    findings = examine()
    if json_:
        _print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            advice = f"  ->  {finding.advice}" if finding.advice else ""
            typer.echo(f"{'ok  ' if finding.ok else '--  '}{finding.name:<22}{finding.found}{advice}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    json_: Json = False,
) -> None:
    """Show what a bundle is: family, sources, engines, sizes, certificates. Every file is hashed first."""
    from ..bundle import Bundle
    from ..bundle.describe import describe

    bundle = Bundle.open(path)
    if json_:
        _print_json({**bundle.manifest, "id": bundle.id})
    else:
        for line in describe(bundle):
            typer.echo(line)


@app.command()
def verify(
    path: Annotated[Path | None, typer.Argument(help="A bundle [default: the built-in model].")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Only these engines. Repeatable.")] = None,
    update: Annotated[bool, typer.Option(help="Write the certificates that hold here into the bundle.")] = False,
    json_: Json = False,
) -> None:
    """Hash every file of a bundle and run every engine that can run here against the stored reference."""
    from ..bundle import Bundle, builtin
    from ..bundle.describe import certificate_line
    from ..evaluation.certificates import update_certificates
    from ..evaluation.certificates import verify as verified

    bundle = Bundle.open(path or builtin())
    found = verified(bundle, engines=engine or ())
    if json_:
        _print_json({name: {"certificate": made, "problem": problem} for name, (made, problem) in found.items()})
    else:
        typer.echo(f"{len(bundle.manifest['files'])} files whole, {bundle.family.name} {bundle.id[:12]}")
        for name, (made, problem) in found.items():
            state = "not run" if made is None else "BROKEN" if problem else "holds"
            told = [certificate_line(made) if made else "", problem or ""]
            typer.echo(f"{name:<18}{state:<9}{'; '.join(filter(None, told))}")
    broken = [name for name, (made, problem) in found.items() if made is not None and problem]
    if broken:
        raise InputError("verify", "every certificate must hold", broken)
    if update:
        update_certificates(bundle, {name: made for name, (made, _) in found.items() if made is not None})


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _draw(
    command: str,
    arguments: dict[str, Any],
    files: Mapping[str, Path],
    seed: int | None,
    num_images: int,
    batches: int,
    model: Path | None,
    engine: str,
    out: Path,
    as_json: bool,
    *,
    stored: StoredRequest | None = None,
) -> None:
    """Run `command` on the pipeline batch after batch and write each picture with its own request in it."""
    import secrets

    from .. import image as images
    from ..checks import check_integer
    from ..image.metadata import KEY, StoredRequest, source
    from ..noise import seeds_for
    from ..pipeline import load
    from ..request import MAX_IMAGES

    # Everything that can be refused is refused before the first picture is drawn.
    check_integer(command, "batches", batches, 1, MAX_BATCHES)
    check_integer(command, "num-images", num_images, 1, MAX_IMAGES)
    seeds = seeds_for(secrets.randbelow(2**32) if seed is None else seed, batches * num_images)
    targets = _targets(command, out, seeds)
    sources = stored.files if stored else {name: source(path) for name, path in files.items()}
    pipe = load(model, engine=engine)
    if stored is not None and stored.bundle != pipe.bundle.id:
        raise InputError(command, "the picture was made with another version of the model", stored.bundle[:12] + "…")
    timings = []
    for batch in range(batches):
        own = slice(batch * num_images, (batch + 1) * num_images)
        with _progress(f"{command} {batch + 1}/{batches}") as callback:
            result: Result = getattr(pipe, command)(
                **arguments, **files, seed=seeds[own][0], num_images=num_images, callback=callback
            )
        settings = arguments | result.settings
        for drawn, image_seed, target in zip(result.images, result.seeds, targets[own], strict=True):
            request = StoredRequest(
                command, settings, sources, image_seed, pipe.bundle.id,
                stored.model if stored else str(model) if model else None, pipe.engine,
            )  # fmt: skip
            images.save(drawn, target, text={KEY: request.text()})
        timings.append(result.timings)
    made = [{"file": str(target), "seed": seed} for target, seed in zip(targets, seeds, strict=True)]
    if as_json:
        _print_json({"images": made, "timings": timings, "bundle": pipe.bundle.id, "engine": pipe.engine})
    else:
        for entry in made:
            typer.echo(f"{entry['file']}  seed {entry['seed']}")


def _targets(command: str, out: Path, seeds: list[int]) -> list[Path]:
    """A file name per seed. Raises InputError for a suffix that is no picture's, or a place that cannot be written."""
    if out.is_dir() or not out.suffix:
        targets = [out / f"{seed}.png" for seed in seeds]
    elif out.suffix.lower() not in SUFFIXES:
        raise InputError(command, f"out must be a directory or end with {', '.join(SUFFIXES)}", str(out))
    elif len(seeds) == 1:
        targets = [out]
    else:
        targets = [out.with_name(f"{out.stem}-{seed}{out.suffix}") for seed in seeds]
    folder = targets[0].parent
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(command, "out must be a place that can be written", str(out))
    return targets


def _make_room(command: str, file: Path) -> None:
    """Make the folder of a file that lines will be added to. Raises InputError where that cannot be: minutes of work
    are not to end there."""
    folder = file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = f"folder must be one that can be made ({error.strerror})"
        raise InputError(command, rule, str(folder)) from error
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise InputError(command, "file must be one that can be written", str(file))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise InputError("compare", f"{name} must be whole numbers, separated by commas", text)
    return int(text)


def _size(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)):
        raise InputError("compare", "size must be WIDTHxHEIGHT, such as 512x512", text)
    return int(found[1]), int(found[2])


@contextmanager
def _progress(label: str) -> Iterator[Any]:
    """A callback that moves a progress bar, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit="step", leave=False) as bar:

        def callback(progress: Progress) -> None:
            bar.total = progress.rows
            bar.update(1)

        yield callback


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> NoReturn:
    """The `hotloop` command. Upper layers add their commands through the entry-point group `hotloop.commands`."""
    for entry in entry_points(group="hotloop.commands"):
        app.command(entry.name)(entry.load())
    signal.signal(signal.SIGTERM, _terminate)  # ends like an error, so that what is half made is removed
    warnings.showwarning = _show_warning
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files: what cannot be read is an error of our own
    try:
        code = app(standalone_mode=False)
    except HotloopError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    except OSError as error:
        _fail(f"[file] {error.strerror or error}: {error.filename}")
    except Exception as error:
        # Wrong flags: typer's usage errors all have format_message(); anything else is a defect and shows its trace.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"[command line] {error.format_message()}")
    if code == 130:  # typer's own word for an interrupt
        _fail("interrupted", code=code)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    sys.stderr.write("hotloop: " + " ".join(str(message).splitlines()) + "\n")


def _terminate(number: int, frame: object) -> NoReturn:
    _fail("terminated", code=128 + number)


def _fail(line: str, *, code: int = 2) -> NoReturn:
    sys.stderr.write("hotloop: " + " ".join(line.splitlines()) + "\n")
    sys.exit(code)
