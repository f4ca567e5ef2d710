"""`hotloop generate`: pictures and ways between them from a generator's bundle, as a sheet or as single files."""

from __future__ import annotations

import secrets
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..checks import check_integer
from ..errors import InputError
from ..fields import RANDOM
from .generate import SUFFIXES
from .shell import Json, check_writable, print_json

if TYPE_CHECKING:
    from ..generator import Generator

__all__ = ["generate"]

_PLACE = "generate"
_MOST = 4096


def generate(
    bundle: Annotated[Path, typer.Argument(help="The bundle of a generator.")],
    seed: Annotated[int, typer.Option(help="Picture i has seed + i; -1: a fresh one, told.")] = RANDOM,
    count: Annotated[int | None, typer.Option(
        "--count", "--num-images", help="How many seeds [default: 1, or 2 with --interpolate].")] = None,
    controls: Annotated[list[str] | None, typer.Option(
        help="NAME=VALUE: a class by its name, or a number of the condition. Repeatable, or joined by commas.")] = None,
    label: Annotated[int | None, typer.Option(help="The class by its number.")] = None,
    truncation: Annotated[float, typer.Option(help="Draw w towards its mean: 1 not at all, 0 wholly.")] = 1.0,
    interpolate: Annotated[int | None, typer.Option(
        help="That many pictures on the way from each seed to the next, both ends among them.")] = None,
    output: Annotated[Path, typer.Option(
        "--output", "--out", "-o", help="A sheet (.png, .jpg, .webp), or a directory for single ones.")] = Path("out"),
    columns: Annotated[int | None, typer.Option(help="Of the sheet [default: about square; a way is a row].")] = None,
    engine: Annotated[str, typer.Option(help="auto, a kind (openvino) or a kind and precision.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Engine threads [default: all usable cores].")] = None,
    json_: Json = False,
) -> None:  # fmt: skip
    """Draw pictures with a generator (GAN, VAE), and the ways between them."""
    from ..generator import load_generator
    from ..image import contact_sheet, from_array, save

    # Everything that can be refused is refused before the first picture is drawn.
    if count is None:
        count = 1 if interpolate is None else 2
    check_integer(_PLACE, "count", count, 1, _MOST)
    if interpolate is not None:
        check_integer(_PLACE, "interpolate", interpolate, 2, _MOST)
        if count < 2:
            raise InputError(_PLACE, "a way needs two ends: count must be at least 2 with interpolate", count)
        check_integer(_PLACE, "pictures", interpolate * (count - 1), 1, _MOST)
    if columns is not None:
        check_integer(_PLACE, "columns", columns, 1, _MOST)
    sheet = bool(output.suffix) and not output.is_dir()
    if sheet and output.suffix.lower() not in SUFFIXES:
        raise InputError(_PLACE, f"output must be a directory or end with {', '.join(SUFFIXES)}", str(output))
    check_writable(_PLACE, "output", output, output.parent if sheet else output)
    told = {"label": label, "controls": _controls(controls or []), "truncation": truncation}
    seed = secrets.randbits(31) if seed == RANDOM else seed
    generator = load_generator(bundle, engine=engine, threads=threads)
    pictures, names = _drawn(generator, seed, count, interpolate, told)
    made = from_array(pictures)
    if sheet:
        save(contact_sheet(made, columns or interpolate), output)
        files = [output]
    else:
        files = [save(picture, output / f"{name}.png") for picture, name in zip(made, names, strict=True)]
    if json_:
        seeds = list(range(seed, seed + count))
        print_json({"files": [str(file) for file in files], "seeds": seeds, "pictures": len(made),
                    "bundle": generator.bundle.id, "engine": generator.engine})  # fmt: skip
        return
    for file in files:
        typer.echo(f"{file}  seed {seed}" + (f" to {seed + count - 1}" if sheet and count > 1 else ""))


def _drawn(
    generator: Generator, seed: int, count: int, interpolate: int | None, told: dict[str, Any]
) -> tuple[np.ndarray, list[str]]:
    """Pictures uint8 [N, H, W, 3] and a name for each."""
    seeds = list(range(seed, seed + count))
    if interpolate is None:
        return generator.generate(seed, count, **told), [str(one) for one in seeds]
    ways = [generator.interpolate(a, b, interpolate, **told) for a, b in pairwise(seeds)]
    return np.concatenate(ways), [f"{a}-{b}-{i:03}" for a, b in pairwise(seeds) for i in range(interpolate)]


def _controls(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise InputError(_PLACE, "controls must be NAME=VALUE, such as hair=pink or smile=0.5", text)
        if name in found:
            raise InputError(_PLACE, "a control can be given once", name)
        found[name] = value
    return found
