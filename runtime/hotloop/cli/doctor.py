"""What this machine has: Python, engines, kernels, the built-in model; and what to install for the rest."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import hotloop_kernels

from .. import engines
from ..bundle import BUILT_NEVER_RUN, Bundle, builtin
from ..errors import HotloopError

__all__ = ["Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, whether it is there, what was found, what to do if not."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything once; never raises."""
    return [_host(), *_engines(), _kernels(), _cuda_kernels(), _compiler(), _gpu(), _model()]


def _host() -> Finding:
    quota = hotloop_kernels.quota()
    limits = f"affinity {hotloop_kernels.affinity()}, cgroup quota {'none' if quota is None else format(quota, 'g')}"
    cores = f"{hotloop_kernels.usable_cores()} usable cores ({limits})"
    return Finding("machine", True, f"Python {platform.python_version()}, {platform.machine()}, {cores}")


def _engines() -> list[Finding]:
    findings = []
    for kind, install in engines.available().items():
        if install is not None:
            findings.append(Finding(f"engine {kind}", False, "not installed", install))
        elif devices := engines.devices(kind):
            able = ", ".join(f"{device} ({', '.join(_precisions(kind, device))})" for device in devices)
            findings.append(Finding(f"engine {kind}", True, f"{engines.version(kind)} on {able}"))
        else:
            found = f"{engines.version(kind)}, no device it runs on: what is built here is {BUILT_NEVER_RUN}"
            findings.append(Finding(f"engine {kind}", False, found, "a GPU that it supports, with its driver"))
    return findings


def _precisions(kind: str, device: str) -> Iterator[str]:
    """Those that are slower than float32 with their speed."""
    speeds = engines.speeds(kind, device)
    for name in engines.precisions(kind, device):
        slow = speeds.get(name, 1.0) < 1
        yield f"{name} at {speeds[name]:.2f} of fp32's speed" if slow else name


def _kernels() -> Finding:
    info = hotloop_kernels.build_info()
    if info["compiled"]:
        return Finding("kernels", True, f"compiled by {info['compiler']}, running on {info['isa']}")
    return Finding(
        "kernels",
        False,
        f"NumPy fallbacks ({info['reason']})",
        "install a C++ compiler and Python's headers, then reinstall hotloop",
    )


def _cuda_kernels() -> Finding:
    """What was compiled for GPUs, and which operators run fused on which."""
    name, info, proved = "CUDA kernels", hotloop_kernels.build_info(), hotloop_kernels.proved
    if not info.get("cuda"):
        return Finding(name, False, "not compiled", "nvcc, then: pip install . -C cmake.define.HOTLOOP_CUDA=ON")
    compiled = f"compiled for {', '.join(info['cuda'])}"
    if not proved:
        found = f"{compiled}; none has run on a GPU yet: torch's operators stand in"
        return Finding(name, False, found, "make gpu-check, on a machine with a GPU")
    told = "; ".join(f"{architecture}: {', '.join(sorted(names))}" for architecture, names in sorted(proved.items()))
    return Finding(name, True, f"{compiled}; proved and used on {told}; torch's operators stand in elsewhere")


def _compiler() -> Finding:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    return Finding("C++ compiler", found is not None, found or "none", "" if found else "apt install g++ python3-dev")


def _gpu() -> Finding:
    kinds = [kind for kind, install in engines.available().items() if install is None]
    if able := [kind for kind in kinds if "cuda" in engines.devices(kind)]:
        return Finding("CUDA", True, f"{', '.join(able)} can use it")
    return Finding("CUDA", False, "not used", "pip install onnxruntime-gpu on a machine with an NVIDIA GPU")


def _model() -> Finding:
    try:
        bundle = Bundle.open(builtin())
    except HotloopError as error:
        return Finding("built-in model", False, str(error), "reinstall hotloop")
    return Finding("built-in model", True, f"{bundle.family.name}, verified, {bundle.id[:12]}")
