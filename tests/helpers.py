"""What several test files need: networks of random weights, engines that run once, distances."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotloop.engines import Context, Engine
from hotloop.nets.animator import Animator
from hotloop.nets.base import Net
from hotloop.nets.generators import Critic
from hotloop.nets.motions import Motions
from hotloop.nets.rewrites import constants
from hotloop.nets.segmenter import Segmenter
from hotloop.nets.towers import ImageTower, TextTower
from hotloop.nets.unet import UNet
from hotloop.nets.upscaler import Upscaler
from hotloop.spec import Family, Network, family, resolve

# A UNet with every kind of block and every input group, as narrow as they come.
NARROW: dict[str, Any] = {
    "block_out_channels": (16, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "norm_num_groups": 8,
    "attention_head_dim": 4, "cross_attention_dim": 24, "time_cond_proj_dim": 6,
}  # fmt: skip


# Networks.


def randomise(module: Any, *, seed: int = 5) -> Any:
    """Weights of unit gain; norms' scales away from one and biases away from zero, so that none can be skipped."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.normal_(generator=generator)
            p.mul_(p[0].numel() ** -0.5 if p.ndim > 1 and "embedding." not in name else 0.3)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1)
    return module.eval()


def row_of(net: UNet, **others: Any) -> Family:
    """The built-in model's row with this UNet's sizes."""
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in constants(net).items()}
    return replace(family("avatar-tiny"), context_dim=net.context_dim, unet_channels=net.in_channels, **sizes, **others)


def narrow_unet(folder: Path, **entries: Any) -> Family:
    """The row of a UNet of random weights, NARROW but for these entries, that is saved to `folder` in float32."""
    net = randomise(UNet(NARROW | entries))
    net.save(folder, dtype=torch.float32)
    return row_of(net)


def face_nets(vocabulary: int = 50) -> dict[str, Net]:
    """The networks around a model of faces by component, of random weights, as narrow as they come."""
    controls = [["happy", 0.0, 1.0], ["headYaw", -25.0, 25.0], ["breath", 0.0, 1.0]]
    text = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": vocabulary, "projection_dim": 12}  # fmt: skip
    nets: dict[str, Net] = {
        "segmenter": Segmenter({"parts": ["background", "hair", "face"], "widths": [8, 12, 16], "width": 8}),
        "upscaler": Upscaler({"width": 8, "blocks": 1}),
        "clip_text": TextTower(text),
        "clip_image": ImageTower({"size": 32, "widths": [8, 12, 16], "hidden": 16, "projection_dim": 12}),
        "animator": Animator({"controls": controls, "z": 4, "size": 32, "widths": [8, 8, 12, 12, 16],
                              "maps": [12, 10, 8], "told": 16}),
        "motions": Motions({"actions": ["nod", "bow"], "personalities": ["calm", "shy", "cold"], "controls": controls,
                            "frames": 6, "z": 5, "width": 16}),
        "critic": Critic({"size": 16, "channels": 1, "classes": 3, "widths": [4, 6]}),
    }  # fmt: skip
    for net in nets.values():
        for name, buffer in randomise(net).named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.linspace(0.2, 1.5, len(buffer)))
    return nets


# Engines.


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_inputs(network: Network, dims: Mapping[str, int], *, seed: int = 3, ids: int = 400) -> dict[str, np.ndarray]:
    """Token ids below `ids`, timesteps in [0, 1000), the rest normal."""
    rng = np.random.default_rng(seed)
    made = {}
    for tensor in network.inputs:
        shape = resolve(tensor.shape, dims)
        if tensor.dtype.startswith("int"):
            value = rng.integers(0, ids, shape)
        else:
            value = rng.uniform(0, 1000, shape) if tensor.name == "timestep" else rng.standard_normal(shape)
        made[tensor.name] = value.astype(tensor.dtype)
    return made


def fill(context: Context, inputs: Mapping[str, np.ndarray]) -> Context:
    for name, value in inputs.items():
        context.inputs[name][...] = value
    return context


def run(engine: Engine, inputs: Mapping[str, np.ndarray], dims: Mapping[str, int]) -> dict[str, np.ndarray]:
    """What an engine gives at this shape, in a context of its pool."""
    with engine.contexts.lease(**engine.network.pick(dims)) as context:
        fill(context, inputs).run()
        return {name: array.copy() for name, array in context.outputs.items()}


def outputs(engine: Engine, dims: Mapping[str, int], *, seed: int = 3) -> dict[str, np.ndarray]:
    """What an engine gives at this shape on random inputs."""
    return run(engine, random_inputs(engine.network, dims, seed=seed), dims)


# Distances.


def distance(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any output."""
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


def cosine(ours: Any, theirs: Any) -> float:
    """Of two arrays, or the least of two sets of outputs."""
    if isinstance(theirs, Mapping):
        return min(cosine(ours[name], theirs[name]) for name in theirs)
    a, b = (np.asarray(one, np.float64).ravel() for one in (ours, theirs))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def psnr(a: Any, b: Any) -> float:
    """Of two pictures of 8 bits, in dB."""
    mse = float(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))
    return float("inf") if mse == 0 else 10 * np.log10(255**2 / mse)


# The models' folders.


@contextmanager
def bare_modules(folder: Path) -> Iterator[None]:
    """A folder's modules by their bare names, as its commands see them; another folder's of the same names come back
    afterwards."""
    own = {path.stem for path in folder.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in own if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in own:
            sys.modules.pop(name, None)
        sys.modules.update(others)
