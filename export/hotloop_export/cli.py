"""`hotloop export`: a checkpoint to a bundle. Imports torch only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hotloop.errors import InputError
from hotloop.spec import FAMILIES

__all__ = ["export"]


def export(
    source: Annotated[Path, typer.Argument(help="A checkpoint in the diffusers folder layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle to write; a bundle there is replaced.")],
    family: Annotated[str, typer.Option(help="One of: " + ", ".join(FAMILIES) + ".")] = "sd15",
    sampler: Annotated[str | None, typer.Option(help="The bundle's default sampler.")] = None,
    steps: Annotated[int | None, typer.Option(help="The bundle's default number of steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="The bundle's default guidance scale.")] = None,
) -> None:
    """Export a checkpoint as a bundle that runs without torch, checked against torch."""
    try:
        from .bundle import write_bundle
    except ImportError as error:
        rule = f"needs packages that are not installed: pip install 'hotloop[export]' ({error})"
        raise InputError("export", rule) from error
    given = {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": guidance}
    defaults = {key: value for key, value in given.items() if value is not None}
    typer.echo(write_bundle(source, out, family=family, defaults=defaults))
