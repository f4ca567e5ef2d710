"""The benchmark harness on work whose length is known: a fake clock, no real seconds."""

from __future__ import annotations

import json
import platform
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import harness
import numpy as np
import pytest
from harness import Case, Timed, Unmeasured, close_to, compare, psnr_at_least

from hotloop.evaluation import records

SCHEMA = json.loads((Path(harness.__file__).parent / "result.schema.json").read_text())


class Machine:
    """A clock that work moves on: each call takes its length, a slow drift of the machine, and 3 % of noise."""

    def __init__(self, *, seed: int = 0, noise: float = 0.03) -> None:
        self.now, self.rng, self.noise = 0.0, np.random.default_rng(seed), noise
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, output: object = 1.0, **keywords: object) -> Case:
        def run() -> object:
            self.log.append(name)
            drift = 1 + 0.5 * np.sin(self.now / 20)
            self.now += seconds * drift * (1 + self.noise * self.rng.standard_normal())
            return output

        return Case(name, run, **keywords)  # type: ignore[arg-type]


def measure(machine: Machine, *cases: Case, rounds: int = 60, **keywords: object) -> harness.Report:
    keywords.setdefault("check", close_to(1e-6))
    return compare(cases, benchmark="test", rounds=rounds, clock=machine.clock, **keywords)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_collections(monkeypatch):
    """The clock here is a fake one: thousands of real garbage collections would only slow the tests."""
    monkeypatch.setattr("harness.gc.collect", lambda: 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_slowdown_of_five_per_cent_is_found_under_drift(seed):
    machine = Machine(seed=seed)
    row = measure(machine, machine.work("base", 1.0), machine.work("slow", 1.05))["slow"]
    middle, low, high = row.speedup
    assert row.verdict == "slower" and low < 1 / 1.05 < high + 0.02
    assert middle == pytest.approx(1 / 1.05, rel=0.03)


def test_equal_work_is_seldom_called_different():
    verdicts = []
    for seed in range(20):
        machine = Machine(seed=seed, noise=0.05)
        verdicts.append(measure(machine, machine.work("a", 1.0), machine.work("b", 1.0), rounds=30)["b"].verdict)
    assert verdicts.count("same") >= 18


def test_a_wrong_output_gets_no_ratio_and_is_marked():
    machine = Machine()
    report = measure(machine, machine.work("base", 1.0), machine.work("wrong", 0.1, output=1.001))
    assert report["wrong"].speedup is None and report["wrong"].verdict == "differs"
    line = next(line for line in report.table().splitlines() if line.startswith("wrong"))
    assert "DIFFERS" in line and "x [" not in line
    assert report.records()[1]["speedup"] is None


@pytest.mark.parametrize("output", [float("nan"), float("inf"), [1.0, 1.0]])
def test_an_output_that_is_not_finite_or_has_another_shape_gets_no_ratio(output):
    machine = Machine()
    report = measure(machine, machine.work("base", 1.0), machine.work("broken", 0.1, output=output), rounds=3)
    assert report["broken"].speedup is None


def test_an_output_that_goes_wrong_during_the_timing_gets_no_ratio():
    machine = Machine()
    outputs = iter([1.0] * 4 + [2.0])
    flaky = Case("flaky", lambda: next(outputs))
    assert measure(machine, machine.work("base", 1.0), flaky, rounds=3, warmup=2)["flaky"].speedup is None


def test_rounds_are_interleaved_and_each_begins_with_another_case():
    machine = Machine()
    measure(machine, *(machine.work(name, 1.0) for name in "abc"), rounds=3, warmup=1)
    assert "".join(machine.log) == "abc" + "abc" + "bca" + "cab"


def test_times_are_per_item_and_the_figures_are_those_of_the_samples():
    machine = Machine(noise=0)
    lengths = iter([9.0, *range(1, 21)])
    case = Case("batch", lambda: setattr(machine, "now", machine.now + next(lengths)), work=4)
    row = measure(machine, case, rounds=20, warmup=1)["batch"]
    assert np.array_equal(row.seconds, np.arange(1, 21) / 4)
    assert row.median == 10.5 / 4
    assert (row.p5, row.p95) == (np.percentile(row.seconds, 5), np.percentile(row.seconds, 95))
    assert row.spread == pytest.approx((row.p95 - row.p5) / row.median)
    assert row.verdict == "baseline"


def test_every_line_written_fits_the_schema(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    machine = Machine()
    cases = [machine.work("base", 1.0), machine.work("same", 0.5, params={"threads": 2}), machine.work("bad", 1, 2.0)]
    path = tmp_path / "results" / "test.jsonl"
    for _ in range(2):
        measure(machine, *cases, rounds=3, params={"steps": 20}).append(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["case"] for line in lines] == ["base", "same", "bad"] * 2
    assert lines[1]["params"] == {"steps": 20, "threads": 2}
    for line in lines:
        jsonschema.validate(line, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_schema_refuses_a_ratio_for_an_output_that_differs():
    jsonschema = pytest.importorskip("jsonschema")
    machine = Machine()
    record = measure(machine, machine.work("base", 1.0), machine.work("bad", 1.0, output=2.0), rounds=3).records()[1]
    record["speedup"] = {"median": 2.0, "low": 1.9, "high": 2.1, "confidence": 0.95}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_pictures_are_compared_by_psnr():
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    near = picture.copy()
    near[0, 0, 0, 0] = 1
    same, close, far = (psnr_at_least(50)(picture, other) for other in (picture, near, picture + 20))
    assert same.ok and same.value == float("inf")
    assert close.ok and close.value == pytest.approx(10 * np.log10(255**2 * 192))
    assert not far.ok and far.value == pytest.approx(20 * np.log10(255 / 20))
    assert not psnr_at_least(50)(picture, picture[:, :4]).ok


def test_cases_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"\[harness\] cases must have different names, got \['a', 'a'\]"):
        measure(Machine(), Case("a", float), Case("a", float))


def test_every_committed_line_fits_the_schema():
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    files = sorted((Path(harness.__file__).parent / "results").glob("*.jsonl"))
    assert files
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            wrong = next(validator.iter_errors(json.loads(line)), None)
            assert wrong is None, f"{path.name}:{number}: {wrong.message}"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("model\t: 17\nmodel name\t: AMD EPYC\ncpu family\t: 25\n\nmodel name\t: B", "AMD EPYC (family 25, model 17)"),
        ("BogoMIPS\t: 50.00\nFeatures\t: fp asimd", None),
        (None, None),
    ],
)
def test_a_processor_goes_by_its_name_and_the_numbers_behind_it(monkeypatch, told, name):
    def read(path, *rest):
        if told is None:
            raise OSError("no such file")
        return told

    monkeypatch.setattr(Path, "read_text", read)
    assert records._cpu() == (name or platform.processor() or platform.machine())


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["benchmarks/txt2img.py", "--rounds", "3", "--out", "x.jsonl"], "python benchmarks/txt2img.py --rounds 3"),
        (["benchmarks/ladder.py", "--out=x.jsonl", "--steps", "2"], "python benchmarks/ladder.py --steps 2"),
        (["-c", "compare", "--json", "x", "--samplers", "a,b"], "hotloop compare --samplers a,b"),
    ],
)
def test_a_line_tells_the_command_that_made_it_without_where_it_went(monkeypatch, argv, told):
    monkeypatch.chdir(Path(harness.__file__).parents[1])
    monkeypatch.setattr("sys.argv", argv)
    assert records.command() == told
    line = records.record(run="r", benchmark="b", case="c", environment={}, extra={"a": 1})
    assert line["extra"] == {"command": told, "a": 1}


def test_a_case_that_keeps_its_own_time_is_reported_with_it_and_its_stages():
    machine = Machine(noise=0)
    lengths = iter([7.0, 2.0, 3.0])

    def elsewhere() -> Timed:
        machine.now += 100  # what the message there and back took
        seconds = next(lengths)
        return Timed(1.0, seconds, {"loop": seconds / 2})

    told = {"peak_rss_bytes": 123, "alone": True}
    case = Case("worker", elsewhere, work=2, load=5.0, peak=lambda: told)
    report = measure(machine, case, rounds=2, warmup=1)
    assert list(report["worker"].seconds) == [1.0, 1.5]
    metrics = report.records()[0]["metrics"]
    assert metrics["stage.loop"]["samples"] == [0.5, 0.75]
    assert (metrics["load"]["p50"], metrics["first_image"]["p50"]) == (5.0, 12.0)
    assert metrics["throughput"]["max"] == 1.0
    assert report.records()[0]["memory"] == {"peak_rss_bytes": 123, "peak_device_bytes": None, "alone": True}


def test_every_call_is_made_within_the_cases_turn_and_a_turn_is_not_timed():
    machine, awake = Machine(noise=0), set()

    @contextmanager
    def turn(name: str):
        machine.now += 50
        awake.add(name)
        yield
        awake.remove(name)

    def run(name: str) -> float:
        assert awake == {name}
        machine.now += 1
        return 1.0

    cases = [Case(name, partial(run, name), turn=partial(turn, name)) for name in "ab"]
    report = measure(machine, *cases, rounds=3)
    assert all(np.array_equal(m.seconds, [1, 1, 1]) for m in report.measurements)


def test_what_cannot_be_measured_is_reported_with_its_reason_and_the_rest_goes_on():
    machine = Machine()
    calls = iter([1.0, 1.0, Unmeasured("the worker was killed")])

    def fails_late() -> float:
        if isinstance(made := next(calls), Unmeasured):
            raise made
        return made

    cases = [machine.work("base", 1.0), Case("late", fails_late), machine.work("good", 0.5)]
    report = measure(machine, *cases, rounds=5, failed={"absent": "run make bench-env"})
    assert [m.verdict for m in report.measurements] == ["baseline", "failed", "faster", "failed"]
    late, absent = (next(r for r in report.records() if r["case"] == name) for name in ("late", "absent"))
    assert (late["error"], absent["error"]) == ("the worker was killed", "run make bench-env")
    assert late["metrics"] == {} and late["speedup"] is None
    assert "absent  not measured: run make bench-env" in report.table()
    jsonschema = pytest.importorskip("jsonschema")
    for record in report.records():
        jsonschema.validate(record, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_a_baseline_that_cannot_be_measured_leaves_nothing_to_compare():
    def fails() -> float:
        raise Unmeasured("no memory")

    with pytest.raises(Unmeasured, match="base: no memory"):
        measure(Machine(), Case("base", fails), rounds=1)


def test_cases_may_have_checks_of_their_own():
    machine = Machine()
    cases = [machine.work("base", 1.0), machine.work("exact", 1.0, 1.001), machine.work("rough", 1.0, 1.001)]
    report = measure(machine, *cases, rounds=3, check={"exact": close_to(1e-6), "rough": close_to(1e-2)})
    assert [m.verdict for m in report.measurements][:2] == ["baseline", "differs"]
    assert report["rough"].speedup is not None


def test_any_two_cases_of_a_run_can_be_set_against_each_other():
    machine = Machine()
    report = measure(machine, *(machine.work(name, s) for name, s in (("base", 1.0), ("b", 0.5), ("c", 0.25))))
    middle, low, high = report.ratio("b", "c")
    assert low < middle < high and middle == pytest.approx(2, rel=0.03)
