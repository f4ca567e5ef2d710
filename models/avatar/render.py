"""Draws captioned faces: seed -> person -> picture, exact alpha, part masks and boxes.

A second edition of the renderer in models/avatar_tiny: the same attributes and words, drawn in layers that turn with
the head, held by continuous controls. The same face at the same size gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from render_canvas import Canvas
from render_face import brows, eyes, head, marks, mouth
from render_hair import back_hair, front_hair
from render_people import ATTRIBUTES, Face, Two, held_out, labels, sample_face, sample_pair, sample_two
from render_rig import Rig
from render_scene import backdrop, spoil
from render_wear import accessory, body, ears, glasses

__all__ = [
    "ATTRIBUTES", "LAYERS", "PARTS", "Face", "Rendering", "Two", "held_out", "labels", "render", "render_layers",
    "render_two", "reveal", "sample_face", "sample_pair", "sample_two",
]  # fmt: skip

PARTS = ("background", "hair", "face", "eyes", "mouth", "glasses", "clothes", "accessory", "brows")


def _ears(c: Canvas, rig: Rig) -> None:
    if rig.face["accessory"] == "cat ears":
        ears(c, rig)


# From back to front.
_LAYERS: dict[str, Callable[[Canvas, Rig], None]] = {
    "back hair": back_hair, "body": body, "head": head, "mouth": mouth, "eyes": eyes, "ears": _ears,
    "front hair": front_hair, "glasses": glasses, "brows": brows, "accessory": accessory, "marks": marks,
}  # fmt: skip
LAYERS = tuple(_LAYERS)


@dataclass(frozen=True)
class Rendering:
    """image: uint8 [size, size, 3]; rgba: uint8 [size, size, 4], the person alone, premultiplied, before the defect.
    Masks and boxes are worked out when first asked for."""

    image: np.ndarray
    rgba: np.ndarray
    _canvas: Canvas = field(repr=False)

    @cached_property
    def masks(self) -> dict[str, np.ndarray]:
        """part -> uint8 [size, size] coverage, adding up to 255 over the parts up to rounding."""
        return {part: self.mask(part) for part in PARTS}

    def mask(self, part: str) -> np.ndarray:
        """uint8 [size, size]: how much of each pixel shows the part."""
        i = PARTS.index(part)
        return self._canvas.reduced(self._canvas.label.point([255 * (v % 16 == i) for v in range(256)]))

    @cached_property
    def boxes(self) -> dict[str, tuple[float, float, float, float]]:
        """part -> (x0, y0, x1, y1) in unit coordinates, for the parts that show."""
        index = np.asarray(self._canvas.label)[::2, ::2] % 16
        side, found = len(index), {}
        for i, part in enumerate(PARTS):
            shown = index == i
            columns, rows = np.flatnonzero(shown.any(0)), np.flatnonzero(shown.any(1))
            if len(rows):
                found[part] = (columns[0] / side, rows[0] / side, (columns[-1] + 1) / side, (rows[-1] + 1) / side)
        return found


def _supersampling(size: int) -> int:
    return max(2, 4 if size <= 192 else 3)


def _draw(size: int, *rigs: Rig, layers: tuple[str, ...] = LAYERS) -> Canvas:
    canvas = Canvas(size, _supersampling(size), PARTS)
    for rig in rigs:
        for name in layers:
            canvas.layer = LAYERS.index(name)
            _LAYERS[name](canvas, rig)
    return canvas


def _rgba(canvas: Canvas) -> np.ndarray:
    alpha = canvas.label.point([0] + [255] * 255)
    # Where strokes cross themselves colour may lie outside the shape.
    canvas.image.paste(0, (0, 0), canvas.label.point([255] + [0] * 255))
    return np.concatenate([canvas.reduced(), canvas.reduced(alpha)[..., None]], axis=-1)


def _over(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Premultiplied [..., 4] over opaque [..., 3]."""
    clear = 255 - rgba[..., 3:].astype(np.uint16)
    return (rgba[..., :3] + (background * clear + 127) // 255).clip(0, 255).astype(np.uint8)


def render(
    face: Face, size: int = 128, *, controls: Mapping[str, float] | None = None, background: bool = True
) -> Rendering:
    """Draws a face at size x size pixels, held at its own controls or at the given ones; without a background the
    picture is the person on black."""
    canvas = _draw(size, Rig(face, controls))
    rgba = _rgba(canvas)
    image = rgba[..., :3]
    if background:
        image = _over(rgba, backdrop(face["background"], size, face.seed))
    return Rendering(spoil(image, face["defect"], face.seed), rgba, canvas)


def render_layers(face: Face, size: int, controls: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
    """layer -> premultiplied uint8 [size, size, 4], from back to front; one over the other they are `render`'s rgba,
    up to the blending of edges that share a pixel."""
    rig = Rig(face, controls)
    canvas = Canvas(size, _supersampling(size), PARTS)
    layers = {}
    for i, (name, draw) in enumerate(_LAYERS.items()):
        canvas.layer = i
        draw(canvas, rig)
        own = canvas.label.point([255 * (v // 16 == i and v > 0) for v in range(256)])
        picture = canvas.image.copy()
        picture.paste(0, (0, 0), own.point([255 - v for v in range(256)]))
        layers[name] = np.concatenate([canvas.reduced(picture), canvas.reduced(own)[..., None]], axis=-1)
    return layers


def reveal(face: Face, size: int, controls: Mapping[str, float] | None = None) -> np.ndarray:
    """Premultiplied uint8 [size, size, 4]: what the same picture hides and motion shows, at its place: closed lids,
    the open mouth with teeth and tongue, the skin under the fringe, the hair behind the face."""
    held = dict(face.controls if controls is None else controls)
    held |= {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0, "jawOpen": 0.6, "mouthA": 0.6, "tear": 0.0, "blush": 0.0}
    held |= {name: 0.0 for name in ("happy", "angry", "cold", "sad", "surprised")}
    bare = ("back hair", "body", "head", "mouth", "eyes", "ears")
    return _rgba(_draw(size, Rig(face, held), layers=bare))


def render_two(two: Two, size: int = 128, *, background: bool = True) -> Rendering:
    """Draws two people side by side, the right one in front; masks and boxes are of both."""
    canvas = _draw(size, *(Rig(face, place=(side * 0.225, 0.1, 0.7))
                           for side, face in ((-1, two.left), (1, two.right))))  # fmt: skip
    rgba = _rgba(canvas)
    image = rgba[..., :3]
    if background:
        image = _over(rgba, backdrop(two.left["background"], size, two.seed))
    return Rendering(image, rgba, canvas)
