"""A diffusers folder to a bundle: fp16 weights, configs and tokenizer, ONNX graphs that point into the weights, and a
manifest that seals every file and certifies every graph against torch."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hotloop.bundle import SCHEMA_VERSION, sha256
from hotloop.errors import BundleError, InputError
from hotloop.nets.base import Net
from hotloop.nets.clip import CLIPText
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL, TinyVAE
from hotloop.spec import Family, Network, Schedule
from hotloop.spec import family as family_row

from .onnx import PARTS, difference, export_network, load_part, reference, sample_inputs

__all__ = ["DEFAULTS", "TOLERANCE", "write_bundle"]

# The largest |ONNX Runtime - torch| a bundle may have, in fp32.
TOLERANCE = 1e-4
# What a pipeline does when it is told nothing: the habits of stock diffusers.
DEFAULTS: Mapping[str, Any] = {"sampler": "plms", "num_inference_steps": 50, "guidance_scale": 7.5}
_SEED = 20240229
_CERTIFIED_CELLS = 32
_TOOLS = ("onnx", "onnxruntime", "onnxscript", "torch")
_COPIED = ("tokenizer/*", "scheduler/scheduler_config.json", "LICENSE*", "*.md")
_REQUIRED = ("model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json")


def write_bundle(source: Path, out: Path, *, family: str, defaults: Mapping[str, Any] | None = None) -> Path:
    """Export the diffusers folder `source` as the bundle `out`; returns `out`.

    family     the row of hotloop.spec that the checkpoint belongs to
    defaults   what a pipeline does when told nothing: sampler, num_inference_steps, guidance_scale

    The bundle is made in a temporary folder beside `out` and takes its place only when it is complete: a bundle that
    was there is kept until then. Raises InputError for an unknown family or an `out` that is something else, and
    BundleError for a source that lacks files, does not fit the family or differs from torch by more than TOLERANCE.
    """
    source, out = Path(source), Path(out)
    row = family_row(family)
    settings = {**DEFAULTS, **(defaults or {})}
    if unknown := sorted(set(settings) - set(DEFAULTS)):
        raise InputError("export.defaults", "keys must be among " + ", ".join(DEFAULTS), unknown)
    if out.exists() and not ((out / "manifest.json").is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise InputError("export.out", "must be a bundle to replace, an empty folder or a new name", str(out))
    for name in _REQUIRED:
        if not (source / name).is_file():
            raise BundleError("export", f"source must hold {name}", str(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        work.chmod(0o755)
        _fill(work, source, row=row, defaults=settings)
        _put(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _fill(work: Path, source: Path, *, row: Family, defaults: Mapping[str, Any]) -> None:
    _copy(source, work)
    for part in {part.folder: part for part in PARTS.values()}.values():
        load_part(source, part).save(work / part.folder)
    nets = {name: load_part(work, part) for name, part in PARTS.items()}  # the weights as rounded
    row, constants = _constants(nets, _read(work / "scheduler" / "scheduler_config.json"), row=row)
    networks, certificate = {}, {}
    for name, part in PARTS.items():
        folder = work / part.folder
        export_network(nets[name], part, row.networks[name], folder / part.graph)
        certificate[name] = _certify(nets[name], name, row=row, folder=folder)
        weights = f"{part.folder}/{nets[name].stem}.safetensors"
        networks[name] = {"path": f"{part.folder}/{part.graph}", "weights": weights}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "family": row.name,
        "constants": constants,
        "defaults": dict(defaults),
        "groups": {name: [] for name in PARTS},
        "networks": networks,
        "engines": [{"kind": "onnx", "precision": "fp32", "weights": "fp16", "networks": sorted(PARTS)}],
        "certificate": {
            "reference": "torch, fp32, on the bundle's own weights", "measure": "max |difference|",
            "tolerance": TOLERANCE, "seed": _SEED, "networks": certificate,
        },
        "made_with": {package: version(package).split("+")[0] for package in _TOOLS},
        "files": {
            path.relative_to(work).as_posix(): sha256(path) for path in sorted(work.rglob("*")) if path.is_file()
        },
    }  # fmt: skip
    (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError("export", f"{path.name} must be readable JSON ({error})", str(path)) from error
    if not isinstance(value, dict):
        raise BundleError("export", f"{path.name} must hold a JSON object", type(value).__name__)
    return value


def _copy(source: Path, work: Path) -> None:
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            target = work / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    # Stock loaders insist on every component the index names; what a bundle does not carry is named as absent.
    kept = {part.folder for part in PARTS.values()} | {"tokenizer", "scheduler"}
    index = {
        key: [None, None] if isinstance(value, list) and key not in kept else value
        for key, value in _read(source / "model_index.json").items()
    }
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    (work / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _constants(nets: Mapping[str, Net], scheduler: Mapping[str, Any], *, row: Family) -> tuple[Family, dict[str, Any]]:
    """The family's row with this checkpoint's own constants, and those constants as the manifest lists them."""
    unet, vae, text = nets["unet"], nets["vae_decoder"], nets["text_encoder"]
    assert isinstance(unet, UNet) and isinstance(vae, AutoencoderKL | TinyVAE) and isinstance(text, CLIPText)
    for name, found in (
        ("latent_channels", vae.latent_channels),
        ("unet_channels", unet.in_channels),
        ("context_dim", unet.context_dim),
        ("context_dim", text.width),
    ):
        if found != getattr(row, name):
            raise BundleError("export", f"{name} of the family {row.name} is {getattr(row, name)}", found)
    constants: dict[str, Any] = {
        "vae_factor": vae.factor,
        "grid": vae.factor,
        "scaling_factor": vae.config.get("scaling_factor", row.scaling_factor),
        "vocab_tokens": text.tokens,
        "schedule": {key: scheduler[key] for key in Schedule.__dataclass_fields__ if key in scheduler},
    }
    if cells := unet.config.get("sample_size"):
        height, width = (cells, cells) if isinstance(cells, int) else cells
        constants["default_size"] = [width * vae.factor, height * vae.factor]
    return row.with_constants(constants), constants


def _certify(net: Net, name: str, *, row: Family, folder: Path) -> dict[str, Any]:
    """The graph in ONNX Runtime against the torch module on seeded inputs, not square and not a power of two."""
    part, network = PARTS[name], row.networks[name]
    width, height = (min(side, _CERTIFIED_CELLS * row.vae_factor) for side in row.default_size)
    dims = row.dims(width=width, height=height - row.vae_factor, batch=2)
    inputs = sample_inputs(network, dims, seed=_SEED, ids=getattr(net, "vocabulary", 1))
    worst = difference(folder / part.graph, inputs, reference(net, part, network, inputs))
    if not worst <= TOLERANCE:
        raise BundleError("export", f"{name} in ONNX Runtime must be within {TOLERANCE} of torch", worst)
    return {"max_abs": float(f"{worst:.1e}"), "dims": {key: dims[key] for key in _symbols(network)}}


def _symbols(network: Network) -> list[str]:
    return sorted({d for tensor in network.inputs for d in tensor.shape if isinstance(d, str)})


def _put(work: Path, out: Path) -> None:
    """Rename `work` to `out`; the bundle that was there goes only once the new one stands in its place."""
    if not out.exists():
        work.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)
    try:
        work.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
