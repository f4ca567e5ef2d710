"""The latents of the faces that are drawn by now, encoded once and kept in build/latents-<autoencoder>."""

from __future__ import annotations

from typing import Any

import autoencoder
import numpy as np
import torch
from data import Shards
from pixels import detail
from texts import Captions, write
from torch import Tensor
from training import Options, digest

__all__ = ["Latents"]


class Latents:
    """Rows of `faces` as the UNet sees them: scaled means and deviations, captions, cells of eyes and mouth."""

    def __init__(self, options: Options, *, forms: int = 4) -> None:
        self.options, self.forms = options, forms
        self.shards = Shards(options.build / "data", "faces")
        self.folder = options.build / f"latents-{digest(options.weights / 'autoencoder.safetensors')}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scaling = autoencoder.scaling(options)
        self.vae: Any = None
        self.rows: list[np.ndarray] = []
        self.captions: list[Captions] = []
        self.cells: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def grow(self, shards: int = 1) -> None:
        """Takes up so many more shards, encoding those that nobody has encoded."""
        self.shards.refresh()
        for part in self.shards.parts[len(self.rows) : len(self.rows) + shards]:
            place = self.folder / f"{len(self.rows):03d}.npy"
            if not place.exists():
                self._encode(np.asarray(part["images"]), place)
            self.rows.append(np.load(place))
            self.captions.append(write(part["seeds"], forms=self.forms))
            self.cells.append(detail(part["boxes"], 32, margin=0.0).half())

    def _encode(self, images: np.ndarray, place: Any) -> None:
        self.vae = self.vae or autoencoder.load(self.options)
        means, stds = autoencoder.encode(self.vae, images)
        temporary = place.with_suffix(".tmp.npy")
        np.save(temporary, torch.cat([means, stds], dim=1).mul(self.scaling).half().numpy())
        temporary.rename(place)

    def batch(self, rng: np.random.RandomState, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents float32 [B, 4, 32, 32], tokens and claims int64, cells float32 [B, 1, 32, 32], of random rows."""
        counts = rng.multinomial(size, np.array([len(r) for r in self.rows]) / len(self))
        parts = []
        for shard, count in enumerate(counts):
            if count:
                index = rng.choice(len(self.rows[shard]), count, replace=False)
                both = torch.from_numpy(self.rows[shard][index]).float()
                x = both[:, :4] + both[:, 4:] * torch.randn_like(both[:, 4:])
                parts.append((x, *self.captions[shard].batch(index), self.cells[shard][index].float()))
        return tuple(torch.cat(v).to(self.options.device) for v in zip(*parts, strict=True))  # type: ignore[return-value]
