"""Captions as tokens, and what they claim as class numbers: no picture is needed for either."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from captions import Caption, make_caption, two_caption
from data import couple
from model import Tokenizer
from render import ATTRIBUTES, sample_face, sample_two
from torch import Tensor, nn

__all__ = ["CLAIMS", "Captions", "Reader", "caption_of", "write"]

IGNORED = -100
_SIDED = ("hair", "style", "eyes", "expression", "glasses", "clothes", "colour", "person", "age")
# What a caption may claim, and the values; of two people, each side's.
CLAIMS: dict[str, tuple[str, ...]] = dict(ATTRIBUTES) | {
    f"{side}_{name}": ATTRIBUTES[name] for side in ("left", "right") for name in _SIDED
}
# Words that neither claim a value nor leave it open: no lesson in them.
_VAGUE = {"glasses": ("glasses", "眼镜"), "person": ("person",), "view": ("three-quarter",)}


def caption_of(seed: int, form: int, *, empty: float = 0.1) -> Caption:
    """One of the captions of a row of `faces`."""
    if couple(seed):
        return two_caption(sample_two(seed), seed * 64 + form, empty=empty)
    return make_caption(sample_face(seed), seed * 64 + form, empty=empty)


def _claims(caption: Caption) -> list[int]:
    text, claims = caption.text.lower().replace("_", "-"), caption.claims
    row = [v.index(claims[k]) if k in claims else len(v) for k, v in CLAIMS.items()]
    for i, name in enumerate(CLAIMS):
        plain = name.split("_")[-1]
        if name not in claims and any(word in text for word in _VAGUE.get(plain, ())):
            row[i] = IGNORED
    return row


@dataclass(frozen=True)
class Captions:
    """ids int16 [N, forms, 77]; claims int8 [N, forms, claims], one past the last class where not claimed."""

    ids: Tensor
    claims: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """One form of each row's captions, chosen at random: int64 [B, 77] and [B, claims]."""
        form = torch.randint(self.ids.shape[1], (len(index),))
        rows = torch.from_numpy(index)
        return self.ids[rows, form].long(), self.claims[rows, form].long()


def write(seeds: np.ndarray, *, forms: int = 4, empty: float = 0.1) -> Captions:
    """The captions of these seeds of `faces`, tokenised."""
    captions = [caption_of(int(seed), form, empty=empty) for seed in seeds for form in range(forms)]
    tokenize = Tokenizer()
    ids = [tokenize([c.text for c in captions[i : i + 2048]]).to(torch.int16) for i in range(0, len(captions), 2048)]
    claims = torch.tensor(np.array([_claims(c) for c in captions], np.int8))
    return Captions(torch.cat(ids).view(len(seeds), forms, 77), claims.view(len(seeds), forms, -1))


class Reader(nn.Module):
    """Reads the claims off the end token and off one padding token after it, chosen at random: both carry the whole
    caption into the UNet's cross-attention. Trained beside the text encoder, shipped with nothing."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.sizes = [len(v) + 1 for v in CLAIMS.values()]
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, hidden: Tensor, ids: Tensor, claims: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and accuracy per claim over what is claimed; hidden [B, 77, width], claims int64 [B, claims]."""
        first = (ids == ids[:, -1:]).int().argmax(1)  # the end token also pads
        later = first + (torch.rand(len(ids), device=ids.device) * (ids.shape[1] - first)).long()
        rows = torch.arange(len(ids), device=ids.device)
        read = hidden[torch.cat([rows, rows]), torch.cat([first, later])].float()
        parts = self.linear(read).split(self.sizes, dim=1)
        target = torch.cat([claims, claims])
        losses = [F.cross_entropy(p, target[:, i], ignore_index=IGNORED) for i, p in enumerate(parts)]
        with torch.no_grad():
            guess = torch.stack([p.argmax(1) for p in parts], dim=1)
            claimed = (target != torch.tensor(self.sizes, device=ids.device) - 1) & (target != IGNORED)
            right = ((guess == target) & claimed).sum(0) / claimed.sum(0).clamp(min=1)
        return torch.stack(losses).nanmean(), right
