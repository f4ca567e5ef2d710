"""What a TensorRT plan was built for: the record that lies beside it, read without the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BundleError
from ..files import read_file
from ..spec import Tensor, resolve

__all__ = ["PlanInfo", "Profile"]

_PLACE = "plan"
_LIMIT = 4_000_000


@dataclass(frozen=True)
class Profile:
    """The shapes a plan takes under one name: for every symbol of the network (smallest, tuned for, largest)."""

    name: str
    dims: Mapping[str, tuple[int, int, int]]

    def covers(self, dims: Mapping[str, int]) -> bool:
        return all(least <= dims[symbol] <= most for symbol, (least, _, most) in self.dims.items())

    def shapes(self, tensor: Tensor) -> tuple[tuple[int, ...], ...]:
        """(smallest, tuned for, largest) shape of a tensor."""
        return tuple(resolve(tensor.shape, {s: three[i] for s, three in self.dims.items()}) for i in range(3))

    def __str__(self) -> str:
        ranges = (f"{s} {a}" if a == b else f"{s} {a}-{b}" for s, (a, _, b) in self.dims.items())
        return f"{self.name} ({', '.join(ranges)})"


@dataclass(frozen=True)
class PlanInfo:
    """What a plan is; kept beside it as `<plan>.json`.

    kind, version   the engine kind and the exact version that built the plan, the only one that opens it
    targets         compute capabilities it runs on, such as "8.9"
    compatibility   TensorRT's hardware compatibility level, in lower case; "none" for the very GPU it was built on
    precision       what convolutions and matrix products run in
    profiles        in the order of the plan's own
    inputs, outputs name -> (dtype, shape with the spec's symbols)
    weights         "strip": taken from `refit` when it is opened; "embed": inside the plan, not replaceable
    refit           safetensors file, relative to the plan's folder -> names of the tensors taken from it. A tensor's
                    name in the file, in the ONNX graph and in TensorRT is the same: the checkpoint's key
    flags           the builder flags that were set
    plan_bytes, seconds, peak_bytes   size of the plan; time and peak resident memory of the build
    """

    kind: str
    version: str
    network: str
    targets: tuple[str, ...]
    compatibility: str
    precision: str
    profiles: tuple[Profile, ...]
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int | str, ...]]]
    weights: str
    refit: Mapping[str, tuple[str, ...]]
    flags: tuple[str, ...]
    plan_bytes: int
    seconds: float
    peak_bytes: int

    @staticmethod
    def path_of(plan: Path) -> Path:
        return plan.with_name(plan.name + ".json")

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value

    def write(self, plan: Path) -> Path:
        """Write the record beside the plan. Raises OSError."""
        path = self.path_of(plan)
        path.write_text(json.dumps(self.record(), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, plan: Path) -> PlanInfo:
        """The record of a plan. Raises BundleError for one that is missing or malformed."""
        path = cls.path_of(plan)
        try:
            value = json.loads(read_file(path, most=_LIMIT))
            text = {key: str(value[key]) for key in ("kind", "version", "network", "compatibility", "precision")}
            info = cls(
                **text,
                targets=tuple(str(target) for target in value["targets"]),
                profiles=tuple(_profile(entry) for entry in value["profiles"]),
                inputs={name: _border(entry) for name, entry in value["inputs"].items()},
                outputs={name: _border(entry) for name, entry in value["outputs"].items()},
                weights=str(value["weights"]),
                refit={_relative(file): tuple(str(n) for n in names) for file, names in value["refit"].items()},
                flags=tuple(str(flag) for flag in value["flags"]),
                plan_bytes=int(value["plan_bytes"]), seconds=float(value["seconds"]),
                peak_bytes=int(value["peak_bytes"]),
            )  # fmt: skip
            if info.weights not in ("strip", "embed") or not info.profiles:
                raise ValueError("weights must be strip or embed, and profiles at least one")
        except OSError as error:
            rule = f"a plan has a readable {path.name} beside it ({error.strerror})"
            raise BundleError(_PLACE, rule, str(plan)) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(_PLACE, f"{path.name} is not the record of a plan: {error!r}") from error
        return info


def _profile(entry: Any) -> Profile:
    dims = {str(symbol): tuple(int(value) for value in three) for symbol, three in entry["dims"].items()}
    if not all(len(three) == 3 and 1 <= three[0] <= three[1] <= three[2] for three in dims.values()):
        raise ValueError(f"dims must be [smallest, tuned for, largest], got {dims}")
    return Profile(str(entry["name"]), dims)  # type: ignore[arg-type]


def _border(entry: Any) -> tuple[str, tuple[int | str, ...]]:
    dtype, shape = entry
    return str(dtype), tuple(dim if isinstance(dim, str) else int(dim) for dim in shape)


def _relative(name: str) -> str:
    if PurePosixPath(name).is_absolute() or "\\" in name or not name.endswith(".safetensors"):
        raise ValueError(f"weights must be a relative safetensors file, got {name!r}")
    return name
