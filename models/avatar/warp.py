"""Moving a sharp picture as training does it: backward warps of a keyframe and of what it hides, blended by a mask,
coloured where neither has what is needed. Fields are those of `hotloop.nets.animator`, before they are split.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hotloop.nets.animator import crop, grid, split

__all__ = ["blend", "fuse", "paste", "warp"]


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
