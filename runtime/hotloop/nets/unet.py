"""UNet2DCondition of SD 1.x and 2.x: the network of the hot loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BundleError
from .base import Net
from .blocks import Downsample, ResBlock, Upsample

__all__ = ["UNet"]

_MAX_PERIOD = 10_000
_TRANSFORMER_NORM_EPS = 1e-6


class _Attention(nn.Module):
    def __init__(self, channels: int, context_dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        # [B, T, C] -> [B, H, T, D]
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _GEGLU(nn.Module):
    """x gelu(gate), Shazeer 2020, with the exact (erf) GELU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(c_in, 2 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # The checkpoints count a dropout between the two.
        self.net = nn.Sequential(_GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _TransformerBlock(nn.Module):
    def __init__(self, channels: int, context_dim: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = _Attention(channels, channels, heads=heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = _Attention(channels, context_dim, heads=heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = _FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class _Transformer(nn.Module):
    """Self-attention, cross-attention and feed-forward over the cells of a feature map."""

    def __init__(self, channels: int, context_dim: int, *, heads: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, _TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(channels, context_dim, heads=heads)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # [B, h w, C]
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(h) if self.linear else h
        h = h.transpose(1, 2).reshape(x.shape)
        return x + (h if self.linear else self.proj_out(h))


class _Level(nn.Module):
    """The blocks of one resolution, down or up; without attention where the config says so."""

    def __init__(self, resnets: list[ResBlock], attentions: list[_Transformer]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None

    def block(self, i: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.resnets[i](x, time)
        return x if self.attentions is None else self.attentions[i](x, context)


class _Down(_Level):
    def __init__(self, resnets: list[ResBlock], attentions: list[_Transformer], resample: Downsample | None) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = nn.ModuleList([resample]) if resample else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> list[Tensor]:
        """Every output a skip needs; the last goes on."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self.block(i, x, time, context)
            outputs.append(x)
        if self.downsamplers is not None:
            outputs.append(self.downsamplers[0](x))
        return outputs


class _Mid(nn.Module):
    def __init__(self, resnets: list[ResBlock], attention: _Transformer) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)


class _Up(_Level):
    def __init__(self, resnets: list[ResBlock], attentions: list[_Transformer], resample: Upsample | None) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = nn.ModuleList([resample]) if resample else None

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.block(i, torch.cat([x, skips.pop()], dim=1), time, context)
        if self.upsamplers is not None:
            # Halving an odd size rounds up: return to the size of the skip, not to twice one's own.
            x = self.upsamplers[0](x, skips[-1].shape[-2:])
        return x


class _TimeEmbedding(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(c_in, c_out)
        self.linear_2 = nn.Linear(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def sinusoid(timestep: Tensor, width: int, *, flip: bool, shift: float) -> Tensor:
    """[B] -> [B, width]: the positional code of Vaswani et al. 2017; `flip` puts the cosines first."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) * (-math.log(_MAX_PERIOD))
    angles = timestep.float()[:, None] * torch.exp(exponent / (half - shift))
    parts = (angles.cos(), angles.sin()) if flip else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=-1)


def _per_level(value: int | Sequence[int], levels: int) -> tuple[int, ...]:
    return (value,) * levels if isinstance(value, int) else tuple(value)


class UNet(Net):
    """The denoising network of SD 1.x and 2.x (Rombach et al. 2022), of any width.

    `attention_head_dim` in these checkpoints is the number of heads (an int or one per level);
    `num_attention_heads`, where given, says the same.
    """

    class_name = "UNet2DConditionModel"
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "time_embedding_type": ("positional",),
        "resnet_time_scale_shift": ("default",),
        "transformer_layers_per_block": (1,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1,),
        "resnet_out_scale_factor": (1.0,),
        "attention_type": ("default",),
        **dict.fromkeys(
            ("center_input_sample", "only_cross_attention", "mid_block_only_cross_attention", "dual_cross_attention",
             "resnet_skip_time_act", "class_embeddings_concat", "dropout"),
            (False, None),
        ),
        **dict.fromkeys(
            ("encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type", "addition_embed_type", "num_class_embeds",
             "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim",
             "cross_attention_norm"),
            (None,),
        ),
    }  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        widths = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
        down = config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
        up = config.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
        levels, last = len(widths), len(widths) - 1
        layers = _per_level(config.get("layers_per_block", 2), levels)
        heads = _per_level(config.get("num_attention_heads") or config.get("attention_head_dim", 8), levels)
        groups, eps = config.get("norm_num_groups", 32), config.get("norm_eps", 1e-5)
        self.in_channels = config.get("in_channels", 4)
        self.context_dim = context_dim = config.get("cross_attention_dim", 1280)
        self._check_blocks(tuple(down), tuple(up), levels=levels)
        self.code_width = widths[0]
        self.flip = config.get("flip_sin_to_cos", True)
        self.shift = config.get("freq_shift", 0)
        time_dim = 4 * widths[0]

        def res(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, groups=groups, eps=eps, time_dim=time_dim)

        def attend(level: int) -> _Transformer:
            return _Transformer(
                widths[level], context_dim, heads=heads[level], groups=groups,
                linear=config.get("use_linear_projection", False),
            )  # fmt: skip

        self.conv_in = nn.Conv2d(self.in_channels, widths[0], 3, padding=1)
        self.time_embedding = _TimeEmbedding(widths[0], time_dim)
        self.down_blocks = nn.ModuleList(
            _Down(
                [res(widths[max(i - 1, 0)] if j == 0 else widths[i], widths[i]) for j in range(layers[i])],
                [attend(i) for _ in range(layers[i])] if down[i] == "CrossAttnDownBlock2D" else [],
                Downsample(widths[i], padding=1) if i < last else None,
            )
            for i in range(levels)
        )
        self.mid_block = _Mid([res(widths[last], widths[last]) for _ in range(2)], attend(last))
        up_blocks = []
        for n, i in enumerate(reversed(range(levels))):
            # What comes in: the level below, then this one; the skips: this level, lastly the one above.
            below = [widths[min(i + 1, last)]] + [widths[i]] * layers[i]
            skip = [widths[i]] * layers[i] + [widths[max(i - 1, 0)]]
            up_blocks.append(
                _Up(
                    [res(a + b, widths[i]) for a, b in zip(below, skip, strict=True)],
                    [attend(i) for _ in below] if up[n] == "CrossAttnUpBlock2D" else [],
                    Upsample(widths[i]) if i > 0 else None,
                )
            )
        self.up_blocks = nn.ModuleList(up_blocks)
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps)
        self.conv_out = nn.Conv2d(widths[0], config.get("out_channels", 4), 3, padding=1)

    def _check_blocks(self, down: tuple[str, ...], up: tuple[str, ...], *, levels: int) -> None:
        for name, types, known in (
            ("down_block_types", down, {"CrossAttnDownBlock2D", "DownBlock2D"}),
            ("up_block_types", up, {"CrossAttnUpBlock2D", "UpBlock2D"}),
        ):
            if len(types) != levels or not set(types) <= known:
                rule = f"{name} must be {levels} of {', '.join(sorted(known))}"
                raise BundleError("UNet.config", rule, types)

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """sample [B, C, h, w], timestep float [B], context [B, T, D] -> the prediction [B, C_out, h, w]."""
        code = sinusoid(timestep, self.code_width, flip=self.flip, shift=self.shift)
        time = self.time_embedding(code.to(self.conv_in.weight.dtype))  # [B, 4 C_0]
        x = self.conv_in(sample)
        skips = [x]
        for level in self.down_blocks:
            skips += level(skips[-1], time, context)
        x = self.mid_block(skips[-1], time, context)
        for level in self.up_blocks:
            x = level(x, skips, time, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
