"""What the commands share: how a line ends them, how they print, the options that several have."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..errors import InputError, printable

__all__ = ["LONGEST_LINE", "Json", "check_writable", "fail", "print_json", "print_line"]

LONGEST_LINE = 2000
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def print_json(value: object) -> None:
    """What moves a cursor, colours or hides stays escaped; letters of any script are as they are."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_line(line: str) -> None:
    """With words out of a file in it."""
    typer.echo(printable(line, LONGEST_LINE))


def fail(line: str, *, code: int = 2) -> NoReturn:
    """One line on stderr, and the end."""
    sys.stderr.write("hotloop: " + printable(" ".join(line.splitlines()), LONGEST_LINE) + "\n")
    sys.exit(code)


def check_writable(place: str, name: str, out: Path, folder: Path) -> None:
    """Raises InputError unless `folder`, where `out` will be, can be written or made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(place, f"{name} must be a place that can be written", str(out))
