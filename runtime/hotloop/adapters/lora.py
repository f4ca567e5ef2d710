"""LoRA files, and a network's weights with them merged in: numpy only, arithmetic in float32.

LoRA (Hu et al. 2021) changes a weight W [out, in] by scale * up @ down, up [out, r], down [r, in], scale = alpha / r
(alpha / sqrt(r) with rank stabilisation, Kalajdzievski 2023). For a convolution [out, in, k, k] down is one to r
channels and up a 1x1 one (LoCon), or down and up are 1x1 around a `mid` [r, r, k, k] (its Tucker form). DoRA (Liu et
al. 2024) then brings the rows of W + change, or its columns, to learned lengths.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotloop_kernels import usable_cores

from ..errors import InputError
from ..files import MOST_TEXT, open_file, read_file
from ..weights import Weights, refuse_non_finite
from .lora_keys import lora_flat, lora_key, lora_modules

__all__ = ["MAX_RANK", "MAX_TENSORS", "Layer", "Lora", "Scaled", "merge"]

MAX_RANK = 4096
MAX_TENSORS = 10_000
MAX_SCALE = 100.0
MAX_NAME = 256

F32 = npt.NDArray[np.float32]
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]

_WORKERS = 8
# OpenBLAS multiplies [m, k] by [k, n] on one thread when m n k is at most this.
_TILE = 1 << 18
_CONFIG = "adapter_config.json"
_REPEATS = 32
_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_PARTS = ("unet", "text_encoder")
# Where diffusers keeps PEFT's configuration: in the file's own header.
_METADATA = "lora_adapter_metadata"
# What PEFT can do beyond this file; each changes the result.
_VARIANTS = (
    "lora_bias", "layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config", "use_bdlora",
    "kasa_config", "monteclora_config", "trainable_token_indices", "target_parameters", "megatron_config",
)  # fmt: skip
# The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the base's weights: their files fit that base only.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Layer:
    """The change of one weight, factors as stored.

    down [r, in], [r, in, k, k], or [r, in, 1, 1] where there is a mid; up [out, r] or [out, r, 1, 1]; mid [r, r, k, k]
    scale      alpha / r, or as the file's own configuration says
    magnitude  DoRA's lengths, as many as the weight has outputs or inputs
    by_input   the lengths are those of the columns (over outputs and kernel) and not of the rows
    """

    name: str
    down: np.ndarray
    up: np.ndarray
    scale: float
    mid: np.ndarray | None = None
    magnitude: np.ndarray | None = None
    by_input: bool = False

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight it changes; a 1x1 convolution and a matrix are the same."""
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (self.up.shape[0], self.down.shape[1], *(kernel if set(kernel) != {1} else ()))

    def factors(self, scale: float) -> tuple[F32, F32]:
        """(up [out, r] times scale, down [r, in k k]); their product is the change."""
        up = self.up.reshape(self.up.shape[0], -1).astype(np.float32) * np.float32(scale * self.scale)
        down = self.down.reshape(self.down.shape[0], -1).astype(np.float32)
        if self.mid is not None:
            mid = self.mid.reshape(*self.mid.shape[:2], -1).astype(np.float32)  # [r, r, k k]
            down = (mid.transpose(0, 2, 1) @ down).transpose(0, 2, 1).reshape(mid.shape[0], -1)
        return up, down


@dataclass(frozen=True)
class Lora:
    """A LoRA file in memory; make one with `Lora.open`.

    A file alone does not tell every weight it changes: kohya's names write underscores for dots, and number blocks as
    the network does. `resolve(shapes)` gives the weights' keys, for the network whose shapes it is told.
    layers   component -> flat module name (see lora_keys.lora_flat) -> Layer
    sha256   of the files read, one after another (the weights, then their configuration)
    """

    name: str
    style: str
    sha256: str
    path: Path
    layers: Mapping[str, Mapping[str, Layer]]

    @classmethod
    def open(cls, path: str | Path) -> Lora:
        """Read a file, or a folder that PEFT or diffusers saved, of any style: kohya's, PEFT's or diffusers'.

        PEFT keeps alpha in an adapter_config.json beside the file. Everything is read into memory, so that the file
        may change or go afterwards. Raises InputError for a LoRA of another kind of model, a method that is not LoRA,
        LoCon or DoRA, a tensor that belongs to nothing, factors that do not fit together; BundleError for a file that
        is not safetensors, and for NaN and infinity.
        """
        path = Path(path)
        layers: dict[str, dict[str, Layer]] = {}
        styles: set[str] = set()
        digest = hashlib.sha256()
        for file in _files(path):
            weights = Weights.open(file)
            _feed(digest, file)
            if not 0 < len(weights) <= MAX_TENSORS:
                raise InputError("lora", f"{file.name} must hold 1 to {MAX_TENSORS} tensors", len(weights))
            refuse_non_finite(weights)
            for component, flat, layer in _read(weights, styles, digest):
                if flat in layers.setdefault(component, {}):
                    raise InputError("lora", "a module may be changed once only", layer.name)
                layers[component][flat] = layer
        if len(styles) > 1:
            raise InputError("lora", f"{path.name} must be in one style", ", ".join(sorted(styles)))
        return cls(path.stem if path.is_file() else path.name, styles.pop(), digest.hexdigest(), path, layers)

    def resolve(self, shapes: Shapes) -> dict[str, dict[str, Layer]]:
        """Component -> weight key -> Layer, for networks with these weights (key -> shape).

        Raises InputError for a LoRA of another family, a module that is not there and a shape that does not fit.
        """
        found: dict[str, dict[str, Layer]] = {}
        for component, layers in sorted(self.layers.items(), reverse=True):  # the UNet first: it tells families apart
            if component not in shapes:
                raise InputError("lora", f"{self.name} changes the {component}, which is not there")
            targets = {key: shape for key, shape in shapes[component].items() if _can_change(key, shape)}
            table = lora_modules(component, targets)
            mine: dict[str, Layer] = {}
            for flat, layer in layers.items():
                key = table.get(flat)
                if key is None:
                    rule = f"{self.name} must be for this model, whose {component} has no module for"
                    raise InputError("lora", rule, layer.name)
                if key in mine:
                    raise InputError("lora", f"{self.name} may change {key} once only", layer.name)
                mine[key] = layer
            # By the width of its prompts: say that before anything else.
            for key in sorted(mine, key=lambda key: "attn2.to_" not in key):
                _check_shape(self.name, key, mine[key], targets[key])
            found[component] = {key: mine[key] for key in sorted(mine)}
        return found

    def check(self, shapes: Shapes) -> None:
        """Raises InputError, as `resolve` does, unless the LoRA fits networks with these weights."""
        self.resolve(shapes)


@dataclass(frozen=True)
class Scaled:
    """A LoRA and how strong it is: one number, or block -> number, `{"down_blocks.1": 0.5, "text_encoder": 0.7}`.

    A block is a module's name or the beginning of one, up to a dot; "unet" and "text_encoder" are the whole networks.
    The longest that fits a module counts, 1 where none does. Raises InputError for numbers outside -100 .. 100.
    """

    lora: Lora
    scale: float | Mapping[str, float] = field(default=1.0)

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, Mapping) else {"": self.scale}
        for block, scale in scales.items():
            if not isinstance(block, str):
                raise InputError("lora", "a scale must be for a block, named in text", block)
            number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
            if not number or not -MAX_SCALE <= scale <= MAX_SCALE:
                raise InputError(
                    "lora",
                    f"scale must be a number from {-MAX_SCALE:g} to {MAX_SCALE:g}",
                    {block: scale} if block else scale,
                )

    def scales(self, found: Mapping[str, Mapping[str, Layer]], shapes: Shapes) -> dict[str, dict[str, float]]:
        """The scale of every layer that `lora.resolve` found. Raises InputError for a block that is not there."""
        if not isinstance(self.scale, Mapping):
            return {component: dict.fromkeys(layers, float(self.scale)) for component, layers in found.items()}
        blocks = {_block(name): float(scale) for name, scale in self.scale.items()}
        there = {
            tuple(parts[:n]) for component in shapes for key in shapes[component]
            for parts in [_parts(component, key)] for n in range(1, len(parts) + 1)
        }  # fmt: skip
        for name in self.scale:
            if _block(name) not in there:
                raise InputError("lora", "a scale must be for a block of this model", name)
        return {
            component: {key: _longest(blocks, _parts(component, key)) for key in layers}
            for component, layers in found.items()
        }


def merge(loras: Sequence[Scaled], base: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, F32]]:
    """The weights that LoRAs change, merged: component -> key -> f32, shaped as in `base`; no others.

    base   component -> key -> array, any floating dtype; may be lazy: read once per weight, from several threads
    Changes of several LoRAs add up, each taken from the base: the order does not matter. The scale s of a DoRA is
    PEFT's, W' = m (W + s change) / |W + s change|. Scale 0 is no change at all. Raises what `Lora.resolve` raises and
    InputError for a block of `Scaled` that is not there, before anything is computed; InputError for a sum that is
    not finite.
    """
    shapes = {component: {key: _shape(base[component], key) for key in base[component]} for component in base}
    jobs: dict[tuple[str, str], list[tuple[Layer, float]]] = {}
    for one in loras:
        found = one.lora.resolve(shapes)
        for component, scales in one.scales(found, shapes).items():
            for key, scale in scales.items():
                if scale:
                    jobs.setdefault((component, key), []).append((found[component][key], scale))
    merged: dict[str, dict[str, F32]] = {component: {} for component, _ in jobs}
    with ThreadPoolExecutor(min(_WORKERS, usable_cores())) as pool:
        done = pool.map(lambda job: _merged(base[job[0]][job[1]], jobs[job]), jobs)
        for (component, key), value in zip(jobs, done, strict=True):
            if not np.isfinite(value).all():
                raise InputError("lora", f"merged weights must be finite: {key}", [one.lora.name for one in loras])
            merged[component][key] = value
    return merged


def _merged(base: np.ndarray, changes: Sequence[tuple[Layer, float]]) -> F32:
    """One weight with its changes; what overflows shows in it."""
    rows = base.reshape(base.shape[0], -1)
    with np.errstate(over="ignore", invalid="ignore"):
        plain = [layer.factors(scale) for layer, scale in changes if layer.magnitude is None]
        if plain:
            # One product for all of them: up [out, sum of r] @ down [sum of r, in k k].
            ups, downs = zip(*plain, strict=True)
            up, down = (ups[0], downs[0]) if len(plain) == 1 else (np.concatenate(ups, 1), np.concatenate(downs, 0))
            out = _product(up, down)
            np.add(out, rows, out=out, casting="same_kind")
        else:
            out = rows.astype(np.float32)
        for layer, scale in changes:
            if layer.magnitude is not None:
                decomposed = _decomposed(rows, layer, scale, base.shape)
                # Alone it is the result itself, without the rounding of a difference.
                out = decomposed if len(changes) == 1 else np.add(out, decomposed - rows, out=out, casting="same_kind")
    return out.reshape(base.shape)


def _product(up: F32, down: F32) -> F32:
    """up @ down in tiles, each too small for OpenBLAS to share out among threads: the weights are, in `merge`.

    Its threads wait for one another by spinning, which starves them where a stream keeps the cores busy (rank 128 on
    all of SD 1.5 took 16 s so, and 6 s on one thread each), and doubles the work done where it does not.
    """
    rows, columns = _divisor(len(up), 64), _divisor(down.shape[1], _TILE // (64 * len(down)))
    if rows < 8 or columns < 8:
        return up @ down
    out = np.empty((len(up), down.shape[1]), np.float32)
    np.matmul(
        up.reshape(-1, 1, rows, len(down)),
        down.reshape(1, len(down), -1, columns).swapaxes(1, 2),
        out=out.reshape(len(up) // rows, rows, -1, columns).swapaxes(1, 2),
    )
    return out


def _divisor(size: int, limit: int) -> int:
    """The largest divisor of size that is at most `limit`, 1 if there is none."""
    return next((n for n in range(min(size, limit), 0, -1) if size % n == 0), 1)


def _decomposed(rows: np.ndarray, layer: Layer, scale: float, shape: tuple[int, ...]) -> F32:
    """DoRA, eq. 5: the direction of the changed weight, times its own length. rows [out, in k k]."""
    assert layer.magnitude is not None
    up, down = layer.factors(scale)
    changed = _product(up, down)
    np.add(changed, rows, out=changed, casting="same_kind")
    cells = changed.reshape(shape[0], shape[1], -1)  # [out, in, k k]
    lengths = np.sqrt(np.einsum("oik,oik->i" if layer.by_input else "oik,oik->o", cells, cells, optimize=False))
    magnitude = layer.magnitude.reshape(-1).astype(np.float32)
    # A row of zeros has no direction and stays.
    factor = np.divide(magnitude, lengths, out=np.zeros_like(lengths), where=lengths != 0)
    cells *= factor[None, :, None] if layer.by_input else factor[:, None, None]
    return changed


# --- Files ---


def _files(path: Path) -> list[Path]:
    """The file itself, or those of a folder: one for all, or one per network."""
    if not path.is_dir():
        if not path.exists():
            raise InputError("lora", "no such file", str(path))
        return [path]
    for name in _NAMES:
        if (path / name).is_file():
            return [path / name]
    parts = [path / part / name for part in _PARTS for name in _NAMES if (path / part / name).is_file()]
    files = parts or sorted(path.glob("*.safetensors"))
    if not files or (len(files) > 1 and not parts):
        raise InputError("lora", f"{path.name} must hold one LoRA", [file.name for file in files])
    return files


def _feed(digest: Any, file: Path) -> None:
    with open_file(file) as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)


def _read(weights: Weights, styles: set[str], digest: Any) -> Iterator[tuple[str, str, Layer]]:
    """(component, flat name, Layer) of every module of one file; `styles` learns the file's."""
    modules: dict[tuple[str, str], dict[str, str]] = {}
    names: dict[tuple[str, str], str] = {}
    for key in weights:
        style, component, module, role = lora_key(key)
        styles.add(style)
        place = component, lora_flat(module)
        names[place] = module
        if role in modules.setdefault(place, {}):
            raise InputError("lora", f"{weights.path.name} holds two tensors for the {role} of one module", key)
        modules[place][role] = key
    configs = _configs(weights, styles, digest)
    for place, keys in modules.items():
        yield *place, _layer(weights, keys, names[place], place[0], configs.get(place[0]))


def _layer(weights: Weights, keys: Mapping[str, str], module: str, component: str, config: _Config | None) -> Layer:
    for role in ("down", "up"):
        if role not in keys:
            raise InputError("lora", f"down and up must come together: no {role} beside", next(iter(keys.values())))
    down, up = weights[keys["down"]], weights[keys["up"]]
    mid = weights[keys["mid"]] if "mid" in keys else None
    _check_factors(keys["down"], down, up, mid)
    rank = up.shape[1]
    scale = 1.0 if config is None else config.scale(module, rank)
    if "alpha" in keys:
        alpha = weights[keys["alpha"]]
        if alpha.size != 1:
            raise InputError("lora", f"alpha must be one number: {keys['alpha']}", alpha.shape)
        scale = float(alpha.reshape(())) / rank
    magnitude, by_input = None, False
    if "magnitude" in keys:
        magnitude = weights[keys["magnitude"]]
        # PEFT has one length per output, for convolutions as [1, out, 1, 1]. A dora_scale broadcasts against the
        # weight: [out, 1, ...], or [1, in, ...] for one per input.
        broadcasts = keys["magnitude"].endswith(".dora_scale") and magnitude.ndim > 1
        by_input = broadcasts and magnitude.shape[0] == 1 and magnitude.shape[1] == down.shape[1] != 1
        if magnitude.size != (down.shape[1] if by_input else up.shape[0]):
            rule = f"{keys['magnitude']} must have a length for each of {up.shape[0]} outputs or {down.shape[1]} inputs"
            raise InputError("lora", rule, magnitude.shape)
    elif config is not None and config.dora:
        raise InputError("lora", "a DoRA must have a magnitude for every module", keys["down"])
    own = [None if value is None else np.array(value) for value in (down, up, mid, magnitude)]
    assert own[0] is not None and own[1] is not None
    return Layer(keys["down"], own[0], own[1], scale, own[2], own[3], by_input)


def _check_factors(name: str, down: np.ndarray, up: np.ndarray, mid: np.ndarray | None) -> None:
    for factor in (down, up):
        if factor.dtype.kind != "f" or factor.ndim not in (2, 4):
            raise InputError("lora", f"{name} must be of a matrix or a 2-D convolution, in floating point",
                             f"{factor.dtype} {list(factor.shape)}")  # fmt: skip
    if up.shape[2:] not in ((), (1, 1)):
        raise InputError("lora", f"the up of {name} must be a matrix or a 1x1 convolution", up.shape)
    inner = (up.shape[1], down.shape[0])
    if mid is not None:
        if mid.dtype.kind != "f" or mid.ndim != 4 or down.shape[2:] != (1, 1):
            raise InputError("lora", f"the mid of {name} must be a convolution between two of 1x1", mid.shape)
        if mid.shape[:2] != inner:
            rule = f"ranks must agree: {name} and its up have {inner[::-1]}, their mid"
            raise InputError("lora", rule, mid.shape[:2])
    elif inner[0] != inner[1]:
        raise InputError("lora", f"ranks must agree: {name} has {inner[1]}, its up", inner[0])
    if not all(0 < rank <= MAX_RANK for rank in inner) or 0 in (*down.shape, *up.shape):
        raise InputError("lora", f"rank must be from 1 to {MAX_RANK}: {name}", [list(down.shape), list(up.shape)])


# --- PEFT's configuration ---


@dataclass(frozen=True)
class _Config:
    """What PEFT keeps beside the factors: alpha over rank, for all modules and by patterns of their names."""

    alpha: float
    patterns: tuple[tuple[re.Pattern[str], float], ...]
    stabilised: bool
    dora: bool

    @classmethod
    def parse(cls, values: Mapping[str, Any], place: str) -> _Config:
        if str(values.get("peft_type", "LORA")).upper() != "LORA":
            raise InputError("lora", f"{place} must be of type LORA", values["peft_type"])
        for name in _VARIANTS:
            if values.get(name):
                raise InputError("lora", f"{place} must not ask for {name}", values[name])
        init = values.get("init_lora_weights")
        if not any(init is known or (isinstance(known, str) and init == known) for known in _INITS):
            rule = f"{place} must not change the base, as this init_lora_weights does: convert it to plain LoRA"
            raise InputError("lora", rule, init)
        patterns = values.get("alpha_pattern") or {}
        if not isinstance(patterns, Mapping):
            raise InputError("lora", f"{place} must have an object as alpha_pattern", patterns)
        if len(patterns) > MAX_TENSORS or sum(bool(re.search(r"[*+{?]", name)) for name in patterns) > _REPEATS:
            raise InputError("lora", f"{place} must have at most {_REPEATS} patterns with repeats", len(patterns))
        return cls(
            _number(values.get("lora_alpha", 8), place),
            tuple((_pattern(name, place), _number(alpha, place)) for name, alpha in patterns.items()),
            bool(values.get("use_rslora")),
            bool(values.get("use_dora")),
        )

    def scale(self, module: str, rank: int) -> float:
        """The rank is the factors' own, which rank_pattern only foretold."""
        alpha = next((alpha for pattern, alpha in self.patterns if pattern.fullmatch(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise InputError("lora", f"{place} must have finite numbers as alpha", value)
    return float(value)


def _pattern(name: str, place: str) -> re.Pattern[str]:
    """A module's name, its end from a dot on, or a regular expression for those, as PEFT takes it.

    Only expressions that cannot run for long: one repeat at most, not of a group, and no references.
    """
    repeats, others = len(re.findall(r"[*+{?]", name)), re.search(r"\)[*+{?]|\\\d|\(\?", name)
    harmless = len(name) <= MAX_NAME and repeats <= 1 and not others
    try:
        if harmless:
            return re.compile(rf"(.*\.)?({name})")
    except re.error:
        pass
    raise InputError("lora", f"{place} must have simple patterns of names as alpha_pattern", name)


def _configs(weights: Weights, styles: set[str], digest: Any) -> dict[str, _Config]:
    """Component -> what PEFT's configuration says of it, from the file beside or from the header."""
    beside = weights.path.with_name(_CONFIG)
    if "peft" in styles:
        if not beside.is_file():
            raise InputError("lora", f"{_CONFIG}, which holds the alpha, must lie beside", weights.path.name)
        _feed(digest, beside)
        config = _Config.parse(_json(read_file(beside, most=MOST_TEXT), _CONFIG), _CONFIG)
        return dict.fromkeys(_PARTS, config)
    if _METADATA not in weights.metadata:
        return {}
    values = _json(weights.metadata[_METADATA], _METADATA)
    parts = {part: {k[len(part) + 1 :]: v for k, v in values.items() if k.startswith(part + ".")} for part in _PARTS}
    if not any(parts.values()):  # one network's own file
        return dict.fromkeys(_PARTS, _Config.parse(values, _METADATA))
    return {part: _Config.parse(its, _METADATA) for part, its in parts.items() if its}


def _json(text: str | bytes, place: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("lora", f"{place} must be JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError("lora", f"{place} must hold a JSON object", type(values).__name__)
    return values


# --- Networks ---


def _shape(weights: Mapping[str, np.ndarray], key: str) -> tuple[int, ...]:
    """Without reading the tensor, where the mapping can tell."""
    shape = getattr(weights, "shape", None)
    return tuple(shape(key)) if callable(shape) else weights[key].shape


def _can_change(key: str, shape: tuple[int, ...]) -> bool:
    """Matrices and convolutions, but not tables of embeddings, which LoRA files change in another form."""
    return key.endswith(".weight") and len(shape) in (2, 4) and "embeddings." not in key


def _check_shape(name: str, key: str, layer: Layer, shape: tuple[int, ...]) -> None:
    plain = shape if shape[2:] != (1, 1) else shape[:2]
    if layer.shape == plain:
        return
    if "attn2.to_" in key and layer.shape[0] == plain[0]:
        rule = f"{name} is for another family: this model's prompts are {plain[1]} wide"
        raise InputError("lora", rule, layer.shape[1])
    raise InputError("lora", f"{name} is for another model: {key} is {list(shape)} here", list(layer.shape))


def _parts(component: str, key: str) -> tuple[str, ...]:
    """A weight's place as blocks are named: ("text_encoder", "encoder", "layers", "0", ...)."""
    return (component, *key.removeprefix("text_model.").removesuffix(".weight").split("."))


def _block(name: str) -> tuple[str, ...]:
    first, *rest = name.split(".")
    parts = [first, *rest] if first in _PARTS else ["unet", first, *rest]
    return tuple(part for part in parts if part != "text_model")


def _longest(blocks: Mapping[tuple[str, ...], float], parts: tuple[str, ...]) -> float:
    fitting = (blocks[parts[:n]] for n in range(len(parts), 0, -1) if parts[:n] in blocks)
    return next(fitting, 1.0)
