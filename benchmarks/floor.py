"""The work in a network, counted, and the least time that a machine needs for it.

    python benchmarks/floor.py --family sd15 --size 512x512 --batch 2 --dtype bf16 --measure

**Counted** is the network itself: it runs on torch's meta device, which knows shapes and computes nothing, and every
convolution, matrix product and attention that it asks for is noted. FLOPs are two per multiply-add of those three, at
borders and behind a causal mask too, as everybody counts them; norms, activations and sums are none. An op belongs to
one class, by what it is and by the module it stands in:

    3x3 conv          convolutions with a kernel beyond one cell (also the 2x2 ones that the rewrite `phase` makes)
    feed-forward      both layers of a transformer block's (GEGLU in the UNet)
    linear and 1x1    all other matrices: projections, 1x1 convolutions, shortcuts, the time embedding; but of a
                      cross-attention only those that act on the map (query and output)
    self-attention    the two products with the keys and values of the map (or of the prompt, in its encoder) itself
    cross-attention   the two products with the prompt's keys and values, and the layers that make those of the prompt
    norms, other      no FLOPs, but weights: scales and shifts; embeddings

SD 1.5's UNet at 512x512 has 49.8, 19.1, 15.0, 15.2 and 0.8 per cent of its FLOPs in the first five. (Where its
self-attention is said to be 15.7 %, cross-attention's products, 0.4 %, are in it and in the 0.8 % too.)

**Bytes** are the least that an evaluation moves: every weight once, the network's inputs and outputs once. What lies
between two ops is taken to stay on the chip.

**The floor** is the sum over ops of max(FLOPs / ceiling, bytes of its weights / bandwidth), and no less than all bytes
/ bandwidth. Ops wait for each other, so their times add up; within one, reading hides behind arithmetic at best.
Totals alone would say less: SD 1.5's 8x8 level is 5 % of the FLOPs and 37 % of the weights, and only a chip that holds
its 640 MB (fp16) in advance could read them behind the arithmetic of the rest. The ceilings are measured (`ceilings`),
so a time of twice the floor is twice what this machine has shown to be possible, not twice a data sheet.

What is left out makes the floor lower than any real time: activations that do not fit on the chip, softmax, norms
and other element-wise work, launches, the loop's own code, and, where an engine's "int8" keeps parts of a network
wider, their time. What could go below it, by little: reading the next op's weights early, as far as a cache holds them,
and weights that stay in a cache from one evaluation to the next (the built-in model's may). Both touch only what the
bandwidth binds. A convolution by a faster algorithm does fewer FLOPs than are counted; one that the libraries know
raises their ceiling likewise.

In a report every row stands beside the floor of the *plain* work, with no rewrites, in the row's own dtype: all rows of
a scenario are measured by the same work, and what a rewrite saves shows as a larger share.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ceilings import Ceilings, measure
from random_checkpoint import FAMILIES, VAE
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hotloop import spec
from hotloop.bundle import Bundle, builtin
from hotloop.nets.parts import PARTS, module_of

__all__ = ["BYTES", "CLASSES", "Calls", "Counted", "Floor", "Model", "Op", "floor", "of_picture", "work_of"]

CONV, FEED_FORWARD, LINEAR = "3x3 conv", "feed-forward", "linear and 1x1"
SELF, CROSS, NORMS, OTHER = "self-attention", "cross-attention", "norms", "other"
CLASSES = (CONV, FEED_FORWARD, LINEAR, SELF, CROSS, NORMS, OTHER)
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}

_INNER = re.compile(r"\.(ff|mlp)\.")
_OF_PROMPT = re.compile(r"\.attn2\.to_[kv]$")
# Torch's other names for a product: a network that begins to use one must be counted, not overlooked.
_UNCOUNTED = {"addmm", "baddbmm", "bmm", "conv1d", "conv3d", "conv_transpose2d", "einsum", "matmul", "__matmul__", "mm"}


@dataclass(frozen=True)
class Op:
    """flops: two per multiply-add; weights: parameters read; level: of the UNet, 0 the finest, None outside of them."""

    path: str
    kind: str
    level: int | None
    flops: int
    weights: int


@dataclass(frozen=True)
class Counted:
    """One evaluation of a network: its ops in their order.

    parameters  of the whole module that holds the network; `weights` are those that an evaluation reads
    tensors     elements of its inputs and outputs
    """

    network: str
    ops: tuple[Op, ...]
    parameters: int
    tensors: int

    @property
    def parts(self) -> tuple[tuple[int, Counted], ...]:
        """As of Calls: once, this."""
        return ((1, self),)

    @property
    def flops(self) -> int:
        return sum(op.flops for op in self.ops)

    @property
    def weights(self) -> int:
        return sum(op.weights for op in self.ops)

    def bytes(self, dtype: str) -> int:
        """Weights, inputs and outputs, each once, all in `dtype` (of BYTES)."""
        return (self.weights + self.tensors) * BYTES[dtype]

    def by_class(self) -> dict[str, Counted]:
        """The ops of every class of CLASSES, also of those that the network has nothing of."""
        return {kind: self._only(op for op in self.ops if op.kind == kind) for kind in CLASSES}

    def by_level(self) -> dict[int, Counted]:
        """The ops of the UNet's levels, the finest first; the time embedding is in none."""
        levels = sorted({op.level for op in self.ops if op.level is not None})
        return {level: self._only(op for op in self.ops if op.level == level) for level in levels}

    def _only(self, ops: Iterable[Op]) -> Counted:
        return replace(self, ops=tuple(ops), tensors=0)


@dataclass(frozen=True)
class Calls:
    """Networks one after another: (how many times, what)."""

    parts: tuple[tuple[int, Counted], ...]

    @property
    def flops(self) -> int:
        return sum(times * counted.flops for times, counted in self.parts)

    def bytes(self, dtype: str) -> int:
        return sum(times * counted.bytes(dtype) for times, counted in self.parts)


@dataclass(frozen=True)
class Floor:
    """The least seconds for `flops` and `bytes` under ceilings per second."""

    seconds: float
    flops: int
    bytes: int
    dtype: str
    ceiling_flops: float
    ceiling_bytes: float

    def record(self, measured: float) -> dict[str, Any]:
        """The `floor` of a result line, for a time of `measured` seconds."""
        return {
            "seconds": self.seconds, "share": self.seconds / measured, "flops": self.flops, "bytes": self.bytes,
            "dtype": self.dtype, "ceiling_flops": self.ceiling_flops, "ceiling_bytes": self.ceiling_bytes,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Model:
    """configs: config.json of every folder of a diffusers checkpoint, by the folder's name."""

    name: str
    family: spec.Family
    configs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def named(cls, name: str | Path) -> Model:
        """A family of `random_checkpoint` (with TAESD beside its VAE), "avatar-tiny", or a bundle's folder.

        Raises BundleError for a folder that is no bundle.
        """
        if name in FAMILIES:
            unet, text, _ = FAMILIES[str(name)]
            configs = {"unet": unet, "text_encoder": text, "vae": VAE, "tiny_vae": {}}
            return cls(str(name), spec.family(str(name)), configs)
        bundle = Bundle.open(builtin() if name == "avatar-tiny" else name, verify=False)
        folders = {part.folder: part for part in PARTS.values() if (bundle.path / part.folder).is_dir()}
        configs = {folder: part.config(bundle.path / folder) for folder, part in folders.items()}
        return cls(bundle.path.name, bundle.family, configs)

    def networks(self, rewrites: Sequence[str] = ()) -> list[str]:
        """Names of those of the spec that it has the configs of."""
        return [name for name in self.family.split(rewrites) if PARTS[name].folder in self.configs]


def work_of(
    model: Model, network: str, dims: Mapping[str, int], *, rewrites: Sequence[str] = (), groups: Sequence[str] = ()
) -> Counted:
    """Count one evaluation of a network of the spec.

    dims: the value of every symbol, as `model.family.dims(width=, height=, batch=)` gives them. rewrites, groups: as
    `spec.Family.split` takes them. Raises InputError for an unknown one, ValueError for a network the model lacks.
    """
    names = model.networks(rewrites)
    if network not in names:
        raise ValueError(f"[floor] network must be one of {', '.join(names)}, got {network}")
    return _count(model, network, tuple(sorted(dims.items())), tuple(rewrites), tuple(groups))


def of_picture(
    model: Model, *, size: tuple[int, int], evaluations: int, guided: bool, images: int = 1, tiny: bool = False,
    encode: bool = False, rewrites: Sequence[str] = (),
) -> Calls:  # fmt: skip
    """A whole call that draws `images` pictures of one prompt: prompts (with guidance also the negative one) in one
    batch, the UNet `evaluations` times on images (with guidance twice as many) rows, the decoder on images.

    size: (width, height) in pixels; tiny: the tiny VAE in place of the full one; encode: pictures come in (img2img).
    With the rewrites, what they compute once per prompt and once per schedule is counted once.
    """
    prompts = 2 if guided else 1
    width, height = size

    def count(network: str, batch: int) -> Counted:
        dims = model.family.dims(width=width, height=height, batch=batch, images=images)
        return work_of(model, network, dims, rewrites=rewrites)

    vae = "tiny_vae" if tiny else "vae"
    parts = [(1, count("text_encoder", prompts))]
    if "kv" in rewrites:
        parts.append((1, count("prompt", prompts)))
    if "time" in rewrites:
        parts.append((1, count("time", evaluations)))
    if encode:
        parts.append((1, count(f"{vae}_encoder", images)))
    parts += [(evaluations, count("unet", prompts * images)), (1, count(f"{vae}_decoder", images))]
    return Calls(tuple(parts))


def floor(work: Counted | Calls, ceilings: Ceilings, dtype: str) -> Floor:
    """The least seconds for the work in `dtype`, all of it; see above. Raises ValueError for one without a ceiling."""
    if dtype not in ceilings.flops:
        raise ValueError(f"[floor] dtype must be one of {', '.join(ceilings.flops)}, got {dtype}")
    rate, bandwidth = ceilings.flops[dtype].value, ceilings.bytes.value
    seconds = sum(times * _seconds(counted, rate, bandwidth, dtype) for times, counted in work.parts)
    return Floor(seconds, work.flops, work.bytes(dtype), dtype, rate, bandwidth)


def _seconds(counted: Counted, rate: float, bandwidth: float, dtype: str) -> float:
    ops = sum(max(op.flops / rate, op.weights * BYTES[dtype] / bandwidth) for op in counted.ops)
    return max(ops, counted.bytes(dtype) / bandwidth)


@functools.cache
def _count(
    model: Model, name: str, dims: tuple[tuple[str, int], ...], rewrites: tuple[str, ...], groups: tuple[str, ...]
) -> Counted:
    network, part = model.family.split(rewrites, groups)[name], PARTS[name]
    config = model.configs[part.folder]
    with torch.device("meta"):
        call = module_of(part.choose(config)(config), network)
    inputs = [
        torch.empty(spec.resolve(tensor.shape, dict(dims)), dtype=getattr(torch, tensor.dtype), device="meta")
        for tensor in network.inputs
    ]
    levels = len(model.family.unet_widths) if name == "unet" else 0
    with torch.no_grad(), _Watch(call.net, levels) as watch:
        outputs = call(*inputs)
    parameters = sum(parameter.numel() for parameter in call.net.parameters())
    return Counted(name, tuple(watch.ops), parameters, sum(tensor.numel() for tensor in (*inputs, *outputs)))


class _Watch(TorchFunctionMode):
    """Notes the ops that a network asks torch for, and the parameters that each is the first to read."""

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self._unread = {id(parameter) for parameter in net.parameters()}
        self._levels = levels
        self._net, self._path = net, [""]
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        def leave(*_: object) -> None:
            self._path.pop()

        for path, module in self._net.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda *_, path=path: self._path.append(path)))
            self._handles.append(module.register_forward_hook(leave))
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.__name__
        if name in _UNCOUNTED:
            raise NotImplementedError(f"[floor] a network must use conv2d, linear or attention, got {name}")
        if name != "__get__":  # looking at a tensor's dtype reads nothing of it
            flops, weights = self._flops(name, args, out), self._weights(name, args, kwargs)
            if flops or weights:
                path = self._path[-1]
                self.ops.append(Op(path, self._kind(name, path, args), self._level(path), flops, weights))
        return out

    @staticmethod
    def _flops(name: str, args: tuple[Any, ...], out: Any) -> int:
        if name in ("conv2d", "linear"):
            return 2 * out.numel() * math.prod(args[1].shape[1:])
        if name == "scaled_dot_product_attention":
            q, k, v = args[:3]
            return 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return 0

    def _weights(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        read = 0
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and id(value) in self._unread:
                self._unread.remove(id(value))
                # A row for each token, not the whole table.
                read += min(args[0].numel(), value.shape[0]) * value.shape[1] if name == "embedding" else value.numel()
        return read

    @staticmethod
    def _kind(name: str, path: str, args: tuple[Any, ...]) -> str:
        if name == "conv2d":
            return CONV if math.prod(args[1].shape[2:]) > 1 else LINEAR
        if name == "linear":
            return FEED_FORWARD if _INNER.search(path) else CROSS if _OF_PROMPT.search(path) else LINEAR
        if name == "scaled_dot_product_attention":
            return CROSS if path.endswith("attn2") else SELF
        return NORMS if name in ("group_norm", "layer_norm") else OTHER

    def _level(self, path: str) -> int | None:
        """A block's; a downsampling belongs to the level it makes, and so does an upsampling."""
        if not self._levels or path.startswith("time_embedding"):
            return None
        last = self._levels - 1
        if path.startswith("mid_block"):
            return last
        if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)", path):
            way, i, what = found.groups()
            level = int(i) if way == "down" else last - int(i)
            return level + {"downsamplers": 1, "upsamplers": -1}.get(what, 0)
        return 0


# The command.


def table(counted: Counted, dtype: str, ceilings: Ceilings | None, cells: tuple[int, int]) -> str:
    """Per class and, of the UNet, per level. cells: height and width of the latents."""
    levels = {
        "level {} x {}".format(*(-(-side // 2**level) for side in cells)): part
        for level, part in counted.by_level().items()
    }
    lines = [_ROW.format("", "GFLOP", "share", "weight MB", *(_TIMES if ceilings else ("", "", "")))]
    for name, part in (counted.by_class() | levels | {"in all": counted}).items():
        times = ["", "", ""]
        if ceilings:
            least = floor(part, ceilings, dtype)
            seconds = least.flops / least.ceiling_flops, least.bytes / least.ceiling_bytes, least.seconds
            times = [f"{1e3 * one:.3f}" for one in seconds]
        weights = f"{part.weights * BYTES[dtype] / 1e6:,.2f}"
        lines.append(
            _ROW.format(name, f"{part.flops / 1e9:,.2f}", f"{part.flops / counted.flops:.1%}", weights, *times)
        )
    return "\n".join(line.rstrip() for line in lines)


_ROW = "{:<18}{:>10}{:>8}{:>11}{:>12}{:>14}{:>12}"
_TIMES = ("compute ms", "bandwidth ms", "floor ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="sd15", help=f"{', '.join(FAMILIES)}, avatar-tiny, or a bundle's folder")
    parser.add_argument("--size", default="512x512", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--batch", type=int, default=1, help="rows of every network; guidance takes two per image")
    parser.add_argument("--dtype", choices=BYTES, default="fp32")
    parser.add_argument("--rewrites", default="", help="comma-separated, or all")
    parser.add_argument("--measure", action="store_true", help="measure the ceilings, and tell times")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the processor; every core at hand by default")
    options = parser.parse_args()

    model = Model.named(options.family)
    rewrites = spec.REWRITES if options.rewrites == "all" else tuple(filter(None, options.rewrites.split(",")))
    (width, height), batch = options.size, options.batch
    # What guidance's halves share needs to know how many images there are.
    images = batch // 2 if "prefix" in rewrites and batch % 2 == 0 else batch
    dims = model.family.dims(width=width, height=height, batch=batch, images=images)
    ceilings = measure(device=options.device, threads=options.threads) if options.measure else None
    if ceilings:
        print(f"{ceilings.device}, {ceilings.threads} threads" if ceilings.threads else ceilings.device)
        print(ceilings.table(), end="\n\n")
    everything = {name: work_of(model, name, dims, rewrites=rewrites) for name in model.networks(rewrites)}
    with_rewrites = f", rewrites {', '.join(rewrites)} ({images} images)" if rewrites else ""
    print(f"{model.name} UNet, {width}x{height}, batch {batch}, {options.dtype}{with_rewrites}")
    print(table(everything["unet"], options.dtype, ceilings, (dims["h"], dims["w"])), end="\n\n")
    print(_ROW.format("network", "GFLOP", "", "weight MB", "parameters", "", "floor ms" if ceilings else "").rstrip())
    for name, counted in everything.items():
        least = f"{1e3 * floor(counted, ceilings, options.dtype).seconds:.3f}" if ceilings else ""
        weights = f"{counted.weights * BYTES[options.dtype] / 1e6:,.2f}"
        row = _ROW.format(name, f"{counted.flops / 1e9:,.2f}", "", weights, f"{counted.parameters:,}", "", least)
        print(row.rstrip())


if __name__ == "__main__":
    main()
