"""Stage 3, text encoder and UNet: predicts the noise in a face's latents from its caption.

python models/avatar_tiny/train_diffusion.py --minutes 62     (resumes build/diffusion.pt if it is there)

First the text encoder alone learns to say what its caption claims (a linear reader on the end tokens, thrown away at
the end: binding colours to nouns needs no pictures); then both networks learn together, that loss kept at a low weight.
Every checkpoint also writes the averaged weights to build/folder, the layout that stock diffusers loads.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captions import make_caption
from data import WORK, faces, load
from model import Tokenizer, make_text_encoder, make_unet, write_folder
from render import ATTRIBUTES
from torch import Tensor, nn
from training import Run, batches

__all__ = ["Captions", "Reader", "alphas_cumprod", "pretrain_text", "sample", "train", "write_captions"]

FORMS = 4  # captions written per face
IGNORED = -100


def alphas_cumprod() -> Tensor:
    """float32 [1000], "scaled_linear" from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


@dataclass(frozen=True)
class Captions:
    """ids int16 [N, forms, 77]; claims int8 [N, forms, attributes], one past the last class where not claimed."""

    ids: Tensor
    claims: Tensor
    end: int

    def batch(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """One form of each face's captions, chosen at random."""
        form = torch.randint(self.ids.shape[1], (len(index),))
        rows = torch.from_numpy(index)
        return self.ids[rows, form].long(), self.claims[rows, form].long()


def _claims(text: str, claims: dict[str, str]) -> list[int]:
    row = [v.index(claims[k]) if k in claims else len(v) for k, v in ATTRIBUTES.items()]
    # A bare "glasses" or "person" neither claims a value nor leaves it open: no lesson in that.
    for name, words in (("glasses", ("glasses", "眼镜")), ("person", ("person",))):
        if name not in claims and any(word in text for word in words):
            row[list(ATTRIBUTES).index(name)] = IGNORED
    return row


def write_captions(seeds: np.ndarray, *, empty: float = 0.1, forms: int = FORMS) -> Captions:
    """The captions of the faces of these seeds, tokenised."""
    texts, claims = [], []
    for face in faces(seeds):
        for form in range(forms):
            caption = make_caption(face, face.seed * forms + form, empty=empty)
            texts.append(caption.text)
            claims.append(_claims(caption.text, caption.claims))
    tokenize = Tokenizer()
    ids = torch.cat([tokenize(texts[i : i + 4096]).to(torch.int16) for i in range(0, len(texts), 4096)])
    return Captions(
        ids.view(len(seeds), forms, 77),
        torch.tensor(np.array(claims, np.int8)).view(len(seeds), forms, -1),
        tokenize.clip.eos_token_id,
    )


class Reader(nn.Module):
    """Reads the claimed attributes off the end token and off one padding token after it, chosen at random: both carry
    the whole caption into the UNet's cross-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(v) + 1 for v in ATTRIBUTES.values()]
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, hidden: Tensor, ids: Tensor, claims: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Loss, and accuracy per attribute over the claimed ones."""
        first = (ids == end).int().argmax(1)
        later = first + (torch.rand(len(ids)) * (ids.shape[1] - first)).long()
        rows = torch.arange(len(ids))
        read = hidden[torch.cat([rows, rows]), torch.cat([first, later])].float()
        parts = self.linear(read).split(self.sizes, dim=1)
        target = torch.cat([claims, claims])
        losses = [F.cross_entropy(p, target[:, i], ignore_index=IGNORED) for i, p in enumerate(parts)]
        with torch.no_grad():
            guess = torch.stack([p.argmax(1) for p in parts], dim=1)
            claimed = (target != torch.tensor(self.sizes) - 1) & (target != IGNORED)
            right = ((guess == target) & claimed).sum(0) / claimed.sum(0).clamp(min=1)
        return torch.stack(losses).mean(), right


def pretrain_text(text: nn.Module, reader: Reader, captions: Captions, run: Run, *, batch: int = 96) -> list[float]:
    """Teaches the text encoder to say what captions claim; returns the losses."""
    parameters = [*text.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=run.peak, betas=(0.9, 0.98), weight_decay=0.01)
    losses: list[float] = []
    for index in batches(len(captions.ids), batch, 11):
        if run.done:
            break
        ids, claims = captions.batch(index)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text(ids).last_hidden_state
        loss, right = reader(hidden, ids, claims, captions.end)
        optimizer.param_groups[0]["lr"] = run.rate()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.step += 1
        losses.append(loss.item())
        run.log(text_loss=np.mean(losses[-50:]), hair=right[0], eyes=right[2], worst=right.min())
    return losses


@torch.no_grad()
def sample(
    text: nn.Module, unet: nn.Module, ids: Tensor, empty: Tensor, *,
    steps: int = 25, guidance: float = 4.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Scaled latents [B, 4, 16, 16] of token ids [B, 77], by DDIM (Song et al. 2021) with classifier-free guidance."""
    alphas = alphas_cumprod()
    context = text(torch.cat([empty.expand_as(ids), ids])).last_hidden_state
    x = torch.randn(len(ids), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    ratio = 1000 // steps
    for t in [i * ratio + 1 for i in reversed(range(steps))]:
        out = unet(torch.cat([x, x]), torch.full((2 * len(ids),), t), context, return_dict=False)[0]
        uncond, cond = out.float().chunk(2)
        eps = uncond + guidance * (cond - uncond)
        a, b = alphas[t], alphas[max(t - ratio, 0)]
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    return x


def _weights(alphas: Tensor) -> Tensor:
    """Min-SNR weighting of the noise loss, gamma 5 (Hang et al. 2023)."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=5) / snr


class _Average:
    """Exponential moving average of the parameters."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.live = [p for m in modules for p in m.parameters()]
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges averaged and live weights, in place."""
        for p, m in zip(self.live, self.mean, strict=True):
            held = p.detach().clone()
            p.copy_(m)
            m.copy_(held)


def train(
    text: nn.Module, unet: nn.Module, reader: Reader, captions: Captions, latents: dict[str, Any],
    detail: Tensor, run: Run,
    *, batch: int = 32, reading: float = 0.05, freeze_text: float = 0.7, predict: Any = None, on_save: Any = None,
) -> list[float]:  # fmt: skip
    """Trains both networks until the run is done, the text encoder only up to `freeze_text` of it; returns the losses.

    latents: means and stds [N, 4, 16, 16], scaled; detail [N, 1, 16, 16]: how much of each cell is eyes or mouth, which
    weigh twice (the weights hang on the layout alone, so the best prediction stays the same).
    """
    predict = predict or (lambda x, t, c: unet(x, t, c, return_dict=False)[0])
    alphas = alphas_cumprod()
    weights = _weights(alphas)
    groups = [{"params": [*unet.parameters()]}, {"params": [*text.parameters(), *reader.parameters()]}]
    parameters = [p for g in groups for p in g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=run.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = _Average([unet, text], 0.999)
    if state := run.resume():
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
        reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        average.mean = state["average"]

    def save() -> None:
        run.save(unet=unet.state_dict(), text=text.state_dict(), reader=reader.state_dict(),
                 optimizer=optimizer.state_dict(), average=average.mean)  # fmt: skip
        if on_save:
            average.swap()
            on_save(text, unet)
            average.swap()

    losses: list[float] = []
    for index in batches(len(captions.ids), batch, run.step + 1):
        if run.done:
            break
        rows = torch.from_numpy(index)
        ids, claims = captions.batch(index)
        means, stds = latents["means"][rows].float(), latents["stds"][rows].float()
        x0 = means + stds * torch.randn_like(means)
        # One timestep from each of `batch` equal strata: the same expectation, a quieter gradient.
        t = ((torch.randperm(len(rows)) + torch.rand(1)) * (1000 / len(rows))).long().clamp(max=999)
        noise = torch.randn_like(x0)
        a = alphas[t].view(-1, 1, 1, 1)
        learning_text = run.progress < freeze_text
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(learning_text):
                context = text(ids).last_hidden_state
            guess = predict(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, context)
        focus = 1 + detail[rows]
        error = ((guess.float() - noise) ** 2 * focus / focus.mean()).mean((1, 2, 3))
        loss = total = (error * weights[t]).mean()
        if learning_text:
            total = loss + reading * reader(context, ids, claims, captions.end)[0]
        for group, factor in zip(optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = run.rate() * factor
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.step += 1
        average.update(run.step)
        losses.append(loss.item())
        run.log(loss=np.mean(losses[-50:]), mse=error.mean())
        if run.due():
            save()
    save()
    return losses


def detail_cells(packed: np.ndarray, cells: int = 16) -> Tensor:
    """Packed detail bits [N, 512] -> the covered share of every latent cell, float32 [N, 1, 16, 16]."""
    side = int((packed.shape[1] * 8) ** 0.5)
    block = side // cells
    out = [
        np.unpackbits(packed[i : i + 4096], axis=1)
        .reshape(-1, 1, cells, block, cells, block)
        .mean((3, 5), dtype=np.float32)
        for i in range(0, len(packed), 4096)
    ]
    return torch.from_numpy(np.concatenate(out))


PREVIEW = (
    "a smiling girl with purple hair and glasses", "1boy, spiky_hair, red_hair, green_eyes, angry, night",
    "A cute anime girl with pink hair, wearing a school uniform, smiling", "blue hair, golden eyes, twin tails, sad",
    "purple hair, green eyes, long hair, white background", "a boy with black hair and blue eyes, surprised, city",
    "粉色头发, 紫色眼睛, 开心", "silver hair, red eyes, cat ears, cold, kimono, sunset",
)  # fmt: skip


def main() -> None:
    from PIL import Image
    from train_vae import load_vae, to_images

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=62)
    parser.add_argument("--text-minutes", type=float, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="fuse the UNet's step with torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = load("train")
    stored = torch.load(WORK / "latents.pt")
    vae = load_vae()
    vae.register_to_config(scaling_factor=stored["scaling"])
    cache = WORK / "captions.pt"
    if not cache.exists():
        torch.save(vars(write_captions(data["seeds"])), cache)
    captions = Captions(**torch.load(cache))
    text, unet = make_text_encoder(), make_unet()
    reader = Reader(128)
    run = Run(WORK / "diffusion.pt", minutes=options.minutes, peak=1e-3)
    if not run.path.exists():
        pretrain_text(text, reader, captions, Run(WORK / "unused", minutes=options.text_minutes, peak=2e-3))
        torch.save({"text": text.state_dict(), "reader": reader.state_dict()}, WORK / "text.pt")
        run = Run(run.path, minutes=options.minutes, peak=1e-3)
    tokenize = Tokenizer()

    def on_save(text: Any, unet: Any) -> None:
        write_folder(WORK / "folder", text, unet, vae)
        x = sample(text, unet, tokenize(list(PREVIEW)), tokenize([""]), steps=20)
        pixels = to_images(vae.decode(x / stored["scaling"]).sample)
        sheet = np.concatenate([np.concatenate(pixels[i : i + 4], axis=1) for i in (0, 4)])
        Image.fromarray(sheet).resize((1024, 512), Image.Resampling.NEAREST).save(WORK / "preview.png")

    def predict(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return unet(x, t, context, return_dict=False)[0]

    train(text, unet, reader, captions, stored, detail_cells(data["detail"]), run, on_save=on_save,
          predict=torch.compile(predict) if options.compile else predict)  # fmt: skip


if __name__ == "__main__":
    main()
