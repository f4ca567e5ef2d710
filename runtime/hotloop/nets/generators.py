"""Generators that draw in one call: MLP GAN, DCGAN, CVAE and a StyleGAN-like pair, plain or conditioned on a class;
and the critic that comes of training one.

A condition is a class number, int [B]; networks of 0 classes take none. Pictures are [B, C, S, S] in [-1, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BundleError
from .base import Net

__all__ = ["CVAE", "DCGAN", "GENERATORS", "Critic", "MLPGenerator", "StyleGenerator", "constants"]

_MOST = 65536  # of anything: what a config asks for is built before its weights are compared with it


def _told(z: Tensor, label: Tensor | None, classes: int) -> Tensor:
    """z with the class as one-hot numbers behind it."""
    if not classes:
        return z
    if label is None:
        raise ValueError("[generators] a conditional network needs labels, got none")
    return torch.cat([z, _one_hot(label, classes, z.dtype)], dim=1)


def _one_hot(label: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return (label[:, None] == torch.arange(classes, device=label.device, dtype=label.dtype)).to(dtype)


class _Configured(Net):
    """What these networks share: the names under which their configs say the same."""

    stem = "model"

    def _count(self, name: str, default: int, least: int = 1) -> int:
        value = self.config.get(name, default)
        if type(value) is not int or not least <= value <= _MOST:
            rule = f"{name} must be a whole number in {least}..{_MOST}"
            raise BundleError(f"{type(self).__name__}.config", rule, value)
        return value

    def _counts(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.config.get(name, default)
        whole = isinstance(value, (list, tuple)) and all(type(v) is int and 1 <= v <= _MOST for v in value)
        if not whole or not 1 <= len(value) <= 16:
            rule = f"{name} must be 1 to 16 whole numbers in 1..{_MOST}"
            raise BundleError(f"{type(self).__name__}.config", rule, value)
        return tuple(value)


class MLPGenerator(_Configured):
    """z [B, 100] -> [B, 1, 28, 28] by layers of 128, 256, 512, 1024, 784: 1,506,448 parameters.

    Config: z, classes, size, channels, widths (of the hidden layers).
    """

    class_name = "MLPGenerator"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.z, self.classes = self._count("z", 100), self._count("classes", 0, 0)
        self.size, self.channels = self._count("size", 28), self._count("channels", 1)
        self.widths = self._counts("widths", (128, 256, 512, 1024))
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((self.z + self.classes, *self.widths)):
            layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
        last = nn.Linear(self.widths[-1], self.channels * self.size**2)
        self.body = nn.Sequential(*layers, last, nn.Tanh())

    def draw(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.body(_told(z, label, self.classes)).unflatten(1, (self.channels, self.size, self.size))

    forward = draw


class DCGAN(_Configured):
    """z [B, 100] -> [B, C, 28, 28] or [B, C, 64, 64] (Radford et al. 2015): a dense layer of 7 * 7 * 128 (or 8 * 8 *
    128), then transposed convolutions of stride 2, two for 28 and three for 64.

    Config: z, classes, size, channels, widths (of the maps before each transposed convolution).
    """

    class_name = "DCGAN"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.z, self.classes = self._count("z", 100), self._count("classes", 0, 0)
        self.size, self.channels = self._count("size", 28), self._count("channels", 1)
        self.widths = self._counts("widths", (128, 64) if self.size == 28 else (128, 64, 32))
        self.start = self.size >> len(self.widths)
        if not self.start or self.start << len(self.widths) != self.size:
            raise BundleError("DCGAN.config", f"size must be a multiple of {1 << len(self.widths)}", self.size)
        first = self.widths[0]
        self.dense = nn.Sequential(nn.Linear(self.z + self.classes, self.start**2 * first), nn.ReLU())
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((*self.widths, self.channels)):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(nn.BatchNorm2d(first), *layers[:-2], nn.Tanh())

    def draw(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.dense(_told(z, label, self.classes))
        return self.body(x.unflatten(1, (self.widths[0], self.start, self.start)))

    forward = draw


class CVAE(_Configured):
    """A conditional VAE (Sohn et al. 2015) of 64 x 64 colour: [B, 3, 64, 64], class -> reconstruction and moments of
    z [B, 2 * 32]; `draw` decodes.

    Config: z, classes, widths (the decoder's, which is a DCGAN).
    """

    class_name = "CVAE"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.z, self.classes = self._count("z", 32), self._count("classes", 9)
        self.size, self.channels = 64, 3
        self.encoder = nn.Sequential(
            nn.Conv2d(3 + self.classes, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 48, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(48, 64, 4, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(64 * 64, 2 * self.z),
        )  # fmt: skip
        decoder = {"z": self.z, "classes": self.classes, "size": self.size, "channels": self.channels}
        self.decoder = DCGAN(decoder | {"widths": self._counts("widths", (128, 64, 32))})

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        told = _one_hot(label, self.classes, x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.encoder(torch.cat([x, told], dim=1))

    def draw(self, z: Tensor, label: Tensor) -> Tensor:
        return self.decoder.draw(z, label)

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.encode(x, label)
        mean, logvar = moments.chunk(2, dim=1)
        return self.draw(mean + (0.5 * logvar).exp() * torch.randn_like(mean), label), moments


class Modulated(nn.Module):
    """A convolution whose weights are scaled per picture by a style and normalised again (Karras et al. 2020)."""

    def __init__(self, before: int, after: int, style: int, size: int = 3, normalise: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, size, size) / (before * size * size) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(after))
        self.style, self.normalise, self.pad = nn.Linear(style, before), normalise, size // 2
        nn.init.ones_(self.style.bias)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        # Scaling the input and the output is the same as scaling the weights, and one convolution serves all.
        scale = self.style(w)
        y = F.conv2d(x * scale[:, :, None, None], self.weight, padding=self.pad)
        if self.normalise:
            power = (self.weight.square().sum((2, 3)) @ scale.square().T).T
            y = y * (power + 1e-8).rsqrt()[:, :, None, None]
        return y + self.bias[:, None, None]


class StyleGenerator(_Configured):
    """z [B, 64] -> w [B, 64] by `mapping`, w -> [B, 3, 64, 64] by `synthesis`: modulated convolutions from a learned
    constant. `mean` is the mean w of training, which truncation draws towards.

    Config: z, classes, width (of w), widths (of the maps; the first is 4 x 4, each further one twice as large).
    """

    class_name = "StyleGenerator"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.z, self.classes, self.width = self._count("z", 64), self._count("classes", 0, 0), self._count("width", 64)
        self.widths = self._counts("widths", (96, 96, 64, 48, 32))
        if len(self.widths) < 2:
            raise BundleError("StyleGenerator.config", "widths must be at least two", self.widths)
        self.size, self.channels = 4 << len(self.widths) - 1, 3
        width = self.width
        self.mapper = nn.Sequential(
            nn.Linear(self.z + self.classes, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
            nn.Linear(width, width),
        )  # fmt: skip
        first = self.widths[0]
        self.constant = nn.Parameter(torch.randn(1, first, 4, 4))
        self.first = Modulated(first, first, width)
        self.blocks = nn.ModuleList(Modulated(a, b, width) for a, b in itertools.pairwise(self.widths))
        self.noise = nn.Parameter(torch.zeros(len(self.blocks)))
        self.colour = nn.ModuleList(Modulated(b, 3, width, 1, normalise=False) for b in self.widths[1:])
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width))

    def mapping(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        w: Tensor = self.mapper(_told(z, label, self.classes))
        if self.training:
            self.mean.lerp_(w.detach().mean(0), 0.01)
        return w

    def synthesis(self, w: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(self.constant.expand(w.shape[0], -1, -1, -1), w), 0.2)
        picture: Tensor | None = None
        for i, (block, colour) in enumerate(zip(self.blocks, self.colour, strict=True)):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(x, w)
            if self.training:
                x = x + self.noise[i] * torch.randn_like(x[:, :1])
            x = F.leaky_relu(x, 0.2)
            new = colour(x, w)
            if picture is not None:
                new = new + F.interpolate(picture, scale_factor=2.0, mode="bilinear", align_corners=False)
            picture = new
        assert picture is not None
        return picture.tanh()

    def draw(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.synthesis(self.mapping(z, label))

    forward = draw


class Critic(_Configured):
    """[B, C, S, S] -> logits [B] by halvings, three by default (94,721 parameters at 28 x 28 grey); a class enters by
    projection (Miyato and Koyama 2018).

    Config: size, channels, classes, widths (one a halving).
    """

    class_name = "Critic"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.size, self.channels = self._count("size", 28), self._count("channels", 1)
        widths, side = self._counts("widths", (32, 64, 128)), self.size
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((self.channels, *widths)):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(0.2)]
            side = -(-side // 2)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.out = nn.Linear(widths[-1] * side * side, 1)
        classes = self._count("classes", 0, 0)
        self.classes = nn.Embedding(classes, widths[-1] * side * side) if classes else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        seen = self.body(x)
        logits: Tensor = self.out(seen)[:, 0]
        if self.classes is None:
            return logits
        if label is None:
            raise ValueError("[generators] a conditional network needs labels, got none")
        return logits + (self.classes(label) * seen).sum(1) / seen.shape[1] ** 0.5

    def score(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """The logits as a column, [B, 1]."""
        return self(image, label)[:, None]


Generator = MLPGenerator | DCGAN | CVAE | StyleGenerator
GENERATORS: Mapping[str, type[Generator]] = {
    cls.class_name: cls for cls in (MLPGenerator, DCGAN, CVAE, StyleGenerator)
}  # fmt: skip


def constants(net: Generator) -> dict[str, Any]:
    """The constants of `hotloop.spec.GeneratorFamily` that a generator decides, for a bundle's manifest."""
    found = {
        "z_width": net.z, "classes": net.classes, "image_channels": net.channels,
        "default_size": [net.size, net.size], "style_width": net.width if isinstance(net, StyleGenerator) else 0,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}
