"""The tiny VAE: TAESD's architecture (diffusers' AutoencoderTiny) in width 16, distilled from the autoencoder.

The decoder learns to decode the autoencoder's scaled latents, the encoder to make them; both by pixels as well.
"""

from __future__ import annotations

from typing import Any

import autoencoder
import numpy as np
import probe_train
import torch
from data import Shards
from diffusers import AutoencoderTiny
from pixels import detail, gradient_loss, psnr, to_images, to_tensor
from probe import accuracy, faces, predict
from quick import quicken
from training import Options, Run, Stage, batches, load_weights

__all__ = ["CONFIG", "load", "make", "stage"]

# Factor 4: two halvings. TAESD works on latents clamped softly; scaled latents go in and out.
CONFIG: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "act_fn": "relu", "upsampling_scaling_factor": 2,
    "encoder_block_out_channels": (16, 16, 16), "decoder_block_out_channels": (16, 16, 16),
    "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1), "scaling_factor": 1.0,
}  # fmt: skip


def make() -> AutoencoderTiny:
    return AutoencoderTiny(**CONFIG)


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(11)
    vae, teacher = make().to(options.device, memory_format=torch.channels_last).train(), autoencoder.load(options)
    run = Run(stage, {"vae": vae}, options, needs=needs, weight_decay=1e-4)
    factor = teacher.config.scaling_factor
    kinds = [shards for k in ("even", "faces") if len(shards := Shards(options.build / "data", k))]
    batch = 4 if options.small else 12
    streams = [batches(len(shards), batch, 13 + run.step) for shards in kinds]
    while run.going():
        turn = run.step % len(kinds)
        images, boxes = kinds[turn].rows(next(streams[turn]), "images", "boxes")
        x = to_tensor(images, options.device)
        weight = 1 + 1.5 * detail(boxes, images.shape[1]).to(options.device)
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16):
            z = teacher.encode(x).latent_dist.mean.float() * factor
        with torch.autocast(options.device, torch.bfloat16):
            own = vae.encoder(x).float()
            y = vae.decoder(z + 0.1 * torch.rand(1) * torch.randn_like(z)).float()
        pixel = (weight * ((x - y).abs() + 2 * (x - y) ** 2)).mean() + gradient_loss(x, y)
        run.descend(pixel + (own - z).abs().mean(), mse=(x - y).square().mean(), latents=(own - z).square().mean())
    with run.average.applied():
        figures = judged(vae.eval(), options) if run.over else {}
    return run.close(**figures)


@torch.no_grad()
def judged(vae: AutoencoderTiny, options: Options, most: int = 256) -> dict[str, Any]:
    """On held-out faces: PSNR and what the first probe reads after the full and after the tiny decoder."""
    held = Shards(options.build / "data", "even", held=True)
    if not len(held):
        return {}
    rows = faces(held, np.arange(min(most, len(held))))
    full = autoencoder.load(options)
    means, _ = autoencoder.encode(full, rows.images)
    tiny = np.concatenate([
        to_images(vae.decoder(part.to(options.device))) for part in (means * full.config.scaling_factor).split(32)
    ])  # fmt: skip
    probe = probe_train.load(options)
    return {
        "psnr": round(psnr(to_tensor(rows.images), to_tensor(tiny)), 2),
        "tiny decoder": accuracy(predict(probe, tiny)[0], rows.labels),
        "full decoder": accuracy(predict(probe, autoencoder.decode(full, means))[0], rows.labels),
    }


def load(options: Options) -> AutoencoderTiny:
    vae = make()
    load_weights(options.weights / "tinyvae.safetensors", {"vae": vae})
    return quicken(vae.eval().requires_grad_(False).to(options.device))
