"""`engine="auto"` takes the fastest engine of a bundle that the machine can run, and says what it passed over."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hotloop import engines
from hotloop.bundle import BUILT_NEVER_RUN, CERTIFIED, Bundle, Entry, builtin
from hotloop.errors import InputError
from hotloop.networks import Networks
from hotloop.selection import choose, runs_in

PRESENT: dict[str, dict[str, list[str]]] = {
    "onnx": {"cpu": ["fp32", "int8"]},
    "openvino": {"cpu": ["fp32", "bf16", "int8"]},
}


def entry(name: str, **changes: Any) -> Entry:
    kind, precision = name.split("-")
    made = Entry(kind, precision, "fp16", (), (), 1, "any", CERTIFIED, {"unet": {"path": "unet/model.onnx"}}, {})
    return replace(made, **changes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, list[str]]]:
    """What the machine is said to have: kind -> device -> precisions."""
    present = {kind: dict(devices) for kind, devices in PRESENT.items()}

    def devices(kind: str) -> list[str]:
        if kind not in present:
            raise InputError("engine", f"{kind} needs a library that is not installed: pip install {kind}")
        return list(present[kind])

    monkeypatch.setattr(engines, "devices", devices)
    monkeypatch.setattr(engines, "precisions", lambda kind, device: present[kind][device])
    monkeypatch.setattr(engines, "speeds", lambda kind, device: {})
    return present


def bundle(*entries: Entry) -> Bundle:
    made = Bundle.open(builtin(), verify=False)
    vars(made)["entries"] = entries
    return made


def test_the_fastest_engine_wins_whatever_the_order(machine: Any) -> None:
    made = bundle(entry("onnx-fp32"), entry("openvino-bf16"), entry("openvino-fp32"))
    first = choose(made)[0]
    assert (first.entry.name, first.device) == ("openvino-bf16", "cpu")
    assert first.why == "faster than openvino-fp32 on cpu, onnx-fp32 on cpu"
    assert [choice.entry.name for choice in choose(made)] == ["openvino-bf16", "openvino-fp32", "onnx-fp32"]


@pytest.mark.parametrize(("speed", "first"), [(0.5, "openvino-fp32"), (1.0, "openvino-fp32"), (1.9, "openvino-bf16")])
def test_bf16_comes_first_only_where_it_is_faster(
    machine: Any, monkeypatch: pytest.MonkeyPatch, speed: float, first: str
) -> None:
    monkeypatch.setattr(engines, "speeds", lambda kind, device: {"bf16": speed} if kind == "openvino" else {})
    made = bundle(entry("onnx-fp32"), entry("openvino-bf16"), entry("openvino-fp32"))
    chosen = choose(made)
    assert chosen[0].entry.name == first and chosen[-1].entry.name == "onnx-fp32"
    note = f"openvino-bf16 comes after fp32: its precision runs at {speed:.2f} of fp32's speed here"
    assert (note in chosen[0].why) == (speed < 1.05)
    assert choose(made, "openvino-bf16")[0].why.startswith("asked for")
    assert choose(bundle(entry("openvino-bf16"), entry("onnx-fp32")))[0].entry.name == "openvino-bf16"


@pytest.mark.parametrize(
    ("listed", "speed", "reason"),
    [
        (["fp32", "bf16", "int8"], 1.8, None),
        (["fp32", "bf16", "int8"], 0.6, "text_encoder in fp32: bf16 runs at 0.60 of fp32's speed here"),
        (["fp32", "int8"], None, "text_encoder in fp32: bf16 is not computed here"),
    ],
)
def test_fp32_stands_in_for_what_int8_leaves_in_a_slow_or_missing_bf16(
    machine: Any, monkeypatch: pytest.MonkeyPatch, listed: list[str], speed: float | None, reason: str | None
) -> None:
    machine["openvino"] = {"cpu": listed}
    monkeypatch.setattr(engines, "speeds", lambda kind, device: {"bf16": speed} if speed else {})
    opened: dict[str, str] = {}
    monkeypatch.setattr(
        "hotloop.networks.open_engine",
        lambda kind, path, row, *, precision, **rest: opened.update({row.name: precision}),
    )
    networks = {"unet": {"path": "a", "precision": "int8"}, "text_encoder": {"path": "b", "precision": "bf16"}}
    made = bundle(entry("openvino-int8", networks=networks))
    monkeypatch.setattr(Bundle, "network_file", lambda self, entry, name: Path(name))
    chosen = choose(made)[0]
    assert chosen.why == ("the only one" if reason is None else f"the only one ({reason})")
    own = Networks(made, chosen.entry, device="cpu")
    for name in networks:
        own[name]
    assert opened == {"unet": "int8", "text_encoder": "bf16" if reason is None else "fp32"}
    # A whole engine in bf16 was asked for, or chosen: nothing stands in.
    assert runs_in(replace(chosen.entry, precision="bf16"), "text_encoder", "cpu") == "bf16"


def test_a_gpu_comes_before_the_cpu_and_the_cpu_stands_in(machine: Any) -> None:
    machine["onnx"] = {"cuda": ["fp32"], "cpu": ["fp32"]}
    made = bundle(entry("onnx-fp32"), entry("openvino-bf16"))
    assert [(c.entry.kind, c.device) for c in choose(made)] == [("onnx", "cuda"), ("openvino", "cpu"), ("onnx", "cpu")]
    assert [(c.entry.kind, c.device) for c in choose(made, device="cpu")] == [("openvino", "cpu"), ("onnx", "cpu")]


def test_a_faster_engine_that_cannot_run_is_warned_of(machine: Any) -> None:
    machine["openvino"] = {"cpu": ["fp32"]}
    made = bundle(entry("onnx-fp32"), entry("openvino-bf16"))
    with pytest.warns(RuntimeWarning, match=r"openvino-bf16 would be faster: .* does not compute bf16 here"):
        assert choose(made)[0].entry.name == "onnx-fp32"
    del machine["openvino"]
    with pytest.warns(RuntimeWarning, match="pip install openvino"):
        assert choose(made)[0].entry.name == "onnx-fp32"


def test_a_slower_engine_that_cannot_run_is_no_warning(machine: Any) -> None:
    made = bundle(entry("openvino-bf16"), entry("native-fp32"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = choose(made)[0]
    assert first.entry.name == "openvino-bf16"
    assert "native-fp32 cannot run" in first.why


def test_auto_never_takes_an_engine_that_was_never_run(machine: Any) -> None:
    machine["tensorrt"] = {"cuda": ["fp16"]}
    made = bundle(entry("onnx-fp32"), entry("tensorrt-fp16", status=BUILT_NEVER_RUN))
    with pytest.warns(RuntimeWarning, match="never run"):
        assert choose(made)[0].entry.kind == "onnx"
    assert choose(made, "tensorrt")[0].entry.kind == "tensorrt"


def test_an_engine_can_be_named_by_kind_or_with_its_precision(machine: Any) -> None:
    made = bundle(entry("onnx-fp32"), entry("openvino-bf16"), entry("openvino-fp32"))
    assert choose(made, "openvino")[0].entry.name == "openvino-bf16"
    assert choose(made, "openvino-fp32")[0].why == "asked for"


@pytest.mark.parametrize(
    ("asked", "device", "rule"),
    [("tensorrt", "auto", "built with: auto, onnx-fp32"), ("onnx", "cuda", "no cuda for onnx"), ("onnx", "tpu", "tpu")],
)
def test_what_is_not_there_is_refused_by_name(machine: Any, asked: str, device: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        choose(bundle(entry("onnx-fp32")), asked, device)


def test_networks_of_one_entry_may_run_in_several_precisions(machine: Any) -> None:
    networks = {"unet": {"path": "a.xml"}, "text_encoder": {"path": "b.onnx", "precision": "bf16"}}
    made = bundle(entry("openvino-int8", networks=networks))
    assert choose(made)[0].entry.precision_of("text_encoder") == "bf16"
    machine["openvino"] = {"cpu": ["fp32"]}
    with pytest.raises(InputError, match="does not compute int8"):
        choose(made)


def test_the_built_in_bundle_draws_here(tmp_path: Path) -> None:
    assert choose(Bundle.open(builtin()))[0].device == "cpu"


INT8 = {"networks": {}, "psnr": [31.0, 24.5]}


def test_int8_that_draws_something_else_comes_last(machine: Any) -> None:
    made = bundle(entry("onnx-fp32"), entry("openvino-int8", certificate=INT8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = choose(made)[0]
    assert first.entry.name == "onnx-fp32"
    assert first.why == (
        "the only one (openvino-int8 comes last: its certified images are 24.5 dB from fp32's, 30 needed to come first)"
    )
    assert [one.entry.name for one in choose(made)] == ["onnx-fp32", "openvino-int8"]
    assert choose(made, "openvino-int8")[0].why == "asked for"
    assert choose(bundle(entry("openvino-int8", certificate=INT8)))[0].entry.name == "openvino-int8"


@pytest.mark.parametrize(
    "certificate",
    [INT8 | {"psnr": [38.0, 36.0]}, INT8 | {"attributes": {"before": 0.9, "after": 0.89}}],
    ids=["near images", "right attributes"],
)
def test_int8_that_draws_the_same_wins(machine: Any, certificate: dict[str, Any]) -> None:
    made = bundle(entry("onnx-fp32"), entry("openvino-int8", certificate=certificate))
    assert choose(made)[0].entry.name == "openvino-int8"


def test_int8_that_loses_attributes_does_not_win(machine: Any) -> None:
    lossy = INT8 | {"attributes": {"before": 0.9, "after": 0.87}}
    made = bundle(entry("onnx-fp32"), entry("openvino-int8", certificate=lossy))
    assert choose(made)[0].entry.name == "onnx-fp32"
