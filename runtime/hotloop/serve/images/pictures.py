"""Pictures that come with a request, looked at without being decoded; and pictures that go out, encoded."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .limits import Limits
from .refusals import Refusal

__all__ = ["FORMATS", "Picture", "base64_picture", "encoded", "look"]

_READ = ("PNG", "JPEG", "WEBP")
# What may be asked for -> Pillow's name and the content type.
FORMATS = {"png": ("PNG", "image/png"), "jpeg": ("JPEG", "image/jpeg"), "webp": ("WEBP", "image/webp")}


@dataclass(frozen=True)
class Picture:
    """A file and its (width, height); alpha: whether it can be transparent.

    reads  how a worker reads it: "image"; or as a mask, white where the picture is to be repainted ("white"), black
           ("black"), or transparent ("alpha")
    """

    data: bytes
    size: tuple[int, int]
    reads: str = "image"
    alpha: bool = False

    def as_mask(self, reads: str, of: Picture, param: str) -> Picture:
        """Raises Refusal where it has not the picture's size."""
        if self.size != of.size:
            raise Refusal("invalid_value", f"{param} must have the size of the picture", param=param)
        return Picture(self.data, self.size, reads, self.alpha)


def look(data: bytes, limits: Limits, param: str) -> Picture:
    """The header of a file alone: its format and size. Raises Refusal."""
    try:
        with Image.open(io.BytesIO(data), formats=_READ) as image:
            (width, height), animated = image.size, getattr(image, "is_animated", False)
            alpha = image.has_transparency_data
    except Exception:  # a broken header fails in as many ways as there are decoders
        raise Refusal("invalid_picture", param=param) from None
    if animated or not 0 < width * height <= limits.picture_pixels:
        raise Refusal("invalid_picture", param=param)
    return Picture(data, (width, height), alpha=alpha)


def base64_picture(text: Any, limits: Limits, param: str) -> Picture:
    """A picture as JSON carries it: base64, or a data URL of it. Raises Refusal; any other URL is not opened."""
    if not isinstance(text, str):
        raise Refusal("invalid_value", f"{param} must be a picture in base64", param=param)
    head = text[:64].lstrip().lower()
    if head.startswith("data:"):
        kind, comma, text = text.partition(",")
        if not comma or not kind.strip().lower().endswith(";base64"):
            raise Refusal("invalid_picture", param=param)
    elif "://" in head:
        raise Refusal("url_refused", param=param)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal("invalid_picture", param=param) from None
    return look(data, limits, param)


def encoded(
    picture: tuple[int, int, bytes], kind: str, quality: int | None = None, text: dict[str, str] | None = None
) -> bytes:
    """RGB or RGBA pixels -> a file of `FORMATS`; a JPEG lies on white where they are transparent.

    quality 0..100: of JPEG and WebP; text: of PNG
    """
    from ...image.image import encode

    width, height, pixels = picture
    mode = "RGBA" if len(pixels) == 4 * width * height else "RGB"
    image = Image.frombytes(mode, (width, height), pixels)
    if mode == "RGBA" and kind == "jpeg":
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground.convert("RGB")
    return encode(image, FORMATS[kind][0], text=text, quality=quality)
