"""UNet2DCondition of SD 1.x and 2.x: the network of the hot loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BundleError, InputError
from .base import Net
from .blocks import Downsample, NormSilu, ResBlock, Upsample

__all__ = ["GEGLU", "Attention", "Conditions", "CrossAttention", "FeedForward", "TimeEmbedding", "Transformer", "UNet",
           "sinusoid"]  # fmt: skip

M = TypeVar("M", bound=nn.Module)

_MAX_PERIOD = 10_000
_TRANSFORMER_NORM_EPS = 1e-6


class Conditions(NamedTuple):
    """What the cross-attentions look at; the identity's keys and values are packed as `nets.kv` packs a prompt's."""

    context: Tensor  # [B, T, C], or packed keys and values [B, T, kv_width]
    identity_kv: Tensor | None = None  # [B, Ti, kv_width]
    identity_scale: Tensor | None = None  # [B]


class Attention(nn.Module):
    """Multi-head attention of the cells of a map among themselves."""

    def __init__(self, channels: int, context_dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](self.attend(*self.project(x)))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.to_q(x), self.to_k(x), self.to_v(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # [B, T, C] -> [B, H, T, D]
        q, k, v = (projected.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projected in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossAttention(Attention):
    """Attention of the cells to the prompt's tokens and, decoupled (Ye et al. 2023), to an identity's.

    columns: where this layer's keys, then its values, stand in a packed row of `kv_width`.
    """

    columns: tuple[int, int]

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:  # type: ignore[override]
        q = self.to_q(x)
        identity = None
        if cond.identity_kv is not None and cond.identity_scale is not None:
            begin, end = self.columns
            k, v = cond.identity_kv[..., begin:end].chunk(2, dim=-1)
            identity = k, v, cond.identity_scale
        return self.to_out[0](self.attend_to(q, self.to_k(cond.context), self.to_v(cond.context), identity))

    def attend_to(self, q: Tensor, k: Tensor, v: Tensor, identity: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """To keys and values, and, each softmax by itself, to the identity's, weighed by its scale [B]."""
        out = self.attend(q, k, v)
        if identity is not None:
            out = out + identity[2][:, None, None] * self.attend(q, *identity[:2])
        return out


class GEGLU(nn.Module):
    """x gelu(gate), Shazeer 2020, with the exact (erf) GELU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(c_in, 2 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers with a gate between, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.narrow(4 * channels)

    def narrow(self, width: int) -> None:
        """So many channels inside: those of a pruned network are fewer."""
        # The checkpoints count a dropout between the two.
        self.net = nn.Sequential(GEGLU(self.channels, width), nn.Identity(), nn.Linear(width, self.channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _TransformerBlock(nn.Module):
    def __init__(self, channels: int, context_dim: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads=heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, context_dim, heads=heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def among(self, x: Tensor) -> Tensor:
        """The half that depends on the map alone."""
        return x + self.attn1(self.norm1(x))

    def across(self, x: Tensor, cond: Conditions) -> Tensor:
        """The half that looks at the conditions."""
        x = x + self.attn2(self.norm2(x), cond)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Self-attention, cross-attention and feed-forward over the cells of a feature map."""

    def __init__(self, channels: int, context_dim: int, *, heads: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, _TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(channels, context_dim, heads=heads)])
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        return self.leave(x, self.enter(x), cond)

    def enter(self, x: Tensor) -> Tensor:
        """The map [B, C, h, w] -> its tokens [B, h w, C] up to the cross-attention."""
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)
        return self._block.among(self.proj_in(h) if self.linear else h)

    def leave(self, x: Tensor, h: Tensor, cond: Conditions) -> Tensor:
        """The map and its tokens from the cross-attention on -> the new map."""
        h = self._block.across(h, cond)
        h = self.proj_out(h) if self.linear else h
        h = h.transpose(1, 2).reshape(x.shape)
        return x + (h if self.linear else self.proj_out(h))

    @property
    def _block(self) -> _TransformerBlock:
        block = self.transformer_blocks[0]
        assert isinstance(block, _TransformerBlock)
        return block


class _Level(nn.Module):
    """The blocks of one resolution, down or up; without attention where the config says so."""

    def __init__(self, resnets: list[ResBlock], attentions: list[Transformer]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions) if attentions else None

    def block(self, i: int, x: Tensor, time: Tensor, cond: Conditions) -> Tensor:
        x = self.resnets[i](x, time)
        return x if self.attentions is None else self.attentions[i](x, cond)


class _Down(_Level):
    def __init__(self, resnets: list[ResBlock], attentions: list[Transformer], resample: Downsample | None) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = nn.ModuleList([resample]) if resample else None

    def forward(self, x: Tensor, time: Tensor, cond: Conditions, *, done: int = 0) -> list[Tensor]:
        """Every output a skip needs; the last goes on. `done` blocks have been run already, and x is their output."""
        outputs = []
        for i in range(done, len(self.resnets)):
            x = self.block(i, x, time, cond)
            outputs.append(x)
        if self.downsamplers is not None:
            outputs.append(self.downsamplers[0](x))
        return outputs


class _Mid(nn.Module):
    def __init__(self, resnets: list[ResBlock], attention: Transformer) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor, time: Tensor, cond: Conditions) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), cond), time)


class _Up(_Level):
    def __init__(self, resnets: list[ResBlock], attentions: list[Transformer], resample: Upsample | None) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = nn.ModuleList([resample]) if resample else None

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, cond: Conditions) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.block(i, torch.cat([x, skips.pop()], dim=1), time, cond)
        if self.upsamplers is not None:
            # Halving an odd size rounds up: return to the size of the skip, not to twice one's own.
            x = self.upsamplers[0](x, skips[-1].shape[-2:])
        return x


class TimeEmbedding(nn.Module):
    """A timestep's code through two layers; the signal that goes to every residual block, already activated.

    cond_width: width of the condition that LCM adds to the code (Luo et al. 2023); 0 for none.
    """

    def __init__(self, c_in: int, c_out: int, *, cond_width: int, flip: bool, shift: float) -> None:
        super().__init__()
        self.width, self.flip, self.shift = c_in, flip, shift
        self.linear_1 = nn.Linear(c_in, c_out)
        self.cond_proj = nn.Linear(cond_width, c_in, bias=False) if cond_width else None
        self.linear_2 = nn.Linear(c_out, c_out)

    def forward(self, timestep: Tensor, timestep_cond: Tensor | None = None) -> Tensor:
        """Timesteps [B] and their conditions [B, cond_width] -> [B, c_out]."""
        code = sinusoid(timestep, self.width, flip=self.flip, shift=self.shift).to(self.linear_1.weight.dtype)
        if timestep_cond is not None:
            if self.cond_proj is None:
                raise InputError("UNet", "timestep_cond needs a network with time_cond_proj_dim in its config")
            code = code + self.cond_proj(timestep_cond)
        return F.silu(self.linear_2(F.silu(self.linear_1(code))))


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
    `num_attention_heads`, where given, says the same. `inner_widths`, which is our own, names the residual blocks and
    feed-forwards of a pruned network that have fewer channels inside: module path -> channels.
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
             "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act", "cross_attention_norm"),
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
        time_dim = 4 * widths[0]

        def res(c_in: int, c_out: int) -> ResBlock:
            return ResBlock(c_in, c_out, groups=groups, eps=eps, time_dim=time_dim)

        def attend(level: int) -> Transformer:
            return Transformer(
                widths[level], context_dim, heads=heads[level], groups=groups,
                linear=config.get("use_linear_projection", False),
            )  # fmt: skip

        self.conv_in = nn.Conv2d(self.in_channels, widths[0], 3, padding=1)
        self.time_embedding: nn.Module = TimeEmbedding(
            widths[0], time_dim, cond_width=config.get("time_cond_proj_dim") or 0,
            flip=config.get("flip_sin_to_cos", True), shift=config.get("freq_shift", 0),
        )  # fmt: skip
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
        self.conv_norm_out = NormSilu(groups, widths[0], eps)
        self.conv_out = nn.Conv2d(widths[0], config.get("out_channels", 4), 3, padding=1)
        self._narrow(config.get("inner_widths") or {})
        self.kv_width = 0
        for attention in self.cross_attentions().values():
            begin = self.kv_width
            self.kv_width += 2 * attention.to_k.out_features
            attention.columns = begin, self.kv_width

    def _check_blocks(self, down: tuple[str, ...], up: tuple[str, ...], *, levels: int) -> None:
        for name, types, known in (
            ("down_block_types", down, {"CrossAttnDownBlock2D", "DownBlock2D"}),
            ("up_block_types", up, {"CrossAttnUpBlock2D", "UpBlock2D"}),
        ):
            if len(types) != levels or not set(types) <= known:
                rule = f"{name} must be {levels} of {', '.join(sorted(known))}"
                raise BundleError("UNet.config", rule, types)

    def _narrow(self, widths: Any) -> None:
        blocks = self.res_blocks() | self.feed_forwards() if widths else {}
        if not isinstance(widths, Mapping) or not widths.keys() <= blocks.keys():
            unknown = sorted(widths.keys() - blocks.keys())[:1] if isinstance(widths, Mapping) else widths
            rule = "inner_widths must map residual blocks and feed-forwards to widths"
            raise BundleError("UNet.config", rule, unknown)
        for path, width in widths.items():
            block = blocks[path]
            step = block.group if isinstance(block, ResBlock) else 1
            if type(width) is not int or width < step or width % step:
                raise BundleError("UNet.config", f"inner_widths of {path} must be a multiple of {step}", width)
            block.narrow(width)

    def feed_forwards(self) -> dict[str, FeedForward]:
        """By module path, in the order in which they run."""
        return self._found(FeedForward)

    def cross_attentions(self) -> dict[str, CrossAttention]:
        """By module path, in the order in which they run."""
        return self._found(CrossAttention)

    def res_blocks(self) -> dict[str, ResBlock]:
        """By module path, in the order in which they run."""
        return self._found(ResBlock)

    @property
    def levels(self) -> list[_Down]:
        """Going down."""
        return cast("list[_Down]", list(self.down_blocks))

    def _found(self, kind: type[M]) -> dict[str, M]:
        return {
            f"{part}.{path}": module
            for part in ("down_blocks", "mid_block", "up_blocks")
            for path, module in getattr(self, part).named_modules()
            if isinstance(module, kind)
        }

    def forward(
        self, sample: Tensor, timestep: Tensor, context: Tensor, *, timestep_cond: Tensor | None = None,
        identity_kv: Tensor | None = None, identity_scale: Tensor | None = None, **control: Tensor,
    ) -> Tensor:  # fmt: skip
        """sample [B, C, h, w], timestep float [B], context [B, T, D] -> the prediction [B, C_out, h, w].

        timestep_cond   [B, cond_width], added to the timestep's code
        identity_kv     [B, Ti, kv_width], keys and values beside the prompt's; identity_scale [B] weighs what they give
        control_<i>, control_mid   a residual for every skip and for the middle (ControlNet, Zhang et al. 2023)
        """
        time = self.time_embedding(timestep, timestep_cond)  # [B, 4 C_0]
        cond = Conditions(context, identity_kv, identity_scale)
        skips = [self.conv_in(sample)]
        for level in self.down_blocks:
            skips += level(skips[-1], time, cond)
        return self.ascend(skips, time, cond, control)

    def ascend(self, skips: list[Tensor], time: Tensor, cond: Conditions, control: Mapping[str, Tensor]) -> Tensor:
        """From the last skip through the middle and up to the prediction."""
        x = self.mid_block(skips[-1], time, cond)
        if control:
            x = x + control["control_mid"]
            skips = [skip + control[f"control_{i}"] for i, skip in enumerate(skips)]
        for level in self.up_blocks:
            x = level(x, skips, time, cond)
        return self.conv_out(self.conv_norm_out(x))
