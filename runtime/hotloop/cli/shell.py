"""What the commands share: how a line ends them, how they print, the options that several have."""

from __future__ import annotations

import json
import sys
from typing import Annotated, NoReturn

import typer

__all__ = ["Json", "fail", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def fail(line: str, *, code: int = 2) -> NoReturn:
    """One line on stderr, and the end."""
    sys.stderr.write("hotloop: " + " ".join(line.splitlines()) + "\n")
    sys.exit(code)
