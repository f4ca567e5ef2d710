"""What every network shares: built from its config, read from and written to the diffusers folder layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from ..errors import BundleError, HotloopError
from ..files import read_json
from ..weights import Weights, keys, save

__all__ = ["Net", "find_weights"]

_SHOWN = 5


def find_weights(folder: Path, stem: str) -> Path:
    """The safetensors file of a network folder: `<stem>.safetensors`, else `<stem>.fp16.safetensors`."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise BundleError(f"nets.{folder.name}", f"folder must hold {stem}.safetensors", str(folder))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


class Net(nn.Module):
    """Base of the networks: subclasses set the names below and fill `__init__(config)`.

    class_name   written as `_class_name` (diffusers) or `architectures` (transformers)
    stem         file name of the weights, without suffix
    prefix       put before every key in the file; read with and without it
    only         config entry -> values that this implementation covers
    """

    class_name: ClassVar[str]
    stem: ClassVar[str] = "diffusion_pytorch_model"
    prefix: ClassVar[str] = ""
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        for name, allowed in self.only.items():
            if name in config and config[name] not in allowed:
                shown = " or ".join(map(repr, allowed))
                raise BundleError(f"{type(self).__name__}.config", f"{name} must be {shown}", config[name])
        self.config = dict(config)

    @classmethod
    def from_dir(cls, folder: Path | str) -> Self:
        """Read `config.json` and the safetensors beside it (fp16 or fp32) into a float32 module in eval mode.

        Raises BundleError when a file is missing or malformed, keys do not match, or a tensor holds NaN or infinity.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json", place=f"nets.{folder.name}")
        net = cls._empty(config)
        net.load(find_weights(folder, cls.stem))
        return net.eval()

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Self:
        """A float32 module in eval mode from its config and its weights by name, with or without `prefix`.

        Raises BundleError naming the tensor that is missing, unknown, of another shape or not finite.
        """
        net = cls._empty(config)
        where = str(tensors.path.name) if isinstance(tensors, Weights) else "the source"
        return net._fill(tensors, where=where).eval()

    @classmethod
    def _empty(cls, config: Mapping[str, Any]) -> Self:
        """Without memory for its weights. Raises BundleError for a config that no network can be built from."""
        try:
            with torch.device("meta"):
                return cls(config)
        except HotloopError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            told = " ".join(str(error).split())
            rule = f"config.json must describe it ({type(error).__name__}: {told})"
            raise BundleError(f"{cls.__name__}.config", rule) from error

    @classmethod
    def table(cls, names: Iterable[str]) -> dict[str, keys.From]:
        """The names in a file -> ours, with `prefix`."""
        return keys.plain(names)

    def load(self, file: Path | str) -> Self:
        """Fill the module from a safetensors file, as float32. Raises BundleError naming the offending tensor."""
        weights = Weights.open(file)
        return self._fill(weights.view(self.table(weights)), where=weights.path.name)

    def _fill(self, tensors: Mapping[str, np.ndarray], *, where: str) -> Self:
        """`where` the tensors come from, for messages. One array at a time is read: they may lie in a mapped file."""
        own = self.state_dict()
        given = {name.removeprefix(self.prefix): name for name in tensors}
        if missing := sorted(set(own) - set(given)):
            raise BundleError("nets.load", f"{where} lacks tensors of {type(self).__name__}", _some(missing))
        if unexpected := sorted(set(given) - set(own)):
            rule = f"{where} holds tensors unknown to {type(self).__name__}"
            raise BundleError("nets.load", rule, _some(unexpected))
        filled = {}
        for key, name in given.items():
            array = tensors[name]
            if array.shape != tuple(own[key].shape):
                rule = f"{key} in {where} must have the shape {tuple(own[key].shape)}"
                raise BundleError("nets.load", rule, array.shape)
            # Counts stay counts: in half precision they would overflow.
            kind = np.float32 if own[key].is_floating_point() else np.int64
            value = torch.from_numpy(np.array(array, dtype=kind))
            if not torch.isfinite(value).all():
                raise BundleError("nets.load", f"weights in {where} must be finite", key)
            filled[key] = value
        self.load_state_dict(filled, assign=True)
        return self

    def save(self, folder: Path | str, *, dtype: torch.dtype = torch.float16) -> Path:
        """Write `config.json` and the weights as stock diffusers and transformers read them; returns the weights' file.

        dtype: torch.float16 or float32. Raises BundleError when a weight is not finite in it, or the disk is full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {self.prefix + key: value.detach().cpu().numpy() for key, value in self.state_dict().items()}
        stored = {torch.float16: "F16", torch.float32: "F32"}[dtype]
        file = save(tensors, folder / f"{self.stem}.safetensors", metadata={"format": "pt"}, dtype=stored)
        own = {key: value for key, value in self.config.items() if not key.startswith("_")}
        text = json.dumps(own | self.identity(), indent=2, sort_keys=True)
        config = folder / "config.json"
        config.write_text(text + "\n", "utf-8")
        return file

    def constants(self) -> dict[str, Any]:
        """What it decides of `hotloop.spec.FaceConstants`, for a bundle's manifest."""
        return {}

    def identity(self) -> dict[str, Any]:
        """The config entries by which stock loaders recognise the class."""
        return {"_class_name": self.class_name}
