"""Results files: found, read, held to result.schema.json; what is wrong with a line is said in one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["RESULTS", "ROOT", "Line", "ResultsError", "find", "read"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = ROOT / "benchmarks" / "result.schema.json"
EIGHT_BITS = ("int8", "q8_0", "fp8")  # precisions that draw another picture
_DATE = re.compile(r"^\d{4}-\d\d-\d\d-")
_LONGEST = 160  # characters of a complaint: some hold the whole line


class ResultsError(ValueError):
    """A file that is not there or breaks the schema: place, rule, value."""


@dataclass(frozen=True)
class Line:
    """One measurement, with the words that tables need."""

    data: dict[str, Any]
    path: Path
    number: int

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    @cached_property
    def params(self) -> dict[str, Any]:
        """Flat: {"shape": {"B": 1}} is {"shape.B": 1}; a list is one value, [512, 512] the size 512x512."""
        return dict(_flat(self["params"]))

    @property
    def ours(self) -> bool:
        return self["case"].startswith("hotloop")

    @property
    def model(self) -> str:
        return str(next((self.params[name] for name in ("model", "bundle", "family") if name in self.params), ""))

    @cached_property
    def machine(self) -> str:
        """What ratios depend on: processor, cores, GPU."""
        env = self["environment"]
        gpu = f", {env['gpu']['name']}" if env["gpu"] else ""
        return f"{env['cpu']}, {env['cores']} cores{gpu}"

    @property
    def precision(self) -> str:
        return str(self.params.get("precision") or self.params.get("dtype") or "")

    @property
    def lossless(self) -> bool:
        return self.precision not in EIGHT_BITS

    @property
    def differs(self) -> bool:
        return self["check"] is not None and not self["check"]["ok"]

    @property
    def comparable(self) -> bool:
        """Measured, and with the baseline's output."""
        return self["error"] is None and not self.differs

    def metric(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self["metrics"].get(name)
        return found

    def latency(self, figure: str = "p50") -> float:
        """Seconds; of a case that was measured."""
        return float(self["metrics"]["latency"][figure])

    def p50(self, name: str = "latency") -> float | None:
        block = self.metric(name)
        return None if block is None else float(block["p50"])

    @property
    def throughput(self) -> float:
        """Items a second: as measured, or what the median latency of an item comes to."""
        measured = self.p50("throughput")
        return 1 / self.latency() if measured is None else measured

    def samples(self, name: str = "latency") -> np.ndarray | None:
        """One value per round, in order."""
        block = self.metric(name)
        return None if block is None or "samples" not in block else np.asarray(block["samples"], np.float64)


def find(places: Sequence[Path], *, without: Sequence[Path] = ()) -> list[Path]:
    """Files as they are named; of a folder the newest edition of every results file: names but for a leading date.

    without: files that a folder is taken not to hold.
    """
    found: list[Path] = []
    hidden = {path.resolve() for path in without}
    for place in places:
        if place.is_dir():
            held = [path for path in sorted(place.glob("*.jsonl")) if path.resolve() not in hidden]
            newest = {_DATE.sub("", path.name): path for path in held}
            if not newest:
                raise ResultsError(f"{shown(place)}: holds no results (*.jsonl)")
            found += sorted(newest.values(), key=lambda path: _DATE.sub("", path.name))
        elif place.is_file():
            found.append(place)
        else:
            raise ResultsError(f"{shown(place)}: no such file or folder")
    return list(dict.fromkeys(found))


def read(paths: Iterable[Path]) -> list[Line]:
    """Every line of every file, in order. Raises ResultsError at the first that is not as the schema says."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError as error:
        raise ResultsError("jsonschema is not installed: pip install '.[bench]' in hotloop's folder") from error
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    lines = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for number, row in enumerate(text.splitlines(), start=1):
            place = f"{shown(path)}:{number}"
            try:
                data = json.loads(row, parse_constant=_refuse)
            except ValueError as error:
                raise ResultsError(f"{place}: must be one JSON object a line: {error}") from error
            broken = best_match(validator.iter_errors(data))
            if broken is not None:
                where = ".".join(map(str, broken.absolute_path)) or "the line"
                raise ResultsError(f"{place}: {where}: {_short(broken.message)}")
            lines.append(Line(data, path, number))
        if not text.strip():
            raise ResultsError(f"{shown(path)}: holds no line")
    return lines


def shown(path: Path) -> str:
    """A path as the repository names it."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def _flat(params: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            numbers = bool(value) and all(isinstance(one, int | float) for one in value)
            yield prefix + name, ("x" if numbers else ", ").join(map(str, value))
        else:
            yield prefix + name, value


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
