"""THE table of what a request for pictures may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...checks import check_number
from ...errors import InputError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """head_seconds    until a request's head is there
    body            bytes of a request; body_seconds: until all of it is there
    picture_pixels  of a picture that comes with a request, `pictures` of them at most
    side            pixels of a side of what is drawn; steps; images of a request
    prompt          characters; windows: of 75 tokens
    depth           of JSON; parts: of a form
    loras           of a request
    jobs            that are kept, job_seconds after their end
    streams         connections that are told of progress
    connections     at once
    """

    head_seconds: float = 30.0
    body: int = 20_000_000
    body_seconds: float = 30.0
    picture_pixels: int = 4_000_000
    pictures: int = 4
    side: int = 1024
    steps: int = 150
    images: int = 4
    prompt: int = 2_000
    windows: int = 8
    depth: int = 32
    parts: int = 100
    loras: int = 4
    jobs: int = 64
    job_seconds: float = 600.0
    streams: int = 32
    connections: int = 256

    def __post_init__(self) -> None:
        for one in fields(self):
            check_number("serve", f"limits.{one.name}", getattr(self, one.name), 0.1, 2**31 - 1)

    @classmethod
    def of(cls, profile: str, changed: Mapping[str, Any]) -> Limits:
        """Those of "cpu" or "gpu", some of them changed."""
        larger: dict[str, Any] = {
            "body": 50_000_000, "picture_pixels": 16_000_000, "side": 2048, "images": 16,
        }  # fmt: skip
        known = [one.name for one in fields(cls)]
        for name, value in changed.items():
            if name not in known:
                raise InputError("serve", f"limits must be among {', '.join(known)}", name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise InputError("serve", f"limits.{name} must be a number", value)
        return cls(**((larger if profile == "gpu" else {}) | dict(changed)))
