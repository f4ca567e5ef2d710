"""`hotloop compare`: what is timed is what is judged, equal seeds give equal figures, and the lines fit the schema."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from hotloop.bundle import Bundle, builtin, write_manifest
from hotloop.cli.compare import compare as run_compare
from hotloop.errors import InputError
from hotloop.evaluation import comparison as compare
from hotloop.evaluation import metrics as quality
from hotloop.evaluation.comparison import Comparison, Point, front
from hotloop.evaluation.judge import Judge, builtin_judge

SCHEMA = json.loads((Path(__file__).parents[1] / "benchmarks" / "result.schema.json").read_text())
SMALL: dict[str, Any] = dict(samplers=["ddim", "euler_a"], steps=[2, 4], prompts=2, engines=["onnx-fp32"], threads=1)


@pytest.fixture(scope="module", autouse=True)
def _soon_converged() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(compare, "CONVERGED", ("heun", 6, {"spacing": "linspace"}))
    yield
    patch.undo()


def made(bundle: Path | Bundle | None = None, **changes: Any) -> Comparison:
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle or builtin(), verify=False)
    return Comparison(opened, **(SMALL | changes))


def run(comparison: Comparison) -> Comparison:
    assert len(list(comparison.run())) == len(comparison)
    return comparison


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.open(builtin_judge("avatar-tiny") or "")


@pytest.fixture(scope="module")
def done() -> Comparison:
    return run(made())


# The front.


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 0.5), (2, 0.9), (3, 0.8)], [True, True, False]),
        ([(1, 0.9), (2, 0.9), (1, 0.8)], [True, False, False]),  # as good, slower; as fast, worse
        ([(1, 0.5), (1, 0.5)], [True, True]),
        ([(1, None), (2, 0.5), (3, None)], [False, True, False]),
        ([(2, math.inf), (1, 40.0), (3, math.inf)], [True, True, False]),
        ([(1, 0.9), (2, 0.5), (3, 0.1)], [True, False, False]),
        ([], []),
    ],
)
def test_a_point_is_on_the_front_unless_another_is_as_fast_and_as_good_and_better(
    points: list[tuple[float, float | None]], expected: list[bool]
) -> None:
    assert front(points) == expected


def test_the_front_of_many_points_is_what_pairs_say() -> None:
    points = [(float(s), float(q)) for s, q in np.random.default_rng(0).integers(0, 12, (60, 2))]
    beaten = [any((s < x and q >= y) or (s <= x and q > y) for s, q in points) for x, y in points]
    assert front(points) == [not one for one in beaten]


# The grid.


def test_every_point_is_a_row_in_order(done: Comparison) -> None:
    rows = done.rows()
    assert [row.point for row in rows] == [
        Point(sampler, steps, "onnx-fp32") for sampler in ("ddim", "euler_a") for steps in (2, 4)
    ]
    assert [row.evaluations for row in rows] == [2, 4, 2, 4]
    for row in rows:
        assert len(row.seconds) == 2 and (row.seconds > 0).all() and row.pictures == 2
        assert set(row.stages) == {"text", "loop", "step", "vae_decoder"}
        parts = sum(row.stages[name] for name in ("text", "loop", "vae_decoder"))
        assert (parts < row.seconds).all()
        np.testing.assert_allclose(row.stages["step"] * row.evaluations, row.stages["loop"])


def test_the_float32_engine_is_what_it_is_compared_with(done: Comparison) -> None:
    assert done.exact == "onnx-fp32"
    for row in done.rows():
        assert row.quality["psnr_db"] == math.inf and row.quality["ssim"] == pytest.approx(1)


def test_only_deterministic_samplers_have_a_converged_picture(done: Comparison) -> None:
    two, four, *stochastic = (row.quality for row in done.rows())
    assert 5 < two["converged_psnr_db"] < four["converged_psnr_db"] < 60
    assert not any("converged_psnr_db" in one or "converged_ssim" in one for one in stochastic)


def test_the_figures_are_those_of_pictures_drawn_alone(done: Comparison, judge: Judge, pipe: Any) -> None:
    drawn, ends = [], []
    for i in range(2):
        common = dict(seed=i, guidance_scale=2.5)
        drawn.append(pipe.txt2img(judge.prompts[i], sampler="ddim", num_inference_steps=4, **common).images[0])
        ends.append(
            pipe.txt2img(
                judge.prompts[i], sampler="heun", num_inference_steps=6, sampler_options={"spacing": "linspace"},
                **common,
            ).images[0]
        )  # fmt: skip
    got, want = (np.stack([np.asarray(one) for one in images]) for images in (drawn, ends))
    figures = done.rows()[1].quality
    assert figures["converged_psnr_db"] == pytest.approx(quality.psnr(got, want), abs=0.1)
    each = [quality.ssim(a, b) for a, b in zip(got, want, strict=True)]
    assert figures["converged_ssim"] == pytest.approx(np.mean(each), abs=1e-3)
    shares = judge.accuracy(judge.read(got).guesses, judge.claims[:2])
    assert figures["attribute_accuracy"] == pytest.approx(shares["mean"])


def test_equal_seeds_give_equal_figures_and_pictures(done: Comparison) -> None:
    again = run(made())
    assert [row.quality for row in again.rows()] == [row.quality for row in done.rows()]
    assert again.sheets()["onnx-fp32"].tobytes() == done.sheets()["onnx-fp32"].tobytes()
    other = run(made(seed=5, samplers=["ddim"], steps=[2]))
    assert other.rows()[0].quality != done.rows()[0].quality


def test_a_sheet_has_a_row_per_sampler_and_a_column_per_number_of_steps(
    done: Comparison, judge: Judge, pipe: Any
) -> None:
    (sheet,) = done.sheets().values()
    assert sheet.size == (2 * 64 + 4, 2 * 64 + 4)
    corner = pipe.txt2img(judge.prompts[0], sampler="euler_a", num_inference_steps=4, seed=0, guidance_scale=2.5)
    cell = np.asarray(sheet.crop((68, 68, 132, 132)), int)
    assert np.abs(cell - np.asarray(corner.images[0], int)).max() <= 2


def test_the_front_is_of_the_judges_accuracy(done: Comparison) -> None:
    assert done.by == "attribute_accuracy"
    rows = done.rows()
    assert [row.front for row in rows] == front([(row.latency, row.quality["attribute_accuracy"]) for row in rows])


def test_the_table_marks_the_front_and_says_what_its_columns_are(done: Comparison) -> None:
    lines = done.table().splitlines()
    assert lines[0].split()[:5] == ["sampler", "steps", "evals", "engine", "ms"]
    assert [line.startswith("*") for line in lines[1:5]] == [row.front for row in done.rows()]
    assert "inf" in lines[1] and " - " in lines[3]
    notes = "\n".join(lines[5:])
    assert "2 pictures" in notes and "heun, 6 steps" in notes and "onnx-fp32" in notes and "128 pictures" in notes


def test_fid_and_kid_need_many_pictures(done: Comparison, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fid_p" not in done.rows()[0].quality
    monkeypatch.setattr(compare, "_FID_FROM", 2)
    features = np.concatenate(done._tallies[done.points[0]].features)
    figures = done.rows()[0].quality
    assert figures["fid_p"] == judge.fid(features) and figures["kid_p"] == judge.kid(features)
    assert "FID-p" in done.table().splitlines()[0]


def test_as_many_converged_pictures_are_drawn_as_a_psnr_needs(
    monkeypatch: pytest.MonkeyPatch, done: Comparison
) -> None:
    monkeypatch.setattr(compare, "_CONVERGED_MOST", 1)
    fewer = run(made(samplers=["ddim"]))
    assert len(fewer) == 2 * 3 + 1
    ours, theirs = fewer.rows()[0].quality, done.rows()[0].quality
    assert ours["converged_psnr_db"] != theirs["converged_psnr_db"]
    assert ours["attribute_accuracy"] == theirs["attribute_accuracy"]
    assert "(1 pictures)" in fewer.table()


def test_more_rounds_are_timed_but_not_judged(done: Comparison) -> None:
    more = run(made(rounds=3, samplers=["ddim"]))
    assert [len(row.seconds) for row in more.rows()] == [3, 3]
    assert [row.quality for row in more.rows()] == [row.quality for row in done.rows()[:2]]


def test_a_batch_draws_the_same_pictures_and_times_each(done: Comparison) -> None:
    both = run(made(batch=2, samplers=["ddim"]))
    for row, single in zip(both.rows(), done.rows()[:2], strict=True):
        assert len(row.seconds) == 1 and row.pictures == 2
        near = pytest.approx(single.quality["converged_psnr_db"], abs=0.2)
        assert row.quality["converged_psnr_db"] == near
    line = both.records(model="built-in")[0]
    assert (line["scenario"], line["work"]) == ("Offline", 2)
    assert line["metrics"]["throughput"]["p50"] == pytest.approx(1 / both.rows()[0].latency)
    jsonschema.validate(line, SCHEMA)


def test_a_size_the_judge_cannot_read_is_judged_by_the_converged_picture() -> None:
    small = run(made(size=(32, 40), prompts=1))
    assert small.judge is None and small.by == "converged_psnr_db"
    assert "no accuracy: avatar-tiny-judge reads pictures of another size" in small.table()
    assert "attribute_accuracy" not in small.rows()[0].quality
    assert [row.front for row in small.rows()[2:]] == [False, False]  # nothing to be good by
    assert small.sheets()["onnx-fp32"].size == (2 * 32 + 4, 2 * 40 + 4)


# Engines.


@pytest.fixture
def stored_in_half(tmp_path: Path) -> Path:
    """The built-in model, whose ONNX engine says that its weights are float16, as they are, and so is no exact one."""
    path = Path(shutil.copytree(builtin(), tmp_path / "bundle"))
    manifest = json.loads((path / "manifest.json").read_text())
    entry = next(entry for entry in manifest["engines"] if entry["kind"] == "onnx")
    entry["precision"] = entry["storage"] = "fp16"
    for network in entry["networks"].values():
        network["precision"] = "fp32"
    write_manifest(path, manifest)
    return path


def test_where_no_point_is_float32_the_bundles_own_float32_engine_draws_beside(stored_in_half: Path) -> None:
    pytest.importorskip("torch")
    comparison = run(made(stored_in_half, engines=["onnx-fp16"], samplers=["ddim"], prompts=1))
    assert comparison.exact == "native-fp32"
    # Two points warmed up and timed, two float32 pictures beside, one converged.
    assert len(comparison) == 2 * 2 + 2 + 1
    rows = comparison.rows()
    assert {row.point.engine for row in rows} == {"onnx-fp16"}
    # The same arithmetic in another library: as near as rounding to a byte lets it be.
    assert min(row.quality["psnr_db"] for row in rows) > 50
    assert comparison.records(model="half")[0]["params"]["precision"] == "fp16"


def test_without_any_float32_engine_there_is_nothing_to_lose_against(stored_in_half: Path) -> None:
    manifest = json.loads((stored_in_half / "manifest.json").read_text())
    manifest["engines"] = [entry for entry in manifest["engines"] if entry["kind"] == "onnx"]
    write_manifest(stored_in_half, manifest)
    comparison = run(made(stored_in_half, engines=["onnx"], samplers=["ddim"], prompts=1))
    assert comparison.exact is None
    assert set(comparison.rows()[0].quality) == {"attribute_accuracy"}


def test_an_engine_named_twice_is_one() -> None:
    assert len(made(engines=["onnx", "onnx-fp32"]).points) == 4


# Interrupted.


def test_an_interrupted_run_keeps_the_rounds_that_are_whole(done: Comparison) -> None:
    comparison = made()
    steps = comparison.run()
    for _ in range(4 + 4 + 1):  # warm-up, the first round, its converged picture
        next(steps)
    with pytest.raises(InputError, match="first round"):
        comparison.rows()
    next(steps)  # the second round begins
    steps.close()
    assert comparison.done == 1 and comparison.pictures == 1
    assert all(len(row.seconds) == 1 for row in comparison.rows())
    # And goes on where it stopped.
    assert len(list(comparison.run())) == 4 + 4 + 1
    assert [row.quality for row in comparison.rows()] == [row.quality for row in done.rows()]


# Lines.


def test_the_lines_fit_the_schema_and_write_infinity_as_null(done: Comparison) -> None:
    lines = done.records(model="built-in")
    for line, row in zip(lines, done.rows(), strict=True):
        jsonschema.validate(line, SCHEMA)
        assert line["case"] == str(row.point) and line["benchmark"] == "compare"
        assert line["baseline"] is None and line["check"] is None and line["speedup"] is None
        assert line["quality"]["psnr_db"] is None and line["quality"]["ssim"] == pytest.approx(1)
        assert ("converged_psnr_db" in line["quality"]) == (row.point.sampler == "ddim")
        assert line["metrics"]["latency"]["p50"] == row.latency and line["rounds"] == 2
        assert line["params"]["prompts"] == 2 and line["params"]["size"] == [64, 64]
        assert line["extra"]["evaluations"] == row.evaluations and line["extra"]["front"] == row.front
        assert line["environment"]["model_hash"] == done.bundle.id
    assert len({line["run"] for line in lines}) == 1


# Refused.


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"samplers": ["ddimm"]}, "did you mean ddim"),
        ({"samplers": []}, "at least one sampler"),
        ({"steps": []}, "at least one sampler"),
        ({"steps": [0]}, "steps"),
        ({"steps": [-3]}, "steps"),
        ({"steps": [1001]}, "steps"),
        ({"samplers": ["pndm"], "steps": [2]}, "at least 4"),
        ({"engines": ["tvm"]}, "engine must be one"),
        ({"prompts": 0}, "prompts"),
        ({"prompts": 513}, "at most 512"),
        ({"prompts": 3, "batch": 2}, "multiple of the batch"),
        ({"batch": 65}, "batch"),
        ({"rounds": 0}, "rounds"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_one_line_before_an_engine_opens(
    changes: dict[str, Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "Pipeline", None)
    with pytest.raises(InputError, match=rule) as caught:
        made(**changes)
    assert "\n" not in str(caught.value)


def test_a_bundle_without_prompts_of_its_own_is_refused(stored_in_half: Path) -> None:
    manifest = json.loads((stored_in_half / "manifest.json").read_text())
    del manifest["parity"]["images"]
    write_manifest(stored_in_half, manifest)
    with pytest.raises(InputError, match="reference images"):
        made(stored_in_half, size=(32, 32))


# The command.


def command(**changes: Any) -> None:
    given = dict(
        path=None, samplers="ddim, euler_a", steps="2,4", engines="onnx-fp32", prompts=2, guidance=None, size="32x32",
        batch=1, rounds=1, seed=0, out=None, json_=None,
    )  # fmt: skip
    run_compare(**(given | changes))  # type: ignore[arg-type]


def test_the_command_prints_the_table_and_writes_lines_and_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(out=tmp_path / "made", json_=tmp_path / "all.jsonl")
    command(json_=tmp_path / "all.jsonl", prompts=1)
    said = capsys.readouterr()
    assert said.err == "" and "euler_a" in said.out and str(tmp_path / "all.jsonl") in said.out
    assert {file.name for file in (tmp_path / "made").iterdir()} == {"compare.jsonl", "onnx-fp32.png"}
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and len({line["run"] for line in lines}) == 2
    assert lines[0]["params"]["model"] == "built-in"
    assert (tmp_path / "made" / "compare.jsonl").read_text().splitlines() == (
        tmp_path / "all.jsonl"
    ).read_text().splitlines()[:4]
    assert Image.open(tmp_path / "made" / "onnx-fp32.png").size == (68, 68)


@pytest.mark.parametrize(("after", "kept"), [(3, 0), (10, 4)])
def test_ctrl_c_keeps_the_rounds_that_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, kept: int
) -> None:
    whole = Comparison.run

    def interrupted(self: Comparison) -> Any:
        for i, one in enumerate(whole(self)):
            if i == after:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(Comparison, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command(json_=tmp_path / "lines.jsonl")
    file = tmp_path / "lines.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert len(lines) == kept and all(line["rounds"] == 1 and line["params"]["prompts"] == 1 for line in lines)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"steps": "5,many"}, "steps must be whole numbers"),
        ({"steps": "5.5"}, "steps must be whole numbers"),
        ({"steps": "0"}, "steps"),
        ({"samplers": ","}, "at least one sampler"),
        ({"size": "64"}, "WIDTHxHEIGHT"),
        ({"size": "33x33"}, "multiple of 4"),
        ({"guidance": math.nan}, "guidance_scale"),
        ({"out": Path("/proc/nowhere")}, "/proc/nowhere"),
        ({"json_": Path("/proc/nowhere/lines.jsonl")}, "/proc/nowhere"),
        ({"json_": Path("/tmp")}, "must be one that can be written"),
    ],
    ids=str,
)
def test_bad_arguments_are_one_line(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule) as caught:
        command(**changes)
    assert "\n" not in str(caught.value)
