"""Captions (stub)."""

from __future__ import annotations

from dataclasses import dataclass

from render_people import Face, Two


@dataclass(frozen=True)
class Caption:
    """text, and the attributes it states exactly (name -> value)."""

    text: str
    claims: dict[str, str]


def make_caption(face: Face, seed: int, *, empty: float = 0.0) -> Caption:
    return Caption(f"{face['hair']} hair, {face['eyes']} eyes", {"hair": face["hair"], "eyes": face["eyes"]})


def full_prompt(face: Face, seed: int) -> Caption:
    return make_caption(face, seed)


def two_caption(two: Two, seed: int, *, empty: float = 0.0) -> Caption:
    """A caption of two people; claims are named left_hair, right_eyes, ... and background."""
    return Caption("two people", {})
