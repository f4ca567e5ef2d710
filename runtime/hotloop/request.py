"""A call's arguments, checked at the border: everything behind it can trust them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from .errors import InputError, NonFiniteError
from .loop import Progress
from .noise import RNGS, seeds_for
from .tokenizer import LONG_PROMPTS, MAX_CHARACTERS, SYNTAXES

__all__ = [
    "MAX_IMAGES",
    "Callback",
    "Options",
    "Request",
    "check_finite",
    "check_integer",
    "check_number",
]

MAX_IMAGES = 64  # per call: more are asked for in several calls, each reproducible from its own seeds

Callback = Callable[[Progress], object]


class Options(TypedDict, total=False):
    """The keyword arguments that all pipelines share.

    num_inference_steps    denoising steps [the bundle's own]
    guidance_scale         at or below 1 guidance is off [the bundle's own]
    sampler                a name of `hotloop.samplers.NAMES` [the bundle's own]
    sampler_options        what that sampler takes: eta, spacing, sigmas...
    seed                   image i has seed + i [a fresh one, told in the result]
    num_images_per_prompt  images of each prompt; num_images is an alias [1]
    rng                    "torch": the baseline's noise; "philox": counter-based, the same on every device ["torch"]
    prompt_syntax          "a1111" reads (word:1.3), ((word)), [word]; "plain" takes the text as it is ["a1111"]
    long_prompt            "truncate" warns and cuts at 75 tokens; "chunk" reads windows of 75, and then all prompts
                           of one call must need the same number of windows ["truncate"]
    clip_skip              0: the text encoder's last layer; 1: the last but one [0]
    callback               called with a `loop.Progress` after every row; raise from it to cancel
    """

    num_inference_steps: int | None
    guidance_scale: float | None
    sampler: str | None
    sampler_options: Mapping[str, Any] | None
    seed: int | None
    num_images_per_prompt: int | None
    num_images: int | None
    rng: str
    prompt_syntax: str
    long_prompt: str
    clip_skip: int | None
    callback: Callback | None


@dataclass(frozen=True)
class Request:
    """A call's checked arguments; one prompt, negative prompt and seed per image."""

    place: str
    prompts: list[str]
    negatives: list[str] | None
    seeds: list[int]
    steps: int
    guidance: float
    sampler: str
    options: Mapping[str, Any]
    rng: str
    syntax: str
    long_prompt: str
    clip_skip: int
    callback: Callback | None

    @classmethod
    def checked(
        cls,
        place: str,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        *,
        defaults: Mapping[str, Any],
        most_steps: int,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
        num_images_per_prompt: int | None = None,
        num_images: int | None = None,
        rng: str = "torch",
        prompt_syntax: str = "a1111",
        long_prompt: str = "truncate",
        clip_skip: int | None = None,
        callback: Callback | None = None,
    ) -> Request:
        """The arguments that all pipelines share, with the bundle's `defaults` in place of None.

        Raises InputError naming `place` (the pipeline), the rule and the value.
        """
        prompts = _texts(place, "prompt", prompt)
        if None not in (num_images, num_images_per_prompt) and num_images != num_images_per_prompt:
            raise InputError(place, "num_images is an alias of num_images_per_prompt; give one", num_images)
        each = next((n for n in (num_images_per_prompt, num_images) if n is not None), 1)
        check_integer(place, "num_images_per_prompt", each, 1, MAX_IMAGES)
        if len(prompts) * each > MAX_IMAGES:
            raise InputError(place, f"images per call must be at most {MAX_IMAGES}", len(prompts) * each)
        steps = num_inference_steps if num_inference_steps is not None else defaults.get("num_inference_steps", 50)
        check_integer(place, "num_inference_steps", steps, 1, most_steps)
        guidance = guidance_scale if guidance_scale is not None else defaults.get("guidance_scale", 7.5)
        check_number(place, "guidance_scale", guidance, 0, 1000)
        negatives = _texts(place, "negative_prompt", "" if negative_prompt is None else negative_prompt)
        if len(negatives) not in (1, len(prompts)):
            raise InputError(place, f"negative_prompt must be one text or {len(prompts)}", len(negatives))
        negatives = negatives * len(prompts) if len(negatives) == 1 else negatives
        first = secrets.randbelow(2**32) if seed is None else seed
        skip = 0 if clip_skip is None else clip_skip
        check_integer(place, "clip_skip", skip, 0, 1)
        for name, value, allowed in (
            ("prompt_syntax", prompt_syntax, SYNTAXES),
            ("long_prompt", long_prompt, LONG_PROMPTS),
            ("rng", rng, tuple(RNGS)),
        ):
            if value not in allowed:
                raise InputError(place, f"{name} must be one of {', '.join(allowed)}", value)
        sampler = sampler if sampler is not None else defaults.get("sampler", "plms")
        if not isinstance(sampler, str):
            raise InputError(place, "sampler must be a name", sampler)
        if callback is not None and not callable(callback):
            raise InputError(place, "callback must be callable", callback)
        return cls(
            place=place,
            prompts=[text for text in prompts for _ in range(each)],
            # At or below 1 guidance is off: the unconditional half is neither encoded nor evaluated.
            negatives=[text for text in negatives for _ in range(each)] if guidance > 1 else None,
            seeds=seeds_for(first, len(prompts) * each),
            steps=int(steps),
            guidance=float(guidance),
            sampler=sampler,
            options=_sampler_options(place, sampler_options),
            rng=rng,
            syntax=prompt_syntax,
            long_prompt=long_prompt,
            clip_skip=skip,
            callback=callback,
        )


def _texts(place: str, name: str, value: str | Sequence[str]) -> list[str]:
    if not isinstance(value, Sequence):
        raise InputError(place, f"{name} must be text or a list of texts", value)
    texts = [value] if isinstance(value, str) else list(value)
    if not texts:
        raise InputError(place, f"{name} must not be an empty list", value)
    for text in texts:
        if not isinstance(text, str):
            raise InputError(place, f"{name} must be text", text)
        if len(text) > MAX_CHARACTERS:
            raise InputError(place, f"{name} must have at most {MAX_CHARACTERS} characters", len(text))
    return texts


def _sampler_options(place: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy whose values can be the key of a cache: lists become tuples."""
    if not isinstance(options, Mapping | None) or not all(isinstance(key, str) for key in options or {}):
        raise InputError(place, "sampler_options must map names to values", options)
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    for key, value in frozen.items():
        try:
            hash(value)
        except TypeError:
            raise InputError(place, f"sampler option {key} must be a number, a word or a list of them", value) from None
    return frozen


def check_integer(place: str, name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(place, f"{name} must be a whole number in {least}..{most}", value)


def check_number(place: str, name: str, value: object, least: float, most: float) -> None:
    # NaN is in no range; Python compares integers of any size exactly.
    if not isinstance(value, (int, float, np.integer, np.floating)) or not least <= value <= most:
        raise InputError(place, f"{name} must be a number in {least:g}..{most:g}", value)


def check_finite(place: str, name: str, array: np.ndarray) -> None:
    """Raises NonFiniteError: a broken result is never shown as a black image."""
    if broken := int(array.size - np.isfinite(array).sum()):
        raise NonFiniteError(place, f"{name} must be finite; {broken} of {array.size} values are not")
