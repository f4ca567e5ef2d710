"""The ten points of a face found from masks of its parts: those of a bundle's segmenter, or somebody's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from .geometry import EYES_Y, POINTS, Geometry
from .keyframe import Keyframe

__all__ = ["nearby", "points_of_parts"]

_LEAST = 12  # pixels of a part


def points_of_parts(parts: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]] | str:
    """parts: eyes, mouth, face and, where there is any, hair: float [H, W], how much of each pixel shows them.

    -> POINTS in shares of the picture, or the reason why they are not sure.
    """
    eyes, mouth, face = (parts[name] > 0.5 for name in ("eyes", "mouth", "face"))
    for name, mask in (("eyes", eyes), ("mouth", mouth), ("face", face)):
        if mask.sum() < _LEAST:
            return f"no {name} are found" if name == "eyes" else f"no {name} is found"
    height, width = eyes.shape
    columns = np.flatnonzero(eyes.any(0))
    gaps = np.diff(columns)
    if not len(gaps) or gaps.max() < 3:
        return "the eyes are not apart"
    split = columns[int(gaps.argmax())] + 1
    found: dict[str, tuple[float, float]] = {}
    sizes = []
    for side, part in (("Right", eyes[:, :split]), ("Left", eyes[:, split:])):
        rows, cols = np.nonzero(part)
        if len(rows) < _LEAST:
            return "one eye is not found"
        offset = 0 if side == "Right" else split
        x = (cols.mean() + 0.5 + offset) / width
        top, low = np.quantile(rows, 0.02), np.quantile(rows, 0.98) + 1
        found[f"eye{side}"] = (x, float(rows.mean() + 0.5) / height)
        found[f"lidUpper{side}"], found[f"lidLower{side}"] = (x, top / height), (x, low / height)
        sizes.append(len(rows))
    if min(sizes) < 0.4 * max(sizes):
        return "one eye is much larger than the other"
    rows, cols = np.nonzero(mouth)
    left, right = float(np.quantile(cols, 0.02)), float(np.quantile(cols, 0.98)) + 1
    y = float(rows.mean() + 0.5) / height
    found["mouthRight"], found["mouthLeft"] = (left / width, y), (right / width, y)
    middle = (found["eyeLeft"][0] + found["eyeRight"][0]) / 2
    if not found["lidLowerLeft"][1] < y or not left / width < middle < right / width:
        return "the mouth does not lie below the eyes"
    head = face | (parts["hair"] > 0.5) if "hair" in parts else face
    centre = (left + right) / 2
    # A face ends where it is little more than half as wide as at the mouth; a mask may go on down the neck.
    gap, first = y - found["eyeLeft"][1], int(y * height)
    wide = face[first : int((y + gap) * height) + 2].sum(1)
    if not len(wide) or not wide[0]:
        return "the chin does not lie below the mouth"
    narrow = np.flatnonzero(wide <= 0.55 * wide[0])
    chin = (first + int(narrow[0])) / height + 0.06 * gap if len(narrow) else y + 0.7 * gap
    found["chin"] = (centre / width, chin)
    rows, cols = np.nonzero(head & (np.arange(height) < chin * height)[:, None])
    found["headCentre"] = (float(cols.mean() + 0.5) / width, float(rows.min() + chin * height) / 2 / height)
    return {name: (float(found[name][0]), float(found[name][1])) for name in POINTS}


_SEEN = 128  # pixels a side on which a face is searched for


def nearby(
    rgba: np.ndarray, current: Keyframe, pause: Callable[[], object] = lambda: None
) -> dict[str, tuple[float, float]]:
    """The ten points of a face that lies nearly where a keyframe's does: moved and scaled to where eyes, nose and mouth
    show most alike. What is compared is how much brightness varies about each place, whatever the colours.

    rgba: premultiplied uint8 [S, S, 4]; pause: called every few milliseconds of work. POINTS in shares of the picture.
    """
    guess = current.geometry
    assert guess is not None
    there = _standing(current)
    pause()
    here = _activity(rgba)
    x, y = np.meshgrid(np.linspace(-0.22, 0.22, 25), np.linspace(0.0, 0.28, 15))
    at = guess.to_picture(np.stack([x, y], axis=-1)).reshape(-1, 2)
    middle = guess.to_picture(np.array([0.0, EYES_Y]))
    wanted = _standard(there[_places(at[:, 1], len(there)), _places(at[:, 0], len(there))])
    best, found = -np.inf, np.array((0.0, 0.0, 1.0))  # shift x, y and scale
    for fine in (1.0, 0.25):  # over all, then about the best
        shifts, centre = fine * np.linspace(-0.06, 0.06, 17), found
        xs = centre[0] + shifts
        for scale in centre[2] + fine * np.linspace(-0.12, 0.12, 9):
            pause()
            moved = middle + scale * (at - middle)
            columns = _places(moved[:, 0] + xs[:, None], len(here))  # [shifts, places]
            for dy in centre[1] + shifts:
                rows = here.take(_places(moved[:, 1] + dy, len(here)) * len(here) + columns)
                off = (dy**2 + xs**2) / 0.06**2 + ((scale - 1) / 0.16) ** 2
                score = _standard(rows) @ wanted / len(at) - 0.05 * off
                k = int(score.argmax())
                if score[k] > best:
                    best, found = float(score[k]), np.array((xs[k], dy, scale))

    def places(points: np.ndarray) -> np.ndarray:
        return np.clip(middle + found[2] * (guess.to_picture(points) - middle) + found[:2], 0, 1)

    def placed(x: float, y: float) -> tuple[float, float]:
        u, v = places(np.array([x, y])).tolist()
        return u, v

    told = {}
    for eye, name in zip(guess.eyes, ("Right", "Left"), strict=True):
        told[f"eye{name}"] = placed(eye.x, eye.iris[1])
        top, low = float(eye.top.min()), float(eye.low.max())
        # Lids that cover a little more than an eye are better than ones that leave some of it.
        told[f"lidUpper{name}"] = placed(eye.x, top - 0.05 * (low - top))
        told[f"lidLower{name}"] = placed(eye.x, low + 0.1 * (low - top))
    pause()
    told |= _mouth(rgba, guess, places)
    told["chin"], told["headCentre"] = placed(guess.mouth.x, guess.chin), placed(*guess.centre)
    return {name: told[name] for name in POINTS}


@lru_cache(maxsize=2)
def _standing(keyframe: Keyframe) -> np.ndarray:
    """The one that new keyframes are drawn over stays the same for long."""
    return _activity(keyframe.rgba)


def _activity(rgba: np.ndarray) -> np.ndarray:
    """[side, side]: the standard deviation of brightness within 5 x 5 of `_SEEN` pixels a side."""
    step = max(1, len(rgba) // _SEEN)
    grey = rgba[..., :3].astype(np.float64).mean(-1) + (255 - rgba[..., 3]) * 0.9
    n = len(grey) // step * step
    grey = grey[:n, :n].reshape(n // step, step, n // step, step).mean((1, 3))
    mean, square = _blurred(grey), _blurred(grey * grey)
    return np.asarray(np.sqrt(np.sqrt(np.maximum(square - mean * mean, 0)) + 1))


def _blurred(values: np.ndarray) -> np.ndarray:
    """The means of 5 x 5, edges repeated."""
    for axis in (0, 1):
        padded = np.pad(values, [(2, 2) if i == axis else (0, 0) for i in (0, 1)], mode="edge")
        values = np.lib.stride_tricks.sliding_window_view(padded, 5, axis).mean(-1)
    return values


def _places(at: np.ndarray, side: int) -> np.ndarray:
    """Shares of the picture -> pixels."""
    return np.clip((at * side).astype(np.int32), 0, side - 1)


def _standard(values: np.ndarray) -> np.ndarray:
    """Each row's mean 0 and deviation 1."""
    values = values - values.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(values).mean(-1, keepdims=True))
    return np.asarray(values / np.maximum(deviation, 1e-6))


def _mouth(
    rgba: np.ndarray, guess: Geometry, places: Callable[[np.ndarray], np.ndarray]
) -> dict[str, tuple[float, float]]:
    """The corners of the mouth: what, below the nose, is least like the cheeks; the guess's where nothing is."""
    side, (x, y) = len(rgba), (guess.mouth.x, float(guess.mouth.line.mean()))
    columns, rows = np.linspace(-0.115, 0.115, 93), np.linspace(y - 0.055, min(y + 0.06, guess.chin - 0.012), 47)
    at = places(np.stack(np.meshgrid(x + columns, rows), axis=-1))  # [rows, columns, 2]
    i, j = np.moveaxis(np.clip(at * side, 0, side - 1).astype(int), -1, 0)
    cheeks = places(np.array([[x - 0.11, y - 0.035], [x + 0.11, y - 0.035]]))
    skin = np.mean([rgba[int(v * (side - 1)), int(u * (side - 1)), :3] for u, v in cheeks], axis=0)
    colours = rgba[j, i, :3].astype(np.float64)
    # Redder or darker than skin, not the outline of the jaw, which reaches the sides.
    off = (colours[..., 1] - skin[1] < -34) & (np.abs(columns) < 0.1)
    width, middle = guess.mouth.width, x
    if off.sum() >= 12:
        heights, across = np.nonzero(off)
        y = float(np.quantile(rows[heights], 0.4))
        low, high = (float(np.quantile(columns[across], q)) for q in (0.04, 0.96))
        width, middle = float(np.clip((high - low) / 2, 0.03, 0.09)), x + (low + high) / 2
    right, left = places(np.array([[middle - width, y], [middle + width, y]])).tolist()
    return {"mouthRight": (right[0], right[1]), "mouthLeft": (left[0], left[1])}
