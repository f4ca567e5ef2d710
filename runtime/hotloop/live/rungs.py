"""The rungs of a session's ladder, prepared and run once each before any is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..pipeline import Pipeline
from .conditions import Prepared, resized
from .governor import Governor, Rung, restyle_ladder
from .redrawing import redrawn

__all__ = ["Rungs", "governor_of", "warmed"]


@dataclass(frozen=True, eq=False)
class Rungs:
    """ladder; prepared: name of a rung -> what its frames begin with; costs: name -> seconds that a frame took."""

    ladder: tuple[Rung, ...]
    prepared: Mapping[str, Prepared]
    costs: Mapping[str, float]


def warmed(
    pipeline: Pipeline, base: Prepared, before: Rungs | None, *, source: bool, clock: Callable[[], float]
) -> Rungs:
    """The ladder of these settings. Every rung is run twice on a grey picture and the second run timed, unless it was
    before: the same steps and size cost the same."""
    width, height = base.size
    steps, side = base.request["num_inference_steps"], max(width, height)
    least = pipeline.family.min_cells * pipeline.family.vae_factor
    sides = [n for n in (128, 96, 64) if n >= least and width == height]
    ladder = restyle_ladder(steps, side, sides=sides)
    if width != height:  # only squares get smaller
        steps_only = ("num_inference_steps",)
        ladder = tuple(Rung(r.name, {n: r.changes[n] for n in steps_only}, r.intervals) for r in ladder)
    prepared, costs = {}, {}
    for rung in ladder:
        request = replace(base.request, values={**base.request.values, **rung.changes})
        own = prepared[rung.name] = resized(pipeline, base, request, source=source)
        if before is not None and before.ladder == ladder:
            costs[rung.name] = before.costs[rung.name]
            continue
        grey = np.full((height, width, 3), 128, np.uint8) if source else None
        for _ in range(2):
            began = clock()
            redrawn(pipeline, own, own.mix, grey)
            costs[rung.name] = clock() - began
    return Rungs(ladder, prepared, costs)


def governor_of(rungs: Rungs, interval: float) -> Governor:
    made = Governor(rungs.ladder, interval)
    for rung in rungs.ladder:
        made.warm(rung, rungs.costs[rung.name])
    return made
