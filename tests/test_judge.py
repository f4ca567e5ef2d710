"""The judge that ships reads pictures as the trained probe does, asks what score.py asks; altered, it is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotloop.bundle import builtin, write_manifest
from hotloop.errors import BundleError, InputError
from hotloop.evaluation import metrics as quality
from hotloop.evaluation.judge import GRAPH, PROMPTS, REFERENCE, Judge, builtin_judge
from hotloop.weights import Weights, save

HERE = Path(__file__).resolve().parents[1] / "models" / "avatar_tiny"
FOLDER = builtin_judge("avatar-tiny") or Path()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.open(FOLDER)


@pytest.fixture(scope="module")
def recipe() -> Any:
    """The modules of the built-in model's recipe."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    sys.path.insert(0, str(HERE))
    import judge as maker
    import probe
    import render
    import score

    return type("Recipe", (), {"maker": maker, "probe": probe, "render": render, "score": score})


@pytest.fixture(scope="module")
def faces(recipe: Any) -> list[Any]:
    return recipe.score.clean_held_out(24)


@pytest.fixture(scope="module")
def pictures(recipe: Any, faces: list[Any]) -> np.ndarray:
    """Held-out renders, the same under noise, and noise alone: uint8 [72, 64, 64, 3]."""
    rng = np.random.default_rng(0)
    clean = np.stack([recipe.render.render(face, 64).image for face in faces])
    noisy = np.clip(clean + rng.normal(0, 40, clean.shape), 0, 255).astype(np.uint8)
    return np.concatenate([clean, noisy, rng.integers(0, 256, clean.shape, np.uint8)])


def test_it_reads_what_the_probe_in_torch_reads(judge: Judge, recipe: Any, pictures: np.ndarray) -> None:
    guesses, features = recipe.probe.predict(recipe.probe.load_probe(), pictures)
    seen = judge.read(pictures)
    np.testing.assert_array_equal(seen.guesses, guesses)
    np.testing.assert_allclose(seen.features, features, rtol=1e-4, atol=1e-5 * np.abs(features).max())


def test_its_figures_are_those_of_score(judge: Judge, recipe: Any, faces: list[Any], pictures: np.ndarray) -> None:
    few = pictures[: len(faces)]
    texts, truth = recipe.score.claimed(faces)
    assert list(judge.prompts[: len(faces)]) == texts
    np.testing.assert_array_equal(judge.claims[: len(faces)], truth)

    guesses, features = recipe.probe.predict(recipe.probe.load_probe(), few)
    theirs = recipe.score.with_mean(recipe.probe.accuracy(guesses, truth))
    seen = judge.read(few)
    ours = judge.accuracy(seen.guesses, judge.claims[: len(few)])
    assert ours == pytest.approx({name: theirs[name] for name in ours}, abs=1e-4)
    assert judge.fid(seen.features) == pytest.approx(quality.fid(features, judge.reference), rel=1e-4)
    assert judge.kid(seen.features) == pytest.approx(quality.kid(features, judge.reference), rel=1e-4)


def test_the_committed_one_is_what_its_script_makes(
    judge: Judge, recipe: Any, faces: list[Any], tmp_path: Path
) -> None:
    recipe.maker.write(tmp_path, prompts=len(faces) // 2)
    made = Judge.open(tmp_path)
    assert (made.size, made.attributes, made.scored) == (judge.size, judge.attributes, judge.scored)
    assert made.prompts == judge.prompts[: len(faces) // 2]
    assert dict(judge.attributes) == recipe.render.ATTRIBUTES
    # Its real pictures are the faces after the prompts', as score.py compares with.
    real = np.stack([recipe.render.render(face, 64).image for face in faces[len(faces) // 2 :]])
    np.testing.assert_allclose(made.reference, judge.read(real).features, rtol=1e-4, atol=1e-3)
    onnx = pytest.importorskip("onnx")
    graphs = [onnx.load(folder / GRAPH).graph for folder in (tmp_path, FOLDER)]
    assert graphs[0].SerializeToString(deterministic=True) == graphs[1].SerializeToString(deterministic=True)


def test_it_is_small_and_has_prompts_and_real_faces_enough(judge: Judge) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_500_000
    assert len(judge.prompts) == len(judge.claims) == len(judge.reference) == 512
    assert len(set(judge.prompts)) > 500
    assert set(judge.scored) <= set(judge.attributes)


def test_any_number_of_pictures_and_any_order_are_read_alike(judge: Judge) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (70, 64, 64, 3), np.uint8)
    whole, back = judge.read(pictures), judge.read(pictures[::-1])
    np.testing.assert_allclose(back.features[::-1], whole.features, rtol=1e-4, atol=1e-3)
    alone = judge.read(pictures[65:66])
    np.testing.assert_allclose(alone.features[0], whole.features[65], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("pictures", [np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 64, 64, 3), np.float32)])
def test_pictures_it_cannot_read_are_refused(judge: Judge, pictures: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \[N, 64, 64, 3\]"):
        judge.read(pictures)


def test_a_family_without_a_judge_has_none() -> None:
    assert builtin_judge("sd15") is None


def test_a_feature_network_of_another_kind_is_a_judge_too(tmp_path: Path) -> None:
    """Its own size, no attributes: the mean colour of a picture as features."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=kinds.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["features"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("image", kinds.UINT8, ["N", 5, 7, 3])],
        [helper.make_tensor_value_info("features", kinds.FLOAT, ["N", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / GRAPH)
    (tmp_path / PROMPTS).write_text(json.dumps({"prompts": [{"text": "a face", "claims": {}}]}))
    rng = np.random.default_rng(2)
    save({"features": rng.uniform(0, 255, (9, 3)).astype(np.float32)}, tmp_path / REFERENCE)
    from hotloop.evaluation.judge import seal

    seal(tmp_path, size=(7, 5), attributes={}, scored=())
    judge = Judge.open(tmp_path)
    pictures = rng.integers(0, 256, (6, 5, 7, 3), np.uint8)
    seen = judge.read(pictures)
    np.testing.assert_allclose(seen.features, pictures.mean((1, 2)), rtol=1e-5)
    assert seen.guesses.shape == (6, 0) and judge.accuracy(seen.guesses, judge.claims[:1].repeat(6, 0)) == {}
    assert judge.fid(seen.features) > 0


# Altered.


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "judge"))


@pytest.mark.parametrize("name", [GRAPH, PROMPTS, REFERENCE, "manifest.json"])
def test_a_changed_byte_in_any_file_is_refused(copy: Path, name: str) -> None:
    raw = bytearray((copy / name).read_bytes())
    at = raw.index(b"hair") if name == "manifest.json" else len(raw) // 2
    raw[at] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(BundleError, match=f"{name} of .* was altered") as caught:
        Judge.open(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [GRAPH, PROMPTS, REFERENCE, "manifest.json"])
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        Judge.open(copy)


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"files": {}}, {"files": 5}, {"size": [64]}, {"size": "x"}, {"attributes": []},
     {"attributes": {"hair": 5}}, {"attributes": {}}, {"scored": ["beard"]}, {"scored": None}],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_is_sealed_but_wrong_is_refused_in_one_line(copy: Path, change: dict[str, Any]) -> None:
    write_manifest(copy, json.loads((copy / "manifest.json").read_text()) | change)
    with pytest.raises(BundleError) as caught:
        Judge.open(copy)
    assert "\n" not in str(caught.value)


def put_prompts(value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / PROMPTS).write_text(json.dumps(value))


def put_features(**tensors: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: save(tensors, folder / REFERENCE)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (put_prompts({"prompts": 5}), "whole"),
        (put_prompts({"prompts": []}), "prompts"),
        (put_prompts({"prompts": [{"text": 5, "claims": {}}]}), "prompts"),
        (put_prompts({"prompts": [{"text": "a", "claims": {"beard": "long"}}]}), "beard"),
        (put_prompts({"prompts": [{"text": "a", "claims": {"hair": "plaid"}}]}), "whole"),
        (put_features(other=np.zeros((4, 4), np.float32)), "features"),
        (put_features(features=np.zeros(4, np.float32)), "features"),
        (put_features(features=np.full((4, 4), np.inf, np.float32)), "finite"),
    ],
)
def test_files_that_are_sealed_but_wrong_are_refused(copy: Path, spoil: Callable[[Path], object], named: str) -> None:
    from hotloop.files import sha256

    spoil(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"] = {name: sha256(copy / name) for name in manifest["files"]}
    write_manifest(copy, manifest)
    with pytest.raises(BundleError, match=named) as caught:
        Judge.open(copy)
    assert "\n" not in str(caught.value)


def test_a_graph_with_other_outputs_does_not_read(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["attributes"]["beard"] = ["none", "long"]
    write_manifest(copy, manifest)
    with pytest.raises(BundleError, match="beard"):
        Judge.open(copy).read(np.zeros((1, 64, 64, 3), np.uint8))


def test_the_judge_is_not_a_bundle_and_a_bundle_no_judge() -> None:
    from hotloop.bundle import Bundle

    for opens, path in ((Judge.open, builtin()), (Bundle.open, FOLDER)):
        with pytest.raises(BundleError) as caught:
            opens(path)  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def test_it_is_read_lazily(copy: Path) -> None:
    """Opening costs no session: what only asks for prompts pays for none."""
    assert "_engine" not in vars(Judge.open(copy))
    assert Weights.open(copy / REFERENCE).shape("features") == (512, 128)
