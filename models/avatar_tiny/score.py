"""How well the model draws what it is asked for: attribute accuracy, FID-p and KID-p, best guidance -> scores.json.

python models/avatar_tiny/score.py                      the folder in build/, own DDIM loop, 25 steps
python models/avatar_tiny/score.py --engine hotloop     the same prompts through hotloop.load(folder)

Accuracy is the probe's, over the attributes that a prompt states. Beside it stand chance (the same pictures judged by
other prompts), real renders of the same faces, and those renders after the autoencoder: the bounds. FID-p and KID-p
use the probe's features, so they compare only with one another; the floor is real against real.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import full_prompt
from data import SIZE, WORK, faces, seeds
from model import Tokenizer
from probe import NAMES, Probe, accuracy, load_probe, predict
from render import ATTRIBUTES, Face, labels, render
from train_diffusion import sample
from train_vae import reconstruct, to_images

from hotloop.evaluation.metrics import fid, kid

__all__ = ["GOALS", "claimed", "clean_held_out", "load_parts", "main", "with_mean"]

# Targets: of the full size, and of the first one.
GOALS = {
    "full": {"hair": 0.97, "glasses": 0.97, "background": 0.97, "clothes": 0.92, "expression": 0.90, "style": 0.90,
             "skin": 0.90, "eyes": 0.85},
    "first": {"mean": 0.80, "hair": 0.90, "background": 0.90},
}  # fmt: skip
Draw = Callable[[list[str], float, int], np.ndarray]  # prompts, guidance, seed -> uint8 [N, 64, 64, 3]


def load_parts(folder: Path) -> tuple[Any, Any, Any]:
    """Text encoder, UNet and autoencoder of a diffusers-layout folder, in fp32."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    return text.eval(), unet.eval(), vae.eval()


def _torch_engine(folder: Path, steps: int) -> Draw:
    text, unet, vae = load_parts(folder)
    tokenize = Tokenizer()

    @torch.no_grad()
    def draw(prompts: list[str], guidance: float, seed: int) -> np.ndarray:
        out = []
        for i in range(0, len(prompts), 32):
            ids = tokenize(prompts[i : i + 32])
            x = sample(text, unet, ids, tokenize([""]), steps=steps, guidance=guidance, seed=seed + i)
            out.append(to_images(vae.decode(x / vae.config.scaling_factor).sample))
        return np.concatenate(out)

    return draw


def _hotloop_engine(folder: Path, steps: int) -> Draw:
    import hotloop

    pipe = hotloop.load(str(folder))

    def draw(prompts: list[str], guidance: float, seed: int) -> np.ndarray:
        out = []
        for i, prompt in enumerate(prompts):
            result = pipe.txt2img(prompt, seed=seed + i, num_inference_steps=steps, guidance_scale=guidance)
            out.append(np.asarray(result.images[0]))
        return np.stack(out)

    return draw


def claimed(chosen: list[Face]) -> tuple[list[str], np.ndarray]:
    """A full prompt per face, and the class of every attribute it states (-1 where it states none)."""
    captions = [full_prompt(face, face.seed) for face in chosen]
    truth = np.stack([labels(face) for face in chosen])
    for row, caption in zip(truth, captions, strict=True):
        row[[i for i, name in enumerate(NAMES) if name not in caption.claims]] = -1
    return [caption.text for caption in captions], truth


def with_mean(scores: dict[str, float]) -> dict[str, float]:
    return scores | {"mean": round(float(np.mean([scores[name] for name in GOALS["full"]])), 4)}


def clean_held_out(count: int) -> list[Face]:
    """The first held-out faces without a defect."""
    found = faces(np.array(seeds(int(count * 1.35) + 20, held=True)))
    return [face for face in found if face.defect == "none"][:count]


def evaluate(
    draw: Draw, vae: Any, probe: Probe, *, prompts: int, sweep: tuple[float, ...], swept: int
) -> dict[str, Any]:
    """All scores; the sweep uses prompts of its own."""
    chosen = clean_held_out(2 * prompts + swept)
    asked, others, spare = chosen[:prompts], chosen[prompts : 2 * prompts], chosen[2 * prompts :]
    sweep_texts, sweep_truth = claimed(spare)
    by_guidance = {}
    for guidance in sweep:
        guesses, _ = predict(probe, draw(sweep_texts, guidance, 9_000))
        by_guidance[guidance] = with_mean(accuracy(guesses, sweep_truth))["mean"]
    best = max(by_guidance, key=lambda g: by_guidance[g])

    texts, truth = claimed(asked)
    started = time.perf_counter()
    guesses, features = predict(probe, draw(texts, best, 0))
    seconds = time.perf_counter() - started
    real = np.stack([render(face, SIZE).image for face in asked])
    other = np.stack([render(face, SIZE).image for face in others])
    rebuilt, psnr = reconstruct(vae, real)
    real_guesses, _ = predict(probe, real)
    rebuilt_guesses, rebuilt_features = predict(probe, rebuilt)
    _, other_features = predict(probe, other)
    _, real_features = predict(probe, real)
    shuffled = truth[np.random.RandomState(0).permutation(len(truth))]
    return {
        "prompts": len(texts),
        "guidance": best,
        "accuracy": {
            "model": with_mean(accuracy(guesses, truth)),
            "chance": with_mean(accuracy(guesses, shuffled)),
            "real renders": with_mean(accuracy(real_guesses, truth)),
            "autoencoder": with_mean(accuracy(rebuilt_guesses, truth)),
        },
        "classes": {name: len(values) for name, values in ATTRIBUTES.items()},
        "asked": {name: int((truth[:, i] >= 0).sum()) for i, name in enumerate(NAMES)},
        "goals": GOALS,
        "guidance sweep (mean accuracy)": {str(g): v for g, v in by_guidance.items()},
        "FID-p": {
            "model": round(fid(features, other_features), 4),
            "autoencoder": round(fid(rebuilt_features, other_features), 4),
            "floor (real against real)": round(fid(real_features, other_features), 4),
        },
        "KID-p": {
            "model": round(kid(features, other_features), 5),
            "autoencoder": round(kid(rebuilt_features, other_features), 5),
            "floor (real against real)": round(kid(real_features, other_features), 5),
        },
        "autoencoder PSNR (dB)": round(psnr, 2),
        "seconds per image": round(seconds / len(texts), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=WORK / "folder")
    parser.add_argument("--engine", choices=("torch", "hotloop"), default="torch")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--swept", type=int, default=128, help="prompts of the guidance sweep")
    parser.add_argument("--sweep", type=float, nargs="+", default=(2.0, 3.0, 4.0, 5.0, 6.5))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "scores.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw = {"torch": _torch_engine, "hotloop": _hotloop_engine}[options.engine](options.folder, options.steps)
    vae = load_parts(options.folder)[2]
    scores = evaluate(draw, vae, load_probe(), prompts=options.prompts, sweep=tuple(options.sweep), swept=options.swept)
    scores = {"sampler": f"{options.engine}, {options.steps} steps", **scores}
    options.out.write_text(json.dumps(scores, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
