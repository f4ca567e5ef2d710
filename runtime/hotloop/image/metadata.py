"""The request that a picture carries in its PNG text: enough to draw the picture again, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..files import sha256
from .image import read_text

__all__ = ["COMMANDS", "KEY", "StoredRequest", "source"]

KEY = "hotloop"
_COMMON = (
    "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "sampler", "width", "height", "long_prompt",
)  # fmt: skip
# command -> (the arguments it stores, the files it reads)
COMMANDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "txt2img": (frozenset(_COMMON), frozenset()),
    "img2img": (frozenset((*_COMMON, "strength", "resize_mode")), frozenset({"image"})),
    "inpaint": (
        frozenset((*_COMMON, "strength", "paste", "mask_blur", "padding_mask_crop")),
        frozenset({"image", "mask_image"}),
    ),
}


@dataclass(frozen=True)
class StoredRequest:
    """One image's request.

    command    txt2img, img2img or inpaint
    arguments  the pipeline's, by name
    files      argument -> {path, sha256} of the pictures it was made from
    seed       of this image
    bundle     the id of the bundle that drew it; model: where that lay, None for the built-in one
    engine     the bundle's engine that drew it: another one's last bits differ
    """

    command: str
    arguments: Mapping[str, Any]
    files: Mapping[str, Mapping[str, str]]
    seed: int
    bundle: str
    model: str | None
    engine: str
    version: str = __version__

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, path: Path) -> StoredRequest:
        """From a PNG. Raises InputError for a picture without a request, or one that is not whole."""
        text = read_text(path).get(KEY)
        if text is None:
            raise InputError("rerun", "the file must carry a hotloop request in its PNG text", str(path))
        try:
            values = json.loads(text)
            request = cls(**values)
            request._check()
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else error
            raise InputError("rerun", f"the stored request must be whole: {reason}", str(path)) from error
        return request

    def _check(self) -> None:
        if self.command not in COMMANDS:
            raise ValueError(f"command is {self.command!r}")
        arguments, files = COMMANDS[self.command]
        if unknown := set(self.arguments) - arguments:
            raise ValueError(f"{self.command} takes no {sorted(unknown)}")
        if set(self.files) != files:
            raise ValueError(f"{self.command} reads {sorted(files)}, not {sorted(self.files)}")
        texts = [
            self.bundle,
            self.engine,
            self.version,
            *(value for file in self.files.values() for value in file.values()),
        ]
        if any(set(file) != {"path", "sha256"} for file in self.files.values()):
            raise ValueError("a file is its path and sha256")
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.model, str | None):
            raise ValueError("bundle, model and files are texts")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}")


def source(path: Path) -> dict[str, str]:
    """A file as a request stores it. Raises InputError when it cannot be read."""
    try:
        return {"path": str(path), "sha256": sha256(path)}
    except OSError as error:
        raise InputError("image", f"the file must be readable: {error.strerror}", str(path)) from error
