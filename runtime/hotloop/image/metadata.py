"""The request that a picture carries in its PNG text: enough to draw the picture again, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..files import sha256
from .image import read_text

__all__ = ["KEY", "StoredRequest", "source"]

KEY = "hotloop"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredRequest:
    """One image's request.

    command    txt2img, img2img or inpaint
    arguments  the pipeline's, by name
    files      argument -> {path, sha256} of the pictures it was made from
    seed       of this image
    bundle     the id of the bundle that drew it; model: where that lay, None for the built-in one
    engine     the bundle's engine that drew it: another one's last bits differ
    loras      {path, sha256, scale} of those that were merged, in order
    embeddings {path, sha256, token} of the words that were learned, in order
    """

    command: str
    arguments: Mapping[str, Any]
    files: Mapping[str, Mapping[str, str]]
    seed: int
    bundle: str
    model: str | None
    engine: str
    loras: Sequence[Mapping[str, Any]] = ()
    embeddings: Sequence[Mapping[str, Any]] = ()
    version: str = __version__

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, path: Path) -> StoredRequest:
        """From a PNG. Raises InputError for a picture without a request, or one that is not whole; what its arguments
        may be, the table of a request's fields says (`request.check_stored`)."""
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
        texts = [self.command, self.bundle, self.engine, self.version, self.model or ""]
        for files, more in ((self.files.values(), set()), (self.loras, {"scale"}), (self.embeddings, {"token"})):
            for file in files:
                if set(file) != {"path", "sha256", *more} or not _SHA256.fullmatch(file["sha256"]):
                    raise ValueError(f"a file is its {', '.join(['path', 'sha256', *more])}")
                texts += [file["path"], file.get("token", "")]
        for lora in self.loras:
            if isinstance(lora.get("scale"), bool) or not isinstance(lora.get("scale"), (int, float)):
                raise ValueError("a LoRA has a number as its scale")
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise ValueError("command, bundle, model, engine and files are texts")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}")
        if not isinstance(self.arguments, Mapping):
            raise ValueError("arguments are names and values")


def source(path: Path, place: str = "image") -> dict[str, str]:
    """A file as a request stores it. Raises InputError when it cannot be read, or is no regular file: a device may
    never end."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(place, "the file must be a regular one", str(path))
        return {"path": str(path), "sha256": sha256(path)}
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(place, f"the file must be readable: {reason}", str(path)) from error
