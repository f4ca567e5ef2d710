"""The few-step student: latent consistency distillation (Luo et al. 2023), guidance folded in, as a LoRA.

The student, guided teacher's ODE in one step: its answer at t_n+k must be its own answer at t_n, to which DDIM leads
from there with the teacher's guided noise. The LoRA (convolutions too) is kept in the layout that diffusers loads.
"""

from __future__ import annotations

from typing import Any

import autoencoder
import base
import numpy as np
import probe_train
import torch
from latents import Latents
from model import Tokenizer
from peft import LoraConfig
from probe import accuracy, predict
from safetensors.torch import save_file
from sampling import alphas_cumprod
from torch import Tensor, nn
from training import Options, Run, Stage, load_weights

__all__ = ["SCALES", "adapted", "boundary", "draw", "load", "stage"]

RANK = 32
STEPS = 50  # of the teacher's ODE
SCALES = (2.0, 3.0)  # guidance is drawn from here, and folded in
SIGMA_DATA, STRETCH = 0.5, 10.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
           "conv", "conv_shortcut", "time_emb_proj")  # fmt: skip


class Lora(nn.Module):
    """The LoRA's own parameters, by name, as a module of their own."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, p in unet.named_parameters() if "lora_" in name]
        parameters = dict(unet.named_parameters())
        for name in self.names:
            self.register_parameter(name.replace(".", "/"), parameters[name])


def adapted(unet: Any, rank: int = RANK) -> Lora:
    """Adds an empty LoRA to a frozen UNet, in place."""
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights=True))
    return Lora(unet)


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out [B, 1, 1, 1] (ibid.): at t = 0 the answer is the input."""
    scaled = (STRETCH * t.float()).view(-1, 1, 1, 1)
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5


def _answer(noise: Tensor, x: Tensor, t: Tensor, alphas: Tensor) -> Tensor:
    """The consistency function of predicted noise: [B, 4, 32, 32] latents without noise."""
    a = alphas[t].view(-1, 1, 1, 1)
    skip, out = boundary(t)
    return skip * x + out * (x - (1 - a).sqrt() * noise) / a.sqrt()


def _forward(unet: Any, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        guess: Tensor = unet(x, t, context, return_dict=False)[0]
    return guess.float()


@torch.no_grad()
def _earlier(unet: Any, x: Tensor, t: Tensor, context: Tensor, empty: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """One DDIM step of the guided teacher from t: (x, t) of 20 timesteps before."""
    before = (t - 1000 // STEPS).clamp(min=0)
    unet.disable_adapters()
    cond, uncond = _forward(unet, torch.cat([x, x]), t.repeat(2), torch.cat([context, empty])).chunk(2)
    unet.enable_adapters()
    scale = torch.empty(len(x), 1, 1, 1, device=x.device).uniform_(*SCALES)
    eps = uncond + scale * (cond - uncond)
    a, b = (alphas[v].view(-1, 1, 1, 1) for v in (t, before))
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    return b.sqrt() * x0 + (1 - b).sqrt() * eps, before


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; True when it is complete."""
    torch.manual_seed(9)
    encoder, unet = base.load(options)
    lora = adapted(unet, 4 if options.small else RANK).to(options.device)
    run = Run(stage, {"lora": lora}, options, needs=needs, weight_decay=0.0)
    rows, rng = Latents(options), np.random.RandomState(run.step)
    rows.grow(1 if options.small else 12)
    alphas = alphas_cumprod().to(options.device)
    empty = encoder(Tokenizer()([""]).to(options.device)).last_hidden_state
    batch = 4 if options.small else 16 if options.device == "cpu" else 128
    while run.going():
        x0, ids, _, _ = rows.batch(rng, batch)
        with torch.no_grad():
            context = encoder(ids).last_hidden_state
        step = torch.randint(1, STEPS + 1, (batch,), device=options.device)
        t = (step * (1000 // STEPS) - 1).long()
        a = alphas[t].view(-1, 1, 1, 1)
        x = a.sqrt() * x0 + (1 - a).sqrt() * torch.randn_like(x0)
        earlier, before = _earlier(unet, x, t, context, empty.expand_as(context), alphas)
        with torch.no_grad():
            goal = _answer(_forward(unet, earlier, before, context), earlier, before, alphas)
        guess = _answer(_forward(unet, x, t, context), x, t, alphas)
        loss = ((guess - goal) ** 2 + 1e-6).sqrt().mean()
        run.descend(loss)
    with run.average.applied():
        figures = drawn_well(encoder, unet, options) if run.over and not options.small else {}
        write(unet, lora, options)
    return run.close(**figures)


def write(unet: Any, lora: Lora, options: Options) -> None:
    """build/student.safetensors, as `load_lora_weights` of diffusers and hotloop read it."""
    state = {}
    for name in lora.names:
        key = "unet." + name.replace(".default", "").replace("lora_A", "lora_A").replace("lora_B", "lora_B")
        state[key] = lora.get_parameter(name.replace(".", "/")).detach().half().cpu().contiguous()
    save_file(state, options.build / "student.safetensors")


@torch.no_grad()
def draw(encoder: Any, unet: Any, vae: Any, prompts: list[str], *, steps: int = 4, seed: int = 0) -> np.ndarray:
    """uint8 [N, 128, 128, 3] by multistep consistency sampling (ibid., algorithm 2), no guidance."""
    tokenize, out = Tokenizer(), []
    device = next(unet.parameters()).device
    alphas = alphas_cumprod().to(device)
    # As LCMScheduler spaces them: evenly over the teacher's own timesteps.
    own = np.arange(1, STEPS + 1)[::-1] * (1000 // STEPS) - 1
    chosen = [int(own[i]) for i in np.floor(np.linspace(0, STEPS, steps, endpoint=False)).astype(int)]
    random = torch.Generator().manual_seed(seed)
    for i in range(0, len(prompts), 32):
        context = encoder(tokenize(prompts[i : i + 32]).to(device)).last_hidden_state
        x = torch.randn(len(context), 4, 32, 32, generator=random).to(device)
        for n, step in enumerate(chosen):
            t = torch.full((len(x),), step, device=device)
            x0 = _answer(_forward(unet, x, t, context), x, t, alphas)
            if n + 1 < len(chosen):
                b = alphas[chosen[n + 1]]
                x = b.sqrt() * x0 + (1 - b).sqrt() * torch.randn(x.shape, generator=random).to(device)
        out.append(autoencoder.decode(vae, x0 / vae.config.scaling_factor))
    return np.concatenate(out)


def drawn_well(encoder: Any, unet: Any, options: Options, count: int = 96) -> dict[str, Any]:
    """What the first probe finds of what held-out prompts ask for, by number of steps, beside the teacher's."""
    prompts, truth = base.claimed(base.held_out_faces(count))
    probe, vae = probe_train.load(options), autoencoder.load(options)

    def mean(pictures: np.ndarray) -> float:
        found = accuracy(predict(probe, pictures)[0], truth)
        return round(float(np.mean([found[name] for name in autoencoder.GATE])), 4)

    unet.disable_adapters()
    figures = {"teacher, 20 steps": mean(base.draw(encoder, unet, vae, prompts))}
    unet.enable_adapters()
    return figures | {f"{n} steps": mean(draw(encoder, unet, vae, prompts, steps=n)) for n in (1, 2, 4)}


def load(options: Options) -> tuple[Any, Any]:
    """Text encoder and UNet with the student's LoRA, frozen."""
    encoder, unet = base.load(options)
    lora = adapted(unet, 4 if options.small else RANK)
    load_weights(options.weights / "student.safetensors", {"lora": lora})
    return encoder, unet.requires_grad_(False)
