"""New keyframes from prompts: the present one drawn over by img2img, enlarged, cut out, its face found again."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ... import image as images
from ... import upscaling
from ...errors import InputError
from ...pipeline import Pipeline
from ...request import Request
from ..conditions import check
from .finding import nearby, points_of_parts
from .gate import Gate, step_back
from .geometry import PLACE, from_points
from .keyframe import Keyframe
from .matte import plain_matte
from .opening import SEGMENTER, segmented
from .reveal import eye_widths, reveal_of

__all__ = ["PipelinePainter"]

_ARGUMENTS = (
    "prompt", "negative_prompt", "seed", "num_inference_steps", "guidance_scale", "sampler", "sampler_options", "rng",
    "clip_skip",
)  # fmt: skip
_GROUND = 236  # grey behind a keyframe that is drawn over


class PipelinePainter:
    """Draws keyframes with a pipeline, on whatever thread asks, which steps back for it.

    On a CPU the engines are opened once more, with one thread, so that no call of the background's takes more than one
    core, unless LoRAs or words were added to the pipeline. gate: asked before every engine call.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.given, self.gate = pipeline, Gate()
        self.warmed = False  # whether anything was drawn
        self._own: Pipeline | None = None

    def check(self, request: Request) -> None:
        """Raises InputError for what cannot be drawn."""
        check(self.given, request, 0, None, source=False)

    def warm(self) -> None:
        """Open what it draws with, and draw once: the first prompt then waits for neither."""
        step_back()
        pipeline, self.warmed = self._pipeline(), True
        self.gate.wait()
        width, height = pipeline.family.default_size
        grey = Image.new("RGB", (width, height), (_GROUND, _GROUND, _GROUND))
        few: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 2, "guidance_scale": 1.0, "sampler": "lcm"}
        pipeline.img2img("", image=grey, width=width, height=height, callback=lambda _: self.gate.wait(), **few)

    def paint(self, request: Request, current: Keyframe) -> Keyframe:
        """Raises InputError where the drawn face's parts are not sure, NonFiniteError for a broken drawing."""
        step_back()
        pipeline = self._pipeline()
        if request["lora"]:
            pipeline = pipeline.over(pipeline.adapters.shelf.networks(request["lora"]))
        wanted: dict[str, Any] = {
            name: request[name] for name in _ARGUMENTS if name in request.values and request[name] is not None
        }
        wanted |= {"prompt": request.prompts[0], "seed": request.seeds[0], "callback": lambda _: self.gate.wait()}
        strength = request["strength"]
        width, height = pipeline.family.default_size
        self.gate.wait()
        if current.geometry is None:
            drawn = pipeline.txt2img(**wanted, width=width, height=height).images[0]
        else:
            # Steps count those that are run, as everywhere in live.
            wanted["num_inference_steps"] = max(1, round(request["num_inference_steps"] / strength))
            drawn = pipeline.img2img(
                **wanted, image=over_grey(current.rgba), strength=strength, width=width, height=height
            ).images[0]
        return self._keyframe(pipeline, drawn, current, request.prompts[0])

    def _keyframe(self, pipeline: Pipeline, drawn: Image.Image, current: Keyframe, name: str) -> Keyframe:
        side = len(current.rgba)
        networks = pipeline.networks
        self.gate.wait()
        if upscaling.UPSCALER in networks.rows:
            large = upscaling.larger(networks, drawn, alpha=SEGMENTER in networks.rows)
        else:
            large = drawn
        self.gate.wait()
        rgba = _premultiplied(large.resize((side, side), Image.Resampling.BICUBIC))
        found: Any = "there is no segmenter"
        if SEGMENTER in networks.rows:
            found = points_of_parts(segmented(networks, rgba))
        if isinstance(found, str):
            if current.geometry is None:
                raise InputError(PLACE, f"the drawn face's parts are not sure: {found}", name)
            found = nearby(rgba, current, self.gate.wait)
        self.gate.wait()
        geometry = from_points(found)
        geometry = from_points(found, eye_widths(rgba, geometry))
        return Keyframe(rgba, reveal_of(rgba, geometry, pause=self.gate.wait), None, geometry, name)

    def _pipeline(self) -> Pipeline:
        given = self.given
        if given.device != "cpu" or given.adapters.active or given.networks.tokenizers:
            return given
        if self._own is None or self._own.bundle is not given.bundle:
            vae = "tiny" if given.autoencoder.decoder.startswith("tiny_") else "full"
            self._own = Pipeline(given.bundle, engine=given.engine, device="cpu", threads=1, vae=vae)
            self._own.adapters.shelf.loras = given.adapters.shelf.loras
        return self._own


def over_grey(rgba: np.ndarray) -> Image.Image:
    """Premultiplied uint8 [S, S, 4] over a light grey."""
    clear = 255 - rgba[..., 3:].astype(np.uint16)
    return Image.fromarray((rgba[..., :3] + (clear * _GROUND + 127) // 255).clip(0, 255).astype(np.uint8))


def _premultiplied(picture: Image.Image) -> np.ndarray:
    """uint8 [S, S, 4]. A picture without alpha before a plain ground is cut out of it."""
    if picture.mode == "RGBA":
        rgba = np.array(picture)
    else:
        pixels = np.asarray(images.open_image(picture))
        rgba = np.dstack([pixels, plain_matte(pixels)])
    alpha = rgba[..., 3:].astype(np.uint16)
    return np.concatenate([((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8), rgba[..., 3:]], axis=-1)
