"""A bundle on disk: the networks, their engines, tokenizer and schedule, described and sealed by manifest.json.

Every file's SHA-256 is checked before an engine library reads a byte of it, and weights are refused when one of them
is not finite.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BundleError, InputError
from ..files import read_json, sha256
from ..spec import Family, Network, family
from ..weights import Weights, refuse_non_finite

__all__ = [
    "BUILT_NEVER_RUN", "CERTIFIED", "SCHEMA_VERSION", "Bundle", "Entry", "builtin", "seal_of", "write_manifest",
]  # fmt: skip

SCHEMA_VERSION = 2
# An entry's status: its certificate holds, or it was built for a machine that was not there to run it.
CERTIFIED, BUILT_NEVER_RUN = "certified", "built, never run"
_STATUSES = (CERTIFIED, BUILT_NEVER_RUN)
_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_MANIFEST = "manifest.json"
_SCHEDULER = "scheduler/scheduler_config.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,512}")


def builtin() -> Path:
    """Where the built-in model, avatar-tiny, is installed."""
    return Path(__file__).parents[1] / "assets" / "avatar-tiny"


@dataclass(frozen=True)
class Entry:
    """One engine of a bundle: every network built for one kind in one precision.

    precision  what was asked for; a network may run in another, `precision_of(network)` tells
    storage    what the weights are kept in
    rewrites   the exact rewrites its UNet carries (`nets.rewrites.REWRITES`); groups: its optional inputs
    grid       width and height must be multiples of it, beyond the family's own rule; 1 when there is none
    target     "any" machine that has the library, or a compute capability such as "8.9"
    status     CERTIFIED or BUILT_NEVER_RUN
    """

    kind: str
    precision: str
    storage: str
    rewrites: tuple[str, ...]
    groups: tuple[str, ...]
    grid: int
    target: str
    status: str
    networks: Mapping[str, Mapping[str, str]]
    certificate: Mapping[str, Any]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Entry:
        return cls(
            entry["kind"], entry["precision"], entry["storage"], tuple(entry["rewrites"]), tuple(entry["groups"]),
            entry["grid"], entry["target"], entry["status"], entry["networks"], entry["certificate"],
        )  # fmt: skip

    @property
    def name(self) -> str:
        """kind-precision, as `hotloop.load(engine=...)` takes it."""
        return f"{self.kind}-{self.precision}"

    def precision_of(self, network: str) -> str:
        """What the arithmetic of a network runs in."""
        return self.networks[network].get("precision", self.precision)


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
        try:
            for entry in bundle.entries:
                bundle.networks(entry)
        except InputError as error:
            raise BundleError("bundle", f"manifest.json of {path} is not for this version: {error}") from error
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
        for name in (_SCHEDULER, *self._used()):
            if name not in files:
                raise BundleError("bundle", "manifest.json must list a hash for", name)
        for name in files:
            if name.endswith(".safetensors"):
                refuse_non_finite(Weights.open(self.file(name)))

    def file(self, name: str) -> Path:
        """The file of a relative name. Raises BundleError for one that points outside the bundle."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError("bundle", "file names must stay inside the bundle", name)
        return self.path / relative

    def _used(self) -> list[str]:
        """The files that engines and parity checks will read."""
        graphs = [network["path"] for entry in self.entries for network in entry.networks.values()]
        weights = [entry["path"] for entry in self.manifest["weights"].values()]
        return [*graphs, *weights, *self.manifest["parity"].get("files", {}).values()]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The engines, in the order they were built."""
        return tuple(Entry.read(entry) for entry in self.manifest["engines"])

    def networks(self, entry: Entry) -> dict[str, Network]:
        """What each network of an entry takes and gives: the family's rows with its rewrites and groups."""
        rows = self.family.split(entry.rewrites, entry.groups)
        if "cond_width" in self.manifest["constants"] and "timestep_cond" not in entry.groups:
            rule = f"{entry.name} must take timestep_cond, which its UNet has weights for; export the bundle again"
            raise BundleError("bundle", rule, list(entry.groups))
        if unknown := sorted(set(entry.networks) - set(rows)):
            raise BundleError("bundle", f"networks of {entry.name} must be among {sorted(rows)}", unknown[0])
        return {name: rows[name] for name in entry.networks}

    def check_in_place(self) -> None:
        """Raises BundleError when another bundle has taken this one's place since it was opened and checked."""
        manifest = self.path / _MANIFEST  # a bundle that is being made has none
        if manifest.exists() and read_json(manifest, place="bundle").get("files") != self.manifest["files"]:
            raise BundleError("bundle", "bundle was replaced while in use; load it again", str(self.path))

    def network_file(self, entry: Entry, network: str) -> Path:
        """The file of one of an entry's networks. Raises BundleError when it has none."""
        if network not in entry.networks:
            raise BundleError("bundle", f"network of {entry.name} must be one of {sorted(entry.networks)}", network)
        return self.file(entry.networks[network]["path"])

    @cached_property
    def id(self) -> str:
        """SHA-256 over the model: family, constants, weights, tokenizer and schedule.

        Two bundles with one id are the same model; which engine draws decides the last bits of an image.
        """
        files = self.manifest["files"]
        weights = {entry["path"] for entry in self.manifest["weights"].values()}
        model = {name: digest for name, digest in files.items()
                 if name in weights or name.startswith(("tokenizer/", "scheduler/"))}  # fmt: skip
        sealed = {"family": self.manifest["family"], "constants": self.manifest["constants"], "files": model}
        return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the bundle's maker recommends: sampler, num_inference_steps, guidance_scale."""
        found: Mapping[str, Any] = self.manifest["defaults"]
        return found

    @cached_property
    def scheduler_config(self) -> Mapping[str, Any]:
        return read_json(self.file(_SCHEDULER), place="bundle")


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
        work.replace(folder / _MANIFEST)
    finally:
        work.unlink(missing_ok=True)


def seal_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over everything else in a manifest: accidents show, whoever means to can seal anew."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise BundleError("bundle", "no such directory", str(path))
    if not (path / _MANIFEST).is_file():
        raise BundleError("bundle", f"a bundle has a {_MANIFEST}; make one with `hotloop export`", str(path))
    manifest = read_json(path / _MANIFEST, place="bundle")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        rule = f"schema_version in {_MANIFEST} of {path} must be {SCHEMA_VERSION}; export the bundle again"
        raise BundleError("bundle", rule, version)
    if manifest.get("seal") != seal_of(manifest):
        raise BundleError("bundle", f"{_MANIFEST} of {path} was altered: its seal must fit its content",
                          manifest.get("seal"))  # fmt: skip
    _hold(manifest, _RULES, place=f"{_MANIFEST} of {path}")
    for i, entry in enumerate(manifest["engines"]):
        _hold(entry, _ENTRY, place=f"engines[{i}] in {_MANIFEST} of {path}")
    return manifest
