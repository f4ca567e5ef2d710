"""What a picture hides, made from the picture itself: closed lids from the skin around the eyes, an open mouth from its
own lips with teeth and tongue drawn between them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .geometry import APART, SAMPLES, Eye, Geometry, Mouth

__all__ = ["eye_widths", "reveal_of", "spread_colours"]

_T = np.linspace(-1, 1, SAMPLES)
_THROAT, _TONGUE, _TEETH = (0.33, 0.06, 0.11), (0.80, 0.40, 0.43), (0.97, 0.95, 0.94)


def reveal_of(
    rgba: np.ndarray, geometry: Geometry, front: np.ndarray | None = None, pause: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Premultiplied uint8 [S, S, 4] like rgba: eyes closed, mouth open, all else as it is.

    front: uint8 [S, S], what lies before the eyes and stays; pause: called every few milliseconds of work.
    """
    side, made = len(rgba), rgba.copy()
    picture = rgba.astype(np.float32) / 255
    pixel = 1 / (side * geometry.unit)
    around = [_box(geometry, side, _reach_of_eye(eye, pixel)) for eye in geometry.eyes]
    for eye, box in zip(geometry.eyes, around, strict=True):
        pause()
        picture[box] = _closed(picture[box], _face(geometry, side, box), eye, pixel)
    pause()
    (a, b), (c, d) = around
    eyes = slice(min(a.start, c.start), max(a.stop, c.stop)), slice(min(b.start, d.start), max(b.stop, d.stop))
    if front is not None:
        stays = front[eyes][..., None].astype(np.float32) / 255
        picture[eyes] += stays * (rgba[eyes].astype(np.float32) / 255 - picture[eyes])
    mouth = _box(geometry, side, _reach_of_mouth(geometry, pixel))
    picture[mouth] = _opened(picture, _face(geometry, side, mouth), geometry, geometry.mouth, pixel, mouth)
    for box in (eyes, mouth):  # elsewhere it is as it was
        made[box] = np.rint(np.clip(picture[box], 0, 1) * 255).astype(np.uint8)
    return made


Box = tuple[slice, slice]  # rows and columns


def _box(g: Geometry, side: int, reach: tuple[float, float, float, float]) -> Box:
    """The pixels that a rectangle of the face (x0, y0, x1, y1) lies in."""
    x0, y0, x1, y1 = reach
    at = g.to_picture(np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]])) * side
    (left, top), (right, low) = np.floor(at.min(0)).astype(int) - 1, np.ceil(at.max(0)).astype(int) + 1

    def held(first: int, end: int) -> slice:
        return slice(min(max(int(first), 0), side - 1), max(min(int(end), side), 1))

    return held(top, low), held(left, right)


def _face(g: Geometry, side: int, box: Box) -> np.ndarray:
    """Where a box's pixels lie in the face, float32 [h, w, 2]."""
    v, u = ((np.arange(some.start, some.stop) + 0.5) / side for some in box)
    return g.to_face(np.stack(np.meshgrid(u, v), axis=-1)).astype(np.float32)


def _reach_of_eye(eye: Eye, pixel: float) -> tuple[float, float, float, float]:
    """All that `_closed` looks at or draws on."""
    top, low = float(eye.top.min()), float(eye.low.max())
    middle, half = (top + low) / 2, (low - top) / 2
    across = max(1.8 * 1.38 * eye.width, 1.1 * eye.width + 0.03)
    lines = [float(f(curve)) for curve in (eye.top, eye.rest) for f in (np.min, np.max)]
    room = 1.8 * (1.32 * half + 0.008)
    up = min(middle - room, min(lines) - 2 * eye.lash - 2 * pixel)
    down = max(middle + room, middle + 1.25 * half + 0.05, max(lines) + 2 * eye.lash + 2 * pixel)
    return eye.x - across, up, eye.x + across, down


def _reach_of_mouth(g: Geometry, pixel: float) -> tuple[float, float, float, float]:
    """All that `_opened` looks at or draws on."""
    mouth, reach = g.mouth, max(g.chin - float(g.mouth.line.mean()), 0.03)
    up = min(float(mouth.top.min()) - 0.5 * reach, float(mouth.line.min()) - 0.06)
    down = max(float(mouth.low.max()) + reach, float(mouth.line.max()) + 0.06)
    return mouth.x - 1.35 * mouth.reveal, up - 2 * pixel, mouth.x + 1.35 * mouth.reveal, down + 2 * pixel


def _closed(picture: np.ndarray, face: np.ndarray, eye: Eye, pixel: float) -> np.ndarray:
    """Skin over one eye, and the line that its lids make."""
    x, y = face[..., 0] - eye.x, face[..., 1]
    top, low = float(eye.top.min()), float(eye.low.max())
    middle, half = (top + low) / 2, (low - top) / 2
    u, v = x / (1.38 * eye.width), (y - middle) / (1.32 * half + 0.008)
    radius = np.sqrt(u * u + v * v)
    cover = np.clip((1.1 - radius) * 5, 0, 1)
    ring = (radius > 1.05) & (radius < 1.75) & (y > middle - 1.3 * half)
    skin = _skin(picture, x, y - middle, eye.width, half, ring)
    like = ring & (np.abs(picture - skin).sum(-1) < 0.28)
    rows, columns = np.nonzero(radius < 1.8)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    lid = spread_colours(picture[box], like[box], skin)
    lid[..., :3] *= 1 - 0.05 * np.clip(1.05 - radius[box], 0, 1)[..., None]
    lid[..., :3] += _grain(picture[box], v[box].min(1) > 1.0)
    made = picture.copy()
    made[box] += cover[box][..., None] * (lid - made[box])
    # The line, in the darkest colour of the open lid's edge.
    edge = (np.abs(x) < eye.width) & (np.abs(y - np.interp(x / eye.width, _T, eye.top)) < eye.lash)
    ink = _darkest(picture, edge, skin)
    t = x / eye.width
    thick = eye.lash * (1 - 0.75 * np.clip(np.abs(t), 0, 1) ** 2.5)
    middle_line = np.interp(t, _T, eye.rest) - 0.3 * eye.lash
    off = np.abs(y - middle_line) - thick / 2
    line = np.clip(0.5 - off / (1.6 * pixel), 0, 1) * np.clip((1.06 - np.abs(t)) * 12, 0, 1)
    made += line[..., None] * (ink - made)
    return made


def _grain(picture: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Of a photograph or a canvas, [h, w, 3] for a box that is painted over: what varies from pixel to pixel in rows
    of it that lie below an eye, there and back again."""
    strip = picture[below][:, :, :3]
    if len(strip) < 3:
        return np.zeros((*picture.shape[:2], 3), np.float32)
    near = np.pad(strip, ((2, 2), (2, 2), (0, 0)), mode="edge")
    window = np.lib.stride_tricks.sliding_window_view(near, (5, 5), axis=(0, 1))
    calm = window.max((-1, -2)) - window.min((-1, -2)) < 0.25  # a line is no grain
    grain = np.where(calm.all(-1, keepdims=True), strip - window.mean((-1, -2)), 0)
    both = np.concatenate([grain, grain[::-1]])
    return np.asarray(np.resize(both, (len(picture), *both.shape[1:])), np.float32)


def _skin(picture: np.ndarray, x: np.ndarray, y: np.ndarray, width: float, half: float, ring: np.ndarray) -> np.ndarray:
    """What is around an eye: the colour below it or beside it, whichever is more of the ring."""
    below = (np.abs(x) < width) & (y > 1.25 * half) & (y < 1.25 * half + 0.05)
    beside = (np.abs(y) < half) & (np.abs(x) > 1.1 * width) & (np.abs(x) < 1.1 * width + 0.03)
    found = [np.median(picture[where], axis=0) for where in (below, beside, ring) if where.any()]
    near = picture[ring] if ring.any() else picture.reshape(-1, 4)
    counts = [int((np.abs(near - one).sum(-1) < 0.28).sum()) for one in found]
    return np.asarray(found[int(np.argmax(counts))])


def eye_widths(rgba: np.ndarray, geometry: Geometry) -> tuple[float, float]:
    """Half widths of both eyes as the picture shows them: where, at their height, the skin begins on both sides."""
    picture, side = rgba.astype(np.float32) / 255, len(rgba)
    widths = []
    for eye in geometry.eyes:
        half = float(eye.low.max() - eye.top.min()) / 2
        reach = np.linspace(0.12, 0.46, 70) * APART
        found = []
        for way in (-1, 1):
            rows = eye.y + np.linspace(-0.2, 0.4, 7) * half
            at = np.stack(np.broadcast_arrays(eye.x + way * reach[:, None], rows[None]), axis=-1)
            i, j = np.moveaxis(np.clip(geometry.to_picture(at) * side, 0, side - 1).astype(int), -1, 0)
            colours = picture[j, i]  # [reach, rows, 4]
            skin = np.median(colours[-14:].reshape(-1, 4), axis=0)
            off = np.abs(colours - skin).sum(-1).mean(1) > 0.2
            found.append(float(reach[np.flatnonzero(off)[-1]]) if off.any() and not off[-14:].any() else np.nan)
        known = [one for one in found if one == one]
        # No wider than high, or than usual eyes: hair and shadows beside them are no part of them.
        widths.append(min(float(np.mean(known)), max(1.12 * half, 0.25 * APART)) if known else eye.width)
    return widths[0], widths[1]


def _darkest(picture: np.ndarray, where: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """The mean of the darkest quarter of some pixels; a shade of the skin where there are none."""
    found = picture[where & (picture[..., 3] > 0.5)]
    if len(found) < 8:
        return np.append(0.35 * skin[:3], skin[3])
    grey = found[:, :3].sum(1)
    return np.asarray(found[grey <= np.quantile(grey, 0.25)].mean(0))


def spread_colours(picture: np.ndarray, known: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Colours of the known pixels carried over the others, from near to far: means at halves of the size, pulled up and
    pushed down again (Gortler et al. 1996, "The Lumigraph", section 3.4)."""
    weight = known[..., None].astype(np.float32)
    levels = [(picture * weight, weight)]
    while max(levels[-1][0].shape[:2]) > 2:
        levels.append(tuple(_halved(v) for v in levels[-1]))  # type: ignore[arg-type]
    total, weight = levels[-1]
    colours = (total + 1e-3 * otherwise) / (weight + 1e-3)
    for total, weight in reversed(levels[:-1]):
        h, w = total.shape[:2]
        below = _doubled(colours, h, w)
        share = np.minimum(weight, 1)
        colours = share * total / np.maximum(weight, 1e-6) + (1 - share) * below
    return np.asarray(colours, np.float32)


def _halved(values: np.ndarray) -> np.ndarray:
    h, w = values.shape[:2]
    padded = np.pad(values, ((0, h % 2), (0, w % 2), (0, 0)))
    return np.asarray(padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2])


def _doubled(values: np.ndarray, h: int, w: int) -> np.ndarray:
    """Linear between the middles of twice as large pixels."""
    for axis, count in ((0, h), (1, w)):
        at = np.clip((np.arange(count) + 0.5) / 2 - 0.5, 0, values.shape[axis] - 1)
        first = at.astype(int)
        second = np.minimum(first + 1, values.shape[axis] - 1)
        share = (at - first).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        a, b = values.take(first, axis), values.take(second, axis)
        values = a + share * (b - a)
    return values


def _opened(whole: np.ndarray, face: np.ndarray, g: Geometry, mouth: Mouth, pixel: float, box: Box) -> np.ndarray:
    """Of the whole picture a box, whose pixels lie at `face`: the lips apart, each as it is, the mouth's inside between
    them."""
    picture = whole[box]
    x, y = face[..., 0] - mouth.x, face[..., 1]
    t = x / mouth.reveal
    line, top, low = (np.interp(t, _T, curve) for curve in (mouth.line, mouth.top, mouth.low))
    reach = max(g.chin - float(mouth.line.mean()), 0.03)
    above = np.clip(1 - (top - y) / (0.5 * reach), 0, 1)
    below = np.clip(1 - (y - low) / reach, 0, 1)
    from_y = np.where(y < (top + low) / 2, y + (line - top) * above, y - (low - line) * below)
    fade = np.clip((1.35 - np.abs(t)) * 5, 0, 1)
    made = _bilinear(whole, g, face[..., 0], y + fade * (from_y - y))
    gap = np.maximum(low - top, 1e-6)
    into = np.clip((y - top) / gap, 0, 1)[..., None]
    tone = float(np.clip(np.median(picture[(np.abs(t) < 1.2) & (np.abs(y - line) < 0.06)][:, :3]) * 1.15, 0.35, 1))
    inside = np.array(_THROAT) * (0.8 + 0.5 * into)
    tall = float((mouth.low - mouth.top).max())
    tongue = np.clip((1 - (t / 0.62) ** 2 - ((y - low - 0.12 * tall) / (0.52 * tall)) ** 2) * 5, 0, 1)[..., None]
    inside = inside + tongue * (np.array(_TONGUE) - inside)
    bitten = 0.17 * tall * np.sqrt(np.clip(1 - (t / 0.85) ** 2, 0, 1))  # shorter towards the corners
    teeth = np.clip((bitten - (y - top)) / (1.5 * pixel) + 0.5, 0, 1) * (np.abs(t) < 0.85)
    inside = tone * inside
    inside = inside + teeth[..., None] * (max(tone, 0.85) * np.array(_TEETH) - inside)
    shown = np.clip(np.minimum(y - top, low - y) / (1.2 * pixel) + 0.5, 0, 1) * (np.abs(t) < 1)
    colour = np.concatenate([inside, np.ones((*t.shape, 1))], axis=-1)
    return np.asarray(made + shown[..., None] * (colour * made[..., 3:].clip(0.0, 1) - made), np.float32)


def _bilinear(picture: np.ndarray, g: Geometry, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The picture at the face's places."""
    side = len(picture)
    at = g.to_picture(np.stack([x, y], axis=-1)) * side - 0.5
    at = np.clip(at, 0, side - 1.001)
    i, j = at[..., 0].astype(int), at[..., 1].astype(int)
    u, v = (at[..., 0] - i)[..., None], (at[..., 1] - j)[..., None]
    upper = picture[j, i] * (1 - u) + picture[j, i + 1] * u
    lower = picture[j + 1, i] * (1 - u) + picture[j + 1, i + 1] * u
    return np.asarray(upper * (1 - v) + lower * v, np.float32)
