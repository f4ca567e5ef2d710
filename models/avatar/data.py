"""Shards of drawn faces: `python models/avatar/train.py --stages data` fills build/data, a file per array and shard.

kind     what a row is                                                      arrays (beside seeds)
faces    a face as captions describe it, in 6 % two people                 images labels boxes controls
even     every attribute value often: for readers and the autoencoder      the same
other    `even` of other seeds: for the probe that judges                  the same
pairs    one person in two frames, the second a moment later               keys targets reveals backdrops labels boxes
                                                                            controls [n, 2, controls]
judged   `pairs` of other seeds: for the probe that judges                 the same
parts    `even` with part masks                                            images parts mattes
large    faces at 512 as 128-pixel crops, and whole at 128                 lows backdrops crops places

Pictures uint8 [n, 128, 128, 3], with alpha premultiplied [.., 4]; boxes float16 [n, .., 2, 4] of eyes and mouth in unit
coordinates; labels int8 [n, attributes], -1 where unknown. Each kind has its own seeds; people of a held-out attribute
combination go to the kinds' "held" splits and to no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from controls import to_vector
from render import (
    ATTRIBUTES,
    PARTS,
    Face,
    held_out,
    labels,
    render,
    render_two,
    reveal,
    sample_face,
    sample_pair,
    sample_two,
)
from render_scene import backdrop

__all__ = ["KINDS", "SHARD", "SIZE", "Shards", "composite", "couple", "fill", "seeds"]

SIZE = 128
SHARD = 512
LARGE_SHARD = 128  # rows of half a megabyte
COUPLES = 0.06
_NAMES = list(ATTRIBUTES)
Row = dict[str, np.ndarray]


def _boxes(found: dict[str, tuple[float, float, float, float]]) -> np.ndarray:
    """float16 [2, 4]: eyes and mouth; nothing where they do not show."""
    none = (0.0, 0.0, 0.0, 0.0)
    return np.array([found.get("eyes", none), found.get("mouth", none)], np.float16)


def couple(seed: int) -> bool:
    """True for the seeds of `faces` that are two people."""
    return seed * 2654435761 % 2**32 < COUPLES * 2**32


def _face(seed: int, *, natural: bool) -> Row:
    if natural and couple(seed):
        drawn = render_two(sample_two(seed), SIZE)
        return {
            "images": drawn.image, "labels": np.full(len(_NAMES), -1, np.int8), "boxes": _boxes(drawn.boxes),
            "controls": np.zeros(len(to_vector({})), np.float16),
        }  # fmt: skip
    face = sample_face(seed, natural=natural)
    drawn = render(face, SIZE)
    return {
        "images": drawn.image, "labels": labels(face).astype(np.int8), "boxes": _boxes(drawn.boxes),
        "controls": to_vector(face.controls).astype(np.float16),
    }  # fmt: skip


def _pair(seed: int) -> Row:
    face, first, second = sample_pair(seed)
    key = render(face, SIZE, controls=first, background=False)
    target = render(face.later(), SIZE, controls=second, background=False)
    known = labels(face).astype(np.int8)
    for name in ("expression", "view"):
        known[_NAMES.index(name)] = -1  # held by controls, between the names
    return {
        "keys": key.rgba, "targets": target.rgba, "reveals": reveal(face, SIZE, controls=first),
        "backdrops": backdrop(face["background"], SIZE, face.seed), "labels": known,
        "boxes": np.stack([_boxes(key.boxes), _boxes(target.boxes)]),
        "controls": np.stack([to_vector(first), to_vector(second)]).astype(np.float16),
    }  # fmt: skip


def _parts(seed: int) -> Row:
    drawn = render(sample_face(seed, natural=False).changed(defect="none"), SIZE)
    masks = np.stack([drawn.masks[part] for part in PARTS])
    return {"images": drawn.image, "parts": masks.argmax(0).astype(np.uint8), "mattes": drawn.rgba[..., 3]}


def _large(seed: int) -> Row:
    """Six crops of the truth at 512, most of them over face and outline; places: their corners in pixels of 128."""
    face = sample_face(seed, natural=seed % 2 == 0).changed(defect="none")
    high, low = render(face, 4 * SIZE, background=False), render(face, SIZE, background=False)
    rng = np.random.RandomState(seed % 2**31)
    boxes = _boxes(low.boxes).astype(np.float32) * SIZE
    centres = [*(box.reshape(2, 2).mean(0) for box in boxes), *rng.uniform(16, SIZE - 16, (4, 2))]
    places = np.array([np.clip(c - 16 + rng.randint(-6, 7, 2), 0, SIZE - 32) for c in centres]).astype(np.uint8)
    crops = [high.rgba[4 * int(y) : 4 * int(y) + SIZE, 4 * int(x) : 4 * int(x) + SIZE] for x, y in places]
    return {
        "lows": low.rgba, "backdrops": backdrop(face["background"], SIZE, face.seed),
        "crops": np.stack(crops), "places": places,
    }  # fmt: skip


def _person(seed: int, *, natural: bool) -> Face:
    return sample_face(seed, natural=natural)


# kind -> how a row is drawn, whose combination decides its split, the first seed.
KINDS: dict[str, tuple[Callable[[int], Row], Callable[[int], Face], int]] = {
    "faces": (partial(_face, natural=True), partial(_person, natural=True), 0),
    "even": (partial(_face, natural=False), partial(_person, natural=False), 10_000_000),
    "other": (partial(_face, natural=False), partial(_person, natural=False), 20_000_000),
    "pairs": (_pair, lambda seed: sample_pair(seed)[0], 30_000_000),
    "judged": (_pair, lambda seed: sample_pair(seed)[0], 40_000_000),
    "parts": (_parts, partial(_person, natural=False), 50_000_000),
    "large": (_large, partial(_person, natural=False), 60_000_000),
}  # fmt: skip


def seeds(kind: str, *, held: bool) -> Iterator[int]:
    """The seeds of a split of a kind, without end."""
    _, person, start = KINDS[kind]
    seed = start
    while True:
        if held_out(person(seed)) == held:
            yield seed
        seed += 1


def _shard_seeds(kind: str, held: bool, index: int, size: int) -> list[int]:
    """Shards are drawn in any order by several processes: each looks for its seeds from its own start on."""
    _, person, start = KINDS[kind]
    span = size * (80 if held else 2)
    found: list[int] = []
    seed = start + index * span
    while len(found) < size and seed < start + (index + 1) * span:
        if held_out(person(seed)) == held:
            found.append(seed)
        seed += 1
    return found


def _write(folder: Path, kind: str, held: bool, index: int, size: int) -> None:
    if _place(folder, kind, held, index).exists():
        return
    draw = KINDS[kind][0]
    chosen = _shard_seeds(kind, held, index, size)
    rows = [draw(seed) for seed in chosen]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {"seeds": np.array(chosen)}
    temporary = folder / f".{kind}-{held}-{index}.{os.getpid()}"
    temporary.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(temporary / f"{name}.npy", array)
    os.rename(temporary, _place(folder, kind, held, index))


def _place(folder: Path, kind: str, held: bool, index: int) -> Path:
    return folder / f"{kind}{'-held' if held else ''}-{index:03d}"


def _job(job: tuple[Path, str, bool, int, int]) -> str:
    _write(*job)
    return job[1]


def fill(
    folder: Path, wanted: Sequence[tuple[str, int, bool]], *, processes: int = 1, shard: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> bool:  # fmt: skip
    """Draws the shards that are missing, in order; wanted: (kind, rows, held). False when it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[Any] = []
    for kind, rows, held in wanted:
        size = shard or (LARGE_SHARD if kind == "large" else SHARD)
        jobs += [(folder, kind, held, i, size) for i in range(-(-rows // size))]
    jobs = [job for job in jobs if not _place(*job[:4]).exists()]
    if processes <= 1:
        for job in jobs:
            if stop():
                return False
            _job(job)
        return True
    with get_context("fork").Pool(processes) as pool:
        for _ in pool.imap(_job, jobs):
            if stop():
                pool.terminate()
                return False
    return True


class Shards:
    """All rows of a kind that are drawn by now, memory-mapped."""

    def __init__(self, folder: Path, kind: str, *, held: bool = False, most: int = 0) -> None:
        self.folder, self.kind, self.held, self.most = folder, kind, held, most
        self.parts: list[dict[str, np.ndarray]] = []
        self.refresh()

    def refresh(self) -> None:
        """Takes up shards that have been drawn since."""
        while (place := _place(self.folder, self.kind, self.held, len(self.parts))).exists():
            if self.most and len(self) >= self.most:
                break
            self.parts.append({p.stem: np.load(p, mmap_mode="r") for p in sorted(place.glob("*.npy"))})
        self.ends = np.cumsum([len(part["seeds"]) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return sum(len(part["seeds"]) for part in self.parts)

    def rows(self, index: np.ndarray, *names: str) -> list[np.ndarray]:
        """The named arrays at these rows, in the order of `index`."""
        shard = np.searchsorted(self.ends, index, side="right")
        inside = index - np.concatenate([[0], self.ends])[shard]
        return [np.stack([self.parts[s][name][i] for s, i in zip(shard, inside, strict=True)]) for name in names]

    def all(self, name: str) -> np.ndarray:
        return np.concatenate([part[name] for part in self.parts])


def composite(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Premultiplied uint8 [.., 4] over opaque [.., 3]."""
    clear = 255 - rgba[..., 3:].astype(np.uint16)
    return (rgba[..., :3] + (background * clear + 127) // 255).clip(0, 255).astype(np.uint8)
