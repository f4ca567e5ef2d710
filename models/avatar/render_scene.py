"""What is behind the person, and what can be wrong with the picture."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from render_canvas import Points, mix, oval
from render_people import Colour

__all__ = ["backdrop", "spoil"]

SUPERSAMPLING = 2


class _Backdrop:
    def __init__(self, size: int) -> None:
        self.side = size * SUPERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def gradient(self, stops: Sequence[Colour]) -> None:
        at = np.linspace(0, len(stops) - 1, self.side)
        rows = np.stack([np.interp(at, range(len(stops)), [s[k] for s in stops]) for k in range(3)], axis=1)
        rows = np.repeat(rows.round().astype(np.uint8)[:, None], self.side, axis=1)
        self.image.paste(Image.fromarray(rows))

    def fill(self, points: Points, colour: Colour, alpha: float = 1.0) -> None:
        pixels = np.rint(np.asarray(points) * self.side - 0.5).ravel().tolist()
        self.draw.polygon(pixels, fill=(*colour, round(255 * alpha)))

    def disc(self, x: float, y: float, r: float, colour: Colour, alpha: float = 1.0) -> None:
        self.fill(oval(x, y, r, r, n=28), colour, alpha)


def _cloud(c: _Backdrop, x: float, y: float, r: float, rng: random.Random, colour: Colour, below: Colour) -> None:
    shape = ((-1.3, 0.0, 0.5), (-0.6, 0.32, 0.7), (0.2, 0.45, 0.85), (1.0, 0.1, 0.6), (1.6, -0.05, 0.4))
    puffs = [(x + r * dx, y - r * dy, r * s * (0.9 + 0.2 * rng.random())) for dx, dy, s in shape]
    for shift, tone in ((0.1 * r, below), (0.0, colour)):
        for px, py, pr in puffs:
            c.disc(px, py + shift, pr, tone)


def _star(c: _Backdrop, x: float, y: float, r: float, colour: Colour) -> None:
    for dx, dy in ((r, r * 0.16), (r * 0.16, r)):
        c.fill([(x - dx, y), (x, y - dy), (x + dx, y), (x, y + dy)], colour)


def backdrop(kind: str, size: int, seed: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    rng = random.Random(seed)
    c = _Backdrop(size)
    if kind == "white":
        c.gradient([(255, 255, 255), (252, 252, 254), (240, 242, 248)])
    elif kind == "gray":
        c.gradient([(176, 178, 186), (150, 152, 162), (126, 128, 140)])
    elif kind == "pink":
        c.gradient([(255, 206, 222), (255, 226, 234), (255, 238, 240)])
        for _ in range(7):
            x, y, r = rng.random(), rng.random(), 0.025 + 0.03 * rng.random()
            for i in range(5):
                petal = oval(r * 0.62, 0, r * 0.5, r * 0.34, n=12)
                a = 2 * np.pi * (i / 5 + 0.13 * r * 100)
                turned = petal @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
                c.fill(np.add(turned, (x, y)), (255, 184, 206), 0.8)
            c.disc(x, y, r * 0.16, (255, 240, 214))
    elif kind == "green":
        c.gradient([(198, 232, 168), (160, 212, 138), (124, 190, 112)])
        for _ in range(9):
            x, y, r = rng.random(), rng.random(), 0.04 + 0.05 * rng.random()
            c.disc(x, y, r, (216, 242, 186), 0.45)
        for _ in range(6):
            x, y, r, a = rng.random(), rng.random(), 0.04 + 0.03 * rng.random(), 6.28 * rng.random()
            blade = np.array([(-r, 0), (-0.2 * r, -0.42 * r), (r, 0), (-0.2 * r, 0.42 * r)])
            blade = blade @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
            c.fill(np.add(blade, (x, y)), (96, 168, 92), 0.85)
    elif kind == "blue sky":
        c.gradient([(82, 160, 244), (140, 200, 252), (206, 232, 255)])
        for x, y, r in ((0.08, 0.2, 0.075), (0.84, 0.13, 0.07), (0.93, 0.5, 0.06), (0.02, 0.62, 0.055)):
            _cloud(c, x + 0.1 * rng.random(), y + 0.1 * rng.random(), r, rng, (255, 255, 255), (206, 226, 248))
    elif kind == "night":
        c.gradient([(16, 18, 58), (36, 38, 96), (70, 64, 138)])
        for _ in range(26):
            _star(c, rng.random(), rng.random() * 0.85, 0.006 + 0.014 * rng.random() ** 2, (255, 250, 226))
        x, y = (0.13, 0.15) if rng.random() < 0.5 else (0.85, 0.14)
        c.disc(x, y, 0.12, (255, 246, 200), 0.12)
        c.disc(x, y, 0.078, (255, 246, 204))
        c.disc(x + 0.034, y - 0.018, 0.066, (24, 26, 70))
    elif kind == "sunset":
        c.gradient([(104, 72, 156), (206, 92, 130), (250, 142, 98), (255, 206, 120)])
        x = 0.14 if rng.random() < 0.5 else 0.86
        c.disc(x, 0.56, 0.19, (255, 226, 150), 0.25)
        c.disc(x, 0.56, 0.125, (255, 240, 176))
        for k in range(4):
            y, w, x = 0.2 + 0.13 * k + 0.05 * rng.random(), 0.16 + 0.12 * rng.random(), rng.random()
            c.fill(oval(x, y, w, 0.014, n=16), (255, 190, 150), 0.55)
    else:
        c.gradient([(186, 212, 238), (222, 232, 242), (240, 236, 232)])
        for depth, (low, wall, glass) in enumerate((
            (0.1, (172, 188, 212), (206, 218, 232)), (0.3, (116, 130, 164), (255, 232, 160)),
        )):  # fmt: skip
            x = -0.06 * rng.random()
            while x < 1:
                w, top = 0.12 + 0.08 * rng.random(), low + 0.3 * rng.random()
                tone = mix(wall, (90, 100, 140), 0.25 * rng.random())
                c.fill([(x, top), (x + w, top), (x + w, 1), (x, 1)], tone)
                for row in range(int((1 - top) / 0.075)):
                    for k in range(3):
                        if rng.random() < 0.72:
                            u, v = x + w * (0.14 + 0.28 * k), top + 0.028 + row * 0.075
                            c.fill([(u, v), (u + w * 0.16, v), (u + w * 0.16, v + 0.036), (u, v + 0.036)], glass)
                x += w + (0.015 if depth else 0.0)
    return np.asarray(c.image.reduce(SUPERSAMPLING))


def spoil(image: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """A picture [size, size, 3] with a defect, for negative prompts to remove."""
    size = len(image)
    if kind == "blurry":
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(size * 0.026)))
    if kind == "watermark":
        picture = Image.fromarray(image).convert("RGBA")
        overlay = Image.new("RGBA", picture.size, (0, 0, 0, 0))
        draw = ImageDraw.Draw(overlay)
        for row in (0.36, 0.62, 0.88):
            zigzag = [
                ((i + 0.5) / 12 * size, (row + (0.05 if i % 2 else -0.05) - 0.12 * (i / 12 - 0.5)) * size)
                for i in range(12)
            ]
            below = [(x, y + size * 0.02) for x, y in zigzag]
            draw.line(zigzag, fill=(255, 255, 255, 190), width=max(1, round(size * 0.025)))
            draw.line(below, fill=(60, 60, 60, 120), width=max(1, round(size * 0.012)))
        return np.asarray(Image.alpha_composite(picture, overlay).convert("RGB"))
    if kind in ("low quality", "worst quality"):
        cells = 30 if kind == "low quality" else 19
        pixels = np.asarray(Image.fromarray(image).resize((cells, cells), Image.Resampling.BOX), dtype=np.float32)
        if kind == "worst quality":
            pixels = pixels + np.random.RandomState(seed % 2**32).uniform(-45, 45, pixels.shape)
        small = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        return np.asarray(small.resize((size, size), Image.Resampling.NEAREST))
    return image
