"""A picture's own lids, irises and closed lips, found in it: a search that begins at what ten points tell.

Nothing is known of the style but that skin is around an eye and what is in it is not, that an iris is darker than the
white, and the line between lips than what is above and below it. So every part is the place of a sharp change, and the
search makes that change as large as it gets. All in face coordinates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .geometry import SAMPLES, Eye, Geometry, Mouth

__all__ = ["Calibrated", "calibrated"]

_T = np.linspace(-1, 1, SAMPLES)
_GRID = 56  # samples a side of what is looked at around an eye
_APART_LEAST = 0.06  # of colours: an iris that is less unlike the white is none
_STEPS, _WIDTH = 260, 12  # of the search


@dataclass(frozen=True)
class Calibrated:
    """geometry: with the picture's own curves; irises: whether they could be told from the white; lined: whether the
    line between the lips was found."""

    geometry: Geometry
    irises: bool
    lined: bool


def calibrated(rgba: np.ndarray, geometry: Geometry, *, seconds: float = 60.0, seed: int = 0) -> Calibrated:
    """rgba: premultiplied uint8 [S, S, 4]. The search takes at most so many seconds; with fewer than it needs it has
    gone less far. The same seed gives the same result, where time did not end it."""
    look = _Look(rgba, geometry)
    end = time.monotonic() + seconds
    rng = np.random.default_rng(seed)
    eyes, known = [], []
    for eye in geometry.eyes:
        eye = _lids(look, eye, geometry, rng, end)
        eye, apart = _iris(look, eye, rng, end)
        eyes.append(eye)
        known.append(apart > _APART_LEAST)
    line, lined = _line(look, geometry)
    return Calibrated(replace(geometry, eyes=(eyes[0], eyes[1]), mouth=line), all(known), lined)


class _Look:
    """Colours at the face's places, float64 in 0..1, over the picture's mean where it is transparent."""

    def __init__(self, rgba: np.ndarray, geometry: Geometry) -> None:
        picture = rgba.astype(np.float64) / 255
        ground = picture[..., :3].sum((0, 1)) / max(picture[..., 3].sum(), 1e-6)
        self._picture = picture[..., :3] + (1 - picture[..., 3:]) * ground
        self._geometry = geometry

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        side = len(self._picture)
        at = self._geometry.to_picture(np.stack(np.broadcast_arrays(x, y), axis=-1)) * side - 0.5
        at = np.clip(at, 0, side - 1.001)
        i, j = at[..., 0].astype(int), at[..., 1].astype(int)
        u, v = (at[..., 0] - i)[..., None], (at[..., 1] - j)[..., None]
        p = self._picture
        upper, lower = p[j, i] * (1 - u) + p[j, i + 1] * u, p[j + 1, i] * (1 - u) + p[j + 1, i + 1] * u
        return np.asarray(upper * (1 - v) + lower * v)


def _climbed(
    score: Callable[[np.ndarray], float], begin: np.ndarray, step: np.ndarray, rng: np.random.Generator,
    end: float,
) -> np.ndarray:  # fmt: skip
    """The best place that an evolution strategy finds: of a few steps about the best one so far the best is taken, and
    steps shrink where none helped (Rechenberg 1973, the one-fifth rule)."""
    best, size, top = begin, 1.0, score(begin)
    for _ in range(_STEPS):
        if size < 0.02 or time.monotonic() > end:
            break
        tried = best + size * step * rng.standard_normal((_WIDTH, len(best)))
        scores = [score(one) for one in tried]
        k = int(np.argmax(scores))
        if scores[k] > top:
            best, top, size = tried[k], scores[k], min(size * 1.25, 1.5)
        else:
            size *= 0.85
    return best


# Lids.


def _curve(corners: tuple[float, float], height: float, skew: float, full: float) -> np.ndarray:
    """[SAMPLES]: an arc between two corners, whose top stands aside of the middle by `skew`."""
    t = _T + 0.6 * skew * (1 - _T**2)
    arc = np.maximum(1 - t**2, 0) ** full
    chord: np.ndarray = corners[0] + (corners[1] - corners[0]) * (_T + 1) / 2
    return chord + height * arc


def _lids(look: _Look, eye: Eye, geometry: Geometry, rng: np.random.Generator, end: float) -> Eye:
    """The two curves between which a picture is least like the skin around them."""
    half = float(eye.low.max() - eye.top.min()) / 2
    middle = float(eye.low.max() + eye.top.min()) / 2
    reach = 1.7 * max(eye.width, half)
    x = eye.x + np.linspace(-1, 1, _GRID)[None] * reach
    y = middle + np.linspace(-1, 1, _GRID)[:, None] * reach
    colours = look(x, y)
    ring = np.hypot((x - eye.x) / (1.35 * eye.width), (y - middle) / (1.5 * half))
    around = colours[(ring > 1.0) & (ring < 1.5) & (y > middle - 0.8 * half)]
    skins = _leading(around)
    off = np.sqrt(((colours[..., None, :] - skins) ** 2).sum(-1)).min(-1)
    off = np.clip(off / 0.3, 0, 1)
    columns = x[0]

    def curves(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, _, left, right, up, skew, low, askew = q
        corners = middle + half * left, middle + half * right
        return (
            _curve(corners, -half * abs(up), skew, 0.6),
            _curve(corners, half * abs(low), askew, 0.75),
        )

    begin = np.array([0.0, 1.0, 0.24, 0.24, 1.24, 0.0, 0.76, 0.0])
    loose = np.array([0.12, 0.18, 0.3, 0.3, 0.1, 0.35, 0.1, 0.35])  # lids were told, corners were not

    def score(q: np.ndarray) -> float:
        if q[1] < 0.5 or q[4] < 0.3 or q[6] < 0.15:
            return -np.inf
        wide = q[1] * eye.width
        t = (columns - eye.x - q[0] * eye.width) / wide
        top, low = (np.interp(t, _T, one) for one in curves(q))
        within = (np.abs(t) < 1)[None] & (y > top) & (y < low)
        margin = 0.22 * half
        near = (np.abs(t) < 1 + margin / wide)[None] & (y > top - margin) & (y < low + margin) & ~within
        if within.sum() < 20 or near.sum() < 20:
            return -np.inf
        away = float((((q - begin) / loose) ** 2).sum())
        return float(off[within].mean() - off[near].mean()) + 0.06 * np.log(within.mean()) - 0.012 * away

    q = _climbed(score, begin, 0.5 * loose, rng, end)
    # Within a drawn outline: what is between lids begins where the line ends.
    width = float(q[1]) * eye.width
    outlines = []
    for curve, down in zip(curves(q), (1, -1), strict=True):
        depths = np.linspace(0, 0.4 * half, 40)
        aside = np.abs(np.abs(_T) - 0.55) < 0.25
        grey = look(eye.x + q[0] * eye.width + width * _T[aside], curve[aside] + down * depths[:, None]).mean((1, 2))
        dark = int(grey[:24].argmin())
        bright = float(grey[dark:].max())
        lined = bright - grey[dark] > 0.2 and float(skins.mean()) - grey[dark] > 0.2
        ended = np.flatnonzero(grey[dark:] > (bright + grey[dark]) / 2)
        outlines.append(float(depths[dark + ended[0]]) if lined and len(ended) else 0.0)
    q[4], q[6] = abs(q[4]) - outlines[0] / half, abs(q[6]) - outlines[1] / half
    if min(outlines) > 0:
        width -= min(outlines)
    top, low = curves(q)
    closed = (top[0] + top[-1]) / 2
    rest = top[0] + (top[-1] - top[0]) * (_T + 1) / 2 + 0.55 * np.maximum(low - closed, 0)
    return replace(
        eye, x=eye.x + float(q[0]) * eye.width, y=float(top.min() + low.max()) / 2, width=width, top=top,
        low=low, rest=rest,
    )  # fmt: skip


def _leading(colours: np.ndarray, count: int = 2) -> np.ndarray:
    """[count, 3]: the commonest colour, and the commonest of those unlike it where there are enough (a cheek's two
    tones); else that one again."""
    first = np.median(colours, axis=0)
    for _ in range(3):
        near = np.abs(colours - first).sum(-1) < 0.25
        first = np.median(colours[near], axis=0) if near.any() else first
    rest = colours[np.abs(colours - first).sum(-1) > 0.25]
    if len(rest) < 0.3 * len(colours):
        return np.stack([first] * count)
    second = np.median(rest, axis=0)
    near = np.abs(rest - second).sum(-1) < 0.25
    return np.stack([first, np.median(rest[near], axis=0) if near.mean() > 0.6 else first])


# Irises.


def _iris(look: _Look, eye: Eye, rng: np.random.Generator, end: float) -> tuple[Eye, float]:
    """The disc in the eye with the sharpest edge -> the eye, and how far its colours are from the rest's."""
    t = np.linspace(-1, 1, _GRID)[None]
    x = eye.x + eye.width * t
    high, deep = float(eye.top.min()), float(eye.low.max())
    y = high + (deep - high) * np.linspace(0, 1, _GRID)[:, None]
    colours = look(x, y)
    top, low = (np.interp(t, _T, one) for one in (eye.top, eye.low))
    thick = 0.08 * (deep - high)
    inside = (y > top + thick) & (y < low - thick) & (np.abs(t) < 0.97)
    x0, y0, r, _ = eye.iris
    half = (deep - high) / 2
    r = min(r, 0.7 * half)

    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    cos, sin = np.cos(turn), np.sin(turn)

    def score(q: np.ndarray) -> float:
        if not 0.35 * half < q[2] < 0.85 * eye.width or not 0.8 < q[3] < 1.4 or q[2] * q[3] > 0.88 * half:
            return -np.inf
        rim = q[0] + q[2] * cos, q[1] + q[2] * q[3] * sin
        t = (rim[0] - eye.x) / eye.width
        seen = (
            (np.abs(t) < 0.95)
            & (rim[1] > np.interp(t, _T, eye.top) + thick)
            & (rim[1] < np.interp(t, _T, eye.low) - thick)
        )
        if seen.sum() < 16:
            return -np.inf
        without, within = (look(q[0] + f * q[2] * cos[seen], q[1] + f * q[2] * q[3] * sin[seen]) for f in (1.12, 0.88))
        # Of each place that counts where the white is the brighter side.
        edge = float((np.sqrt(((without - within) ** 2).sum(-1)) * np.sign((without - within).sum(-1))).mean())
        radius = np.hypot((x - q[0]) / q[2], (y - q[1]) / (q[2] * q[3]))
        one, other = colours[inside & (radius < 0.95)], colours[inside & (radius > 1.08)]
        if len(one) < 12 or len(other) < 12:
            return -np.inf
        unlike = float(np.sqrt(((one.mean(0) - other.mean(0)) ** 2).sum()))
        away = ((q[0] - x0) / (0.25 * eye.width)) ** 2 + ((q[1] - y0) / (0.3 * half)) ** 2 + ((q[3] - 1.1) / 0.3) ** 2
        return edge * float((seen.mean() + 0.3) ** 0.3) + unlike - 0.1 * float(away)

    q = _climbed(score, np.array([x0, y0, r, 1.0]), np.array([0.1 * half, 0.1 * half, 0.15 * half, 0.08]), rng, end)
    # The pupil's edge may be as sharp: the largest circle that is nearly so is the iris.
    radii = np.linspace(0.35, 1.5, 70) * q[2]
    radii = radii[(radii * q[3] <= 0.95 * half) & (radii < 0.85 * eye.width)]
    edges = np.array([_edge(look, eye, (q[0], q[1], one, one * q[3]), thick) for one in radii])
    tops = [k for k in range(1, len(radii) - 1) if edges[k] >= max(edges[k - 1], edges[k + 1], 0.4 * edges.max(), 0.0)]
    radius = float(q[2])
    if tops:  # and, where it is soft, out to where it has ended
        far = np.flatnonzero(edges[max(tops) :] < 0.35 * edges[max(tops)])
        radius = min(float(radii[max(tops) + far[0]] if len(far) else radii[-1]), 1.3 * float(radii[max(tops)]))
    disc = np.hypot((x - q[0]) / radius, (y - q[1]) / (radius * q[3])) < 1
    one, other = colours[inside & disc], colours[inside & ~disc]
    apart = float(np.abs(one.mean(0) - other.mean(0)).sum()) if len(one) > 12 and len(other) > 12 else 0.0
    return replace(eye, iris=(float(q[0]), float(q[1]), radius, radius * float(q[3]))), apart


# The mouth.


def _path(gain: np.ndarray, most: int, price: float) -> np.ndarray:
    """[columns]: rows of the path from left to right with the most gain, of steps of at most so many rows (Viterbi)."""
    rows, columns = gain.shape
    total, came = gain[:, 0].copy(), np.zeros((rows, columns), int)
    for c in range(1, columns):
        best, start = np.full(rows, -np.inf), np.zeros(rows, int)
        for step in range(-most, most + 1):
            moved = np.full(rows, -np.inf)
            source = slice(max(-step, 0), rows - max(step, 0))
            moved[max(step, 0) : rows - max(-step, 0)] = total[source] - price * abs(step)
            better = moved > best
            best[better], start[better] = moved[better], (np.arange(rows) - step)[better]
        total, came[:, c] = best + gain[:, c], start
    path = np.empty(columns, int)
    path[-1] = int(total.argmax())
    for c in range(columns - 1, 0, -1):
        path[c - 1] = came[path[c], c]
    return path


def _edge(look: _Look, eye: Eye, iris: tuple[float, float, float, float], thick: float) -> float:
    """How much brighter it gets over an ellipse's edge, where that is seen between the lids."""
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    cx, cy, rx, ry = iris
    t = (cx + rx * np.cos(turn) - eye.x) / eye.width
    y = cy + ry * np.sin(turn)
    seen = (np.abs(t) < 0.95) & (y > np.interp(t, _T, eye.top) + thick) & (y < np.interp(t, _T, eye.low) - thick)
    if seen.sum() < 12:
        return 0.0
    out, within = (look(cx + f * rx * np.cos(turn[seen]), cy + f * ry * np.sin(turn[seen])).sum(-1) for f in (1.1, 0.9))
    return float((out - within).mean())


def _smooth(values: np.ndarray, radius: int) -> np.ndarray:
    padded = np.pad(values, radius, mode="edge")
    return np.asarray(np.convolve(padded, np.ones(2 * radius + 1) / (2 * radius + 1), "valid"))


def _line(look: _Look, geometry: Geometry) -> tuple[Mouth, bool]:
    """The line between closed lips: the darkest way from corner to corner, where there is one."""
    mouth = geometry.mouth
    x = mouth.x + mouth.width * _T
    reach = 0.4 * mouth.width
    rows = np.linspace(-reach, reach, 65)
    chord = np.interp(_T, [-1, 1], [mouth.line[0], mouth.line[-1]])
    grey = look(x[None], chord[None] + rows[:, None]).mean(-1)
    far = 5
    ridge = np.minimum(np.roll(grey, far, 0), np.roll(grey, -far, 0)) - grey
    ridge[:far], ridge[-far:] = 0, 0
    prior = np.exp(-((rows / (0.6 * reach)) ** 2))[:, None]
    path = _path(np.maximum(ridge, 0) * prior, 3, 0.01)
    along = ridge[path, np.arange(len(x))]
    if (along[4:-4] > 0.04).mean() < 0.7:
        return mouth, False
    shift = _smooth(rows[path], 3) * np.clip((1 - np.abs(_T)) * 4, 0, 1)  # corners are where they were told to be
    line = chord + shift
    return replace(mouth, line=line, top=mouth.top + shift, low=mouth.low + shift), True
