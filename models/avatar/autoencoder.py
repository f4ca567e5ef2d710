"""The autoencoder: 128 x 128 pixels <-> 4 x 32 x 32 latents of mean 0 and variance 1 / scaling_factor^2.

It starts from the first model's, whose factor of 4 it keeps. Its gate, before the UNet trains: what the probe reads off
reconstructions. At the end of a segment the latents are centred by folding their channel means into the 1 x 1
convolutions' biases (exact; SD 1.x pipelines know no shift), and the scaling factor is stored beside the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import probe_train
import torch
from data import Shards
from diffusers import AutoencoderKL
from pixels import detail, gradient_loss, psnr, to_images, to_tensor
from probe import accuracy, faces, predict
from quick import quicken
from torch import Tensor, nn
from training import Options, Run, Stage, batches, digest, load_weights, progress

__all__ = ["CONFIG", "GATE", "decode", "encode", "gate", "load", "make", "scaling", "stage"]

CONFIG: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "sample_size": 128, "layers_per_block": 1,
    "block_out_channels": (32, 48, 64), "norm_num_groups": 16,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip
SEEN = 0.15
START = Path(__file__).resolve().parents[2] / "runtime" / "hotloop" / "assets" / "avatar-tiny" / "vae"
GATE = {name: 0.97 for name in ("hair", "style", "eyes", "skin", "glasses", "clothes", "background")} | {
    "expression": 0.98
}


def make(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(**(CONFIG | changes))


def _start(options: Options) -> AutoencoderKL:
    if options.small:
        return make(block_out_channels=(16, 16, 16))
    vae = make()
    if START.exists():
        vae.load_state_dict(AutoencoderKL.from_pretrained(START, torch_dtype=torch.float32).state_dict())
    return vae


def _loss(vae: AutoencoderKL, x: Tensor, weight: Tensor, trunk: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """L1 + 2 MSE, eyes and mouth weighing more, + gradient L1 + 0.002 KL, + how differently a reader's trunk sees the
    picture and its reconstruction; and the reconstructions."""
    with torch.autocast(x.device.type, torch.bfloat16):
        moments = vae.encode(x).latent_dist
        mean, logvar = moments.mean.float(), moments.logvar.float()
        y = vae.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).sample.float()
    pixel = (weight * ((x - y).abs() + 2 * (x - y) ** 2)).mean() + gradient_loss(x, y)
    if trunk is not None:
        pixel = pixel + SEEN * perceived(trunk, x, y)
    return pixel + 0.002 * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean(), y


def perceived(trunk: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Distance of two pictures in a trained network's maps (Johnson et al. 2016), each map's in units of its own size,
    the mean over maps."""
    with torch.autocast(x.device.type, torch.bfloat16):
        with torch.no_grad():
            true = trunk(x)
        made = trunk(y)
    return torch.stack([
        (a.float() - b.float()).abs().mean() / a.float().abs().mean().clamp(min=1e-3)
        for a, b in zip(true, made, strict=True)
    ]).mean()  # fmt: skip


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(3)
    faces_, even = (Shards(options.build / "data", kind) for kind in ("faces", "even"))
    kinds = [shards for shards in (even, faces_) if len(shards)]
    vae = quicken(_start(options).to(options.device)).train()
    run = Run(stage, {"vae": vae}, options, needs=needs, weight_decay=1e-4)
    trunk = probe_train.load(options).trunk if (options.weights / "probe_train.safetensors").exists() else None
    batch = 4 if options.small else 8
    streams = [batches(len(shards), batch, 5 + run.step) for shards in kinds]
    while run.going():
        turn = run.step % len(kinds)
        images, boxes = kinds[turn].rows(next(streams[turn]), "images", "boxes")
        x = to_tensor(images, options.device)
        loss, y = _loss(vae, x, 1 + 3 * detail(boxes, images.shape[1]).to(options.device), trunk)
        run.descend(loss, mse=(x - y).square().mean())
    with run.average.applied():
        vae.eval()
        factor = _fold(vae, kinds[0].rows(np.arange(min(512, len(kinds[0]))), "images")[0])
        figures = gate(vae, options) if run.over else {}
    return run.close(scaling=factor, **figures)


@torch.no_grad()
def _fold(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Moves the channel means of the latents into the 1 x 1 convolutions' biases, exactly, since decode(z) =
    decoder(W z + b) = decoder(W (z - m) + (b + W m)); returns 1 / std."""
    means, _ = encode(vae, images)
    centre = means.mean((0, 2, 3))
    vae.quant_conv.bias[: len(centre)] -= centre.to(vae.device)
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ centre.to(vae.device)
    return 1.0 / float((means - centre[:, None, None]).std())


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, *, batch: int = 16) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the unscaled latents, float32 [N, 4, 32, 32]."""
    parts = []
    for i in range(0, len(images), batch):
        with torch.autocast(vae.device.type, torch.bfloat16):
            moments = vae.encode(to_tensor(images[i : i + batch], vae.device.type)).latent_dist
        parts.append((moments.mean.float().cpu(), moments.std.float().cpu()))
    means, stds = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, *, batch: int = 16) -> np.ndarray:
    """uint8 [N, 128, 128, 3] of unscaled latents."""
    out = []
    for part in latents.split(batch):
        with torch.autocast(vae.device.type, torch.bfloat16):
            out.append(to_images(vae.decode(part.to(vae.device)).sample))
    return np.concatenate(out)


def gate(vae: AutoencoderKL, options: Options, most: int = 512) -> dict[str, Any]:
    """PSNR on held-out faces, and what the probe reads off their reconstructions, also with latent noise."""
    held = Shards(options.build / "data", "even", held=True)
    if not len(held):
        return {}
    rows = faces(held, np.arange(min(most, len(held))))
    means, _ = encode(vae, rows.images)
    rebuilt = decode(vae, means)
    figures: dict[str, Any] = {"psnr": round(psnr(to_tensor(rows.images), to_tensor(rebuilt)), 2)}
    if (options.weights / "probe_train.safetensors").exists():
        probe = probe_train.load(options)
        read = accuracy(predict(probe, rebuilt)[0], rows.labels)
        noisy = decode(vae, means + 0.3 * means.std() * torch.randn_like(means))
        figures |= {
            "real": accuracy(predict(probe, rows.images)[0], rows.labels),
            "rebuilt": read,
            "rebuilt, noise 0.3 sigma": accuracy(predict(probe, noisy)[0], rows.labels),
            "gate": all(read.get(name, 1.0) >= least for name, least in GATE.items()),
        }
    return figures


def scaling(options: Options) -> float:
    return float(progress(options, "autoencoder")["figures"]["scaling"])


def load(options: Options) -> AutoencoderKL:
    """The trained autoencoder, its scaling factor in its configuration, frozen."""
    vae = _start(options)
    load_weights(options.weights / "autoencoder.safetensors", {"vae": vae})
    vae.register_to_config(scaling_factor=scaling(options))
    # A decoder that has learned on alone, if it belongs to these latents.
    own = options.weights / "autoencoder.safetensors"
    if progress(options, "decoder").get("needs", {}).get("autoencoder") == digest(own):
        parts = {"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}
        load_weights(options.weights / "decoder.safetensors", parts)
    return quicken(vae.eval().requires_grad_(False).to(options.device))


if __name__ == "__main__":
    chosen = Options()
    print(json.dumps(gate(load(chosen), chosen), indent=1))
