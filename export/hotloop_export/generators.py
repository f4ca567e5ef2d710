"""A generator to a bundle: a folder of a class that hotloop knows, or somebody's ONNX file.

    FOLDER/config.json, model.safetensors            a class of `hotloop.nets.generators`, named in the config
    FOLDER/generator/..., FOLDER/critic/...          the same, and the critic that it was trained with
    my.onnx                                          one latent (and a label or condition) in, one image out

What comes out is a bundle like any other: graphs, engines, certificates, a seal.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hotloop import __version__
from hotloop.bundle import SCHEMA_VERSION, Bundle
from hotloop.engines import Engine
from hotloop.errors import BundleError, InputError
from hotloop.files import read_json
from hotloop.nets.base import Net
from hotloop.nets.generators import GENERATORS, Critic, Generator, constants
from hotloop.nets.parts import PARTS
from hotloop.spec import FAMILIES, GeneratorFamily
from hotloop.weights import Weights

from .bundle import Lazy, Outcome, hashes, kept_or_made, seal, versions, write_weights
from .engines import BUILDERS, Making
from .hashes import file_sha256
from .onnx_generator import OnnxGenerator, open_onnx
from .progress import Progress
from .recipe import Recipe
from .reference import ModuleEngine, latents_for, write_latent_reference
from .store import Store, check_place, code_version, key_of

__all__ = ["Told", "is_generator", "read_generator", "write_generator"]

_PLACE = "export"
_GRAPH_KINDS = ("onnx", "openvino")  # that an ONNX file can become
# What a recipe says of a checkpoint only.
_CHECKPOINTS = ("rewrites", "groups", "loras", "embeddings", "vae", "family", "prediction", "tokenizer", "variant",
                "shapes", "batches", "defaults")  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What a source does not say itself.

    value_range  "-1,1" or "0,1": of an ONNX file's pixels
    size         (width, height) of one that draws flat rows
    labels       attribute -> names of its classes; or how many classes there are
    controls     names of the condition's numbers; c0, c1... by default
    """

    value_range: str | None = None
    size: tuple[int, int] | None = None
    labels: Mapping[str, list[str]] | int = 0
    controls: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return self.labels if isinstance(self.labels, int) else sum(map(len, self.labels.values()))

    @property
    def names(self) -> dict[str, list[str]]:
        return {} if isinstance(self.labels, int) else dict(self.labels)


@dataclass(frozen=True)
class _Source:
    """nets: by folder; or graph. files: (role, file) of all that was read."""

    family: GeneratorFamily
    constants: dict[str, Any]
    defaults: dict[str, Any]
    files: list[tuple[str, Path]]
    nets: Mapping[str, Net] = field(default_factory=dict)
    graph: OnnxGenerator | None = None


def is_generator(path: Path) -> bool:
    """Whether a source is a generator's, not a checkpoint's: an ONNX file, or a folder with the config of a network."""
    if path.is_dir():
        return not (path / "model_index.json").is_file() and (_folder(path) / "config.json").is_file()
    return path.suffix.lower() == ".onnx"


def write_generator(
    recipe: Recipe, out: Path, told: Told | None = None, *, store: Store | None = None, rehash: bool = False,
    say: Callable[[str], None] | None = None,
) -> Outcome:  # fmt: skip
    """As `bundle.write_bundle`, of a generator: of the recipe source, targets, keep_fp32 and certify count.

    Raises InputError for a source that is none or needs to be told more, BundleError for damaged weights and for an
    engine that breaks a bound of `hotloop.evaluation.certificates.BOUNDS`.
    """
    told = told or Told()
    plain = Recipe(recipe.source)
    for name in _CHECKPOINTS:
        if getattr(recipe, name) not in (getattr(plain, name), ()):
            raise InputError(_PLACE, f"a generator takes no {name}", getattr(recipe, name))
    check_place(out.resolve(), inputs=[recipe.source])
    progress = Progress(say)
    with progress.stage("hash and open the source"):
        source = _open(recipe, told)
        parts: dict[str, Any] = {
            "hotloop": __version__, "code": code_version(), "schema": SCHEMA_VERSION, "family": source.family.name,
            "constants": source.constants, "defaults": source.defaults, "range": told.value_range,
            "sources": [
                {"role": role, "name": file.name, "format": file.suffix[1:], "sha256": file_sha256(file, rehash=rehash)}
                for role, file in source.files
            ],
            "targets": [asdict(target) for target in recipe.targets], "keep_fp32": recipe.keep_fp32,
            "certify": recipe.certify, "tools": versions(recipe.targets),
            "machine": sorted({BUILDERS[target.kind].machine(target) for target in recipe.targets}),
        }  # fmt: skip
        key = key_of(parts)
    kept = store or Store()
    return kept_or_made(
        out, key, lambda work: _make(work, recipe, source, parts, key, kept, progress), store=kept, rehash=rehash,
        progress=progress,
    )  # fmt: skip


def read_generator(path: Path) -> tuple[Generator, list[Path]]:
    """The network of a folder, in float32, and its files. Raises InputError for another class, BundleError for weights
    that are not its."""
    folder = _folder(path)
    config = read_json(folder / "config.json", place=_PLACE)
    name = str(config.get("_class_name"))
    if name not in GENERATORS:
        rule = f"config.json of {path.name} must name a generator in _class_name: {', '.join(GENERATORS)}"
        raise InputError(_PLACE, f"{rule} (a checkpoint of diffusers has a model_index.json)", name)
    file = _weights(folder)
    return GENERATORS[name].from_tensors(config, Weights.open(file)), [folder / "config.json", file]


def _folder(path: Path) -> Path:
    """Where in a source the generator lies."""
    return path / "generator" if (path / "generator").is_dir() else path


def _weights(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if pickled := sorted(file for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".ckpt", ".pth")):
        Weights.open(pickled[0])  # refuses it by what it is
    raise InputError(_PLACE, f"{folder.name} must hold one .safetensors file", [file.name for file in found])


def _open(recipe: Recipe, told: Told) -> _Source:
    path = Path(recipe.source)
    if path.suffix.lower() == ".onnx" and not path.is_dir():
        if other := sorted({target.name for target in recipe.targets if target.kind not in _GRAPH_KINDS}):
            raise InputError(_PLACE, f"an ONNX file becomes engines of {' and '.join(_GRAPH_KINDS)}", other)
        graph = open_onnx(
            path, value_range=told.value_range, size=told.size, classes=told.classes, controls=len(told.controls)
        )
        own = graph.family
        sizes = {name: getattr(own, name) for name in ("z_width", "classes", "controls", "image_channels")}
        found: dict[str, Any] = {name: size for name, size in sizes.items() if size}
        found["default_size"] = list(own.default_size)
        files = [("generator", file) for file in graph.files]
        controls = told.controls or tuple(f"c{i}" for i in range(own.controls))
        return _Source(own, found, _defaults(told.names, controls), files, graph=graph)
    if told.value_range not in (None, "-1,1") or told.size is not None or told.controls:
        rule = "range, size and names of controls are for ONNX files: a folder's class says its own"
        raise InputError(_PLACE, rule, path.name)
    net, mine = read_generator(path)
    found = constants(net)
    row = FAMILIES["generator"].with_constants(found)
    assert isinstance(row, GeneratorFamily)
    names = told.names or net.config.get("labels") or {}
    if not _fit(names, row.classes) or told.classes not in (0, row.classes):
        rule = f"labels must name the {row.classes} classes of {type(net).__name__}" if row.classes else (
            f"this {type(net).__name__} takes no labels")  # fmt: skip
        raise InputError(_PLACE, rule, told.classes or names)
    nets: dict[str, Net] = {"generator": net}
    files = [("generator", file) for file in mine]
    if (path / "critic").is_dir():
        critic, its = _critic(path / "critic", row)
        nets["critic"] = critic
        files += [("critic", file) for file in its]
    return _Source(row, found, _defaults(names, ()), files, nets=nets)


def _fit(names: object, classes: int) -> bool:
    return isinstance(names, dict) and len(names) <= 1 and all(
        isinstance(each, list) and len(set(map(str, each))) == classes and all(isinstance(one, str) for one in each)
        for each in names.values()
    )  # fmt: skip


def _defaults(names: Mapping[str, list[str]], controls: tuple[str, ...]) -> dict[str, Any]:
    return ({"labels": dict(names)} if names else {}) | ({"controls": list(controls)} if controls else {})


def _critic(folder: Path, row: GeneratorFamily) -> tuple[Critic, list[Path]]:
    config, file = read_json(folder / "config.json", place=_PLACE), _weights(folder)
    if config.get("_class_name") != Critic.class_name:
        raise InputError(_PLACE, f"critic must be {Critic.class_name}", config.get("_class_name"))
    critic = Critic.from_tensors(config, Weights.open(file))
    sees = (critic.size, critic.size), critic.channels, critic.classes.num_embeddings if critic.classes else 0
    if sees != (drawn := (row.default_size, row.image_channels, row.classes)):
        raise BundleError(_PLACE, f"critic must see what is drawn: size, channels and classes {drawn}", sees)
    return critic, [folder / "config.json", file]


def _make(
    work: Path, recipe: Recipe, source: _Source, parts: Mapping[str, Any], key: str, store: Store, progress: Progress
) -> None:
    """Fill `work` with the bundle."""
    family = source.family
    with progress.stage("write weights"):
        if source.graph is not None:
            storage, weights = source.graph.write(work / "generator"), {"generator": "generator/model.safetensors"}
        else:
            storage = write_weights(work, source.nets, recipe.targets)
            weights = {name: f"{name}/{net.stem}.safetensors" for name, net in source.nets.items()}
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "key": key, "family": family.name, "constants": source.constants,
        "defaults": source.defaults, "sources": parts["sources"],
        "weights": {name: {"path": path} for name, path in weights.items()}, "engines": [],
        "made_with": parts["tools"] | {"hotloop": __version__}, "files": hashes(work),
    }  # fmt: skip
    with progress.stage("reference in float32"):
        engines: dict[str, Engine] = {
            name: source.graph.engine(row) if source.graph else ModuleEngine(source.nets[PARTS[name].folder], row)
            for name, row in family.networks.items()
            if PARTS[name].folder in weights
        }
        images = latents_for(family, recipe.certify)
        manifest["parity"] = write_latent_reference(Bundle(work, manifest, family), engines, images)
    # A graph that came as one is there already; the others are traced.
    nets = source.nets or Lazy(work, manifest)
    plain = Recipe(recipe.source, recipe.targets, (), keep_fp32=recipe.keep_fp32, certify=recipe.certify)
    making = Making(work, manifest, family, plain, nets, storage, store, progress)
    making.write_graphs()
    engines.clear()
    gc.collect()
    making.build_and_certify(recipe.targets)
    seal(work, manifest)
