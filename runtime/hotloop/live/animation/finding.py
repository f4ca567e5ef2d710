"""The ten points of a face found from masks of its parts: those of a bundle's segmenter, or somebody's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .geometry import EYES_Y, POINTS, Geometry

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
    column = face[:, max(0, int(centre) - 1) : int(centre) + 2].any(1)
    below = np.flatnonzero(column)
    gap = y - found["eyeLeft"][1]
    chin = min(float(below.max() + 1) / height, y + 0.85 * gap) if len(below) else y + 0.5 * gap
    if chin <= y:
        return "the chin does not lie below the mouth"
    found["chin"] = (centre / width, chin)
    rows, cols = np.nonzero(head & (np.arange(height) < chin * height)[:, None])
    found["headCentre"] = (float(cols.mean() + 0.5) / width, float(rows.min() + chin * height) / 2 / height)
    return {name: (float(found[name][0]), float(found[name][1])) for name in POINTS}


_SEEN = 128  # pixels a side on which eyes are searched for


def nearby(rgba: np.ndarray, guess: Geometry) -> dict[str, tuple[float, float]]:
    """The ten points of a face that lies nearly where another one does: moved and scaled to where both eyes show most.

    rgba: premultiplied uint8 [S, S, 4]. Eyes are where brightness varies most beside places (nose, cheeks, forehead)
    where it does not. POINTS in shares of the picture.
    """
    step = max(1, len(rgba) // _SEEN)
    grey = rgba[..., :3].astype(np.float64).mean(-1) + (255 - rgba[..., 3]) * 0.9
    h, w = (n // step * step for n in grey.shape)
    grey = grey[:h, :w].reshape(h // step, step, w // step, step).mean((1, 3)) / 255
    sums = [np.pad(np.cumsum(np.cumsum(v, 0), 1), ((1, 0), (1, 0))) for v in (grey, grey * grey)]
    side, unit = len(grey), guess.unit
    anchors, middle = guess.anchors, guess.to_picture(np.array([0.0, EYES_Y]))
    calm = guess.to_picture(np.array([(0.0, 0.13), (-0.11, 0.215), (0.11, 0.215)]))

    def varies(at: np.ndarray, reach: float) -> np.ndarray:
        """Variances in squares around places [.., 2]."""
        low = np.clip(np.rint((at - reach) * side), 0, side - 2).astype(int)
        high = np.clip(np.rint((at + reach) * side), low + 1, side).astype(int)
        (x0, y0), (x1, y1) = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)
        count = (x1 - x0) * (y1 - y0)
        mean, square = ((s[y1, x1] - s[y0, x1] - s[y1, x0] + s[y0, x0]) / count for s in sums)
        return np.asarray(square - mean * mean)

    best, found = -np.inf, (0.0, 0.0, 1.0)
    shifts = np.linspace(-0.06, 0.06, 25)
    dy, dx = np.meshgrid(shifts, shifts, indexing="ij")
    moved = np.stack([dx, dy], axis=-1)[..., None, :]  # [y, x, 1, 2]
    for scale in np.linspace(0.86, 1.16, 11):
        eyes, quiet = (middle + scale * (v - middle) + moved for v in (anchors[:2], calm))
        reach = 0.062 * unit * scale
        score = varies(eyes, reach).min(-1) - varies(quiet, 0.4 * reach).max(-1)
        score = score - 0.02 * (dx * dx + dy * dy) / 0.06**2 - 0.02 * ((scale - 1) / 0.16) ** 2
        at = np.unravel_index(int(score.argmax()), score.shape)
        if score[at] > best:
            best, found = float(score[at]), (float(dx[at]), float(dy[at]), float(scale))

    def placed(x: float, y: float) -> tuple[float, float]:
        at = middle + found[2] * (guess.to_picture(np.array([x, y])) - middle) + found[:2]
        return float(np.clip(at[0], 0, 1)), float(np.clip(at[1], 0, 1))

    told = {}
    for eye, name in zip(guess.eyes, ("Right", "Left"), strict=True):
        told[f"eye{name}"] = placed(eye.x, eye.iris[1])
        told[f"lidUpper{name}"] = placed(eye.x, float(eye.top.min()))
        told[f"lidLower{name}"] = placed(eye.x, float(eye.low.max()))
    told |= _mouth(rgba, guess, placed)
    told["chin"], told["headCentre"] = placed(guess.mouth.x, guess.chin), placed(*guess.centre)
    return {name: told[name] for name in POINTS}


def _mouth(
    rgba: np.ndarray, guess: Geometry, placed: Callable[[float, float], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The corners of the mouth: what, below the nose, is least like the cheeks; the guess's where nothing is."""
    side, (x, y) = len(rgba), (guess.mouth.x, float(guess.mouth.line.mean()))
    columns, rows = np.linspace(-0.115, 0.115, 93), np.linspace(y - 0.055, min(y + 0.06, guess.chin - 0.012), 47)
    at = np.array([[placed(x + dx, v) for dx in columns] for v in rows])  # [rows, columns, 2]
    i, j = np.moveaxis(np.clip(at * side, 0, side - 1).astype(int), -1, 0)
    cheeks = [placed(x + way * 0.11, y - 0.035) for way in (-1, 1)]
    skin = np.mean([rgba[int(v * (side - 1)), int(u * (side - 1)), :3] for u, v in cheeks], axis=0)
    colours = rgba[j, i, :3].astype(np.float64)
    # Redder or darker than skin, not the outline of the jaw, which reaches the sides.
    off = (colours[..., 1] - skin[1] < -34) & (np.abs(columns) < 0.1)
    width, middle = guess.mouth.width, x
    if off.sum() >= 12:
        heights, places = np.nonzero(off)
        y = float(np.quantile(rows[heights], 0.4))
        low, high = (float(np.quantile(columns[places], q)) for q in (0.04, 0.96))
        width, middle = float(np.clip((high - low) / 2, 0.03, 0.09)), x + (low + high) / 2
    return {"mouthRight": placed(middle - width, y), "mouthLeft": placed(middle + width, y)}
