"""Batches cut into parts that run side by side: which cuts there are, and that they change no row."""

from __future__ import annotations

import threading
import time
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import pytest
import safetensors
from helpers import fill, normal

from hotloop.bundle import Bundle, builtin
from hotloop.engines import Context
from hotloop.engines.batch_split import cut, part_of, parts, side_by_side
from hotloop.errors import BundleError
from hotloop.spec import Network, Tensor, family

FAMILY = family("avatar-tiny")
SHARED = FAMILY.split(("kv", "time", "prefix"), ())["unet"]
PLAIN = FAMILY.networks["unet"]


def test_every_row_is_in_one_part_with_its_own_image() -> None:
    for images, halves, most in product((1, 2, 3, 4, 6), (1, 2), range(1, 9)):
        batch = images * halves
        dims = {"N": images, "B": batch, "T": 77, "h": 16, "w": 16}
        count = parts(SHARED, dims, most)
        assert 1 <= count <= most and batch % count == 0
        part = part_of(dims, count)
        image, row = np.arange(images), np.arange(batch)
        if count == 1:
            assert part == dims
            continue
        assert part == dims | {"N": batch // count, "B": batch // count}
        cuts = cut({"image": image, "row": row}, count)
        assert [*np.concatenate([one["row"] for one in cuts])] == [*row]
        for one in cuts:
            assert [*one["image"]] == [*(one["row"] % images)] and len(one["row"]) == part["B"]
            assert np.shares_memory(one["image"], image)


@pytest.mark.parametrize(
    ("images", "batch", "most", "expected"),
    [(1, 2, 2, 2), (1, 2, 1, 1), (1, 1, 8, 1), (4, 8, 2, 2), (4, 8, 16, 8), (3, 6, 4, 2), (3, 6, 5, 2), (5, 5, 3, 1)],
)
def test_the_most_parts_that_fit_are_made(images: int, batch: int, most: int, expected: int) -> None:
    assert parts(SHARED, {"N": images, "B": batch, "T": 77, "h": 16, "w": 16}, most) == expected


def test_a_network_without_images_is_cut_by_rows_and_one_without_rows_is_not() -> None:
    assert parts(PLAIN, {"B": 6, "T": 77, "h": 16, "w": 16}, 4) == 3
    odd = Network("odd", (Tensor("table", "float32", ("T", 4)),), (Tensor("out", "float32", ("B", 4)),))
    assert parts(odd, {"B": 4, "T": 4}, 4) == 1


def test_all_runs_end_before_an_error_is_raised() -> None:
    here, ended = threading.get_ident(), []

    def run(number: int) -> None:
        if number == 1:
            time.sleep(0.05)
        ended.append((number, threading.get_ident() == here))
        if number != 1:
            raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        side_by_side([partial(run, number) for number in range(3)])
    assert sorted(ended) == [(0, True), (1, False), (2, False)]


# In the engines.


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def unet(request: pytest.FixtureRequest) -> dict[bool, Any]:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    cls = {"onnx": "OnnxEngine", "openvino": "OpenVinoEngine"}[request.param]
    bundle = Bundle.open(builtin(), verify=False)
    entry = bundle.entries[0]
    path, row = bundle.network_file(entry, "unet"), bundle.networks(entry)["unet"]
    engine = getattr(import_module(f"hotloop.engines.{request.param}"), cls)
    return {spread: engine(path, row, threads=2, spread=spread) for spread in (False, True)}


def filled(context: Context) -> Context:
    return fill(context, {name: normal(*array.shape, seed=3) for name, array in context.inputs.items()})


@pytest.mark.parametrize(("images", "batch"), [(1, 2), (2, 4), (2, 2), (3, 6)])
def test_rows_side_by_side_are_the_rows_of_the_batch(unet: dict[bool, Any], images: int, batch: int) -> None:
    dims = {"N": images, "B": batch, "T": 77, "h": 16, "w": 16}
    outputs = {}
    for spread, engine in unet.items():
        with engine.contexts.lease(**dims) as context:
            assert engine.parts(dims) == (2 if spread else 1)
            filled(context).run()
            outputs[spread] = context.outputs["out"].copy()
            context.outputs["out"][:] = 0
            context.run()  # every part writes its rows each time
            assert np.array_equal(context.outputs["out"], outputs[spread])
    np.testing.assert_allclose(outputs[True], outputs[False], atol=2e-5)
    assert np.abs(outputs[True]).min(axis=(1, 2, 3)).max() > 0


def test_a_part_that_fails_is_said_when_all_have_ended(unet: dict[bool, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with unet[True].contexts.lease(N=1, B=2, T=77, h=16, w=16) as context:
        ended: list[int] = []

        class Request:
            def __init__(self, number: int) -> None:
                self.number = number

            def start_async(self) -> None: ...

            def wait(self) -> None:
                ended.append(self.number)
                if self.number == 0:
                    raise RuntimeError("no memory")

        requests = [Request(0), Request(1)]
        held, parts = (
            ("_runs", [one.wait for one in requests]) if hasattr(context, "_runs") else ("_requests", requests)
        )
        monkeypatch.setattr(context, held, parts)
        with pytest.raises(BundleError, match="unet does not run: no memory"):
            context.run()
        assert ended == [0, 1]


def test_patched_weights_reach_every_part(unet: dict[bool, Any]) -> None:
    dims = {"N": 1, "B": 2, "T": 77, "h": 16, "w": 16}
    name = "conv_out.bias"
    with safetensors.safe_open(builtin() / "unet/diffusion_pytorch_model.safetensors", "numpy") as weights:
        bias = weights.get_tensor(name).astype(np.float32)
    got = []
    for engine in unet.values():
        patched = engine.patched({name: bias + 1})
        with patched.contexts.lease(**dims) as context:
            filled(context).run()
            got.append(context.outputs["out"].copy())
    with unet[True].contexts.lease(**dims) as context:
        filled(context).run()
        np.testing.assert_allclose(got[1], context.outputs["out"] + 1, atol=1e-4)
    np.testing.assert_allclose(got[1], got[0], atol=2e-5)
