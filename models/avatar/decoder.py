"""The autoencoder's decoder learns on alone, its latents staying as they are: it may follow the UNet's training.

Latents carry a little noise, so that it also decodes the UNet's small errors.
"""

from __future__ import annotations

import autoencoder
import torch
from data import Shards
from pixels import detail, gradient_loss, to_tensor
from training import Options, Run, Stage, batches

__all__ = ["stage"]


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(16)
    vae = autoencoder.load(options)
    parts = {"decoder": vae.decoder.requires_grad_(True), "post_quant_conv": vae.post_quant_conv.requires_grad_(True)}
    run = Run(stage, parts, options, needs=needs, weight_decay=1e-4)
    kinds = [shards for k in ("faces", "even") if len(shards := Shards(options.build / "data", k))]
    batch = 4 if options.small else 8
    streams = [batches(len(shards), batch, 17 + run.step) for shards in kinds]
    while run.going():
        turn = run.step % len(kinds)
        images, boxes = kinds[turn].rows(next(streams[turn]), "images", "boxes")
        x = to_tensor(images, options.device)
        weight = 1 + 1.5 * detail(boxes, images.shape[1]).to(options.device)
        with torch.autocast(options.device, torch.bfloat16):
            with torch.no_grad():
                moments = vae.encode(x).latent_dist
                noise = 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device) / vae.config.scaling_factor
                z = moments.sample().float() + noise * torch.randn_like(moments.mean.float())
            y = vae.decode(z).sample.float()
        loss = (weight * ((x - y).abs() + 2 * (x - y) ** 2)).mean() + gradient_loss(x, y)
        run.descend(loss, mse=(x - y).square().mean())
    with run.average.applied():
        figures = autoencoder.gate(vae.eval(), options) if run.over else {}
    return run.close(**figures)
