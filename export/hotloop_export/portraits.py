"""What the networks around a model of faces are tried on: its own pictures, and what one of them makes of those for the
next. An arithmetic is to be judged where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from hotloop.spec import FaceConstants, Family, Network

__all__ = ["chain", "sees", "shown_in"]

Arrays = Mapping[str, np.ndarray]
# Of a prompt's tokens, the words; the rest is padding.
_WORDS = 12
# Frames of a keyframe, in `chain`.
_FRAMES = 6


def shown_in(family: Family, names: Sequence[str]) -> list[str]:
    """Those of these networks that `sees` knows the inputs of, each after what it looks at."""
    return [network.name for network in family.faces.networks() if network.name in names]


def sees(
    network: Network, family: Family, pictures: np.ndarray, made: Mapping[str, Arrays], *, rng: np.random.Generator,
    vocabulary: int,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:  # fmt: skip
    """Inputs of a network around the model, and the values of its symbols.

    pictures    decoded, float32 [N, 3, H, W], about [-1, 1]
    made        what the networks before it gave, by name: the matte of the segmenter, the animator's keyframe
    vocabulary  token ids are drawn below it
    """
    n, _, height, width = pictures.shape
    pictures, faces = pictures.clip(-1, 1), family.faces
    matte = made["segmenter"]["matte"] if "segmenter" in made else _oval(n, height, width)
    dims = family.dims(width=width, height=height, batch=n)
    drawn: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        "segmenter": lambda: {"image": pictures},
        "upscaler": lambda: {"rgb": pictures, "matte": matte},
        "clip_text": lambda: {"input_ids": _prompts(n, dims["T"], vocabulary, rng)},
        "clip_image": lambda: {"image": _sized(pictures, faces.clip_size)},
        "animator_encoder": lambda: {"rgba": _keyframe(pictures, matte, faces.key_size)},
        "animator": lambda: _frame(network, faces, made["animator_encoder"], rng),
        "motions": lambda: {
            "z": _normal(rng, n, faces.motion_z), "action": _one_of(rng, n, faces.actions),
            "personality": _one_of(rng, n, faces.personalities),
        },
        "critic": lambda: {
            "image": _sized(_channels(pictures, faces.critic_channels), faces.critic_size),
            "label": np.asarray(rng.integers(0, max(1, faces.critic_classes), n), np.int32),
        },
    }  # fmt: skip
    inputs = {name: np.ascontiguousarray(array) for name, array in drawn[network.name]().items()}
    return {tensor.name: inputs[tensor.name] for tensor in network.inputs}, network.pick(dims)


def chain(
    family: Family, names: Sequence[str], pictures: np.ndarray, run: Callable[[str, Arrays, dict[str, int]], Arrays],
    *, rng: np.random.Generator, vocabulary: int,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:  # fmt: skip
    """(name, inputs) of each of these networks around the model, on pictures as in `sees`, the animator's for several
    frames; `run` gives the outputs."""
    made: dict[str, Arrays] = {}
    rows = family.networks
    for name in shown_in(family, names):
        for _ in range(_FRAMES if name == "animator" else 1):
            inputs, dims = sees(rows[name], family, pictures, made, rng=rng, vocabulary=vocabulary)
            yield name, inputs
        made[name] = run(name, inputs, dims)


def _sized(pictures: np.ndarray, side: int) -> np.ndarray:
    sized = F.interpolate(torch.from_numpy(pictures), size=(side, side), mode="bilinear", antialias=True)
    return np.asarray(sized.numpy())


def _channels(pictures: np.ndarray, channels: int) -> np.ndarray:
    return pictures if channels == pictures.shape[1] else pictures.mean(1, keepdims=True).repeat(channels, axis=1)


def _oval(n: int, height: int, width: int) -> np.ndarray:
    """A head's matte [n, 1, height, width] with a soft edge."""
    y, x = ((np.arange(size) + 0.5) / size - 0.5 for size in (height, width))
    distance = np.hypot(x[None] / 0.35, y[:, None] / 0.45)
    return np.broadcast_to(np.clip(4.5 - 4 * distance, 0, 1), (n, 1, height, width)).astype(np.float32)


def _keyframe(pictures: np.ndarray, matte: np.ndarray, side: int) -> np.ndarray:
    rgb, alpha = _sized((pictures + 1) / 2, side), _sized(matte, side).clip(0, 1)
    return np.concatenate([rgb * alpha, alpha], axis=1)


def _frame(network: Network, faces: FaceConstants, key: Arrays, rng: np.random.Generator) -> dict[str, np.ndarray]:
    n = len(key["held"])
    mean, logvar = np.split(key["prior"], 2, axis=1)
    told = {
        "controls": rng.uniform(-1, 1, (n, faces.controls)).astype(np.float32),
        "z": mean + np.exp(0.5 * logvar.clip(-8, 4)) * _normal(rng, n, faces.z),
    }
    return {tensor.name: told[tensor.name] if tensor.name in told else key[tensor.name] for tensor in network.inputs}


def _prompts(n: int, tokens: int, vocabulary: int, rng: np.random.Generator) -> np.ndarray:
    ids = rng.integers(0, vocabulary - 1, (n, tokens)).astype(np.int32)
    ids[:, min(_WORDS, tokens - 1) :] = vocabulary - 1  # padded with the end token, as prompts are
    return ids


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _one_of(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[rng.integers(0, count, n)]
