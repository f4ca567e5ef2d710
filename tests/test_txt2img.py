"""Whole runs of the benchmarks of pictures: fakes in real processes, hotloop on the built-in model, bookkeeping."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import harness
import ladder
import numpy as np
import pytest
import txt2img
from entrants import Field, agreement, chosen, of_engine, precision_of, same_picture, work_for
from harness import Case, Measurement, Report
from peers.table import PEERS, Peer
from peers.work import Drawn, Setup

import models
from hotloop.bundle import Bundle, builtin
from hotloop.spec import family
from models import Model, model

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(harness.__file__).parent / "result.schema.json").read_text())
)  # fmt: skip


@pytest.fixture
def painter(tmp_path: Path):
    file = shutil.copy(Path(__file__).parent / "doubles/painter_peer.py", tmp_path)
    return lambda name, grey, **settings: Peer(name, file, settings={"grey": grey, **settings})


@pytest.fixture
def options() -> argparse.Namespace:
    parsed = txt2img.parser_of(None).parse_args(["--rounds", "3", "--warmup", "1", "--threads", "1"])
    txt2img.settle(parsed, Model("built-in", builtin()))
    parsed.scenario, parsed.family = "SingleStream", family("avatar-tiny")
    parsed.rates, parsed.requests, parsed.bound, parsed.batch = [500.0], 6, 1.0, 2
    return parsed


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(model=builtin(), cache=tmp_path, size=(64, 64))


class Unlimited:
    """Ceilings at hand: measuring them is not what is tested."""

    ceilings = SimpleNamespace(record=lambda: {"made": "up"})

    def again(self) -> None:
        pass

    def of(self, name: str, evaluations: int, seconds: float) -> dict[str, object]:
        return {"seconds": 1e-9, "share": 1e-9 / seconds, "flops": 1, "bytes": 1, "dtype": "fp32",
                "ceiling_flops": 1.0, "ceiling_bytes": 1.0}  # fmt: skip


def test_a_wrong_picture_a_broken_peer_and_a_missing_one_get_no_ratio_and_a_line_each(painter, options, setup):
    rows = [
        painter("stock fp32", 100), painter("good fp32", 100), painter("wrong fp32", 103), painter("rough bf16", 103),
        painter("broken fp32", 100, breaks=True), Peer("absent fp32", "diffusers", "no-such-environment"),
    ]  # fmt: skip
    report = txt2img.together(rows, setup, options, Model("built-in", builtin()), Unlimited(), batch=1)
    assert [(m.case.name, m.verdict == "differs", m.error is None) for m in report.measurements] == [
        ("stock fp32", False, True), ("good fp32", False, True), ("wrong fp32", True, True),
        ("rough bf16", False, True),
        ("broken fp32", False, False), ("absent fp32", False, False),
    ]  # fmt: skip
    records = {record["case"]: record for record in report.records()}
    assert records["good fp32"]["speedup"] and records["rough bf16"]["speedup"]
    assert records["wrong fp32"]["speedup"] is None and records["wrong fp32"]["check"]["ok"] is False
    assert records["wrong fp32"]["check"]["value"] == pytest.approx(20 * np.log10(255 / 3))
    assert "out of paint" in records["broken fp32"]["error"]
    assert "run `make bench-env`" in records["absent fp32"]["error"]
    assert records["good fp32"]["quality"]["latents_cosine"] == pytest.approx(1)
    assert records["good fp32"]["memory"]["alone"] and records["good fp32"]["metrics"]["first_image"]["count"] == 1
    for record in records.values():
        SCHEMA.validate(record)


def test_server_records_tell_offered_and_achieved_rate_and_the_bound(painter, options, setup):
    rows = [painter("stock fp32", 100), Peer("absent fp32", "diffusers", "no-such-environment")]
    records = txt2img.served(rows, setup, options, Model("built-in", builtin()))
    assert [record["case"] for record in records] == ["stock fp32", "absent fp32"]
    assert records[0]["extra"]["offered_rate"] == 500 and records[0]["metrics"]["latency"]["count"] == 6
    assert records[0]["extra"]["calls"] <= 6 and records[1]["error"]
    for record in records:
        SCHEMA.validate(record)


def test_hotloop_takes_part_like_any_peer(options, setup):
    with Field([of_engine("onnx-fp32")], setup) as field:
        (one,) = field.entrants
        work = work_for(txt2img.PROMPT, "", family=options.family, seed=7, batch=1, size=(64, 64), sampler="plms",
                        steps=2, guidance=2.5)  # fmt: skip
        with one.turn():
            drawn = one.draw(work).output
    assert drawn.evaluations == 3 and np.asarray(drawn.images).std() > 10
    assert agreement(drawn, drawn) == {"psnr_db": None, "ssim": 1.0, "latents_cosine": pytest.approx(1)}


def test_noise_is_torchs_own_image_by_image(options):
    work = work_for("a", "", family=options.family, seed=7, batch=3, size=(64, 64))
    assert work.seeds == (7, 8, 9) and work.noise.shape == (3, 4, 16, 16)
    torch = pytest.importorskip("torch")
    third = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(9))
    assert np.abs(work.noise[2] - third.numpy()).max() < 1e-5


def test_precision_is_the_last_word_of_a_name():
    assert [precision_of(name) for name in ("diffusers eager bf16", "openvino-int8", "stable-diffusion.cpp q8_0")] == [
        "bf16", "int8", "q8_0",
    ]  # fmt: skip
    assert all(precision_of(name) in ("fp32", "bf16", "fp16", "q8_0") for name in PEERS)


def drawn(grey: int) -> Drawn:
    return Drawn(np.full((1, 8, 8, 3), grey, np.uint8), None, 1.0, {}, 1)


def test_lower_precisions_are_held_to_a_wider_bound():
    near = {precision: same_picture(precision)(drawn(100), drawn(105)).ok for precision in ("fp32", "fp16", "bf16")}
    assert near == {"fp32": False, "fp16": False, "bf16": True}


def test_peers_are_chosen_by_name_and_an_unknown_one_is_refused():
    assert [row.name for row in chosen("diffusers eager fp32", "cpu")] == ["diffusers eager fp32"]
    assert len(chosen("all", "cpu")) == len(PEERS) and chosen("none", "cpu") == []
    with pytest.raises(SystemExit, match=r"peers must be all, none or among .*, got magic"):
        chosen("magic", "cpu")


def test_of_a_large_model_every_peer_meets_the_engine_nearest_to_it():
    rows = chosen("all", "cpu")
    pairs = [(a.name, b.name) for a, b in txt2img.opponents(rows, ["onnx-fp32", "openvino-fp32", "openvino-bf16",
                                                                   "openvino-int8"])]  # fmt: skip
    assert len(pairs) == len(rows) + 1
    assert dict(pairs[:-1])["optimum onnxruntime fp32"] == "hotloop onnx fp32"
    assert dict(pairs[:-1])["diffusers eager fp32"] == "hotloop openvino fp32"
    assert dict(pairs[:-1])["diffusers compiled bf16"] == "hotloop openvino bf16"
    assert pairs[-1] == ("optimum openvino bf16", "hotloop openvino int8")


def test_a_kept_bundle_gets_the_engines_that_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "LOCAL", tmp_path)
    source = Model("avatar", builtin())
    place = tmp_path / "bundles" / "avatar-plain"
    runs = []
    monkeypatch.setattr(models.subprocess, "run", lambda command, check: runs.append(command))
    assert source.bundle(["onnx-fp32"], [], keep=True) == place
    assert "--add" not in runs[-1]  # there is none yet
    shutil.copytree(builtin(), place)
    there = [entry.name for entry in Bundle.open(place, verify=False).entries]
    assert source.bundle(there, [], keep=True) == place and len(runs) == 1
    source.bundle([*there, "openvino-int8"], [], keep=True)
    assert runs[-1][-4:] == ["--engines", "openvino-int8", "--rewrites", "--add"]
    source.bundle(there, [])
    assert "--add" not in runs[-1] and len(runs) == 3


def test_a_models_hash_changes_with_its_weights_alone(tmp_path):
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    weights.write_bytes(b"one")
    before = Model("a", tmp_path).hash()
    (tmp_path / "notes.txt").write_text("x")
    assert Model("b", tmp_path).hash() == before
    weights.write_bytes(b"two")
    assert Model("a", tmp_path).hash() != before


def test_a_model_that_is_no_folder_is_refused_in_one_line():
    with pytest.raises(SystemExit, match=r"model must be built-in, sd15-random or a folder .*, got x"):
        model("x")


# The ladder's bookkeeping.


def measured(name: str, seconds: list[float], baseline: list[float] | None) -> Measurement:
    ratio = None if baseline is None else harness.ratio_of(np.array(baseline), np.array(seconds))
    agreed = None if baseline is None else harness.Agreement(True, "PSNR dB", 60, 50)
    return Measurement(Case(name, lambda: None), np.array(seconds), agreed, ratio)


def report(*rows: Measurement) -> Report:
    return Report("ladder", {}, rows, 1, harness.environment(), "run")


RUNGS = [ladder.Rung(name, "onnx-fp32") for name in ("a", "b", "c")]


def test_a_rungs_gain_is_against_the_rung_below():
    base = [4.0, 4.0]
    rows = [measured("a fp32", base, None), measured("b fp32", [2.0, 2.0], base), measured("c fp32", [1.0, 1.0], base)]
    lines = ladder.records_of(RUNGS, [report(*rows)])
    assert [line["params"]["rung"] for line in lines] == [0, 1, 2]
    assert [line["case"] for line in lines] == ["a", "b", "c"] and lines[2]["baseline"] == "a"
    assert lines[2]["speedup"]["median"] == 4 and lines[2]["extra"]["against_previous"]["median"] == 2
    for line in lines:
        SCHEMA.validate(line)


def test_of_rungs_timed_two_by_two_the_whole_is_the_product():
    pairs = [
        report(measured("a fp32", [4.0, 4.0], None), measured("b fp32", [2.0, 2.0], [4.0, 4.0])),
        # The machine was slower by now: ratios do not see it.
        report(measured("b fp32", [6.0, 6.0], None), measured("c fp32", [2.0, 2.0], [6.0, 6.0])),
    ]
    lines = ladder.records_of(RUNGS, pairs)
    assert [line["speedup"] and line["speedup"]["median"] for line in lines] == [None, 2, 6]
    assert lines[2]["extra"]["against_previous"]["median"] == 3
    assert len({line["run"] for line in lines}) == 1
    for line in lines:
        SCHEMA.validate(line)


def test_a_rung_with_fewer_steps_stands_by_the_attributes_it_keeps():
    fewer = ladder.Rung("10 steps", "onnx-fp32", work={"steps": 10})
    kept, lost = (
        ladder.check_of(fewer, {"a": {"attribute_accuracy": 0.94}, fewer.label: {"attribute_accuracy": now}}, "a")
        for now in (0.925, 0.915)
    )
    assert kept(None, None).ok and not lost(None, None).ok


def test_every_rung_has_a_label_of_its_own_that_ends_in_its_precision():
    for source in (Model("built-in", builtin()), SimpleNamespace(small=False)):
        labels = [rung.label for rung in ladder.rungs_of(source)]
        assert len(set(labels)) == len(labels)
        assert {precision_of(label) for label in labels} == {"fp32", "bf16", "int8"}
