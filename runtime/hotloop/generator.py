"""Pictures from a latent vector in one call: GANs, decoders of VAEs, pairs of mapping and synthesis.

    generator = hotloop.load_generator("faces")
    generator.generate(seed=7, count=4)        # uint8 [4, H, W, 3]
    generator.interpolate(7, 8, 12)            # on the great circle between the latents of two seeds

One latent a run, whatever the batch: see `Generator`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import image as images
from .bundle import Bundle, Entry
from .checks import check_finite, check_integer, check_number
from .denoiser import LRUCache
from .engines import Engine
from .errors import BundleError, InputError
from .files import cache_folder
from .networks import open_networks
from .noise import SeededNoise, check_seed, seeds_for
from .selection import Choice, choose
from .spec import GeneratorFamily
from .weights import Weights

__all__ = ["Controls", "Generator", "load_generator", "slerp"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Controls = Mapping[str, str | float]

MAX_PICTURES = 4096  # per call
_LARGEST = 1e3  # of a control
_IDENTITIES = 256  # whose w is kept
_PLACE = "generate"
# Below this sine two directions are one line, and the way between them is straight.
_PARALLEL = 1e-4


def load_generator(
    bundle: str | Path, *, engine: str = "auto", device: str = "auto", threads: int | None = None
) -> Generator:
    """Open the bundle of a generator and its engines; arguments as in `hotloop.load`.

    Raises BundleError for a damaged bundle, InputError for another kind of bundle, an engine or a device that is not
    there.
    """
    return Generator(Bundle.open(bundle), engine=engine, device=device, threads=threads)


def slerp(a: npt.ArrayLike, b: npt.ArrayLike, t: float) -> F32:
    """On the great circle from vector a [Z] to b [Z] at t in [0, 1], f32 (Shoemake 1985; for latents White 2016).

    a at 0 and b at 1, exactly; straight where they are nearly parallel.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    angle = np.arccos(np.clip(a @ b / norms, -1, 1)) if norms else 0.0
    if (sine := np.sin(angle)) < _PARALLEL:
        return np.asarray((1 - t) * a + t * b, np.float32)
    return np.asarray((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / sine, np.float32)


class Generator:
    """A loaded generator. Several threads may call.

    The network sees one latent at a time: a matrix product may round differently when its batch is larger, and so
    image i of a batch is, bit for bit, the single run with its seed.

    choice, given, keep_compiled: as in `Pipeline`.
    """

    def __init__(
        self, bundle: Bundle, *, engine: str = "auto", device: str = "auto", threads: int | None = None,
        choice: Choice | None = None, given: Mapping[str, Engine] | None = None, keep_compiled: bool = True,
    ) -> None:  # fmt: skip
        if threads is not None:
            check_integer("load", "threads", threads, 1, 1024)
        if not isinstance(bundle.family, GeneratorFamily):
            rule = "bundle must hold a generator: hotloop.load opens this one"
            raise InputError("load_generator", rule, bundle.family.name)
        self.bundle, self.family = bundle, bundle.family
        self._labels, self._controls = _names(bundle, self.family)
        own = [name for name in self.family.networks if name != "critic"]
        choices = [choice] if choice else choose(bundle, engine, device)
        self.networks, self.why = open_networks(
            bundle, choices if "auto" in (engine, device) else choices[:1], own, threads=threads, given=given,
            cache=cache_folder() / "compiled" / bundle.id if keep_compiled else None,
        )  # fmt: skip
        self._identities = LRUCache(most=_IDENTITIES)

    @property
    def entry(self) -> Entry:
        """The engine of the bundle that runs."""
        return self.networks.entry

    @property
    def engine(self) -> str:
        """Its name, such as "openvino-bf16"."""
        return self.entry.name

    @property
    def device(self) -> str:
        return self.networks.device

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """What `controls` can name: attribute -> its classes, in the order of their numbers."""
        return self._labels

    # Drawing.

    def generate(
        self, seed: int | Sequence[int] = 0, count: int = 1, *, label: int | Sequence[int] | None = None,
        controls: Controls | None = None, truncation: float = 1.0,
    ) -> U8:  # fmt: skip
        """Draw `count` pictures, uint8 [N, H, W, 3] (grey ones three times grey).

        seed        image i has seed + i; or a list of one each. Its latents are torch's randn of that seed
        label       class number, or a list of one each; only and always for a generator of classes
        controls    {"hair": "pink"} names a class in place of label; {"smile": 0.5} sets a number of the condition,
                    those that are not named are 0
        truncation  draws w towards its mean, 1 not at all, 0 wholly (Karras et al. 2019); for pairs with a mapping

        Raises InputError for an argument out of range, NonFiniteError instead of returning a broken picture.
        """
        seeds = self._seeds(seed, count)
        z = SeededNoise(seeds).normal((self.family.z_width,))
        return self._draw(z, *self._told(label, controls, len(seeds)), truncation)

    def interpolate(
        self, seed_a: int, seed_b: int, steps: int, *, label: int | None = None, controls: Controls | None = None,
        truncation: float = 1.0,
    ) -> U8:  # fmt: skip
        """`steps` pictures on the way from one seed's to another's, both ends among them: uint8 [steps, H, W, 3].

        Latents go along the great circle (`slerp`), equal steps apart. The rest is as in `generate`.
        """
        check_integer(_PLACE, "steps", steps, 2, MAX_PICTURES)
        a, b = SeededNoise([check_seed(seed_a), check_seed(seed_b)]).normal((self.family.z_width,))
        z = np.stack([slerp(a, b, i / (steps - 1)) for i in range(steps)])
        return self._draw(z, *self._told(label, controls, steps), truncation)

    def score(self, pictures: npt.ArrayLike, *, label: int | Sequence[int] | None = None,
              controls: Controls | None = None) -> F32:  # fmt: skip
        """The critic's logits f32 [N] of pictures uint8 [N, H, W, 3]: the higher, the more they look like the real
        ones it was trained on. Raises InputError where the bundle carries no critic, or for other shapes.
        """
        if "critic" not in self.entry.networks:
            raise InputError("score", "bundle must carry a critic", list(self.entry.networks))
        width, height = self.family.default_size
        pictures = np.asarray(pictures)
        if pictures.ndim != 4 or pictures.shape[1:] != (height, width, 3) or pictures.dtype != np.uint8:
            rule = f"pictures must be uint8 [N, {height}, {width}, 3]"
            raise InputError("score", rule, f"{pictures.dtype} {pictures.shape}")
        x = (pictures.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
        x = x.mean(1, keepdims=True) if self.family.image_channels == 1 else x
        numbers, _ = self._told(label, controls, len(x))
        rows = [self._run("critic", image=one, label=number)["score"] for one, number in zip(x, numbers, strict=True)]
        scores = np.array(rows, np.float32).reshape(-1)
        check_finite("score", "scores", scores)
        return scores

    # What the methods share.

    def _seeds(self, seed: int | Sequence[int], count: int) -> list[int]:
        if isinstance(seed, (list, tuple, np.ndarray)):
            seeds = [check_seed(one) for one in seed]
            if count not in (1, len(seeds)):
                raise InputError(_PLACE, "a list of seeds must have one for each picture", len(seeds))
        else:
            check_integer(_PLACE, "count", count, 1, MAX_PICTURES)
            seeds = seeds_for(seed, count)  # type: ignore[arg-type]
        check_integer(_PLACE, "count", len(seeds), 1, MAX_PICTURES)
        return seeds

    def _told(
        self, label: int | Sequence[int] | None, controls: Controls | None, count: int
    ) -> tuple[Sequence[int | None], F32]:
        """A class number for each picture, or None, and the condition f32 [controls]."""
        classes, condition = self.family.classes, np.zeros(self.family.controls, np.float32)
        for name, value in (controls or {}).items():
            if name in self._labels:
                names = self._labels[name]
                if str(value) not in names:
                    raise InputError(_PLACE, f"{name} must be one of {', '.join(names)}", value)
                if label is not None:
                    raise InputError(_PLACE, f"label and {name} say the same: give one of them", label)
                label = names.index(str(value))
            elif name in self._controls:
                number = _number(value)
                check_number(_PLACE, name, number, -_LARGEST, _LARGEST)
                condition[self._controls.index(name)] = number
            else:
                known = [*self._labels, *self._controls]
                rule = f"controls must be among {', '.join(known)}" if known else "this generator takes no controls"
                raise InputError(_PLACE, rule, name)
        if not classes:
            if label is not None:
                raise InputError(_PLACE, "this generator has no classes: leave label out", label)
            return [None] * count, condition
        if label is None:
            names = [f"{name} ({', '.join(known)})" for name, known in self._labels.items()]
            rule = f"this generator draws one of {classes} classes: give label"
            raise InputError(_PLACE, rule + (f", or controls for {names[0]}" if names else ""))
        each: list[Any] = list(label) if isinstance(label, (list, tuple, np.ndarray)) else [label] * count
        if len(each) != count:
            raise InputError(_PLACE, "a list of labels must have one for each picture", len(each))
        for one in each:
            check_integer(_PLACE, "label", one, 0, classes - 1)
        return each, condition

    def _draw(self, z: F32, labels: Sequence[int | None], condition: F32, truncation: float) -> U8:
        check_number(_PLACE, "truncation", truncation, 0, 1)
        if truncation != 1 and not self.family.style_width:
            raise InputError(_PLACE, "truncation needs a generator with a mapping", truncation)
        drawn = np.stack(
            [self._picture(one, label, condition, truncation) for one, label in zip(z, labels, strict=True)]
        )
        check_finite(_PLACE, "pictures", drawn)
        return images.to_rgb8(np.broadcast_to(drawn, (len(drawn), 3, *drawn.shape[2:])))

    def _picture(self, z: F32, label: int | None, condition: F32, truncation: float) -> F32:
        """[C, H, W] in [-1, 1]."""
        if not self.family.style_width:
            return self._run("generator", z=z, label=label, controls=condition)["image"][0]
        key = z.tobytes() + repr(label).encode() + condition.tobytes()
        w = self._identities.get(key, lambda: self._run("mapping", z=z, label=label, controls=condition)["w"][0])
        if truncation != 1:
            w = self._mean + np.float32(truncation) * (w - self._mean)
        return self._run("synthesis", w=w)["image"][0]

    @cached_property
    def _mean(self) -> F32:
        """The mean w of training, [style_width]."""
        weights = Weights.open(self.bundle.file(self.bundle.manifest["weights"]["generator"]["path"]))
        if "mean" not in weights or weights.shape("mean") != (self.family.style_width,):
            raise BundleError(_PLACE, f"{weights.path.name} must hold the mean w", f"{self.family.style_width} numbers")
        return np.array(weights["mean"], np.float32)

    def _run(self, name: str, **inputs: F32 | int | None) -> dict[str, np.ndarray]:
        engine = self.networks[name]
        with engine.contexts.lease(B=1) as context:
            for tensor in engine.network.inputs:
                context.inputs[tensor.name][...] = inputs[tensor.name]
            context.run()
            return {name: np.array(value) for name, value in context.outputs.items()}


def _number(value: str | float) -> str | float:
    """Of text, such as the command line's, the number that it reads as."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _names(bundle: Bundle, family: GeneratorFamily) -> tuple[dict[str, list[str]], list[str]]:
    """The names of the classes, by attribute, and of the condition's numbers. Raises BundleError unless they fit."""
    labels, controls = (bundle.defaults.get(key, empty) for key, empty in (("labels", {}), ("controls", [])))
    for rule, holds in (
        (f"labels in manifest.json must name {family.classes} classes of one attribute", _are_labels(labels, family)),
        (f"controls in manifest.json must name {family.controls} numbers", _are_controls(controls, family)),
    ):
        if not holds:
            raise BundleError("bundle", rule, labels if "labels" in rule else controls)
    return {name: list(names) for name, names in labels.items()}, list(controls)


def _are_labels(value: object, family: GeneratorFamily) -> bool:
    return isinstance(value, dict) and len(value) <= 1 and all(
        isinstance(names, list) and len(names) == family.classes and all(isinstance(one, str) for one in names)
        for names in value.values()
    )  # fmt: skip


def _are_controls(value: object, family: GeneratorFamily) -> bool:
    named = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return named and len(value) in (0, family.controls)  # type: ignore[arg-type]
