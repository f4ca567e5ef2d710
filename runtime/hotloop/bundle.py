"""A bundle on disk: the networks, their engines, tokenizer and schedule, described and sealed by manifest.json.

Every file's SHA-256 is checked before an engine library reads a byte of it, and weights are refused when one of them
is not finite.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .errors import BundleError, InputError
from .spec import Family, family

__all__ = ["SCHEMA_VERSION", "Bundle", "builtin", "sha256"]

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# dtype in a safetensors header -> (numpy view, exponent bits): a value is NaN or infinite when all of them are set.
_EXPONENT = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
_INTEGERS = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}


def builtin() -> Path:
    """Where the built-in model, avatar-tiny, is installed."""
    return Path(__file__).parent / "assets" / "avatar-tiny"


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises OSError."""
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
            row = family(manifest["family"]).with_constants(manifest["constants"])
        except InputError as error:
            raise BundleError("bundle", f"manifest.json of {path} is not for this version: {error}") from error
        bundle = cls(path, manifest, row)
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Hash every file, refuse those the manifest does not list, look for NaN and infinity in the weights.

        Notes (*.md) and hidden files may lie beside the sealed ones: nothing reads them.
        Raises BundleError naming the file.
        """
        files = self.manifest["files"]
        for name, expected in files.items():
            file = self.file(name)
            try:
                actual = sha256(file)
            except OSError as error:
                rule = "file is missing from" if not file.exists() else f"file is not readable ({error.strerror}) in"
                raise BundleError("bundle", f"{rule} {self.path}", name) from error
            if actual != expected:
                raise BundleError(
                    "bundle", f"{name} was altered: its SHA-256 must be {expected[:12]}…", actual[:12] + "…"
                )
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            known = name in files or name == _MANIFEST or file.suffix == ".md" or file.name.startswith(".")
            if not known and not file.is_dir():
                raise BundleError("bundle", "every file must be sealed in manifest.json", name)
        for name in (_SCHEDULER, *(entry["path"] for entry in self.manifest["networks"].values())):
            if name not in files:
                raise BundleError("bundle", "manifest.json must list a hash for", name)
        for name in files:
            if name.endswith(".safetensors"):
                _refuse_non_finite(self.file(name))

    def file(self, name: str) -> Path:
        """The file of a relative name. Raises BundleError for one that points outside the bundle."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError("bundle", "file names must stay inside the bundle", name)
        return self.path / relative

    def network_file(self, network: str) -> Path:
        """The ONNX graph of a network. Raises BundleError when the bundle has none."""
        entry = self.manifest["networks"].get(network)
        if entry is None:
            raise BundleError("bundle", f"network must be one of {sorted(self.manifest['networks'])}", network)
        return self.file(entry["path"])

    @cached_property
    def id(self) -> str:
        """SHA-256 over all that decides an image: two bundles with one id make the same images."""
        sealed = {key: value for key, value in self.manifest.items() if key not in ("certificate", "made_with")}
        return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the bundle's maker recommends: sampler, num_inference_steps, guidance_scale."""
        found: Mapping[str, Any] = self.manifest["defaults"]
        return found

    @cached_property
    def scheduler_config(self) -> Mapping[str, Any]:
        return _read_json(self.file(_SCHEDULER))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError("bundle", f"file must be readable: {error.strerror}", str(path)) from error
    except (ValueError, RecursionError) as error:
        raise BundleError("bundle", f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BundleError("bundle", f"{path.name} must hold a JSON object", type(value).__name__)
    return value


def _table_of(value: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(fits(entry) for entry in value.values())


# key -> (what it must be, the check, what stands for it when it may be left out)
_RULES: dict[str, tuple[str, Callable[[Any], bool], Any]] = {
    "schema_version": (f"be {SCHEMA_VERSION}", lambda v: v == SCHEMA_VERSION, None),
    "family": ("be a family's name", lambda v: isinstance(v, str), None),
    "networks": (
        "map names to {path}",
        lambda v: _table_of(v, lambda e: isinstance(e, dict) and isinstance(e.get("path"), str)),
        None,
    ),
    "engines": (
        "be a list of {kind}, at least one",
        lambda v: (
            isinstance(v, list) and bool(v) and all(isinstance(e, dict) and isinstance(e.get("kind"), str) for e in v)
        ),
        None,
    ),
    "files": (
        "map file names to SHA-256",
        lambda v: _table_of(v, lambda e: isinstance(e, str) and bool(_SHA256.fullmatch(e))),
        None,
    ),
    "constants": ("be an object", lambda v: isinstance(v, dict), {}),
    "defaults": ("be an object", lambda v: isinstance(v, dict), {}),
}


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise BundleError("bundle", "no such directory", str(path))
    if not (path / _MANIFEST).is_file():
        raise BundleError("bundle", f"a bundle has a {_MANIFEST}; make one with `hotloop export`", str(path))
    manifest = _read_json(path / _MANIFEST)
    for key, (rule, fits, absent) in _RULES.items():
        if absent is not None:
            manifest.setdefault(key, absent)
        if key not in manifest:
            raise BundleError("bundle", f"{_MANIFEST} of {path} lacks", key)
        if not fits(manifest[key]):
            raise BundleError("bundle", f"{key} in {_MANIFEST} of {path} must {rule}", manifest[key])
    return manifest


def _refuse_non_finite(path: Path) -> None:
    size = path.stat().st_size
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(raw[:8].tobytes(), "little")
        if not 0 < length <= size - 8:
            raise ValueError(f"its header is said to have {length} bytes")
        header = json.loads(raw[8 : 8 + length].tobytes())
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        header.pop("__metadata__", None)
        tensors = {
            name: (t["dtype"], *(8 + length + int(at) for at in t["data_offsets"])) for name, t in header.items()
        }
        for name, (dtype, begin, end) in tensors.items():
            if dtype in _INTEGERS:
                continue
            if dtype not in _EXPONENT or not 8 + length <= begin <= end <= size:
                raise ValueError(f"{name} is {dtype} in bytes {begin}..{end}")
            view, mask = _EXPONENT[dtype]
            if np.any((raw[begin:end].view(view) & mask) == mask):
                raise BundleError("bundle", f"weights must be finite: NaN or infinity in {path.name}", name)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError("bundle", f"{path.name} is not a safetensors file that can be checked: {error}") from error
