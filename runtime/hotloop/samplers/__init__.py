"""Samplers as data: the noise schedule, the grids over it, the tables that samplers compile to, and their library.

`build(name, schedule, steps)` compiles one; `sampler` registers another.
"""

from . import library  # registers the samplers
from .face import NAMES, Sampler, build, get, options, sampler
from .grids import Grid
from .table import D, K, Level, Rows, S, StepTable, X, Z, combine, outputs

__all__ = [
    "NAMES", "D", "Grid", "K", "Level", "Rows", "S", "Sampler", "StepTable", "X", "Z", "build", "combine", "get",
    "library", "options", "outputs", "sampler",
]  # fmt: skip
