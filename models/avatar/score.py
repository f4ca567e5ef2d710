"""How good the parts are, as the judge reads them: `python models/avatar/score.py base animator` -> scores.json.

The judge (`probe_judge`) shares no data and no weights with anything it judges. Beside the model stand chance (the
same pictures read by other prompts), real drawings, and those after the autoencoder: the bounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import animation
import autoencoder
import base
import numpy as np
import probe_judge
import student
import torch
from controls import CONTROLS, NAMES
from pixels import to_images
from probe import NAMES as ATTRIBUTES
from probe import accuracy, predict, scores
from render import render
from texts import caption_of
from training import Options, digest, progress
from upscaler import over

__all__ = [
    "GOALS", "main", "score_animator", "score_autoencoder", "score_base", "score_judge", "score_sharpening",
    "score_student",
]  # fmt: skip

SCORED = ("hair", "style", "eyes", "skin", "expression", "glasses", "clothes", "background")
GOALS = {"mean": 0.96, "every head": 0.92, "expression": 0.95, "unasked glasses": 0.2}


def _with_mean(found: dict[str, float]) -> dict[str, float]:
    return found | {"mean": round(float(np.mean([found[name] for name in SCORED if name in found])), 4)}


def score_judge(options: Options, count: int) -> dict[str, Any]:
    """The judge's own marks on people it was not trained on."""
    from probe import held_out_scores

    return held_out_scores(probe_judge.load(options), options, ("other", "judged"), count)


def score_autoencoder(options: Options, count: int) -> dict[str, Any]:
    """What the judge reads off held-out faces and off their reconstructions."""
    faces = base.held_out_faces(count)
    _, truth = base.claimed(faces)
    real = np.stack([render(face, 128).image for face in faces])
    vae, judge = autoencoder.load(options), probe_judge.load(options)
    rebuilt = autoencoder.decode(vae, autoencoder.encode(vae, real)[0])
    mse = ((real.astype(np.float32) - rebuilt) / 255) ** 2
    return {
        "real drawings": _with_mean(accuracy(predict(judge, real)[0], truth)),
        "reconstructions": _with_mean(accuracy(predict(judge, rebuilt)[0], truth)),
        "psnr": round(float((-10 * np.log10(mse.mean((1, 2, 3)))).mean()), 2),
    }


def _unasked(draw: Callable[[list[str]], np.ndarray], judge: Any, count: int) -> float:
    """Share of pictures with glasses among prompts, as people write them, that say nothing of any."""
    texts = [caption_of(1_000_000 + i, 0, empty=0).text for i in range(4 * count)]
    plain = [t for t in texts if "glasses" not in t and "眼镜" not in t and "left" not in t][:count]
    guess = predict(judge, draw(plain))[0][:, ATTRIBUTES.index("glasses")]
    return round(float((guess > 0).mean()), 4)


def score_base(options: Options, count: int, guidance: float = 2.5) -> dict[str, Any]:
    """Attribute accuracy on held-out prompts at 20 DDIM steps."""
    encoder, unet = base.load(options)
    vae, judge = autoencoder.load(options), probe_judge.load(options)
    faces = base.held_out_faces(count)
    prompts, truth = base.claimed(faces)

    def draw(texts: list[str]) -> np.ndarray:
        return base.draw(encoder, unet, vae, texts, guidance=guidance)

    guesses = predict(judge, draw(prompts))[0]
    shuffled = truth[np.random.RandomState(0).permutation(len(truth))]
    return {
        "prompts": count,
        "guidance": guidance,
        "model": _with_mean(accuracy(guesses, truth)),
        "chance": _with_mean(accuracy(guesses, shuffled)),
        "unasked glasses": _unasked(draw, judge, min(256, count)),
        "goals": GOALS,
    }


def score_student(options: Options, count: int) -> dict[str, Any]:
    """The same prompts in 4, 2 and 1 steps, without guidance."""
    encoder, unet = student.load(options)
    vae, judge = autoencoder.load(options), probe_judge.load(options)
    prompts, truth = base.claimed(base.held_out_faces(count))
    return {
        f"{steps} steps": _with_mean(
            accuracy(predict(judge, student.draw(encoder, unet, vae, prompts, steps=steps))[0], truth)
        )
        for steps in (4, 2, 1)
    }  # fmt: skip


class _Animated:
    """Frames of held-out keyframes as controls say, over their grounds, uint8."""

    def __init__(self, options: Options, count: int, name: str = "animator") -> None:
        self.encoder, self.decoder = animation.load(options, name)
        rows = animation.Pairs(options, held=True)
        count = min(count, len(rows.shards.parts[0]["seeds"]))
        self.batch = rows.batch(np.random.RandomState(0), count, rows=np.arange(count))
        self.labels = rows.shards.parts[0]["labels"][:count]
        with torch.no_grad():
            self.key = self.encoder(self.batch.keys)

    @torch.no_grad()
    def frames(self, controls: torch.Tensor) -> np.ndarray:
        z = self.key.prior.chunk(2, dim=1)[0]
        new = animation.frame(self.batch.keys, self.key, self.decoder(self.key, controls, z))
        return to_images(2 * over(new, self.batch.grounds) - 1)


def _crosstalk(animated: _Animated, judge: Any, swing: float = 0.5) -> dict[str, float]:
    """How much the judge sees other controls move, on average, when one does (as shares of their ranges)."""
    still = torch.zeros_like(animated.batch.controls)
    before = predict(judge, animated.frames(still))[1]
    found = {}
    for i, name in enumerate(NAMES):
        moved = still.clone()
        moved[:, i] = swing
        change = np.abs(predict(judge, animated.frames(moved))[1] - before)
        found[name] = round(float(np.delete(change, i, axis=1).mean()), 4)
    return found


def _pops(animated: _Animated, steps: int = 40) -> dict[str, float]:
    """Largest over median change of picture along a sweep of a control from end to end."""
    found = {}
    for i, control in enumerate(CONTROLS):
        scale = max(abs(control.low), abs(control.high))
        frames = []
        for value in np.linspace(control.low, control.high, steps):
            held = torch.zeros_like(animated.batch.controls)
            held[:, i] = float(value) / scale
            frames.append(animated.frames(held).astype(np.int16))
        change = np.array([np.abs(b - a).mean() for a, b in pairwise(frames)])
        found[control.name] = round(float(change.max() / max(np.median(change), 1e-3)), 2)
    return found


def score_animator(options: Options, count: int) -> dict[str, Any]:
    """Controls, identity, crosstalk and pops on held-out keyframes, half of them after the autoencoder."""
    animated, judge = _Animated(options, min(count, 256)), probe_judge.load(options)
    guesses, held = predict(judge, animated.frames(animated.batch.controls))
    target = to_images(2 * over(animated.batch.targets, animated.batch.grounds) - 1)
    truth = animated.batch.controls.cpu().numpy()
    few = _Animated(options, 16)
    return {
        "controls: r, mean error": scores(held, truth),
        "bound, the real second frames": scores(predict(judge, target)[1], truth),
        "identity": accuracy(guesses, animated.labels.astype(np.int64)),
        "crosstalk": _crosstalk(few, judge),
        "largest step over median": _pops(_Animated(options, 4)),
    }


def score_sharpening(options: Options, count: int) -> dict[str, Any]:
    """The finetuned animator beside the plain one; preferred where the judge reads its controls better and the person
    no worse."""
    judge, found = probe_judge.load(options), {}
    for name in ("animator", "sharpening"):
        animated = _Animated(options, min(count, 256), name)
        guesses, held = predict(judge, animated.frames(animated.batch.controls))
        errors = [error for _, error in scores(held, animated.batch.controls.cpu().numpy()).values()]
        person = accuracy(guesses, animated.labels.astype(np.int64))
        found[name] = {"mean error": float(np.mean(errors)), "identity": float(np.mean(list(person.values())))}
    plain, fine = found["animator"], found["sharpening"]
    preferred = fine["mean error"] < plain["mean error"] and fine["identity"] >= plain["identity"]
    return found | {"preferred": preferred}


SCORES: dict[str, Callable[[Options, int], dict[str, Any]]] = {
    "probe_judge": score_judge, "autoencoder": score_autoencoder, "base": score_base, "student": score_student,
    "animator": score_animator, "sharpening": score_sharpening,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(SCORES)}; those that have weights unless given")
    parser.add_argument("--count", type=int, default=512, help="held-out prompts or faces")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "scores.json")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    options = Options()
    found = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    if unknown := set(chosen.parts) - set(SCORES):
        parser.error(f"parts are {', '.join(SCORES)}; got {', '.join(sorted(unknown))}")
    for part in chosen.parts or [p for p in SCORES if (options.weights / f"{p}.safetensors").exists()]:
        weights = digest(options.weights / f"{part}.safetensors")
        found[part] = {
            "weights": weights, "step": progress(options, part).get("step"), "count": chosen.count,
            "judge": digest(options.weights / "probe_judge.safetensors"),
        }  # fmt: skip
        found[part] |= SCORES[part](options, chosen.count)
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps({part: found[part]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
