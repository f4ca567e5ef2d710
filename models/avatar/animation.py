"""Trains the animator on pairs of frames of one person: keyframe and controls in, the second frame out.

The keyframe is as drawn or after the autoencoder's round trip, the target is as drawn. Losses: L1 (eyes and mouth four
times), steps between pixels, smooth flows, a mask that is used where it must be, the reveal texture's truth, where eyes
and mouth are, KL with free bits; and, later, what the first probe reads off the new frame.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import probe_train
import torch
import torch.nn.functional as F
from animator import CONFIG, Posterior
from data import Shards
from pixels import detail, gradient_loss, psnr, to_images
from probe import predict, scores
from quick import quicken
from torch import Tensor
from training import Options, Run, Stage, digest, load_weights
from upscaler import over, rounds, to_rgba
from warp import blend, fuse

from hotloop.nets.animator import Decoder, Encoder, Fields, Keyframe, roomy, split

__all__ = [
    "Batch", "Nets", "Pairs", "animator_loss", "chosen", "divergence", "frame", "load", "nets_of", "seen", "shown",
    "stage",
]  # fmt: skip

FREE = 0.05  # nats a dimension of z
SIZE = 128


@dataclass(frozen=True)
class Batch:
    """Premultiplied float32 [B, 4, 128, 128] keyframes as the network gets them, targets and reveal textures; grounds
    [B, 3, 128, 128]; controls of the second frame and of the keyframe [B, controls]; boxes [B, frame, part, 4]."""

    keys: Tensor
    targets: Tensor
    reveals: Tensor
    grounds: Tensor
    controls: Tensor
    held: Tensor
    boxes: Tensor


class Pairs:
    """Rows of `pairs`, half of their keyframes after the autoencoder's round trip, either frame the keyframe."""

    def __init__(self, options: Options, *, held: bool = False) -> None:
        self.shards, self.options = Shards(options.build / "data", "pairs", held=held), options
        self.trips = rounds(options, "pairs-held" if held else "pairs", self.shards.parts, ("keys", "backdrops"))

    def batch(self, rng: np.random.RandomState, size: int, *, rows: np.ndarray | None = None) -> Batch:
        shard = rng.randint(len(self.shards.parts)) if rows is None else 0
        part = self.shards.parts[shard]
        rows = (
            np.sort(rng.choice(len(part["seeds"]), min(size, len(part["seeds"])), replace=False))
            if rows is None
            else rows
        )
        device = self.options.device
        keys, targets, reveals = (to_rgba(part[name][rows], device) for name in ("keys", "targets", "reveals"))
        ground, trip = (
            torch.from_numpy(np.array(v[rows])).to(device).permute(0, 3, 1, 2).float() / 255
            for v in (part["backdrops"], self.trips[shard])
        )
        alpha = keys[:, 3:]
        worn = torch.cat([(trip - (1 - alpha) * ground).clamp(0, 1).minimum(alpha), alpha], dim=1)
        use = torch.from_numpy(rng.rand(len(rows)) < 0.5).to(device).view(-1, 1, 1, 1)
        controls, boxes = (torch.from_numpy(np.array(part[n][rows])).to(device).float() for n in ("controls", "boxes"))
        return Batch(torch.where(use, worn, keys), targets, reveals, ground, controls[:, 1], controls[:, 0], boxes)


def divergence(post: Tensor, prior: Tensor) -> Tensor:
    """KL(q | p) of diagonal Gaussians [B, 2 Z] (means, log-variances), nats per dimension [Z], mean over the batch."""
    (m, v), (n, w) = post.float().chunk(2, dim=1), prior.float().chunk(2, dim=1)
    return (0.5 * (w - v + (v.exp() + (m - n) ** 2) / w.exp() - 1)).mean(0)


def _sample(told: Tensor) -> Tensor:
    mean, logvar = told.float().chunk(2, dim=1)
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def frame(batch_keys: Tensor, key: Keyframe, fields: Fields) -> Tensor:
    """The new frame, premultiplied [B, 4, 128, 128]."""
    return blend(batch_keys, key.reveal, fuse(fields.whole, fields.parts, fields.boxes, SIZE))


def seen(boxes: Tensor) -> Tensor:
    """bool [..]: boxes that are there."""
    return boxes[..., 2] > boxes[..., 0]


def _coarse(b: Batch, key: Keyframe, fields: Fields) -> Tensor:
    """L1 of the frame made of averaged textures: a flow that is far off finds its way there, where at full size it
    sees only its neighbours."""
    total = torch.zeros((), device=b.keys.device)
    for scale in (4, 8):
        small = (F.avg_pool2d(v, scale) for v in (b.keys, key.reveal))
        total = total + (blend(*small, fields.whole) - F.avg_pool2d(b.targets, scale)).abs().mean()
    return total


def _smoothness(fields: Fields, targets: Tensor) -> Tensor:
    """Steps of the flows, less where the picture has an edge."""
    flow = torch.cat(split(fields.whole)[:2], dim=1)
    grey = F.interpolate(targets, size=flow.shape[2:], mode="area").mean(1, keepdim=True)
    x = (flow[..., 1:] - flow[..., :-1]).abs() * (-10 * (grey[..., 1:] - grey[..., :-1]).abs()).exp()
    y = (flow[..., 1:, :] - flow[..., :-1, :]).abs() * (-10 * (grey[..., 1:, :] - grey[..., :-1, :]).abs()).exp()
    return x.mean() + y.mean()


@dataclass(frozen=True)
class Nets:
    encoder: Encoder
    decoder: Decoder
    posterior: Posterior


def _where(b: Batch, told: Tensor) -> Tensor:
    """Boxes of the parts: the truth with room, shaken; the network's own where nothing shows."""
    truth = b.boxes[:, 1]
    shaken = roomy(truth) + 0.01 * torch.randn_like(truth)
    return torch.where(seen(truth)[..., None], shaken, told.detach())


def animator_loss(nets: Nets, b: Batch, device: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    with torch.autocast(device, torch.bfloat16):
        key = nets.encoder(b.keys)
        post = nets.posterior(b.targets, b.keys, b.controls)
        z = _sample(post)
        told = nets.decoder.places(key, nets.decoder.told(key, b.controls, z))
        fields = nets.decoder(key, b.controls, z, boxes=_where(b, told))
    new = frame(b.keys, key, fields)
    weight = 1 + 3 * detail(b.boxes[:, 1].cpu().numpy(), SIZE).to(device)
    kl = divergence(post, key.prior)
    parts = {
        "l1": (weight * (new - b.targets).abs()).mean(),
        "coarse": _coarse(b, key, fields),
        "steps": gradient_loss(new, b.targets),
        "smooth": _smoothness(fields, b.targets),
        "mask": split(fields.whole)[2].mean(),
        "reveal": (key.reveal - b.reveals).abs().mean(),
        "places": ((key.boxes - b.boxes[:, 0]).abs().mean(-1) * seen(b.boxes[:, 0])).mean()
        + ((told - roomy(b.boxes[:, 1])).abs().mean(-1) * seen(b.boxes[:, 1])).mean(),
        "held": F.smooth_l1_loss(key.held, b.held, beta=0.1),
        "kl": kl.clamp(min=FREE).sum(),
    }
    share = {
        "l1": 1.0,
        "steps": 0.5,
        "smooth": 0.1,
        "mask": 0.02,
        "reveal": 0.5,
        "places": 0.3,
        "kl": 4e-3,
        "coarse": 1.0,
        "held": 0.5,
    }
    total = torch.stack([share[name] * value for name, value in parts.items()]).sum()
    return total, parts | {"nats": kl.sum()}, new


def _reading(probe: Any, new: Tensor, b: Batch, device: str) -> Tensor:
    """How far the first probe's reading of the new frame is from the controls it was to show."""
    with torch.autocast(device, torch.bfloat16):
        _, held = probe(2 * over(new, b.grounds) - 1)
    return F.smooth_l1_loss(held.float(), b.controls, beta=0.1)


def nets_of(options: Options) -> Nets:
    """The three networks that learn together, untrained."""
    return Nets(*(quicken(net.to(options.device)) for net in (Encoder(CONFIG), Decoder(CONFIG), Posterior())))


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(8)
    nets = nets_of(options)
    modules = {"encoder": nets.encoder, "decoder": nets.decoder}
    run = Run(stage, modules, options, needs=needs, scratch={"posterior": nets.posterior})
    rows, rng = Pairs(options), np.random.RandomState(run.step)
    batch = 2 if options.small else 8 if options.device == "cpu" else 64
    probe = probe_train.load(options)
    while run.going():
        b = rows.batch(rng, batch)
        loss, parts, new = animator_loss(nets, b, options.device)
        if run.segment or run.part > 0.4:
            parts["read"] = _reading(probe, new, b, options.device)
            loss = loss + 0.1 * parts["read"]
        run.descend(loss, **parts)
    with run.average.applied():
        figures = shown(nets, options) if run.over else {}
    return run.close(**figures)


@torch.no_grad()
def shown(nets: Nets, options: Options, count: int = 192, *, name: str = "animator") -> dict[str, Any]:
    """On held-out people, z from the prior's mean: PSNR over grey, and what the first probe reads. Writes a sheet."""
    rows = Pairs(options, held=True)
    if not rows.shards.parts:
        return {}
    count = min(4 if options.small else count, len(rows.shards.parts[0]["seeds"]))
    news, targets, controls, pictures = [], [], [], []
    for i in range(0, count, 16):
        b = rows.batch(np.random.RandomState(i), 16, rows=np.arange(i, min(i + 16, count)))
        key = nets.encoder(b.keys)
        new = frame(b.keys, key, nets.decoder(key, b.controls, key.prior.chunk(2, dim=1)[0]))
        news.append(over(new, b.grounds))
        targets.append(over(b.targets, b.grounds))
        controls.append(b.controls.cpu().numpy())
        pictures += [over(v[:4], 0.85) for v in (b.keys, key.reveal, new, b.targets)] if i == 0 else []
    _sheet(pictures, options.build / f"{name}.png")
    new, target = (2 * torch.cat(v) - 1 for v in (news, targets))
    probe, truth = probe_train.load(options), np.concatenate(controls)
    found, bound = (scores(predict(probe, to_images(v))[1], truth) for v in (new, target))
    r = [v[0] for v in found.values() if v[0] == v[0]]
    return {
        "psnr": round(psnr(new, target), 2),
        "controls read (probe_train): mean r, worst r": [round(float(np.mean(r)), 4), round(float(np.min(r)), 4)],
        "controls: r, mean error": found,
        "bound, mean r": round(float(np.nanmean([v[0] for v in bound.values()])), 4),
    }


def _sheet(rows: list[Tensor], path: Path) -> None:
    """Keyframes, reveal textures, new frames and truths, one under the other."""
    from PIL import Image

    pages = [np.concatenate(list(to_images(2 * row - 1)), axis=1) for row in rows]
    Image.fromarray(np.concatenate(pages)).save(path)


def load(options: Options, name: str = "animator") -> tuple[Encoder, Decoder]:
    """The trained animator, frozen; name: "sharpening" for the one that was finetuned against a critic."""
    nets = (Encoder(CONFIG), Decoder(CONFIG))
    load_weights(options.weights / f"{name}.safetensors", dict(zip(("encoder", "decoder"), nets, strict=True)))
    for net in nets:
        net.eval().requires_grad_(False).to(options.device)
    return nets


def chosen(options: Options) -> str:
    """Whose weights are shipped: the finetuned ones where scores.json says, of these weights, that the judge prefers
    them."""
    file = options.root / "scores.json"
    marks = json.loads(file.read_text()).get("sharpening", {}) if file.exists() else {}
    known = marks.get("weights") == digest(options.weights / "sharpening.safetensors")
    return "sharpening" if known and marks.get("preferred") else "animator"
