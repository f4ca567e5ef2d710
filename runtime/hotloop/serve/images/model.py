"""A bundle in a worker: the pipeline, its LoRA sets, and a request's call on them."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future as Waiting
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...call import Drawing, Run
from ...errors import InputError
from ...image import image as images
from ...networks import Networks
from ...pipeline import load
from ...request import bundle_defaults

__all__ = ["Model", "read"]

_FORMATS = ("PNG", "JPEG", "WEBP")
_SETS = 4  # LoRA sets whose contexts are kept
LoraSet = tuple[tuple[str, float], ...]


class Model:
    """loras: name -> file, of the server's scan; windows: of a prompt at most."""

    def __init__(
        self, path: Path, loras: Mapping[str, Path], *, engine: str, device: str, threads: int | None, windows: int
    ) -> None:
        self.pipe = load(path, engine=engine, device=device, threads=threads, adapters=bool(loras))
        self.pipe.warmup()
        self._files, self._windows = dict(loras), windows
        self._plain = self.pipe.networks
        self._lately: OrderedDict[LoraSet, Networks] = OrderedDict()
        self.evicted: list[Networks] = []  # what a batch may still keep contexts for
        self._merging = ThreadPoolExecutor(1, "hotloop-loras")

    def facts(self) -> dict[str, Any]:
        """What the listening process checks requests by."""
        pipe, family = self.pipe, self.pipe.family
        names = {**bundle_defaults(), **pipe.bundle.defaults}
        grid = int(np.lcm(family.grid, pipe.entry.grid))
        return {
            "family": family.name, "engine": pipe.engine, "device": pipe.device, "id": pipe.bundle.id, "grid": grid,
            "least": family.min_cells * family.vae_factor, "most": family.max_size, "size": list(family.default_size),
            "defaults": {name: names[name] for name in bundle_defaults()}, "networks": sorted(pipe.networks.rows),
            "inpainting": bool(family.inpaint_channels),
        }  # fmt: skip

    def networks(self, loras: LoraSet) -> Waiting[Networks]:
        """The engines with these LoRAs, when they are merged. Its result may be InputError: one does not fit this
        model."""
        if not loras:
            plain: Waiting[Networks] = Waiting()
            plain.set_result(self._plain)
            return plain
        return self._merging.submit(self._merged, loras)

    def _merged(self, loras: LoraSet) -> Networks:
        """A file is opened when it is first asked for: one that is broken is nobody else's."""
        shelf = self.pipe.adapters.shelf
        for name, _ in loras:
            if name not in shelf.loras:
                shelf.put(name, self._files[name])
        made = shelf.networks(loras)
        old = self._lately.pop(loras, None)
        self._lately[loras] = made
        if old is not None and old is not made:
            self.evicted.append(old)
        while len(self._lately) > _SETS:
            self.evicted.append(self._lately.popitem(last=False)[1])
        return made

    def drawing(
        self, pipeline: str, values: Mapping[str, Any], pictures: Mapping[str, Image.Image], networks: Networks
    ) -> Drawing:
        """Raises InputError for what only the model knows to refuse."""
        texts = [values["prompt"], values.get("negative_prompt", "")]
        for text in texts:
            tokens = self.pipe.tokenizer.encode(
                [text], syntax=values.get("prompt_syntax", "a1111"), long_prompt="chunk"
            )
            if tokens.ids.shape[1] > self._windows:
                raise InputError(pipeline, f"prompt must have at most {self._windows} windows of 75 tokens")
        return self.pipe.drawing(pipeline, **{**values, **pictures}, networks=networks)

    def preview(self, run: Run, row: int, latents: np.ndarray) -> np.ndarray:
        """What latents f32 [1, C, h, w] before a row show, uint8 [H, W, 3]: as the network is given them, whose spread
        no schedule changes."""
        seen = np.float32(run.table.c_in[min(row, len(run.table) - 1)]) * latents
        return self.pipe.autoencoder.decode(run.networks, seen)[0]


def read(files: Sequence[tuple[str, str, bytes]], most: int, *, fill: bool) -> dict[str, Image.Image]:
    """(field, how, file) -> pictures as pipelines take them. Raises InputError.

    how: image; or of a mask what is to be repainted: white, black, or (alpha) what is transparent
    fill: the masked part of `image` is filled from around it
    """
    made = {name: _one(how, data, most) for name, how, data in files}
    if fill and set(made) >= {"image", "mask_image"} and made["image"].size == made["mask_image"].size:
        made["image"] = filled(made["image"], made["mask_image"])
    return made


def _one(how: str, data: bytes, most: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
            if file.width * file.height > most:
                raise InputError("picture", f"a picture must have at most {most} pixels")
            if how == "image":
                return images.open_image(file)
            if how == "alpha":
                transparent = np.asarray(file.convert("RGBA"))[:, :, 3] == 0
                return Image.fromarray(transparent.astype(np.uint8) * 255)
            mask = images.open_mask(file)
            return Image.fromarray(255 - np.asarray(mask)) if how == "black" else mask
    except Exception:  # a broken file fails in as many ways as there are decoders
        raise InputError("picture", "a picture must be readable") from None


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The masked part painted with what is around it: means of the rest over ever larger discs, the smallest that
    reaches (normalised convolution, Knutsson and Westin 1993)."""
    pixels = np.asarray(picture, np.float32)
    known = (np.asarray(mask) < 128).astype(np.float32)[..., None]
    if not known.any():
        return picture
    made, weight, radius = pixels * known, known, 1
    while not weight.all():
        mass = _means(weight, radius)
        reached = (mass > 1e-6) & (weight == 0)
        made = np.where(reached, _means(made, radius) / np.maximum(mass, 1e-6), made)
        weight = np.where(reached, np.float32(1), weight)
        radius *= 2
    return Image.fromarray(made.round().clip(0, 255).astype(np.uint8))


def _means(values: np.ndarray, radius: int) -> np.ndarray:
    """Of f32 [H, W, C] over squares, zeros beyond the edges."""
    size = 2 * radius + 1
    for axis in (0, 1):
        pads = [(0, 0)] * 3
        pads[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(values, pads), axis=axis, dtype=np.float64)
        length = sums.shape[axis]
        values = sums.take(range(size, length), axis) - sums.take(range(length - size), axis)
    return (values / size**2).astype(np.float32)
