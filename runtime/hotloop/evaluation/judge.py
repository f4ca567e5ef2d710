"""A judge reads pictures: what they show, and the features by which sets of them are compared.

    judge = Judge.open(builtin_judge("avatar-tiny"))
    seen = judge.read(pictures)                              # uint8 [N, H, W, 3]
    judge.accuracy(seen.guesses, judge.claims[: len(pictures)])
    judge.fid(seen.features), judge.kid(seen.features)

It is a folder: an ONNX graph that takes pixels as they are and gives `features` and the logits of every attribute, the
prompts to draw with what each claims, the features of real pictures, and a manifest.json with the SHA-256 of each.
Any feature network will do: how a picture is scaled and normalised is the graph's own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..bundle import seal_of, write_manifest
from ..engines import Engine, open_engine
from ..errors import BundleError, InputError
from ..files import read_json, sha256
from ..spec import Network, Tensor
from ..weights import Weights, refuse_non_finite
from . import metrics as quality

__all__ = ["GRAPH", "PROMPTS", "REFERENCE", "Judge", "Seen", "builtin_judge", "seal"]

GRAPH, PROMPTS, REFERENCE = "probe.onnx", "prompts.json", "reference.safetensors"
_MANIFEST = "manifest.json"
_SCHEMA_VERSION = 1
_BATCH = 64


class Seen(NamedTuple):
    """guesses int64 [N, A]: the class number of every attribute; features f32 [N, F]."""

    guesses: np.ndarray
    features: np.ndarray


def builtin_judge(family: str) -> Path | None:
    """Where the judge of a model family's pictures is installed; None for a family without one."""
    folder = Path(__file__).parents[1] / "assets" / f"{family}-judge"
    return folder if folder.is_dir() else None


@dataclass(frozen=True, eq=False)
class Judge:
    """An opened and verified judge. Make one with `Judge.open(path)`.

    size        (width, height) of the pictures it reads
    attributes  name -> its values; a value's place is its class number
    scored      the attributes that one figure of accuracy is the mean of
    prompts     what to draw
    claims      int64 [prompts, A]: the class of every attribute that a prompt states, -1 where it states none
    reference   f32 [M, F], features of real pictures
    """

    path: Path
    size: tuple[int, int]
    attributes: Mapping[str, tuple[str, ...]]
    scored: tuple[str, ...]
    prompts: tuple[str, ...]
    claims: np.ndarray
    reference: np.ndarray

    @classmethod
    def open(cls, path: str | Path) -> Judge:
        """Read and check the folder. Raises BundleError naming the file and the rule."""
        path = Path(path)
        manifest = read_json(path / _MANIFEST, place="judge")
        if manifest.get("seal") != seal_of(manifest):
            rule = f"{_MANIFEST} of {path} was altered: its seal must fit its content"
            raise BundleError("judge", rule, manifest.get("seal"))
        try:
            if manifest["schema_version"] != _SCHEMA_VERSION:
                raise ValueError(f"schema_version must be {_SCHEMA_VERSION}, is {manifest['schema_version']}")
            _check_files(path, manifest["files"])
            width, height = manifest["size"]
            attributes = {name: tuple(values) for name, values in manifest["attributes"].items()}
            scored = tuple(manifest["scored"])
            if not set(scored) <= set(attributes):
                raise ValueError(f"scored must be among {', '.join(attributes)}, is {', '.join(scored)}")
            asked = read_json(path / PROMPTS, place="judge")["prompts"]
            prompts = tuple(entry["text"] for entry in asked)
            if not prompts or not all(isinstance(text, str) for text in prompts):
                raise ValueError("prompts must be texts, at least one")
            claims = np.array([_classes(entry["claims"], attributes) for entry in asked], np.int64)
            stored = Weights.open(path / REFERENCE)
            refuse_non_finite(stored)
            reference = np.asarray(stored["features"], np.float32)
            if reference.ndim != 2:
                raise ValueError(f"features must be [M, F], are {list(reference.shape)}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError("judge", f"{path} must be whole: {error}") from error
        return cls(path, (width, height), attributes, scored, prompts, claims, reference)

    def read(self, pictures: np.ndarray) -> Seen:
        """What uint8 [N, H, W, 3] show. Raises InputError for pictures of another size."""
        width, height = self.size
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (height, width, 3):
            rule = f"pictures must be uint8 [N, {height}, {width}, 3]"
            raise InputError("judge", rule, f"{pictures.dtype} {list(pictures.shape)}")
        seen = [self._read(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)]
        return Seen(np.concatenate([one.guesses for one in seen]), np.concatenate([one.features for one in seen]))

    def accuracy(self, guesses: np.ndarray, claims: np.ndarray) -> dict[str, float]:
        """The share of right guesses per attribute, of those that prompts stated, and the `mean` over the scored ones.

        guesses, claims: int64 [N, A]. An attribute that no prompt stated is left out.
        """
        shares = zip(self.attributes, quality.accuracy(guesses, claims), strict=True)
        found = {name: float(share) for name, share in shares if not np.isnan(share)}
        scored = [found[name] for name in self.scored if name in found]
        return found | ({"mean": float(np.mean(scored))} if scored else {})

    def fid(self, features: np.ndarray) -> float:
        """Frechet distance of features [N, F] to the real pictures'."""
        return quality.fid(features, self._moments)

    def kid(self, features: np.ndarray) -> float:
        """Kernel distance of features [N, F] to the real pictures'."""
        return quality.kid(features, self.reference)

    @cached_property
    def _moments(self) -> quality.Moments:
        return quality.Moments(self.reference)

    @cached_property
    def _engine(self) -> Engine:
        return open_engine("onnx", self.path / GRAPH, self._network)

    @property
    def _network(self) -> Network:
        width, height = self.size
        logits = (Tensor(name, "float32", ("N", len(values))) for name, values in self.attributes.items())
        return Network(
            "judge",
            (Tensor("image", "uint8", ("N", height, width, 3)),),
            (Tensor("features", "float32", ("N", self.reference.shape[1])), *logits),
        )

    def _read(self, pictures: np.ndarray) -> Seen:
        with self._engine.contexts.lease(N=len(pictures)) as context:
            context.inputs["image"][:] = pictures
            context.run()
            guesses = np.empty((len(pictures), len(self.attributes)), np.int64)
            for i, name in enumerate(self.attributes):
                guesses[:, i] = context.outputs[name].argmax(1)
            return Seen(guesses, context.outputs["features"].copy())


def seal(
    folder: Path, *, size: tuple[int, int], attributes: Mapping[str, tuple[str, ...]], scored: tuple[str, ...]
) -> None:
    """Make a judge of a folder that holds its files: write the manifest with their hashes. Raises OSError."""
    write_manifest(folder, {
        "schema_version": _SCHEMA_VERSION, "size": list(size), "scored": list(scored),
        "attributes": {name: list(values) for name, values in attributes.items()},
        "files": {name: sha256(folder / name) for name in (GRAPH, PROMPTS, REFERENCE)},
    })  # fmt: skip


def _check_files(path: Path, files: Mapping[str, Any]) -> None:
    for name in (GRAPH, PROMPTS, REFERENCE):
        try:
            actual = sha256(path / name)
        except OSError as error:
            raise BundleError("judge", f"file must be readable ({error.strerror}) in {path}", name) from error
        if actual != files[name]:
            rule = f"{name} of {path} was altered: its SHA-256 must be {files[name][:12]}…"
            raise BundleError("judge", rule, actual[:12] + "…")


def _classes(claims: Mapping[str, str], attributes: Mapping[str, tuple[str, ...]]) -> list[int]:
    """The class number of every attribute, -1 where nothing is claimed."""
    if unknown := sorted(set(claims) - set(attributes)):
        raise ValueError(f"claims must be among {', '.join(attributes)}, got {unknown[0]}")
    return [values.index(claims[name]) if name in claims else -1 for name, values in attributes.items()]
