"""Editing an ONNX file by its bytes, against the onnx library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from hotloop.engines.onnx_file import OnnxFile
from hotloop.errors import BundleError


@pytest.fixture(params=["inside", "outside"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """out = (x Cast(a)) + b, a in half precision; the values in the file or beside it."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((300, 5)).astype(np.float16), rng.standard_normal(5).astype(np.float32)
    helper, at = onnx.helper, onnx.helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["a"], ["wide"], to=1),
            helper.make_node("MatMul", ["x", "wide"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["out"]),
        ],
        "graph", [at("x", 1, ["B", 300])], [at("out", 1, ["B", 5])],
        [onnx.numpy_helper.from_array(a, "a"), onnx.numpy_helper.from_array(b, "b"),
         onnx.numpy_helper.from_array(np.array([3], np.int64), "count")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    outside = dict(save_as_external_data=True, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx", **(outside if request.param == "outside" else {}))
    return tmp_path / "model.onnx"


def test_initializers_are_those_the_library_reads(file: Path) -> None:
    want = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer}
    got = OnnxFile(file)
    assert list(got.initializers) == list(want)
    assert got.initializers["count"].dtype is None
    for name in ("a", "b"):
        assert got.initializers[name].shape == want[name].shape
        assert np.array_equal(got.read(name), want[name].astype(np.float32))


def test_an_edited_file_is_the_same_graph_with_these_inputs(file: Path) -> None:
    made = onnx.load_model_from_string(OnnxFile(file).edited(inputs=["a"], widened=["b"]))
    before = onnx.load(file, load_external_data=False)
    assert [one.name for one in made.graph.input] == ["x", "a"]
    type_ = made.graph.input[1].type.tensor_type
    assert type_.elem_type == onnx.TensorProto.FLOAT and [dim.dim_value for dim in type_.shape.dim] == [300, 5]
    assert [one.name for one in made.graph.initializer] == ["b", "count"]
    assert made.graph.node == before.graph.node and made.graph.output == before.graph.output
    assert made.opset_import == before.opset_import and made.ir_version == before.ir_version


def test_an_edited_graph_runs_as_the_first(file: Path) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    opened = OnnxFile(file)
    x = np.random.default_rng(1).standard_normal((2, 300)).astype(np.float32)
    (want,) = ort.InferenceSession(str(file)).run(None, {"x": x})
    edited = ort.InferenceSession(opened.edited(inputs=["a"]), options)
    (got,) = edited.run(None, {"x": x, "a": opened.read("a")})
    assert np.allclose(got, want, rtol=1e-6, atol=1e-5)
    assert not np.allclose(edited.run(None, {"x": x, "a": 2 * opened.read("a")})[0], want)


@pytest.mark.parametrize("content", [b"", b"\xff", b"not an onnx graph", b"\x3a\xff\xff\xff\x0f"])
def test_what_is_no_graph_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx must hold an ONNX graph"):
        OnnxFile(tmp_path / "model.onnx").read("a")
