"""Moving a sharp picture: backward warps of a keyframe and of what it hides, blended by a mask, coloured where neither
has what is needed.

A *field* [B, 9, h, w] over a box of the picture says for every place of the new frame: where in the keyframe it comes
from (flow_key [2], in pictures), where in the reveal texture (flow_reveal [2]), how much of the latter shows (mask
logit [1]), and a premultiplied colour over both (colour [4]).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FIELD", "blend", "crop", "fuse", "paste", "split", "warp"]

FIELD = 9
REACH = 0.35  # the furthest that a flow reaches, in pictures


def split(field: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """flow_key, flow_reveal [B, 2, h, w] in pictures, mask [B, 1, h, w] and colour [B, 4, h, w] in [0, 1]."""
    key, reveal = (REACH * torch.tanh(field[:, i : i + 2]) for i in (0, 2))
    colour = (field[:, 5:9] - 4).sigmoid()
    return key, reveal, (field[:, 4:5] - 2).sigmoid(), torch.cat([colour[:, :3] * colour[:, 3:], colour[:, 3:]], dim=1)


def grid(boxes: Tensor, h: int, w: int) -> Tensor:
    """[B, h, w, 2]: the picture's coordinates in [-1, 1] of the cells of boxes [B, 4] (x0, y0, x1, y1 in [0, 1])."""
    y = (torch.arange(h, device=boxes.device) + 0.5) / h
    x = (torch.arange(w, device=boxes.device) + 0.5) / w
    low, size = boxes[:, None, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None, None]
    unit = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)
    return 2 * (low + unit * size) - 1


def crop(maps: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Maps [B, C, H, W] over the picture, sampled on size x size cells of boxes [B, 4]."""
    at = grid(boxes, size, size).to(maps.dtype)
    return F.grid_sample(maps, at, mode="bilinear", padding_mode="border", align_corners=False)


def paste(part: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The inverse of `crop`: part [B, C, h, w] of boxes, over the picture; nothing outside the boxes."""
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=part.device).expand(len(part), 4)
    at = (grid(whole, size, size) + 1) / 2
    low, extent = boxes[:, None, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None, None]
    inside = 2 * (at - low) / extent - 1
    return F.grid_sample(part, inside.to(part.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def fuse(whole: Tensor, parts: tuple[Tensor, ...], boxes: Tensor, size: int) -> Tensor:
    """One field [B, 9, size, size] of the picture's and those of parts over boxes [B, parts, 4]."""
    field = F.interpolate(whole, size=(size, size), mode="bilinear", align_corners=False)
    for i, part in enumerate(parts):
        own = part - crop(whole, boxes[:, i], part.shape[-1])
        field = field + paste(own, boxes[:, i], size)
    return field


def warp(source: Tensor, flow: Tensor) -> Tensor:
    """Source [B, C, H, W] sampled at every place plus flow [B, 2, H, W]; transparent outside."""
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=flow.device).expand(len(flow), 4)
    at = grid(whole, *flow.shape[2:]) + 2 * flow.permute(0, 2, 3, 1)
    return F.grid_sample(source, at.to(source.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)


def blend(key: Tensor, reveal: Tensor, field: Tensor) -> Tensor:
    """The frame, premultiplied [B, 4, H, W]: textures of that size, a field of any."""
    flow_key, flow_reveal, mask, colour = split(field)
    size = key.shape[2:]
    flow_key, flow_reveal, mask, colour = (
        F.interpolate(v, size=size, mode="bilinear", align_corners=False) for v in (flow_key, flow_reveal, mask, colour)
    )
    mixed = (1 - mask) * warp(key, flow_key) + mask * warp(reveal, flow_reveal)
    return colour + (1 - colour[:, 3:]) * mixed
