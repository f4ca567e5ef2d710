"""The face of the samplers: how one is registered, found by name, and compiled to a StepTable.

A sampler is written as in its paper, on unit vectors: `X` is the state x, `S[1]..S[7]` are the saved states, `D` is
what the row keeps of the network's output and `Z` is unit noise. `X + dt * D` is then a row of the table's matrix.

A new sampler is one decorated function (`sampler` shows how); it becomes available by name everywhere.
Defaults are those of the diffusers scheduler that `from_config` makes from the bundle's scheduler configuration:
what the file names, else that scheduler class's own default (given in the decorator). Options override both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import InputError
from .grids import Grid, checked
from .schedule import Schedule
from .table import Rows, StepTable

__all__ = ["NAMES", "Sampler", "build", "get", "options", "sampler"]


class Sampler(Protocol):
    """A registered sampler."""

    def __call__(self, schedule: Schedule, steps: int, *, start: int = 0, **options: Any) -> StepTable: ...


class _Entry(NamedTuple):
    build: Sampler
    defaults: Mapping[str, Any]


_REGISTRY: dict[str, _Entry] = {}
NAMES = _REGISTRY.keys()  # a live view: samplers registered later appear in it


def sampler(name: str, **defaults: Any) -> Callable[[Callable[[Grid], Rows]], Sampler]:
    """Registers a sampler. `defaults` are its options with their default values.

    The decorated function gets a Grid (schedule, steps, start, options `grid["eta"]`, grids and helpers) and returns
    Rows. Its public form is `(schedule, steps, *, start=0, **options) -> StepTable`, with the checks done:

        from hotloop.samplers import D, Grid, Rows, X, Z, sampler

        @sampler("churned_euler", spacing="linspace", sigmas="default", steps_offset=0, churn=0.0)
        def churned_euler(grid: Grid) -> Rows:
            ve = grid.ve()
            rows = Rows(init_scale=ve.init_scale)
            for i in grid.indices:
                dt = ve.sigmas[i + 1] - ve.sigmas[i]
                rows.add(i, ve.timesteps[i], X + dt * D + grid["churn"] * ve.sigmas[i + 1] * Z, draws=True, **ve.at(i))
            return rows

        pipe.txt2img("a face", sampler="churned_euler")

    Raises InputError when the name is taken.
    """

    def register(rows: Callable[[Grid], Rows]) -> Sampler:
        if name in _REGISTRY:
            raise InputError("samplers", "name must not be taken", name)

        def public(schedule: Schedule, steps: int, *, start: int = 0, **options: Any) -> StepTable:
            grid = checked(name, schedule, steps, start, defaults, options)
            with np.errstate(all="ignore"):  # what is not finite, the table refuses
                try:
                    return rows(grid).table(name)
                except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
                    if isinstance(error, InputError):
                        raise
                    rule = f"this schedule and these steps and options must give a table ({error})"
                    raise InputError(f"samplers.{name}", rule, {"steps": grid.steps, **grid.options}) from error

        public.__name__ = public.__qualname__ = name
        public.__doc__, public.__module__ = rows.__doc__, rows.__module__
        _REGISTRY[name] = _Entry(public, MappingProxyType(defaults))
        return public

    return register


def get(name: str) -> Sampler:
    """The sampler of that name. Raises InputError with the near misses."""
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name).lower(), _REGISTRY, n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise InputError("samplers", f"sampler must be one of {', '.join(_REGISTRY)}{hint}", name)
    return _REGISTRY[name].build


def options(name: str) -> Mapping[str, Any]:
    """The options a sampler takes, with the values they have where the bundle's configuration is silent."""
    get(name)
    return _REGISTRY[name].defaults


def build(name: str, schedule: Schedule, steps: int, *, start: int = 0, **options: Any) -> StepTable:
    """The table of `steps` steps of a sampler, the first `start` of them skipped (image to image).

    Raises InputError: unknown sampler or option, steps outside 1..T, start outside 0..steps-1, an option out of range.
    """
    return get(name)(schedule, steps, start=start, **options)
