"""The ten points of a face found from masks of its parts: those of a bundle's segmenter, or somebody's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .geometry import POINTS

__all__ = ["points_of_parts"]

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
