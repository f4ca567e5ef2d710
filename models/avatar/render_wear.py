"""What is worn: clothes with collars and folds, glasses, ears, ribbons, headphones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from render_canvas import Canvas, Points, bezier, curve, dark, light, mirror, mix, oval, ribbon, shade
from render_face import eye_frame, neck
from render_people import Colour
from render_rig import Palette, Rig

__all__ = ["accessory", "body", "ears", "glasses"]

PART = "clothes"
RED: Colour = (226, 56, 76)
NAVY: Colour = (58, 74, 148)


def _tones(colour: Colour) -> Palette:
    return Palette(colour, shade(colour, 0.3), dark(shade(colour, 0.3), 0.55), light(colour, 0.45))


def _contrast(rig: Rig) -> Palette:
    """The second colour of the clothes."""
    if rig.face["colour"] == "white":
        return Palette((108, 132, 190), (80, 98, 156), (44, 52, 96), (160, 182, 226))
    return Palette((250, 250, 252), (214, 218, 234), (96, 100, 130), (255, 255, 255))


def _trunk(rig: Rig) -> tuple[np.ndarray, float]:
    """The outline of shoulders and chest, body coordinates, and the shoulder's half width."""
    wide = 0.315 if rig.boy else 0.262 if rig.girl else 0.285
    wide += 0.008 * rig.traits.width
    half = [(0.068, -0.015), (0.1, 0.03), (wide * 0.72, 0.062), (wide * 0.94, 0.105), (wide + 0.012, 0.19),
            (wide + 0.03, 0.34), (wide + 0.036, 0.6)]  # fmt: skip
    side = curve(half, n=5)
    return np.concatenate([side, mirror(side)[::-1]]), wide


def _both(c: Canvas, rig: Rig, points: Points, tones: Palette, part: str = PART, width: float = 1.0) -> None:
    for side in (-1, 1):
        c.shape(rig.body(np.asarray(points) * (side, 1.0)), tones.base, tones.ink, part, rig.ink * width)


def _folds(c: Canvas, rig: Rig, wide: float) -> None:
    """Shadow of head and hair on the chest, arms apart from the trunk, and creases (inside the clothes' clip)."""
    tones, d = rig.cloth, 0.022 * rig.drape
    under = rig.head([(-0.2, 0.3), (0.23, 0.3), (0.19, 0.41), (0.02, 0.46), (-0.15, 0.41)], 0.02)
    c.fill(curve(under, True, 5), tones.shade)
    arm = [(wide * 1.2, 0.06), (wide * 0.96, 0.13), (wide * 0.8 + d, 0.26), (wide * 0.78, 0.45), (wide * 1.3, 0.45)]
    c.fill(rig.body(curve(arm, n=5)), tones.shade)
    for side in (-1, 1):
        for start, bend, stop in (
            ((wide * 0.78, 0.17), (wide * 0.76 + d, 0.24), (wide * 0.82, 0.4)),
            ((wide * 0.62 + d, 0.1), (wide * 0.6, 0.14), (wide * 0.48, 0.17 + d)),
            ((wide * 0.7, 0.28 + d), (wide * 0.55, 0.27), (wide * 0.42, 0.3)),
        ):
            crease = bezier(start, bend, stop, 8) * (side, 1.0)
            c.line(rig.body(crease), (0, 0.007, 0.006, 0), mix(tones.shade, tones.ink, 0.35))
    edge = curve([(-wide * 0.95, 0.11), (-wide * 0.72, 0.07), (-wide * 0.4, 0.048)], n=5)
    c.line(rig.body(np.add(edge, (0, 0.012))), (0, 0.01, 0), tones.light, alpha=0.7)


def _bow(
    c: Canvas, rig: Rig, x: float, y: float, size: float, tones: Palette, part: str,
    place: Callable[[np.ndarray], np.ndarray],
) -> None:  # fmt: skip
    """A ribbon tied in a bow: two loops, two ends, a knot."""
    for side in (-1, 1):
        end = np.array([(0.0, 0.0), (0.34, 0.85), (0.62, 0.72), (0.16, -0.05)]) * (side * size, size) + (x, y)
        c.shape(place(end), tones.shade, tones.ink, part, rig.ink * 0.8)
    for side in (-1, 1):
        loop = curve([(0.0, -0.12), (0.55, -0.52), (1.0, -0.42), (1.02, 0.3), (0.6, 0.34), (0.0, 0.14)], True, 4)
        drawn = place(np.add(loop * (side * size, size), (x, y)))
        c.shape(drawn, tones.base, tones.ink, part, rig.ink * 0.9)
        with c.clip(drawn):
            fold = np.array([(0.1, 0.02), (1.1, 0.02), (1.1, 0.6), (0.0, 0.5)]) * (side * size, size) + (x, y)
            c.fill(place(fold), tones.shade)
            c.fill(place(np.array([(0.1, 0.0), (0.5, -0.14), (0.5, 0.04)]) * (side * size, size) + (x, y)), tones.ink)
    c.shape(place(oval(x, y, size * 0.2, size * 0.24, n=14)), tones.base, tones.ink, part, rig.ink * 0.8)


def body(c: Canvas, rig: Rig) -> None:
    """Shoulders and clothes. The neck is drawn after the trunk and before collars."""
    tones, kind = rig.cloth, rig.face["clothes"]
    outline, wide = _trunk(rig)
    if kind == "hoodie":
        hood = curve([(-0.075, -0.06), (-0.165, -0.05), (-0.215, 0.02), (-0.19, 0.09), (0.19, 0.09), (0.215, 0.02),
                      (0.165, -0.05), (0.075, -0.06)], True, 5)  # fmt: skip
        c.shape(rig.body(hood), tones.shade, tones.ink, PART, rig.ink)
    if kind == "dress":
        _dress(c, rig, outline, wide)
        return
    trunk = rig.body(outline)
    c.shape(trunk, tones.base, tones.ink, PART, rig.ink * 1.1)
    with c.clip(trunk):
        _folds(c, rig, wide)
    {"school uniform": _uniform, "hoodie": _hoodie, "shirt": _shirt, "suit": _suit, "kimono": _kimono}[kind](
        c, rig, wide
    )


def _uniform(c: Canvas, rig: Rig, wide: float) -> None:
    second, tones = _contrast(rig), rig.cloth
    vee = [(-0.075, 0.0), (0.075, 0.0), (0.0, 0.15)]
    c.fill(rig.body(vee), rig.skin.base, "face")
    neck(c, rig)
    # A sailor's collar with a stripe, and a bow or a scarf.
    half = curve([(0.06, -0.015), (0.115, 0.022), (0.2, 0.065)], n=4)
    collar = np.concatenate([half, [(0.205, 0.14), (0.115, 0.185), (0.005, 0.19), (0.0, 0.165), (0.05, 0.085)]])
    _both(c, rig, collar, second)
    for side in (-1, 1):
        stripe = np.array([(0.18, 0.072), (0.183, 0.128), (0.108, 0.168), (0.012, 0.174)]) * (side, 1.0)
        stroke = tones.base if rig.face["colour"] not in ("white", "yellow") else tones.shade
        c.line(rig.body(stripe), 0.008, stroke)
    colour = RED if rig.face["colour"] != "red" else NAVY
    if rig.boy and rig.traits.trim % 2:
        tie = [(-0.022, 0.16), (0.022, 0.16), (0.03, 0.24), (0.038, 0.4), (-0.038, 0.4), (-0.03, 0.24)]
        c.shape(rig.body(tie), colour, _tones(colour).ink, PART, rig.ink)
        knot = [(-0.03, 0.145), (0.03, 0.145), (0.02, 0.195), (-0.02, 0.195)]
        c.shape(rig.body(knot), _tones(colour).shade, _tones(colour).ink, PART, rig.ink)
    else:
        size = 0.082 + 0.008 * rig.traits.jitter[2]
        _bow(c, rig, 0.0, 0.18, size, _tones(colour), PART, rig.body)


def _hoodie(c: Canvas, rig: Rig, wide: float) -> None:
    tones, second = rig.cloth, _contrast(rig)
    neck(c, rig)
    roll = [(0.07, -0.045), (0.135, -0.03), (0.178, 0.03), (0.15, 0.09), (0.06, 0.14), (0.0, 0.155)]
    inner = [(0.0, 0.105), (0.045, 0.075), (0.068, 0.02)]
    half = np.concatenate([curve(roll, n=5), curve(inner, n=4)])
    for side in (-1, 1):
        drawn = rig.body(half * (side, 1.0))
        c.shape(drawn, tones.base, tones.ink, PART, rig.ink)
        with c.clip(drawn):
            lining = [(0.06, -0.05), (0.092, 0.02), (0.065, 0.085), (0.0, 0.122), (0.0, 0.09), (0.04, 0.06)]
            c.fill(rig.body(curve(lining, True, 4) * (side, 1.0)), tones.shade)
            crease = curve([(0.13, -0.02), (0.15, 0.03), (0.12, 0.075)], n=5) * (side, 1.0)
            c.line(rig.body(crease), (0, 0.007, 0), mix(tones.shade, tones.ink, 0.3))
        cord = curve([(0.05, 0.125), (0.056 + 0.004 * rig.drape, 0.19), (0.05, 0.255)], n=4) * (side, 1.0)
        c.line(rig.body(cord), 0.019, tones.ink, PART)
        c.line(rig.body(cord), 0.0105, second.base, PART)
        c.shape(rig.body(oval(0.05 * side, 0.262, 0.009, 0.014, n=10)), second.shade, tones.ink, PART, 0.004)


def _shirt(c: Canvas, rig: Rig, wide: float) -> None:
    tones, second = rig.cloth, _contrast(rig)
    c.fill(rig.body([(-0.07, 0.0), (0.07, 0.0), (0.0, 0.12)]), rig.skin.base, "face")
    neck(c, rig)
    c.line(rig.body([(0.004, 0.1), (0.004, 0.6)]), 0.005, tones.ink)
    c.line(rig.body([(0.03, 0.14), (0.03, 0.6)]), 0.004, mix(tones.shade, tones.ink, 0.3))
    for y in (0.15, 0.215, 0.28):
        c.shape(rig.body(oval(0.016, y, 0.011, 0.011, n=12)), second.base, tones.ink, PART, 0.004)
    collar = [(0.062, -0.03), (0.098, 0.006), (0.128, 0.07), (0.068, 0.118), (0.0, 0.092), (0.05, 0.04)]
    _both(c, rig, collar, Palette(mix(tones.base, tones.light, 0.55), tones.shade, tones.ink, tones.light))
    if rig.traits.trim < 2:
        pocket = curve([(0.1, 0.2), (0.19, 0.2), (0.188, 0.26), (0.145, 0.285), (0.102, 0.26)], True, 2)
        c.line(rig.body(np.concatenate([pocket, pocket[:1]])), 0.005, mix(tones.shade, tones.ink, 0.5))


def _suit(c: Canvas, rig: Rig, wide: float) -> None:
    tones = rig.cloth
    white = Palette((252, 252, 255), (214, 220, 236), (92, 96, 128), (255, 255, 255))
    front = [(-0.09, -0.01), (0.09, -0.01), (0.075, 0.14), (0.0, 0.34), (-0.075, 0.14)]
    c.shape(rig.body(front), white.base, tones.ink, PART, rig.ink * 0.8)
    neck(c, rig)
    c.fill(rig.body([(0.02, 0.1), (0.08, 0.1), (0.0, 0.34)]), white.shade)
    tie = _tones(RED if rig.face["colour"] != "red" else NAVY)
    if rig.girl and rig.traits.trim % 2:
        _bow(c, rig, 0.0, 0.1, 0.06, tie, PART, rig.body)
    else:
        c.shape(rig.body([(-0.018, 0.1), (0.018, 0.1), (0.036, 0.25), (0.0, 0.33), (-0.036, 0.25)]), tie.base, tie.ink,
                PART, rig.ink * 0.8)  # fmt: skip
        c.fill(rig.body([(0.004, 0.11), (0.018, 0.11), (0.034, 0.25), (0.0, 0.32)]), tie.shade)
        c.shape(rig.body([(-0.028, 0.07), (0.028, 0.07), (0.017, 0.112), (-0.017, 0.112)]), tie.base, tie.ink, PART,
                rig.ink * 0.8)  # fmt: skip
    _both(c, rig, [(0.058, -0.03), (0.092, 0.0), (0.096, 0.06), (0.05, 0.1), (0.0, 0.075)], white, width=0.8)
    lapel = [(0.088, -0.012), (0.13, 0.03), (0.185, 0.1), (0.142, 0.118), (0.165, 0.15), (0.1, 0.25), (0.0, 0.37),
             (0.02, 0.28), (0.075, 0.15)]  # fmt: skip
    deep = Palette(mix(tones.base, tones.light if rig.face["colour"] == "black" else tones.shade, 0.5), tones.shade,
                   tones.ink, tones.light)  # fmt: skip
    _both(c, rig, lapel, deep)


def _kimono(c: Canvas, rig: Rig, wide: float) -> None:
    tones, second, t = rig.cloth, _contrast(rig), rig.traits
    flower = (255, 196, 214) if rig.face["colour"] in ("black", "blue", "green", "red") else (236, 96, 134)
    trunk = rig.body(_trunk(rig)[0])
    with c.clip(trunk):
        for i, (x, y, r) in enumerate((
            (-0.2, 0.15, 0.036), (0.215, 0.13, 0.032), (-0.27, 0.26, 0.03), (0.18, 0.235, 0.028), (-0.13, 0.235, 0.022),
            (0.285, 0.25, 0.036),
        )):  # fmt: skip
            x += 0.012 * t.jitter[i + 6]
            for k in range(5):
                a = 2 * np.pi * (k / 5) + t.jitter[i]
                petal = oval(x + 0.6 * r * np.cos(a), y + 0.6 * r * np.sin(a), 0.52 * r, 0.52 * r, n=10)
                c.fill(rig.body(petal), flower)
            c.fill(rig.body(oval(x, y, r * 0.26, r * 0.26, n=8)), (255, 236, 150))
    neck(c, rig)
    c.fill(rig.body([(-0.06, 0.015), (0.06, 0.015), (0.0, 0.13)]), rig.skin.base, "face")
    c.fill(rig.body([(-0.02, 0.03), (0.05, 0.02), (0.0, 0.13)]), rig.skin.shade)
    for dx, dy, tone, width in ((0.0, 0.0, second, 0.012), (0.026, 0.012, tones, 0.008)):
        spine = [(-0.06 - dx, -0.05 + dy), (-0.07 - dx, 0.03), (0.005 - dx, 0.16 + dy), (0.09, 0.3)]
        band = ribbon(curve(spine, n=5), (width, 0.036, 0.05, 0.05))
        for piece in (band, mirror(band)):
            c.shape(rig.body(piece), tone.base if tone is second else tones.shade, tones.ink, PART, rig.ink * 0.85)
    sash = _tones((250, 200, 84) if rig.face["colour"] not in ("yellow", "white") else (196, 60, 86))
    belt = rig.body([(-wide * 0.98, 0.285), (wide * 0.98, 0.285), (wide, 0.6), (-wide, 0.6)])
    c.shape(belt, sash.base, sash.ink, PART, rig.ink)
    c.line(rig.body([(-wide, 0.315), (wide, 0.315)]), 0.01, RED if rig.face["colour"] != "white" else (255, 226, 150))


def _dress(c: Canvas, rig: Rig, outline: np.ndarray, wide: float) -> None:
    tones, second, skin = rig.cloth, _contrast(rig), rig.skin
    shoulders = rig.body(outline)
    c.shape(shoulders, skin.base, skin.ink, "face", rig.ink)
    with c.clip(shoulders):
        arm = [(wide * 1.2, 0.07), (wide * 0.94, 0.15), (wide * 0.86, 0.3), (wide * 0.84, 0.45), (wide * 1.3, 0.45)]
        c.fill(rig.body(curve(arm, n=5)), skin.shade)
    neck(c, rig)
    for side in (-1, 1):
        bone = curve([(0.04, 0.075), (0.08, 0.055), (0.13, 0.056)], n=5) * (side, 1.0)
        c.line(rig.body(bone), (0, 0.006, 0), skin.shade)
        arm = curve([(wide * 0.74, 0.2), (wide * 0.76, 0.26), (wide * 0.8, 0.4)]) * (side, 1.0)
        c.line(rig.body(arm), (0, 0.007, 0.007), skin.ink)
        strap = curve([(0.135, 0.045), (0.15, 0.1), (0.145, 0.19)], n=4)
        c.shape(rig.body(ribbon(strap, 0.03) * (side, 1.0)), tones.base, tones.ink, PART, rig.ink * 0.8)
    bust = curve([(-wide * 0.78, 0.17), (-0.1, 0.155), (0.0, 0.18), (0.1, 0.155), (wide * 0.78, 0.17)], n=6)
    cloth = np.concatenate([bust, [(wide * 0.8, 0.6), (-wide * 0.8, 0.6)]])
    drawn = rig.body(cloth)
    c.shape(drawn, tones.base, tones.ink, PART, rig.ink)
    with c.clip(drawn):
        d = 0.02 * rig.drape
        c.fill(rig.body([(0.1 + d, 0.3), (0.16, 0.15), (0.3, 0.15), (0.3, 0.6), (0.13, 0.6)]), tones.shade)
        for x in (-0.15, -0.06, 0.05):
            c.line(rig.body([(x, 0.22), (x * 1.1 + d, 0.3), (x * 1.15, 0.42)]), (0, 0.007, 0.007), tones.shade)
    # A frill along the edge.
    count = 9
    for i in range(count):
        x = -wide * 0.74 + wide * 1.48 * i / (count - 1)
        y = float(np.interp(x, bust[:, 0], bust[:, 1])) + 0.006
        scallop = rig.body(oval(x, y, wide * 0.105, 0.03, 0, 180, 10))
        c.shape(scallop, second.base, tones.ink if rig.face["colour"] != "white" else second.ink, PART, 0.004)
    if rig.traits.trim % 3 == 0:
        gem = rig.body(oval(0.0, 0.1, 0.013, 0.016, n=12))
        chain = curve([(-0.066, 0.03), (-0.03, 0.08), (0, 0.09), (0.03, 0.08), (0.066, 0.03)], n=5)
        c.line(rig.body(chain), 0.004, (214, 170, 80))
        c.shape(gem, (120, 200, 240), (60, 90, 150), "face", 0.003)
    elif rig.traits.trim % 3 == 1:
        _bow(c, rig, 0.0, 0.21, 0.055, _tones(RED if rig.face["colour"] != "red" else NAVY), PART, rig.body)


# On the head.


def _lens(rig: Rig, side: int) -> np.ndarray:
    """A lens round the eye of that side, head coordinates."""
    x, y, rx, ry = eye_frame(rig)
    if rig.face["glasses"] == "round":
        return oval(x * side, y + 0.004, rx + 0.019, max(rx + 0.014, ry + 0.016), n=30)
    w, top, low = rx + 0.019, y - ry * 0.86, y + max(ry, 0.064) + 0.012
    box = [(-w + 0.006, top), (w - 0.006, top), (w, top + 0.011), (w - 0.01, low - 0.018), (w - 0.026, low),
           (0.026 - w, low), (0.01 - w, low - 0.018), (-w, top + 0.011)]  # fmt: skip
    return np.add(box, (x * side, 0))


def glasses(c: Canvas, rig: Rig) -> None:
    """Frames before everything, lenses that catch the light."""
    kind = rig.face["glasses"]
    if kind == "none":
        return
    frame = ((38, 32, 52), (150, 42, 58), (48, 58, 120))[rig.traits.trim % 3]
    width = 0.0125 if kind == "round" else 0.016
    for side in (-1, 1):
        ring = _lens(rig, side)
        lens, x = rig.on_face(ring, 0.04), ring[:, 0].mean()
        c.fill(lens, (220, 240, 255), alpha=0.08)
        with c.clip(lens):
            for dx, w in ((-0.03, 0.02), (0.0, 0.008)):
                glare = [(0.03, 0.0), (0.03 + w, 0.0), (w - 0.04, 0.22), (-0.04, 0.22)]
                c.fill(rig.on_face(np.add(glare, (x + dx, 0)), 0.04), (255, 255, 255), alpha=0.2)
        c.line(np.concatenate([lens, lens[:2]]), width * rig.head_scale, frame, "glasses")
        if kind == "square":
            c.line(rig.on_face(ring[[7, 0, 1, 2]], 0.04), 0.024 * rig.head_scale, frame, "glasses")
        hinge = rig.on_face(np.array([(0.202, 0.08), (0.236, 0.07)]) * (side, 1.0), 0.01)
        c.line(hinge, 0.012, frame, "glasses")
    bridge = curve([(-0.022, 0.086), (0.0, 0.075), (0.022, 0.086)], n=5)
    c.line(rig.on_face(bridge, 0.05), width, frame, "glasses")


def ears(c: Canvas, rig: Rig) -> None:
    """Cat ears, behind the cap."""
    tones = rig.hair
    for side in (-1, 1):
        outer = np.concatenate([bezier((0.055, -0.255), (0.12, -0.4), (0.212, -0.435), 7),
                                bezier((0.212, -0.435), (0.262, -0.33), (0.262, -0.12), 7)])  # fmt: skip
        drawn = rig.head(outer * (side, 1.0), -0.01)
        c.shape(drawn, tones.base, tones.ink, "accessory", rig.ink)
        inner = np.concatenate([bezier((0.11, -0.26), (0.15, -0.36), (0.204, -0.388), 6),
                                bezier((0.204, -0.388), (0.236, -0.3), (0.236, -0.18), 6)])  # fmt: skip
        c.fill(rig.head(inner * (side, 1.0), -0.01), (255, 176, 192))
        for k in range(3):
            fluff = [(0.12 + 0.03 * k, -0.24), (0.14 + 0.028 * k, -0.315 - 0.012 * k), (0.16 + 0.03 * k, -0.23)]
            c.fill(rig.head(np.array(fluff) * (side, 1.0), -0.01), light(tones.base, 0.55))


def accessory(c: Canvas, rig: Rig) -> None:
    kind, side = rig.face["accessory"], rig.traits.side
    if kind == "ribbon":
        colour = RED if rig.face["hair"] not in ("red", "pink") else (76, 128, 236)
        x, y = 0.165 * side, -0.215

        def place(points: np.ndarray) -> np.ndarray:
            a = 0.35 * side
            p = np.asarray(points) - (x, y)
            turned = p @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
            return rig.head(np.add(turned, (x, y)), 0.08)

        _bow(c, rig, x, y, 0.115, _tones(colour), "accessory", place)
    elif kind == "headphones":
        shell, glow = ((74, 78, 98), (74, 214, 232)) if rig.traits.trim % 2 else ((244, 244, 250), (255, 110, 150))
        ink = (30, 28, 44)
        arc = rig.head(oval(0, -0.03, 0.288, 0.312, 177, 363, 32), 0.0)
        c.line(arc, 0.046, ink, "accessory")
        c.line(arc, 0.034, shell, "accessory")
        c.line(rig.head(oval(0, -0.03, 0.296, 0.319, 215, 275, 14), 0.0), (0, 0.008, 0), light(shell, 0.6))
        for flip in (-1, 1):
            cup = [(0.245, -0.02), (0.29, -0.035), (0.318, 0.02), (0.32, 0.09), (0.292, 0.148), (0.246, 0.13)]
            c.shape(rig.head(curve(cup, True, 5) * (flip, 1.0), 0.0), shell, ink, "accessory", rig.ink)
            pad = curve([(0.24, -0.01), (0.262, -0.02), (0.268, 0.06), (0.262, 0.13), (0.24, 0.12)], True, 4)
            c.shape(rig.head(pad * (flip, 1.0), 0.03), dark(shell, 0.4), ink, "accessory", rig.ink * 0.7)
            ring = rig.head(oval(0.294 * flip, 0.056, 0.016, 0.05, n=16), 0.0)
            c.shape(ring, glow, ink, "accessory", 0.003)
