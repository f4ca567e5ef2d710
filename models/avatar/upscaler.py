"""Trains the x4 upscaler, 128 -> 512: RGB and matte in, premultiplied foreground RGBA out.

It learns on composites over random backgrounds, as drawn and after the autoencoder's round trip; the truth is the
renderer's drawing at 512.
"""

from __future__ import annotations

from typing import Any

import autoencoder
import numpy as np
import torch
import torch.nn.functional as F
from data import Shards, composite
from pixels import edges, to_images
from quick import quicken
from torch import Tensor, nn
from training import Options, Run, Stage, digest, load_weights

from hotloop.nets.upscaler import Upscaler

__all__ = ["config", "load", "over", "rounds", "stage", "to_rgba"]

WINDOW = 48  # low pixels that the network sees for each 32 that are compared


def config(options: Options) -> dict[str, int]:
    return {"width": 8, "blocks": 1} if options.small else {"width": 32, "blocks": 5}


def to_rgba(images: np.ndarray, device: str = "cpu") -> Tensor:
    """Premultiplied uint8 [B, H, W, 4] -> float32 [B, 4, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 255


def over(rgba: Tensor, ground: Tensor | float) -> Tensor:
    """Premultiplied [B, 4, H, W] in [0, 1] over a ground in [0, 1]: [B, 3, H, W]."""
    return rgba[:, :3] + (1 - rgba[:, 3:]) * ground


def rounds(options: Options, kind: str, parts: list[dict[str, np.ndarray]], names: tuple[str, str]) -> list[np.ndarray]:
    """Composites after the autoencoder's round trip, a uint8 [n, 128, 128, 3] per shard, kept in build/."""
    folder = options.build / f"rounds-{digest(options.weights / 'autoencoder.safetensors')}"
    folder.mkdir(parents=True, exist_ok=True)
    vae, out = None, []
    for i, part in enumerate(parts):
        place = folder / f"{kind}-{i:03d}.npy"
        if not place.exists():
            vae = vae or autoencoder.load(options)
            means, stds = autoencoder.encode(vae, composite(part[names[0]], part[names[1]]))
            noise = float(means.std()) * 0.1 * torch.rand(len(means), 1, 1, 1) * torch.randn_like(means)
            np.save(
                place.with_suffix(".tmp.npy"), autoencoder.decode(vae, means + stds * torch.randn_like(means) + noise)
            )
            place.with_suffix(".tmp.npy").rename(place)
        out.append(np.load(place, mmap_mode="r"))
    return out


class _Rows:
    """Windows of lows, their grounds exchanged now and then, and the truth four times as large."""

    def __init__(self, options: Options, *, held: bool = False) -> None:
        self.shards = Shards(options.build / "data", "large", held=held)
        self.options = options
        kind = "large-held" if held else "large"
        self.trips = rounds(options, kind, self.shards.parts, ("lows", "backdrops"))

    def batch(self, rng: np.random.RandomState, size: int) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
        """RGB [B, 3, 48, 48], matte, truth [B, 4, 128, 128] and where it lies in the window; half after round trips."""
        shard = rng.randint(len(self.shards.parts))
        part, trips = self.shards.parts[shard], self.trips[shard]
        rows = rng.randint(0, len(part["seeds"]), size)
        rgb, matte, truth, inside = [], [], [], []
        for n, row in enumerate(rows):
            crop = rng.randint(part["places"].shape[1])
            x, y = (int(v) for v in part["places"][row, crop])
            left, top = (min(max(0, v - 8), 128 - WINDOW) for v in (x, y))
            cut = np.s_[top : top + WINDOW, left : left + WINDOW]
            low = part["lows"][row][cut]
            rgb.append(trips[row][cut] if n % 2 else composite(low, self._ground(rng, part, row, cut)))
            matte.append(low[..., 3])
            truth.append(part["crops"][row, crop])
            inside.append((x - left, y - top))
        device = self.options.device
        alpha = torch.from_numpy(np.stack(matte)).to(device)[:, None].float() / 255
        colour = torch.from_numpy(np.stack(rgb)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return colour, alpha, to_rgba(np.stack(truth), device), np.array(inside)

    def _ground(self, rng: np.random.RandomState, part: dict[str, np.ndarray], row: int, cut: Any) -> np.ndarray:
        kind = rng.randint(4)
        if kind == 0:
            return np.asarray(part["backdrops"][row][cut])
        if kind == 1:
            return np.asarray(part["backdrops"][rng.randint(len(part["seeds"]))][cut])
        flat = np.broadcast_to(rng.randint(0, 256, 3).astype(np.uint8), (WINDOW, WINDOW, 3))
        return flat if kind == 2 else (flat * rng.uniform(0.3, 1, (WINDOW, 1, 1))).astype(np.uint8)


def _soften(matte: Tensor, rng: np.random.RandomState) -> Tensor:
    """The matte will be a network's own: now and then blurred, noisy, a little fat or thin."""
    if rng.rand() < 0.5:
        return matte
    blurred = F.avg_pool2d(matte, 3, 1, 1, count_include_pad=False)
    return ((1 + 0.3 * float(rng.uniform(-1, 1))) * blurred + 0.04 * torch.randn_like(matte)).clamp(0, 1)


def _cut(y: Tensor, inside: np.ndarray) -> Tensor:
    """The compared 128 x 128 of each enlarged window."""
    return torch.stack([p[:, 4 * b : 4 * b + 128, 4 * a : 4 * a + 128] for p, (a, b) in zip(y, inside, strict=True)])


def _loss(y: Tensor, truth: Tensor) -> Tensor:
    """L1 on premultiplied colour and alpha, steps, and composites over black and white."""
    steps = torch.stack([(a - b).abs().mean() for a, b in zip(edges(y), edges(truth), strict=True)]).sum()
    return (y - truth).abs().mean() + steps + 0.5 * (over(y, 1.0) - over(truth, 1.0)).abs().mean()


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(7)
    net = quicken(Upscaler(config(options))).to(options.device)
    run = Run(stage, {"upscaler": net}, options, needs=needs, weight_decay=1e-4)
    rows, rng = _Rows(options), np.random.RandomState(run.step)
    batch = 4 if options.small else 16
    while run.going():
        rgb, matte, truth, inside = rows.batch(rng, batch)
        with torch.autocast(options.device, torch.bfloat16):
            y = net(rgb, _soften(matte, rng))
        y = _cut(y.float(), inside)
        run.descend(_loss(y, truth), mse=(y - truth).square().mean())
    with run.average.applied():
        figures = judged(net.eval(), options) if run.over else {}
    return run.close(**figures)


@torch.no_grad()
def judged(net: nn.Module, options: Options, batches: int = 24) -> dict[str, Any]:
    """PSNR over bicubic on held-out crops over green, clean and after round trips, and the error of the edge band."""
    rows, rng = _Rows(options, held=True), np.random.RandomState(0)
    if not len(rows.shards):
        return {}
    errors: dict[str, list[float]] = {k: [] for k in ("clean", "clean bicubic", "trip", "trip bicubic", "band")}
    for _ in range(1 if options.small else batches):
        rgb, matte, truth, inside = rows.batch(rng, 8)
        y = _cut(net(rgb, matte), inside).clamp(0, 1)
        flat = torch.cat([(rgb + 1) / 2 * matte, matte], dim=1)
        cubic = _cut(F.interpolate(flat, scale_factor=4.0, mode="bicubic"), inside).clamp(0, 1)
        for name, guess in (("", y), (" bicubic", cubic)):
            mse = (over(guess, 0.5) - over(truth, 0.5)).square().mean((1, 2, 3))
            errors[f"clean{name}"] += mse[0::2].tolist()
            errors[f"trip{name}"] += mse[1::2].tolist()
        alpha = truth[:, 3:]
        band = (F.max_pool2d(alpha, 5, 1, 2) > 0.02) & (-F.max_pool2d(-alpha, 5, 1, 2) < 0.98)
        green = torch.tensor([0.0, 1.0, 0.0], device=y.device).view(1, 3, 1, 1)
        for ground in (0.0, 1.0, green):
            wrong = (over(y, ground) - over(truth, ground)).abs().mean(1, keepdim=True)
            errors["band"].append(float((wrong * band).sum() / band.sum().clamp(min=1)))
    found = {k: float(np.mean(v)) for k, v in errors.items()}
    decibel = {k: -10 * np.log10(v) for k, v in found.items() if k != "band"}
    return {
        "over bicubic, clean (dB)": round(decibel["clean"] - decibel["clean bicubic"], 2),
        "over bicubic, round trips (dB)": round(decibel["trip"] - decibel["trip bicubic"], 2),
        "psnr": {k: round(v, 2) for k, v in decibel.items()},
        "edge band error": round(found["band"], 4),
    }  # fmt: skip


def load(options: Options) -> Upscaler:
    net = Upscaler(config(options))
    load_weights(options.weights / "upscaler.safetensors", {"upscaler": net})
    return net.eval().requires_grad_(False).to(options.device)


@torch.no_grad()
def enlarge(net: nn.Module, images: np.ndarray, mattes: np.ndarray) -> np.ndarray:
    """Premultiplied uint8 [N, 512, 512, 4] of pictures uint8 [N, 128, 128, 3] and mattes uint8 [N, 128, 128]."""
    rgb = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    matte = torch.from_numpy(np.array(mattes))[:, None].float() / 255
    return to_images(2 * net(rgb, matte).clamp(0, 1) - 1)
