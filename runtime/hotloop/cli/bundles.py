"""`hotloop inspect` and `hotloop verify`: what a bundle is, and whether it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .shell import Json, print_json, print_line

__all__ = ["inspect", "verify"]


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle.")],
    json_: Json = False,
) -> None:
    """Show what a bundle is: family, sources, engines, sizes, certificates. Every file is hashed first."""
    from ..bundle import Bundle
    from ..bundle.describe import describe

    bundle = Bundle.open(path)
    if json_:
        print_json({**bundle.manifest, "id": bundle.id})
    else:
        for line in describe(bundle):
            print_line(line)


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
        print_json({name: {"certificate": made, "problem": problem} for name, (made, problem) in found.items()})
    else:
        print_line(f"{len(bundle.manifest['files'])} files whole, {bundle.family.name} {bundle.id[:12]}")
        for name, (made, problem) in found.items():
            state = "not run" if made is None else "BROKEN" if problem else "holds"
            told = [certificate_line(made) if made else "", problem or ""]
            print_line(f"{name:<18}{state:<9}{'; '.join(filter(None, told))}")
    broken = [name for name, (made, problem) in found.items() if made is not None and problem]
    if broken:
        raise InputError("verify", "every certificate must hold", broken)
    if update:
        update_certificates(bundle, {name: made for name, (made, _) in found.items() if made is not None})
