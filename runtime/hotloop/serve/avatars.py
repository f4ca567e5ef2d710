"""A picture that a client brings as the session's avatar: how it comes, and what the worker makes of it.

    message   little endian: b"HLA1", u32 id, u32 bytes of JSON, u32 bytes of the picture's file; the JSON; the file
    JSON      {"points": {name: [x, y]}}  show it;  {"eyes": [[x, y], [x, y]]} or {}  only guess its points; "name"

Without a file it is the one that this connection sent before: points are moved, pictures are not sent again. A picture
is held to the limits of source pictures.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from ..live.animation.geometry import read_points
from ..live.animation.keyframe import Keyframe
from ..live.animation.opening import guessed, keyframe_from
from .limits import Limits

if TYPE_CHECKING:
    from ..pipeline import Pipeline

__all__ = ["MAGIC", "Brought", "brought", "guess_of", "keyframe_of", "number_of"]

PLACE = "live"
MAGIC = b"HLA1"
HEAD = struct.Struct("<4sIII")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_JSON, _MOST_NAME = 4096, 64


class Brought(NamedTuple):
    """points: None, they are to be guessed, from the eyes (the person's right, left) where those are told."""

    id: int
    name: str
    points: dict[str, tuple[float, float]] | None
    eyes: list[list[float]] | None
    data: bytes

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "points": self.points, "eyes": self.eyes}


def brought(message: bytes, limits: Limits, before: bytes) -> Brought:
    """before: the file that came before. Raises InputError."""
    if len(message) < HEAD.size:
        raise InputError(PLACE, "an avatar's message must have its header: HLA1, id, two lengths", len(message))
    _, number, text, size = HEAD.unpack_from(message)
    if HEAD.size + text + size != len(message):
        raise InputError(PLACE, f"the header tells {text} + {size} bytes", len(message) - HEAD.size)
    if text > _MOST_JSON:
        raise InputError(PLACE, f"an avatar's JSON must have at most {_MOST_JSON} bytes", text)
    if size > limits.picture_bytes:
        raise InputError(PLACE, f"a picture must have at most {limits.picture_bytes} bytes", size)
    try:
        told = json.loads(message[HEAD.size : HEAD.size + text])
    except (ValueError, RecursionError):
        raise InputError(PLACE, "an avatar's message must be JSON", text) from None
    if not isinstance(told, dict):
        raise InputError(PLACE, "an avatar's message must be a JSON object", type(told).__name__)
    if unknown := sorted(set(told) - {"points", "eyes", "name"}):
        raise InputError(PLACE, "an avatar's message has points, eyes and name", unknown[0][:_MOST_NAME])
    data = message[HEAD.size + text :] if size else before
    if not data:
        raise InputError(PLACE, "the first message must have the picture's file", 0)
    name = told.get("name", "")
    if not isinstance(name, str) or len(name) > _MOST_NAME or not (name.isprintable() or not name):
        raise InputError(PLACE, f"name must be printable, {_MOST_NAME} characters at most", name)
    points = None if told.get("points") is None else read_points(told["points"])
    return Brought(number, name, points, _eyes(told.get("eyes")), data)


def number_of(message: bytes) -> int | None:
    """The id of a message that may be broken."""
    return struct.unpack_from("<I", message, 4)[0] if len(message) >= 8 else None


def _eyes(told: Any) -> list[list[float]] | None:
    if told is None:
        return None
    pairs: list[list[float]] = told if isinstance(told, list) else []
    if len(pairs) != 2 or not all(isinstance(one, list) and len(one) == 2 and all(map(_share, one)) for one in pairs):
        raise InputError(PLACE, "eyes must be two of [x, y], shares of the picture in 0..1", told)
    (x0, y0), (x1, y1) = pairs
    if not x1 - x0 > 0.02 or abs(y1 - y0) > x1 - x0:
        raise InputError(PLACE, "the person's right eye must lie to the left of the left one", told)
    return pairs


def _share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1


# In the worker.


def guess_of(data: bytes, told: Mapping[str, Any], pixels: int, pipeline: Pipeline | None) -> dict[str, Any]:
    """points, by, and the picture's size as it is shown. Raises InputError for what is no picture."""
    with _opened(data, pixels) as image:
        eyes = None if told["eyes"] is None else np.array(told["eyes"], np.float64)
        found, size = guessed(image, eyes=eyes, pipeline=pipeline)
    points = {name: [round(x, 5), round(y, 5)] for name, (x, y) in found.points.items()}
    return {"points": points, "by": found.by, "size": size}


def keyframe_of(data: bytes, told: Mapping[str, Any], pixels: int, side: int) -> Keyframe:
    """As `keyframe_from` makes it of the same file and points. Raises InputError."""
    with _opened(data, pixels) as image:
        return keyframe_from(image, points=told["points"], side=side, name=told["name"])


def _opened(data: bytes, most: int) -> Image.Image:
    """Its size is checked before its pixels are read."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if not 0 < width * height <= most:
            raise InputError(PLACE, f"a picture must have at most {most} pixels", f"{width} x {height}")
        image.load()
    except InputError:
        raise
    except Image.DecompressionBombError:  # more than Pillow itself opens
        raise InputError(PLACE, f"a picture must have at most {most} pixels") from None
    except Exception as error:  # a broken file fails in as many ways as there are decoders
        raise InputError(PLACE, f"a picture must be a readable {', '.join(_FORMATS)}", type(error).__name__) from None
    return image
