"""A bundle on disk: the networks, their engines, tokenizer and schedule, described and sealed by manifest.json.

Every file's SHA-256 is checked before an engine library reads a byte of it, and weights are refused when one of them
is not finite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BundleError, InputError
from ..files import read_json, sha256
from ..spec import Family, GeneratorFamily, Network, family
from ..weights import Weights, refuse_non_finite
from .manifest import MANIFEST, read_manifest

__all__ = ["BUILTIN", "Bundle", "Entry", "builtin"]

# The models that are installed with the package; the first is opened where none is named.
BUILTIN = ("avatar-tiny",)

_SCHEDULER = "scheduler/scheduler_config.json"
_REPLACED = "bundle was replaced while in use; load it again"


def builtin(name: str = BUILTIN[0]) -> Path:
    """Where a built-in model is installed. Raises InputError for one that there is not."""
    if name not in BUILTIN:
        raise InputError("bundle", f"a built-in model is one of {', '.join(BUILTIN)}", name)
    return Path(__file__).parents[1] / "assets" / name


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
        """Read the manifest and check every file against it. Raises BundleError naming the file and the rule.

        path: a folder, or the name of a built-in model where no folder is called so
        """
        path = Path(path)
        if str(path) in BUILTIN and not path.exists():
            path = builtin(str(path))
        manifest = read_manifest(path)
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
            if file.is_symlink():
                raise BundleError("bundle", "what lies in a bundle must be no link: the seal is of what is here", name)
            known = name in files or name == MANIFEST or file.suffix == ".md" or file.name.startswith(".")
            if not known and not file.is_dir():
                raise BundleError("bundle", "every file must be sealed in manifest.json", name)
        for name in self._used():
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
        """The files that pipelines, engines and parity checks will read."""
        settings = [] if isinstance(self.family, GeneratorFamily) else [_SCHEDULER]
        graphs = [network["path"] for entry in self.entries for network in entry.networks.values()]
        weights = [entry["path"] for entry in self.manifest["weights"].values()]
        return [*settings, *graphs, *weights, *self.manifest["parity"].get("files", {}).values()]

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

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """What is read inside is this bundle's. Raises BundleError when another has taken its place since it was opened
        and checked, be it that this one has come back since: a renamed folder keeps its inode and changes its times."""
        before = self._place()
        yield
        if self._place() != before:
            raise BundleError("bundle", _REPLACED, str(self.path))

    def _place(self) -> tuple[int, ...]:
        manifest = self.path / MANIFEST
        if not manifest.exists():  # a bundle that is being made has none
            return ()
        if read_json(manifest, place="bundle").get("files") != self.manifest["files"]:
            raise BundleError("bundle", _REPLACED, str(self.path))
        found = (self.path.lstat(), self.path.stat(), manifest.stat())  # the path itself may be a link
        return tuple(number for stat in found for number in (stat.st_dev, stat.st_ino, stat.st_ctime_ns))

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
