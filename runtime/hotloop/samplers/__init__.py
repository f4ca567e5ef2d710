"""Samplers as data: the noise schedule, the grids over it, the tables, and the library of samplers."""

from .library import (
    NAMES,
    D,
    Grid,
    K,
    Level,
    Rows,
    S,
    StepTable,
    X,
    Z,
    build,
    combine,
    get,
    options,
    outputs,
    sampler,
)

__all__ = [
    "NAMES",
    "D",
    "Grid",
    "K",
    "Level",
    "Rows",
    "S",
    "StepTable",
    "X",
    "Z",
    "build",
    "combine",
    "get",
    "options",
    "outputs",
    "sampler",
]
