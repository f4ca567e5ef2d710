"""Finetunes the animator's eyes and mouths against a critic, after its own losses have flattened.

A critic sees a crop of the new frame over eyes or mouth beside the keyframe's own crop, and the controls asked for by
projection (Miyato and Koyama 2018); hinge loss with R1 on the true crops. The share is small (.05) beside the losses
of `animation`. The result is weights of its own, `weights/sharpening`: whether it replaces the animator is what
`score.py` says by the judge, which nothing here was fitted to.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from adversary import hinge, r1
from animation import Batch, Pairs, animator_loss, nets_of, seen, shown
from controls import CONTROLS
from torch import Tensor, nn
from training import Options, Run, Stage, load_weights
from upscaler import over

from hotloop.nets.animator import crop, roomy

__all__ = ["SHARE", "CropCritic", "crops", "stage"]

SHARE = 0.05
CROP = 48
PATIENCE = 300  # steps until a critic that has just begun has its full say


class CropCritic(nn.Module):
    """RGB crops of a frame and of its keyframe [B, 6, 48, 48] in [-1, 1], controls [B, controls], which part (0 eyes,
    1 mouth) [B] -> logits [B]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = (6, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.out = nn.Linear(sizes[-1], 1)
        self.told, self.part = nn.Linear(len(CONTROLS), sizes[-1]), nn.Embedding(2, sizes[-1])

    def forward(self, x: Tensor, controls: Tensor, part: Tensor) -> Tensor:
        features = self.body(x).float().mean((2, 3))
        return self.out(features)[:, 0] + (features * (self.told(controls) + self.part(part))).sum(1)


def crops(frames: Tensor, b: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Crops of eyes and mouths that show in both frames: [M, 6, 48, 48] of premultiplied frames [B, 4, H, W] beside
    the keyframes', controls [M, controls] and parts [M]."""
    found, controls, parts = [], [], []
    new, key = (2 * over(v, b.grounds) - 1 for v in (frames, b.keys))
    for part in range(b.boxes.shape[2]):
        own, past = roomy(b.boxes[:, 1, part]), roomy(b.boxes[:, 0, part])
        here = seen(b.boxes[:, :, part]).all(1)
        pair = torch.cat([crop(new, own, CROP), crop(key, past, CROP)], dim=1)
        found.append(pair[here])
        controls.append(b.controls[here])
        parts.append(torch.full((int(here.sum()),), part, device=pair.device))
    return torch.cat(found), torch.cat(controls), torch.cat(parts)


def _teach(critic: CropCritic, adam: torch.optim.Optimizer, b: Batch, new: Tensor, *, penalised: bool) -> Tensor:
    """One step of the critic; its loss."""
    true, controls, parts = crops(b.targets, b)
    false = crops(new.detach(), b)[0]
    loss = hinge(critic(true, controls, parts), critic(false, controls, parts))[0]
    if penalised:
        loss = loss + 8 * r1(lambda v: critic(v, controls, parts), true)
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss.detach()


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment, from the animator's weights; True when it is complete."""
    torch.manual_seed(9)
    nets = nets_of(options)
    modules = {"encoder": nets.encoder, "decoder": nets.decoder}
    load_weights(options.weights / "animator.safetensors", modules)
    run = Run(stage, modules, options, needs=needs, scratch={"posterior": nets.posterior})
    critic = CropCritic(8 if options.small else 24).to(options.device)  # anew with every start: its word grows with it
    adam = torch.optim.Adam(critic.parameters(), lr=4e-4, betas=(0.0, 0.99))
    rows, rng = Pairs(options), np.random.RandomState(run.step)
    batch = 2 if options.small else 8 if options.device == "cpu" else 64
    while run.going():
        b = rows.batch(rng, batch)
        loss, parts, new = animator_loss(nets, b, options.device)
        values: dict[str, Any] = {"critic": _teach(critic, adam, b, new, penalised=run.step % 8 == 0)}
        own = -critic(*crops(new, b)).mean()  # hinge, the generator's side
        share = SHARE * min(1.0, (run.step - run.begun_at) / PATIENCE)
        run.descend(loss + share * own, **parts, **values, own=own)
    with run.average.applied():
        figures = shown(nets, options, name="sharpening") if run.over else {}
    return run.close(**figures)
