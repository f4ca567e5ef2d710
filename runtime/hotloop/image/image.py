"""Pictures: files and arrays in, network tensors and files out; sizes, crops and masks.

Inside hotloop a picture is a PIL image in mode RGB and a mask is one in mode L, white where the picture is to be
repainted. Colour profiles are not applied: values are taken as sRGB.
"""

from __future__ import annotations

import io
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFilter
from PIL.PngImagePlugin import PngInfo

from hotloop_kernels import rgb

from ..errors import InputError
from ..files import open_file

__all__ = [
    "LIMIT_PIXELS", "blur", "centre_crop", "contact_sheet", "encode", "fill", "from_array", "latent_mask",
    "mask_array", "mask_region", "open_image", "open_mask", "paste", "read_text", "resize", "save", "to_float",
    "to_rgb8",
]  # fmt: skip

LIMIT_PIXELS = 64_000_000
# Bytes of a file: twice what so many pixels of 16 bits take in the plainest format.
_MOST = 1 << 30

# What is read: PIL's other formats either start outside programs (EPS) or are not pictures anyone edits.
_READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# The chunks of a PNG that its pixels are made of.
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# EXIF's orientation -> what makes it upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_WRITE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_OPTIONS: dict[str, dict[str, int]] = {
    "PNG": {"compress_level": 6},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
}

Source = str | os.PathLike[str] | Image.Image | npt.NDArray[np.generic]
Size = tuple[int, int]
Box = tuple[int, int, int, int]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


# --- In ---


def open_image(source: Source, *, limit_pixels: int = LIMIT_PIXELS, place: str = "image") -> Image.Image:
    """A picture as PIL RGB, upright (EXIF), on white where it was transparent; of an animation, the first frame.

    Metadata that is broken counts as none: whatever pixels can be read are read.

    source: a path (PNG, JPEG, WebP, BMP, GIF, TIFF, PPM), a PIL image, or an array [H, W], [H, W, 1 | 3 | 4] of uint8,
    uint16 (65535 is full), bool, or float in [0, 1]. 16-bit, palette, CMYK and grey pictures become 8-bit RGB;
    PIL's mode I is 8-bit where nothing in it exceeds 255, else 16-bit; PIL's mode F is refused.
    Raises InputError (at `place`) for a file that cannot be read or is cut short, and for more than `limit_pixels`
    pixels: that check reads the header alone.
    """
    return _open(source, "RGB", 255, limit_pixels, place)


def open_mask(
    source: Source, size: Size | None = None, *, limit_pixels: int = LIMIT_PIXELS, place: str = "mask_image"
) -> Image.Image:
    """A mask as PIL L, white = repaint; transparent parts count as black.

    Takes what open_image takes, and arrays of 0 and 1 of any type, as diffusers does. `size` is the (width, height) of
    the picture it belongs to: any other size, a file or PIL image of 0 and 1, which would count as black, and
    whatever open_image refuses, raises InputError.
    """
    if isinstance(source, np.ndarray) and source.size and source.dtype.kind in "iu" and set(_range(source)) <= {0, 1}:
        source = source.astype(bool)
    mask = _open(source, "L", 0, limit_pixels, place)
    if mask.getextrema()[1] == 1:
        rule = "mask must be white, 255, where the image is to be repainted (only arrays may be of 0 and 1)"
        raise InputError(place, rule, "greatest value is 1")
    if size is not None and mask.size != size:
        rule = f"mask must have the image's size, {size[0]} x {size[1]}"
        raise InputError(place, rule, "{} x {}".format(*mask.size))
    return mask


def _range(array: npt.NDArray[np.generic]) -> tuple[int, int]:
    return int(array.min()), int(array.max())


def _open(source: Source, mode: str, matte: int, limit_pixels: int, place: str) -> Image.Image:
    name = source if isinstance(source, (str, os.PathLike)) else type(source).__name__
    # PIL's warnings of large or odd files stay: filters belong to the whole process, and to whoever runs it.
    try:
        if isinstance(source, np.ndarray):
            return _flatten(_from_array(source, limit_pixels, place), mode, matte, place)
        if isinstance(source, Image.Image):
            _check_pixels(source.size, limit_pixels, place, name)
            return _flatten(source, mode, matte, place)
        with open_file(source, most=_MOST) as file:
            try:
                return _read(file, mode, matte, limit_pixels, place, name)
            except InputError:
                raise
            except Exception:
                file.seek(0)
                if (pixels := _pixel_chunks(file)) is None:
                    raise
                return _read(pixels, mode, matte, limit_pixels, place, name)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning, where filters make it one
        raise InputError(place, f"image must have at most {limit_pixels} pixels", str(name)) from None
    except Image.UnidentifiedImageError:
        raise InputError(place, "file must be a " + ", ".join(_READ) + " image", str(name)) from None
    except Exception as error:  # a broken file fails in as many ways as there are decoders
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(place, f"image must be readable ({reason or type(error).__name__})", str(name)) from error


def _read(file: BinaryIO, mode: str, matte: int, limit_pixels: int, place: str, name: object) -> Image.Image:
    with Image.open(file, formats=_READ) as image:
        _check_pixels(image.size, limit_pixels, place, name)
        return _flatten(image, mode, matte, place)


def _pixel_chunks(file: BinaryIO) -> io.BytesIO | None:
    """A PNG without the chunks that its pixels do not need: PIL refuses the whole file for one that is broken."""
    data = file.read(_MOST)
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] in _PIXELS:
            kept.append(data[at:end])
        at = end
    return io.BytesIO(b"".join(kept))


def _check_pixels(size: Size, limit_pixels: int, place: str, name: object) -> None:
    width, height = size
    if width * height > limit_pixels:
        raise InputError(place, f"image must have at most {limit_pixels} pixels", f"{width} x {height} in {name}")
    if width * height == 0:
        raise InputError(place, "image must have at least one pixel", f"{width} x {height} in {name}")


def _from_array(array: npt.NDArray[np.generic], limit_pixels: int, place: str) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(place, "array must be [H, W] or [H, W, 1 | 3 | 4]", array.shape)
    _check_pixels((array.shape[1], array.shape[0]), limit_pixels, place, "array")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(_to_bytes(array, place))


def _to_bytes(array: npt.NDArray[np.generic], place: str) -> U8:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float32)
        if not (values.min() >= 0 and values.max() <= 1):  # false for NaN, too
            raise InputError(place, "float array must lie in [0, 1]", [float(values.min()), float(values.max())])
        return (values * 255).round().astype(np.uint8)
    raise InputError(place, "array must be uint8, uint16, bool or float", str(array.dtype))


def _deep_to_bytes(values: npt.NDArray[np.generic], place: str, *, deep: bool) -> U8:
    """Grey of PIL's 16- and 32-bit modes -> uint8; 32 bits hold 8 or, where a value says so or `deep`, 16."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(place, "values of a 32-bit image must be from 0 to 65535", [low, high])
    return _to_bytes(values.astype(np.uint16 if deep or high > 255 else np.uint8), place)


def _flatten(image: Image.Image, mode: str, matte: int, place: str) -> Image.Image:
    """Upright, 8 bits, on a matte of one grey, in `mode`, with nothing of the file left but its pixels."""
    if image.mode == "F":
        raise InputError(place, "image must have 8 or 16 bits a channel, or be a float array in [0, 1]", "PIL mode F")
    deep = image.mode.startswith("I;16") or image.format == "PPM"  # PIL reads PPM's 16 bits, scaled, as 32
    image = upright(image)
    if image.mode.startswith("I"):
        image = Image.fromarray(_deep_to_bytes(np.asarray(image), place, deep=deep))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, (matte, matte, matte, 255))
        image.alpha_composite(rgba)
        image = image.convert("RGB")
    image = image.convert(mode)  # a copy, even where the mode is already right
    image.info = {}  # PIL writes a source's colour profile and comments into whatever is saved later
    return image


def upright(image: Image.Image) -> Image.Image:
    """As its EXIF orientation says; itself where that says nothing, or is broken."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken in as many ways as there are tags
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


# --- Tensors ---


def to_float(image: Image.Image) -> F32:
    """RGB picture -> f32 [1, 3, H, W] in [-1, 1], equal to diffusers' VaeImageProcessor.preprocess."""
    return rgb.unpack(np.asarray(image)[None])


def to_rgb8(x: F32) -> U8:
    """f32 [N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3], rounded as diffusers' postprocess. Refuses NaN."""
    return rgb.pack(x)


def from_array(pixels: U8) -> list[Image.Image]:
    """uint8 [N, H, W, 3] -> N pictures."""
    return [Image.fromarray(one) for one in pixels]


def mask_array(mask: Image.Image) -> F32:
    """Mask -> f32 [1, 1, H, W], 1 where it is at least one half (repaint), else 0."""
    return (np.asarray(mask)[None, None] >= 128).astype(np.float32)


def latent_mask(mask: F32, factor: int) -> F32:
    """mask_array's [1, 1, H, W] -> f32 [1, 1, H / factor, W / factor], as in diffusers' inpainting.

    Nearest: each cell takes the pixel at its top left corner. H and W must be multiples of factor, else InputError.
    """
    height, width = mask.shape[-2:]
    if height % factor or width % factor:
        raise InputError("mask_image", f"mask's sides must be multiples of {factor}", f"{width} x {height}")
    return np.ascontiguousarray(mask[..., ::factor, ::factor])


# --- Sizes ---


def resize(image: Image.Image, size: Size) -> Image.Image:
    """To exactly `size` (width, height), proportions not kept: Lanczos, diffusers' default."""
    return image.resize(size, Image.Resampling.LANCZOS)


def fill(image: Image.Image, size: Size) -> Image.Image:
    """The whole picture (RGB or L) in the middle of `size` (width, height), proportions kept, its outermost rows or
    columns repeated where it does not reach: diffusers' resize_mode="fill"."""
    width, height = size
    wide = image.width * height > width * image.height
    inner = (width, image.height * width // image.width) if wide else (image.width * height // image.height, height)
    middle = resize(image, (max(1, inner[0]), max(1, inner[1])))
    left, top = width // 2 - middle.width // 2, height // 2 - middle.height // 2
    out = Image.new(image.mode, size)
    out.paste(middle, (left, top))
    # A box without width or height is the edge itself.
    right, bottom = middle.size
    if wide and top:
        out.paste(middle.resize((width, top), box=(0, 0, right, 0)), (0, 0))
        out.paste(middle.resize((width, top), box=(0, bottom, right, bottom)), (0, top + bottom))
    elif left:
        out.paste(middle.resize((left, height), box=(0, 0, 0, bottom)), (0, 0))
        out.paste(middle.resize((left, height), box=(right, 0, right, bottom)), (left + right, 0))
    return out


def centre_crop(image: Image.Image, size: Size) -> Image.Image:
    """The middle of the picture, filling `size` (width, height), proportions kept: diffusers' resize_mode="crop"."""
    width, height = size
    wide = image.width * height >= width * image.height
    cover = (image.width * height // image.height, height) if wide else (width, image.height * width // image.width)
    left, top = cover[0] // 2 - width // 2, cover[1] // 2 - height // 2
    return resize(image, cover).crop((left, top, left + width, top + height))


# --- Masks ---


def blur(mask: Image.Image, radius: float) -> Image.Image:
    """The mask under a Gaussian blur of `radius` pixels (0: unchanged). Raises InputError outside 0 .. 1000."""
    if not 0 <= radius <= 1000:
        raise InputError("mask_blur", "blur radius must be from 0 to 1000 pixels", radius)
    return mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask


def mask_region(mask: Image.Image, *, padding: int = 32, aspect: float = 1.0) -> Box:
    """The (left, top, right, bottom) to crop when only the masked part is repainted.

    The bounding box of all that is not black, padded, then widened to `aspect` (width / height) as far as the picture
    reaches: the region of diffusers' `padding_mask_crop`. Raises InputError where the mask is black, or padding < 0.
    """
    if padding < 0:
        raise InputError("mask_padding", "padding must be at least 0", padding)
    box = mask.getbbox()
    if box is None:
        raise InputError("mask_image", "mask must have a pixel that is not black (white = repaint)", "a black mask")
    left, top = max(box[0] - padding, 0), max(box[1] - padding, 0)
    right, bottom = min(box[2] + padding, mask.width), min(box[3] + padding, mask.height)
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _widen(top, bottom, (right - left) / aspect, mask.height)
    else:
        left, right = _widen(left, right, (bottom - top) * aspect, mask.width)
    return left, top, right, bottom


def _widen(start: int, stop: int, wanted: float, limit: int) -> tuple[int, int]:
    """start .. stop made `wanted` long about its middle, then pushed back into 0 .. limit."""
    more = int(wanted - (stop - start))
    start, length = start - more // 2, stop - start + more
    start = max(min(start, limit - length), 0)
    return start, min(start + length, limit)


def paste(original: Image.Image, generated: Image.Image, mask: Image.Image, *, box: Box | None = None) -> Image.Image:
    """`generated` over `original` through `mask` (L, the original's size; blurred or not).

    Pixels where the mask is 0 stay the original's, bit for bit; where it is 255 they are the generated ones.
    box: where `generated` belongs in the original (mask_region's answer), the middle of it where proportions differ, as
    `fill` leaves them. None: all of the original, to whose size it is resized.
    """
    left, top, right, bottom = box or (0, 0, *original.size)
    if generated.size != (right - left, bottom - top):
        shaped = resize if box is None else centre_crop
        generated = shaped(generated, (right - left, bottom - top))
    canvas = original.copy()
    canvas.paste(generated, (left, top))
    return Image.composite(canvas, original, mask)


# --- Out ---


def encode(
    image: Image.Image, kind: str, *, text: Mapping[str, str] | None = None, quality: int | None = None
) -> bytes:
    """The bytes of a file of `kind` (PNG, JPEG or WEBP); the same picture and text give the same bytes.

    text: PNG text chunks by keyword; the other kinds have none and leave it out. quality: 0..100, of those other kinds,
    95 by default. Raises InputError for a picture with alpha as JPEG, which has none.
    """
    if kind == "JPEG" and image.mode == "RGBA":
        raise InputError("save", "a picture with alpha must be written as PNG or WebP", "JPEG")
    options: dict[str, object] = dict(_OPTIONS[kind])
    if quality is not None and kind != "PNG":
        options["quality"] = quality
    if kind == "PNG" and text:
        info = PngInfo()
        for key, value in text.items():
            info.add_text(key, value)
        options["pnginfo"] = info
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def save(image: Image.Image, path: str | os.PathLike[str], *, text: Mapping[str, str] | None = None) -> Path:
    """Write a PNG (with `text`), JPEG or WebP file, as the suffix says; whole or not at all. Returns the path.

    Folders that are missing are made. Raises InputError for another suffix, a picture with alpha as JPEG, or a place
    that cannot be written.
    """
    path = Path(path)
    kind = _WRITE.get(path.suffix.lower())
    if kind is None:
        raise InputError("save", "file name must end in " + ", ".join(_WRITE), str(path))
    data = encode(image, kind, text=text)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:  # after Ctrl-C, too
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError("save", f"image must be writable ({error.strerror})", str(path)) from error
    return path


def read_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text chunks of a PNG file by keyword; empty where it has none. Raises InputError if it is no readable PNG."""
    try:
        with open_file(path, most=_MOST) as file, Image.open(file, formats=("PNG",)) as image:
            # Chunks may follow the pixels, which `text` would decode: too many of those are refused first.
            _check_pixels(image.size, LIMIT_PIXELS, "image", path)
            return {key: str(value) for key, value in image.text.items()}  # type: ignore[attr-defined]
    except InputError:
        raise
    except Exception as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise InputError("image", f"file must be a readable PNG{reason}", str(path)) from error


def contact_sheet(
    images: Iterable[Image.Image], columns: int | None = None, *, gap: int = 4, fill: tuple[int, int, int] = (255,) * 3
) -> Image.Image:
    """Pictures side by side in rows of `columns` (default: about square), each in the middle of a cell of one size.

    Raises InputError for no pictures or fewer than one column.
    """
    cells: Sequence[Image.Image] = list(images)
    if not cells:
        raise InputError("contact_sheet", "there must be at least one image", 0)
    columns = math.ceil(math.sqrt(len(cells))) if columns is None else columns
    if columns < 1:
        raise InputError("contact_sheet", "columns must be at least 1", columns)
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), fill)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        left, top = column * (width + gap), row * (height + gap)
        place = (left + (width - cell.width) // 2, top + (height - cell.height) // 2)
        sheet.paste(cell, place, cell if cell.mode == "RGBA" else None)
    return sheet
