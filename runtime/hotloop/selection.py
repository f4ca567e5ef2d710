"""Which of a bundle's engines this machine shall run, and why."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from . import engines
from .bundle import CERTIFIED, Bundle, Entry
from .errors import InputError

__all__ = ["Choice", "candidates", "choose", "runs_in"]

# Fastest first on each device. The order of OpenVINO's precisions and ONNX Runtime's on the CPU is measured
# (docs/benchmarks.md; ONNX Runtime's int8 ran the built-in UNet at 0.84 of its fp32's speed); the rest is assumed.
_RANK = {
    "cuda": ("tensorrt-fp16", "tensorrt_rtx-fp16", "native-fp16", "native-bf16", "onnx-fp16", "tensorrt-bf16",
             "tensorrt_rtx-bf16", "tensorrt-fp32",
             "tensorrt_rtx-fp32", "native-fp32", "onnx-fp32"),
    "cpu": ("openvino-int8", "openvino-bf16", "openvino-fp32", "openvino-fp16", "onnx-fp32", "onnx-fp16", "onnx-int8",
            "native-bf16", "native-fp32", "native-fp16"),
}  # fmt: skip
# A precision below fp32 comes before it where it is at least so much faster, as far as its engine has timed that.
_WORTH = 1.05
# int8's bound is a cosine per network: images may still differ visibly. "auto" takes an int8 engine whose certified
# images are this close to float32's (dB), or whose certificate shows that the attributes drawn are still right.
_ALIKE, _ATTRIBUTES = 30.0, 0.02


@dataclass(frozen=True)
class Choice:
    """An engine of the bundle, the device it runs on, and the reason in words."""

    entry: Entry
    device: str
    why: str


def candidates(bundle: Bundle, device: str = "auto") -> tuple[list[tuple[Entry, str]], dict[str, str]]:
    """(every engine that can run here with every device it can run on, fastest first; the others' names with what
    stands in the way)."""
    able: list[tuple[Entry, str]] = []
    unable = {}
    for entry in bundle.entries:
        found = _devices(entry, device)
        if isinstance(found, list):
            able += [(entry, on) for on in found]
        else:
            unable[entry.name] = found.rule
    slow = _slow(able)
    return sorted(able, key=lambda pair: _place(*pair, slow=(pair[0].name, pair[1]) in slow)), unable


def choose(bundle: Bundle, asked: str = "auto", device: str = "auto") -> list[Choice]:
    """The engines to run, best first: the second is for when the first does not open.

    asked   "auto" (the fastest certified one that can run; int8 that draws visibly other images comes last), a kind
            ("openvino": its fastest), or a name ("openvino-bf16")
    device  "auto", "cpu" or "cuda"

    Raises InputError when the bundle has no such engine or none can run here. With "auto" an engine that would be
    faster but cannot run here is warned of, never passed over in silence.
    """
    named = [entry for entry in bundle.entries if asked in ("auto", entry.kind, entry.name)]
    if not named:
        names = ", ".join(["auto", *(entry.name for entry in bundle.entries)])
        raise InputError("load", f"engine must be one this bundle was built with: {names}", asked)
    able, unable = candidates(bundle, device)
    able = [(entry, on) for entry, on in able if entry in named]
    differing: dict[str, str] = {}
    if asked == "auto":
        for entry, _ in able:
            if entry.status != CERTIFIED:
                unable[entry.name] = f"{entry.status}; `hotloop verify --update` certifies it here"
        able = [(entry, on) for entry, on in able if entry.status == CERTIFIED]
        differing = {entry.name: reason for entry, _ in able if (reason := _differs(entry))}
        able.sort(key=lambda pair: pair[0].name in differing)  # stable: the rest keeps its order
    if not able:
        reasons = "; ".join(f"{entry.name}: {unable[entry.name]}" for entry in named)
        raise InputError("load", f"no engine of this bundle can run here ({reasons})", asked)
    best, on = able[0]
    if asked == "auto":
        _warn_of_faster(best, on, {entry.name: entry for entry in named}, unable)
    notes = [f"{name} cannot run: {reason}" for name, reason in unable.items()]
    notes += [f"{name} comes last: {reason}" for name, reason in differing.items() if name != best.name]
    notes += [
        f"{name} comes after fp32: its precision runs at {speed:.2f} of fp32's speed here"
        for (name, where), speed in _slow(able).items() if (name, where) != (best.name, on)
    ]  # fmt: skip
    choices = []
    for i, (entry, where) in enumerate(able):
        rivals = [f"{other.name} on {at}" for other, at in able[i + 1 :] if other.name not in differing]
        why = "asked for" if asked == entry.name else "faster than " + ", ".join(rivals) if rivals else "the only one"
        standing = [name for name in entry.networks if runs_in(entry, name, where) != entry.precision_of(name)]
        told = notes + [f"{', '.join(standing)} in fp32: {_stand_in(entry.kind, where)}"] * bool(standing)
        choices.append(Choice(entry, where, why + (f" ({'; '.join(told)})" if told else "")))
    return choices


def _differs(entry: Entry) -> str | None:
    """Why an int8 engine runs only where nothing else can, or by name; None when it draws what float32 draws."""
    certificate = entry.certificate
    if entry.precision != "int8" or min(certificate.get("psnr") or [0.0]) >= _ALIKE:
        return None
    attributes = certificate.get("attributes")
    if attributes and attributes["before"] - attributes["after"] <= _ATTRIBUTES:
        return None
    worst = min(certificate.get("psnr") or [0.0])
    return f"its certified images are {worst:g} dB from fp32's, {_ALIKE:g} needed to come first"


def _warn_of_faster(best: Entry, on: str, named: dict[str, Entry], unable: dict[str, str]) -> None:
    for name, reason in unable.items():
        device = next((device for device in (on, *_RANK) if name in _RANK[device]), None)
        if device and _place(named[name], device) < _place(best, on):
            rule = f"engine {name} would be faster: {reason}; running {best.name} on {on} instead"
            warnings.warn(rule, RuntimeWarning, stacklevel=5)


def _devices(entry: Entry, asked: str) -> list[str] | InputError:
    """The devices an engine can run on here, or the error that says why there is none."""
    try:
        present = engines.devices(entry.kind)
    except InputError as error:
        return error
    fits = [device for device in present if asked in ("auto", device) and entry.name in _RANK.get(device, ())]
    if not fits:
        return InputError("load", f"no {'usable device' if asked == 'auto' else asked} for {entry.kind} here")
    lacking = {
        device: {runs_in(entry, name, device) for name in entry.networks} - set(engines.precisions(entry.kind, device))
        for device in fits
    }
    able = [device for device, precisions in lacking.items() if not precisions]
    lacks = ", ".join(sorted(lacking[fits[0]]))
    return able or InputError("load", f"{entry.kind} on {fits[0]} does not compute {lacks} here")


def runs_in(entry: Entry, network: str, device: str) -> str:
    """The precision that a network of an engine runs in on a device.

    What an int8 engine leaves in bf16 runs in fp32, whose answers are no worse, where bf16 is slower or missing.
    """
    own = entry.precision_of(network)
    return "fp32" if (entry.precision, own) == ("int8", "bf16") and _stand_in(entry.kind, device) else own


def _stand_in(kind: str, device: str) -> str | None:
    """Why fp32 stands in for bf16 there; None when it does not."""
    if "bf16" not in engines.precisions(kind, device):
        return "bf16 is not computed here"
    speed = engines.speeds(kind, device).get("bf16", 1.0)
    return f"bf16 runs at {speed:.2f} of fp32's speed here" if speed < 1 else None


def _slow(able: Sequence[tuple[Entry, str]]) -> dict[tuple[str, str], float]:
    """Engines in bf16 that fp32 of the same kind outruns on this machine, with the device, and their speed over its."""
    names = {(entry.name, on) for entry, on in able}
    found = {}
    for entry, on in able:
        if entry.precision == "bf16" and (f"{entry.kind}-fp32", on) in names:
            speed = engines.speeds(entry.kind, on).get("bf16", math.inf)
            if speed < _WORTH:
                found[entry.name, on] = speed
    return found


def _place(entry: Entry, device: str, *, slow: bool = False) -> tuple[int, float]:
    names = _RANK[device]
    if slow:
        return list(_RANK).index(device), names.index(f"{entry.kind}-fp32") + 0.5
    return list(_RANK).index(device), names.index(entry.name) if entry.name in names else len(names)
