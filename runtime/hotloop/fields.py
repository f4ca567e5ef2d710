"""The kinds of values that a request's fields take: how each is checked, told in a JSON schema and read from a line.

A kind has `type`, what a command line makes of its text; `check(place, name, value)`, which gives the value in its one
form or raises InputError; `schema()`, JSON Schema's words for it, None where a request in JSON cannot carry it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .checks import check_integer, check_number
from .errors import InputError
from .noise import check_seed

__all__ = [
    "Alias", "Choice", "Field", "Flag", "Integer", "Kind", "Loras", "Name", "Number", "Options", "Picture", "Seed",
    "Text", "Unchecked",
]  # fmt: skip

RANDOM = -1  # a seed that asks for a fresh one


class Kind(Protocol):
    @property
    def type(self) -> type: ...

    def check(self, place: str, name: str, value: Any) -> Any: ...

    def schema(self) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Integer:
    least: int
    most: int
    type = int

    def check(self, place: str, name: str, value: Any) -> int:
        check_integer(place, name, value, self.least, self.most)
        return int(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Number:
    least: float
    most: float
    type = float

    def check(self, place: str, name: str, value: Any) -> float:
        if isinstance(value, bool):
            raise InputError(place, f"{name} must be a number in {self.least:g}..{self.most:g}", value)
        check_number(place, name, value, self.least, self.most)
        return float(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True)
class Flag:
    type = bool

    def check(self, place: str, name: str, value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(place, f"{name} must be True or False", value)
        return bool(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Choice:
    """One of some words, or of some whole numbers."""

    of: tuple[str, ...] | tuple[int, ...]

    @property
    def type(self) -> type:
        return type(self.of[0])

    def check(self, place: str, name: str, value: Any) -> Any:
        if not isinstance(value, self.type) or isinstance(value, bool) or value not in self.of:
            among = f"one of {', '.join(map(str, self.of))}" if len(self.of) > 1 else str(self.of[0])
            raise InputError(place, f"{name} must be {among}", value)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string" if self.type is str else "integer", "enum": list(self.of)}


@dataclass(frozen=True)
class Name:
    type = str

    def check(self, place: str, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise InputError(place, f"{name} must be a name", value)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class Text:
    """A text of at most `most` characters, or in Python a list of them, one for each image: its form is the list."""

    most: int
    type = str

    def check(self, place: str, name: str, value: Any) -> list[str]:
        if not isinstance(value, Sequence):
            raise InputError(place, f"{name} must be text or a list of texts", value)
        texts = [value] if isinstance(value, str) else list(value)
        if not texts:
            raise InputError(place, f"{name} must not be an empty list", value)
        for text in texts:
            if not isinstance(text, str):
                raise InputError(place, f"{name} must be text", text)
            if len(text) > self.most:
                raise InputError(place, f"{name} must have at most {self.most} characters", len(text))
        return texts

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.most}


@dataclass(frozen=True)
class Seed:
    """One seed, RANDOM for a fresh one, or in Python a list of seeds, one for each image."""

    type = int

    def check(self, place: str, name: str, value: Any) -> int | list[int]:
        if isinstance(value, (list, tuple, np.ndarray)):
            return [self._one(one) for one in value]
        return self._one(value)

    def _one(self, value: Any) -> int:
        return RANDOM if isinstance(value, (int, np.integer)) and value == RANDOM else check_seed(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": RANDOM, "maximum": 2**64 - 1}


@dataclass(frozen=True)
class Options:
    """Names to numbers, words or lists of them; lists become tuples, so that the values can be the key of a cache."""

    type = str

    def check(self, place: str, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise InputError(place, f"{name} must map names to values", value)
        frozen = {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}
        for key, one in frozen.items():
            try:
                hash(one)
            except TypeError:
                rule = f"{name.removesuffix('s').replace('_', ' ')} {key} must be a number, a word or a list of them"
                raise InputError(place, rule, one) from None
        return frozen

    def schema(self) -> dict[str, Any]:
        one = ["number", "string", "boolean"]
        values = {"anyOf": [{"type": one}, {"type": "array", "items": {"type": one}}]}
        return {"type": "object", "additionalProperties": values}


@dataclass(frozen=True)
class Loras:
    """LoRAs by name, each with its scale: a mapping, or a list of {"name", "scale"}. Checked: pairs in the order of
    their names, without those that change nothing."""

    type = str
    most, largest = 8, 10.0

    def check(self, place: str, name: str, value: Any) -> tuple[tuple[str, float], ...]:
        rule = f'{name} must be a list of {{"name": .., "scale": ..}}'
        if isinstance(value, Mapping):
            rows = [{"name": key, "scale": one} for key, one in value.items()]
        elif isinstance(value, (list, tuple)):
            rows = [{"name": one[0], "scale": one[1]} if isinstance(one, tuple) and len(one) == 2 else one
                    for one in value]  # fmt: skip
        else:
            raise InputError(place, rule, value)
        if len(rows) > self.most:
            raise InputError(place, f"{name} must have at most {self.most} LoRAs", len(rows))
        found: dict[str, float] = {}
        for row in rows:
            if not isinstance(row, Mapping) or "name" not in row or row.keys() - {"name", "scale"}:
                raise InputError(place, rule, row)
            own, scale = row["name"], row.get("scale", 1.0)
            if not isinstance(own, str) or own in found:
                raise InputError(place, f"{name} must name each LoRA once, in text", own)
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= self.largest:
                raise InputError(place, f"{name} must have scales in -{self.largest:g}..{self.largest:g}", scale)
            found[own] = float(scale)
        return tuple(sorted((own, scale) for own, scale in found.items() if scale))

    def schema(self) -> dict[str, Any]:
        scale = {"type": "number", "minimum": -self.largest, "maximum": self.largest, "default": 1.0}
        row = {"type": "object", "properties": {"name": {"type": "string"}, "scale": scale}, "required": ["name"],
               "additionalProperties": False}  # fmt: skip
        return {"type": "array", "items": row, "maxItems": self.most}


@dataclass(frozen=True)
class Picture:
    """A file's path, or in Python a PIL image or an array; in JSON the bytes of a PNG, JPEG or WebP in base64."""

    @property
    def type(self) -> type:
        from pathlib import Path

        return Path

    def check(self, place: str, name: str, value: Any) -> Any:
        return value  # opening it is the check

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "contentEncoding": "base64"}


@dataclass(frozen=True)
class Unchecked:
    """What only Python can give, and whoever uses it checks."""

    rule: str = ""
    holds: Callable[[Any], bool] = lambda value: True
    type = object

    def check(self, place: str, name: str, value: Any) -> Any:
        if not self.holds(value):
            raise InputError(place, f"{name} must be {self.rule}", value)
        return value

    def schema(self) -> None:
        return None


@dataclass(frozen=True)
class Field:
    """A row of the table.

    default    where it is left out: a value, or pipeline -> value where they differ; None is what `help` says
    stock      the same under compatible="diffusers", where stock pipelines have another one
    bundle     a bundle has a default of its own, in place of `default`
    flag       its option on the command line; "" for none there
    settled    a stored request must have it: no default may stand for it there
    stored     part of a stored request's arguments
    beside     another field: without that one, this may not be given, and has no value
    """

    kind: Kind
    help: str
    default: Any = None
    stock: Any = None
    bundle: bool = False
    flag: str = ""
    settled: bool = False
    stored: bool = True
    beside: str = ""


@dataclass(frozen=True)
class Alias:
    """Another name of a field: value(given) is that field's value, None as if it were left out, or a part of it where
    the field maps names."""

    of: str
    kind: Kind
    value: Callable[[Any], Any] = lambda value: value
    help: str = ""
    flag: str = ""
