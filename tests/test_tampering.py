"""Whatever a manifest or a reference holds, opening, describing and verifying a bundle ends in one line of our own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotloop.bundle import Bundle, builtin, write_manifest
from hotloop.errors import BundleError, InputError
from hotloop.evaluation import certificates as parity
from hotloop.files import sha256
from hotloop.pipeline import load
from hotloop.selection import choose
from hotloop.weights import Weights, save


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(builtin(), tmp_path / "bundle"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    write_manifest(path, manifest)


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


CERTIFICATE = ("engines", 0, "certificate")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("files", "a\0b", value="0" * 64), "files"),
        (put("files", "a\ud800", value="0" * 64), "files"),
        (put("files", "a" * 5000, value="0" * 64), "files"),
        (put("parity", "files", "unet", value="a\0b"), "parity"),
        (put("weights", "unet", "path", value="a\0b"), "weights"),
        (put(*CERTIFICATE, "networks", "unet", value={}), "certificate"),
        (put(*CERTIFICATE, "networks", "unet", "cosine", value="x"), "certificate"),
        (put(*CERTIFICATE, "psnr", value=[None]), "certificate"),
        (put(*CERTIFICATE, "psnr", value=5), "certificate"),
        (put(*CERTIFICATE, "attributes", value={"before": "x", "after": 1}), "certificate"),
        (put("made_with", value=5), "made_with"),
        (put("made_with", value={"onnx": 1}), "made_with"),
        (put("sources", value=[5]), "sources"),
        (put("sources", value=[{"scale": "x"}]), "sources"),
        (put("sources", value=[{"sha256": 1}]), "sources"),
    ],
)
def test_a_manifest_whose_entries_are_of_another_kind_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=named):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "change",
    [
        put("parity", "images", "seeds", value=[1]),
        put("parity", "images", "size", value=[64]),
        put("parity", "images", "size", value=[64, 32]),
        put("parity", "images", value=5),
        put("parity", "files", "unet", value="unet/diffusion_pytorch_model.safetensors"),
        put("parity", "files", "images", value="parity/unet.safetensors"),
        put("parity", "files", value={}),
    ],
)
def test_a_reference_that_is_not_of_the_networks_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match="parity"):
        parity.verify(Bundle.open(copy), engines=["onnx"])


def test_reference_inputs_of_another_shape_are_refused(copy: Path) -> None:
    name = "parity/vae_decoder.safetensors"
    tensors = dict(Weights.open(copy / name))
    tensors["in.latents"] = np.zeros((1, 3, 8, 8), np.float32)
    save(tensors, copy / name)
    edit(copy, put("files", name, value=sha256(copy / name)))
    with pytest.raises(BundleError, match=r"vae_decoder.*latents"):
        parity.verify(Bundle.open(copy), engines=["onnx"])


def test_an_engine_kind_of_a_later_version_is_passed_over(copy: Path) -> None:
    def add(manifest: dict[str, Any]) -> None:
        manifest["engines"].insert(0, manifest["engines"][0] | {"kind": "quantum", "precision": "int8"})

    edit(copy, add)
    first = choose(Bundle.open(copy), device="cpu")[0]
    assert first.entry.kind in ("onnx", "native")
    assert "quantum-int8 cannot run" in first.why
    with pytest.raises(InputError, match="quantum"):
        choose(Bundle.open(copy), "quantum")


def test_an_engine_that_the_bundle_does_not_have_is_not_verified() -> None:
    with pytest.raises(InputError, match="built with: onnx-fp32, native-fp32, got 'tensorrt'"):
        parity.verify(Bundle.open(builtin()), engines=["tensorrt"])


def test_constants_that_are_not_the_graphs_are_one_line(copy: Path) -> None:
    edit(copy, put("constants", "vae_factor", value=5))
    with pytest.raises((BundleError, InputError)):
        parity.verify(Bundle.open(copy), engines=["onnx"])


@pytest.mark.parametrize("name", ["time_width", "kv_width", "context_dim", "latent_channels", "vae_factor"])
def test_a_constant_beyond_memory_is_refused_by_name(copy: Path, name: str) -> None:
    edit(copy, put("constants", name, value=10**12))
    with pytest.raises(BundleError, match=rf"{name} must be like .* whole numbers below 1048576"):
        Bundle.open(copy)


@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_a_vocabulary_beyond_the_token_table_is_one_line(copy: Path, engine: str) -> None:
    file = copy / "tokenizer/vocab.json"
    ids = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({word: i + 5000 if i > 300 else i for word, i in ids.items()}), "utf-8")
    edit(copy, put("files", "tokenizer/vocab.json", value=sha256(file)))
    with pytest.raises(BundleError, match="text_encoder does not run"):
        load(copy, engine=engine).txt2img("a girl with pink hair", seed=1, num_inference_steps=1)


def test_an_fp32_engine_is_held_to_fp32_whatever_its_weights_are_kept_in() -> None:
    entry = Bundle.open(builtin(), verify=False).entries[0]
    certificate = {"networks": {"unet": {"max_abs": 2e-4, "mean_abs": 1e-4, "cosine": 1.0}}, "psnr": [60.0]}
    assert (entry.precision, entry.storage) == ("fp32", "fp16")
    assert "at most 0.0001" in (parity.broken(certificate, entry) or "")
    assert parity.broken(certificate, replace(entry, precision="fp16")) is None


def test_certificates_that_cannot_be_written_leave_nothing_behind(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    bundle = Bundle.open(copy)
    before = (copy / "manifest.json").read_bytes()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BundleError, match=r"must be written.*No space left"):
        parity.update_certificates(bundle, {"onnx-fp32": {"networks": {}, "psnr": []}})
    assert (copy / "manifest.json").read_bytes() == before
    assert not list(copy.glob(".manifest*"))


def test_an_engine_that_does_not_open_is_told_of_and_the_others_are_verified(copy: Path) -> None:
    graph = next(copy.glob("vae/*encoder*.onnx"))
    graph.write_bytes(b"nonsense")
    edit(copy, put("files", graph.relative_to(copy).as_posix(), value=sha256(graph)))
    found = parity.verify(Bundle.open(copy))
    certificate, problem = found["onnx-fp32"]
    assert certificate == {} and problem is not None and f"{graph.name} must hold an ONNX graph" in problem
    certificate, problem = found["native-fp32"]
    assert certificate is not None and certificate["networks"] and problem is None
