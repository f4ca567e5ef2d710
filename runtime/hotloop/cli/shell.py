"""What the commands share: how a line ends them, how they print, the options that several have."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..errors import InputError

__all__ = ["Json", "check_writable", "fail", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def fail(line: str, *, code: int = 2) -> NoReturn:
    """One line on stderr, and the end."""
    sys.stderr.write("hotloop: " + " ".join(line.splitlines()) + "\n")
    sys.exit(code)


def check_writable(place: str, name: str, out: Path, folder: Path) -> None:
    """Raises InputError unless `folder`, where `out` will be, can be written or made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(place, f"{name} must be a place that can be written", str(out))
