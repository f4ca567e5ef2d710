"""What people really have, made one thing: a diffusers folder or a single file -> named tensors and full configs.

    source = open_source("v1-5-pruned-emaonly.safetensors", tokenizer="clip-tokenizer")
    source.family            "sd15"
    source.tensors["unet"]   {"conv_in.weight": array, ...}, read from the mapped file when asked for

Keys are those of the networks in `hotloop.nets`, whatever the file calls them (`hotloop.weights.keys`); no tensor is
read here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hotloop.errors import BundleError, InputError
from hotloop.files import read_json
from hotloop.spec import FAMILIES, Family
from hotloop.spec import family as family_row
from hotloop.tokenizer import Tokenizer
from hotloop.weights import Weights, keys

from . import configs, schedulers, vocabulary
from .hashes import file_sha256
from .schedulers import Manner

__all__ = ["TOKENIZER_FILES", "Source", "open_source"]

TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json", "added_tokens.json")
_PREDICTIONS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
# ModelSpec's architectures that tell what a model predicts; those of SD 1.x do not.
_ARCHITECTURES = ((r"-768-v\b", "v_prediction"), (r"-v2-(512|turbo)\b", "epsilon"))
_FOLDER, _FILE = "diffusers", "single-file"
_TINY = "AutoencoderTiny"
_EXTRAS = ("LICENSE*", "*.md")


@dataclass(frozen=True)
class Source:
    """A checkpoint ready to export.

    family      a row of `hotloop.spec.FAMILIES`
    format      "diffusers" or "single-file"
    configs     component -> its configuration, as diffusers and transformers write it
    tensors     component -> weights by the names `hotloop.nets` writes, read when asked for, of the dtype stored
    scheduler   a diffusers scheduler configuration, repaired as stock pipelines repair it on load
    manner      how it is meant to be drawn: sampler, steps, guidance
    repairs     a line for each thing that was repaired or taken from the file's own words
    tokenizer   a folder that holds vocab.json and merges.txt, perhaps among other things: see `tokenizer_files`
    extras      files to carry along: licence and notes
    index       model_index.json of what is written from it
    provenance  {role, name, format, sha256} of every file that was used

    Components: text_encoder, unet, vae; image_encoder, tiny_vae and those around a model of faces where there are any.
    """

    family: str
    format: str
    configs: Mapping[str, dict[str, Any]]
    tensors: Mapping[str, Weights]
    scheduler: Mapping[str, Any]
    manner: Manner
    repairs: list[str]
    tokenizer: Path
    extras: list[Path]
    index: Mapping[str, Any]
    provenance: list[dict[str, str]]

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's own files: its folder may hold others when it is the checkpoint's."""
        return _tokenizer_files(self.tokenizer)


@dataclass(frozen=True)
class _Component:
    stem: str
    classes: tuple[str, ...]
    table: Callable[[Iterable[str]], dict[str, keys.From]]
    optional: bool = False


_COMPONENTS = {
    "text_encoder": _Component("model", ("CLIPTextModel", "CLIPTextModelWithProjection"), keys.clip),
    "unet": _Component("diffusion_pytorch_model", ("UNet2DConditionModel",), keys.unet),
    "vae": _Component("diffusion_pytorch_model", ("AutoencoderKL", _TINY), keys.vae),
    "image_encoder": _Component("model", ("CLIPVisionModelWithProjection",), keys.clip_vision, True),
    "tiny_vae": _Component("diffusion_pytorch_model", (_TINY,), keys.tiny_vae, True),
}
# The networks around a model of faces, by component.
_FACES = {
    "segmenter": "Segmenter", "upscaler": "Upscaler", "clip_text": "TextTower", "clip_image": "ImageTower",
    "animator": "Animator", "motions": "Motions",
}  # fmt: skip
_COMPONENTS |= {
    name: _Component("diffusion_pytorch_model", (cls,), keys.plain, True) for name, cls in _FACES.items()
}


@dataclass(frozen=True)
class _Words:
    """What a single file says of itself, in empty tensors and in its metadata (Stability-AI/ModelSpec).

    prediction  epsilon or v_prediction; None where the file does not tell
    zero_snr    its schedule ends in pure noise (Lin et al. 2023)
    name        title and architecture
    """

    prediction: str | None = None
    zero_snr: bool = False
    name: str = ""


@dataclass
class _Draft:
    """A source while it is read. files: role -> those that were used."""

    place: Path
    format: str
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Weights] = field(default_factory=dict)
    files: dict[str, list[Path]] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None
    index: dict[str, Any] | None = None
    open_clip: bool = False
    words: _Words = field(default_factory=_Words)
    repairs: list[str] = field(default_factory=list)

    def put(self, component: str, config: dict[str, Any], tensors: Weights, files: list[Path]) -> None:
        self.configs[component], self.tensors[component], self.files[component] = config, tensors, files

    def drop(self, component: str) -> None:
        for held in (self.configs, self.tensors, self.files):
            held.pop(component, None)


def open_source(
    path: str | Path,
    *,
    family: str | None = None,
    prediction: str | None = None,
    tokenizer: str | Path | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    ema: bool = False,
    rehash: bool = False,
) -> Source:
    """Open a diffusers folder or a single `.safetensors` file of SD 1.x or 2.x, or one shaped like avatar-tiny.

    family      a row of `hotloop.spec`; detected from the tensors when not given, refused when they do not fit
    prediction  "epsilon" or "v_prediction" ("eps", "v"); else what the scheduler says, or the single file (`v_pred`,
                modelspec); for a file of SD 2.x that is silent, v with a warning, as diffusers has it
    tokenizer   a folder with vocab.json and merges.txt; single files have none of their own, so for them one is looked
                for beside the file, in `tokenizer/` first, then CLIP's vocabulary where `vocabulary` looks for it
    variant     which weights of a folder: "fp16" reads `diffusion_pytorch_model.fp16.safetensors` and its like
    vae         a VAE (folder or file, in diffusers' or LDM's layout) in place of the checkpoint's; or a tiny one
                (TAESD), which comes beside it; "tiny": the tiny one in or beside the source
    ema         the UNet's moving average instead of its plain weights, in single files that hold both
    rehash      hash every file anew, whatever is remembered

    Raises InputError for arguments that do not fit and for another kind of model, naming what it seems to be;
    BundleError for files that are missing, malformed, or pickles.
    """
    path = Path(path)
    if prediction is not None and prediction not in _PREDICTIONS:
        raise InputError("export", "prediction must be epsilon or v_prediction", prediction)
    if not path.exists():
        raise InputError("export", "source must be a diffusers folder or a .safetensors file", str(path))
    draft = (
        _read_folder(path, variant=variant, vae_given=vae is not None) if path.is_dir() else _read_file(path, ema=ema)
    )
    if vae is not None:
        _put_vae(draft, _tiny_near(path) if str(vae) == "tiny" else Path(vae), variant=variant)
    if "vae" not in draft.tensors:
        raise InputError("export", f"{path.name} holds no VAE: name a file or folder with one (vae)")
    row = _detect(draft, family=family, prediction=_PREDICTIONS[prediction] if prediction else None)
    if draft.format == _FILE:
        draft.configs["unet"]["sample_size"] = row.default_size[0] // row.vae_factor
    manner = _settle_scheduler(draft, row)
    assert draft.scheduler is not None
    found = _find_tokenizer(draft, tokenizer)
    _check_tokenizer(draft, found, row)
    draft.files["tokenizer"] = _tokenizer_files(found)
    return Source(
        family=row.name,
        format=draft.format,
        configs=draft.configs,
        tensors=draft.tensors,
        scheduler=draft.scheduler,
        manner=manner,
        repairs=draft.repairs,
        tokenizer=found,
        extras=[file for pattern in _EXTRAS for file in sorted(path.glob(pattern))] if path.is_dir() else [],
        index=_index(draft, row),
        provenance=_provenance(draft, rehash=rehash),
    )


# --- A diffusers folder -----------------------------------------------------------------------------------------


def _read_folder(path: Path, *, variant: str | None, vae_given: bool) -> _Draft:
    draft = _Draft(path, _FOLDER)
    if not (path / "model_index.json").is_file():
        single = [file.name for file in sorted(path.glob("*.safetensors"))][:1]
        hint = f"; for a single-file checkpoint name the file, such as {single[0]}" if single else ""
        raise BundleError("export", f"a diffusers folder must hold model_index.json{hint}", str(path))
    draft.index = read_json(path / "model_index.json", place="export")
    if not (path / "unet").is_dir():
        found = draft.index.get("_class_name")
        raise InputError(
            "export", f"checkpoint must be Stable Diffusion 1.x or 2.x, with a UNet, {path.name} has none", found
        )
    draft.scheduler = read_json(path / "scheduler" / "scheduler_config.json", place="export")
    draft.files["index"] = [path / "model_index.json"]
    draft.files["scheduler"] = [path / "scheduler" / "scheduler_config.json"]
    for name, component in _COMPONENTS.items():
        optional = component.optional or (name == "vae" and vae_given)
        if not optional or (path / name / "config.json").is_file():
            draft.put(name, *_read_component(path / name, name, variant=variant))
    return draft


def _read_component(folder: Path, name: str, *, variant: str | None) -> tuple[dict[str, Any], Weights, list[Path]]:
    """(config, tensors, files) of one component's folder."""
    component = _COMPONENTS[name]
    config = read_json(folder / "config.json", place="export")
    found = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if found is not None and found not in component.classes:
        raise InputError("export", f"{name} must be {' or '.join(component.classes)}", found)
    weights, files = _read_weights(folder, component.stem, variant=variant)
    table = keys.tiny_vae if found == _TINY else component.table
    return config, weights.view(table(weights)), [folder / "config.json", *files]


def _read_weights(folder: Path, stem: str, *, variant: str | None) -> tuple[Weights, list[Path]]:
    """The weights `<stem>.safetensors` of a variant, whole or in shards, and the files they lie in."""
    found = _variants(folder, stem)
    if (variant or "") in found:
        file = found[variant or ""]
    elif variant is None and len(found) == 1:
        file = next(iter(found.values()))
    else:
        place = f"{folder.parent.name}/{folder.name}"
        if found:
            has = ", ".join(label or "plain" for label in found)
            raise InputError("export", f"variant of the weights in {place} must be one of: {has}", variant)
        if pickled := sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".ckpt", ".pth")):
            Weights.open(folder / pickled[0])  # refuses it by what it is
        raise BundleError("export", f"{place} must hold {stem}.safetensors", sorted(f.name for f in folder.iterdir()))
    if file.suffix != ".json":
        return Weights.open(file), [file]
    return _read_shards(file)


def _variants(folder: Path, stem: str) -> dict[str, Path]:
    """The variants a folder holds, "" for the plain one -> weights or index of shards."""
    return {label: file for file in sorted(folder.iterdir()) if (label := _variant_of(file.name, stem)) is not None}


def _variant_of(name: str, stem: str) -> str | None:
    """The variant a file's name says: "" for none; None when it is not a component's weights or index of shards."""
    match = re.fullmatch(
        rf"{re.escape(stem)}(?:\.([\w-]+))?\.safetensors|{re.escape(stem)}\.safetensors\.index(?:\.([\w-]+))?\.json",
        name,
    )
    label = (match[1] or match[2] or "") if match else None
    return None if label and re.search(r"-\d{5}-of-\d{5}$", label) else label


def _read_shards(index: Path) -> tuple[Weights, list[Path]]:
    """The tensors of all shards that an index names. Raises BundleError when the index and they disagree."""
    placed = read_json(index, place="export").get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise BundleError("export", f"{index.name} must map weights to the files they lie in")
    for name in sorted(set(placed.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BundleError("export", f"{index.name} must name safetensors files beside it", name)
    files = [index.parent / name for name in sorted(set(placed.values()))]
    weights = Weights.join(Weights.open(file) for file in files)
    if wrong := sorted(placed.keys() ^ weights.keys()):
        raise BundleError("export", f"{index.name} must list what its files hold; it does not for", wrong[0])
    if moved := sorted(name for name, file in placed.items() if weights.file(name).name != file):
        raise BundleError("export", f"{index.name} must list what its files hold; it does not for", moved[0])
    return weights, [index, *files]


# --- A single file ----------------------------------------------------------------------------------------------


def _read_file(path: Path, *, ema: bool) -> _Draft:
    weights = Weights.open(path)
    if what := keys.seems_to_be(weights):
        raise InputError("export", f"checkpoint must be Stable Diffusion 1.x or 2.x; {path.name} seems to be {what}")
    draft = _Draft(path, _FILE, files={"checkpoint": [path]})
    for component, table in keys.single_file(weights, ema=ema).items():
        draft.tensors[component] = weights.view(table)
    for component in ("unet", "text_encoder"):
        if component not in draft.tensors:
            shown = sorted(weights)[:3]
            raise InputError("export", f"{path.name} must hold an LDM checkpoint; it has no {component}", shown)
    shapes = {component: _shapes(tensors) for component, tensors in draft.tensors.items()}
    draft.open_clip = keys.is_open_clip(weights)
    draft.words = _read_words(draft, weights)
    draft.configs["unet"] = configs.unet(shapes["unet"])
    draft.configs["text_encoder"] = configs.text_encoder(shapes["text_encoder"], open_clip=draft.open_clip)
    if "vae" in draft.tensors:
        scaling_factor = FAMILIES["sd15"].scaling_factor
        draft.configs["vae"] = configs.autoencoder(shapes["vae"], scaling_factor=scaling_factor)
    return draft


def _read_words(draft: _Draft, weights: Weights) -> _Words:
    """Of the marks `v_pred` and `ztsnr`, then of `modelspec.prediction_type`, then of `modelspec.architecture`."""
    place, said = draft.place.name, weights.metadata
    architecture = said.get("modelspec.architecture", "").lower()
    written = said.get("modelspec.prediction_type", "").lower()
    told: dict[str, str] = {}
    if "v_pred" in weights:
        told["the key v_pred"] = "v_prediction"
    if written in _PREDICTIONS:
        told[f"modelspec.prediction_type {written}"] = _PREDICTIONS[written]
    elif written:
        warnings.warn(f"[export] {place}: modelspec.prediction_type {written} is not known; ignored", stacklevel=5)
    if by_name := next((value for pattern, value in _ARCHITECTURES if re.search(pattern, architecture)), None):
        told[f"modelspec.architecture {architecture}"] = by_name
    first = next(iter(told), None)
    if first and (other := next((key for key in told if told[key] != told[first]), None)):
        warnings.warn(f"[export] {place}: {first} and {other} contradict each other; the first counts", stacklevel=5)
    zero_snr = "ztsnr" in weights
    draft.repairs += [f"{place}: {told[first]}, by {first}"] if first else []
    draft.repairs += [f"{place}: zero terminal SNR, by the key ztsnr"] if zero_snr else []
    name = f"{said.get('modelspec.title', '')} {architecture}"
    return _Words(told[first] if first else None, zero_snr, name.strip())


def _shapes(tensors: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tensors.shape(name) for name in tensors}


# --- Another VAE ------------------------------------------------------------------------------------------------


def _put_vae(draft: _Draft, path: Path, *, variant: str | None) -> None:
    """Replace the VAE, or put a tiny one beside it (in its place where there is none)."""
    if not path.exists():
        raise InputError("export.vae", "must be a folder or a .safetensors file", str(path))
    own = draft.configs.get("vae", {})
    if path.is_dir():
        config, tensors, files = _read_vae_folder(path, variant=variant)
    else:
        scaling_factor = own.get("scaling_factor", FAMILIES["sd15"].scaling_factor)
        config, tensors, files = _read_vae_file(path, scaling_factor=scaling_factor)
    for what, got, expected in (
        ("latent channels", config.get("latent_channels", 4), draft.configs["unet"].get("out_channels", 4)),
        ("pixels per latent cell", _factor(config), _factor(own) if own else _factor(config)),
    ):
        if got != expected:
            raise InputError("export.vae", f"{path.name} must have {expected} {what}, as the checkpoint has", got)
    tiny = config.get("_class_name") == _TINY
    if not tiny:
        draft.drop("tiny_vae")  # the folder's own belongs to the VAE that goes
    draft.put("tiny_vae" if tiny and "vae" in draft.tensors else "vae", config, tensors, files)


def _factor(config: Mapping[str, Any]) -> int:
    """Pixels per latent cell."""
    widths = config.get("decoder_block_out_channels" if config.get("_class_name") == _TINY else "block_out_channels")
    if widths is not None and not isinstance(widths, list | tuple):
        raise BundleError("export", "config.json of the VAE must list the widths of its levels", widths)
    return int(2 ** (len(widths or (0,) * 4) - 1))


def _read_vae_folder(folder: Path, *, variant: str | None) -> tuple[dict[str, Any], Weights, list[Path]]:
    for place in (folder, folder / "vae"):  # a VAE's own, or that of a whole checkpoint
        if (place / "config.json").is_file():
            # The variant is the checkpoint's: another VAE need not have it.
            has = variant in _variants(place, _COMPONENTS["vae"].stem)
            return _read_component(place, "vae", variant=variant if has else None)
    if halves := sorted(folder.glob("*encoder.safetensors")):
        return _read_vae_file(halves[0], scaling_factor=1.0)
    raise InputError("export.vae", "folder must hold config.json of a VAE, or a TAESD's two halves", str(folder))


def _read_vae_file(path: Path, *, scaling_factor: float) -> tuple[dict[str, Any], Weights, list[Path]]:
    weights, files = Weights.open(path), [path]
    bare = keys.bare_vae(weights)
    if not keys.is_tiny(bare):
        if not any(name.startswith(("decoder.conv_in.", "encoder.conv_in.")) for name in bare):
            what = keys.seems_to_be(weights) or "something else"
            raise InputError("export.vae", f"{path.name} must hold a VAE; it seems to be {what}")
        weights = weights.view({name: keys.From(source) for name, source in bare.items()})
        weights = weights.view(keys.vae(weights))
        return configs.autoencoder(_shapes(weights), scaling_factor=scaling_factor), weights, files
    if any(name[0].isdigit() for name in bare):
        weights, files = _join_halves(path, weights)
    else:
        weights = weights.view({name: keys.From(source) for name, source in bare.items()})
        weights = weights.view(keys.tiny_vae(weights))
    return configs.tiny_autoencoder(_shapes(weights)), weights, files


def _join_halves(path: Path, weights: Weights) -> tuple[Weights, list[Path]]:
    """A TAESD as its author ships it: each half in a file of its own, here found by the other's name."""
    mine = "encoder" if "0.weight" in weights else "decoder"
    other = {"encoder": "decoder", "decoder": "encoder"}[mine]
    beside = path.with_name(path.name.replace(mine, other))
    if beside == path or not beside.is_file():
        rule = f"a TAESD's {mine} needs its {other} beside it, named alike ({mine} and {other})"
        raise InputError("export.vae", rule, path.name)
    parts = [(weights, mine), (Weights.open(beside), other)]
    return Weights.join(part.view(keys.tiny_vae(part, half=half)) for part, half in parts), [path, beside]


def _tiny_near(path: Path) -> Path:
    """The tiny VAE in a folder, or beside a folder or file."""
    for place in ([path] if path.is_dir() else []) + [path.resolve().parent]:
        for name in ("tiny_vae", "vae_tiny", "taesd", "taesd.safetensors", "taesd_encoder.safetensors"):
            if (place / name).exists():
                return place / name
    raise InputError(
        "export.vae", "there is no tiny VAE (tiny_vae/, taesd/, taesd.safetensors) in or beside", str(path)
    )


# --- Family -----------------------------------------------------------------------------------------------------


def _detect(draft: _Draft, *, family: str | None, prediction: str | None) -> Family:
    """The row the tensors fit; settles the scheduler, whose prediction type tells the two kinds of SD 2.x apart."""
    unet, vae, text = (draft.configs[name] for name in ("unet", "vae", "text_encoder"))
    found = {
        "unet_channels": unet.get("in_channels", 4),
        "latent_channels": vae.get("latent_channels", 4),
        "context_dim": unet.get("cross_attention_dim", 1280),
        "vae_factor": _factor(vae),
    }
    own = draft.words.prediction if draft.scheduler is None else draft.scheduler.get("prediction_type") or "epsilon"
    told = prediction or own
    described = ", ".join(f"{name} {value}" for name, value in found.items()) + (f", {told}" if told else "")
    if family is None:
        rows = [row for row in FAMILIES.values() if all(getattr(row, key) == value for key, value in found.items())]
    else:
        asked = family_row(family)
        exact = {key: value for key, value in found.items() if key != "vae_factor"}
        if wrong := {key: value for key, value in exact.items() if getattr(asked, key) != value}:
            expected = ", ".join(f"{key} {getattr(asked, key)}" for key in wrong)
            raise InputError("export", f"a checkpoint of the family {family} has {expected}", wrong)
        rows = [row for row in FAMILIES.values() if _alike(row, asked)] if told else [asked]
    if not rows:
        rule = f"checkpoint must be of a known family ({', '.join(FAMILIES)}), got {described}"
        raise InputError("export", rule + (f" ({(draft.index or {}).get('_class_name')})" if draft.index else ""))
    if found["latent_channels"] != unet.get("out_channels", 4) or text.get("hidden_size", 512) != found["context_dim"]:
        widths = f"text width {text.get('hidden_size', 512)}, UNet's output {unet.get('out_channels', 4)}"
        raise InputError("export", f"text encoder, UNet and VAE must fit each other, got {widths}; {described}")
    if len({row.schedule.prediction_type for row in rows}) > 1:
        rows = _by_prediction(draft, rows, told)
        if not rows:
            raise InputError("export", "prediction of SD 2.x must be epsilon or v_prediction", told)
    row = next((row for row in rows if row.name == family), min(rows, key=lambda row: _distance(row, unet)))
    if family is not None and row.name != family:
        rule = (
            f"the family {family} predicts {family_row(family).schedule.prediction_type}, the scheduler says otherwise"
        )
        raise InputError("export", f"{rule}: give the prediction to overrule it", told)
    if draft.scheduler is None:
        said = told or row.schedule.prediction_type
        made = configs.scheduler(replace(row.schedule, prediction_type=said), zero_snr=draft.words.zero_snr)
        draft.scheduler = schedulers.scheduler_for_name(made, draft.words.name)
    elif prediction is not None:
        draft.scheduler["prediction_type"] = prediction
    return row


def _settle_scheduler(draft: _Draft, row: Family) -> Manner:
    """The scheduler and the UNet as stock pipelines draw with them, and how."""
    assert draft.scheduler is not None
    index = draft.index or {}
    named = index.get("scheduler")
    cls = named[1] if isinstance(named, list) and len(named) == 2 and isinstance(named[1], str) else None
    inpaint = row.inpaint_channels or "Inpaint" in str(index.get("_class_name"))
    draft.scheduler, repaired = schedulers.repair_scheduler(draft.scheduler, cls=cls, inpaint=inpaint)
    draft.configs["unet"], more = schedulers.repair_unet(draft.configs["unet"])
    draft.repairs += [*repaired, *more]
    embedded = bool(draft.configs["unet"].get("time_cond_proj_dim"))
    return schedulers.manner(draft.scheduler, guidance_embedding=embedded)


def _alike(a: Family, b: Family) -> bool:
    """Rows that tensors cannot tell apart."""
    names = ("unet_channels", "latent_channels", "context_dim", "vae_factor")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _distance(row: Family, unet: Mapping[str, Any]) -> tuple[bool, bool]:
    """How unlike a row's UNet is to this one, where the other constants do not tell rows apart: widths, how many."""
    widths = tuple(unet.get("block_out_channels", ()))
    return row.unet_widths != widths, len(row.unet_widths) != len(widths)


def _by_prediction(draft: _Draft, rows: list[Family], told: str | None) -> list[Family]:
    if told is None:
        told = "v_prediction"
        warnings.warn(
            f"[export] the tensors of {draft.place.name} do not tell epsilon from v prediction: taking {told}, as "
            "diffusers does; the 512 pixel base models of SD 2.x need prediction='epsilon'",
            stacklevel=4,
        )
    return [row for row in rows if row.schedule.prediction_type == told]


# --- Tokenizer, index, provenance -------------------------------------------------------------------------------


def _find_tokenizer(draft: _Draft, given: str | Path | None) -> Path:
    path = draft.place
    if given is not None:
        places = [Path(given), Path(given) / "tokenizer"]
        rule = "tokenizer must be a folder that holds vocab.json and merges.txt"
    elif path.is_dir():
        places, rule = [path / "tokenizer"], "source must hold tokenizer/vocab.json and tokenizer/merges.txt"
    else:
        places = [path.parent / "tokenizer", path.parent]
        rule = "a single file carries no tokenizer: name a folder that holds vocab.json and merges.txt (tokenizer)"
    for place in places:
        if all((place / name).is_file() for name in TOKENIZER_FILES[:2]):
            return place
    # Only CLIP's own vocabulary is looked for elsewhere, for text encoders that have all of it.
    if draft.format == _FILE and given is None and draft.configs["text_encoder"]["vocab_size"] >= vocabulary.TOKENS:
        if found := vocabulary.find_merges():
            draft.repairs.append(f"tokenizer: CLIP's vocabulary, of {found[0]}")
            return vocabulary.write_tokenizer(found[1], **({"pad": "!"} if draft.open_clip else {}))
        rule = (
            f"a single file carries no tokenizer: get CLIP's vocabulary (`{vocabulary.HOW_TO_GET}`), or name a folder"
        )
        rule += " that holds vocab.json and merges.txt (--tokenizer)"
    raise InputError("export", rule, str(given if given is not None else path))


def _check_tokenizer(draft: _Draft, folder: Path, row: Family) -> None:
    """Every token has a row in the text encoder; a tokenizer that is not the checkpoint's own pads as it does."""
    tokens = read_json(folder / "vocab.json", place="export")
    highest = max((number for number in tokens.values() if isinstance(number, int)), default=0)
    rows = draft.configs["text_encoder"].get("vocab_size", 49408)
    if highest >= rows:
        raise InputError("export", f"tokenizer must fit the text encoder's {rows} tokens", f"token {highest}")
    exclamation = tokens.get("!")
    if draft.open_clip and exclamation is not None and Tokenizer.from_dir(folder).pad != exclamation:
        warnings.warn(
            f"[export] {row.name} was trained with prompts padded with '!'; the tokenizer in {folder.name} pads with "
            "another token, which changes images",
            stacklevel=3,
        )


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _index(draft: _Draft, row: Family) -> dict[str, Any]:
    """model_index.json; stock loaders insist on every component it names, so what is not carried is named as absent."""
    if draft.index is None:
        assert draft.scheduler is not None
        draft.index = configs.index(scheduler=draft.scheduler["_class_name"], inpaint=row.inpaint_channels)
    kept = {"scheduler", "tokenizer", *draft.tensors}
    index = {
        key: [None, None] if isinstance(value, list) and key not in kept else value
        for key, value in draft.index.items()
    }
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    index["vae"] = ["diffusers", draft.configs["vae"].get("_class_name", "AutoencoderKL")]
    return index | ({"requires_safety_checker": False} if "safety_checker" in index else {})


def _provenance(draft: _Draft, *, rehash: bool) -> list[dict[str, str]]:
    entries = []
    for role, files in draft.files.items():
        kind = _FOLDER if any(file.suffix == ".json" for file in files) else _FILE
        for file in files:
            inside = draft.format == _FOLDER and draft.place in file.parents
            name = file.relative_to(draft.place).as_posix() if inside else file.name
            entries.append({"role": role, "name": name, "format": kind, "sha256": file_sha256(file, rehash=rehash)})
    return entries
