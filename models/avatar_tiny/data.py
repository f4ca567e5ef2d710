"""The training set, drawn once: `python models/avatar_tiny/data.py` writes build/{train,heldout}_*.npy.

Seeds count up from zero; the faces whose attribute combination is held out go to the held-out set and to no other.
"""

from __future__ import annotations

import argparse
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from render import Face, held_out, labels, render, sample_face

__all__ = ["WORK", "draw", "load", "seeds", "write"]

WORK = Path(__file__).parent / "build"
SIZE = 64


def seeds(count: int, *, held: bool, start: int = 0) -> list[int]:
    """The first `count` seeds, from `start` up, whose faces are (or are not) held out."""
    found: list[int] = []
    while len(found) < count:
        if held_out(sample_face(start)) == held:
            found.append(start)
        start += 1
    return found


def _detail(boxes: dict[str, tuple[float, float, float, float]], size: int) -> np.ndarray:
    """uint8 [size, size]: 1 inside the boxes of eyes and mouth, where the expression is."""
    mask = np.zeros((size, size), np.uint8)
    for part in ("eyes", "mouth"):
        x0, y0, x1, y1 = (round(v * size) for v in boxes[part])
        mask[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = 1
    return mask


def _one(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    face = sample_face(seed)
    drawn = render(face, SIZE)
    return drawn.image, np.packbits(_detail(drawn.boxes, SIZE)), labels(face).astype(np.int8)


def draw(chosen: list[int], *, processes: int = 1) -> dict[str, np.ndarray]:
    """images uint8 [n, 64, 64, 3], detail packed bits [n, 512], labels int8 [n, attributes], seeds int64 [n]."""
    if processes > 1:
        with Pool(processes) as pool:
            rows = pool.map(_one, chosen, chunksize=256)
    else:
        rows = [_one(seed) for seed in chosen]
    names = ("images", "detail", "labels")
    return {k: np.stack(v) for k, v in zip(names, zip(*rows, strict=True), strict=True)} | {"seeds": np.array(chosen)}


def write(folder: Path, count: int, held_count: int, *, processes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("heldout", held_count), ("train", count)):
        for name, array in draw(seeds(n, held=split == "heldout"), processes=processes).items():
            np.save(folder / f"{split}_{name}.npy", array)


def load(split: str, folder: Path = WORK) -> dict[str, np.ndarray]:
    """The arrays of a split ("train" or "heldout"), memory-mapped."""
    return {k: np.load(folder / f"{split}_{k}.npy", mmap_mode="r") for k in ("images", "detail", "labels", "seeds")}


def faces(chosen: np.ndarray) -> list[Face]:
    return [sample_face(int(seed)) for seed in chosen]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--held", type=int, default=2_048)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    write(WORK, options.count, options.held, processes=options.processes)
