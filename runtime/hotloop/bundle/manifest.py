"""manifest.json, which describes and seals a bundle: its rules, reading and writing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files import read_json

__all__ = [
    "BUILT_NEVER_RUN", "CERTIFIED", "MANIFEST", "SCHEMA_VERSION", "read_manifest", "seal_of", "write_manifest",
]  # fmt: skip

SCHEMA_VERSION = 2
# An entry's status: its certificate holds, or it was built for a machine that was not there to run it.
CERTIFIED, BUILT_NEVER_RUN = "certified", "built, never run"
_STATUSES = (CERTIFIED, BUILT_NEVER_RUN)
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,512}")


def _table_of(value: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(fits(entry) for entry in value.values())


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _files(value: object) -> bool:
    """A table of {path, and whatever else, all text}."""
    return _table_of(value, lambda e: isinstance(e, dict) and _name(e.get("path")) and _table_of(e, _text))


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(value: object) -> bool:
    """A file name that a file system takes."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _source(value: object) -> bool:
    texts = ("role", "name", "sha256")
    return (
        isinstance(value, dict)
        and all(_text(value[key]) for key in texts if key in value)
        and ("scale" not in value or _number(value["scale"]))
    )


def _holds(value: object, numbers: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(_number(value.get(name)) for name in numbers)


def _certificate(value: object) -> bool:
    """Empty, or with the figures of networks, the PSNR of images and maybe the accuracy of drawn attributes."""
    if not isinstance(value, dict) or not value:
        return value == {}
    figures = ("max_abs", "mean_abs", "cosine")
    return (
        _table_of(value.get("networks"), lambda e: _holds(e, figures))
        and isinstance(value.get("psnr"), list)
        and all(map(_number, value["psnr"]))
        and ("attributes" not in value or _holds(value["attributes"], ("before", "after")))
    )


# key -> (what it must be, the check, what stands for it when it may be left out)
_Rules = Mapping[str, tuple[str, Callable[[Any], bool], Any]]
_ENTRY: _Rules = {
    "kind": ("be a text", _text, None),
    "precision": (f"be one of {', '.join(_PRECISIONS)}", lambda v: v in _PRECISIONS, None),
    "storage": (f"be one of {', '.join(_PRECISIONS)}", lambda v: v in _PRECISIONS, None),
    "rewrites": ("be a list of texts", _texts, None),
    "groups": ("be a list of texts", _texts, None),
    "grid": ("be a whole number from 1 to 4096", lambda v: type(v) is int and 1 <= v <= 4096, None),
    "target": ("be a text", _text, None),
    "status": (f"be one of {', '.join(_STATUSES)}", lambda v: v in _STATUSES, None),
    "networks": ("map names to {path}", lambda v: bool(v) and _files(v), None),
    "certificate": ("be empty or {networks: figures, psnr: numbers}", _certificate, None),
}
_RULES: _Rules = {
    "schema_version": (f"be {SCHEMA_VERSION}", lambda v: v == SCHEMA_VERSION, None),
    "family": ("be a family's name", _text, None),
    "weights": ("map names to {path}", lambda v: bool(v) and _files(v), None),
    "engines": (
        "be a list of objects, at least one",
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(e, dict) for e in v),
        None,
    ),
    "files": (
        "map file names to SHA-256",
        lambda v: _table_of(v, lambda e: isinstance(e, str) and bool(_SHA256.fullmatch(e))) and all(map(_name, v)),
        None,
    ),
    "parity": (
        "be an object whose files are texts",
        lambda v: isinstance(v, dict) and _table_of(v.get("files", {}), _name),
        {},
    ),
    "sources": ("be a list of {role, name, sha256}", lambda v: isinstance(v, list) and all(map(_source, v)), []),
    "made_with": ("map tools to versions", lambda v: _table_of(v, _text), {}),
    "constants": ("be an object", lambda v: isinstance(v, dict), {}),
    "defaults": ("be an object", lambda v: isinstance(v, dict), {}),
}


def _hold(value: dict[str, Any], rules: _Rules, *, place: str) -> None:
    for key, (rule, fits, absent) in rules.items():
        if absent is not None:
            value.setdefault(key, absent)
        if key not in value:
            raise BundleError("bundle", f"{place} lacks", key)
        if not fits(value[key]):
            raise BundleError("bundle", f"{key} in {place} must {rule}", value[key])


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json with its seal, in one piece. Raises OSError."""
    work = folder / f".manifest.{os.getpid()}"
    try:
        work.write_text(json.dumps({**manifest, "seal": seal_of(manifest)}, indent=2) + "\n", "utf-8")
        work.replace(folder / MANIFEST)
    finally:
        work.unlink(missing_ok=True)


def seal_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over everything else in a manifest: accidents show, whoever means to can seal anew."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """What manifest.json in a bundle says. Raises BundleError for one that is missing, altered or breaks a rule."""
    if not path.is_dir():
        raise BundleError("bundle", "no such directory", str(path))
    if not (path / MANIFEST).is_file():
        raise BundleError("bundle", f"a bundle has a {MANIFEST}; make one with `hotloop export`", str(path))
    manifest = read_json(path / MANIFEST, place="bundle")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        rule = f"schema_version in {MANIFEST} of {path} must be {SCHEMA_VERSION}; export the bundle again"
        raise BundleError("bundle", rule, version)
    if manifest.get("seal") != seal_of(manifest):
        raise BundleError("bundle", f"{MANIFEST} of {path} was altered: its seal must fit its content",
                          manifest.get("seal"))  # fmt: skip
    _hold(manifest, _RULES, place=f"{MANIFEST} of {path}")
    for i, entry in enumerate(manifest["engines"]):
        _hold(entry, _ENTRY, place=f"engines[{i}] in {MANIFEST} of {path}")
    return manifest
