"""Autoencoders between pixels in [-1, 1] and latents: AutoencoderKL of any factor, and the tiny TAESD one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights import keys
from .base import Net
from .blocks import Downsample, NormSilu, ResBlock, Upsample

__all__ = ["AutoencoderKL", "OneHeadAttention", "TinyVAE"]

_EPS = 1e-6
_LOGVAR_RANGE = (-30.0, 20.0)


class OneHeadAttention(nn.Module):
    """One head over all latent cells."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, h w, C]
        out = self.attend(*self.project(tokens))
        return x + self.to_out[0](out).transpose(1, 2).reshape(x.shape)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.to_q(x), self.to_k(x), self.to_v(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


class _Mid(nn.Module):
    def __init__(self, channels: int, *, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([OneHeadAttention(channels, groups=groups)] if attention else [])
        self.resnets = nn.ModuleList(ResBlock(channels, channels, groups=groups, eps=_EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class _Level(nn.Module):
    """The blocks of one resolution, then the change to the next (absent in the last level)."""

    def __init__(
        self, c_in: int, c_out: int, *, layers: int, groups: int, resample: nn.Module | None, key: str
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResBlock(c_in if i == 0 else c_out, c_out, groups=groups, eps=_EPS) for i in range(layers)
        )
        self.key = key
        self.add_module(key, nn.ModuleList([resample]) if resample is not None else None)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        resample = getattr(self, self.key)
        return x if resample is None else resample[0](x)


class _Encoder(nn.Module):
    def __init__(self, c_in: int, c_out: int, *, widths: Sequence[int], layers: int, groups: int, mid: bool) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(c_in, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Level(widths[max(i - 1, 0)], width, layers=layers, groups=groups, key="downsamplers",
                   resample=Downsample(width, padding=0) if i < last else None)
            for i, width in enumerate(widths)
        )  # fmt: skip
        self.mid_block = _Mid(widths[-1], groups=groups, attention=mid)
        self.conv_norm_out = NormSilu(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class _Decoder(nn.Module):
    def __init__(self, c_in: int, c_out: int, *, widths: Sequence[int], layers: int, groups: int, mid: bool) -> None:
        super().__init__()
        widths = widths[::-1]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(c_in, widths[0], 3, padding=1)
        self.mid_block = _Mid(widths[0], groups=groups, attention=mid)
        self.up_blocks = nn.ModuleList(
            _Level(widths[max(i - 1, 0)], width, layers=layers + 1, groups=groups, key="upsamplers",
                   resample=Upsample(width) if i < last else None)
            for i, width in enumerate(widths)
        )  # fmt: skip
        self.conv_norm_out = NormSilu(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(self.conv_norm_out(x))


class AutoencoderKL(Net):
    """The VAE of latent diffusion (Rombach et al. 2022). Latents are unscaled: the caller owns `scaling_factor`.

    factor: pixels per latent cell, 2 ** (levels - 1).
    """

    class_name = "AutoencoderKL"
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",), "shift_factor": (None, 0.0), "latents_mean": (None,), "latents_std": (None,),
    }  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        widths = tuple(config.get("block_out_channels", (64,)))
        self.latent_channels = latents = config.get("latent_channels", 4)
        mid = config.get("mid_block_add_attention", True)
        layers, groups = config.get("layers_per_block", 1), config.get("norm_num_groups", 32)
        self.factor = 2 ** (len(widths) - 1)
        self.encoder = _Encoder(
            config.get("in_channels", 3), 2 * latents, widths=widths, layers=layers, groups=groups, mid=mid
        )
        self.decoder = _Decoder(
            latents, config.get("out_channels", 3), widths=widths, layers=layers, groups=groups, mid=mid
        )
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1) if config.get("use_quant_conv", True) else None
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if config.get("use_post_quant_conv", True) else None

    @classmethod
    def table(cls, names: Iterable[str]) -> dict[str, keys.From]:
        return keys.vae(names)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, H, W] in [-1, 1] -> the posterior's mean and log-variance, each [B, C, h, w]."""
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(*_LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] (already divided by `scaling_factor`) -> pixels [B, 3, H, W], about [-1, 1]."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


class _TinyBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class _Tiny(nn.Module):
    """A plain stack, under the key `layers` as in the checkpoints."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TinyVAE(Net):
    """TAESD: a small distilled autoencoder with the same calls as AutoencoderKL; its posterior has no width."""

    class_name = "AutoencoderTiny"
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,),
    }  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        pixels_in, pixels_out = config.get("in_channels", 3), config.get("out_channels", 3)
        self.latent_channels = latents = config.get("latent_channels", 4)
        widths = tuple(config.get("encoder_block_out_channels", (64, 64, 64, 64)))
        blocks = tuple(config.get("num_encoder_blocks", (1, 3, 3, 3)))
        self.factor = 2 ** (len(widths) - 1)
        layers: list[nn.Module] = []
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers.append(
                nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
                if i else nn.Conv2d(pixels_in, width, 3, padding=1)
            )  # fmt: skip
            layers += [_TinyBlock(width) for _ in range(count)]
        self.encoder = _Tiny([*layers, nn.Conv2d(widths[-1], latents, 3, padding=1)])

        widths = tuple(config.get("decoder_block_out_channels", (64, 64, 64, 64)))
        blocks = tuple(config.get("num_decoder_blocks", (3, 3, 3, 1)))
        layers = [nn.Conv2d(latents, widths[0], 3, padding=1), nn.ReLU()]
        for width, count in zip(widths[:-1], blocks[:-1], strict=True):
            layers += [_TinyBlock(width) for _ in range(count)]
            layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        layers += [_TinyBlock(widths[-1]) for _ in range(blocks[-1])]
        self.decoder = _Tiny([*layers, nn.Conv2d(widths[-1], pixels_out, 3, padding=1)])

    @classmethod
    def table(cls, names: Iterable[str]) -> dict[str, keys.From]:
        return keys.tiny_vae(names)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, H, W] in [-1, 1] -> latents [B, C, h, w] and the smallest log-variance."""
        mean = self.encoder((image + 1) / 2)
        return mean, torch.full_like(mean, _LOGVAR_RANGE[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> pixels [B, 3, H, W], about [-1, 1]. Latents are softly clamped to (-3, 3)."""
        return self.decoder(torch.tanh(latents / 3) * 3) * 2 - 1
