"""The samplers by the names that other programs have for them, and where stock pipelines draw otherwise on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .face import NAMES
from .schedulers import SAMPLERS

__all__ = ["DIFFERENCES", "STOCK", "resolve"]

# A1111's names, as diffusers' page of schedulers sets its own classes beside them.
_A1111: Mapping[str, str] = {
    "DDIM": "ddim", "DDPM": "ddpm", "PLMS": "plms", "LMS": "lms", "Euler": "euler", "Euler a": "euler_a",
    "Heun": "heun", "DPM2": "kdpm2", "DPM++ 2M": "dpmpp_2m", "DPM++ 2M SDE": "dpmpp_2m_sde", "UniPC": "unipc",
    "LCM": "lcm", "TCD": "tcd",
}  # fmt: skip
_SIGMAS = ("karras", "exponential")
_KNOWN = {name.lower(): sampler for name, sampler in {**SAMPLERS, **_A1111}.items()}

# sampler -> the options with which it draws what stock pipelines draw that are told nothing
STOCK: Mapping[str, Mapping[str, Any]] = {
    "plms": {"history": "diffusers"}, "pndm": {"history": "diffusers"}, "lms": {"history": "diffusers"},
    "tcd": {"eta": 0.0},
}  # fmt: skip
_HISTORY = (
    "image to image and inpainting below strength 1 warm up at their own start; stock pipelines go on as if the steps "
    "before it had been run"
)
DIFFERENCES: Mapping[str, str] = {
    "plms": _HISTORY, "pndm": _HISTORY, "lms": _HISTORY,
    "tcd": "eta is the paper's 0.3; stock pipelines pass their own eta, 0",
}  # fmt: skip


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """A sampler's name here, a diffusers class or A1111's name ("DPM++ 2M Karras") -> (name here, its options).

    Raises InputError with the near misses.
    """
    if name in NAMES:
        return name, {}
    words = name.lower().split()
    options = {}
    if words and words[-1] in _SIGMAS:
        options["sigmas"] = words.pop()
    if sampler := _KNOWN.get(" ".join(words)):
        return sampler, options
    names = {known.lower(): known for known in (*NAMES, *SAMPLERS, *_A1111)}
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(names[one] for one in near)}?)" if near else ""
    raise InputError("samplers", f"sampler must be one of {', '.join(NAMES)}{hint}", name)
