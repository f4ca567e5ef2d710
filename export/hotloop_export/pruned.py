"""A source folder with a network pruned (`prune`), and what that bought: `hotloop prune`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hotloop.checks import check_integer, check_number
from hotloop.errors import InputError
from hotloop.nets import rewrites
from hotloop.nets.base import Net
from hotloop.nets.clip import CLIPText
from hotloop.nets.generators import constants
from hotloop.nets.unet import UNet
from hotloop.spec import FAMILIES, Network, family
from hotloop.tokenizer import Tokenizer

from . import layers
from .generators import is_generator, read_generator
from .onnx import export_graph, sample_inputs
from .prune import Batch, Run, distil, likeness, parameters, places, prune
from .reference import PROMPTS
from .sources import Source, open_source
from .store import beside, full_disk_is_one_line, swap

__all__ = ["Report", "prune_folder"]

_PLACE = "prune"
_MEASURED, _HELD, _BATCH = 8, 4, 64  # batches that importance is measured on, and quality; latents of a batch
_UNET_BATCH = 4
_RATE, _UNET_RATE = 2e-3, 2e-5  # of distillation: a large network leaves what it knows at a large rate
_ROUNDS = 40
# Of a checkpoint: what exports made, and the network that changes.
_LEFT_OUT = ("unet", "manifest.json", "parity", "engines", "*.onnx", "*.onnx.data", "derived.safetensors", ".*")


@dataclass(frozen=True)
class Report:
    """parameters before and after; milliseconds of one run in ONNX Runtime before and after, in turns (None: not
    timed); quality in dB, pruned and after `steps` of distillation, and what is measured."""

    parameters: tuple[int, int]
    milliseconds: tuple[float, float] | None
    pruned: float
    distilled: float
    steps: int
    measure: str

    def lines(self) -> list[str]:
        before, after = self.parameters
        told = [f"parameters  {before:,} -> {after:,} ({after / before:.3f})",
                f"size        {before * 4 / 1e6:.3g} -> {after * 4 / 1e6:.3g} MB in float32"]  # fmt: skip
        if self.milliseconds:
            old, new = self.milliseconds
            told.append(f"speed       {old:.3g} -> {new:.3g} ms, {old / new:.2f} times as fast (ONNX Runtime in turns)")
        then = f", after {self.steps} steps of distillation {self.distilled:.1f} dB" if self.steps else ""
        return [*told, f"quality     pruned {self.pruned:.1f} dB{then} ({self.measure})"]


def prune_folder(
    source: Path, out: Path, *, keep: float, steps: int = 400, unet: bool = False, timed: bool = True, seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Report:  # fmt: skip
    """Write a source folder `out` whose network has at most `keep` of its parameters; it exports like any other.

    source  a generator's folder (`generators`), or with `unet` a diffusers folder
    steps   of distillation against the unpruned network's outputs, four minutes at most; 0: none
    timed   run both in ONNX Runtime, in turns

    Raises InputError for a source or numbers that do not fit, or an `out` that exists; nothing is then written.
    """
    check_number(_PLACE, "keep", keep, 0.01, 1)
    check_integer(_PLACE, "steps", steps, 0, 1_000_000)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(_PLACE, "out must be a new name or an empty folder", str(out))
    if not source.is_dir():
        raise InputError(_PLACE, "source must be a folder", str(source))
    if is_generator(source):
        if unet:
            raise InputError(_PLACE, "a generator has no UNet: leave --unet out", str(source))
        return _generator(source, out, keep=keep, steps=steps, timed=timed, seed=seed, say=say)
    if not unet:
        raise InputError(_PLACE, "source must be a generator's folder; a checkpoint's UNet is pruned with --unet",
                         str(source))  # fmt: skip
    return _checkpoint(source, out, keep=keep, steps=steps, timed=timed, seed=seed, say=say)


def _generator(
    source: Path, out: Path, *, keep: float, steps: int, timed: bool, seed: int, say: Callable[[str], None]
) -> Report:
    net, _ = read_generator(source)

    def batch(i: int) -> Batch:
        noise = torch.Generator().manual_seed(seed + i)
        z = torch.randn(_BATCH, net.z, generator=noise)
        return (z, torch.randint(0, net.classes, (_BATCH,), generator=noise)) if net.classes else (z,)

    def run(any_: Net, given: Batch) -> Tensor:
        made: Tensor = any_.draw(*given)  # type: ignore[operator]
        return made

    places(net)  # refuses what it knows no channels of
    row = FAMILIES["generator"].with_constants(constants(net))
    report, made = _pruned(
        net, batch, run, keep=keep, steps=steps, rate=_RATE, peak=2.0, say=say,
        measure="PSNR of pictures of held-out seeds", network=row.networks["generator"] if timed else None,
        dims={"B": 1},
    )  # fmt: skip
    with full_disk_is_one_line(out), beside(out) as work:
        made.save(work / "generator", dtype=torch.float32)
        if (source / "critic").is_dir():
            shutil.copytree(source / "critic", work / "critic")
        swap(work, out)
    return report


def _checkpoint(
    source: Path, out: Path, *, keep: float, steps: int, timed: bool, seed: int, say: Callable[[str], None]
) -> Report:
    opened = open_source(source)
    net = UNet.from_tensors(opened.configs["unet"], opened.tensors["unet"])
    states, side = _states(opened), _side(net)

    def batch(i: int) -> Batch:
        noise = torch.Generator().manual_seed(seed + i)
        sample = torch.randn(_UNET_BATCH, net.in_channels, side, side, generator=noise)
        timestep = torch.rand(_UNET_BATCH, generator=noise) * 999
        return sample, timestep, states[torch.randint(0, len(states), (_UNET_BATCH,), generator=noise)]

    def run(any_: Net, given: Batch) -> Tensor:
        made: Tensor = any_(*given)
        return made

    row = replace(
        family(opened.family).with_constants(rewrites.constants(net)), context_dim=net.context_dim,
        unet_channels=net.in_channels,
    )  # fmt: skip
    dims = row.dims(width=side * row.vae_factor, height=side * row.vae_factor, batch=2)
    report, made = _pruned(
        net, batch, run, keep=keep, steps=steps, rate=_UNET_RATE, peak=None, say=say,
        measure="signal to noise of predictions on noise", network=row.networks["unet"] if timed else None, dims=dims,
    )  # fmt: skip
    with full_disk_is_one_line(out), beside(out) as work:
        shutil.copytree(source, work, ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
        made.save(work / "unet", dtype=torch.float32)
        swap(work, out)
    return report


def _states(source: Source) -> Tensor:
    """The text encoder's hidden states of some prompts, [prompts, 77, D]."""
    text = CLIPText.from_tensors(source.configs["text_encoder"], source.tensors["text_encoder"])
    ids = Tokenizer.from_dir(source.tokenizer).encode(list(PROMPTS)).ids
    with torch.no_grad():
        states: Tensor = text(torch.from_numpy(ids.reshape(len(PROMPTS), -1)))[0]
    return states


def _side(net: UNet) -> int:
    """Latent cells a side."""
    size = net.config.get("sample_size", 64)
    return size if isinstance(size, int) else min(size)


def _pruned(
    net: Net, batch: Callable[[int], Batch], run: Run, *, keep: float, steps: int, rate: float, peak: float | None,
    measure: str, network: Network | None, dims: dict[str, int], say: Callable[[str], None],
) -> tuple[Report, Net]:  # fmt: skip
    say("measuring importance")
    made = prune(net, keep, [batch(i) for i in range(_MEASURED)], run)
    held = [batch(1_000_000 + i) for i in range(_HELD)]
    pruned = likeness(net, made, held, run, peak=peak)
    distilled = pruned
    if steps:
        say(f"distilling, {steps} steps")
        before = {name: value.clone() for name, value in made.state_dict().items()}
        steps = distil(net, made, lambda i: batch(_MEASURED + i), run, steps=steps, rate=rate)
        distilled = likeness(net, made, held, run, peak=peak)
        if not distilled >= pruned:
            say(f"distillation took it from {pruned:.1f} to {distilled:.1f} dB: what was pruned is kept as it was")
            made.load_state_dict(before)
            distilled, steps = pruned, 0
    sizes = parameters(net), parameters(made)
    took = _timed([net, made], network, dims) if network is not None else None
    return Report(sizes, took, pruned, distilled, steps, measure), made


def _timed(nets: Sequence[Net], network: Network, dims: dict[str, int]) -> tuple[float, float]:
    """Milliseconds of a run of each in ONNX Runtime, the best of rounds in turns."""
    inputs = sample_inputs(network, dims, seed=0, ids=1)
    with tempfile.TemporaryDirectory(prefix="hotloop-prune-") as temporary:
        runs = []
        for i, net in enumerate(nets):
            folder = Path(temporary) / str(i)
            net.save(folder, dtype=torch.float32)
            export_graph(net, network, folder / "model.onnx")
            runs.append(layers.runner("onnx", folder / "model.onnx", "fp32"))
        before, after = layers.times(runs, inputs, rounds=_ROUNDS)
    return 1e3 * before, 1e3 * after
