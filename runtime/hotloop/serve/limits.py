"""THE table of what a server takes: sizes, rates and numbers; and a client's settings held to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeGuard

from ..errors import InputError
from ..request import aliases, canonical, fields

__all__ = ["Limits", "settable"]

_PLACE = "live"


@dataclass(frozen=True)
class Limits:
    """picture_bytes, picture_pixels  of a source picture
    text        characters of a message; prompt: of a prompt
    messages    a second, of one connection, `burst` at once; errors: lines a second that it is answered
    side        pixels, of what is drawn; steps: of a frame; fps
    sessions, connections; peers: by WebRTC
    hello       seconds until a connection has said who it is
    idle        seconds that a session waits for its client to come back
    failures    wrong tokens a minute, of one address
    """

    picture_bytes: int = 2_000_000
    picture_pixels: int = 4_000_000
    text: int = 65_536
    prompt: int = 2_000
    messages: float = 1000.0
    burst: int = 500
    errors: float = 20.0
    side: int = 1024
    steps: int = 50
    fps: float = 120.0
    sessions: int = 4
    connections: int = 32
    peers: int = 4
    hello: float = 5.0
    idle: float = 15.0
    failures: int = 10

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A client's settings under the table's own names. Raises InputError for names that no client may set, and
        for what is larger than this server draws; all else is the session's to check."""
        told = dict(given)
        size = told.pop("size", None)
        for name in told:
            if name not in settable():
                canonical(_PLACE, {name: None})  # no name at all: the near miss
                raise InputError(_PLACE, f"{name} cannot be set from outside", told[name])
        values = canonical(_PLACE, told)
        for name in ("prompt", "negative_prompt"):
            text = values.get(name, "")
            if not isinstance(text, str):
                raise InputError(_PLACE, f"{name} must be text", text)
            if len(text) > self.prompt:
                raise InputError(_PLACE, f"{name} must have at most {self.prompt} characters", len(text))
        sides = list(size) if isinstance(size, (list, tuple)) else [size]
        for name, value, most in (
            ("size", max((one for one in sides if _is_number(one)), default=0), self.side),
            ("width", values.get("width"), self.side), ("height", values.get("height"), self.side),
            ("steps", values.get("num_inference_steps"), self.steps),
        ):  # fmt: skip
            if _is_number(value) and value > most:
                raise InputError(_PLACE, f"{name} must be at most {most} here", value)
        return values | ({} if size is None else {"size": size})

    def told(self) -> dict[str, Any]:
        return asdict(self)


@cache
def settable() -> frozenset[str]:
    """The names that a message may set: what JSON can carry, and `size`."""
    rows, others = fields(_PLACE), aliases(_PLACE)
    own = {name for name, row in rows.items() if row.kind.schema() is not None and name != "num_images_per_prompt"}
    return frozenset(
        own | {name for name, row in others.items() if row.of in own and row.kind.schema() is not None} | {"size"}
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
