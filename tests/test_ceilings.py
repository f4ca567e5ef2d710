"""Ceilings measured on small shapes and a made-up clock: what is kept, what is left out, what is put back."""

from __future__ import annotations

import json

import ceilings
import pytest
import torch
from ceilings import WIDER, Ceiling, measure


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ceilings, "PRODUCTS", ((64, 64, 64), (128, 32, 64)))
    monkeypatch.setattr(ceilings, "CONVOLUTIONS", ((32, 8, 2),))
    monkeypatch.setattr(ceilings, "COPY", 1 << 20)


def ways(*rates: float | None) -> list[ceilings._Way]:
    """Ways of doing 100; their run is the seconds that they take, or None for one that cannot."""
    return [ceilings._Way(f"way {i}", 100.0, lambda rate=rate: rate and 100 / rate) for i, rate in enumerate(rates)]


def clock(run):
    if run is None:
        raise RuntimeError("no such product")
    return run


def test_a_machine_has_a_ceiling_for_every_dtype(small):
    found = measure(threads=1, seconds=0.0)
    assert {"fp32", "bf16", "fp16", "int8"} <= set(found.flops)
    assert found.device == "cpu" and found.threads == 1
    assert found.bytes.value > 0 and all(one.value > 0 for one in found.flops.values())


def test_a_narrow_dtypes_ceiling_is_at_least_the_wider_ones(small):
    found = measure(threads=1, seconds=0.0).flops
    for dtype, wider in WIDER.items():
        assert all(found[dtype].value >= found[name].value for name in wider if dtype in found)


def test_a_record_is_json_and_says_who(small):
    found = measure(threads=1, seconds=0.0)
    record = json.loads(json.dumps(found.record()))
    assert record["flops"]["fp32"] == {"value": found.flops["fp32"].value, "by": found.flops["fp32"].by}
    assert set(record) == {"device", "threads", "flops", "bytes"}
    assert found.table().count("\n") == len(found.flops)


def test_torchs_threads_are_what_they_were(small):
    before = torch.get_num_threads()
    measure(threads=before + 1, seconds=0.0)
    assert torch.get_num_threads() == before


def test_the_fastest_way_gives_the_ceiling():
    assert ceilings._fastest(ways(5.0, 8.0, 7.0), clock) == Ceiling(8.0, "way 1")


def test_a_way_that_a_library_lacks_gives_no_ceiling():
    assert ceilings._fastest(ways(None, 3.0), clock) == Ceiling(3.0, "way 1")
    assert ceilings._fastest(ways(None), clock) is None
    assert ceilings._flops([("fp32", ways(4.0)), ("fp8", ways(None))], clock).keys() == {"fp32"}


def test_an_emulated_dtype_is_given_up_and_has_the_wider_ones_ceiling():
    assert ceilings._flops([("fp32", ways(8.0)), ("fp16", ways(1.0, 90.0))], clock)["fp16"] == Ceiling(8.0, "way 0")


def test_a_runs_time_is_the_best_of_several():
    calls = []
    seconds = ceilings._cpu_timer(0.02)(lambda: calls.append(sum(range(10_000 if len(calls) == 3 else 100_000))))
    assert len(calls) > 4 and seconds < 0.002


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_compiled_model_computes_in_its_dtype(small, dtype):
    """By what OpenVINO says that its own kernels run in."""
    pytest.importorskip("openvino")
    for way in ceilings._openvino_ways(dtype, 1):
        request = way.make().__self__
        nodes = [node.get_rt_info() for node in request.get_compiled_model().get_runtime_model().get_ordered_ops()]
        kinds = [n["primitiveType"].value for n in nodes if n["layerType"].value in ("FullyConnected", "Convolution")]
        assert len(kinds) == ceilings.LAYERS
        expected = {"fp32": "f32", "bf16": "bf16", "int8": "i8"}[dtype]
        assert all(expected in kind.lower() for kind in kinds), kinds


@pytest.mark.gpu
def test_a_gpu_has_ceilings_too():
    found = measure(device="cuda", seconds=0.02)
    assert found.threads is None and found.flops["fp16"].value > found.flops["fp32"].value > 1e12
    assert found.bytes.value > 1e11
