"""Is an engine still the model? Its networks and images against the fp32 reference that lies in the bundle.

The reference was computed by the networks in torch, in float32, from the checkpoint's own weights with the adapters
merged. Checking needs neither torch nor the checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import samplers
from ..bundle import BUILT_NEVER_RUN, CERTIFIED, Bundle, Entry, write_manifest
from ..errors import BundleError, InputError
from ..spec import WEIGHTED, GeneratorFamily, Network, resolve
from ..weights import Weights
from .metrics import psnr

if TYPE_CHECKING:
    from ..generator import Generator
    from ..pipeline import Pipeline, Result
    from ..selection import Choice

__all__ = ["BOUNDS", "Bound", "Figures", "Images", "Latents", "broken", "certify", "compare", "dims_of", "evaluate",
           "opened", "update_certificates", "verify"]  # fmt: skip

# dB that stand for equal images: less than a thousandth of a level.
_EQUAL = 100.0


@dataclass(frozen=True)
class Bound:
    """What a precision must hold: largest |difference| and smallest cosine per network, smallest PSNR of an image."""

    max_abs: float = math.inf
    cosine: float = -1.0
    psnr: float = 0.0


BOUNDS: Mapping[str, Bound] = {
    "fp32": Bound(max_abs=1e-4, psnr=50.0),
    "fp16": Bound(cosine=0.9995, psnr=40.0),
    "bf16": Bound(cosine=0.999),
    "int8": Bound(cosine=0.99),
}


@dataclass(frozen=True)
class Figures:
    """How far a network's outputs are from the reference: max and mean |difference|, cosine; the worst output's."""

    max_abs: float
    mean_abs: float
    cosine: float


@dataclass(frozen=True)
class Images:
    """How the images that engines are compared by are drawn."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    size: tuple[int, int]
    sampler: str
    guidance: float

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Images:
        """From a manifest. Raises BundleError when it is not whole."""
        try:
            width, height = stored["size"]
            images = cls(
                tuple(stored["prompts"]), tuple(stored["seeds"]), stored["steps"], (width, height), stored["sampler"],
                stored["guidance"],
            )  # fmt: skip
            if len(images.prompts) != len(images.seeds):
                raise ValueError("every prompt must have a seed")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError("parity", f"images in manifest.json must be whole: {error}") from error
        return images

    def draw(self, pipe: Pipeline) -> Iterator[Result]:
        """One image with its latents for each prompt. Inpainting networks repaint the middle of a colour ramp."""
        width, height = self.size
        common = dict(
            num_inference_steps=self.steps, sampler=self.sampler, guidance_scale=self.guidance, width=width,
            height=height,
        )  # fmt: skip
        for prompt, seed in zip(self.prompts, self.seeds, strict=True):
            if pipe.family.inpaint_channels:
                image, mask = _ramp(width, height)
                result = pipe.inpaint(prompt, image=image, mask_image=mask, seed=seed, paste=False, **common)  # type: ignore[arg-type]
            else:
                result = pipe.txt2img(prompt, seed=seed, **common)  # type: ignore[arg-type]
            yield result

    def pictures(self, pipe: Pipeline) -> list[np.ndarray]:
        """uint8 [H, W, 3] each."""
        return [np.asarray(result.images[0]) for result in self.draw(pipe)]

    def stored(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Latents:
    """How the pictures that a generator's engines are compared by are drawn. labels: none without classes."""

    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    size: tuple[int, int]

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Latents:
        """From a manifest. Raises BundleError when it is not whole."""
        try:
            width, height = stored["size"]
            return cls(tuple(stored["seeds"]), tuple(stored["labels"]), (width, height))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError("parity", f"images in manifest.json must be whole: {error}") from error

    def pictures(self, generator: Generator) -> list[np.ndarray]:
        """uint8 [H, W, 3] each."""
        return list(generator.generate(self.seeds, label=self.labels or None))

    def stored(self) -> dict[str, Any]:
        return asdict(self)


def opened(bundle: Bundle, choice: Choice, *, keep_compiled: bool = True, vae: str | None = None) -> Any:
    """What draws with an engine of a bundle: its pipeline or its generator. vae: as in `hotloop.load`."""
    from ..generator import Generator
    from ..pipeline import Pipeline

    if isinstance(bundle.family, GeneratorFamily):
        return Generator(bundle, choice=choice, keep_compiled=keep_compiled)
    return Pipeline(bundle, choice=choice, vae=vae, keep_compiled=keep_compiled)


def compare(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> Figures:
    """The worst figures over all outputs; NaN where an output is."""
    rows = []
    for name, expected in want.items():
        a, b = got[name].astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        difference = np.abs(a - b)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        # Two outputs of nothing but zeros are the same direction.
        cosine = float(a @ b) / norms if norms else float(np.array_equal(a, b))
        rows.append((float(difference.max()), float(difference.mean()), cosine))
    worst = np.array(rows).T
    return Figures(float(np.max(worst[0])), float(np.max(worst[1])), float(np.min(worst[2])))


def evaluate(
    pipe: Pipeline | Generator, name: str, inputs: Mapping[str, np.ndarray], dims: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """What the engines of a pipeline or generator give for a network of the family's plain row.

    The UNet is asked as the loop asks it, so a split one runs with its prompt and time networks: inputs are sample
    [2N, C, h, w] and timestep [2N], both halves alike, and context [2N, T, D], the unconditional half first.
    """
    if name == "unet":
        return _evaluate_unet(cast("Pipeline", pipe), inputs)
    engine = pipe.networks[name]
    with engine.contexts.lease(**dims) as context:
        for tensor in engine.network.inputs:
            context.inputs[tensor.name][...] = inputs[tensor.name]
        context.run()
        return {tensor.name: context.outputs[tensor.name].copy() for tensor in engine.network.outputs}


def _evaluate_unet(pipe: Pipeline, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    n, channels = len(inputs["sample"]) // 2, pipe.family.latent_channels
    cond = {"negative_context": inputs["context"][:n], "context": inputs["context"][n:]}
    cond |= {name: inputs[name][:n] for name in WEIGHTED if name in inputs}
    if pipe.family.inpaint_channels:
        cond["extra"] = inputs["sample"][:n, channels:]
    x = np.ascontiguousarray(inputs["sample"][:n, :channels])
    # Any table will do that leaves its input as it is and has these timesteps.
    table = samplers.build("euler", pipe.schedule, n)
    table = replace(table, timesteps=inputs["timestep"][:n], c_in=np.ones(n, np.float32))
    with pipe.networks.denoiser() as denoiser:
        denoiser.begin(cond, table, x.shape)
        m_c, m_u = denoiser.step(x, np.arange(n, dtype=np.int32))
        assert m_u is not None
        return {"out": np.concatenate([m_u, m_c])}


def dims_of(network: Network, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The value of every symbol in a network's shapes, read from its inputs and outputs.

    Raises KeyError for one that is missing, ValueError for one of another shape.
    """
    tensors = (*network.inputs, *network.outputs)
    dims = {
        symbol: size
        for tensor in tensors
        for symbol, size in zip(tensor.shape, arrays[tensor.name].shape, strict=True)
        if isinstance(symbol, str)
    }
    for tensor in tensors:
        if (shape := resolve(tensor.shape, dims)) != (found := arrays[tensor.name].shape):
            raise ValueError(f"{tensor.name} must have the shape {shape}, has {found}")
    return dims


def certify(pipe: Pipeline | Generator) -> dict[str, Any]:
    """A certificate: the figures of every network of the engine that draws and the PSNR of every image.

    Raises BundleError when the bundle holds no reference, or one that is not of its networks.
    """
    stored = pipe.bundle.manifest["parity"]
    files = stored.get("files", {})
    networks = {}
    for name, row in pipe.family.plain(pipe.entry.groups).items():
        if name not in files or name not in pipe.entry.networks:
            continue
        reference = Weights.open(pipe.bundle.file(files[name]))
        inputs = {key.removeprefix("in."): reference[key] for key in reference if key.startswith("in.")}
        want = {key.removeprefix("out."): reference[key] for key in reference if key.startswith("out.")}
        try:
            dims = dims_of(row, inputs | want)
        except (KeyError, ValueError) as error:
            raise BundleError("parity", f"{files[name]} must hold inputs and outputs of {name}", str(error)) from error
        networks[name] = asdict(compare(evaluate(pipe, name, inputs, dims), want))
    if not networks or "images" not in files or "images" not in stored:
        raise BundleError("parity", "bundle must hold reference outputs", str(pipe.bundle.path))
    asked: Any = (Latents if isinstance(pipe.family, GeneratorFamily) else Images).read(stored["images"])
    images = Weights.open(pipe.bundle.file(files["images"]))
    width, height = asked.size
    for i in range(len(asked.seeds)):
        if str(i) not in images or images.shape(str(i)) != (height, width, 3):
            raise BundleError("parity", f"{files['images']} must hold an image of {width} x {height} named", str(i))
    for name in networks:  # images have another shape: what was compiled for the first would stand beside it in memory
        pipe.networks[name].contexts.clear()
    values = [min(_EQUAL, psnr(image, images[str(i)])) for i, image in enumerate(asked.pictures(pipe))]
    return {"networks": networks, "psnr": [round(value, 2) for value in values], "device": pipe.device}


def broken(certificate: Mapping[str, Any], entry: Entry) -> str | None:
    """The first bound of the entry's precision that a certificate breaks, in words; None when all hold.

    A network is held to the bound of what its arithmetic runs in, but not more tightly than its storage allows; an
    engine that calls itself fp32 has lost nothing in storage.
    """
    storage = "fp32" if entry.precision == "fp32" else entry.storage
    for name, figures in certificate["networks"].items():
        bound = BOUNDS[_loosest(entry.precision_of(name), storage)]
        if not figures["max_abs"] <= bound.max_abs:
            return f"{name}: max |difference| must be at most {bound.max_abs:g}, is {figures['max_abs']:.3g}"
        if not figures["cosine"] >= bound.cosine:
            return f"{name}: cosine must be at least {bound.cosine:g}, is {figures['cosine']:.6f}"
    least = BOUNDS[entry.precision].psnr
    for i, value in enumerate(certificate["psnr"]):
        if not value >= least:
            return f"image {i}: PSNR must be at least {least:g} dB, is {value:.1f}"
    return None


def verify(bundle: Bundle, *, engines: Sequence[str] = ()) -> dict[str, tuple[dict[str, Any] | None, str | None]]:
    """Certify every engine of a bundle that can run here again.

    engine name -> (certificate, what is wrong): a certificate that breaks a bound comes with the bound, an engine
    that cannot run here has none and the reason, one that does not open an empty one and the error. One that runs on
    several devices has its name for the fastest, "name on device" for the others. engines: names or kinds, all by
    default.

    Raises InputError for an engine that the bundle does not have, BundleError for a bundle without a reference.
    """
    from ..selection import Choice, candidates

    if unknown := sorted(set(engines) - {text for entry in bundle.entries for text in (entry.name, entry.kind)}):
        names = ", ".join(entry.name for entry in bundle.entries)
        raise InputError("verify", f"engine must be one this bundle was built with: {names}", unknown[0])
    able, unable = candidates(bundle)
    found: dict[str, tuple[dict[str, Any] | None, str | None]] = {}
    for entry, device in able:
        if engines and entry.name not in engines and entry.kind not in engines:
            continue
        name = f"{entry.name} on {device}" if entry.name in found else entry.name
        try:
            pipe = opened(bundle, Choice(entry, device, "asked for"))
            for network in entry.networks:
                pipe.networks[network]
        except BundleError as error:
            found[name] = ({}, str(error))
            continue
        certificate = certify(pipe)
        found[name] = (certificate, broken(certificate, entry))
    for name, reason in unable.items():
        entry = next(e for e in bundle.entries if e.name == name)
        if not engines or name in engines or entry.kind in engines:
            prefix = f"{entry.status}; " if entry.status == BUILT_NEVER_RUN else ""
            found[name] = (None, prefix + reason)
    return found


def update_certificates(bundle: Bundle, certificates: Mapping[str, Mapping[str, Any]]) -> None:
    """Write new certificates into the bundle's manifest, in one piece.

    Raises BundleError for a place that cannot be written.
    """
    manifest = json.loads(json.dumps(bundle.manifest))
    for entry in manifest["engines"]:
        made = certificates.get(f"{entry['kind']}-{entry['precision']}")
        if made is not None:
            entry["certificate"], entry["status"] = entry["certificate"] | dict(made), CERTIFIED
    try:
        write_manifest(bundle.path, manifest)
    except OSError as error:
        rule = f"certificates must be written into the bundle: {error.strerror}"
        raise BundleError("parity", rule, str(bundle.path)) from error


def _loosest(*precisions: str) -> str:
    return max(precisions, key=list(BOUNDS).index)


def _ramp(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    image = np.stack(np.broadcast_arrays(x, y, (x + y) / 2), axis=-1).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return image, mask
