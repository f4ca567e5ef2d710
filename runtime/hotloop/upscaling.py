"""What follows a drawing: the segmenter cuts it out, the upscaler enlarges it, in tiles where it is large."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from . import image as images
from .checks import check_finite
from .errors import InputError
from .image import alpha as alphas
from .image import enlarge
from .networks import Networks
from .request import Request
from .spec import ENLARGED

__all__ = ["check", "cut_out", "finished", "larger", "matte_of", "tiles"]

SEGMENTER, UPSCALER = "segmenter", "upscaler"
TILE = 256  # pixels a side that the upscaler sees at once, at most
HALO = 12  # pixels beside an output pixel's own that reach it: those of twelve 3 x 3 convolutions


def check(networks: Networks, request: Request) -> None:
    """Raises InputError where a request asks for a network that the bundle lacks."""
    wanted = {
        "upscale": request["upscale"] and UPSCALER, "alpha": request["alpha"] and SEGMENTER,
        "hires_upscaler": request.values.get("hires_upscaler") == enlarge.NETWORK and UPSCALER,
    }  # fmt: skip
    for field, network in wanted.items():
        if network and not _has(networks, network):
            rule = f"{field} needs the network {network}, which this bundle lacks"
            raise InputError(request.place, rule, request[field])


def finished(networks: Networks, picture: Image.Image, request: Request) -> Image.Image:
    """A drawing as a request asks for it: enlarged, cut out, or both, then in the upscaler's own colours."""
    if request["upscale"]:
        return larger(networks, picture, alpha=request["alpha"])
    return cut_out(networks, picture) if request["alpha"] else picture


def cut_out(networks: Networks, picture: Image.Image) -> Image.Image:
    """A picture's foreground: RGB -> RGBA, in the colours it has without the background. Raises NonFiniteError."""
    matte = matte_of(networks, picture)[..., None]
    colours, _ = alphas.separated(np.asarray(picture), matte[..., 0])
    return Image.fromarray(alphas.straight(np.concatenate([colours * matte, matte], axis=-1)))


def matte_of(networks: Networks, picture: Image.Image) -> np.ndarray:
    """The foreground's share of every pixel, f32 [H, W] in [0, 1]. Raises NonFiniteError.

    A picture beyond the family's own size is made small first: what the segmenter knows fills that size.
    """
    engine, family = networks[SEGMENTER], networks.bundle.family
    share = min(1.0, *(own / side for own, side in zip(family.default_size, picture.size, strict=True)))
    size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
    small = picture if size == picture.size else images.resize(picture, size)
    dims = family.dims(width=size[0], height=size[1], batch=1)
    with engine.contexts.lease(**engine.network.pick(dims)) as context:
        context.inputs["image"][:] = images.to_float(small)
        context.run()
        matte = np.array(context.outputs["matte"][0, 0], np.float32)
    check_finite(SEGMENTER, "matte", matte)
    if small is not picture:
        matte = np.asarray(Image.fromarray(matte).resize(picture.size, Image.Resampling.BICUBIC))
    return matte.clip(0, 1)


def larger(networks: Networks, picture: Image.Image, *, alpha: bool = False) -> Image.Image:
    """A picture, RGB, ENLARGED times as large: RGBA of the foreground alone, or RGB. Raises NonFiniteError.

    The upscaler draws what the matte holds; behind it the background is enlarged by a bicubic filter. Where the bundle
    has no segmenter, everything is foreground.
    """
    pixels = np.asarray(picture)
    matte, behind = np.ones(pixels.shape[:2], np.float32), picture
    if _has(networks, SEGMENTER):
        matte = matte_of(networks, picture)
        behind = Image.fromarray(np.rint(alphas.separated(pixels, matte)[1] * 255).astype(np.uint8))
    width, height = (side * ENLARGED for side in picture.size)
    ground = np.asarray(behind.resize((width, height), Image.Resampling.BICUBIC))
    made = np.empty((height, width, 4 if alpha else 3), np.uint8)
    rgb = images.to_float(picture)
    for rows in tiles(picture.height):
        for columns in tiles(picture.width):
            rgba = _enlarged(networks, rgb[..., rows.seen, columns.seen], matte[rows.seen, columns.seen])
            rgba = rgba[rows.kept, columns.kept]
            at = rows.place, columns.place
            made[at] = alphas.straight(rgba) if alpha else alphas.over(rgba, ground[at] / np.float32(255))
    return Image.fromarray(made)


class Tile:
    """Along one side: the pixels that are seen, those of the tile's result that are kept, and where they belong."""

    def __init__(self, start: int, stop: int, first: int, last: int) -> None:
        self.seen = slice(start, stop)
        self.kept = slice((first - start) * ENLARGED, (last - start) * ENLARGED)
        self.place = slice(first * ENLARGED, last * ENLARGED)


def tiles(side: int) -> Iterator[Tile]:
    """Tiles of one size that cover a side, each kept where what it does not see cannot reach."""
    if side <= TILE:
        yield Tile(0, side, 0, side)
        return
    starts = [*range(0, side - TILE, TILE - 2 * HALO), side - TILE]
    seams = [0, *(start + HALO for start in starts[1:]), side]
    for start, first, last in zip(starts, seams, seams[1:], strict=False):
        yield Tile(start, start + TILE, first, last)


def _enlarged(networks: Networks, rgb: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """RGB f32 [1, 3, H, W] in [-1, 1] and matte f32 [H, W] -> f32 [4 H, 4 W, 4], colours multiplied by alpha."""
    engine = networks[UPSCALER]
    dims = networks.bundle.family.dims(width=matte.shape[1], height=matte.shape[0], batch=1)
    with engine.contexts.lease(**engine.network.pick(dims)) as context:
        context.inputs["rgb"][:] = rgb
        context.inputs["matte"][:] = matte
        context.run()
        rgba = np.array(context.outputs["rgba"][0], np.float32)
    check_finite(UPSCALER, "picture", rgba)
    return rgba.transpose(1, 2, 0)


def _has(networks: Networks, name: str) -> bool:
    return name in networks.rows or name in networks.opened()
