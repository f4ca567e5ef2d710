"""A checkpoint to a bundle: weights, graphs, engines, reference and certificates, sealed by a manifest."""

from __future__ import annotations

import gc
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotloop import __version__, samplers
from hotloop.adapters.embedding import open_embedding
from hotloop.adapters.lora import Lora, Scaled, merge
from hotloop.bundle import SCHEMA_VERSION, Bundle, write_manifest
from hotloop.errors import BundleError, InputError
from hotloop.files import MOST_TEXT, read_file, read_json, sha256
from hotloop.nets import rewrites
from hotloop.nets.base import Net
from hotloop.nets.clip import CLIPText
from hotloop.nets.unet import UNet
from hotloop.nets.vae import AutoencoderKL, TinyVAE
from hotloop.samplers.schedule import Schedule
from hotloop.spec import Family, ScheduleConstants
from hotloop.spec import family as family_row
from hotloop.weights import Weights

from .embeddings import add_embeddings
from .engines import BUILDERS, Making
from .hashes import file_sha256
from .onnx import PARTS
from .progress import Progress
from .recipe import DEFAULTS, Recipe, Target
from .reference import ModuleEngine, images_for, write_reference
from .sources import Source, open_source
from .store import Store, beside, check_place, code_version, copy, full_disk_is_one_line, key_of, put, swap

__all__ = ["Lazy", "Outcome", "add_engines", "hashes", "kept_or_made", "seal", "versions", "write_bundle",
           "write_weights"]  # fmt: skip

_TOOLS = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch")
_ENGINE_TOOLS: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino",), "tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx",),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """path of the bundle, its key, whether the cache had it, and what every stage took (name, seconds, peak bytes)."""

    path: Path
    key: str
    hit: bool
    stages: list[tuple[str, float, float]]


def write_bundle(
    recipe: Recipe, out: Path, *, store: Store | None = None, rehash: bool = False,
    say: Callable[[str], None] | None = None,
) -> Outcome:  # fmt: skip
    """Make the bundle `out` after a recipe, or take it from the cache.

    rehash  hash the source and a cached bundle anew, whatever is remembered
    say     called with a line at the beginning and end of every stage

    The bundle is made in the cache and appears at `out` by one rename: what was there is kept until then, and an
    exporter that is killed leaves nothing to be seen. Raises InputError for a recipe that does not fit the source or an
    `out` that is something else than a bundle; BundleError for a damaged source, an engine that breaks a bound of
    `hotloop.evaluation.certificates.BOUNDS` (named with its worst layer), and a full disk.
    """
    shown, out = out, out.resolve()
    check_place(out, inputs=_inputs(recipe))
    progress = Progress(say)
    with progress.stage("hash and open the source"):
        source = open_source(
            recipe.source, family=recipe.family, prediction=recipe.prediction, tokenizer=recipe.tokenizer,
            variant=recipe.variant, vae=recipe.vae, rehash=rehash,
        )  # fmt: skip
        _check_manner(recipe, source)
        for line in [*source.repairs, *_told(recipe, source)]:
            progress.say(line)
        recipe = _with_own_groups(recipe, source)
        parts = _parts(recipe, source, rehash=rehash)
        key = key_of(parts)
    store = store or Store()

    def make(work: Path) -> None:
        _check_space(work, source)
        _make(work, recipe, source, parts, key, store, progress)

    return kept_or_made(shown, key, make, store=store, rehash=rehash, progress=progress)


def kept_or_made(
    shown: Path, key: str, make: Callable[[Path], None], *, store: Store, rehash: bool, progress: Progress
) -> Outcome:
    """The bundle of a key at `shown`: what is there, or in the cache, or what `make` fills a folder with."""
    out = shown.resolve()
    if store.holds(out, key, rehash=rehash):
        return Outcome(shown, key, True, progress.stages)
    with full_disk_is_one_line(out):
        found = store.find(key, rehash=rehash)
        hit = found is not None
        if found is None:
            waiting = f"another process is exporting the same bundle ({key[:12]}); waiting for it"
            with store.making(key, waiting=lambda: progress.say(waiting)) as work:
                found = store.find(key)  # by the process that was waited for
                hit = found is not None
                if found is None:
                    make(work)
                    found = store.keep(work, key)
        put(found, out)
        store.stamp(out)
    return Outcome(shown, key, hit, progress.stages)


def _inputs(recipe: Recipe) -> list[Path]:
    """The files and folders that an export reads."""
    others = [recipe.tokenizer, recipe.vae, *(path for path, _ in (*recipe.loras, *recipe.embeddings))]
    return [recipe.source, *(Path(path) for path in others if path is not None and Path(path).exists())]


def _parts(recipe: Recipe, source: Source, *, rehash: bool) -> dict[str, Any]:
    """All that decides the bundle's bytes."""
    settings = _settings(recipe, source)
    return {
        "hotloop": __version__,
        "code": code_version(),
        "schema": SCHEMA_VERSION,
        "family": source.family,
        "sources": source.provenance + _provenance(recipe, rehash=rehash),
        "scheduler": dict(source.scheduler),
        "targets": [asdict(target) for target in recipe.targets],
        "rewrites": sorted(recipe.rewrites),
        "groups": sorted(recipe.groups),
        "shapes": recipe.shapes if any("tensorrt" in target.kind for target in recipe.targets) else (),
        "batches": recipe.batches if any("tensorrt" in target.kind for target in recipe.targets) else (),
        "keep_fp32": recipe.keep_fp32,
        "certify": recipe.certify,
        "defaults": settings,
        "tools": versions(recipe.targets),
        "machine": sorted({BUILDERS[target.kind].machine(target) for target in recipe.targets}),
    }


def _settings(recipe: Recipe, source: Source) -> dict[str, Any]:
    """The bundle's defaults: as asked, else those of a source that is a bundle itself, else as the checkpoint is meant
    to be drawn, else diffusers' habits."""
    try:
        own = json.loads(read_file(Path(recipe.source) / "manifest.json", most=MOST_TEXT))["defaults"]
        known = {key: own[key] for key in DEFAULTS if key in own}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        known = {}
    return {**DEFAULTS, **source.manner.defaults, **known, **recipe.defaults}


def _check_manner(recipe: Recipe, source: Source) -> None:
    """Warns of a sampler that stands in for the checkpoint's own. Raises InputError where the default cannot be
    compiled with the options that the scheduler's file gives."""
    settings, missed = _settings(recipe, source), source.manner.missed
    if missed and settings["sampler"] == source.manner.defaults["sampler"] and "sampler" not in recipe.defaults:
        message = f"[export] there is no sampler for {missed}: {settings['sampler']} stands in, images differ"
        warnings.warn(message, stacklevel=3)
    schedule = Schedule.from_config(source.scheduler, family_row(source.family).schedule)
    try:
        samplers.build(settings["sampler"], schedule, settings["num_inference_steps"])
    except InputError as error:
        rule = f"the default sampler must fit the scheduler's file: {error}; name another (--sampler, --steps)"
        raise InputError("export", rule) from error


def _told(recipe: Recipe, source: Source) -> list[str]:
    """What the bundle's defaults follow where they are not the usual ones."""
    settings, reason = _settings(recipe, source), source.manner.reason
    if not reason or any(settings[key] != value for key, value in source.manner.defaults.items()):
        return []
    return [f"defaults: {', '.join(f'{key} {value}' for key, value in settings.items())} ({reason})"]


def _with_own_groups(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with the optional inputs that this UNet has weights for: at zero it would be another network."""
    if not source.configs["unet"].get("time_cond_proj_dim") or "timestep_cond" in recipe.groups:
        return recipe
    return replace(recipe, groups=(*recipe.groups, "timestep_cond"))


def _provenance(recipe: Recipe, *, rehash: bool) -> list[dict[str, Any]]:
    """Adapters and embeddings as the manifest lists them."""
    loras = [
        {"role": "lora", "name": path.name, "scale": scale, "sha256": Lora.open(path).sha256}
        for path, scale in recipe.loras
    ]
    words = [
        {"role": "embedding", "name": path.name, "token": word, "sha256": file_sha256(path, rehash=rehash)}
        for path, word in recipe.embeddings
    ]
    return loras + words


def versions(targets: Sequence[Target]) -> dict[str, str]:
    """What a bundle is made with. Raises InputError naming the extra to install for what is missing."""
    extras = {tool: "export" for tool in _TOOLS}
    for target in targets:
        extras |= dict.fromkeys(_ENGINE_TOOLS.get(target.kind, ()), target.kind.replace("_", "-"))
        if (target.kind, target.precision) == ("openvino", "int8"):
            extras["nncf"] = "int8"
    found = {}
    for tool, extra in sorted(extras.items()):
        try:
            found[tool] = version(tool).split("+")[0]
        except PackageNotFoundError as error:
            rule = f"{tool} is not installed: pip install '.[{extra}]' in hotloop's folder"
            raise InputError("export", rule) from error
    return found


def _check_space(work: Path, source: Source) -> None:
    """What is written is at most the weights in float32 and again as much of built engines."""
    weights = sum(
        int(np.prod(tensors.shape(name))) * 4 for tensors in source.tensors.values() for name in tensors
    )  # fmt: skip
    free = shutil.disk_usage(work).free
    if free < weights:
        need = f"{work.parent} must have {weights / 1e9:.1f} GB free to make this bundle (set HOTLOOP_CACHE elsewhere)"
        raise BundleError("export", need, f"{free / 1e9:.1f} GB")


def _make(
    work: Path, recipe: Recipe, source: Source, parts: Mapping[str, Any], key: str, store: Store, progress: Progress
) -> None:
    """Fill `work` with the bundle."""
    size = sum(tensors.nbytes(name) for tensors in source.tensors.values() for name in tensors) / 1e9
    # A tiny VAE that was asked for draws; one that merely lies in the source's folder is carried.
    tiny = recipe.vae is not None and "tiny_vae" in source.tensors
    settings = _settings(recipe, source) | ({"vae": "tiny"} if tiny else {})
    with progress.stage("read and merge weights", estimate=10 * size):
        nets = _nets(work, recipe, source)
        _copy(work, source)
        row, constants = _constants(nets, source)
        storage = write_weights(work, nets, recipe.targets)
    weights = {name: {"path": f"{name}/{net.stem}.safetensors"} for name, net in nets.items()}
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "key": key, "family": row.name, "constants": constants,
        "defaults": settings, "sources": parts["sources"], "weights": weights, "engines": [],
        "made_with": parts["tools"] | {"hotloop": __version__}, "files": hashes(work),
    }  # fmt: skip
    with progress.stage("reference in float32", estimate=25 * size):
        networks = row.plain(recipe.groups)
        modules = {
            name: ModuleEngine(nets[part.folder], networks[name])
            for name, part in PARTS.items() if part.folder in nets and name in networks
        }  # fmt: skip
        images = images_for(row, recipe.certify, settings)
        text = nets["text_encoder"]
        assert isinstance(text, CLIPText)
        manifest["parity"] = write_reference(Bundle(work, manifest, row), modules, images, vocabulary=text.vocabulary)
    making = Making(work, manifest, row, recipe, nets, storage, store, progress)
    making.write_graphs()
    nets.clear()
    modules.clear()
    gc.collect()
    making.build_and_certify(recipe.targets)
    seal(work, manifest)


def add_engines(
    path: Path, targets: Sequence[Target], *, shapes: Sequence[tuple[int, int]] = (), batches: tuple[int, int] = (1, 1),
    keep_fp32: tuple[str, ...] | str = (), store: Store | None = None, say: Callable[[str], None] | None = None,
) -> Outcome:  # fmt: skip
    """Build more engines, for this machine, into an existing bundle; an engine of the same name is replaced.

    They carry the rewrites and optional inputs of the engines that are there. Raises what `write_bundle` raises, and
    BundleError when the bundle was changed meanwhile; it then stays as it was.
    """
    shown, path = path, path.resolve()
    bundle = Bundle.open(path)
    first = bundle.entries[0]
    progress = Progress(say)
    recipe = Recipe(
        path, targets=tuple(targets), rewrites=first.rewrites, groups=first.groups, shapes=tuple(shapes),
        batches=batches, keep_fp32=keep_fp32,
    )  # fmt: skip
    with full_disk_is_one_line(path), beside(path) as work:
        copy(path, work)
        manifest = json.loads(json.dumps(bundle.manifest))
        made = {target.name for target in targets}
        manifest["engines"] = [e for e in manifest["engines"] if f"{e['kind']}-{e['precision']}" not in made]
        manifest["made_with"] |= versions(targets)
        nets = Lazy(work, manifest)
        making = Making(work, manifest, bundle.family, recipe, nets, _storage(bundle), store or Store(), progress)
        making.write_graphs()
        nets.clear()
        making.build_and_certify(targets)
        seal(work, manifest)
        if Bundle.open(path, verify=False).manifest != bundle.manifest:
            raise BundleError("build", "bundle must not change while an engine is built; build again", str(shown))
        swap(work, path)
    return Outcome(shown, manifest["key"], False, progress.stages)


def _storage(bundle: Bundle) -> str:
    """What a bundle's weights are kept in."""
    files = [bundle.file(entry["path"]) for entry in bundle.manifest["weights"].values()]
    return "fp32" if any(w.dtype(name) == "F32" for w in map(Weights.open, files) for name in w) else "fp16"


class Lazy(dict[str, Net]):
    """The networks of a bundle, read when a graph of theirs has to be made."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        super().__init__()
        self._folder, self._names = folder, tuple(manifest["weights"])

    def __missing__(self, name: str) -> Net:
        folder = self._folder / name
        self[name] = _class(name, read_json(folder / "config.json", place="export")).from_dir(folder)
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _nets(work: Path, recipe: Recipe, source: Source) -> dict[str, Net]:
    """Every network in float32 with adapters merged and embeddings added; the tokenizer is written on the way."""
    words = [open_embedding(path, token=word) for path, word in recipe.embeddings]
    scaled = [Scaled(Lora.open(path), scale) for path, scale in recipe.loras]
    adapted = {name: source.tensors[name] for name in ("unet", "text_encoder")}
    changed = merge(scaled, adapted) if scaled else {}
    (work / "tokenizer").mkdir()
    for file in source.tokenizer_files:
        shutil.copyfile(file, work / "tokenizer" / file.name)
    nets = {}
    for name, tensors in source.tensors.items():
        own: dict[str, np.ndarray] = {**tensors, **changed.pop(name, {})}
        config = source.configs[name]
        if name == "text_encoder" and words:
            table = next(key for key in own if key.endswith("token_embedding.weight"))
            own[table] = add_embeddings(source.tokenizer, own[table], words, work / "tokenizer")
            config = {**config, "vocab_size": len(own[table])}
        nets[name] = _class(name, config).from_tensors(config, own)
    return nets


def _class(component: str, config: Mapping[str, Any]) -> type[Net]:
    return next(part for part in PARTS.values() if part.folder == component).choose(config)


def write_weights(work: Path, nets: Mapping[str, Net], targets: Sequence[Target]) -> str:
    """Store the weights; float32 only where float16 would lose bits that an fp32 engine promises to have."""
    exact = any(target.precision == "fp32" for target in targets)
    wide = exact and not all(_fits_half(value) for net in nets.values() for value in net.state_dict().values())
    for name, net in nets.items():
        net.save(work / name, dtype=torch.float32 if wide else torch.float16)
    return "fp32" if wide else "fp16"


def _fits_half(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or torch.equal(value.half().float(), value)


def _copy(work: Path, source: Source) -> None:
    (work / "scheduler").mkdir()
    for name, value in (("scheduler/scheduler_config.json", source.scheduler), ("model_index.json", source.index)):
        (work / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    for file in source.extras:
        shutil.copyfile(file, work / file.name)


def _constants(nets: Mapping[str, Net], source: Source) -> tuple[Family, dict[str, Any]]:
    """The family's row with this checkpoint's own constants, and those constants as the manifest lists them."""
    row = family_row(source.family)
    unet, vae, text = nets["unet"], nets["vae"], nets["text_encoder"]
    assert isinstance(unet, UNet) and isinstance(vae, AutoencoderKL | TinyVAE) and isinstance(text, CLIPText)
    for name, found in (
        ("latent_channels", vae.latent_channels),
        ("unet_channels", unet.in_channels),
        ("context_dim", unet.context_dim),
        ("context_dim", text.width),
    ):
        if found != getattr(row, name):
            raise BundleError("export", f"{name} of the family {row.name} is {getattr(row, name)}", found)
    if "tiny_vae" in nets and (tiny := nets["tiny_vae"]) and tiny.latent_channels != vae.latent_channels:
        raise BundleError("export", f"the tiny VAE's latents must have {vae.latent_channels} channels")
    constants: dict[str, Any] = {
        "vae_factor": vae.factor,
        "grid": vae.factor,
        "scaling_factor": vae.config.get("scaling_factor", row.scaling_factor),
        "vocab_tokens": text.tokens,
        **rewrites.constants(unet),
        "schedule": {
            key: source.scheduler[key] for key in ScheduleConstants.__dataclass_fields__ if key in source.scheduler
        },
    }
    if faces := _faces(nets):
        constants["faces"] = faces
    if cells := unet.config.get("sample_size"):
        height, width = (cells, cells) if isinstance(cells, int) else cells
        constants["default_size"] = [width * vae.factor, height * vae.factor]
    return row.with_constants(constants), constants


def _faces(nets: Mapping[str, Net]) -> dict[str, Any]:
    """What the networks around the model decide of `hotloop.spec.FaceConstants`; they must agree."""
    found: dict[str, Any] = {}
    for net in nets.values():
        for name, value in net.constants().items():
            if found.setdefault(name, value) != value:
                rule = f"{name} must be alike in all networks, is {found[name]} and in {net.class_name}"
                raise BundleError("export", rule, value)
    return found


def seal(work: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, with a hash of every file in the folder."""
    manifest["files"] = hashes(work)
    write_manifest(work, manifest)


def hashes(work: Path) -> dict[str, str]:
    """File name in the folder -> SHA-256, of all but the manifest."""
    files = sorted(path for path in work.rglob("*") if path.is_file() and path != work / "manifest.json")
    return {path.relative_to(work).as_posix(): sha256(path) for path in files}
