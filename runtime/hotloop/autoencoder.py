"""The VAE of a pipeline, full or tiny: pixels to the loop's latents and back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from . import image as images
from .bundle import Bundle
from .checks import check_finite
from .errors import InputError
from .networks import Networks
from .noise import SeededNoise

__all__ = ["VAES", "Autoencoder"]

VAES = ("full", "tiny")


class Autoencoder:
    """One of a bundle's VAEs; the engines that run it are a call's own, so every method takes them.

    encoder, decoder  the names of its networks
    scaling           latents of the loop / scaling are the VAE's; the tiny one was trained on the loop's own

    Raises InputError for a kind that is none of VAES, or that the bundle does not carry.
    """

    def __init__(self, bundle: Bundle, kind: str) -> None:
        if kind not in VAES:
            raise InputError("load", "vae must be full or tiny", kind)
        if kind == "tiny" and "tiny_vae" not in bundle.manifest["weights"]:
            raise InputError("load", "this bundle carries no tiny VAE; export it with --vae", kind)
        prefix = "tiny_" if kind == "tiny" else ""
        self.family = bundle.family
        self.encoder, self.decoder = prefix + "vae_encoder", prefix + "vae_decoder"
        self.scaling = np.float32(1 if prefix else self.family.scaling_factor)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w) of an image of width x height pixels."""
        factor = self.family.vae_factor
        return self.family.latent_channels, height // factor, width // factor

    def encode(self, networks: Networks, pixels: np.ndarray, noise: SeededNoise) -> np.ndarray:
        """Pixels f32 [N, 3, H, W], or [1, 3, H, W] of all images -> a posterior sample per image, scaled: f32
        [N, C, h, w]; one launch of the encoder for each picture."""
        _, _, height, width = pixels.shape
        engine = networks[self.encoder]
        dims = self.family.dims(width=width, height=height, batch=1)
        each = []
        with engine.contexts.lease(**engine.network.pick(dims)) as context:
            # One picture at a time: what stands beside one must not reach its last bits.
            for picture in pixels:
                context.inputs["image"][:] = picture
                context.run()
                each.append((context.outputs["mean"].copy(), context.outputs["logvar"].copy()))
        mean, logvar = (np.concatenate(one) for one in zip(*each, strict=True))
        check_finite("vae_encoder", "latents", mean)
        deviation = np.exp(np.float32(0.5) * np.clip(logvar, -30, 20))
        return (mean + deviation * noise.normal(self.latent_shape(width, height))) * self.scaling

    def decode(self, networks: Networks, latents: np.ndarray) -> np.ndarray:
        """Latents f32 [N, C, h, w] as they leave the loop -> pixels uint8 [N, H, W, 3]; one launch of the decoder.

        Raises NonFiniteError instead of giving a black image.
        """
        n, _, h, w = latents.shape
        engine = networks[self.decoder]
        factor = self.family.vae_factor
        dims = self.family.dims(width=w * factor, height=h * factor, batch=n)
        with engine.contexts.lease(**engine.network.pick(dims)) as context:
            np.divide(latents, self.scaling, out=context.inputs["latents"])
            context.run()
            pixels = context.outputs["image"]
            check_finite("vae_decoder", "image", pixels)
            return images.to_rgb8(pixels)

    def prepare(self, networks: Networks, width: int, height: int, counts: Iterable[int]) -> None:
        """Allocate and run once: the encoder for one image, the decoder for each number of images."""
        for name, batches in ((self.encoder, [1]), (self.decoder, counts)):
            engine = networks[name]
            for n in batches:
                engine.prepare([engine.network.pick(self.family.dims(width=width, height=height, batch=n))])
