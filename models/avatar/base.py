"""Text encoder and UNet: predicts the noise in a face's latents from its caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import autoencoder
import numpy as np
import probe_train
import text
import torch
from captions import full_prompt
from data import seeds
from latents import Latents
from model import SMALL, Tokenizer, make_unet, write_folder
from PIL import Image
from probe import NAMES, accuracy, predict
from quick import quicken
from render import ATTRIBUTES, Face, labels, sample_face
from sampling import alphas_cumprod, ddim, min_snr, predictor, timesteps
from texts import Reader
from torch import nn
from training import Options, Run, Stage, load_weights

__all__ = ["PREVIEW", "asked", "draw", "load", "stage", "write"]

READING = 0.05
PREVIEW = (
    "a smiling girl with purple hair and glasses", "1boy, spiky_hair, red_hair, green_eyes, angry, night",
    "A cute anime girl with pink hair, wearing a school uniform, smiling", "blue hair, golden eyes, twin tails, sad",
    "purple hair, green eyes, long hair, white background", "a boy with black hair and blue eyes, surprised, city",
    "粉色头发, 紫色眼睛, 开心", "silver hair, red eyes, cat ears, cold, kimono, sunset",
    "an old woman with silver hair and round glasses", "a child with brown hair, smiling, blue sky",
    "two people, a girl with pink hair on the left and a boy with black hair on the right",
    "a girl with green hair facing left, pink background",
)  # fmt: skip


def load(options: Options) -> tuple[Any, Any]:
    """Text encoder and UNet as trained so far, frozen."""
    encoder, unet = text.load(options), make_unet(**(SMALL if options.small else {}))
    load_weights(options.weights / "base.safetensors", {"text": encoder, "unet": unet})
    frozen = [m.eval().requires_grad_(False).to(options.device) for m in (encoder, unet)]
    return frozen[0], quicken(frozen[1])


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(5)
    encoder, unet = text.load(options).to(options.device), make_unet(**(SMALL if options.small else {}))
    unet, reader = quicken(unet.to(options.device)), Reader().to(options.device)
    run = Run(stage, {"unet": unet, "text": encoder}, options, needs=needs, scratch={"reader": reader}, slow=["text"])
    rows = Latents(options)
    rows.grow(1 if options.small else 6)
    alphas = alphas_cumprod().to(options.device)
    weights = min_snr(alphas)
    rng = np.random.RandomState(run.step)
    batch = 8 if options.small else 32 if options.device == "cpu" else 256
    while run.going():
        x0, ids, claims, cells = rows.batch(rng, batch)
        t = timesteps(batch).to(options.device)
        noise, a = torch.randn_like(x0), alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(options.device, torch.bfloat16):
            context = encoder(ids).last_hidden_state
            guess = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, context, return_dict=False)[0].float()
        focus = 1 + cells
        error = ((guess - noise) ** 2 * focus / focus.mean()).mean((1, 2, 3))
        loss = (error * weights[t]).mean()
        read, right = reader(context, ids, claims)
        run.descend(loss + READING * read, noise=loss, mse=error.mean(), hair=right[0], eyes=right[2])
        if run.step % (25 if options.device == "cpu" else 1) == 0:
            rows.grow()
        if run.step % 2000 == 0:
            with run.average.applied():
                preview(encoder, unet, options)
    with run.average.applied():
        figures = asked(encoder, unet, options) if run.over and not options.small else {}
        write(encoder, unet, options)
    return run.close(**figures)


def write(encoder: nn.Module, unet: Any, options: Options) -> Path:
    """The folder that stock diffusers loads, in build/folder, and preview.png beside it."""
    folder = options.build / "folder"
    write_folder(folder, encoder, unet, autoencoder.load(options))
    preview(encoder, unet, options)
    return folder


@torch.no_grad()
def draw(
    encoder: Any, unet: Any, vae: Any, prompts: list[str], *, steps: int = 20, guidance: float = 2.5, seed: int = 0
) -> np.ndarray:
    """uint8 [N, 128, 128, 3]."""
    tokenize, out = Tokenizer(), []
    device = next(unet.parameters()).device
    empty = encoder(tokenize([""]).to(device)).last_hidden_state
    for i in range(0, len(prompts), 32):
        context = encoder(tokenize(prompts[i : i + 32]).to(device)).last_hidden_state
        x = ddim(predictor(unet), context, empty, steps=steps, guidance=guidance, seed=seed + i)
        out.append(autoencoder.decode(vae, x / vae.config.scaling_factor))
    return np.concatenate(out)


def preview(encoder: Any, unet: Any, options: Options) -> None:
    steps = 2 if options.small else 20
    drawn = draw(encoder, unet, autoencoder.load(options), list(PREVIEW), steps=steps)
    rows = [np.concatenate(drawn[i : i + 4], axis=1) for i in (0, 4, 8)]
    Image.fromarray(np.concatenate(rows)).save(options.build / "preview.png")


def claimed(faces: list[Face]) -> tuple[list[str], np.ndarray]:
    """A full prompt per face, and the class of every attribute it states (-1 where it states none)."""
    captions = [full_prompt(face, face.seed) for face in faces]
    truth = np.stack([labels(face) for face in faces])
    for row, caption in zip(truth, captions, strict=True):
        row[[i for i, name in enumerate(NAMES) if name not in caption.claims]] = -1
    return [caption.text for caption in captions], truth


def held_out_faces(count: int) -> list[Face]:
    """The first held-out people without a defect, every attribute value often."""
    found: list[Face] = []
    for seed in seeds("even", held=True):
        face = sample_face(seed, natural=False)
        if face["defect"] == "none":
            found.append(face)
        if len(found) == count:
            return found
    return found


def asked(encoder: Any, unet: Any, options: Options, count: int = 96) -> dict[str, Any]:
    """Share of what held-out prompts ask for that `probe_train` finds in the pictures: a look, not the score."""
    if not (options.weights / "probe_train.safetensors").exists():
        return {}
    prompts, truth = claimed(held_out_faces(count))
    drawn = draw(encoder.eval(), unet.eval(), autoencoder.load(options), prompts)
    found = accuracy(predict(probe_train.load(options), drawn)[0], truth)
    main = [v for k, v in found.items() if k in (*autoencoder.GATE,)]
    assert set(found) <= set(ATTRIBUTES)
    return {"asked (probe_train)": found, "mean": round(float(np.mean(main)), 4)}
