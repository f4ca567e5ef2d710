"""`hotloop avatar fit`: an avatar in one file, made for one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError

__all__ = ["avatar"]

_PLACE = "avatar"


def avatar(
    action: Annotated[str, typer.Argument(help="fit.")],
    picture: Annotated[Path, typer.Argument(help="A picture of one face, with or without alpha.")],
    points: Annotated[Path | None, typer.Option(help="Ten points of its face, JSON: the live page gives them.")] = None,
    parts: Annotated[Path | None, typer.Option(help="A folder of masks of its parts.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file [default: the picture's name with .avatar].")] = None,
    minutes: Annotated[float, typer.Option(help="That the search may take at most; it mostly needs seconds.")] = 10.0,
) -> None:
    """Find a picture's own lids, irises and lips, and write an avatar for `hotloop live --avatar`."""
    from ..checks import check_number
    from ..live.animation.fitting import fit
    from ..live.animation.keyframe import ENDING, save_keyframe

    if action != "fit":
        raise InputError(_PLACE, "what is done must be fit", action)
    check_number(_PLACE, "minutes", minutes, 0.01, 24 * 60)
    place = picture.with_suffix(ENDING) if out is None else out
    if place.suffix != ENDING:
        raise InputError(_PLACE, f"out must end in {ENDING}", str(place))
    made = fit(picture, points=points, parts=parts, seconds=60 * minutes)
    save_keyframe(made.keyframe, place, made_by="hotloop avatar fit")
    rows = (
        ("at rest like the picture, dB", made.before.rest, made.after.rest, 1),
        ("irises seen through closed lids, %", 100 * made.before.shut, 100 * made.after.shut, 1),
        ("lids' edges that a look aside drags, %", 100 * made.before.gaze, 100 * made.after.gaze, 1),
        ("columns with more than two lips, %", 100 * made.before.lips, 100 * made.after.lips, 1),
    )
    typer.echo(f"{'':44} ten points   fitted")
    for name, before, after, digits in rows:
        typer.echo(f"{name:44} {before:10.{digits}f} {after:8.{digits}f}")
    for line in made.left:
        typer.echo(f"left as it was: {line}")
    typer.echo(f"{place}: {place.stat().st_size:,} bytes; hotloop live --avatar {place}")
