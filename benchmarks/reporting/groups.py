"""Which lines belong together: those of one piece of work, and what in them is the same and what varies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from harness import CONFIDENCE, ratio_of

from .results import Line

__all__ = ["WORK", "Place", "by", "once", "places", "said", "shared_ratio", "varying"]

# What is asked for; the rest of `params` is how it is done.
WORK = ("sampler", "steps", "guidance", "size", "batch", "threads", "rate", "max_batch")
_SAID = {
    "sampler": "{}", "steps": "{} steps", "guidance": "guidance {}", "size": "{} pixels", "batch": "batch {}",
    "threads": "{} threads", "max_batch": "at most {} in a batch",
}  # fmt: skip


def by(lines: Iterable[Line], *names: str) -> dict[tuple[Any, ...], list[Line]]:
    """Lines by attributes (model, precision), fields (case, run) or parameters, in order of appearance; by "asked":
    all of WORK."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        key = tuple(_value(line, name) for name in names)
        groups.setdefault(key, []).append(line)
    return groups


@dataclass(frozen=True)
class Place:
    """What a section on one of several machines adds to its title, and to its slug: the newest one's has none."""

    title: str = ""
    slug: str = ""


def places(lines: Sequence[Line]) -> Iterator[tuple[Place, list[Line]]]:
    """The lines of every machine, which no table sets side by side; the one measured last first."""
    groups = {where: group for (where,), group in by(lines, "machine").items()}
    newest = sorted(groups, key=lambda where: max(line["environment"]["date"] for line in groups[where]), reverse=True)
    for where in newest:
        title = f" ({where})" if len(groups) > 1 else ""
        yield Place(title, where if where != newest[0] else ""), groups[where]


def varying(lines: Sequence[Line], names: Iterable[str] | None = None) -> list[str]:
    """The parameters that are not the same in all lines, in order of appearance."""
    known = dict.fromkeys(name for line in lines for name in line.params)
    chosen = [name for name in (known if names is None else names) if name in known]
    return [name for name in chosen if len({line.params.get(name) for line in lines}) > 1]


def said(lines: Sequence[Line], names: Sequence[str] = WORK) -> str:
    """What all lines have in common, in words: plms, 20 steps, guidance 4, 64x64 pixels."""
    moving = varying(lines, names)
    first = lines[0].params
    same = [name for name in names if first.get(name) is not None and name not in moving]
    told = [_SAID.get(name, name + " {}").format(_plain(first[name])) for name in same]
    return ", ".join(one.removesuffix("s") if one.startswith("1 ") else one for one in told)


def once(lines: Sequence[Line]) -> list[tuple[Line, list[Line]]]:
    """A case once, though pairwise runs measure some again: (the line whose time is the middle one, all of them)."""
    again: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        again.setdefault((line["case"], *sorted((k, str(v)) for k, v in line.params.items())), []).append(line)
    return [(_middle(same), same) for same in again.values()]


def shared_ratio(slow: Line, fast: Line, metric: str = "latency") -> dict[str, float] | None:
    """Time of `slow` over that of `fast`, round by round; None unless both were timed in turns in one run.

    A server's samples are its requests, not rounds.
    """
    a, b = slow.samples(metric), fast.samples(metric)
    if slow["run"] != fast["run"] or slow["scenario"] == "Server" or a is None or b is None or len(a) != len(b):
        return None
    median, low, high = ratio_of(a, b)
    return {"median": median, "low": low, "high": high, "confidence": CONFIDENCE}


def _middle(lines: Sequence[Line]) -> Line:
    timed = sorted((line for line in lines if line["error"] is None), key=Line.latency)
    return timed[(len(timed) - 1) // 2] if timed else lines[-1]


def _value(line: Line, name: str) -> Any:
    if name == "asked":
        return tuple(line.params.get(one) for one in WORK)
    if name in line.data:
        return line[name]
    return getattr(line, name) if hasattr(line, name) else line.params.get(name)


def _plain(value: Any) -> str:
    return np.format_float_positional(value, trim="-") if isinstance(value, float) else str(value)
