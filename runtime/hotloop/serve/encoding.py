"""Finished pixels -> the bytes of a frame: colour as JPEG by libjpeg-turbo (simplejpeg), alpha and raw pixels by LZ4.

At 512 x 512 on one thread a JPEG takes half a millisecond and alpha a thirtieth of that; PNG and WebP with alpha take
20 to 40 times as long.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import lz4.block
import numpy as np
import simplejpeg
from PIL import Image

from ..errors import InputError
from .fields import Moved, pack_fields
from .wire import FORMATS, FRAME

__all__ = ["Encoded", "encode", "open_picture", "over"]

QUALITY = 90
_FORMATS = ("PNG", "JPEG", "WEBP")


class Encoded(NamedTuple):
    """kind: the number of its format, which is JPEG's where there is no alpha to send beside it."""

    kind: int
    colour: bytes
    alpha: bytes


def encode(pixels: np.ndarray, kind: int, moved: Moved | None = None) -> Encoded:
    """uint8 [H, W, 3], or [H, W, 4] whose colours are multiplied by alpha -> a frame in one of `FORMATS`.

    moved: what the pixels were drawn from, for who draws them; without it such a viewer gets JPEG and alpha.
    """
    if kind == FORMATS["warp"]:
        if moved is not None:
            return Encoded(kind, pack_fields(moved), b"")
        kind = FORMATS["jpeg+alpha"]
    deep = pixels.shape[2] == 4
    if kind == FORMATS["rgba-lz4"]:
        whole = pixels if deep else np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        return Encoded(kind, lz4.block.compress(np.ascontiguousarray(whole), store_size=False), b"")
    space = "RGBX" if deep else "RGB"
    colour = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, space, "420", True)
    if not deep or kind == FORMATS["jpeg"]:
        return Encoded(FORMATS["jpeg"], colour, b"")
    return Encoded(kind, colour, lz4.block.compress(np.ascontiguousarray(pixels[:, :, 3]), store_size=False))


def over(data: bytes, ground: tuple[int, int, int]) -> tuple[float, np.ndarray]:
    """A frame of format rgba-lz4 -> when it was begun (seconds), and uint8 [H, W, 3], even sides, over the ground."""
    width, height = struct.unpack_from("<HH", data, 20)
    (taken,) = struct.unpack_from("<Q", data, 40)
    raw = lz4.block.decompress(data[FRAME.size :], uncompressed_size=4 * width * height)
    rgba = np.frombuffer(raw, np.uint8).reshape(height, width, 4)[: height // 2 * 2, : width // 2 * 2]
    made = np.ascontiguousarray(rgba[..., :3])
    clear = 255 - np.arange(256)
    for channel, level in enumerate(ground):
        if level:  # colours are premultiplied: the sum stays below 256
            made[..., channel] += ((clear * level + 127) // 255).astype(np.uint8)[rgba[..., 3]]
    return taken / 1e6, made


def open_picture(data: bytes, most_pixels: int) -> np.ndarray:
    """A source picture's file -> uint8 [H, W, 3]. Its size is checked before its pixels are read.

    Raises InputError.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if not 0 < width * height <= most_pixels:
                raise InputError("live", f"a picture must have at most {most_pixels} pixels", f"{width} x {height}")
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Image.DecompressionBombError:  # more than Pillow itself opens
        raise InputError("live", f"a picture must have at most {most_pixels} pixels") from None
    except Exception as error:  # a broken file fails in as many ways as there are decoders
        rule = f"a picture must be a readable {', '.join(_FORMATS)}"
        raise InputError("live", rule, type(error).__name__) from None
