"""Pictures of faces that are not our renderer's: a cat as somebody draws one, and a portrait as somebody paints one."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CAT", "PAINTED", "cat", "painted"]

Colour = tuple[int, ...]

# Where their parts are, placed by hand: shares of the picture.
CAT = {
    "eyeRight": (0.363, 0.435), "lidUpperRight": (0.363, 0.362), "lidLowerRight": (0.363, 0.512),
    "eyeLeft": (0.637, 0.435), "lidUpperLeft": (0.637, 0.362), "lidLowerLeft": (0.637, 0.512),
    "mouthRight": (0.447, 0.585), "mouthLeft": (0.553, 0.585), "chin": (0.5, 0.722), "headCentre": (0.5, 0.45),
}  # fmt: skip
PAINTED = {
    "eyeRight": (0.415, 0.425), "lidUpperRight": (0.415, 0.404), "lidLowerRight": (0.415, 0.444),
    "eyeLeft": (0.585, 0.425), "lidUpperLeft": (0.585, 0.404), "lidLowerLeft": (0.585, 0.444),
    "mouthRight": (0.44, 0.625), "mouthLeft": (0.56, 0.625), "chin": (0.5, 0.745), "headCentre": (0.5, 0.42),
}  # fmt: skip


def cat(size: int = 512) -> Image.Image:
    """A drawn cat, RGBA: lines and flat colours, transparent around it."""
    n = 4 * size
    picture = Image.new("RGBA", (n, n), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    ink, fur, pale, pink = (58, 38, 30, 255), (242, 194, 120, 255), (255, 241, 214, 255), (242, 140, 150, 255)
    pen = n // 110

    def oval(x: float, y: float, rx: float, ry: float, fill: Colour, outline: Colour | None = None) -> None:
        draw.ellipse([n * (x - rx), n * (y - ry), n * (x + rx), n * (y + ry)], fill, outline, pen if outline else 0)

    def strokes(points: list[tuple[float, float]], fill: Colour = ink, width: int = pen) -> None:
        draw.line([(n * x, n * y) for x, y in points], fill, width, "curve")

    oval(0.5, 0.99, 0.24, 0.3, fur, ink)
    oval(0.5, 1.02, 0.13, 0.23, pale)
    for way in (-1, 1):
        for inset, fill in ((0.0, ink), (0.011, fur), (0.05, pink)):
            ear = [(0.5 + way * (0.11 + inset), 0.3), (0.5 + way * (0.3 - 0.3 * inset), 0.07 + 1.6 * inset),
                   (0.5 + way * (0.315 - inset), 0.42)]  # fmt: skip
            draw.polygon([(n * x, n * y) for x, y in ear], fill)
    oval(0.5, 0.45, 0.335, 0.272, fur, ink)
    oval(0.5, 0.6, 0.17, 0.11, pale)
    for way in (-1, 1):
        x = 0.5 + way * 0.137
        oval(x, 0.437, 0.062, 0.077, (255, 255, 255, 255), ink)
        oval(x, 0.437, 0.044, 0.06, (64, 158, 104, 255))
        oval(x, 0.437, 0.02, 0.048, (22, 26, 28, 255))
        oval(x - 0.014, 0.41, 0.012, 0.014, (255, 255, 255, 255))
        for k in (-1, 0, 1):
            strokes([(0.5 + way * 0.24, 0.58 + 0.025 * k), (0.5 + way * 0.4, 0.565 + 0.045 * k)], ink, pen // 2)
        strokes([(0.5 + way * (0.0265 - 0.0265 * math.cos(t)), 0.585 + 0.016 * math.sin(t))
                 for t in np.linspace(0, math.pi, 24)])  # fmt: skip
    draw.polygon([(n * 0.478, n * 0.545), (n * 0.522, n * 0.545), (n * 0.5, n * 0.572)], pink)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def painted(size: int = 512, seed: int = 3) -> Image.Image:
    """A painted portrait, RGB: brush strokes before a mottled ground, grain of a canvas."""
    rng = np.random.default_rng(seed)
    n = 2 * size
    picture = Image.new("RGB", (n, n), (86, 104, 96))
    draw = ImageDraw.Draw(picture)
    for _ in range(500):
        x, y, r = *rng.uniform(0, n, 2), rng.uniform(0.02, 0.06) * n
        shade = int(rng.integers(-14, 14))
        draw.ellipse([x - r, y - r / 3, x + r, y + r / 3], (86 + shade, 104 + shade, 96 + shade))

    def oval(x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        draw.ellipse([n * (x - rx), n * (y - ry), n * (x + rx), n * (y + ry)], fill)

    oval(0.5, 1.06, 0.33, 0.26, (72, 54, 96))
    draw.polygon([(n * x, n * y) for x, y in ((0.42, 0.66), (0.58, 0.66), (0.62, 0.86), (0.38, 0.86))], (206, 152, 126))
    oval(0.5, 0.42, 0.21, 0.29, (70, 46, 38))
    draw.rectangle([n * 0.29, n * 0.42, n * 0.71, n * 0.6], (70, 46, 38))
    oval(0.5, 0.51, 0.17, 0.235, (222, 170, 142))
    oval(0.5, 0.3, 0.185, 0.07, (70, 46, 38))
    for way in (-1, 1):
        x = 0.5 + way * 0.085
        oval(x, 0.425, 0.038, 0.021, (70, 44, 38))
        oval(x, 0.427, 0.035, 0.018, (236, 230, 220))
        oval(x, 0.426, 0.0155, 0.0165, (74, 92, 74))
        oval(x, 0.426, 0.008, 0.009, (24, 22, 22))
        arch = [(n * (x - 0.044 + 0.0088 * k), n * (0.385 - 0.012 * math.sin(math.pi * k / 10))) for k in range(11)]
        draw.line(arch, (84, 58, 46), n // 90, "curve")
        oval(0.5 + way * 0.1, 0.55, 0.045, 0.035, (226, 160, 138))
    nose = [(0.492, 0.44), (0.482, 0.53), (0.487, 0.545), (0.515, 0.547)]
    draw.line([(n * x, n * y) for x, y in nose], (192, 138, 114), n // 130, "curve")
    oval(0.5, 0.618, 0.048, 0.014, (178, 86, 84))
    oval(0.5, 0.632, 0.044, 0.017, (190, 98, 92))
    draw.line([(n * x, n * y) for x, y in ((0.44, 0.625), (0.47, 0.627), (0.53, 0.627), (0.56, 0.625))],
              (124, 58, 60), n // 170, "curve")  # fmt: skip
    soft = picture.filter(ImageFilter.GaussianBlur(n / 260)).resize((size, size), Image.Resampling.LANCZOS)
    grain = rng.normal(0, 5, (size, size, 1)) + rng.normal(0, 2, (size, size, 3))
    return Image.fromarray(np.clip(np.asarray(soft, np.float64) + grain, 0, 255).astype(np.uint8))
