"""Contact sheets of the renderer: `python models/avatar/sheet.py --out sheet.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from controls import EXPRESSIONS
from PIL import Image
from render import Face, render, sample_face

__all__ = ["faces", "grid", "motions"]


def grid(pictures: list[np.ndarray], columns: int, gap: int = 4) -> Image.Image:
    """Pictures uint8 [size, size, 3] in rows."""
    side = pictures[0].shape[0]
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        page.paste(Image.fromarray(picture), (gap + i % columns * (side + gap), gap + i // columns * (side + gap)))
    return page


def faces(count: int, size: int, *, start: int = 0, natural: bool = True, columns: int = 8) -> Image.Image:
    return grid([render(sample_face(start + i, natural=natural), size).image for i in range(count)], columns)


def motions(face: Face, size: int) -> Image.Image:
    """One person: expressions, lids and brows, gaze, yaw, pitch, roll, mouth shapes, the rest."""
    still = face.changed(expression="neutral", view="front", defect="none")
    rows: list[list[dict[str, float]]] = [
        [{}, *({name: 1.0} for name in EXPRESSIONS), {"happy": 0.5}, {"angry": 0.5}],
        [{"eyeBlinkLeft": 0.35, "eyeBlinkRight": 0.35}, {"eyeBlinkLeft": 0.7, "eyeBlinkRight": 0.7},
         {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}, {"eyeBlinkLeft": 1.0},
         {"happy": 1.0, "eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}, {"eyeWideLeft": 1.0, "eyeWideRight": 1.0},
         {"browInnerUp": 1.0}, {"browDownLeft": 1.0, "browDownRight": 1.0}],
        [{"gazeX": -1.0}, {"gazeX": 1.0}, {"gazeY": -1.0}, {"gazeY": 1.0}, {"browOuterUpLeft": 1.0},
         {"browOuterUpRight": 1.0}, {"shiftX": 1.0}, {"shiftY": 1.0}],
        [{"headYaw": v} for v in (-25.0, -18.0, -10.0, -5.0, 5.0, 10.0, 18.0, 25.0)],
        [{"headPitch": -12.0}, {"headPitch": -6.0}, {"headPitch": 6.0}, {"headPitch": 12.0}, {"headRoll": -20.0},
         {"headRoll": -10.0}, {"headRoll": 10.0}, {"headRoll": 20.0}],
        [*({f"mouth{v}": 1.0} for v in "AIUEO"), {"jawOpen": 1.0}, {"mouthSmile": 1.0}, {"mouthFrown": 1.0}],
        [{"blush": 1.0}, {"tear": 1.0}, {"breath": 1.0}, {"happy": 1.0, "jawOpen": 1.0}, {"sad": 1.0, "jawOpen": 0.5},
         {"headYaw": 20.0, "headPitch": 8.0, "headRoll": 8.0, "happy": 1.0}, {"angry": 1.0, "headYaw": -15.0},
         {"headYaw": 15.0, "headPitch": -10.0, "headRoll": -10.0}],
    ]  # fmt: skip
    return grid([render(still, size, controls=row).image for line in rows for row in line], 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build" / "sheet.png")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--even", action="store_true", help="every attribute spread evenly")
    parser.add_argument("--motions", action="store_true", help="one person (--start) at many controls")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.motions:
        page = motions(sample_face(options.start), options.size)
    else:
        page = faces(
            options.count, options.size, start=options.start, natural=not options.even, columns=options.columns
        )
    page.save(options.out)


if __name__ == "__main__":
    main()
