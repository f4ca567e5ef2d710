"""`hotloop live --source clip.mp4 --sink out.mp4`: a clip redrawn with nobody looking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError

__all__ = ["redraw"]


def redraw(
    source: str | None, sink: str | None, frames: int | None, *, bundle: Path | None, engine: str, threads: int | None,
    size: int | None, rate: float, settings: Mapping[str, Any],
) -> None:  # fmt: skip
    """As `hotloop.live.headless.run`, with a bar while it goes on and one line at the end. Raises InputError."""
    from tqdm import tqdm

    import hotloop

    from ..live.headless import run

    if sink is None:
        raise InputError("live", "source and frames need a sink: --sink out.mp4")
    given = dict(settings) | ({} if size is None else {"size": size})
    pipe = hotloop.load(bundle, engine=engine, threads=threads)
    with tqdm(total=frames, unit="frame", disable=None) as bar:
        told = run(pipe, source, sink, frames=frames, rate=rate, say=lambda done: bar.update(1), **given)
    counts = ", ".join(f"{name} {count}" for name, count in told.source.items() if count and name != "in")
    broken = f", {told.broken} that could not be decoded" if told.broken else ""
    of = "" if source is None else f"; of {told.source['in']} pictures: {counts}{broken}"
    typer.echo(f"{sink}  {told.frames} frames in {told.seconds:.1f} s{of}")
