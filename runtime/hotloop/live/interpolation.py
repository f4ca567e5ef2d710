"""The way between two generations: words and noise on the sphere, frames at even steps of what is seen.

    way = interpolate(pipe, {"prompt": "a girl", "seed": 1}, {"prompt": "a boy", "seed": 2}, frames=24)
    way.pixels                                  # uint8 [24, H, W, 3]; the first and the last are txt2img's, bit for bit

Equal steps in words and noise are not equal steps in the picture: it stands still here and jumps there. So pictures are
drawn also between the steps, where neighbours differ most, and of all of them those are taken whose largest step is the
smallest (a minimax path, by dynamic programming).
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..checks import check_integer
from ..errors import InputError
from ..pipeline import Pipeline
from ..request import Request, canonical
from .conditions import Prepared, check, mixed, prepare
from .redrawing import redrawn

__all__ = ["Way", "even", "interpolate"]

PLACE = "interpolate"
MOST_FRAMES = 2000
EVEN = 2.0  # times the mean step that the largest one stays below
_DEFAULTS: Mapping[str, Any] = {"sampler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}
# What both ends must have in common: the way leads through words, noise and seeds, not through these.
_COMMON = (
    "sampler", "sampler_options", "num_inference_steps", "guidance_scale", "width", "height", "rng", "clip_skip",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Way:
    """pixels  uint8 [N, H, W, 3]
    places  where on the way each lies, 0..1
    steps   root mean squares of the differences between neighbours, levels [N - 1]
    drawn   how many pictures were drawn for it
    """

    pixels: np.ndarray
    places: list[float]
    steps: np.ndarray
    drawn: int

    @property
    def unevenness(self) -> float:
        """The largest step over the mean one; 1 where nothing changes."""
        mean = float(self.steps.mean())
        return float(self.steps.max()) / mean if mean else 1.0


def interpolate(
    pipeline: Pipeline, a: Mapping[str, Any], b: Mapping[str, Any], frames: int = 24, *,
    told: Callable[[int], None] | None = None,
) -> Way:  # fmt: skip
    """`frames` pictures from a to b, both among them, exactly as `txt2img` draws them.

    a, b  txt2img's arguments by name: prompt, negative_prompt, seed, and in common steps, sampler, guidance and size
    told  how many pictures have been drawn so far

    Raises InputError; warns where the largest step is not below twice the mean one, however many pictures are drawn.
    """
    check_integer(PLACE, "frames", frames, 2, MOST_FRAMES)
    first, last = (_prepared(pipeline, dict(end)) for end in (a, b))
    for name in _COMMON:
        if first.request[name] != last.request[name]:
            raise InputError(PLACE, f"both ends must have the same {name}", [first.request[name], last.request[name]])
    count = 0

    def draw(t: float) -> np.ndarray:
        nonlocal count
        prepared = last if t >= 1 else first
        picture = redrawn(pipeline, prepared, mixed(first.mix, last.mix, t), None)
        count += 1
        if told is not None:
            told(count)
        return picture

    places, pixels = even(draw, frames)
    way = Way(pixels, places, _steps(pixels), count)
    if way.unevenness >= EVEN and way.steps.max() > 0:
        rule = f"the largest step of the way is {way.unevenness:.1f} times the mean one: the pictures jump there"
        warnings.warn(f"[{PLACE}] {rule}; give more frames, or other seeds", RuntimeWarning, stacklevel=2)
    return way


def even(draw: Callable[[float], np.ndarray], frames: int) -> tuple[list[float], np.ndarray]:
    """Places 0 = t_1 < .. < t_N = 1 and draw's pictures there, such that the largest step is small.

    Equal steps first; where they are uneven, up to 3 N pictures more, each in the middle of the largest step.
    """
    places = [i / (frames - 1) for i in range(frames)]
    pictures = {t: draw(t) for t in places}
    if frames == 2 or _uneven(list(pictures.values())) < 0.8 * EVEN:
        return places, np.stack(list(pictures.values()))
    known = sorted(pictures)
    gaps = {t: _distance(pictures[t], pictures[u]) for t, u in pairwise(known)}
    for _ in range(3 * frames):
        t = max(gaps, key=lambda one: gaps[one])
        u = known[known.index(t) + 1]
        if u - t < 1e-6:
            break
        middle = (t + u) / 2
        pictures[middle] = draw(middle)
        bisect.insort(known, middle)
        gaps[t], gaps[middle] = (_distance(pictures[x], pictures[y]) for x, y in ((t, middle), (middle, u)))
    chosen = _smoothest([pictures[t] for t in known], frames)
    return [known[i] for i in chosen], np.stack([pictures[known[i]] for i in chosen])


def _smoothest(pictures: list[np.ndarray], count: int) -> list[int]:
    """`count` of them in their order, the ends among them, whose largest step is the smallest; of those the one whose
    steps' squares sum to the least."""
    m = len(pictures)
    small = np.stack([_small(one) for one in pictures])
    flat = small.reshape(m, -1).astype(np.float64)
    squares = (flat * flat).sum(1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * flat @ flat.T, 0))
    later = np.triu(np.ones((m, m), bool), 1)
    largest = np.where(later, distance, np.inf)[0]  # of the best path of k steps to each
    total, came = largest**2, np.zeros((count, m), np.intp)
    for k in range(2, count):
        worst = np.maximum(largest[:, None], np.where(later, distance, np.inf))
        sums = total[:, None] + np.where(later, distance, np.inf) ** 2
        best = worst.min(0)
        near = worst <= best[None] * (1 + 1e-9)
        came[k] = np.where(near, sums, np.inf).argmin(0)
        largest, total = best, sums[came[k], np.arange(m)]
    path = [m - 1]
    for k in range(count - 1, 1, -1):
        path.append(int(came[k][path[-1]]))
    return [0, *reversed(path)]


def _small(picture: np.ndarray) -> np.ndarray:
    """Every few pixels' mean: what is compared, at most 64 a side."""
    step = max(1, max(picture.shape[:2]) // 64)
    h, w = (n // step * step for n in picture.shape[:2])
    blocks = picture[:h, :w].reshape(h // step, step, w // step, step, -1)
    return np.asarray(blocks.mean((1, 3), dtype=np.float32))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


def _steps(pixels: np.ndarray) -> np.ndarray:
    return np.array([_distance(a, b) for a, b in pairwise(pixels)])


def _uneven(pictures: list[np.ndarray]) -> float:
    steps = _steps(np.stack(pictures))
    mean = float(steps.mean())
    return float(steps.max()) / mean if mean else 1.0


def _prepared(pipeline: Pipeline, given: dict[str, Any]) -> Prepared:
    """One end, ready. Raises InputError."""
    width, height = pipeline.family.default_size
    values = {"seed": 0, "width": width, "height": height} | canonical("live", given)
    request = Request.checked("live", values, _DEFAULTS)
    if len(request.prompts) != 1:
        raise InputError(PLACE, "an end is one image: one prompt, num_images_per_prompt=1", given.get("prompt"))
    check(pipeline, request, 0, None, source=False)
    return prepare(pipeline, request, source=False)
