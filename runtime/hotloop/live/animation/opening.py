"""Any picture as an avatar: its points given, or found where that is sure; its reveal texture made from itself."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ... import image as images
from ...errors import InputError
from ...files import read_file
from ...networks import Networks
from .finding import points_of_parts
from .geometry import PLACE, POINTS, from_points, read_points
from .guessing import Guess, guess
from .keyframe import ENDING, SIDE, Keyframe, builtin_keyframe, load_keyframe
from .networks import DECODER, ENCODER, AnimatorNetworks
from .reveal import eye_widths, reveal_of
from .session import AnimationSession

if TYPE_CHECKING:
    from ...pipeline import Pipeline

__all__ = ["UnsureError", "guessed", "keyframe_from", "open_avatar", "read_parts", "segmented"]

SEGMENTER = "segmenter"
# What masks of parts may be called; front: all that lies before eyes and brows.
PARTS = ("eyes", "mouth", "face", "hair", "glasses", "front")


class UnsureError(InputError):
    """Where a face's parts are is to be told."""


def open_avatar(
    avatar: str | Path | Image.Image | np.ndarray | Keyframe | None = None, *,
    points: str | Path | Mapping[str, Any] | None = None, parts: str | Path | None = None,
    pipeline: Pipeline | None = None, **session: Any,
) -> AnimationSession:  # fmt: skip
    """A session that animates this avatar.

    avatar    a picture with or without alpha, a folder or .avatar file that a keyframe was saved to, a `Keyframe`;
              by default the avatar that comes with hotloop
    points    ten points of its face (`POINTS`), a JSON file or a mapping of [x, y] in 0..1; by default found
    parts     a folder of masks, PNG, white where the part is: eyes, mouth, face, hair, glasses, front
    pipeline  whose bundle finds points, draws new keyframes from prompts and, where it holds an animator's networks,
              moves them by those
    session   arguments of `AnimationSession`

    Raises InputError; where points are not found, the one line names those to give.
    """
    if avatar is None:
        keyframe = builtin_keyframe()
    elif isinstance(avatar, Keyframe):
        keyframe = avatar
    elif isinstance(avatar, (str, Path)) and (Path(avatar).is_dir() or Path(avatar).suffix == ENDING):
        keyframe = load_keyframe(Path(avatar))
    else:
        keyframe = keyframe_from(avatar, points=points, parts=parts, pipeline=pipeline)
    if pipeline is not None:
        if "painter" not in session:
            from .painting import PipelinePainter

            session["painter"] = PipelinePainter(pipeline)
        if "performer" not in session and {ENCODER, DECODER} <= pipeline.networks.rows.keys():
            session["performer"] = AnimatorNetworks(pipeline.networks)
    return AnimationSession(keyframe, **session)


def keyframe_from(
    picture: str | Path | Image.Image | np.ndarray, *, points: str | Path | Mapping[str, Any] | None = None,
    parts: str | Path | None = None, pipeline: Pipeline | None = None, side: int = SIDE, name: str | None = None,
) -> Keyframe:  # fmt: skip
    """A picture as a keyframe, brought into a square of this many pixels a side; name: by default its file's.

    Raises InputError; UnsureError where points are neither told nor found.
    """
    rgba, place = _square(picture, side)
    masks = {} if parts is None else read_parts(Path(parts), place, side)
    if name is None:
        name = Path(picture).stem if isinstance(picture, (str, Path)) else ""
    if points is not None:
        told = read_points(Path(points) if isinstance(points, str) else points)
        found = {key: place.of(x, y) for key, (x, y) in told.items()}
    else:
        found = _found(rgba, masks, pipeline)
    geometry = from_points(found)
    geometry = from_points(found, eye_widths(rgba, geometry))
    before = [masks[name] for name in ("hair", "glasses", "front") if name in masks]
    front = np.rint(255 * np.max(before, axis=0)).astype(np.uint8) if before else None
    return Keyframe(rgba, reveal_of(rgba, geometry, front), front, geometry, name)


def guessed(
    picture: str | Path | Image.Image | np.ndarray, *, eyes: np.ndarray | None = None, pipeline: Pipeline | None = None
) -> tuple[Guess, tuple[int, int]]:
    """A first guess of the ten points in shares of the picture, for somebody to look at, and the picture's width and
    height as it is shown: what the segmenter is sure of, else `guess`.

    eyes: float64 [2, 2], the person's right and left eye, where they are known. Raises InputError.
    """
    rgba, place = _square(picture, SIDE)
    found = None
    if eyes is None and pipeline is not None and SEGMENTER in pipeline.networks.rows:
        told = points_of_parts(segmented(pipeline.networks, rgba))
        found = None if isinstance(told, str) else Guess(told, "segmenter")
    if found is None:
        found = guess(rgba, None if eyes is None else np.array([place.of(x, y) for x, y in eyes]))
    return Guess({name: place.back(x, y) for name, (x, y) in found.points.items()}, found.by), place.size


class _Place:
    """Where a picture of any shape lies in the square: scale and offset, in shares of the square."""

    def __init__(self, width: int, height: int) -> None:
        longer, self.size = max(width, height), (width, height)
        self.width, self.height = width / longer, height / longer

    def of(self, x: float, y: float) -> tuple[float, float]:
        return (1 - self.width) / 2 + x * self.width, 1 - self.height + y * self.height

    def back(self, x: float, y: float) -> tuple[float, float]:
        """The way back, held within the picture."""
        back = (x - (1 - self.width) / 2) / self.width, (y - 1 + self.height) / self.height
        return min(max(back[0], 0.0), 1.0), min(max(back[1], 0.0), 1.0)

    def paste(self, picture: Image.Image, side: int, mode: str) -> Image.Image:
        """In the middle, at the bottom; transparent, or black, elsewhere."""
        size = max(1, round(self.width * side)), max(1, round(self.height * side))
        made = Image.new(mode, (side, side))
        made.paste(picture.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, side - size[1]))
        return made


def _square(picture: str | Path | Image.Image | np.ndarray, side: int) -> tuple[np.ndarray, _Place]:
    """Premultiplied uint8 [side, side, 4], and where the picture lies in it."""
    opaque = images.open_image(picture, place=PLACE)
    alpha = _alpha(picture, opaque.size)
    place = _Place(*opaque.size)
    if min(opaque.size) < 32:
        raise InputError(PLACE, "an avatar's picture must be 32 pixels a side at least", f"{opaque.size}")
    colours = np.asarray(opaque, np.float32)
    if alpha is None:
        alpha = np.full(opaque.size[::-1], 255, np.uint8)
    else:  # on white by `open_image`: c = a f + (1 - a) white
        share = np.maximum(alpha.astype(np.float32)[..., None], 1) / 255
        colours = ((colours - 255 * (1 - share)) / share).clip(0, 255)
    straight = Image.fromarray(np.dstack([np.rint(colours).astype(np.uint8), alpha]))
    made = np.asarray(place.paste(straight, side, "RGBA")).astype(np.uint16)
    made[..., :3] = (made[..., :3] * made[..., 3:] + 127) // 255
    return made.astype(np.uint8), place


def _alpha(picture: str | Path | Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """uint8 [H, W]; None where everything is opaque."""
    if isinstance(picture, np.ndarray):
        alpha = picture[..., 3] if picture.ndim == 3 and picture.shape[2] == 4 else None
    else:
        # `open_image` has read it: it is a picture of a size that may be.
        image = picture if isinstance(picture, Image.Image) else Image.open(io.BytesIO(read_file(picture)))
        alpha = np.asarray(images.upright(image).convert("RGBA"))[..., 3] if image.has_transparency_data else None
    if alpha is None or alpha.shape[::-1] != size or alpha.dtype != np.uint8 or bool((alpha == 255).all()):
        return None
    return np.array(alpha)


def read_parts(folder: Path, place: _Place, side: int) -> dict[str, np.ndarray]:
    """Masks of parts, float32 [side, side] in 0..1 by name. Raises InputError."""
    found = {name: folder / f"{name}.png" for name in PARTS if (folder / f"{name}.png").is_file()}
    if not found:
        raise InputError(PLACE, f"parts must be a folder with masks among {', '.join(PARTS)} (.png)", str(folder))
    masks = {}
    for name, file in found.items():
        mask = images.open_mask(file, place=PLACE)
        masks[name] = np.asarray(place.paste(mask, side, "L"), np.float32) / 255
    return masks


def _found(
    rgba: np.ndarray, masks: Mapping[str, np.ndarray], pipeline: Pipeline | None
) -> dict[str, tuple[float, float]]:
    """The ten points, or an InputError that asks for them."""
    ask = f"give its ten points in a JSON file (--points): {', '.join(POINTS)}"
    if {"eyes", "mouth", "face"} <= masks.keys():
        seen: Mapping[str, np.ndarray] = masks
    elif pipeline is not None and SEGMENTER in pipeline.networks.rows:
        seen = segmented(pipeline.networks, rgba)
    else:
        raise UnsureError(PLACE, f"this face's parts are not known, and no segmenter is at hand to find them: {ask}")
    points = points_of_parts(seen)
    if isinstance(points, str):
        raise UnsureError(PLACE, f"this face's parts are not sure ({points}): {ask}")
    return points


def segmented(networks: Networks, rgba: np.ndarray) -> dict[str, np.ndarray]:
    """The segmenter's parts of a picture over grey, float32 [h, w] each."""
    engine, family = networks[SEGMENTER], networks.bundle.family
    width, height = family.default_size
    over = rgba[..., :3] + ((255 - rgba[..., 3:].astype(np.uint16)) * 216 // 255).astype(np.uint8)
    small = images.resize(Image.fromarray(over), (width, height))
    with engine.contexts.lease(**engine.network.pick(family.dims(width=width, height=height, batch=1))) as context:
        context.inputs["image"][:] = images.to_float(small)
        context.run()
        parts = np.array(context.outputs["parts"][0], np.float32)
    if len(parts) != len(_NAMES):
        raise InputError(PLACE, f"a segmenter must tell {len(_NAMES)} parts apart", len(parts))
    return dict(zip(_NAMES, parts, strict=True))


# The parts of models/avatar's segmenter, in its order.
_NAMES = ("background", "hair", "face", "eyes", "mouth", "glasses", "clothes", "accessory", "brows")
