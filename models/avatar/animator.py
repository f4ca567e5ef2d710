"""The animator's networks: a keyframe is read once; controls and z then say, per frame, how to move it.

`Encoder` (once a keyframe): maps for the decoder, the prior of z, the reveal texture and where eyes and mouth are.
`Decoder` (every frame): fields (see warp.py) on a 64 x 64 grid over the picture and on two 64 x 64 crops over eyes and
mouth; convolutions at 16, 32 and 64 cells only, conditioned by FiLM (Perez et al. 2018).
`Posterior` (training only): z from the target and the keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from controls import CONTROLS
from torch import Tensor, nn
from warp import FIELD, crop

__all__ = ["Decoder", "Encoder", "Fields", "Keyframe", "Posterior", "Z"]

Z = 8
COARSE, MIDDLE, FINE = 96, 48, 16
PARTS = 2  # eyes, mouth


@dataclass(frozen=True)
class Keyframe:
    """What is known of a keyframe: maps [B, 96, 16, 16], [B, 48, 32, 32], [B, 16, 64, 64], [B, 16, 128, 128]; prior of
    z [B, 2 Z] (means, log-variances); reveal texture premultiplied [B, 4, 128, 128]; boxes of eyes and mouth
    [B, 2, 4]; the controls it is held at [B, controls]."""

    maps: tuple[Tensor, Tensor, Tensor, Tensor]
    prior: Tensor
    reveal: Tensor
    boxes: Tensor
    held: Tensor


@dataclass(frozen=True)
class Fields:
    """whole [B, 9, 64, 64] over the picture; parts: two [B, 9, 64, 64] over boxes [B, 2, 4]."""

    whole: Tensor
    parts: tuple[Tensor, Tensor]
    boxes: Tensor


def _conv(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, size // 2)


class _Down(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.shrink, self.mix = _conv(before, after, 3, 2), _conv(after, after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.shrink(x))
        return x + F.silu(self.mix(x))


class _Up(nn.Module):
    """A 1 x 1 convolution, enlargement, the shortcut, a 3 x 3 convolution."""

    def __init__(self, before: int, past: int, after: int) -> None:
        super().__init__()
        self.narrow, self.past, self.mix = _conv(before, after, 1), _conv(past, after, 1), _conv(after, after)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        x = F.interpolate(self.narrow(x), scale_factor=2.0, mode="bilinear", align_corners=False) + self.past(past)
        return x + F.silu(self.mix(F.silu(x)))


class Encoder(nn.Module):
    """Premultiplied RGBA [B, 4, 128, 128] in [0, 1] -> `Keyframe`."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = _conv(4, 16)
        self.downs = nn.ModuleList([_Down(16, 32), _Down(32, 64), _Down(64, 96), _Down(96, 128)])
        self.ups = nn.ModuleList([_Up(128, 96, 96), _Up(96, 64, 64), _Up(64, 32, 32), _Up(32, 16, 16)])
        self.maps = nn.ModuleList([_conv(96, COARSE, 1), _conv(64, MIDDLE, 1), _conv(32, FINE, 1), _conv(16, FINE, 1)])
        self.texture = _conv(16, 5)
        self.squeeze = _conv(128, 32, 1)
        self.told = nn.Linear(32 * 64, 2 * Z + 4 * PARTS + len(CONTROLS))
        nn.init.zeros_(self.told.weight)

    def forward(self, rgba: Tensor) -> Keyframe:
        x = F.silu(self.enter(2 * rgba - 1))
        shortcuts = [x]
        for down in self.downs:
            shortcuts.append(down(shortcuts[-1]))
        told = self.told(F.silu(self.squeeze(shortcuts[-1])).flatten(1)).float()
        y, levels = shortcuts[-1], []
        for up, past in zip(self.ups, reversed(shortcuts[:-1]), strict=True):
            y = up(y, past)
            levels.append(y)
        fresh = self.texture(y).float()
        mask, colour = (fresh[:, 4:] - 1).sigmoid(), fresh[:, :4].sigmoid()
        colour = torch.cat([colour[:, :3] * colour[:, 3:], colour[:, 3:]], dim=1)
        reveal = rgba * (1 - mask) + colour * mask
        maps = tuple(one(level) for one, level in zip(self.maps, levels, strict=True))
        prior, places, held = told.split((2 * Z, 4 * PARTS, len(CONTROLS)), dim=1)
        return Keyframe(maps, prior, reveal, _boxes(places.view(-1, PARTS, 4)), held)


def _boxes(raw: Tensor) -> Tensor:
    """Centre and size, as found or told around where they mostly are -> corners."""
    usual = torch.tensor([[0.5, 0.52, 0.4, 0.16], [0.5, 0.68, 0.16, 0.1]], device=raw.device)
    centre = usual[:, :2] + 0.5 * raw[..., :2]
    size = usual[:, 2:] * raw[..., 2:].clamp(-2, 2).exp()
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


class _Film(nn.Module):
    """A residual convolution whose middle is scaled and shifted by what the frame is to show."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.first, self.told = _conv(width, width), nn.Linear(told, 2 * width)
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(told)[:, :, None, None].chunk(2, dim=1)
        return x + F.silu(self.first(F.silu(x * (1 + scale) + shift)))


class Decoder(nn.Module):
    """Keyframe, controls [B, controls] (scaled as controls.to_vector) and z [B, Z] -> `Fields`.

    Most motion is the head's, as one piece: an affine flow, weighed cell by cell; the rest is added to it."""

    def __init__(self, told: int = 96) -> None:
        super().__init__()
        self.tell = nn.Sequential(nn.Linear(2 * len(CONTROLS) + Z, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU())
        self.coarse = nn.ModuleList([_Film(COARSE, told), _Film(COARSE, told)])
        self.to_middle, self.middle = _conv(COARSE, MIDDLE, 1), nn.ModuleList([_Film(MIDDLE, told)])
        self.to_fine, self.fine = _conv(MIDDLE, FINE, 1), _Film(FINE, told)
        self.out, self.affine = _conv(FINE, FIELD + 1, 1), nn.Linear(told, 6)
        self.to_part = _conv(MIDDLE, PARTS * FINE, 1)
        self.parts = nn.ModuleList([_Film(FINE, told) for _ in range(PARTS)])
        self.part_outs = nn.ModuleList([_conv(FINE, FIELD, 1) for _ in range(PARTS)])
        self.place = nn.Linear(told, PARTS * 4)
        for last in (self.out, self.affine, *self.part_outs, self.place):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def told(self, key: Keyframe, controls: Tensor, z: Tensor) -> Tensor:
        """[B, told]: what the frame is to show, and how that differs from what the keyframe shows."""
        out: Tensor = self.tell(torch.cat([controls, controls - key.held, z], dim=1))
        return out

    def _whole(self, y: Tensor, told: Tensor) -> Tensor:
        """The field over the picture [B, 9, 64, 64]."""
        raw = self.out(y).float()
        weight = raw[:, FIELD:].sigmoid()
        side = torch.linspace(-1, 1, raw.shape[-1], device=raw.device)
        x, y = side.expand(len(side), -1), side[:, None].expand(-1, len(side))
        a = self.affine(told).float()[:, :, None, None]
        moved = torch.cat([a[:, 0:1] * x + a[:, 1:2] * y + a[:, 2:3], a[:, 3:4] * x + a[:, 4:5] * y + a[:, 5:6]], dim=1)
        flows = raw[:, :4] + (weight * moved).repeat(1, 2, 1, 1)
        return torch.cat([flows, raw[:, 4:FIELD]], dim=1)

    def places(self, key: Keyframe, told: Tensor) -> Tensor:
        """Where eyes and mouth will be [B, 2, 4], with room around them."""
        moved = key.boxes + 0.2 * torch.tanh(self.place(told).float()).view(-1, PARTS, 4)
        return _roomy(moved)

    def forward(self, key: Keyframe, controls: Tensor, z: Tensor, boxes: Tensor | None = None) -> Fields:
        """boxes: where the parts are taken to be, instead of where the network thinks they will be."""
        told = self.told(key, controls, z)
        coarse, middle, fine, finest = key.maps
        x = coarse
        for block in self.coarse:
            x = block(x, told)
        x = F.interpolate(self.to_middle(x), scale_factor=2.0, mode="bilinear", align_corners=False) + middle
        for block in self.middle:
            x = block(x, told)
        y = F.interpolate(self.to_fine(x), scale_factor=2.0, mode="bilinear", align_corners=False) + fine
        whole = self._whole(self.fine(y, told), told)
        boxes = self.places(key, told) if boxes is None else boxes
        narrow = self.to_part(x).chunk(PARTS, dim=1)
        parts = []
        for i in range(PARTS):
            near = crop(narrow[i], boxes[:, i], 64) + crop(finest, boxes[:, i], 64)
            own = self.part_outs[i](self.parts[i](near, told)).float()
            parts.append(crop(whole, boxes[:, i], 64) + own * _window(64, own.device))
        return Fields(whole, (parts[0], parts[1]), boxes)


def _roomy(boxes: Tensor, room: float = 0.35) -> Tensor:
    """Boxes [.., 4] enlarged by a share of their size, at least a tenth of the picture wide."""
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).abs()
    size = (size * (1 + room)).clamp(min=0.12)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def _window(size: int, device: torch.device, edge: float = 0.12) -> Tensor:
    """[size, size]: 1 inside, falling to 0 at the border, so that a part joins the whole without a seam."""
    at = (torch.arange(size, device=device) + 0.5) / size
    fall = (torch.minimum(at, 1 - at) / edge).clamp(0, 1)
    return fall[:, None] * fall[None]


class Posterior(nn.Module):
    """Target and keyframe premultiplied [B, 4, 128, 128], controls -> means and log-variances of z [B, 2 Z]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(8, 16, 5, 2), nn.SiLU(), _conv(16, 32, 3, 2), nn.SiLU(), _conv(32, 48, 3, 2), nn.SiLU(),
            _conv(48, 64, 3, 2), nn.SiLU(), nn.Flatten(),
        )  # fmt: skip
        self.out = nn.Sequential(nn.Linear(64 * 64 + len(CONTROLS), 96), nn.SiLU(), nn.Linear(96, 2 * Z))

    def forward(self, target: Tensor, key: Tensor, controls: Tensor) -> Tensor:
        seen = self.body(torch.cat([target, key], dim=1))
        return self.out(torch.cat([seen.float(), controls], dim=1))
