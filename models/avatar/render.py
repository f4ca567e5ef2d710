"""Draws captioned faces: seed -> person -> picture, exact alpha, part masks and boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from render_people import ATTRIBUTES, Face, Two, held_out, labels, sample_face, sample_pair, sample_two

__all__ = [
    "ATTRIBUTES", "LAYERS", "PARTS", "Face", "Rendering", "Two", "held_out", "labels", "render", "render_layers",
    "render_two", "reveal", "sample_face", "sample_pair", "sample_two",
]  # fmt: skip

PARTS = ("background", "hair", "face", "eyes", "mouth", "glasses", "clothes", "accessory", "brows")
LAYERS = ("back hair", "body", "neck", "head", "mouth", "eyes", "front hair", "brows", "accessory", "glasses", "marks")


@dataclass(frozen=True)
class Rendering:
    """image: uint8 [size, size, 3]; rgba: uint8 [size, size, 4], the person alone, premultiplied; masks: part -> uint8
    [size, size] coverage, adding up to 255 over the parts (before the defect); boxes: part -> (x0, y0, x1, y1) in
    unit coordinates, for the parts that show."""

    image: np.ndarray
    rgba: np.ndarray
    masks: dict[str, np.ndarray]
    boxes: dict[str, tuple[float, float, float, float]]


def render(
    face: Face, size: int = 128, *, controls: Mapping[str, float] | None = None, background: bool = True
) -> Rendering:
    """Draws a face at size x size pixels, held at its own controls or at the given ones."""
    image = np.full((size, size, 3), 200, np.uint8)
    masks = {part: np.zeros((size, size), np.uint8) for part in PARTS}
    masks["background"][:] = 255
    boxes = {part: (0.4, 0.4, 0.6, 0.6) for part in PARTS}
    return Rendering(image, np.zeros((size, size, 4), np.uint8), masks, boxes)


def render_layers(face: Face, size: int, controls: Mapping[str, float] | None = None) -> dict[str, np.ndarray]:
    """layer -> premultiplied uint8 [size, size, 4], from back to front; one over the other they are `render`'s rgba."""
    return {layer: np.zeros((size, size, 4), np.uint8) for layer in LAYERS}


def reveal(face: Face, size: int, controls: Mapping[str, float] | None = None) -> np.ndarray:
    """Premultiplied uint8 [size, size, 4]: what the same picture hides and motion shows, at its place: closed lids,
    the open mouth with teeth and tongue, the skin under the fringe, the hair behind the face."""
    return np.zeros((size, size, 4), np.uint8)


def render_two(two: Two, size: int = 128) -> Rendering:
    """Draws two people side by side; masks and boxes are of both."""
    return render(two.left, size)
