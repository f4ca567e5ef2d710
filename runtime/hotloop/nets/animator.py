"""The animator: a keyframe is read once; controls and z then say, per frame, how to move it.

`Encoder` (once a keyframe): maps for the decoder, the prior of z, the reveal texture and where eyes and mouth are.
`Decoder` (every frame): fields on a grid over the picture and on two crops over eyes and mouth; no convolution is
larger than that grid, half of the keyframe a side. Controls and z condition it by FiLM (Perez et al. 2018).

A *field* [B, 9, h, w] over a box of the picture says for every place of the new frame: where in the keyframe it comes
from (flow_key [2], in pictures), where in the reveal texture (flow_reveal [2]), how much of the latter shows (mask
[1]), and a premultiplied colour over both (colour [4]). Boxes are (x0, y0, x1, y1) in pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spec import BOXES, FIELD
from .base import Net

__all__ = [
    "BOXES",
    "FIELD",
    "REACH",
    "Animator",
    "Decoder",
    "Encoder",
    "Fields",
    "Keyframe",
    "Still",
    "activate",
    "crop",
    "grid",
    "roomy",
    "split",
]  # fmt: skip

REACH = 0.35  # the furthest that a flow reaches, in pictures
# Centre and size of eyes and mouth where they mostly are.
_USUAL = ((0.5, 0.52, 0.4, 0.16), (0.5, 0.68, 0.16, 0.1))
_ENTER = (16, 32, 64, 96, 128)
_MAPS = (96, 48, 16)


@dataclass(frozen=True)
class Still:
    """What the decoder takes of a keyframe of S pixels a side.

    maps    of an eighth, a quarter, half and all of S a side: with S = 128, [B, 96, 16, 16], [B, 48, 32, 32],
            [B, 16, 64, 64], [B, 16, 128, 128]
    boxes   of eyes and mouth [B, 2, 4]
    held    the controls it is held at [B, controls]
    """

    maps: tuple[Tensor, Tensor, Tensor, Tensor]
    boxes: Tensor
    held: Tensor


@dataclass(frozen=True)
class Keyframe(Still):
    """All that is known of a keyframe.

    prior   of z [B, 2 z]: means, log-variances
    reveal  texture of what the keyframe hides, premultiplied [B, 4, S, S]
    """

    prior: Tensor
    reveal: Tensor


@dataclass(frozen=True)
class Fields:
    """whole [B, 9, S/2, S/2] over the picture; parts: two as large over boxes [B, 2, 4]. As `split` takes them."""

    whole: Tensor
    parts: tuple[Tensor, Tensor]
    boxes: Tensor


def split(field: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """flow_key, flow_reveal [B, 2, h, w] in pictures, mask [B, 1, h, w] and colour [B, 4, h, w] in [0, 1]."""
    key, reveal = (REACH * torch.tanh(field[:, i : i + 2]) for i in (0, 2))
    colour = (field[:, 5:9] - 4).sigmoid()
    return key, reveal, (field[:, 4:5] - 2).sigmoid(), torch.cat([colour[:, :3] * colour[:, 3:], colour[:, 3:]], dim=1)


def activate(field: Tensor) -> Tensor:
    """What `split` gives as one field again [B, 9, h, w]."""
    return torch.cat(split(field), dim=1)


def grid(boxes: Tensor, h: int, w: int) -> Tensor:
    """[B, h, w, 2]: the picture's coordinates in [-1, 1] of the cells of boxes [B, 4] (x0, y0, x1, y1 in [0, 1])."""
    y = (torch.arange(h, device=boxes.device) + 0.5) / h
    x = (torch.arange(w, device=boxes.device) + 0.5) / w
    low, size = boxes[:, None, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None, None]
    unit = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)
    return 2 * (low + unit * size) - 1


def crop(maps: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Maps [B, C, H, W] over the picture, sampled on size x size cells of boxes [B, 4]."""
    return _sample(maps, grid(boxes, size, size))


def _sample(maps: Tensor, at: Tensor) -> Tensor:
    return F.grid_sample(maps, at.to(maps.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _framed(part: Tensor, whole: Tensor, box: Tensor) -> Tensor:
    """An activated part [B, C, n, n] whose outermost nodes are the whole's [B, C, h, w] at their places: who draws it
    puts it in place of the whole, and where it ends both must be one."""
    n = part.shape[-1]
    at = grid(box, n, n)
    sides = torch.stack([at[:, 0], at[:, -1], at[:, :, 0], at[:, :, -1]], dim=1)
    top, bottom, left, right = _sample(whole, sides).unbind(dim=2)  # [B, C, n] each
    middle = torch.cat([left[:, :, 1:-1, None], part[:, :, 1:-1, 1:-1], right[:, :, 1:-1, None]], dim=3)
    return torch.cat([top[:, :, None], middle, bottom[:, :, None]], dim=2)


def roomy(boxes: Tensor, room: float = 0.35) -> Tensor:
    """Boxes [.., 4] enlarged by a share of their size, at least a tenth of the picture wide."""
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).abs()
    size = (size * (1 + room)).clamp(min=0.12)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


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
    """Premultiplied RGBA [B, 4, S, S] in [0, 1] -> `Keyframe`. config: the animator's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        coarse, middle, fine = config.get("maps", _MAPS)
        widths = config.get("widths", _ENTER)
        a, b, c, d, e = widths
        self.z, self.controls, size = config.get("z", 8), len(config["controls"]), config.get("size", 128)
        self.enter = _conv(4, a)
        self.downs = nn.ModuleList([_Down(a, b), _Down(b, c), _Down(c, d), _Down(d, e)])
        self.ups = nn.ModuleList([_Up(e, d, d), _Up(d, c, c), _Up(c, b, b), _Up(b, a, a)])
        self.maps = nn.ModuleList([_conv(d, coarse, 1), _conv(c, middle, 1), _conv(b, fine, 1), _conv(a, fine, 1)])
        self.texture = _conv(a, 5)
        self.squeeze = _conv(e, 32, 1)
        self.told = nn.Linear(32 * (size // 16) ** 2, 2 * self.z + 4 * BOXES + self.controls)
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
        coarse, middle, fine, finest = (one(level) for one, level in zip(self.maps, levels, strict=True))
        prior, places, held = told.split((2 * self.z, 4 * BOXES, self.controls), dim=1)
        boxes = _boxes(places.view(-1, BOXES, 4))
        return Keyframe((coarse, middle, fine, finest), boxes, held, prior, reveal)


def _boxes(raw: Tensor) -> Tensor:
    """Centre and size, told around where they mostly are -> corners."""
    # Made of numbers, not of a tensor: graphs are traced without one in memory.
    usual = torch.stack([torch.stack([raw.new_full((), v) for v in row]) for row in _USUAL])
    centre = usual[:, :2] + 0.5 * raw[..., :2]
    size = usual[:, 2:] * raw[..., 2:].clamp(-2, 2).exp()
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


class _Film(nn.Module):
    """A residual convolution whose middle is scaled and shifted by what the frame is to show.

    What it is told is worked out for all layers at once (`_films`)."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.first, self.told = _conv(width, width), nn.Linear(told, 2 * width)
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """told: this layer's share of `_films` [B, 2 width]."""
        scale, shift = told[:, :, None, None].chunk(2, dim=1)
        return x + F.silu(self.first(F.silu(x * (1 + scale) + shift)))


def _films(films: Sequence[_Film], told: Tensor) -> tuple[Tensor, ...]:
    """What every layer is told, in one product over all of them."""
    weight, bias = (torch.cat([getattr(film.told, name) for film in films]) for name in ("weight", "bias"))
    return F.linear(told, weight, bias).split([len(film.told.bias) for film in films], dim=1)


class Decoder(nn.Module):
    """Keyframe, controls [B, controls] (each scaled so that its larger bound is 1) and z [B, z] -> `Fields`.

    Most motion is the head's, as one piece: an affine flow, weighed cell by cell; the rest is added to it.
    config: the animator's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        coarse, middle, fine = config.get("maps", _MAPS)
        told, given = config.get("told", 96), 2 * len(config["controls"]) + config.get("z", 8)
        self.cells = config.get("size", 128) // 2
        self.tell = nn.Sequential(nn.Linear(given, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU())
        self.coarse = nn.ModuleList([_Film(coarse, told), _Film(coarse, told)])
        self.to_middle, self.middle = _conv(coarse, middle, 1), nn.ModuleList([_Film(middle, told)])
        self.to_fine, self.fine = _conv(middle, fine, 1), _Film(fine, told)
        self.out, self.affine = _conv(fine, FIELD + 1, 1), nn.Linear(told, 6)
        self.to_part = _conv(middle, BOXES * fine, 1)
        self.parts = nn.ModuleList([_Film(fine, told) for _ in range(BOXES)])
        self.part_outs = nn.ModuleList([_conv(fine, FIELD, 1) for _ in range(BOXES)])
        self.place = nn.Linear(told, BOXES * 4)
        for last in (self.out, self.affine, *self.part_outs, self.place):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def told(self, key: Still, controls: Tensor, z: Tensor) -> Tensor:
        """[B, told]: what the frame is to show, and how that differs from what the keyframe shows."""
        out: Tensor = self.tell(torch.cat([controls, controls - key.held, z], dim=1))
        return out

    def _whole(self, y: Tensor, told: Tensor) -> Tensor:
        """The field over the picture [B, 9, cells, cells]."""
        raw = self.out(y).float()
        weight = raw[:, FIELD:].sigmoid()
        side = torch.linspace(-1, 1, raw.shape[-1], device=raw.device)
        x, y = side.expand(len(side), -1), side[:, None].expand(-1, len(side))
        a = self.affine(told).float()[:, :, None, None]
        moved = torch.cat([a[:, 0:1] * x + a[:, 1:2] * y + a[:, 2:3], a[:, 3:4] * x + a[:, 4:5] * y + a[:, 5:6]], dim=1)
        flows = raw[:, :4] + (weight * moved).repeat(1, 2, 1, 1)
        return torch.cat([flows, raw[:, 4:FIELD]], dim=1)

    def places(self, key: Still, told: Tensor) -> Tensor:
        """Where eyes and mouth will be [B, 2, 4], with room around them."""
        moved = key.boxes + 0.2 * torch.tanh(self.place(told).float()).view(-1, BOXES, 4)
        return roomy(moved)

    def forward(self, key: Still, controls: Tensor, z: Tensor, boxes: Tensor | None = None) -> Fields:
        """boxes: where the parts are taken to be, instead of where the network thinks they will be."""
        told = self.told(key, controls, z)
        coarse, middle, fine, finest = key.maps
        blocks = [*self.coarse, *self.middle, self.fine, *self.parts]
        each = iter(_films(blocks, told))
        x = coarse
        for block in self.coarse:
            x = block(x, next(each))
        x = F.interpolate(self.to_middle(x), scale_factor=2.0, mode="bilinear", align_corners=False) + middle
        for block in self.middle:
            x = block(x, next(each))
        y = F.interpolate(self.to_fine(x), scale_factor=2.0, mode="bilinear", align_corners=False) + fine
        whole = self._whole(self.fine(y, next(each)), told)
        boxes = self.places(key, told) if boxes is None else boxes
        narrow = self.to_part(x).chunk(BOXES, dim=1)
        parts, window = [], _window(self.cells, whole.device)
        for i in range(BOXES):
            at = grid(boxes[:, i], self.cells, self.cells)
            near = _sample(narrow[i], at) + _sample(finest, at)
            own = self.part_outs[i](self.parts[i](near, next(each))).float()
            parts.append(_sample(whole, at) + own * window)
        return Fields(whole, (parts[0], parts[1]), boxes)


def _window(size: int, device: torch.device, edge: float = 0.12) -> Tensor:
    """[size, size]: 1 inside, falling to 0 at the border, so that a part joins the whole without a seam."""
    at = (torch.arange(size, device=device) + 0.5) / size
    fall = (torch.minimum(at, 1 - at) / edge).clamp(0, 1)
    return fall[:, None] * fall[None]


class Animator(Net):
    """Both halves as one network of a checkpoint.

    config: `controls`, a (name, low, high) each; `z`; `size` of the keyframe; `widths` of the encoder's levels, `maps`
    the channels of what it hands over, `told` the width of what conditions the decoder.
    """

    class_name = "Animator"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def encode(self, rgba: Tensor) -> tuple[Tensor, ...]:
        """Premultiplied RGBA [B, 4, S, S] in [0, 1] -> the four maps, prior, reveal, boxes and held of `Keyframe`."""
        key = self.encoder(rgba)
        return (*key.maps, key.prior, key.reveal, key.boxes, key.held)

    def animate(
        self, coarse: Tensor, middle: Tensor, fine: Tensor, finest: Tensor, key_boxes: Tensor, held: Tensor,
        controls: Tensor, z: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """What a keyframe gave, controls [B, controls] and z [B, z] -> activated fields over the picture
        [B, 9, S/2, S/2] and over the parts [B, 2, 9, S/2, S/2], and the parts' boxes [B, 2, 4]."""
        fields = self.decoder(Still((coarse, middle, fine, finest), key_boxes, held), controls, z)
        whole = activate(fields.whole)
        parts = [_framed(activate(part), whole, fields.boxes[:, i]) for i, part in enumerate(fields.parts)]
        return whole, torch.stack(parts, dim=1), fields.boxes

    def constants(self) -> dict[str, Any]:
        return {
            "key_size": 2 * self.decoder.cells, "key_widths": list(self.config.get("maps", _MAPS)),
            "controls": self.encoder.controls, "z": self.encoder.z,
        }  # fmt: skip
