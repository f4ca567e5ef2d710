"""Trains the CLIP pair: a text and an image encoder whose embeddings meet (Radford et al. 2021), for screening and
search.

The image tower starts from the first probe's trunk, the text tower from the text encoder of the queue; the temperature
is learned. Captions without claims (empty ones) and two captions that claim the same are left out of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import probe_train
import text
import torch
import torch.nn.functional as F
from data import Shards
from model import text_config
from pixels import to_tensor
from probe import disturb
from texts import write
from torch import Tensor, nn
from training import Options, Run, Stage, load_weights

from hotloop.nets.towers import ImageTower, TextTower

__all__ = ["IMAGE", "Temperature", "contrast", "load", "stage", "words_config"]

IMAGE: dict[str, Any] = {"size": 128, "projection_dim": 128}


def words_config(options: Options) -> dict[str, Any]:
    return text_config(**text.changes(options))


def _make(options: Options) -> tuple[ImageTower, TextTower]:
    image, words = ImageTower(IMAGE), TextTower(words_config(options))
    words.encoder = text.load(options)  # transformers' own, of the same weights: its backward is faster here
    return image, words


class Temperature(nn.Module):
    """The logarithm of the scale of similarities, learned, at most log 100."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(2.66))

    def forward(self) -> Tensor:
        return self.log.clamp(max=4.6052).exp()


def contrast(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of similarities [B, B]: each picture's own caption, each caption's own picture."""
    similar = scale * images @ texts.T
    own = torch.arange(len(similar), device=similar.device)
    return (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2


def _towers(options: Options) -> tuple[ImageTower, TextTower]:
    image, words = _make(options)
    image.trunk.load_state_dict(probe_train.load(options).trunk.state_dict())
    return image.to(options.device, memory_format=torch.channels_last), words.to(options.device)


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(12)
    image, words = _towers(options)
    scale = Temperature().to(options.device)
    run = Run(stage, {"image": image, "words": words, "scale": scale}, options, needs=needs, slow=["words"])
    shards, rng = Shards(options.build / "data", "faces"), np.random.RandomState(run.step)
    pool = [(part, write(part["seeds"], forms=4, empty=0.0)) for part in shards.parts[: 1 if options.small else 24]]
    batch = 8 if options.small else 64
    while run.going():
        part, captions = pool[rng.randint(len(pool))]
        index = np.sort(rng.choice(len(captions), batch, replace=False))
        ids, claims = captions.batch(index)
        _, first = np.unique(claims.numpy(), axis=0, return_index=True)
        x = disturb(to_tensor(part["images"][index[first]], options.device), rng)
        with torch.autocast(options.device, torch.bfloat16):
            a, b = image.train()(x), words(ids[first].to(options.device))
        run.descend(contrast(a, b, scale()), scale=scale())
    with run.average.applied():
        figures = recalls(image.eval(), words.eval(), options) if run.over else {}
    return run.close(**figures)


@torch.no_grad()
def recalls(image: ImageTower, words: TextTower, options: Options, among: int = 64) -> dict[str, Any]:
    """Recall at 1 among 64 held-out people and their full captions, both ways."""
    held = Shards(options.build / "data", "faces", held=True)
    if not len(held):
        return {}
    count = min(8 if options.small else 8 * among, len(held))
    images = held.rows(np.arange(count), "images")[0]
    captions = write(held.all("seeds")[:count], forms=1, empty=0.0)
    found: dict[str, list[float]] = {"text to image": [], "image to text": []}
    for i in range(0, count - min(among, count) + 1, among):
        a = image(to_tensor(images[i : i + among], options.device))
        b = words(captions.ids[i : i + among, 0].long().to(options.device))
        similar = a @ b.T
        own = torch.arange(len(similar), device=similar.device)
        found["image to text"].append(float((similar.argmax(1) == own).float().mean()))
        found["text to image"].append(float((similar.argmax(0) == own).float().mean()))
    return {f"R@1 in {among}, {k}": round(float(np.mean(v)), 4) for k, v in found.items()}


def load(options: Options) -> tuple[ImageTower, TextTower]:
    """Both towers, frozen."""
    image, words = _make(options)
    load_weights(options.weights / "clip.safetensors", {"image": image, "words": words})
    return image.eval().requires_grad_(False), words.eval().requires_grad_(False)
