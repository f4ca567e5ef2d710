"""What `hotloop export` is told is checked before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotloop.bundle import builtin
from hotloop.engines import KINDS
from hotloop.errors import InputError
from hotloop_export.recipe import PRECISIONS, Recipe, Target, parse_batches, parse_shapes, parse_target


@pytest.mark.parametrize(
    ("text", "precision", "target"),
    [
        ("onnx", None, Target("onnx", "fp32")),
        ("openvino", None, Target("openvino", "bf16")),
        ("openvino", "int8", Target("openvino", "int8")),
        ("openvino:fp32", "int8", Target("openvino", "fp32")),
        ("tensorrt-rtx", None, Target("tensorrt_rtx", "fp16")),
        ("native:bf16", None, Target("native", "bf16")),
    ],
)
def test_an_engine_may_bring_its_precision(text: str, precision: str | None, target: Target) -> None:
    assert parse_target(text, precision) == target


@pytest.mark.parametrize(
    ("text", "precision", "rule"),
    [
        ("tvm", None, "engine must be one of onnx"),
        ("onnx", "bf16", "no bf16 convolution"),
        ("onnx:fp8", None, "precision of onnx must be one of fp32, fp16, int8"),
        ("tensorrt", "int8", "precision of tensorrt"),
        ("", None, "engine must be one of"),
    ],
)
def test_an_engine_that_cannot_be_is_one_line(text: str, precision: str | None, rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        parse_target(text, precision)
    assert "\n" not in str(caught.value)


def test_every_kind_has_precisions() -> None:
    assert set(PRECISIONS) == set(KINDS)


def test_shapes_are_width_by_height() -> None:
    assert parse_shapes("512x512, 768X512,512x512") == ((512, 512), (768, 512))


@pytest.mark.parametrize("text", ["", "512", "512x", "512x0", "0x512", "-1x5", "5x5x5", "1e3x512", "99999x8", "a,b"])
def test_shapes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="shapes must be"):
        parse_shapes(text)


def test_batches_are_a_number_or_a_range() -> None:
    assert (parse_batches("4"), parse_batches("1-4")) == ((4, 4), (1, 4))


@pytest.mark.parametrize("text", ["", "0", "4-1", "1-", "-4", "1-999", "x", "1-2-3"])
def test_batches_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="batch must be"):
        parse_batches(text)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rewrites": ("kv", "faster")}, "rewrites must be among"),
        ({"groups": ("pose",)}, "groups must be among"),
        ({"defaults": {"cfg": 7}}, "defaults must be among"),
        ({"targets": ()}, "there must be one"),
        ({"targets": (Target("onnx", "fp32"),) * 2}, "engines must differ"),
        ({"certify": "no"}, "certify must be"),
        ({"keep_fp32": "some"}, "keep_fp32 must be"),
        ({"source": Path("nowhere")}, "source must be"),
        ({"rewrites": ("kv", "kv")}, "rewrites must differ"),
        ({"keep_fp32": ("mid_block",)}, "keep_fp32 names modules for int8"),
        ({"defaults": {"num_inference_steps": 0}}, "num_inference_steps must be"),
        ({"defaults": {"guidance_scale": float("nan")}}, "guidance_scale must be"),
        ({"defaults": {"sampler": "best"}}, "sampler must be one of"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(changes: dict, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Recipe(**({"source": builtin()} | changes))
