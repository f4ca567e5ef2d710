"""`hotloop ...`: a thin shell over the Python API. Every error is one line on stderr with exit code 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from . import __version__
from .errors import HotloopError, InputError

if TYPE_CHECKING:
    from .loop import Progress
    from .pipeline import Result

__all__ = ["app", "main"]

REQUEST_KEY = "hotloop"  # the PNG text under which the request is stored
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_BATCHES = 10_000

app = typer.Typer(
    name="hotloop",
    help="Low-latency Stable Diffusion runtime.",
    add_completion=False,
    no_args_is_help=True,
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
Out = Annotated[Path, typer.Option(help="A picture's name (.png, .jpg, .webp), or a directory.")]
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
    model: Model = None,
    out: Out = Path("out"),
    json_: Json = False,
) -> None:
    """Draw pictures from words."""
    arguments = dict(
        prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, sampler=sampler,
        width=width, height=height,
    )  # fmt: skip
    _draw("txt2img", arguments, {}, seed, num_images, batches, model, out, json_)


@app.command()
def img2img(
    prompt: Prompt,
    image: Image,
    strength: Annotated[float, typer.Option(help="Share of the steps that is run, above 0 up to 1.")] = 0.6,
    negative: Negative = "",
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    seed: Seed = None,
    num_images: NumImages = 1,
    batches: Batches = 1,
    width: Width = None,
    height: Height = None,
    model: Model = None,
    out: Out = Path("out"),
    json_: Json = False,
) -> None:
    """Redraw a picture after words."""
    arguments = dict(
        prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, sampler=sampler,
        width=width, height=height, strength=strength,
    )  # fmt: skip
    _draw("img2img", arguments, {"image": image}, seed, num_images, batches, model, out, json_)


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
    model: Model = None,
    out: Out = Path("out"),
    json_: Json = False,
) -> None:
    """Repaint the white part of a mask after words."""
    arguments = dict(
        prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, sampler=sampler,
        width=width, height=height, strength=strength, paste=paste, mask_blur=mask_blur, padding_mask_crop=only_masked,
    )  # fmt: skip
    files = {"image": image, "mask_image": mask}
    _draw("inpaint", arguments, files, seed, num_images, batches, model, out, json_)


@app.command()
def rerun(
    file: Annotated[Path, typer.Argument(help="A PNG that hotloop wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to write [default: NAME-rerun.png].")] = None,
    json_: Json = False,
) -> None:
    """Draw a picture again from the request stored in it, byte for byte."""
    from . import image as images

    stored = images.read_text(file).get(REQUEST_KEY)
    if stored is None:
        raise InputError("rerun", "the file must carry a hotloop request in its PNG text", str(file))
    try:
        request = json.loads(stored)
        command, arguments, files = request["command"], dict(request["arguments"]), dict(request["files"])
        seed, bundle, model = request["seed"], request["bundle"], request["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("rerun", f"the stored request is not readable: {error!r}", str(file)) from error
    if command not in ("txt2img", "img2img", "inpaint"):
        raise InputError("rerun", "stored command must be txt2img, img2img or inpaint", command)
    for name, source in files.items():
        if _hash(Path(source["path"])) != source["sha256"]:
            raise InputError("rerun", f"{name} must be the file the picture was made from", source["path"])
    target = out or file.with_name(f"{file.stem}-rerun.png")
    paths = {name: Path(source["path"]) for name, source in files.items()}
    _draw(command, arguments, paths, seed, 1, 1, Path(model) if model else None, target, json_, bundle=bundle)


@app.command()
def samplers(json_: Json = False) -> None:
    """List the samplers, their options and network evaluations for 20 steps."""
    from . import samplers as module
    from .bundle import Bundle, builtin
    from .schedule import Schedule

    bundle = Bundle.open(builtin(), verify=False)
    schedule = Schedule.from_config(bundle.scheduler_config, bundle.family.schedule)
    rows = []
    for name in module.NAMES:
        table = module.build(name, schedule, 20)
        # The first line of a sampler's docstring cites its source.
        summary = (module.get(name).__doc__ or "").strip().splitlines()[0]
        rows.append({"name": name, "evaluations_at_20_steps": len(table.timesteps), "summary": summary})
    if json_:
        _print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<14} {row['evaluations_at_20_steps']:>3}  {row['summary']}")


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


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _draw(
    command: str,
    arguments: dict[str, Any],
    files: Mapping[str, Path],
    seed: int | None,
    num_images: int,
    batches: int,
    model: Path | None,
    out: Path,
    as_json: bool,
    *,
    bundle: str | None = None,
) -> None:
    """Run `command` on the pipeline batch after batch and write each picture with its own request in it."""
    import secrets

    from . import image as images
    from .pipeline import load
    from .request import MAX_IMAGES

    if not 1 <= batches <= MAX_BATCHES:
        raise InputError(command, f"batches must be in 1..{MAX_BATCHES}", batches)
    if not 1 <= num_images <= MAX_IMAGES:
        raise InputError(command, f"num-images must be in 1..{MAX_IMAGES}", num_images)
    if out.suffix and out.suffix.lower() not in SUFFIXES:
        raise InputError(command, f"out must be a directory or end with {', '.join(SUFFIXES)}", str(out))
    hashes = {name: {"path": str(path), "sha256": _hash(path)} for name, path in files.items()}
    pipe = load(model)
    if bundle is not None and bundle != pipe.bundle.id:
        raise InputError(command, "the picture was made with another version of the model", bundle[:12] + "…")
    first = secrets.randbelow(2**32) if seed is None else seed
    made: list[dict[str, Any]] = []
    for batch in range(batches):
        with _progress(f"{command} {batch + 1}/{batches}") as callback:
            result: Result = getattr(pipe, command)(
                **arguments, **files, seed=first + batch * num_images, num_images=num_images, callback=callback
            )
        for drawn, own in zip(result.images, result.seeds, strict=True):
            path = _target(out, own, several=num_images * batches > 1)
            request = {
                "version": __version__, "command": command, "model": str(model) if model else None,
                "bundle": pipe.bundle.id, "arguments": arguments, "files": hashes, "seed": own,
            }  # fmt: skip
            images.save(drawn, path, text={REQUEST_KEY: json.dumps(request, sort_keys=True)})
            made.append({"file": str(path), "seed": own})
        last = result.timings
    if as_json:
        _print_json({"images": made, "timings": last, "bundle": pipe.bundle.id, "engine": pipe.engine})
    else:
        for entry in made:
            typer.echo(f"{entry['file']}  seed {entry['seed']}")


def _target(out: Path, seed: int, *, several: bool) -> Path:
    if not out.suffix:
        return out / f"{seed}.png"
    return out.with_name(f"{out.stem}-{seed}{out.suffix}") if several else out


def _hash(path: Path) -> str:
    from .bundle import sha256

    try:
        return sha256(path)
    except OSError as error:
        raise InputError("image", f"the file must be readable: {error.strerror}", str(path)) from error


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
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str, *, code: int = 2) -> NoReturn:
    sys.stderr.write("hotloop: " + " ".join(line.splitlines()) + "\n")
    sys.exit(code)
