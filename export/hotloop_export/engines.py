"""One builder per engine kind: what it needs of the bundle being made, what it adds, what the manifest says of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hotloop import engines
from hotloop.bundle import BUILT_NEVER_RUN, CERTIFIED, Bundle, Entry
from hotloop.engines.tensorrt import compute_capability
from hotloop.errors import BundleError, InputError
from hotloop.evaluation.certificates import BOUNDS, broken, certify, compare, opened
from hotloop.evaluation.metrics import decibels, mse
from hotloop.files import cache_folder
from hotloop.nets.base import Net
from hotloop.selection import Choice
from hotloop.spec import Family, GeneratorFamily, phase_grid
from hotloop.weights import Weights

from . import layers, quantize, tensorrt
from .onnx import PARTS, graph_name, point_graph, trace_graph
from .progress import Progress
from .recipe import Recipe, Target, mixes
from .reference import PROMPTS, images_for
from .store import Store, code_version, key_of

__all__ = ["BUILDERS", "Builder", "Making"]

# 24 sets of UNet inputs: NNCF and ONNX Runtime evaluate the network in float32 on each.
_CALIBRATION_PROMPTS, _CALIBRATION_STEPS = 4, 6
# A decoder's errors go straight to the picture, with no later step to mend them: in int8 its pictures must come this
# close to float32's (PSNR in dB over the calibration's latents), or it stays as it is.
_DECODED = 30.0
# What stays in floating point in any case: the ends of a decoder, of few channels. Latents of any scale come in there,
# and the norms that follow bring them to one.
_ENDS = ("post_quant_conv", "decoder.conv_in", "decoder.conv_out")
# The networks that draw, of which a bundle has one: they are quantised, and a wrong image is laid to them.
_PAINTERS = ("unet", "generator", "synthesis")
_LATENTS = 32  # a generator's calibration
# Networks around a model of faces that int8 pays for: 1.7, 1.8 and 2.5 times as fast as float32 in OpenVINO on one
# thread, interleaved (bfloat16, where a processor has it: 2.0, 1.9 and 1.9). The animator's halves gained 1.3 and 1.1.
_AROUND_INT8 = ("segmenter", "upscaler", "clip_image")


@dataclass
class Making:
    """A bundle being made: the folder `work`, its manifest so far, and the networks by component."""

    work: Path
    manifest: dict[str, Any]
    family: Family
    recipe: Recipe
    nets: Mapping[str, Net]
    storage: str
    store: Store
    progress: Progress
    graphs: dict[tuple[str, str], str] = field(default_factory=dict)  # (network, arithmetic) -> file

    @cached_property
    def code(self) -> str:
        return code_version("hotloop.nets", "hotloop.spec", "hotloop_export.onnx")

    def __post_init__(self) -> None:
        """networks: those that this bundle has, with what its rewrites split off."""
        rows = self.family.split(self.recipe.rewrites, self.recipe.groups)
        self.networks = tuple(name for name in rows if PARTS[name].folder in self.nets)

    @property
    def bundle(self) -> Bundle:
        return Bundle(self.work, self.manifest, self.family)

    @property
    def painter(self) -> str:
        """The network that draws."""
        return next(name for name in _PAINTERS if name in self.networks)

    @property
    def grid(self) -> int:
        return phase_grid(self.family) if "phase" in self.recipe.rewrites else 1

    def write_graphs(self) -> None:
        """Every graph that the recipe's engines read, once for each arithmetic."""
        wanted = {BUILDERS[target.kind].arithmetic(target) for target in self.recipe.targets} - {None}
        for compute in sorted(map(str, wanted)):
            for name in self.networks:
                graph = self._graph_name(name, compute)
                file = self.work / PARTS[name].folder / graph
                self.graphs[name, compute] = file.relative_to(self.work).as_posix()
                if not file.exists():  # else of an engine that the bundle has
                    with self.progress.stage(f"ONNX graph of {name}" + (f" in {compute}" if compute != "fp32" else "")):
                        self._write_graph(name, file, compute)

    def _graph_name(self, name: str, compute: str) -> str:
        """One with modules kept in float32 has a name of its own: another engine of the bundle may keep others."""
        names = [graph_name(name, self.recipe.rewrites, self.recipe.groups, c) for c in ("fp32", compute)]
        if (keep := self._given_keep()) and len(set(names)) == 2:
            return f"{names[1].removesuffix('.onnx')}.{key_of({'keep': sorted(keep)})[:8]}.onnx"
        return names[1]

    def _write_graph(self, name: str, file: Path, compute: str) -> None:
        network = self.family.split(self.recipe.rewrites, self.recipe.groups)[name]
        net = self.nets[PARTS[name].folder]
        keep = () if compute == "fp32" else self._given_keep()
        # All that decides the traced graph; where the weights lie, and how they are stored, comes after.
        key = key_of({
            "code": self.code, "config": net.config, "class": net.class_name, "network": repr(network),
            "compute": compute, "keep": sorted(keep),
            "tools": [version(tool) for tool in ("torch", "onnx", "onnxscript")],
        })  # fmt: skip
        traced = self.store.graph(key, lambda: trace_graph(net, network, compute=compute, keep_fp32=keep))
        point_graph(traced, net, network, file)

    def build_and_certify(self, targets: Sequence[Target]) -> None:
        """Add the engines to the manifest. Raises BundleError naming the bound that one breaks and its worst layer."""
        for target in targets:
            builder = BUILDERS[target.kind]
            with self.progress.stage(f"build {target.name}"):
                entry = builder.build(self, target, keep=self._given_keep())
            self.manifest["engines"].append(entry)
            if entry["status"] == BUILT_NEVER_RUN:
                continue
            with self.progress.stage(f"certify {target.name}"):
                self._certify(entry, target)

    def _given_keep(self) -> tuple[str, ...]:
        return () if isinstance(self.recipe.keep_fp32, str) else self.recipe.keep_fp32

    def _certify(self, entry: dict[str, Any], target: Target) -> None:
        certificate, problem = self._measure(entry)
        if problem and self.recipe.keep_fp32 == "auto":
            for _ in self.networks:  # each lift mends a network
                with self.progress.stage(f"lift {target.name}"):
                    self._lift(entry, target, problem)
                certificate, problem = self._measure(entry)
                if not problem:
                    break
        if problem:
            raise BundleError("export", f"{target.name} is not the model: {problem}{self._worst(target, problem)}")
        entry["certificate"] = certificate

    def _measure(self, entry: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        read = Entry.read(entry)
        certificate = certify(self.open(read))
        gc.collect()  # a pipeline refers to itself: gigabytes would stay for the next engine to come on top of
        return certificate, broken(certificate, read)

    def _lift(self, entry: dict[str, Any], target: Target, problem: str) -> None:
        """Keep what breaks the bound in float32; the manifest says what, and what it cost."""
        name = self._named(problem)
        if (name, "fp32") not in self.graphs or target.precision not in ("int8", "bf16"):
            raise BundleError("export", f"{target.name} is not the model: {problem}; nothing to keep in float32")
        int8 = entry["networks"][name].get("precision") == "int8"
        lifted = layers.lift(
            target.kind, self.work / self.graphs[name, "fp32"], self.calibration[name],
            precision="int8" if int8 else "bf16", bound=BOUNDS["int8" if int8 else "bf16"].cosine, network=name,
            out=self.work / entry["networks"][name]["path"] if int8 else None, keep=self._ends(target.kind, name),
        )  # fmt: skip
        if lifted.keep == (name,):
            entry["networks"][name]["precision"] = "fp32"
        entry["keep_fp32"] = sorted({*entry["keep_fp32"], *lifted.keep})
        entry.setdefault("lifted", {})[name] = {
            "cosine_before": lifted.before, "cosine": lifted.cosine, "time_ratio": round(lifted.slower, 3),
        }  # fmt: skip

    def _worst(self, target: Target, problem: str) -> str:
        """The layer that is most to blame, where layers can be told apart."""
        name = self._named(problem)
        if target.precision not in ("int8", "bf16") or (name, "fp32") not in self.graphs:
            return ""
        precision = target.precision if name == self.painter else "bf16"
        if target.kind == "onnx" and precision == "bf16":
            return ""
        graph = self.work / self.graphs[name, "fp32"]
        ranked = layers.worst_layers(target.kind, graph, self.calibration[name][:2], precision=precision)
        return f"; worst layer {ranked[0][0]} of {name}; --keep-fp32 auto lifts what is needed" if ranked else ""

    def _named(self, problem: str) -> str:
        """The network a problem is about; an image's is the painter's."""
        name = problem.partition(":")[0]
        return self.painter if name.startswith("image ") else name

    def open(self, entry: Entry, device: str | None = None, *, vae: str | None = None) -> Any:
        """A pipeline or generator on an engine of the bundle being made. vae: as in `hotloop.load`."""
        on = device or engines.devices(entry.kind)[0]
        # What is compiled here would be kept under a place that is gone when the bundle is finished.
        return opened(self.bundle, Choice(entry, on, "being certified"), vae=vae, keep_compiled=False)

    def shared(self, compute: str, precision: str) -> dict[str, dict[str, str]]:
        """The networks' entry for an engine that reads the ONNX graphs as they are."""
        return {name: {"path": self.graphs[name, compute], "precision": precision} for name in self.networks}

    @cached_property
    def calibration(self) -> dict[str, list[dict[str, np.ndarray]]]:
        """Every network's inputs in real runs, drawn with the graphs in float32 and the model's own VAE."""
        entry = Entry.read(self.entry(Target("onnx", "fp32"), self.shared("fp32", "fp32")))
        if isinstance(self.family, GeneratorFamily):
            return quantize.latent_inputs(self.open(entry), _LATENTS)
        size = images_for(self.family, "quick", self.manifest["defaults"]).size
        return quantize.calibration_inputs(
            self.open(entry, vae="full"), PROMPTS[:_CALIBRATION_PROMPTS], steps=_CALIBRATION_STEPS, size=size
        )

    def quantized(
        self, target: Target, keep: Sequence[str], names: Sequence[str], *, suffix: str, by: Callable[..., None]
    ) -> dict[str, dict[str, str]]:
        """These networks in int8, calibrated on real runs; without those whose pictures or answers would suffer.

        keep: layers of any of them. Raises InputError for a name that none has.
        """
        found = {name: self._layers(target.kind, name) for name in names}
        own = {name: [one for one in keep if any(quantize.kept(layer, [one]) for layer in found[name])]
               for name in names}  # fmt: skip
        if unknown := sorted(set(keep).difference(*own.values())):
            raise InputError("quantize", f"layers to keep must be modules of {' or '.join(names)}", unknown[0])
        made = {}
        for name in names:
            if all(quantize.kept(layer, own[name]) for layer in found[name]):
                continue
            out = self.work / "engines" / target.name / f"{name}{suffix}"
            out.parent.mkdir(parents=True, exist_ok=True)
            kept = tuple(dict.fromkeys([*own[name], *self._ends(target.kind, name)]))
            by(self.work / self.graphs[name, "fp32"], out, self.calibration[name], keep=kept)
            if name in ("vae_decoder", *_AROUND_INT8) and (reason := self._spoilt(target.kind, name, out)):
                for file in out.parent.glob(f"{name}.*"):
                    file.unlink()
                self.progress.say(f"{name} stays in floating point: in int8 {reason}")
                continue
            made[name] = {"path": out.relative_to(self.work).as_posix(), "precision": "int8"}
        return made

    def _layers(self, kind: str, name: str) -> set[str]:
        return set(layers.layers_of(kind, self.work / self.graphs[name, "fp32"]).values())

    def _ends(self, kind: str, name: str) -> list[str]:
        return [one for one in _ENDS if name == "vae_decoder" and one in self._layers(kind, name)]

    def _spoilt(self, kind: str, name: str, file: Path) -> str | None:
        """Why a quantised network is not to be used: a decoder's pictures of the calibration's latents, or what it
        makes of the reference's inputs."""
        low = layers.runner(kind, file, "int8")
        if name == "vae_decoder":
            full = layers.runner(kind, self.work / self.graphs[name, "fp32"], "fp32")
            pictures = [[np.clip(run(one)["image"], -1, 1) for run in (low, full)] for one in self.calibration[name]]
            decoded = decibels(float(np.mean([mse(got, want) for got, want in pictures])), peak=2.0)
            if decoded < _DECODED:
                return f"its pictures are {decoded:.1f} dB from float32's, {_DECODED:g} needed"
        reference = Weights.open(self.bundle.file(self.manifest["parity"]["files"][name]))
        given, want = (
            {key.removeprefix(side): reference[key] for key in reference if key.startswith(side)}
            for side in ("in.", "out.")
        )
        cosine = compare(low(given), want).cosine
        if not cosine >= BOUNDS["int8"].cosine:
            return f"its cosine to the reference is {cosine:.4f}, {BOUNDS['int8'].cosine:g} needed"
        return None

    def entry(self, target: Target, networks: dict[str, dict[str, str]], **others: Any) -> dict[str, Any]:
        """What the manifest says of an engine."""
        return {
            "kind": target.kind, "precision": target.precision, "storage": self.storage,
            "rewrites": list(self.recipe.rewrites), "groups": list(self.recipe.groups), "grid": self.grid,
            "target": "any", "library": engines.version(target.kind), "status": CERTIFIED, "networks": networks,
            "keep_fp32": [], "certificate": {},
        } | others  # fmt: skip


class Builder(Protocol):
    """What an engine kind adds to a bundle."""

    def arithmetic(self, target: Target) -> str | None:
        """What the ONNX graphs it reads compute in; None when it reads none."""
        ...

    def machine(self, target: Target) -> str:
        """What of this machine decides the bytes it makes; empty when nothing does."""
        ...

    def build(self, making: Making, target: Target, *, keep: Sequence[str]) -> dict[str, Any]:
        """Make the engine's files, give its entry for the manifest. keep: modules that stay in float32."""
        ...


class _Onnx:
    def arithmetic(self, target: Target) -> str | None:
        return "fp32"

    def machine(self, target: Target) -> str:
        return ""

    def build(self, making: Making, target: Target, *, keep: Sequence[str]) -> dict[str, Any]:
        # Half precision is storage here: ONNX Runtime widens it when it opens the graph.
        networks = making.shared("fp32", "fp32")
        if target.precision == "int8":
            networks |= making.quantized(target, keep, [making.painter], suffix=".onnx", by=quantize.quantize_onnx)
        return making.entry(target, networks, keep_fp32=list(keep) if mixes(target) else [])


class _OpenVino:
    def arithmetic(self, target: Target) -> str | None:
        return "fp32"

    def machine(self, target: Target) -> str:
        # What an int8 engine does not quantise runs in bf16 where the processor has it.
        return " ".join(engines.precisions("openvino", "cpu")) if target.precision == "int8" else ""

    def build(self, making: Making, target: Target, *, keep: Sequence[str]) -> dict[str, Any]:
        able = engines.precisions("openvino", "cpu")
        rest = {"fp32": "fp32", "fp16": "fp32", "bf16": "bf16", "int8": "bf16" if "bf16" in able else "fp32"}
        networks = making.shared("fp32", rest[target.precision])
        if target.precision == "int8":
            low = [name for name in (making.painter, "vae_decoder", *_AROUND_INT8) if name in networks]
            networks |= making.quantized(target, keep, low, suffix=".xml", by=quantize.quantize_openvino)
        return making.entry(target, networks, keep_fp32=list(keep) if mixes(target) else [])


class _TensorRt:
    def arithmetic(self, target: Target) -> str | None:
        return target.precision

    def machine(self, target: Target) -> str:
        devices = engines.devices(target.kind)
        return f"{target.kind} {compute_capability()}" if devices else f"{target.kind} without a GPU"

    def build(self, making: Making, target: Target, *, keep: Sequence[str]) -> dict[str, Any]:
        recipe, folder = making.recipe, making.work / "engines" / target.name
        folder.mkdir(parents=True, exist_ok=True)
        rows = making.family.split(recipe.rewrites, recipe.groups)
        weights = "strip" if tensorrt.can_strip(target.kind) else "embed"
        networks: dict[str, dict[str, str]] = {}
        aimed: list[set[str]] = []
        for name in making.networks:
            plan = folder / f"{name}.plan"
            info = tensorrt.build_plan(
                target.kind, making.work / making.graphs[name, target.precision], rows[name], plan,
                family=making.family, shapes=recipe.shapes or [making.family.default_size], batches=recipe.batches,
                weights=weights, precision=target.precision, cache=cache_folder() / "tensorrt",
                progress=making.progress.part,
            )  # fmt: skip
            networks[name] = {"path": plan.relative_to(making.work).as_posix()}
            aimed.append(set(info.targets))
        status = CERTIFIED if engines.devices(target.kind) else BUILT_NEVER_RUN
        shapes = [f"{width}x{height}" for width, height in recipe.shapes or [making.family.default_size]]
        entry = making.entry(target, networks, status=status, shapes=shapes, batches=list(recipe.batches))
        storage = making.storage if weights == "strip" else target.precision
        return entry | {
            "target": " ".join(sorted(set.intersection(*aimed), key=_number)),
            "storage": storage,
            "keep_fp32": list(keep) if mixes(target) else [],
        }


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


class _Native:
    """Weights and settings only."""

    def arithmetic(self, target: Target) -> str | None:
        return None

    def machine(self, target: Target) -> str:
        return ""

    def build(self, making: Making, target: Target, *, keep: Sequence[str]) -> dict[str, Any]:
        weights = making.manifest["weights"]
        networks = {name: {"path": weights[PARTS[name].folder]["path"]} for name in making.networks}
        return making.entry(target, networks)


BUILDERS: Mapping[str, Builder] = {
    "onnx": _Onnx(), "openvino": _OpenVino(), "tensorrt": _TensorRt(), "tensorrt_rtx": _TensorRt(),
    "native": _Native(),
}  # fmt: skip
