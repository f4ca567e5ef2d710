"""Hair: what falls behind the head, and cap, fringe and side locks before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from render_canvas import Canvas, bezier, curve, leaf, light, mirror, mix, oval, ribbon
from render_rig import Rig

__all__ = ["back_hair", "cap_outline", "front_hair"]

PART = "hair"


def _tips(edges: Sequence[tuple[float, float]], lock: float, reach: float) -> np.ndarray:
    """A jagged lower edge through the given points: tips `reach` below them, notches `lock` above."""
    out = []
    for (x0, y0), (x1, y1) in pairwise(edges):
        tip = ((x0 + x1) / 2 + 0.15 * (x0 + x1) / 2, (y0 + y1) / 2 + reach)
        out += [*bezier((x0, y0 - lock), (x0 * 1.02, (y0 + tip[1]) / 2), tip, 5)[:-1]]
        out += [*bezier(tip, (x1 * 1.02, (y1 + tip[1]) / 2), (x1, y1 - lock), 5)[:-1]]
    return np.array(out)


def _mass(rig: Rig, half: list[tuple[float, float]], ends: np.ndarray, z: float) -> np.ndarray:
    """A symmetrical mass of hair: crown, both sides through `half` (left, downwards), and the jagged ends."""
    left = curve([(0, -0.26), (-0.15, -0.225), (-0.222, -0.15), *half], n=5)
    return rig.hang(np.concatenate([left, ends, mirror(left)[::-1][:-1]]), z)


def _behind(
    c: Canvas, rig: Rig, half: list[tuple[float, float]], ends: list[tuple[float, float]], reach: float
) -> None:
    """Hair behind head and neck, in shadow where neck and shoulders stand before it."""
    tones = rig.hair
    whole = _mass(rig, half, _tips(ends, 0.015, reach), -0.05)
    c.shape(whole, tones.base, tones.ink, PART, rig.ink)
    with c.clip(whole):
        low = half[-1][1]
        inner = [(-0.17, -0.1), (-0.2, 0.12), (-0.17, low * 0.8), (0.0, low + 0.12)]
        c.fill(rig.hang(np.concatenate([inner, mirror(inner)[::-1]]), -0.05), tones.shade)
        for i, x in enumerate((-0.265, -0.23, 0.235, 0.27)):
            start, stop = (x * 0.8, -0.05), (x * 1.08 + 0.012 * rig.traits.jitter[i], low + 0.02)
            strand = rig.hang(bezier(start, (x * 1.1, 0.1), stop), -0.05)
            c.line(strand, (0, 0.005, 0.004, 0), tones.shade)
        c.fill(rig.hang(_glint(-0.235, 0.05, 0.34 if low > 0.3 else 0.16), -0.05), tones.light, alpha=0.55)


def _glint(x: float, top: float, bottom: float) -> np.ndarray:
    return ribbon(curve([(x, top), (x * 1.07, (top + bottom) / 2), (x * 1.09, bottom)], n=5), (0, 0.014, 0.012, 0))


def _tail(c: Canvas, rig: Rig, flip: int, spine: list[tuple[float, float]], width: float, tie: bool, z: float) -> None:
    """A bound tail of hair along a spine: a full body that ends in three tips, with strands and a tie."""
    tones = rig.hair
    line = curve(spine, n=7)
    steps = np.linspace(0, 1, len(line))
    half = width * (0.16 + 0.84 * np.sin(np.pi * np.clip(0.03 + 0.7 * steps, 0, 1)) ** 0.9)
    for bend, size, reach in ((-0.55, 0.62, 0.9), (0.55, 0.55, 0.95), (0.0, 1.0, 1.04)):
        body = ribbon(line, tuple(2 * half * size * np.clip((1 - steps**3.2), 0, 1) ** 0.8))
        n = len(line)
        shift = (bend * width * np.concatenate([steps, steps[::-1]]) ** 1.4)[:, None] * (1.0, 0.0)
        body = body + shift
        body[:, 1] = spine[0][1] + (body[:, 1] - spine[0][1]) * reach
        drawn = rig.hang(body * (flip, 1.0), z)
        c.shape(drawn, tones.base, tones.ink, PART, rig.ink)
        with c.clip(drawn):
            centre = (body[:n] + body[n:][::-1]) / 2
            away = np.concatenate([body[:n] * 0.45 + body[n:][::-1] * 0.55, body[n:]])
            if flip > 0:
                away = np.concatenate([centre * 0.5 + body[:n] * 0.5, body[:n][::-1]])
            c.fill(rig.hang(away * (flip, 1.0), z), tones.shade)
            for k in (-0.4, 0.15):
                strand = centre + (body[:n] - centre) * k
                c.line(rig.hang(strand[2:-2] * (flip, 1.0), z), (0, 0.005, 0.005, 0), tones.ink, alpha=0.6)
            shine = centre + (body[n:][::-1] - centre) * 0.45 * flip
            c.line(rig.hang(shine[n // 5 : n // 2] * (flip, 1.0), z), (0, 0.02, 0), tones.light, alpha=0.8)
    if tie:
        x, y = spine[0]
        colour = (238, 84, 110) if rig.face["hair"] not in ("red", "pink") else (90, 130, 240)
        knot = rig.head(np.array([(x - 0.01, y - 0.035), (x + 0.035, y - 0.03), (x + 0.04, y + 0.035), (x, y + 0.045)])
                        * (flip, 1.0), z)  # fmt: skip
        c.shape(knot, colour, mix(colour, (40, 10, 50), 0.6), PART, rig.ink * 0.8)


def _spikes(rig: Rig, count: int, start: float, stop: float, inner: float, outer: float, seed: int) -> np.ndarray:
    """Spikes round the crown between two angles (degrees), each leaning away from the top."""
    out = []
    step = (stop - start) / count
    for i in range(count):
        a = start + i * step
        reach = outer * (1 + 0.1 * rig.traits.jitter[(seed + i) % 24]) * (0.93 if i % 2 else 1.04)
        lean = 0.2 * step * math.copysign(1, a + step / 2 - 270)
        for angle, r in ((a, inner), (a + step * 0.5 + lean, reach)):
            out.append((r * math.cos(math.radians(angle)), -0.03 + r * 0.98 * math.sin(math.radians(angle))))
    curved = []
    for i in range(0, len(out) - 2, 2):
        a, tip, b = (np.array(out[j]) for j in (i, i + 1, i + 2))
        curved += [*bezier(a, (a + tip) / 2 + (tip - (a + b) / 2) * 0.06 - (b - a) * 0.1, tip, 5)[:-1]]
        curved += [*bezier(tip, (b + tip) / 2 + (tip - (a + b) / 2) * 0.06 + (b - a) * 0.1, b, 5)[:-1]]
    return np.array([*curved, out[-2], out[-1]])


def back_hair(c: Canvas, rig: Rig) -> None:
    """Everything behind the body: the mass of the style, tails, and strands that the wind takes."""
    face, t, tones = rig.face, rig.traits, rig.hair
    style, v = face["style"], 0.012 * t.volume
    if style == "long":
        half = [(-0.252, -0.06), (-0.282 - v, 0.08), (-0.3 - v, 0.26), (-0.325 - v, 0.48), (-0.33, 0.6)]
        _behind(c, rig, half, [(x, 0.6) for x in np.linspace(-0.33, 0.33, 7)], 0.07)
    elif style == "bob":
        half = [(-0.254, -0.06), (-0.297 - v, 0.07), (-0.312 - v, 0.19), (-0.27, 0.285)]
        ends = [(-0.27, 0.285), (-0.2, 0.3), (-0.07, 0.29), (0.07, 0.29), (0.2, 0.3), (0.27, 0.285)]
        _behind(c, rig, half, ends, 0.02)
    else:
        low = 0.2 if style != "spiky" else 0.16
        half = [(-0.25, -0.06), (-0.268 - v, 0.07), (-0.235, low)]
        if rig.girl or style == "short":
            half[-1] = (-0.25, low)
        _behind(c, rig, half, [(x, low) for x in np.linspace(half[-1][0], -half[-1][0], 7)], 0.06)
    if style == "ponytail":
        spine = [(0.12, -0.23), (0.21, -0.29), (0.31, -0.26), (0.38, -0.1), (0.395, 0.1), (0.37, 0.32), (0.33, 0.5)]
        _tail(c, rig, t.side, spine, 0.085 + 0.01 * t.volume, True, -0.12)
    elif style == "twin tails":
        spine = [(0.225, -0.13), (0.295, -0.185), (0.365, -0.14), (0.405, 0.02), (0.405, 0.2), (0.385, 0.4),
                 (0.33, 0.58)]  # fmt: skip
        for flip in (-1, 1):
            _tail(c, rig, flip, spine, 0.078 + 0.01 * t.volume, True, -0.02)
    elif style == "spiky":
        nape = [(0.2, 0.2), (-0.2, 0.2)]
        crown = rig.head(np.concatenate([_spikes(rig, 11, 165, 375, 0.285, 0.395, 0), nape]), -0.03)
        c.shape(crown, tones.base, tones.ink, PART, rig.ink)
        with c.clip(crown):
            inner = rig.head(np.concatenate([_spikes(rig, 11, 168, 372, 0.26, 0.335, 0), nape]))
            c.fill(inner, tones.shade)
    if face["floating"] != "none":
        _floating(c, rig)


def _floating(c: Canvas, rig: Rig) -> None:
    """Strands that the wind lifts on both sides."""
    tones, t = rig.hair, rig.traits
    locks = ((1, 0.2, 0.38, -0.03, 0.066), (1, 0.14, 0.46, 0.05, 0.07), (1, 0.03, 0.44, 0.08, 0.062),
             (1, 0.09, 0.5, 0.14, 0.04), (-1, 0.16, 0.35, 0.03, 0.05), (-1, 0.06, 0.33, 0.08, 0.034))  # fmt: skip
    for k, (leeward, y, reach, rise, width) in enumerate(locks):
        flip = leeward * t.side
        wave = 0.018 * math.sin(rig.flow + 1.3 * k) + 0.012 * t.jitter[k]
        spine = curve([(0.16, y - 0.05), (0.235, y + 0.035), (0.31, y + 0.02 + wave),
                       (reach - 0.07, y - 0.35 * rise - wave), (reach, y - rise + wave)], n=5)  # fmt: skip
        lock = rig.head(ribbon(spine, (width, width * 1.1, width * 0.9, width * 0.5, 0)) * (flip, 1.0), -0.06)
        c.shape(lock, tones.base, tones.ink, PART, rig.ink)
        inner = ribbon(np.add(spine[3:], (0, 0.16 * width)), (0, 0.4 * width, 0.4 * width, 0.2 * width, 0))
        c.fill(rig.head(inner * (flip, 1.0), -0.06), tones.shade)


# Fringe -> its lower edge from left to right: notch, tip, notch, ..., notch.
_FRINGES: tuple[list[tuple[float, float]], ...] = (
    [(-0.235, -0.02), (-0.195, 0.085), (-0.15, -0.05), (-0.115, 0.035), (-0.06, -0.085), (-0.01, 0.065), (0.045, -0.09),
     (0.1, 0.03), (0.15, -0.055), (0.195, 0.085), (0.235, -0.02)],
    [(-0.235, 0.0), (-0.19, 0.05), (-0.145, 0.0), (-0.1, 0.038), (-0.055, -0.005), (-0.005, 0.034), (0.045, -0.005),
     (0.095, 0.038), (0.145, 0.0), (0.19, 0.05), (0.235, 0.0)],
    [(-0.235, -0.02), (-0.21, 0.095), (-0.135, -0.165), (-0.06, 0.03), (-0.02, -0.05), (0.055, 0.05), (0.085, -0.03),
     (0.15, 0.07), (0.175, -0.02), (0.21, 0.1), (0.235, -0.01)],
    [(-0.235, 0.0), (-0.215, 0.11), (-0.18, 0.0), (-0.135, 0.03), (0.0, -0.19), (0.135, 0.03), (0.18, 0.0),
     (0.215, 0.11), (0.235, 0.0)],
    [(-0.235, -0.02), (-0.2, 0.06), (-0.16, -0.03), (-0.145, 0.045), (-0.095, -0.05), (-0.065, 0.03), (-0.025, -0.06),
     (0.02, 0.05), (0.055, -0.05), (0.085, 0.025), (0.12, -0.04), (0.15, 0.05), (0.18, -0.02), (0.205, 0.065),
     (0.235, -0.02)],
    [(-0.235, -0.03), (-0.2, 0.06), (-0.15, -0.12), (-0.05, 0.0), (-0.01, -0.075), (0.09, 0.045), (0.115, -0.02),
     (0.175, 0.1), (0.235, -0.01)],
)  # fmt: skip


def _edge(rig: Rig) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The fringe's lower edge [n, 2] from left to right, and its inner notches."""
    t = rig.traits
    fringe = t.fringe
    if rig.face["style"] == "spiky":
        fringe = (0, 4)[fringe % 2]
    points = np.array(_FRINGES[fringe])
    for i in range(1, len(points) - 1):
        points[i] += (0.008 * t.jitter[i], (0.012 if i % 2 else 0.01) * t.jitter[-i])
    if t.side < 0:
        points = mirror(points)[::-1]
    lean = 0.016 * t.side + 0.014 * rig.sway
    out: list[np.ndarray] = []
    for i in range(0, len(points) - 2, 2):
        a, tip, b = points[i : i + 3]
        tip = np.add(tip, (0.011 * rig.sway, 0))
        out += [bezier(a, (a[0] * 0.74 + tip[0] * 0.26 - lean, a[1] * 0.46 + tip[1] * 0.54), tip, 8)[:-1]]
        out += [bezier(tip, (b[0] * 0.74 + tip[0] * 0.26 - lean, b[1] * 0.46 + tip[1] * 0.54), b, 8)[:-1]]
    return np.concatenate([*out, points[-1:]]), [tuple(p) for p in points[2:-2:2]]


def cap_outline(rig: Rig) -> np.ndarray:
    """Cap and fringe as one polygon, head coordinates."""
    edge, _ = _edge(rig)
    if rig.face["style"] == "spiky":
        top = _spikes(rig, 9, 178, 362, 0.275, 0.35, 7)
    else:
        top = oval(0, -0.03, 0.274 + 0.005 * rig.traits.volume, 0.298 + 0.012 * rig.traits.volume, 180, 360, 36)
    right = [(0.27, 0.02), (0.258, 0.055), (0.246, 0.04)]
    return np.concatenate([top, right, edge[::-1], mirror(right[::-1])])


def _side_lock(c: Canvas, rig: Rig, flip: int) -> None:
    """The lock that frames the face before the ear."""
    tones, style, t = rig.hair, rig.face["style"], rig.traits
    reach = {"short": 0.15, "spiky": 0.12, "bob": 0.255, "long": 0.4, "ponytail": 0.25, "twin tails": 0.24}[style]
    if rig.boy:
        reach = min(reach, 0.17) if style in ("short", "spiky", "ponytail", "twin tails") else reach
    reach += 0.02 * t.jitter[5 + flip]
    wide = 0.072 if style in ("long", "bob") else 0.058
    stop = (0.222 if style != "bob" else 0.19, reach)
    strands = [((0.226, -0.1), (0.262, reach * 0.5), stop, wide)]
    if style in ("long", "bob", "twin tails", "ponytail") and not rig.boy:
        strands.insert(0, ((0.236, -0.08), (0.288, reach * 0.5), (0.268, reach * 0.86), wide * 0.8))
    for start, control, end, width in strands:
        lock = leaf(start, control, end, width)
        lock[:, 0] = np.minimum(lock[:, 0], 0.3)
        drawn = rig.hang(lock * (flip, 1.0), 0.05)
        c.shape(drawn, tones.base, tones.ink, PART, rig.ink * 0.85)
        with c.clip(drawn):
            away = leaf((start[0] + 0.03 * flip, start[1]), (control[0] + 0.03 * flip, control[1]), end, width * 0.8)
            c.fill(rig.hang(away * (flip, 1.0), 0.05), tones.shade)


def _shine(rig: Rig) -> list[np.ndarray]:
    """The light on the crown: slivers along the strands, together a band with jagged edges; skull coordinates."""
    t = rig.traits
    whorl = np.array([0.05 * t.side, -0.42])
    out = []
    for i, x in enumerate(np.linspace(-0.205, 0.125, 15)):
        if i in (5, 6) if t.side > 0 else i in (4, 11):
            continue
        middle = np.array([x, -0.178 + 1.55 * x * x])
        along = middle - whorl
        along /= np.hypot(*along)
        across = np.array([-along[1], along[0]])
        reach = 0.022 + 0.02 * abs(np.sin(1.7 * i + 3 * t.jitter[3]))
        out.append(np.array([middle - along * reach * 0.8, middle + across * 0.0135, middle + along * reach,
                             middle - across * 0.0135]))  # fmt: skip
    return out


def front_hair(c: Canvas, rig: Rig) -> None:
    """Side locks, cap and fringe, their shadow sides, strands and shine."""
    tones, t = rig.hair, rig.traits
    for flip in (-1, 1):
        _side_lock(c, rig, flip)
    _, notches = _edge(rig)
    cap = rig.on_skull(cap_outline(rig), 0.012)
    c.shape(cap, tones.base, tones.ink, PART, rig.ink)
    with c.clip(cap):
        # The side away from the light, and a darker root under the crown.
        away = [(0.32, -0.34), (0.15, -0.33), (0.212, -0.2), (0.222, -0.08), (0.196, 0.02), (0.2, 0.14), (0.32, 0.12)]
        c.fill(rig.on_skull(np.add(curve(away, n=5), (0.014 * rig.glow, 0))), tones.shade)
        for x, y in notches:
            wedge = [(x - 0.022, y + 0.12), (x + 0.004, y - 0.01), (x * 0.94 + 0.008, y - 0.075), (x + 0.03, y + 0.1)]
            c.fill(rig.on_skull(wedge, 0.012), tones.shade)
        whorl = 0.05 * t.side
        for x, y in notches:
            strand = bezier((x, y + 0.01), (x * 1.12, y * 0.5 - 0.12), (whorl + (x - whorl) * 0.35, -0.29), 9)
            c.line(rig.on_skull(strand, 0.012), (0.0075, 0.005, 0.002, 0), tones.ink, alpha=0.9)
        for i, x in enumerate((-0.13, 0.03, 0.12)):
            strand = bezier((x * 1.3, -0.06), (x * 1.15, -0.16), (whorl + (x - whorl) * 0.4, -0.26), 8)
            c.line(rig.on_skull(strand), (0, 0.004 + 0.001 * t.jitter[i], 0), tones.shade)
        for sliver in _shine(rig):
            c.fill(rig.on_skull(sliver), mix(tones.base, tones.light, 0.8))
        if rig.face["detail"] == "highly detailed":
            for i, x in enumerate((-0.2, -0.16, -0.09, -0.03, 0.06, 0.1, 0.17, 0.21)):
                strand = bezier((x * 1.1, 0.04), (x * 1.15, -0.12), (whorl + (x - whorl) * 0.3, -0.28), 8)
                c.line(rig.on_skull(strand), (0, 0.004, 0), tones.ink if i % 2 else tones.light, alpha=0.8)
    if t.tuft and rig.face["style"] != "spiky":
        whorl, bend = 0.03 * t.side, 0.02 * rig.sway
        tuft = leaf((whorl, -0.31), (whorl + 0.005 * t.side, -0.4), (whorl + 0.1 * t.side + bend, -0.375), 0.03)
        c.shape(rig.head(tuft, 0.0), tones.base, tones.ink, PART, rig.ink * 0.8)
        c.fill(rig.head(leaf((whorl, -0.29), (whorl, -0.32), (whorl, -0.345), 0.03)), tones.base, PART)
    if rig.face["age"] == "elder":
        for x in (-0.16, 0.0, 0.13):
            strand = bezier((x * 1.2, -0.02), (x * 1.1, -0.15), (x * 0.5, -0.26), 8)
            with c.clip(cap):
                c.line(rig.on_skull(strand), (0, 0.012, 0), light(tones.base, 0.6), alpha=0.7)
