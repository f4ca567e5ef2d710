"""Stage 1, the autoencoder: 64 x 64 pixels <-> 4 x 16 x 16 latents of mean 0 and variance 1 / scaling_factor^2.

python models/avatar_tiny/train_vae.py --minutes 14                                      (resumes build/vae.pt)
python models/avatar_tiny/train_vae.py --minutes 9.5 --batch 8 --peak 1.2e-3 --restart   (second phase, small batches)
python models/avatar_tiny/train_vae.py --fold                       (centres the latents, encodes the training set)
python models/avatar_tiny/train_vae.py --decoder --minutes 5 --batch 8 --peak 6e-4       (any time after; then model.py)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import WORK, load
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from training import Run, batches

__all__ = [
    "CONFIG",
    "encode",
    "fold",
    "load_vae",
    "make_vae",
    "reconstruct",
    "to_images",
    "to_tensor",
    "train",
    "tune_decoder",
]

CONFIG: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "sample_size": 64, "layers_per_block": 1,
    "block_out_channels": (32, 48, 64), "norm_num_groups": 16,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip


def make_vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(**(CONFIG | changes))


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_images(x: Tensor) -> np.ndarray:
    """float32 [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def _pixel_loss(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """L1 + 2 MSE + L1 of the gradients; weight [B, 1, H, W]: more where the expression is, which covers few pixels and
    would else be learned last."""
    gradient = sum((a - b).abs().mean() for a, b in zip(_edges(x), _edges(y), strict=True))
    return (weight * (x - y).abs()).mean() + 2 * (weight * (x - y) ** 2).mean() + gradient


def _loss(vae: AutoencoderKL, x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        moments = vae.encode(x).latent_dist
        mean, logvar = moments.mean.float(), moments.logvar.float()
        y = vae.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).sample
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return _pixel_loss(x, y.float(), weight) + 0.002 * divergence


def _batch(data: dict[str, np.ndarray], index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Pictures float32 [B, 3, H, W] and the weights of their pixels [B, 1, H, W]."""
    side = data["images"].shape[1]
    detail = np.unpackbits(data["detail"][index], axis=1).reshape(-1, 1, side, side)
    return to_tensor(data["images"][index]), 1 + 1.5 * torch.from_numpy(detail).float()


def train(data: dict[str, np.ndarray], run: Run, *, batch: int = 32, vae: AutoencoderKL | None = None) -> list[float]:
    """Trains until the run is done; returns the losses."""
    torch.manual_seed(0)
    vae = vae or make_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=run.peak, betas=(0.9, 0.99), weight_decay=1e-4)
    if state := run.resume():
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
    losses = []
    for index in batches(len(data["images"]), batch, run.step + 1):
        if run.done:
            break
        loss = _loss(vae, *_batch(data, index))
        optimizer.param_groups[0]["lr"] = run.rate()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        run.step += 1
        losses.append(loss.item())
        run.log(loss=np.mean(losses[-50:]))
        if run.due():
            run.save(vae=vae.state_dict(), optimizer=optimizer.state_dict())
    run.save(vae=vae.state_dict(), optimizer=optimizer.state_dict())
    return losses


def tune_decoder(
    vae: AutoencoderKL,
    data: dict[str, np.ndarray],
    latents: dict[str, Any],
    run: Run,
    *,
    batch: int = 8,
    noise: float = 0.04,
) -> list[float]:
    """Trains the decoder alone on stored latents, which stay as they are: it may follow the UNet's training.

    noise: what is added to the latents (their deviation is 1), so that it also decodes the UNet's small errors."""
    vae.train().requires_grad_(True)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=run.peak, betas=(0.9, 0.99), weight_decay=1e-4)
    losses = []
    for index in batches(len(data["images"]), batch, 5):
        if run.done:
            break
        rows = torch.from_numpy(index)
        means, stds = latents["means"][rows].float(), latents["stds"][rows].float()
        z = means + (stds**2 + noise**2 * torch.rand(len(rows), 1, 1, 1)).sqrt() * torch.randn_like(means)
        x, weight = _batch(data, index)
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(z / latents["scaling"]).sample
        loss = _pixel_loss(x, y.float(), weight)
        optimizer.param_groups[0]["lr"] = run.rate()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.step += 1
        losses.append(loss.item())
        run.log(every=100, loss=np.mean(losses[-100:]))
    vae.eval().requires_grad_(False)
    return losses


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, *, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Means and log-variances of the latents, unscaled, [N, 4, 16, 16]."""
    parts = []
    for i in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.encode(to_tensor(images[i : i + batch])).latent_dist
        parts.append((moments.mean.float(), moments.logvar.float()))
    means, logvars = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(logvars)


@torch.no_grad()
def fold(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Centres the latents by moving their channel means into the 1 x 1 convolutions' biases (exact, since
    decode(z) = decoder(W z + b) = decoder(W (z - m) + (b + W m))); returns the scaling factor 1 / std."""
    means, _ = encode(vae, images)
    centre = means.mean((0, 2, 3))
    vae.quant_conv.bias[: len(centre)] -= centre
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ centre
    return 1.0 / (means - centre[:, None, None]).std().item()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: np.ndarray) -> tuple[np.ndarray, float]:
    """The pictures (uint8 [N, H, W, 3]) after encoding and decoding, and their mean PSNR in dB."""
    out, values = [], []
    for i in range(0, len(images), 64):
        x = to_tensor(images[i : i + 64])
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(-10 * ((x - y) / 2).square().mean((1, 2, 3)).log10())
        out.append(to_images(y))
    return np.concatenate(out), torch.cat(values).mean().item()


def load_vae(path: Path = WORK / "vae.safetensors") -> AutoencoderKL:
    """The finished, folded autoencoder."""
    vae = make_vae()
    vae.load_state_dict(load_file(path))
    return vae.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=13)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--restart", action="store_true", help="keep the weights, begin a new phase of the schedule")
    parser.add_argument(
        "--decoder", action="store_true", help="train the decoder alone, the latents staying as they are"
    )
    parser.add_argument("--fold", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load("train")
    if options.decoder:
        vae = load_vae()
        run = Run(WORK / "unused", minutes=options.minutes, peak=options.peak)
        tune_decoder(vae, data, torch.load(WORK / "latents.pt"), run, batch=options.batch)
        print(f"held-out {reconstruct(vae, load('heldout')['images'][:512])[1]:.2f} dB")
        save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, WORK / "vae.safetensors")
        return
    if not options.fold:
        if options.restart:
            torch.save(torch.load(WORK / "vae.pt", weights_only=False) | {"elapsed": 0.0}, WORK / "vae.pt")
        train(data, Run(WORK / "vae.pt", minutes=options.minutes, peak=options.peak), batch=options.batch)
        return
    vae = make_vae().eval()
    vae.load_state_dict(torch.load(WORK / "vae.pt", weights_only=False)["vae"])
    scaling = fold(vae, data["images"][:2048])
    vae.register_to_config(scaling_factor=scaling)
    held = load("heldout")["images"][:512]
    print(f"scaling factor {scaling:.5f}, held-out {reconstruct(vae, held)[1]:.2f} dB")
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, WORK / "vae.safetensors")
    means, logvars = encode(vae, data["images"])
    stds = (0.5 * logvars).exp()
    torch.save(
        {"means": (means * scaling).half(), "stds": (stds * scaling).half(), "scaling": scaling}, WORK / "latents.pt"
    )


if __name__ == "__main__":
    main()
