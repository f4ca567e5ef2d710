"""The reference that certificates are measured against: seeded inputs, the networks' own answers in float32 torch, and
images drawn with them. Stored in the bundle, so that checking it later needs neither torch nor the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from hotloop.bundle import CERTIFIED, Bundle, Entry
from hotloop.engines import Context, ContextPool, Engine
from hotloop.evaluation.certificates import Images, Latents
from hotloop.generator import Generator
from hotloop.nets.base import Net
from hotloop.nets.parts import module_of
from hotloop.pipeline import Pipeline
from hotloop.selection import Choice
from hotloop.spec import Family, GeneratorFamily, Network, phase_grid, resolve
from hotloop.weights import save

from . import portraits
from .onnx import sample_inputs

__all__ = ["FOLDER", "PROMPTS", "ModuleEngine", "images_for", "latents_for", "write_latent_reference",
           "write_reference"]  # fmt: skip

FOLDER = "parity"
_SEED = 20240229
_QUICK_STEPS, _FULL_STEPS, _QUICK_SIDE = 8, 20, 256
_QUICK_PICTURES, _FULL_PICTURES = 8, 32
# The first two are what the quick check draws; all eight the full one, and what int8 is calibrated on.
PROMPTS = (
    "A cute anime girl with pink hair, wearing a school uniform, smiling",
    "a boy with green hair and glasses, happy, blue background",
    "portrait of an old man with a grey beard, hoodie, cold expression",
    "a sad woman with long black hair, purple eyes, highly detailed",
    "an angry girl with red hair, yellow background",
    "close-up of a surprised boy, blonde hair, brown eyes, white shirt",
    "a lively character with floating_hair, purple_eyes, watercolour",
    "photo of a person in a suit, soft light, grey background",
)


class _ModuleContext:
    def __init__(self, engine: ModuleEngine, dims: Mapping[str, int]) -> None:
        network = engine.network
        self.inputs: Mapping[str, Any] = {t.name: np.zeros(resolve(t.shape, dims), t.dtype) for t in network.inputs}
        self.outputs: Mapping[str, Any] = {t.name: np.zeros(resolve(t.shape, dims), t.dtype) for t in network.outputs}
        self._call = engine.call

    @torch.no_grad()
    def run(self, stream: int | None = None) -> None:
        out = self._call(*(torch.from_numpy(array) for array in self.inputs.values()))
        parts = out if isinstance(out, tuple) else (out,)
        for array, part in zip(self.outputs.values(), parts, strict=True):
            array[...] = part.numpy()


class ModuleEngine:
    """A network in torch as an Engine: what the others are compared with."""

    kind, device = "torch", "cpu"

    def __init__(self, net: Net, network: Network) -> None:
        self.call, self.network = module_of(net, network), network
        self.contexts = ContextPool(self)

    def context(self, **dims: int) -> Context:
        return _ModuleContext(self, dims)

    def __call__(self, inputs: Mapping[str, np.ndarray], dims: Mapping[str, int]) -> dict[str, np.ndarray]:
        with self.contexts.lease(**dims) as context:
            for key, array in inputs.items():
                context.inputs[key][...] = array
            context.run()
            return {key: array.copy() for key, array in context.outputs.items()}

    def prepare(self, shapes: Iterable[Mapping[str, int]]) -> None:
        """Nothing to warm."""

    def patched(self, tensors: Mapping[str, np.ndarray]) -> Engine:
        raise NotImplementedError("the reference is what it is")


def images_for(family: Family, certify: str, defaults: Mapping[str, Any]) -> Images:
    """The images of a quick or a full certificate."""
    full = certify == "full"
    # A model made for few steps is judged by few: by more it is not what anyone draws.
    steps = min(_FULL_STEPS if full else _QUICK_STEPS, defaults["num_inference_steps"])
    side = max(family.default_size) if full else _QUICK_SIDE
    width, height = (min(s, side) for s in family.default_size)
    prompts = PROMPTS if full else PROMPTS[:2]
    return Images(prompts, tuple(range(len(prompts))), steps, (width, height), defaults["sampler"],
                  defaults["guidance_scale"])  # fmt: skip


def latents_for(family: GeneratorFamily, certify: str) -> Latents:
    """The pictures of a generator's quick or full certificate, of its classes in turn."""
    count = _FULL_PICTURES if certify == "full" else _QUICK_PICTURES
    labels = tuple(i % family.classes for i in range(count)) if family.classes else ()
    return Latents(tuple(range(count)), labels, family.default_size)


def write_reference(
    bundle: Bundle, engines: Mapping[str, ModuleEngine], images: Images, *, vocabulary: int
) -> dict[str, Any]:
    """Draw the reference images with the torch networks, fill the bundle's folder `parity`, return what the manifest
    says of it.

    engines     of every plain network of the family that the bundle carries
    vocabulary  token ids are drawn below it
    """
    (bundle.path / FOLDER).mkdir()
    files = {name: f"{FOLDER}/{name}.safetensors" for name in (*engines, "images")}
    results = list(images.draw(_pipeline(bundle, engines)))
    drawn = {str(i): np.asarray(result.images[0]) for i, result in enumerate(results)}
    save(drawn, bundle.path / files["images"])
    latents = np.concatenate([result.latents for result in results[:2]])
    around = portraits.shown_in(bundle.family, list(engines))
    made: dict[str, dict[str, np.ndarray]] = {}
    for name in [*(name for name in engines if name not in around), *around]:
        network = engines[name].network
        if name in around:
            inputs, dims = portraits.sees(
                network, bundle.family, made["vae_decoder"]["image"], made, rng=np.random.default_rng(_SEED),
                vocabulary=vocabulary,
            )  # fmt: skip
        else:
            inputs, dims = _inputs(network, bundle.family, images.size, latents, vocabulary=vocabulary)
        made[name] = engines[name](inputs, dims)
        stored = [{f"{side}.{key}": array for key, array in arrays.items()}
                  for side, arrays in (("in", inputs), ("out", made[name]))]  # fmt: skip
        save(stored[0] | stored[1], bundle.path / files[name])
    return {"images": images.stored(), "seed": _SEED, "files": files}


def write_latent_reference(bundle: Bundle, engines: Mapping[str, Engine], images: Latents) -> dict[str, Any]:
    """As `write_reference`, of a generator: engines of every network that its bundle carries, by torch, or the file
    itself for one that came as a graph."""
    (bundle.path / FOLDER).mkdir()
    files = {name: f"{FOLDER}/{name}.safetensors" for name in (*engines, "images")}
    networks = {name: {"path": ""} for name in engines}
    entry = Entry("torch", "fp32", "fp32", (), (), 1, "any", CERTIFIED, networks, {})
    choice = Choice(entry, "cpu", "the reference")
    pictures = images.pictures(Generator(bundle, choice=choice, given=engines, keep_compiled=False))
    save({str(i): picture for i, picture in enumerate(pictures)}, bundle.path / files["images"])
    made: dict[str, np.ndarray] = {}  # what one network gives is what the next one sees
    for name, engine in engines.items():
        given = sample_inputs(engine.network, {"B": 1}, seed=_SEED, ids=max(1, bundle.family.classes))  # type: ignore[attr-defined]
        given |= {key: made[key] for key in given.keys() & made.keys()}
        with engine.contexts.lease(B=1) as context:
            for key, array in given.items():
                context.inputs[key][...] = array
            context.run()
            out = {key: np.array(array) for key, array in context.outputs.items()}
        made |= out
        stored = {f"in.{key}": array for key, array in given.items()} | {f"out.{k}": array for k, array in out.items()}
        save(stored, bundle.path / files[name])
    return {"images": images.stored(), "seed": _SEED, "files": files}


def _pipeline(bundle: Bundle, engines: Mapping[str, ModuleEngine]) -> Pipeline:
    networks = {name: {"path": ""} for name in engines}
    groups = tuple(engines["unet"].network.groups)
    entry = Entry("torch", "fp32", "fp32", (), groups, 1, "any", CERTIFIED, networks, {})
    return Pipeline(bundle, choice=Choice(entry, "cpu", "the reference"), given=engines)


def _inputs(
    network: Network, family: Family, size: tuple[int, int], latents: np.ndarray, *, vocabulary: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Seeded inputs of a network at a size that is not square, of two images; the UNet's halves alike (see parity).

    latents: of two drawn images at least as high, [2, C, h, w]. A decoder sees those, not noise: what a model draws can
    be far from unit deviation, and an arithmetic is to be judged where it is used.
    """
    step = phase_grid(family)
    width, height = size[0], max(step, size[1] * 3 // 4 // step * step)
    halves = 2 if network.name == "unet" else 1
    dims = family.dims(width=width, height=height, batch=2 * halves, images=2)
    inputs = sample_inputs(network, dims, seed=_SEED, ids=vocabulary)
    if halves == 2:
        for name in {"sample", "timestep", "timestep_cond"} & inputs.keys():
            inputs[name][2:] = inputs[name][:2]
    if network.name in ("vae_decoder", "tiny_vae_decoder"):
        scale = np.float32(family.scaling_factor if network.name == "vae_decoder" else 1)
        inputs["latents"] = latents[:, :, : dims["h"]] / scale
    return inputs, network.pick(dims)
