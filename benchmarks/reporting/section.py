"""What a part of the report is made of, and what is said about where its figures come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .results import Line
from .tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AGREE", "Picture", "Section", "commands", "slug", "span"]

AGREE = "Ratios are medians over rounds in turns, with 95 % bootstrap intervals, and stand only where outputs agree."


@dataclass(frozen=True)
class Picture:
    """alt: what the picture shows, for who cannot see it."""

    name: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """slug: its name in links, file names. lines: what it was made from."""

    slug: str
    title: str
    lines: Sequence[Line]
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def commands(lines: Sequence[Line]) -> list[str]:
    """As the lines tell them, in extra.command."""
    return list(dict.fromkeys(line["extra"]["command"] for line in lines if "command" in line["extra"]))


def span(texts: Sequence[str]) -> str:
    """One text, or the first and the last where they are not the same."""
    ordered = sorted(set(texts))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def slug(*parts: str) -> str:
    text = "-".join(part.lower() for part in parts if part)
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
