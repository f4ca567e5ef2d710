"""A bundle is opened whole and unaltered, or refused with the file's name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hotloop
from hotloop.bundle import Bundle, builtin, write_manifest
from hotloop.errors import BundleError, InputError
from hotloop.files import sha256
from hotloop.weights import Weights, save

ENTRY = {
    "kind": "onnx", "precision": "fp32", "storage": "fp16", "rewrites": [], "groups": [], "grid": 1, "target": "any",
    "status": "certified", "networks": {"unet": {"path": "unet/prompt.onnx"}}, "certificate": {},
}  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(builtin(), tmp_path / "bundle"))


def edit_manifest(path: Path, **changes: Any) -> None:
    write_manifest(path, json.loads((path / "manifest.json").read_text()) | changes)


def reseal(path: Path, name: str) -> None:
    files = json.loads((path / "manifest.json").read_text())["files"]
    edit_manifest(path, files=files | {name: sha256(path / name)})


def test_the_built_in_bundle_is_whole() -> None:
    bundle = Bundle.open(builtin())
    assert bundle.family.name == "avatar-tiny"
    assert {"text_encoder", "unet", "vae_decoder", "vae_encoder"} <= set(bundle.entries[0].networks)
    listed = set(bundle.manifest["files"]) | {"manifest.json"}
    present = {str(file.relative_to(builtin())) for file in builtin().rglob("*") if file.is_file()}
    assert {name for name in present if not name.endswith(".md")} <= listed


def test_a_built_in_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hotloop.load("avatar-tiny").bundle.path == Bundle.open(Path("avatar-tiny")).path == builtin()
    with pytest.raises(InputError, match="one of avatar-tiny, got 'avatar-large'"):
        builtin("avatar-large")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "avatar-tiny").mkdir()  # a folder of that name is what a path says
    with pytest.raises(BundleError, match=r"a bundle has a manifest\.json"):
        hotloop.load("avatar-tiny")


@pytest.mark.parametrize("name", sorted(json.loads((builtin() / "manifest.json").read_text())["files"]))
def test_one_altered_byte_anywhere_is_refused_by_name(copy: Path, name: str) -> None:
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(BundleError, match="altered") as caught:
        Bundle.open(copy)
    assert name in str(caught.value)


def test_a_missing_file_is_refused_by_name(copy: Path) -> None:
    (copy / "unet/prompt.onnx").unlink()
    with pytest.raises(BundleError, match=r"unet/prompt\.onnx"):
        Bundle.open(copy)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(copy: Path, bad: float) -> None:
    from safetensors.numpy import load_file, save_file

    name = "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(copy / name)
    weights["conv_in.weight"].flat[5] = bad
    save_file(weights, copy / name)
    reseal(copy, name)
    with pytest.raises(BundleError, match=r"conv_in\.weight"):
        Bundle.open(copy)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="no such directory"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema_version": 99}, "schema_version"),
        ({"family": "sd99"}, "family"),
        ({"family": 5}, "family"),
        ({"constants": {"colour": 1}}, "colour"),
        ({"constants": {"vae_factor": "4"}}, "vae_factor"),
        ({"constants": {"grid": 0}}, "grid"),
        ({"constants": {"scaling_factor": float("nan")}}, "scaling_factor"),
        ({"constants": {"default_size": [64]}}, "default_size"),
        ({"constants": {"schedule": {"beta_start": "x"}}}, "beta_start"),
        ({"constants": []}, "constants"),
        ({"defaults": []}, "defaults"),
        ({"schema_version": 1}, "export the bundle again"),
        ({"weights": []}, "weights"),
        ({"weights": {"unet": {}}}, "weights"),
        ({"engines": []}, "engines"),
        ({"engines": [{}]}, "kind"),
        ({"engines": [{**ENTRY, "networks": {"unet": {}}}]}, "networks"),
        ({"engines": [{**ENTRY, "networks": {"oracle": {"path": "unet/model.onnx"}}}]}, "oracle"),
        ({"engines": [{**ENTRY, "precision": "fp3"}]}, "precision"),
        ({"engines": [{**ENTRY, "rewrites": ["faster"]}]}, "faster"),
        ({"engines": [{**ENTRY, "grid": True}]}, "grid"),
        ({"engines": [{**ENTRY, "status": "fine"}]}, "status"),
        ({"engines": [{**ENTRY, "networks": {"unet": {"path": "../outside"}}}]}, "outside"),
        ({"parity": {"files": {"unet": 1}}}, "parity"),
        ({"files": []}, "files"),
        ({"files": {"unet/model.onnx": 1}}, "files"),
        ({"files": {"../outside": "0" * 64}}, "outside"),
        ({"files": {"/etc/hostname": "0" * 64}}, "inside the bundle"),
    ],
    ids=str,
)
def test_a_manifest_that_breaks_a_rule_is_refused(copy: Path, changes: dict[str, Any], named: str) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(BundleError, match=named):
        Bundle.open(copy)


def test_a_manifest_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="JSON"):
        Bundle.open(copy)


SEALED = [
    "unet/prompt.onnx", "parity/images.safetensors", "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
]  # fmt: skip


@pytest.mark.parametrize("name", [*SEALED, "tokenizer/vocab.json"])
def test_a_file_without_a_hash_is_never_read(copy: Path, name: str) -> None:
    files = json.loads((copy / "manifest.json").read_text())["files"]
    del files[name]
    edit_manifest(copy, files=files)
    with pytest.raises(BundleError, match=re.escape(name)):
        Bundle.open(copy)


def test_a_file_that_was_dropped_in_is_refused(copy: Path) -> None:
    (copy / "notes.md").write_text("read by nobody")
    Bundle.open(copy)
    (copy / "tokenizer/added_tokens.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer/added_tokens\.json"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\xff" * 8 + b"{}", b"\x02" + b"\x00" * 7 + b"[]", b"\x07" + b"\x00" * 7 + b'{"a":1}',
     b"\x0a" + b"\x00" * 7 + b'{"a": {}} '],
)  # fmt: skip
def test_weights_that_are_no_safetensors_file_are_refused_by_name(copy: Path, content: bytes) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    (copy / name).write_bytes(content)
    reseal(copy, name)
    with pytest.raises(BundleError, match=r"diffusion_pytorch_model\.safetensors"):
        Bundle.open(copy)


def test_the_id_follows_the_model_and_not_the_place_or_the_engines(copy: Path) -> None:
    own = Bundle.open(builtin()).id
    assert Bundle.open(copy).id == own
    engines = json.loads((copy / "manifest.json").read_text())["engines"]
    edit_manifest(copy, engines=[*engines, ENTRY])
    assert Bundle.open(copy).id == own
    edit_manifest(copy, constants={"scaling_factor": 0.5})
    assert Bundle.open(copy).id != own
    shutil.copy(builtin() / "manifest.json", copy)
    (copy / "scheduler/scheduler_config.json").write_text((copy / "scheduler/scheduler_config.json").read_text() + "\n")
    reseal(copy, "scheduler/scheduler_config.json")
    assert Bundle.open(copy).id != own


def test_a_manifest_nested_too_deep_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="JSON"):
        Bundle.open(copy)


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["constants"]["scaling_factor"] *= 1.3
    file.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="altered: its seal"):
        Bundle.open(copy)
    write_manifest(copy, manifest)
    Bundle.open(copy)


def test_a_bundle_that_was_replaced_is_not_mixed_with_the_new_one(copy: Path) -> None:
    pipe = hotloop.load(copy)
    (copy / "LICENSE").write_text("other terms")
    reseal(copy, "LICENSE")
    with pytest.raises(BundleError, match="replaced while in use"):
        pipe.networks["vae_encoder"]


def test_a_bundle_that_went_and_came_back_meanwhile_is_noticed(copy: Path) -> None:
    """What was opened in between may have been the other's."""
    bundle, other = Bundle.open(copy), copy.with_name("other")
    with bundle.in_place():
        pass
    with pytest.raises(BundleError, match="replaced while in use"), bundle.in_place():
        copy.rename(other)
        other.rename(copy)
    link = copy.with_name("current")
    link.symlink_to(copy)
    linked = Bundle.open(link)
    with pytest.raises(BundleError, match="replaced while in use"), linked.in_place():
        link.unlink()
        link.symlink_to(copy)


def test_a_link_inside_a_bundle_is_refused(copy: Path) -> None:
    elsewhere = copy.with_name("elsewhere")
    (copy / "unet").rename(elsewhere)
    (copy / "unet").symlink_to(elsewhere)
    with pytest.raises(BundleError, match=r"must be no link.*got 'unet'"):
        Bundle.open(copy)


def weights_of_unet(copy: Path) -> Path:
    return copy / str(Bundle.open(copy, verify=False).manifest["weights"]["unet"]["path"])


@pytest.mark.parametrize("change", ["none", "moved"])
def test_a_graph_that_names_bytes_that_are_no_tensors_is_refused(copy: Path, change: str) -> None:
    """ONNX Runtime would read the file's header, or half of two tensors, as numbers."""
    file = weights_of_unet(copy)
    held = dict(Weights.open(file))
    first = next(iter(held))
    save(
        {} if change == "none" else {first: np.ones(3, np.float32), **{k: v for k, v in held.items() if k != first}},
        file,
    )
    reseal(copy, file.relative_to(copy).as_posix())
    with pytest.raises(BundleError, match="must name whole tensors of"):
        hotloop.load(copy, engine="onnx-fp32").networks["unet"]
