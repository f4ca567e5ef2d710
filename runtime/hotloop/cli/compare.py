"""`hotloop compare`: latency against quality, as a table, JSON lines and contact sheets."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError

__all__ = ["compare"]


def compare(
    path: Annotated[Path | None, typer.Argument(help="A bundle [default: the built-in model].")] = None,
    samplers: Annotated[str, typer.Option(help="Names, separated by commas.")] = "ddim,plms,lms,dpmpp_2m",
    steps: Annotated[str, typer.Option(help="Numbers of steps, separated by commas.")] = "5,10,20,50",
    engines: Annotated[str, typer.Option(help="As --engine elsewhere; several, separated by commas.")] = "auto",
    prompts: Annotated[int, typer.Option(help="Pictures per point that quality is measured on.")] = 16,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale [default: the model's own].")] = None,
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
