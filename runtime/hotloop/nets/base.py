"""What every network shares: built from its config, read from and written to the diffusers folder layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import BundleError

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
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"nets.{folder.name}", f"config.json must be readable ({error})", str(folder)) from error
        with torch.device("meta"):
            net = cls(config)
        net.load(find_weights(folder, cls.stem))
        return net.eval()

    def load(self, file: Path | str) -> Self:
        """Fill the module from a safetensors file, as float32. Raises BundleError naming the offending tensor."""
        file = Path(file)
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise BundleError("nets.load", f"safetensors file must be readable ({error})", str(file)) from error
        tensors = self.rename({key.removeprefix(self.prefix): value for key, value in tensors.items()})
        own = self.state_dict()
        if missing := sorted(set(own) - set(tensors)):
            raise BundleError("nets.load", f"{file.name} lacks tensors of {type(self).__name__}", _some(missing))
        if unexpected := sorted(set(tensors) - set(own)):
            raise BundleError("nets.load", f"{file.name} holds tensors unknown to {type(self).__name__}",
                              _some(unexpected))  # fmt: skip
        for key, value in tensors.items():
            if value.shape != own[key].shape:
                rule = f"{key} in {file.name} must have the shape {tuple(own[key].shape)}"
                raise BundleError("nets.load", rule, tuple(value.shape))
            if not torch.isfinite(value).all():
                raise BundleError("nets.load", f"weights in {file.name} must be finite", key)
        self.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
        return self

    @classmethod
    def rename(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Older checkpoints' keys and shapes to today's; the identity unless a subclass knows some."""
        return tensors

    def save(self, folder: Path | str, *, dtype: torch.dtype = torch.float16) -> Path:
        """Write `config.json` and the weights as stock diffusers and transformers read them; returns the weights' file.

        Raises BundleError when a weight is not finite in `dtype`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {self.prefix + k: v.detach().to("cpu", dtype).contiguous() for k, v in self.state_dict().items()}
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise BundleError("nets.save", f"weights must be finite in {dtype}", key)
        file = folder / f"{self.stem}.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        own = {key: value for key, value in self.config.items() if not key.startswith("_")}
        text = json.dumps(own | self.identity(), indent=2, sort_keys=True)
        config = folder / "config.json"
        config.write_text(text + "\n", "utf-8")
        shutil.copymode(config, file)  # safetensors writes 0600, whatever the umask
        return file

    def identity(self) -> dict[str, Any]:
        """The config entries by which stock loaders recognise the class."""
        return {"_class_name": self.class_name}
