"""A session's settings: versions that are made off the frame path and swapped whole, between two frames.

A version is a checked `Request` of THE table ("live") and what was prepared from it. `set` merges into what was asked
last, so a hundred changes a second lose none of their values and only the newest sum is prepared. What is refused
changes nothing and raises the one line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..checks import check_integer
from ..errors import HotloopError, InputError
from ..request import Request, canonical

__all__ = ["DEFAULTS", "PLACE", "Settings", "Version"]

PLACE = "live"
# What stands where the table's own defaults are for single pictures.
DEFAULTS: Mapping[str, Any] = {"sampler": "lcm", "num_inference_steps": 2, "guidance_scale": 1.0}
MOST_BLEND = 10_000

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, eq=False)
class Version(Generic[Prepared]):
    """values: what it was asked for with; blend: over how many frames prompts and noise slide to it."""

    number: int
    values: Mapping[str, Any]
    request: Request
    prepared: Prepared
    blend: int = 0


@dataclass(frozen=True, eq=False)
class _Asked:
    number: int
    values: Mapping[str, Any]
    request: Request
    blend: int


class Settings(Generic[Prepared]):
    """check    raises InputError for what cannot be prepared; quick, called by `set`
    prepare  makes what frames begin with; may take its time. Any thread, one at a time.

    refused counts what was, `unprepared` what of it `set` had taken; refusal is the last one's line.

    Raises InputError when the first settings are refused.
    """

    def __init__(
        self, given: Mapping[str, Any], *, check: Callable[[Request, int], None],
        prepare: Callable[[Request, int], Prepared],
    ) -> None:  # fmt: skip
        self._check, self._prepare = check, prepare
        self._lock, self._one = threading.Lock(), threading.Lock()
        self.refused, self.unprepared, self.refusal = 0, 0, ""
        first = self._asked({"seed": 0} | dict(given), {}, 1, 0)
        check(first.request, 0)
        self._latest = self._current = first
        self.active = Version(1, first.values, first.request, prepare(first.request, 0))
        self._ready: Version[Prepared] | None = None
        self._done = 1  # the number of the newest version that was prepared or refused

    def set(self, *, blend: int = 0, **given: Any) -> int:
        """Ask for other settings -> the number of the version that will have them.

        size: (width, height), or one number for both. blend: prompts and noise slide there over so many frames.
        Raises InputError, and then nothing has changed.
        """
        try:
            check_integer(PLACE, "blend", blend, 0, MOST_BLEND)
            with self._lock:
                asked = self._asked(given, self._latest.values, self._latest.number + 1, blend)
                self._check(asked.request, blend)
                self._latest = asked
                return asked.number
        except InputError as error:
            self._refuse(error)
            raise

    def touch(self) -> None:
        """Prepare the same settings again: what they are prepared from has changed."""
        with self._lock:
            last = self._latest
            self._latest = _Asked(last.number + 1, last.values, last.request, 0)

    @property
    def number(self) -> int:
        """Of the version that was asked for last."""
        return self._latest.number

    @property
    def values(self) -> Mapping[str, Any]:
        """What was asked for last, whole."""
        return self._latest.values

    @property
    def pending(self) -> bool:
        """Whether there is something to prepare."""
        return self._latest.number > self._done

    def prepare(self) -> None:
        """Prepare the newest settings. Where that fails, the old ones stay and are again what `set` changes."""
        with self._one:
            asked = self._latest
            if asked.number <= self._done:
                return
            try:
                made = self._prepare(asked.request, asked.blend)
                version = Version(asked.number, asked.values, asked.request, made, asked.blend)
            except HotloopError as error:
                self._refuse(error)
                self.unprepared += 1
                with self._lock:
                    if self._latest is asked:  # what came meanwhile is tried by itself
                        self._latest = _Asked(asked.number, self._current.values, self._current.request, 0)
                    self._done = asked.number
                return
            with self._lock:
                self._ready, self._current, self._done = version, asked, asked.number

    def swap(self) -> Version[Prepared] | None:
        """Between two frames: the newest prepared version takes over -> it, or None where nothing is new."""
        with self._lock:
            version, self._ready = self._ready, None
            if version is not None:
                self.active = version
            return version

    def _refuse(self, error: HotloopError) -> None:
        self.refused += 1
        self.refusal = str(error)

    def _asked(self, given: Mapping[str, Any], before: Mapping[str, Any], number: int, blend: int) -> _Asked:
        given = dict(given)
        if (size := given.pop("size", None)) is not None:
            pair = list(size) if isinstance(size, (tuple, list)) else [size, size]
            if len(pair) != 2:
                raise InputError(PLACE, "size must be (width, height) or one number for both", size)
            given |= dict(zip(("width", "height"), pair, strict=True))
        values = {**before, **canonical(PLACE, given)}
        request = Request.checked(PLACE, values, DEFAULTS)
        if len(request.prompts) != 1:
            raise InputError(PLACE, "a session shows one image: one prompt, num_images_per_prompt=1", values["prompt"])
        for name in ("callback", "guidance_rescale", "upscale", "alpha"):
            if request[name]:
                raise InputError(PLACE, f"a session takes no {name}", request[name])
        guided, form = request["guidance_scale"] > 1, request["cfg_type"]
        if guided and form in ("none", "self") and any(request["negative_prompt"]):
            rule = f"cfg_type {form} does not read negative_prompt: set it to '' or use full or initialize"
            raise InputError(PLACE, rule, request["negative_prompt"][0])
        values["seed"] = request.seeds[0]  # a fresh one is drawn once
        return _Asked(number, values, request, blend)
