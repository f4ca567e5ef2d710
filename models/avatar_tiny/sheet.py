"""A contact sheet of the model: `python models/avatar_tiny/sheet.py --out sheet.png` draws 24 prompts with their words.

The first picture of each prompt, seeds in order, nothing picked.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch
from data import WORK
from PIL import Image, ImageDraw, ImageFont
from score import _hotloop_engine, _torch_engine

__all__ = ["PROMPTS", "sheet"]

PROMPTS = (
    "a smiling girl with purple hair and glasses",
    "A cute anime girl with pink hair, wearing a school uniform, smiling",
    "1boy, spiky_hair, red_hair, green_eyes, angry, night",
    "silver hair, red eyes, cat ears, cold, black kimono, sunset",
    "粉色头发, 紫色眼睛, 开心",
    "a sad boy with short black hair and blue eyes, in the city",
    "purple hair, green eyes, long hair, white background",
    "green_hair, purple_eyes, twin_tails, surprised, pink_background",
    "A surprised girl with a blonde ponytail and dark skin, wearing a red dress, under a blue sky",
    "blue hair, golden eyes, headphones, yellow hoodie, calm",
    "1girl, brown_hair, bob_cut, square_glasses, white_shirt, gray_background, neutral",
    "an angry girl with long black hair and red eyes, wearing a blue kimono, at sunset",
    "1boy, blonde hair, blue eyes, black suit, happy, city background",
    "a chibi girl with pink hair in twin tails and golden eyes, smiling",
    "1girl, silver_hair, floating_hair, blue_eyes, night_sky, crying",
    "a boy with spiky green hair and brown eyes, wearing a green hoodie, on a white background",
    "red hair, blue eyes, ribbon, school uniform, smile, blue sky",
    "a person with brown skin, short blue hair and round glasses, looking calm, on a green background",
    "女孩, 蓝色头发, 红色眼睛, 愤怒",
    "lively, 1girl, purple_hair, purple_eyes, long_hair, red_school_uniform, pink_background",
    "1girl, highly_detailed, blonde_hair, green_eyes, cat_ears, white_dress, sunset",
    "a cold boy with silver hair and golden eyes, wearing a white suit, on a gray background",
    "anime girl, black_hair, twintails, round_glasses, headphones, happy, city",
    "a crying girl with brown hair in a bob, tan skin and green eyes, wearing a yellow shirt, at night",
)


def sheet(pictures: np.ndarray, captions: tuple[str, ...], *, columns: int = 6, scale: int = 3) -> Image.Image:
    """Pictures uint8 [N, H, W, 3] in rows, each enlarged without smoothing, its caption under it."""
    side = pictures.shape[1] * scale
    cell = (side + 8, side + 56)
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * cell[0] + 8, rows * cell[1] + 8), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(11)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = 8 + (i % columns) * cell[0], 8 + (i // columns) * cell[1]
        page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
        words = caption if caption.isascii() else caption.encode("ascii", "ignore").decode().strip(", ") or "(Chinese)"
        draw.multiline_text((x, y + side + 3), "\n".join(textwrap.wrap(words, 34)[:4]), fill=(60, 60, 70), font=font)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=WORK / "folder")
    parser.add_argument("--engine", choices=("torch", "hotloop"), default="torch")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "sheet.png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw = {"torch": _torch_engine, "hotloop": _hotloop_engine}[options.engine](options.folder, options.steps)
    sheet(draw(list(PROMPTS), options.guidance, options.seed), PROMPTS).save(options.out)


if __name__ == "__main__":
    main()
