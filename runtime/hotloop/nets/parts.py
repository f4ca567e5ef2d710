"""Which class, folder and method each network of the spec is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import BundleError
from ..files import read_json
from ..spec import Network
from .animator import Animator
from .base import Net
from .clip import CLIPText, CLIPVision
from .generators import CVAE, DCGAN, Critic, MLPGenerator, StyleGenerator
from .motions import Motions
from .precision import DTYPES, halve
from .rewrites import split, with_phase
from .segmenter import Segmenter
from .towers import ImageTower, TextTower
from .unet import UNet
from .upscaler import Upscaler
from .vae import AutoencoderKL, TinyVAE

__all__ = ["PARTS", "Call", "Part", "module_of"]


@dataclass(frozen=True)
class Part:
    """Where a network of the spec lives in a diffusers folder, and which method of which class it is.

    graph: the file name of its plain ONNX graph.
    """

    folder: str
    graph: str
    classes: tuple[type[Net], ...]
    method: str = "forward"

    def choose(self, config: Mapping[str, Any]) -> type[Net]:
        """The class of a config.json. Raises BundleError for one that is none of `classes`."""
        name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
        for cls in self.classes:
            if name in (None, cls.class_name):
                return cls
        raise BundleError("nets", f"{self.folder} must be {' or '.join(c.class_name for c in self.classes)}", name)

    def config(self, folder: Path) -> dict[str, Any]:
        """What config.json in `folder` says. Raises BundleError when there is none to read."""
        return read_json(folder / "config.json", place="nets")


_VAES = (AutoencoderKL, TinyVAE)
PARTS: dict[str, Part] = {
    "text_encoder": Part("text_encoder", "model.onnx", (CLIPText,)),
    "unet": Part("unet", "model.onnx", (UNet,)),
    "prompt": Part("unet", "prompt.onnx", (UNet,)),
    "time": Part("unet", "time.onnx", (UNet,)),
    "vae_encoder": Part("vae", "encoder.onnx", _VAES, "encode"),
    "vae_decoder": Part("vae", "decoder.onnx", _VAES, "decode"),
    "tiny_vae_encoder": Part("tiny_vae", "encoder.onnx", (TinyVAE,), "encode"),
    "tiny_vae_decoder": Part("tiny_vae", "decoder.onnx", (TinyVAE,), "decode"),
    "image_encoder": Part("image_encoder", "model.onnx", (CLIPVision,)),
    "generator": Part("generator", "model.onnx", (MLPGenerator, DCGAN, CVAE, StyleGenerator), "draw"),
    "mapping": Part("generator", "mapping.onnx", (StyleGenerator,), "mapping"),
    "synthesis": Part("generator", "synthesis.onnx", (StyleGenerator,), "synthesis"),
    "critic": Part("critic", "model.onnx", (Critic,), "score"),
    "segmenter": Part("segmenter", "model.onnx", (Segmenter,), "segment"),
    "upscaler": Part("upscaler", "model.onnx", (Upscaler,), "enlarge"),
    "clip_text": Part("clip_text", "model.onnx", (TextTower,)),
    "clip_image": Part("clip_image", "model.onnx", (ImageTower,)),
    "animator_encoder": Part("animator", "encoder.onnx", (Animator,), "encode"),
    "animator": Part("animator", "decoder.onnx", (Animator,), "animate"),
    "motions": Part("motions", "model.onnx", (Motions,), "decode"),
}
# Networks cut out of the UNet, and the rewrite that cuts them.
_CUT = {"prompt": "kv", "time": "time"}


class Call(nn.Module):
    """A network of the spec as one module: the spec's inputs in their order, its outputs, all of the spec's dtypes."""

    def __init__(self, net: nn.Module, network: Network, *, method: str) -> None:
        super().__init__()
        self.net, self.network, self.method = net, network, method
        self.dtype = torch.float32
        self._optional = {tensor.name for group in network.groups.values() for tensor in group}

    def lower(self, compute: str, *, keep: Collection[str] = ()) -> Self:
        """Compute in "fp16" or "bf16" from here on (see nets.precision), casting at the border. "fp32" changes nothing.

        The network "time" stays float32: it runs once per schedule.
        """
        if compute != "fp32" and self.network.name != "time":
            self.dtype = DTYPES[compute]
            halve(self.net, self.dtype, keep=keep)
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given, optional = [], {}
        for tensor, value in zip(self.network.inputs, inputs, strict=True):
            # Timesteps stay as they are: 999 in bfloat16 is 1000.
            if tensor.dtype == "float32" and tensor.name != "timestep":
                value = value.to(self.dtype)
            if tensor.name in self._optional:
                optional[tensor.name] = value
            else:
                given.append(value)
        out = getattr(self.net, self.method)(*given, **optional)
        return tuple(part.float() for part in (out if isinstance(out, tuple) else (out,)))


def module_of(net: Net, network: Network) -> Call:
    """The network of the spec from the plain network that holds its weights; weights are shared, nothing is copied."""
    module: nn.Module = net
    if network.name in _CUT:
        assert isinstance(net, UNet)
        module = split(net, [_CUT[network.name]])[network.name]
    elif isinstance(net, UNet):
        module = split(net, network.rewrites)["unet"] if network.rewrites else net
    elif isinstance(net, AutoencoderKL) and network.rewrites:
        module = with_phase(net)
    return Call(module, network, method=PARTS[network.name].method)
