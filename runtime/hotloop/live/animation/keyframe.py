"""A keyframe: the picture of an avatar that is animated, what it hides, and where its face's parts lie."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import InputError
from ...files import open_file, read_file
from ..recording import digest
from .geometry import PLACE, Geometry

__all__ = ["ENDING", "SIDE", "Keyframe", "builtin_keyframe", "load_keyframe", "save_keyframe"]

SIDE = 512
ENDING = ".avatar"  # of an avatar in one file
# Of lossless compression: what is committed is packed for a minute, what somebody waits for a second, and 4 % larger.
_EFFORT = {False: {"quality": 100, "method": 6}, True: {"quality": 60, "method": 4}}
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


def save_keyframe(keyframe: Keyframe, place: Path, **more: Any) -> None:
    """Into a folder, or one file where its name ends in .avatar: lossless WebP, the front as PNG, the geometry as JSON;
    more: for its JSON. Raises InputError."""
    if keyframe.reveal is None or keyframe.geometry is None:
        raise InputError(PLACE, "what is saved must have a reveal texture and a geometry", keyframe.name)
    files: dict[str, bytes] = {}
    for name, file in _PICTURES.items():
        if (picture := getattr(keyframe, name)) is not None:
            files[file] = _written(picture, "WEBP", lossless=True, exact=True, **_EFFORT[place.suffix == ENDING])
    if keyframe.front is not None:
        files[_FRONT] = _written(keyframe.front, "PNG", optimize=True)
    told = {"name": keyframe.name, **more, "geometry": keyframe.geometry.as_json()}
    files[_TOLD] = (json.dumps(told) + "\n").encode()
    if place.suffix == ENDING:
        _archive(files, place)
        return
    place.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (place / file).write_bytes(data)


def _written(picture: np.ndarray, kind: str, **how: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, kind, **how)
    return data.getvalue()


def _archive(files: dict[str, bytes], place: Path) -> None:
    """A ZIP archive, whole or not at all; the same files give the same bytes."""
    part = place.with_name(place.name + ".part")
    try:
        with zipfile.ZipFile(part, "w") as archive:  # stored: pictures are packed already
            for file, data in files.items():
                archive.writestr(zipfile.ZipInfo(file), data)
        part.replace(place)
    except OSError as error:
        raise InputError(PLACE, "an avatar's file must be one that can be written", str(place)) from error
    finally:
        part.unlink(missing_ok=True)


def load_keyframe(place: Path) -> Keyframe:
    """What `save_keyframe` wrote. Raises InputError."""
    try:
        if place.is_dir():
            return _loaded(lambda file: read_file(place / file, most=_MOST) if (place / file).exists() else None, place)
        with open_file(place, most=_MOST) as opened, zipfile.ZipFile(opened) as archive:
            held = {one.filename: one.file_size for one in archive.infolist()}
            if sum(held.values()) > _MOST:
                raise InputError(PLACE, f"an avatar's file must hold at most {_MOST} bytes", str(place))
            return _loaded(lambda file: archive.read(file) if file in held else None, place)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile, NotImplementedError,
            RuntimeError, zlib.error) as error:  # fmt: skip
        if isinstance(error, InputError):
            raise
        rule = f"an avatar must be a folder or {ENDING} file with {_TOLD} and its pictures, whole: {error}"
        raise InputError(PLACE, rule, str(place)) from error


def _loaded(read: Callable[[str], bytes | None], place: Path) -> Keyframe:
    told = json.loads((read(_TOLD) or b"").decode("utf-8"))
    geometry = Geometry.of_json(told["geometry"])
    found = {name: _opened(read(file), "WEBP", "RGBA") for name, file in _PICTURES.items()}
    front = _opened(read(_FRONT), "PNG", "L")
    if found["rgba"] is None:
        raise InputError(PLACE, f"an avatar must hold {_PICTURES['rgba']}", str(place))
    return Keyframe(**found, front=front, geometry=geometry, name=str(told.get("name", "")))  # type: ignore[arg-type]


def builtin_keyframe() -> Keyframe:
    """The avatar that comes with hotloop, made by models/avatar/showcase.py."""
    return load_keyframe(_ASSETS)


def _opened(data: bytes | None, kind: str, mode: str) -> np.ndarray | None:
    if data is None:
        return None
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        if max(image.size) > _LARGEST:
            raise InputError(PLACE, f"a keyframe has at most {_LARGEST} pixels a side", f"{image.size}")
        return np.array(image.convert(mode))
