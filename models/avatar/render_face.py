"""The head: skin and its shadows, eyes, brows, mouth, nose, and the marks that moods leave."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from render_canvas import Canvas, bezier, curve, dark, grow, light, mirror, mix, oval, ribbon
from render_hair import cap_outline
from render_people import Colour
from render_rig import Eye, Mouth, Rig

__all__ = ["brows", "eye_frame", "eyes", "head", "marks", "mouth", "neck"]

INK: Colour = (44, 26, 46)
WHITE: Colour = (255, 255, 255)


def _outline(rig: Rig) -> np.ndarray:
    """The face's outline, picture coordinates: the chin stands nearer to the viewer than the temples."""
    t = rig.traits
    wide = 0.222 + 0.006 * t.width + (0.004 if rig.child else -0.003 if rig.boy else 0)
    low = 0.307 + 0.008 * t.chin + (-0.016 if rig.child else 0.01 if rig.boy or rig.elder else 0)
    full = 0.012 * t.jitter[0] + (0.012 if rig.child else 0.008 if rig.boy else 0)
    chin = 0.056 + 0.011 * t.jitter[1] + (0.022 if rig.boy else 0)
    low += 0.018 * rig.controls["jawOpen"]
    half = [(0.0, -0.26), (0.17, -0.19), (wide, -0.04), (wide - 0.003, 0.08), (wide - 0.026 + full * 0.5, 0.16),
            (0.142 + full, low - 0.072), (chin, low - 0.018)]  # fmt: skip
    points = np.array([*half, (0.0, low), *mirror(half[1:])[::-1]])
    points = curve(points, closed=True, n=5)
    z = 0.15 * np.clip((points[:, 1] - 0.03) / 0.27, 0, 1) ** 1.2 * np.clip(1 - np.abs(points[:, 0]) / 0.28, 0, 1)
    return rig.head(points, z)


def _ear(c: Canvas, rig: Rig, side: int) -> None:
    skin = rig.skin
    ear = curve([(0.205, 0.04), (0.236, 0.02), (0.262, 0.045), (0.256, 0.1), (0.232, 0.15), (0.205, 0.15)], True, 4)
    c.shape(rig.head(ear * (side, 1.0), -0.04), skin.base, skin.ink, "face", rig.ink * 0.85)
    fold = curve([(0.222, 0.05), (0.246, 0.06), (0.238, 0.1), (0.228, 0.12)])
    c.line(rig.head(fold * (side, 1.0), -0.04), (0, 0.008, 0.004, 0), skin.shade)


def neck(c: Canvas, rig: Rig) -> None:
    """The neck, from the head to the body, under the chin's shadow."""
    skin = rig.skin
    wide = 0.072 if rig.boy else 0.058 if rig.child else 0.062
    top = rig.head([(-wide * 0.92, 0.18), (wide * 0.92, 0.18)], -0.02)
    low = rig.body([(wide * 1.04, 0.0), (wide * 1.5, 0.05), (0.0, 0.11), (-wide * 1.5, 0.05), (-wide * 1.04, 0.0)])
    column = np.concatenate([top, low])
    c.shape(column, skin.base, skin.ink, "face", rig.ink * 0.7)
    with c.clip(column):
        chin = rig.head([(-0.09, 0.2), (0.12, 0.2), (0.11, 0.335), (0.02, 0.372), (-0.06, 0.335)], 0.02)
        c.fill(curve(chin, True), skin.shade)
        bone = rig.body([(0.012, 0.068), (0.05, 0.05)])
        c.line(bone, 0.004, skin.shade)


def head(c: Canvas, rig: Rig) -> None:
    """Ears, face, and the shadows that hair and light cast on it."""
    skin, mood = rig.skin, rig.controls
    for side in (-1, 1):
        _ear(c, rig, side)
    outline = _outline(rig)
    c.shape(outline, skin.base, skin.ink, "face", rig.ink * 0.9)
    with c.clip(outline):
        # The side of the jaw away from the light, then the fringe's shadow.
        jaw = curve([(0.245, 0.03), (0.205, 0.1), (0.185, 0.17), (0.12, 0.255), (0.05, 0.293), (0.06, 0.34),
                     (0.26, 0.3)])  # fmt: skip
        c.fill(rig.on_face(np.add(jaw, (0.014 * rig.glow, 0))), skin.shade)
        fringe = rig.on_skull(cap_outline(rig), -0.02)
        c.fill(fringe + np.array([0.006, 0.026]) * rig.head_scale, skin.shade)
        for side in (-1, 1):
            lock = [(0.24, -0.1), (0.198, -0.02), (0.196, 0.1), (0.215, 0.17), (0.26, 0.1)]
            c.fill(rig.on_face(curve(np.array(lock) * (side, 1.0))), skin.shade)
        _cheeks(c, rig)
        gloom = max(mood["cold"], 0.0)
        if gloom > 0.02:
            for low, alpha in ((0.06, 0.2), (0.02, 0.2), (-0.02, 0.2)):
                veil = [(-0.26, -0.3), (0.26, -0.3), (0.26, low), (0.0, low + 0.012), (-0.26, low)]
                c.fill(rig.on_face(curve(veil, True, 4)), (66, 74, 150), alpha=alpha * gloom)
        if mood["angry"] > 0.02:
            veil = [(-0.26, -0.3), (0.26, -0.3), (0.26, 0.0), (0.0, 0.05), (-0.26, 0.0)]
            c.fill(rig.on_face(curve(veil, True, 4)), (190, 40, 60), alpha=0.2 * mood["angry"])
    _nose(c, rig)
    _lines(c, rig)


def _cheeks(c: Canvas, rig: Rig) -> None:
    mood = rig.controls
    rosy = 0.2 if rig.boy else 0.6 if rig.elder else 1.0
    flush = 0.22 * rosy * (1 - mood["cold"]) + (0.3 if rig.face["detail"] == "lively" else 0)
    flush += 0.5 * mood["happy"] + 0.2 * mood["sad"] + 0.8 * mood["blush"] + 0.25 * mood["angry"]
    flush = min(1.0, flush)
    colour = mix(rig.skin.base, (255, 74, 96), 0.62)
    for side in (-1, 1):
        for grown, alpha in ((1.0, 0.26), (0.78, 0.28), (0.52, 0.3)):
            c.fill(rig.on_face(oval(0.146 * side, 0.205, 0.052 * grown, 0.03 * grown)), colour, alpha=alpha * flush)
        if mood["blush"] > 0.05:
            for k in (-1, 0, 1):
                x = 0.146 * side + 0.024 * k
                line = [(x + 0.008, 0.192), (x - 0.008, 0.218)]
                c.line(rig.on_face(line), (0.003, 0.0065, 0.003), (226, 60, 84), alpha=mood["blush"])


def _nose(c: Canvas, rig: Rig) -> None:
    y = 0.19 + 0.005 * rig.traits.nose + (0.004 if rig.boy else 0)
    tip = [(0.001, y - 0.008), (0.008, y + 0.003), (0.0, y + 0.005)]
    c.fill(rig.on_face(curve(tip, True, 4), 0.035), mix(rig.skin.shade, rig.skin.ink, 0.35))
    if rig.boy or rig.elder:
        c.line(rig.on_face(curve([(0.004, y - 0.05), (0.01, y - 0.02), (0.012, y)]), 0.03), (0, 0.004, 0.006, 0),
               mix(rig.skin.shade, rig.skin.ink, 0.3))  # fmt: skip


def _lines(c: Canvas, rig: Rig) -> None:
    """Moles, and the lines that age draws."""
    skin = rig.skin
    if rig.traits.mole:
        c.fill(rig.on_face(oval(0.155 * rig.traits.side, 0.158, 0.0065, 0.0065, n=10)), skin.ink)
    if rig.elder:
        tone = mix(skin.shade, skin.ink, 0.45)
        folds = ([(0.056, 0.212), (0.074, 0.232), (0.078, 0.256)], [(0.075, 0.186), (0.11, 0.197), (0.145, 0.187)])
        for side in (-1, 1):
            for line in folds:
                c.line(rig.on_face(curve(np.array(line) * (side, 1.0))), (0, 0.0065, 0.0065, 0), tone)


# Eyes.


def eye_frame(rig: Rig) -> tuple[float, float, float, float]:
    """Centre x and y, half width and half height of an open eye."""
    t = rig.traits
    x, y, rx, ry = 0.112, 0.1, 0.075 + 0.003 * t.eye, 0.072 + 0.004 * t.eye
    if rig.boy:
        rx, ry = rx * 0.93, ry * 0.74
    elif not rig.girl:
        ry *= 0.92
    if rig.child:
        rx, ry, y = rx * 1.06, ry * 1.08, y + 0.01
    if rig.elder:
        rx, ry = rx * 0.93, ry * 0.74
    if rig.chibi:
        rx, ry, y = rx * 1.12, ry * 1.16, y + 0.008
    return x, y, rx, ry


def _lids(rig: Rig, eye: Eye) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower lid [n, 2] each, inner corner first; eye coordinates, the outer corner at positive x."""
    _, _, rx, ry = eye_frame(rig)
    tilt = 0.012 * rig.traits.tilt + (-0.004 if rig.girl else 0)
    t = np.linspace(0, 1, 15)
    x = rx * (2 * t - 1)
    corner = 0.32 * ry + tilt * (1 - 2 * t)
    bow = np.sin(np.pi * t) ** 0.75
    skew = np.sin(np.pi * t**0.85) ** 0.75
    shut = 1 - min(1.0, eye.opening)
    top = corner - 1.32 * ry * (0.45 * bow + 0.55 * skew) * max(eye.opening, 0.0)
    # An angry lid falls towards the nose, a sad one towards the temple.
    slant = eye.slant * 0.5 * ry * min(1.0, eye.opening * 1.6)
    ramp = np.clip(1 - t * 1.25, 0, 1) if slant > 0 else np.clip(1.25 * t - 0.25, 0, 1)
    top = top + abs(slant) * ramp * bow**0.5 + 0.35 * abs(slant) * bow
    bottom = corner + 0.62 * ry * bow * (1 - 0.55 * eye.squint)
    # Closed: both lids meet on one arc, below the middle; a smile turns it over.
    rest = corner + ry * (0.36 - 0.72 * eye.arch) * bow + 0.1 * ry
    ease = shut**1.4 if shut < 1 else 1.0
    top = top * (1 - ease) + rest * ease
    bottom = bottom * (1 - ease) + rest * ease
    return np.stack([x, np.minimum(top, bottom)], 1), np.stack([x, bottom], 1)


def eyes(c: Canvas, rig: Rig) -> None:
    for side in (-1, 1):
        _eye(c, rig, side)


def _eye(c: Canvas, rig: Rig, side: int) -> None:
    eye = rig.eye(side)
    cx, cy, _, _ = eye_frame(rig)
    upper, lower = _lids(rig, eye)

    def place(points: np.ndarray, lift: float = 0.0) -> np.ndarray:
        return rig.on_face(np.asarray(points) * (side, 1.0) + (cx * side, cy), lift)

    opening = np.concatenate([upper, lower[::-1]])
    lash = (0.031 if rig.girl else 0.022) * (1.1 if rig.chibi else 1) * (0.8 if rig.elder else 1)
    lashes = mix(INK, rig.hair.ink, 0.35)
    gap = float((lower[:, 1] - upper[:, 1]).max())
    if gap > 0.006:
        white = place(opening)
        c.fill(grow(white, 0.002), rig.skin.ink, "eyes")
        c.fill(white, (252, 252, 255), "eyes")
        with c.clip(white):
            _iris(c, rig, eye, side, place)
            # The lid's shadow on the ball.
            shadow = np.concatenate([np.add(upper, (0, -0.02)), np.add(upper, (0, 0.013))[::-1]])
            c.fill(place(shadow), (70, 60, 110), alpha=0.34)
    # Lash line: thin at the nose, full over the iris, a wing at the temple.
    tip = upper[-1]
    rise = 0.01 * eye.arch * (1 - min(1, eye.opening))
    wing = np.add(tip, [(0.01, rise - 0.006), (0.022, -0.016)])
    if rig.boy or rig.elder:
        wing = wing[:1]
    path = np.concatenate([upper, wing])
    weight = np.interp(np.linspace(0, 1, len(path)), (0, 0.3, 0.75, 0.9, 1), (0.35, 0.85, 1.0, 0.75, 0.05)) * lash
    c.fill(place(_stroke(path, weight)), lashes, "eyes")
    if rig.girl and not rig.elder:
        for k, reach in ((11, 0.016), (13, 0.02)):
            root = upper[k]
            hair = np.add(root, [(-0.006, 0.004), (reach, -reach * 1.05), (0.008, 0.006)])
            c.fill(place(hair), lashes, "eyes")
    under = lower[7:] if not rig.girl else lower[5:]
    if gap > 0.006:
        c.line(place(under), (0, 0.006, 0.0075, 0.003), mix(lashes, rig.skin.ink, 0.4), "eyes")
    # The fold of the upper lid.
    fold = upper[3:-2] * (0.94, 1.0) + (0.002, -lash * 0.5 - 0.016)
    if eye.opening > 0.1:
        deep = min(1.0, (eye.opening - 0.1) / 0.3)
        c.line(place(fold), (0, 0.005, 0.005, 0), mix(rig.skin.shade, rig.skin.ink, 0.6), alpha=deep)


def _stroke(path: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A lash line: it grows upwards from the path."""
    lift = np.stack([np.zeros(len(path)), weight], 1)
    return np.concatenate([path - lift * 0.8, (path + lift * 0.2)[::-1]])


def _iris(c: Canvas, rig: Rig, eye: Eye, side: int, place: Callable[[np.ndarray], np.ndarray]) -> None:
    _, _, rx, ry = eye_frame(rig)
    colour = rig.iris
    gx = 0.025 * rig.controls["gazeX"] * side
    gy = 0.002 - 0.022 * rig.controls["gazeY"]
    ix = 0.056 * (rx / 0.075) * eye.iris * (1 + 0.03 * rig.traits.iris)
    iy = 0.067 * (ry / 0.072) ** 0.7 * eye.iris * (1.02 if rig.girl else 0.96)

    def disc(dx: float, dy: float, sx: float, sy: float, n: int = 20) -> np.ndarray:
        return place(oval(gx + dx * ix, gy + dy * iy, sx * ix, sy * iy, n=n))

    whole = disc(0, 0, 1, 1, 24)
    deep, rim = dark(colour, 0.62), dark(colour, 0.74)
    c.fill(whole, rim, "eyes")
    inner = disc(0, 0.02, 0.88, 0.9, 24)
    with c.clip(inner):
        low, high = inner[:, 1].min(), inner[:, 1].max()
        c.bands(low, high, [deep, dark(colour, 0.28), colour, mix(colour, WHITE, 0.1), mix(colour, WHITE, 0.3)])
    c.fill(disc(0, 0.52, 0.58, 0.3), mix(colour, WHITE, 0.5), alpha=0.65 * (0.35 + 0.65 * eye.alive))
    c.fill(disc(0, -0.02, 0.4, 0.42), dark(colour, 0.84))
    # Highlights keep their place while the eye looks about, as reflections do; they always face the light.
    flip = side
    if eye.alive > 0.05:
        shine = math.sqrt(eye.alive)
        c.fill(disc(-0.36 * flip, -0.42, 0.3 * shine, 0.27 * shine, 14), WHITE)
        c.fill(disc(0.4 * flip, 0.34, 0.15 * shine, 0.15 * shine, 10), WHITE)
        wet = max(rig.controls["tear"], rig.controls["sad"])
        if wet > 0.1:
            c.fill(disc(0.1 * flip, 0.66, 0.5 * wet, 0.2 * wet, 14), WHITE, alpha=0.85)
            c.fill(disc(0.35 * flip, -0.1, 0.2 * wet, 0.22 * wet, 12), WHITE, alpha=0.9)
    if rig.face["detail"] in ("highly detailed", "lively"):
        c.fill(disc(0.42 * flip, -0.3, 0.12, 0.12, 8), WHITE)
        c.fill(disc(-0.42 * flip, 0.35, 0.1, 0.1, 8), WHITE)


def brows(c: Canvas, rig: Rig) -> None:
    """Drawn over the fringe, as is the custom, so that a mood can always be read."""
    colour = mix(dark(rig.hair.base, 0.55), rig.hair.ink, 0.5)
    if rig.face["hair"] in ("silver", "blonde"):
        colour = mix(rig.hair.ink, rig.hair.base, 0.12)
    paths = [_brow(rig, side) for side in (-1, 1)]
    if rig.face["hair"] == "black":
        with c.clip(rig.on_skull(cap_outline(rig), 0.012)):
            for path, thick in paths:
                glow = mix(rig.hair.base, rig.hair.light, 0.5)
                c.line(path, (thick, thick * 2.3, thick * 2.3, thick), glow, alpha=0.6)
    for path, thick in paths:
        c.line(path, (thick * 0.75, thick * 1.1, thick * 0.9, thick * 0.12), colour, "brows")


def _brow(rig: Rig, side: int) -> tuple[np.ndarray, float]:
    """A brow's path on the picture, and its thickness."""
    eye = rig.eye(side)
    thick = (0.018 if rig.boy else 0.015 if rig.elder else 0.0115) + 0.002 * rig.traits.brow
    thick *= eye.brow_width
    y = -0.012 - (0.01 if rig.child or rig.chibi else 0) + (0.008 if rig.boy else 0)
    inner = (0.052, y + 0.006 - eye.brow_inner)
    outer = (0.172, y + 0.012 - eye.brow_outer)
    bow = 0.03 - 0.4 * abs(eye.brow_inner - eye.brow_outer)
    middle = (0.122, (inner[1] + outer[1]) / 2 - max(0.004, bow))
    return rig.on_face(bezier(inner, middle, outer, 12) * (side, 1.0), 0.01), thick


# The mouth.


def _lips(rig: Rig, m: Mouth) -> tuple[np.ndarray, np.ndarray]:
    """The lines where the lips meet, or part: upper and lower [21, 2], from left to right."""
    t = np.linspace(-1, 1, 21)
    y = 0.238 + (0.006 if rig.boy else 0) - (0.004 if rig.child else 0)
    bend = 0.024 * m.corners * (1 - 0.35 * min(1, m.opening / 0.04))
    wide = m.width * (1 - 0.25 * m.round)
    wave = 0.0035 * m.wave * np.sin(2.5 * np.pi * t)
    top = y - bend * (t**2 - 0.35) + wave - m.round * 0.3 * m.opening * (1 - t**2)
    top = top + 0.003 * (1 - np.abs(t)) * (1 - m.round)
    low = top + m.opening * (1 + 0.3 * m.round) * (1 - t**2) ** (0.5 - 0.12 * m.clench)
    square = np.clip(1.6 * (1 - np.abs(t) ** 6), 0, 1)
    low = low * (1 - m.clench) + (top + (m.opening * 1.15) * square) * m.clench
    return np.stack([wide * t, top], 1), np.stack([wide * t, low], 1)


def mouth(c: Canvas, rig: Rig) -> None:
    m, skin = rig.mouth(), rig.skin
    line = mix(skin.ink, (150, 40, 60), 0.35 if rig.girl else 0.1)
    upper, lower = _lips(rig, m)
    wide, t = upper[-1, 0], np.linspace(-1, 1, 21)
    parted = min(1.0, m.opening / 0.02)
    pink = mix(skin.base, (226, 84, 112), 0.55)
    if rig.girl:
        pout = np.stack([0.55 * wide * t[3:-3], lower[3:-3, 1] + 0.011 * (1 - t[3:-3] ** 2)], 1)
        tint = rig.on_face(np.concatenate([pout, upper[4:-4][::-1]]), 0.02)
        c.fill(tint, pink, "mouth" if parted < 0.5 else "face", 1 - parted)
    chin = np.stack([0.35 * wide * t[7:14], lower[7:14, 1] + 0.013 + 0.007 * (1 - parted)], 1)
    c.line(rig.on_face(chin, 0.02), (0, 0.005, 0), skin.shade)
    if m.pucker > 0.02:
        ring = np.concatenate([upper, lower[::-1]])
        c.fill(grow(rig.on_face(ring, 0.02), 0.003 + 0.011 * m.pucker), mix(skin.shade, pink, 0.7), "mouth")
    c.line(rig.on_face(upper, 0.02), (0.003, 0.01, 0.0085, 0.01, 0.003), line, "mouth")
    if m.opening > 0.002:
        hole = rig.on_face(np.concatenate([upper, lower[::-1]]), 0.02)
        c.fill(grow(hole, 0.0015 + 0.003 * parted), line, "mouth")
        c.fill(hole, (172, 36, 58), "mouth")
        with c.clip(hole):
            _inside(c, rig, m, upper, lower)


def _inside(c: Canvas, rig: Rig, m: Mouth, upper: np.ndarray, lower: np.ndarray) -> None:
    """The dark of the throat, the tongue, and teeth: a row, a fang, or both rows clenched."""
    wide, y = upper[-1, 0], float(upper[10, 1])

    def below(depth: float) -> np.ndarray:
        return rig.on_face(np.concatenate([upper - (0, 0.01), np.add(upper, (0, depth))[::-1]]), 0.02)

    c.fill(below(m.opening * 0.35), (112, 18, 40))
    c.fill(rig.on_face(oval(0, y + m.opening * 1.12, wide * 0.62, m.opening * 0.5), 0.02), (240, 116, 124))
    teeth = m.teeth * min(0.014, m.opening * 0.34)
    if teeth > 0.001:
        c.fill(below(teeth), WHITE)
    if m.clench > 0.05:
        c.fill(below(m.opening * 1.3 * m.clench), WHITE)
        c.line(rig.on_face((upper + lower) / 2, 0.02), 0.005, rig.skin.ink, alpha=m.clench)
        for x in (-0.5, 0.0, 0.5):
            gap = rig.on_face([(x * wide, y - 0.03), (x * wide, y + 0.06)], 0.02)
            c.line(gap, 0.0035, rig.skin.ink, alpha=m.clench)
    elif rig.traits.fang and m.opening > 0.02 and m.round < 0.3:
        x = 0.55 * wide * rig.traits.side
        c.fill(rig.on_face([(x - 0.008, y - 0.01), (x + 0.008, y - 0.01), (x, y + 0.019)], 0.02), WHITE)


# Marks.


def marks(c: Canvas, rig: Rig) -> None:
    """Signs over everything: tears, the vein of anger, and sparkles round the lively."""
    mood, t = rig.controls, rig.traits
    drop = max(mood["tear"], 0.9 * min(1.0, max(0.0, (mood["sad"] - 0.3) / 0.5)))
    cx, cy, _, ry = eye_frame(rig)
    if drop > 0.03:
        for side in (-1, 1):
            x, y = (cx + 0.022) * side, cy + 0.66 * ry
            size = drop**0.5
            tear = [
                (x, y - 0.012),
                (x + 0.015 * size, y + 0.028 * size),
                (x + 0.013 * size, y + 0.056 * size),
                (x, y + 0.068 * size),
                (x - 0.013 * size, y + 0.056 * size),
                (x - 0.015 * size, y + 0.028 * size),
            ]
            drawn = rig.on_face(curve(tear, True, 4), 0.01)
            c.shape(drawn, (150, 214, 255), (58, 128, 214), "face", 0.004)
            c.fill(rig.on_face(oval(x - 0.004, y + 0.05 * size, 0.0045, 0.008, n=8), 0.01), WHITE)
    vein = min(1.0, max(0.0, (mood["angry"] - 0.25) / 0.6))
    if vein > 0.02:
        x, y, r = -0.15 * t.side, -0.165, 0.055 * vein
        for width, colour in ((0.03 * vein, WHITE), (0.0145 * vein, (206, 6, 58))):
            for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                bend = bezier((x + sx * r, y + sy * r * 0.34), (x + sx * r * 0.3, y + sy * r * 0.3),
                              (x + sx * r * 0.34, y + sy * r), 6)  # fmt: skip
                c.fill(rig.on_skull(ribbon(bend, width), 0.02), colour, "face")
    startled = min(1.0, max(0.0, (mood["surprised"] - 0.3) / 0.6))
    if startled > 0.02:
        for k, angle in enumerate((-0.35, 0.0, 0.35)):
            a = -0.9 * t.side + angle + (math.pi if t.side < 0 else 0)
            start = np.array([0.31 * math.cos(a), 0.31 * math.sin(a) - 0.05])
            stop = start * (1 + (0.18 + 0.05 * (k == 1)) * startled)
            path = rig.head([start, (start + stop) / 2, stop])
            c.line(path, (0.004 * startled, 0.014 * startled, 0.006 * startled), (70, 60, 96), "face")
    if rig.face["detail"] == "lively":
        sparkles = ((-0.37, -0.24, 0.06), (0.38, -0.12, 0.05), (-0.4, 0.1, 0.036), (0.36, -0.3, 0.03))
        for i, (x, y, r) in enumerate(sparkles):
            y += 0.03 * t.jitter[10 + i]
            star = []
            for k in range(16):
                s = r * (1 if k % 4 == 0 else 0.42 if k % 2 == 0 else 0.3)
                star.append((x + s * math.cos(k * math.pi / 8), y + s * math.sin(k * math.pi / 8)))
            c.shape(rig.head(star), (255, 226, 96), (232, 150, 40), "accessory", 0.005)
            c.fill(rig.head(oval(x, y, r * 0.2, r * 0.2, n=10)), light((255, 226, 96), 0.7))
