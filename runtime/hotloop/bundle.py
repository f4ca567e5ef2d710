"""A bundle on disk: the networks, their engines, tokenizer and schedule, described and sealed by manifest.json.

Every file's SHA-256 is checked before an engine library reads a byte of it, and weights are refused when one of them
is not finite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .errors import BundleError, InputError
from .spec import Family, family

__all__ = ["SCHEMA_VERSION", "Bundle", "builtin", "sha256"]

SCHEMA_VERSION = 1
_REQUIRED = ("schema_version", "family", "networks", "engines", "files")
# dtype in a safetensors header -> (numpy view, exponent bits): a value is NaN or infinite when all of them are set.
_EXPONENT = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}


def builtin() -> Path:
    """Where the built-in model, avatar-tiny, is installed."""
    return Path(__file__).parent / "assets" / "avatar-tiny"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle. Make one with `Bundle.open(path)`."""

    path: Path
    manifest: Mapping[str, Any]
    family: Family

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Read the manifest and check every file against it. Raises BundleError naming the file and the rule."""
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            row = family(manifest["family"]).with_constants(manifest.get("constants", {}))
        except (InputError, TypeError) as error:
            raise BundleError("bundle", f"manifest.json of {path} is not for this version: {error}") from error
        bundle = cls(path, manifest, row)
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Hash every file listed, then look for NaN and infinity in the weights. Raises BundleError naming the file."""
        for name, expected in self.manifest["files"].items():
            file = self.file(name)
            if not file.is_file():
                raise BundleError("bundle", f"file is missing from {self.path}", name)
            actual = sha256(file)
            if actual != expected:
                raise BundleError(
                    "bundle", f"{name} was altered: its SHA-256 must be {expected[:12]}…", actual[:12] + "…"
                )
        for name in self.manifest["files"]:
            if name.endswith(".safetensors"):
                _refuse_non_finite(self.file(name))

    def file(self, name: str) -> Path:
        """The file of a relative name. Raises BundleError for one that points outside the bundle."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError("bundle", "file names must stay inside the bundle", name)
        return self.path / relative

    def network_file(self, network: str) -> Path:
        """The ONNX graph of a network. Raises BundleError when the bundle has none or the manifest does not seal it."""
        entry = self.manifest["networks"].get(network)
        if entry is None:
            raise BundleError("bundle", f"network must be one of {sorted(self.manifest['networks'])}", network)
        if entry["path"] not in self.manifest["files"]:
            raise BundleError("bundle", "manifest.json lists no hash for", entry["path"])
        return self.file(entry["path"])

    @cached_property
    def id(self) -> str:
        """SHA-256 over family, constants and all files' hashes: two bundles with one id make the same images."""
        sealed = {key: self.manifest.get(key) for key in ("family", "constants", "files")}
        return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the bundle's maker recommends: sampler, steps, guidance."""
        found: Mapping[str, Any] = self.manifest.get("defaults", {})
        return found

    @cached_property
    def scheduler_config(self) -> Mapping[str, Any]:
        return _read_json(self.file("scheduler/scheduler_config.json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError("bundle", "file is missing", str(path)) from error
    except (OSError, ValueError) as error:
        raise BundleError("bundle", f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleError("bundle", f"{path.name} must hold a JSON object", type(value).__name__)
    return value


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise BundleError("bundle", "no such directory", str(path))
    if not (path / "manifest.json").is_file():
        raise BundleError("bundle", "a bundle has a manifest.json; make one with `hotloop export`", str(path))
    manifest = _read_json(path / "manifest.json")
    if missing := [key for key in _REQUIRED if key not in manifest]:
        raise BundleError("bundle", f"manifest.json of {path} lacks {', '.join(missing)}")
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise BundleError(
            "bundle", f"manifest.json must have schema_version {SCHEMA_VERSION}", manifest["schema_version"]
        )
    return manifest


def _refuse_non_finite(path: Path) -> None:
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    try:
        length = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + length].tobytes())
    except ValueError as error:
        raise BundleError("bundle", f"{path.name} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if tensor["dtype"] not in _EXPONENT:
            continue
        view, mask = _EXPONENT[tensor["dtype"]]
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        bits = raw[begin:end].view(view)
        if np.any((bits & mask) == mask):
            raise BundleError("bundle", f"weights must be finite: NaN or infinity in {path.name}", name)
