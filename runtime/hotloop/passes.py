"""The passes of a call, each a size and a table of steps: one, and with hires a second, larger one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from . import samplers
from .bundle import Entry
from .checks import check_integer
from .errors import InputError
from .request import Request
from .samplers import StepTable
from .samplers.schedule import Schedule
from .spec import Family

__all__ = ["Pass", "Passes"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Pass:
    """size: (width, height) in pixels."""

    size: Size
    table: StepTable


class Passes:
    """What a family, its schedule and the grid of the engine that runs make of requests.

    A schedule is fixed for a pipeline's life, so its compiled tables are kept: many calls share one.
    """

    def __init__(self, family: Family, schedule: Schedule, entry: Entry) -> None:
        self.family, self.entry = family, entry
        self._table = lru_cache(maxsize=64)(partial(_build_table, schedule))

    def table(self, sampler: str, steps: int, *, start: int = 0, options: Mapping[str, Any] | None = None) -> StepTable:
        return self._table(sampler, steps, start, tuple(sorted((options or {}).items())))

    def of(self, request: Request, source: Size | None = None) -> list[Pass]:
        """What a request asks for; source: (width, height) of the picture that it begins with.

        Raises InputError for sides that sides() refuses, a larger pass beyond the family's limit, and a strength that
        leaves no step.
        """
        first = self.sides(request.place, request["width"], request["height"], source)
        table, steps = partial(self.table, options=request["sampler_options"]), request["num_inference_steps"]
        passes = [Pass(first, table(request["sampler"], steps, start=request.start))]
        if request.values.get("hires") is not None:
            size, steps = self._larger(request, first), request["hires_steps"] or steps
            start = request.first_of(steps, "hires_strength")
            passes.append(Pass(size, table(request["sampler"], steps, start=start)))
        return passes

    def _larger(self, request: Request, first: Size) -> Size:
        """The size of the second pass: on the grid, the nearest to so many times the first."""
        grid = self._grid
        width, height = (max(side, int(side * request["hires"] / grid + 0.5) * grid) for side in first)
        if max(width, height) > self.family.max_size:
            rule = f"hires must leave width and height within {self.family.max_size}"
            raise InputError(request.place, rule, f"{width} x {height}")
        return width, height

    def sides(self, place: str, width: int | None, height: int | None, source: Size | None = None) -> Size:
        """(width, height) in pixels: as asked, else the source's rounded down to the grid, else the family's default.

        Raises InputError for a side off the grid or outside the family's limits.
        """
        family, grid = self.family, self._grid
        least, most = family.min_cells * family.vae_factor, family.max_size
        default = family.default_size if source is None else tuple(side - side % grid for side in source)
        sides = []
        for name, asked, fallback in (("width", width, default[0]), ("height", height, default[1])):
            side = fallback if asked is None else asked
            if asked is None and not least <= side <= most:
                raise InputError(place, f"give width and height in {least}..{most} for an image of this size", source)
            check_integer(place, name, side, least, most)
            if side % grid:
                reason = f" with {self.entry.name}" if grid != family.grid else ""
                raise InputError(place, f"{name} must be a multiple of {grid}{reason}", side)
            sides.append(int(side))
        return sides[0], sides[1]

    @property
    def _grid(self) -> int:
        """The family's, and what the engine asks for beyond it."""
        return math.lcm(self.family.grid, self.entry.grid)


def _build_table(
    schedule: Schedule, sampler: str, steps: int, start: int, options: tuple[tuple[str, Any], ...]
) -> StepTable:
    known = samplers.options(sampler)
    for name, value in options:
        if name not in known:  # `start` and `steps` are the call's own, and no option can stand for them
            raise InputError("samplers", f"options of {sampler} must be among {', '.join(known)}", {name: value})
    return samplers.build(sampler, schedule, steps, start=start, **dict(options))
