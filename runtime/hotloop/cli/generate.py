"""`hotloop txt2img`, `img2img`, `inpaint`, `rerun` and `samplers`: options from the table of a request's fields."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import request as table
from ..checks import check_integer
from ..errors import InputError
from ..fields import RANDOM, Alias, Field, Flag, Options, Picture
from .shell import Json, check_writable, print_json, print_line

if TYPE_CHECKING:
    from ..image.metadata import StoredRequest
    from ..loop import Progress
    from ..pipeline import Pipeline, Result

__all__ = ["PIPELINE_COMMANDS", "named", "rerun", "samplers", "scaled"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_BATCHES = 10_000


@dataclass(frozen=True)
class Way:
    """How a command draws, whatever it draws: these are no fields of a request."""

    batches: Annotated[int, typer.Option(help="Batches, one after the other; seeds go on counting.")] = 1
    model: Annotated[Path | None, typer.Option(
        help="Bundle directory, or a built-in model's name [default: avatar-tiny].")] = None  # fmt: skip
    engine: Annotated[str, typer.Option(
        help="auto, a kind (openvino) or a kind and precision (openvino-bf16).")] = "auto"  # fmt: skip
    threads: Annotated[int | None, typer.Option(help="Engine threads [default: all usable cores].")] = None
    lora: Annotated[list[str] | None, typer.Option(
        help="FILE or FILE:SCALE, merged before the first picture. Repeatable.")] = None  # fmt: skip
    embedding: Annotated[list[str] | None, typer.Option(
        help="A textual inversion, a word for prompts: FILE or FILE:WORD. Repeatable.")] = None  # fmt: skip
    out: Annotated[Path, typer.Option(
        help="A picture's name (.png, .jpg, .webp), or a directory. Only PNG carries its request."
    )] = Path("out")  # fmt: skip
    json_: Json = False


def scaled(text: str) -> tuple[Path, float]:
    """FILE or FILE:SCALE; a colon inside the file's name stays there."""
    file, colon, scale = text.rpartition(":")
    try:
        return (Path(file), float(scale)) if colon and not Path(text).exists() else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def named(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:WORD; a colon inside the file's name stays there."""
    file, colon, word = text.rpartition(":")
    return (Path(file), word) if colon and word and not Path(text).exists() else (Path(text), None)


# --- Commands from the table ---


def _command(pipeline: str, summary: str) -> Callable[..., None]:
    """A function that typer makes a command of: the table's fields and aliases with a flag, then those of Way."""
    rows: dict[str, Field | Alias] = {**table.fields(pipeline), **table.aliases(pipeline)}
    parameters = [_parameter(pipeline, name, row) for name, row in rows.items() if row.flag]
    own = inspect.signature(Way, eval_str=True).parameters.values()
    parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    # A Python signature has what must be given first.
    parameters.sort(key=lambda one: one.default is not inspect.Parameter.empty)

    def command(**given: Any) -> None:
        way = Way(**{name: given.pop(name) for name in Way.__dataclass_fields__})
        if given.get("sampler_options"):
            given["sampler_options"] = dict(_assigned(pipeline, text) for text in given["sampler_options"])
        given = {name: value for name, value in given.items() if value is not None and value != []}
        files = {name: given.pop(name) for name, row in table.fields(pipeline).items()
                 if isinstance(row.kind, Picture)}  # fmt: skip
        _draw(pipeline, given, files, way)

    command.__name__, command.__doc__ = pipeline, summary
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameter(pipeline: str, name: str, row: Field | Alias) -> inspect.Parameter:
    kind: Any = list[str] if isinstance(row.kind, Options) else row.kind.type
    required = name in table.required(pipeline)
    help_ = row.help
    if isinstance(row, Field):
        default = table.default_of(pipeline, name)
        shown = "the model's own" if row.bundle else "fresh" if default == RANDOM else default
        told = default in (None, "", {}) or isinstance(row.kind, Flag)
        help_ += "" if told else f" [default: {shown}]"
    flag = f"{row.flag}/--no-{row.flag[2:]}" if isinstance(row.kind, Flag) else row.flag
    option = (
        typer.Option(flag, help=help_ + ".", show_default=False)
        if flag.startswith("-")
        else typer.Argument(help=help_ + ".", show_default=False)
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, option],
    )  # fmt: skip


def _assigned(pipeline: str, text: str) -> tuple[str, Any]:
    """NAME=VALUE: a number, true, false, a list in brackets, else a word."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(pipeline, "sampler-option must be NAME=VALUE, such as eta=0.3", text)
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


PIPELINE_COMMANDS = tuple(
    _command(pipeline, summary)
    for pipeline, summary in (
        ("txt2img", "Draw pictures from words."),
        ("img2img", "Redraw a picture after words."),
        ("inpaint", "Repaint the white part of a mask after words."),
    )
)


def rerun(
    file: Annotated[Path, typer.Argument(help="A PNG that hotloop wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to write [default: NAME-rerun.png].")] = None,
    json_: Json = False,
) -> None:
    """Draw a picture again from the request stored in it, byte for byte."""
    from ..bundle import BUILTIN
    from ..image.metadata import StoredRequest, source

    stored = StoredRequest.read(file)
    table.check_stored(stored)

    def found(path: str) -> Path:
        # As it was typed then, or beside the picture; a built-in model by its name.
        return Path(path) if Path(path).exists() or path in BUILTIN else file.parent / path

    def the_same(what: str, entry: Mapping[str, Any]) -> Path:
        path = found(entry["path"])
        if source(path)["sha256"] != entry["sha256"]:
            raise InputError("rerun", f"{what} must be the file the picture was made from", str(path))
        return path

    files = {name: the_same(name, entry) for name, entry in stored.files.items()}
    way = Way(
        model=found(stored.model) if stored.model else None, engine=stored.engine,
        lora=[f"{the_same('lora', entry)}:{entry['scale']!r}" for entry in stored.loras],
        embedding=[f"{the_same('embedding', entry)}:{entry['token']}" for entry in stored.embeddings],
        out=out or file.with_name(f"{file.stem}-rerun.png"), json_=json_,
    )  # fmt: skip
    _draw(stored.command, {**stored.arguments, "seed": stored.seed}, files, way, stored=stored)


def samplers(json_: Json = False) -> None:
    """List the samplers: network evaluations for 20 steps, options, and where stock pipelines differ."""
    from .. import samplers as module
    from ..bundle import Bundle, builtin
    from ..samplers.names import DIFFERENCES
    from ..samplers.schedule import Schedule

    bundle = Bundle.open(builtin(), verify=False)
    schedule = Schedule.from_config(bundle.scheduler_config, bundle.family.schedule)
    rows: list[dict[str, Any]] = []
    for name in module.NAMES:
        built = module.build(name, schedule, 20)
        # The first line of a sampler's docstring cites its source.
        summary = (module.get(name).__doc__ or "").strip().splitlines()[0]
        rows.append({
            "name": name, "evaluations_at_20_steps": len(built), "summary": summary,
            "options": dict(module.options(name)), "differs_from_stock": DIFFERENCES.get(name),
        })  # fmt: skip
    if json_:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<14} {row['evaluations_at_20_steps']:>3}  {row['summary']}")
        typer.echo(f"{'':<19}{', '.join(row['options'])}")
        if row["differs_from_stock"]:
            typer.echo(f"{'':<19}{row['differs_from_stock']} (--compatible diffusers draws as they do)")


# --- Drawing ---


def _draw(
    command: str, arguments: dict[str, Any], files: Mapping[str, Path], way: Way, *, stored: StoredRequest | None = None
) -> None:
    """Run `command` on the pipeline batch after batch and write each picture with its own request in it."""
    from ..image import save
    from ..image.metadata import KEY, StoredRequest, source
    from ..pipeline import load

    # Everything that can be refused is refused before the first picture is drawn.
    each, batches = arguments.pop("num_images_per_prompt", 1), way.batches
    check_integer(command, "batches", batches, 1, MAX_BATCHES)
    check_integer(command, "num-images", each, 1, table.MAX_IMAGES)
    seeds = table.seeds_of(command, arguments.pop("seed", RANDOM), batches * each)
    targets = _targets(command, way.out, seeds, alpha=arguments.get("alpha", False))
    sources = stored.files if stored else {name: source(path) for name, path in files.items()}
    loras = [scaled(text) for text in way.lora or []]
    merged = [{**source(path, "lora"), "scale": scale} for path, scale in loras]
    embeddings = [named(text) for text in way.embedding or []]
    learned: list[dict[str, Any]] = [source(path, "embedding") for path, _ in embeddings]
    table.Request.checked(command, {**arguments, **files}, {})
    pipe = load(way.model, engine=way.engine, threads=way.threads)
    if stored is not None and stored.bundle != pipe.bundle.id:
        raise InputError(command, "the picture was made with another version of the model", stored.bundle[:12] + "…")
    for path, scale in loras:
        pipe.load_lora(path, scale)
    for entry, (path, word) in zip(learned, embeddings, strict=True):
        entry["token"] = pipe.load_embedding(path, token=word)
    model = stored.model if stored else str(way.model) if way.model else None
    words = {name: arguments.get(name, "") for name in ("prompt", "negative_prompt")}
    timings = []
    for batch in range(batches):
        own = slice(batch * each, (batch + 1) * each)
        given = {**arguments, **files, "seed": seeds[own][0], "num_images_per_prompt": each}
        result = _drawn(pipe, command, given, f"{command} {batch + 1}/{batches}")
        for drawn, seed, target in zip(result.images, result.seeds, targets[own], strict=True):
            request = StoredRequest(
                command, words | result.settings, sources, seed, pipe.bundle.id, model, pipe.engine, merged, learned
            )
            save(drawn, target, text={KEY: request.text()})
        timings.append(result.timings)
    made = [{"file": str(target), "seed": seed} for target, seed in zip(targets, seeds, strict=True)]
    if way.json_:
        print_json({"images": made, "timings": timings, "bundle": pipe.bundle.id, "engine": pipe.engine})
    else:
        for entry in made:
            print_line(f"{entry['file']}  seed {entry['seed']}")


def _drawn(pipe: Pipeline, command: str, given: Mapping[str, Any], label: str) -> Result:
    with _progress(label) as callback:
        result: Result = getattr(pipe, command)(**given, callback=callback)
    return result


def _targets(command: str, out: Path, seeds: list[int], *, alpha: bool) -> list[Path]:
    """A file name per seed. Raises InputError for a suffix that is no picture's, or of none with alpha, or a place that
    cannot be written."""
    if out.is_dir() or not out.suffix:
        targets = [out / f"{seed}.png" for seed in seeds]
    elif out.suffix.lower() not in SUFFIXES:
        raise InputError(command, f"out must be a directory or end with {', '.join(SUFFIXES)}", str(out))
    elif alpha and out.suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(command, "out must end with .png or .webp for pictures with alpha", str(out))
    elif len(seeds) == 1:
        targets = [out]
    else:
        targets = [out.with_name(f"{out.stem}-{seed}{out.suffix}") for seed in seeds]
    check_writable(command, "out", out, targets[0].parent)
    return targets


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
