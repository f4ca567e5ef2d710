"""Every peer, one row each: where it runs, how it is set, and what it can do."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["ENVIRONMENTS", "PEERS", "Peer", "environment_python", "hotloop", "requirements"]

_ROOT = Path(__file__).parents[2]
_CPU = ("cpu",)
_REQUIREMENTS = Path(__file__).with_name("requirements")
ENVIRONMENTS = tuple(sorted(path.stem for path in _REQUIREMENTS.glob("*.txt") if path.suffixes == [".txt"]))


@dataclass(frozen=True)
class Peer:
    """One way of drawing.

    name         as reported
    adapter      a module of `peers.adapters` (or the path of a Python file)
    environment  the name of a virtual environment, None for the Python that runs now
    settings     what its Adapter is opened with
    devices      where it runs
    families     the networks it can load: "any" in diffusers' layout, or "sd15" alone
    prepares     settings of its `prepare` (it must make its own form of the model first), None where it needs none
    """

    name: str
    adapter: str
    environment: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")
    families: str = "any"
    prepares: Mapping[str, Any] | None = None

    def lacking(self, device: str, model: Path | None = None) -> str | None:
        """Why it cannot run here (on that device, that model), in one line; None when it can."""
        if device not in self.devices:
            return f"needs {' or '.join(self.devices).upper()}"
        if self.environment is not None and not environment_python(self.environment).exists():
            return f"not installed: run `make bench-env` (no {environment_python(self.environment).parents[1]})"
        if self.families == "sd15" and model is not None and not is_sd15(model):
            return "draws with Stable Diffusion's published shapes only"
        return None

    def python(self) -> str:
        return sys.executable if self.environment is None else str(environment_python(self.environment))

    def stamp(self) -> str:
        """Changes when the peer's packages may."""
        files = () if self.environment is None else requirements(self.environment)
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def environment_python(name: str) -> Path:
    """Its interpreter, there or not. HOTLOOP_BENCH_ENVS names another folder of environments than .venv-bench."""
    folder = Path(os.environ.get("HOTLOOP_BENCH_ENVS") or _ROOT / ".venv-bench")
    return folder / name / "bin" / "python"


def requirements(environment: str) -> tuple[Path, ...]:
    """Its requirement files, in the order of installing: what pip resolves, then what it must not."""
    files = (_REQUIREMENTS / f"{environment}.txt", _REQUIREMENTS / f"{environment}.no-deps.txt")
    return tuple(file for file in files if file.exists())


@cache
def is_sd15(model: Path) -> bool:
    """Whether a diffusers folder has the UNet of Stable Diffusion 1."""
    config = json.loads((model / "unet" / "config.json").read_text())
    return config["block_out_channels"] == [320, 640, 1280, 1280] and config["cross_attention_dim"] == 768


def hotloop(engine: str, *, name: str | None = None, **settings: Any) -> Peer:
    """hotloop with one engine of the setup's bundle, measured as the peers are. settings: `hotloop.load`'s (vae)."""
    return Peer(name or f"hotloop {engine}", "hotloop", settings={"engine": engine, **settings})


def _diffusers(name: str, dtype: str, *, compiled: bool = False, devices: tuple[str, ...] = ("cpu", "cuda")) -> Peer:
    return Peer(name, "diffusers", "diffusers", {"dtype": dtype, "compiled": compiled}, devices)


def _openvino(name: str, precision: str) -> Peer:
    return Peer(name, "optimum_openvino", "optimum-openvino", {"precision": precision}, _CPU, prepares={})


def _sd_cpp(name: str, weights: str) -> Peer:
    kind = {"weights": weights}
    return Peer(name, "stable_diffusion_cpp", "stable-diffusion-cpp", kind, _CPU, families="sd15", prepares=kind)


def _by_name(rows: Iterable[Peer]) -> Mapping[str, Peer]:
    return {row.name: row for row in rows}


PEERS = _by_name(
    (
        _diffusers("diffusers eager fp32", "float32"),
        _diffusers("diffusers eager bf16", "bfloat16"),
        _diffusers("diffusers eager fp16", "float16", devices=("cuda",)),
        _diffusers("diffusers compiled fp32", "float32", compiled=True),
        _diffusers("diffusers compiled bf16", "bfloat16", compiled=True),
        _diffusers("diffusers compiled fp16", "float16", compiled=True, devices=("cuda",)),
        Peer("optimum onnxruntime fp32", "optimum_onnx", "optimum-onnx", {}, _CPU, prepares={}),
        _openvino("optimum openvino fp32", "f32"),
        _openvino("optimum openvino bf16", "bf16"),
        _sd_cpp("stable-diffusion.cpp fp16", "f16"),
        _sd_cpp("stable-diffusion.cpp q8_0", "q8_0"),
        Peer("streamdiffusion fp16", "streamdiffusion", "streamdiffusion", {"dtype": "float16"}, ("cuda",)),
    )
)
