"""A keyframe: the picture of an avatar that is animated, what it hides, and where its face's parts lie."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import InputError
from ...files import read_file
from ..recording import digest
from .geometry import PLACE, Geometry

__all__ = ["SIDE", "Keyframe", "builtin_keyframe", "load_keyframe", "save_keyframe"]

SIDE = 512
_LARGEST, _MOST = 4096, 1 << 27  # pixels a side, bytes of a file
_ASSETS = Path(__file__).parents[2] / "assets" / "avatar-live"
_PICTURES = {"rgba": "key.webp", "reveal": "reveal.webp", "bare": "bare.webp", "loose": "loose.webp"}
_FRONT, _TOLD = "front.png", "avatar.json"


@dataclass(frozen=True, eq=False)
class Keyframe:
    """All pictures are premultiplied uint8 [S, S, 4] and show the same place.

    rgba     the avatar, eyes open, mouth closed; its alpha is the matte
    reveal   what that hides and motion shows: eyes closed, mouth open; no brows where `loose` has them. The networks of
             an animator make their own
    front    uint8 [S, S]: what lies before the eyes and never moves with them (fringe, glasses); None: nothing
    geometry where its parts lie; None: unknown, which the networks do not need
    bare, loose  the avatar without irises and brows; whole irises, nothing before them, and brows: so that they move by
             themselves. Both or none: then they move with what is around them
    name     for people
    """

    rgba: np.ndarray
    reveal: np.ndarray | None
    front: np.ndarray | None
    geometry: Geometry | None
    name: str = ""
    bare: np.ndarray | None = None
    loose: np.ndarray | None = None

    def __post_init__(self) -> None:
        side = len(self.rgba)
        for name, array, shape in (
            *((name, getattr(self, name), (side, side, 4)) for name in _PICTURES), ("front", self.front, (side, side)),
        ):  # fmt: skip
            if array is not None and (array.dtype != np.uint8 or array.shape != shape or side < 16):
                rule = f"{name} of a keyframe must be uint8 {list(shape)}, 16 pixels a side at least"
                raise InputError(PLACE, rule, f"{array.dtype} {list(array.shape)}")
        if (self.bare is None) != (self.loose is None):
            raise InputError(PLACE, "bare and loose of a keyframe are given together or not at all", self.name)

    @property
    def arrays(self) -> dict[str, np.ndarray | None]:
        """All pictures by name."""
        return {name: getattr(self, name) for name in (*_PICTURES, "front")}

    @cached_property
    def id(self) -> str:
        """SHA-256 of all that it is."""
        parts = {name: None if one is None else digest(one) for name, one in self.arrays.items()}
        geometry = None if self.geometry is None else self.geometry.as_json()
        return digest(np.frombuffer(json.dumps([parts, geometry]).encode(), np.uint8))

    @cached_property
    def solid(self) -> tuple[bool, bool, bool, bool]:
        """Whether something lies at the left, top, right and bottom border: what is there must not leave it."""
        alpha = self.rgba[..., 3]
        return tuple(bool((edge > 8).any()) for edge in (alpha[:, 0], alpha[0], alpha[:, -1], alpha[-1]))  # type: ignore[return-value]


def save_keyframe(keyframe: Keyframe, folder: Path, **more: Any) -> None:
    """Into a folder: lossless WebP, the front as PNG, the geometry as JSON; more: for its JSON. Raises InputError."""
    if keyframe.reveal is None or keyframe.geometry is None:
        raise InputError(PLACE, "what is saved must have a reveal texture and a geometry", keyframe.name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in _PICTURES.items():
        if (picture := getattr(keyframe, name)) is not None:
            Image.fromarray(picture).save(folder / file, lossless=True, exact=True, quality=100, method=6)
    if keyframe.front is not None:
        Image.fromarray(keyframe.front).save(folder / _FRONT, optimize=True)
    told = {"name": keyframe.name, **more, "geometry": keyframe.geometry.as_json()}
    (folder / _TOLD).write_text(json.dumps(told) + "\n", "utf-8")


def load_keyframe(folder: Path) -> Keyframe:
    """What `save_keyframe` wrote. Raises InputError."""
    try:
        told = json.loads(read_file(folder / _TOLD, most=_MOST).decode("utf-8"))
        geometry = Geometry.of_json(told["geometry"])
        found = {name: _opened(folder / file, "WEBP", "RGBA") for name, file in _PICTURES.items()}
        front = _opened(folder / _FRONT, "PNG", "L")
        if found["rgba"] is None:
            raise InputError(PLACE, f"an avatar's folder must hold {_PICTURES['rgba']}", str(folder))
        return Keyframe(**found, front=front, geometry=geometry, name=str(told.get("name", "")))  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        rule = f"an avatar's folder must hold {_TOLD} and its pictures, whole: {error}"
        raise InputError(PLACE, rule, str(folder)) from error


def builtin_keyframe() -> Keyframe:
    """The avatar that comes with hotloop, made by models/avatar/showcase.py."""
    return load_keyframe(_ASSETS)


def _opened(file: Path, kind: str, mode: str) -> np.ndarray | None:
    if not file.exists():
        return None
    with Image.open(io.BytesIO(read_file(file, most=_MOST)), formats=(kind,)) as image:
        if max(image.size) > _LARGEST:
            raise InputError(PLACE, f"a keyframe has at most {_LARGEST} pixels a side", f"{image.size}")
        return np.array(image.convert(mode))
