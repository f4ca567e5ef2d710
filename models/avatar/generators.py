"""The textbook generators: MLP GAN, DCGAN, CVAE and a StyleGAN-like pair, plain or conditioned on a class.

They learn the renderer's faces at 28 x 28 grey or 64 x 64 colour in minutes. Discriminators are kept: they ship as
critics. A condition is a class number int64 [B]; networks of 0 classes take none.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CVAE", "DCGAN", "Critic", "MLPGenerator", "StyleGenerator", "slerp"]


def _told(z: Tensor, label: Tensor | None, classes: int) -> Tensor:
    """z with the class as one-hot numbers behind it."""
    if not classes:
        return z
    if label is None:
        raise ValueError("[generators] a conditional network needs labels, got none")
    return torch.cat([z, F.one_hot(label, classes).to(z.dtype)], dim=1)


class MLPGenerator(nn.Module):
    """z [B, 100] -> [B, 1, 28, 28] in [-1, 1] by layers of 128, 256, 512, 1024, 784: 1,506,448 parameters."""

    def __init__(self, z: int = 100, classes: int = 0) -> None:
        super().__init__()
        self.z, self.classes = z, classes
        widths = (z + classes, 128, 256, 512, 1024)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Linear(1024, 784), nn.Tanh())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        out: Tensor = self.body(_told(z, label, self.classes))
        return out.view(-1, 1, 28, 28)


class Critic(nn.Module):
    """[B, C, S, S] -> logits [B] by three halvings (94,721 parameters at 28 x 28 grey); a class enters by projection
    (Miyato and Koyama 2018)."""

    def __init__(
        self, size: int = 28, channels: int = 1, classes: int = 0, widths: tuple[int, ...] = (32, 64, 128)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip((channels, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(0.2)]
            size = -(-size // 2)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.out = nn.Linear(widths[-1] * size * size, 1)
        self.classes = nn.Embedding(classes, widths[-1] * size * size) if classes else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        seen = self.body(x)
        logits: Tensor = self.out(seen)[:, 0]
        return logits if self.classes is None else logits + (self.classes(label) * seen).sum(1) / seen.shape[1] ** 0.5


class DCGAN(nn.Module):
    """z [B, 100] -> [B, C, 28, 28] or [B, C, 64, 64] in [-1, 1] (Radford et al. 2015): dense 7 * 7 * 128 (or 8 * 8 *
    128), then transposed convolutions of stride 2, two for 28 and three for 64."""

    def __init__(self, z: int = 100, size: int = 28, channels: int = 1, classes: int = 0) -> None:
        super().__init__()
        self.z, self.classes = z, classes
        self.start, doublings = (7, 2) if size == 28 else (8, 3)
        self.dense = nn.Sequential(nn.Linear(z + classes, self.start**2 * 128), nn.ReLU())
        layers: list[nn.Module] = []
        for i in range(doublings):
            a, b = 128 >> i, (128 >> (i + 1) if i + 1 < doublings else channels)
            layers.append(nn.ConvTranspose2d(a, b, 4, 2, 1))
            layers += [nn.BatchNorm2d(b), nn.ReLU()] if i + 1 < doublings else [nn.Tanh()]
        self.body = nn.Sequential(nn.BatchNorm2d(128), *layers)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.dense(_told(z, label, self.classes)).view(-1, 128, self.start, self.start)
        out: Tensor = self.body(x)
        return out


class CVAE(nn.Module):
    """A conditional VAE (Sohn et al. 2015) of 64 x 64 colour: [B, 3, 64, 64], class -> reconstruction and moments of
    z [B, 2 * 32]; `decode` draws."""

    def __init__(self, z: int = 32, classes: int = 9) -> None:
        super().__init__()
        self.z, self.classes = z, classes
        self.encoder = nn.Sequential(
            nn.Conv2d(3 + classes, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 48, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(48, 64, 4, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(64 * 64, 2 * z),
        )  # fmt: skip
        self.decoder = DCGAN(z, 64, 3, classes)

    def encode(self, x: Tensor, label: Tensor) -> Tensor:
        told = F.one_hot(label, self.classes).to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        moments: Tensor = self.encoder(torch.cat([x, told], dim=1))
        return moments

    def decode(self, z: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.decoder(z, label)
        return out

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.encode(x, label)
        mean, logvar = moments.chunk(2, dim=1)
        return self.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean), label), moments


class _Modulated(nn.Module):
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


class StyleGenerator(nn.Module):
    """z [B, 64] -> w by `mapping` (cached per identity by whoever draws), w -> [B, 3, 64, 64] by modulated convolutions
    from a learned constant; `truncate` draws w towards the mean of training."""

    def __init__(self, z: int = 64, classes: int = 0, width: int = 64) -> None:
        super().__init__()
        self.z, self.classes = z, classes
        self.mapper = nn.Sequential(
            nn.Linear(z + classes, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
            nn.Linear(width, width),
        )  # fmt: skip
        self.constant = nn.Parameter(torch.randn(1, 96, 4, 4))
        widths = (96, 96, 64, 48, 32)
        self.first = _Modulated(96, 96, width)
        self.blocks = nn.ModuleList(_Modulated(a, b, width) for a, b in itertools.pairwise(widths))
        self.noise = nn.Parameter(torch.zeros(len(self.blocks)))
        self.colour = nn.ModuleList(_Modulated(b, 3, width, 1, normalise=False) for b in widths[1:])
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(width))

    def mapping(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        w: Tensor = self.mapper(_told(z, label, self.classes))
        if self.training:
            self.mean.lerp_(w.detach().mean(0), 0.01)
        return w

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        return self.mean + psi * (w - self.mean)

    def synthesis(self, w: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(self.constant.expand(len(w), -1, -1, -1), w), 0.2)
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

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.synthesis(self.mapping(z, label))


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """On the great circle from a to b [B, Z] (Shoemake 1985); straight where they are nearly parallel."""
    angle = torch.acos((F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    bent = ((1 - t) * angle).sin() / sine * a + (t * angle).sin() / sine * b
    return torch.where(sine.abs() < 1e-4, (1 - t) * a + t * b, bent)
