"""Draw faces with the built-in model, redesign one of them, and say where the pictures are and how long it took.

python examples/demo.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

PROMPTS = [
    "A cute anime girl with pink hair, wearing a school uniform, smiling",
    "a smiling girl with purple hair and round glasses, blue sky background",
    "an angry boy with spiky red hair, hoodie, night",
    "1girl, silver hair, twin tails, blue eyes, dress, pink background, lively",
    "a surprised boy with black hair and headphones, city background",
    "girl, blonde_hair, ponytail, green_eyes, ribbon, kimono, sunset, happy",
    "a sad girl with blue hair, cat ears, white background",
    "粉色头发, 紫色眼睛, 眼镜, 开心",
]
NEGATIVE = "low quality"
GUIDANCE = 2.0  # a negative prompt adds to the push: a little less is enough
SEED = 21
EDITED = 1  # the face that is redesigned
REST = "round glasses, blue sky background"
HAIR = ["red", "green", "blonde", "black"]
EXPRESSIONS = ["happy", "angry", "cold", "sad", "surprised"]
ENLARGED = 3  # the first model draws 64 x 64: shown larger, pixel for pixel


def hair_mask(face: Image.Image) -> Image.Image:
    """White where the colour is the crown's rather than the background's, the face's or an outline's: a stand-in for
    the mask that a user would paint."""
    pixels = np.asarray(face, np.float64)  # [H, W, 3]
    height, width, _ = pixels.shape

    def colour(top: float, bottom: float, left: float, right: float) -> np.ndarray:
        patch = pixels[int(height * top) : int(height * bottom), int(width * left) : int(width * right)]
        middle: np.ndarray = np.median(patch.reshape(-1, 3), axis=0)
        return middle

    crown, corner, cheeks = colour(0.14, 0.26, 0.4, 0.6), colour(0, 0.1, 0, 0.1), colour(0.56, 0.66, 0.4, 0.6)
    known = np.stack([crown, corner, cheeks, np.full(3, 255.0), np.zeros(3)])
    nearest = np.argmin(((pixels[:, :, None] - known) ** 2).sum(axis=-1), axis=-1)
    hair = nearest == 0
    hair[height * 3 // 4 :] = False
    mask = Image.fromarray(hair.astype(np.uint8) * 255)
    # Specks out, outlines in.
    return mask.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.MaxFilter(7))


def sheet(faces: list[Image.Image], columns: int) -> Image.Image:
    from hotloop import image

    shown = [face.resize((face.width * ENLARGED, face.height * ENLARGED), Image.Resampling.NEAREST) for face in faces]
    return image.contact_sheet(shown, columns)


def main(directory: Path) -> None:
    began = time.perf_counter()
    import hotloop

    pipe = hotloop.load()
    pipe.warmup()
    print(f"loaded {pipe.family.name} on {pipe.engine}/{pipe.device} in {time.perf_counter() - began:.2f} s")

    directory.mkdir(parents=True, exist_ok=True)
    faces: list[Image.Image] = []
    began = time.perf_counter()
    for i, prompt in enumerate(PROMPTS):
        result = pipe.txt2img(prompt, NEGATIVE, seed=SEED + i, guidance_scale=GUIDANCE)
        faces += result.images
        name = directory / f"face-{len(faces)}.png"
        result.images[0].save(name)
        print(f"{name}  {result.timings['total']:.2f} s  {prompt}")
    each = (time.perf_counter() - began) / len(PROMPTS)
    print(f"{len(PROMPTS)} faces, {each:.2f} s each")
    sheet(faces, 4).save(directory / "faces.png")

    face, mask = faces[EDITED], hair_mask(faces[EDITED])
    edits = [face, mask.convert("RGB")]
    for hair in HAIR:
        prompt = f"a girl with {hair} hair, {REST}"
        edits += pipe.inpaint(prompt, NEGATIVE, image=face, mask_image=mask, seed=3, guidance_scale=GUIDANCE).images
    edits.append(face)
    for mood in EXPRESSIONS:
        prompt = f"{mood}, a girl with purple hair, {REST}"
        edits += pipe.img2img(prompt, NEGATIVE, image=face, strength=0.8, seed=5, guidance_scale=GUIDANCE).images
    sheet(edits, 6).save(directory / "edits.png")
    print(f"sheets: {directory / 'faces.png'}, {directory / 'edits.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
