"""The regression check on made-up runs: real noise of rounds, slowdowns that were planted, cases that went wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check import main, verdicts
from harness import ratio_of
from reporting.results import Line

from hotloop.evaluation.records import block, record

CPU = "Some CPU"


def environment(**other: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-25T10:00:00+00:00", "commit": None, "dirty": None, "cpu": CPU, "cores": 2,
        "memory_bytes": 8_000_000_000, "gpu": None, "load": 0.1, "os": "Linux", "python": "3.11.7", "versions": {},
        "kernels": {"compiled": True}, "omp_num_threads": None, "model_hash": None,
    } | other  # fmt: skip


def run(
    gains: dict[str, float], *, seed: int = 0, noise: float = 0.03, drift: float = 1.0, scale: float = 1.0,
    benchmark: str = "txt2img", model: str = "built-in", fields: dict[str, dict[str, Any]] | None = None, **env: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """A baseline of `scale` seconds and cases so many times as fast, 15 rounds, each with `noise` of its own."""
    rng, lines = np.random.default_rng(seed), []
    machine = scale * np.linspace(1, drift, 15)
    times = {
        name: machine / gain * (1 + noise * rng.standard_normal(15)) for name, gain in {"base": 1.0, **gains}.items()
    }
    for name, seconds in times.items():
        median, low, high = ratio_of(times["base"], seconds)
        more: dict[str, Any] = {"metrics": {"latency": block("s", seconds)}, "rounds": 15}
        if name != "base":
            more["check"] = {"ok": True, "what": "PSNR dB", "value": 60.0, "limit": 50.0}
            more["speedup"] = {"median": median, "low": low, "high": high, "confidence": 0.95}
        more |= (fields or {}).get(name, {})
        common = {
            "run": f"run-{seed}",
            "benchmark": benchmark,
            "params": {"model": model},
            "environment": environment(**env),
        }
        lines.append(record(case=name, baseline="base", **common | more))
    return lines


WRONG = {"check": {"ok": False, "what": "PSNR dB", "value": 20.0, "limit": 50.0}, "speedup": None}
ABSENT = {"metrics": {}, "check": None, "speedup": None, "rounds": 0, "error": "not installed"}


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """check(old lines, new lines, arguments...) -> (exit code, standard output, standard error)."""

    def go(old: list[dict[str, Any]], new: list[dict[str, Any]], *arguments: str) -> tuple[int, str, str]:
        for name, lines in (("old", old), ("new", new)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        code = main([str(tmp_path / "new.jsonl"), "--against", str(tmp_path / "old.jsonl"), *arguments])
        return code, *capsys.readouterr()

    return go


def test_a_planted_loss_of_a_tenth_is_found(check: Any) -> None:
    old, new = run({"fast": 2.0, "other": 1.5}, noise=0.02), run({"fast": 1.8, "other": 1.5}, noise=0.02, seed=1)
    code, out, _ = check(old, new)
    (failed,) = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert code == 1 and "txt2img built-in fast" in failed and "slower" in failed


@pytest.mark.parametrize(("loss", "least", "most"), [(0.1, 95, 100), (0.02, 0, 1), (0.0, 0, 0)])
def test_of_a_hundred_losses_of_a_tenth_nearly_all_are_found_of_two_per_cent_next_to_none(
    loss: float, least: int, most: int
) -> None:
    found = 0
    for seed in range(100):
        pair = run({"fast": 2.0}, noise=0.02, seed=seed), run({"fast": 2 * (1 - loss)}, noise=0.02, seed=seed + 1000)
        old, new = ([Line(data, Path("x.jsonl"), 1) for data in lines] for lines in pair)
        found += any(one.failed for one in verdicts(old, new))
    assert least <= found <= most


def test_more_noise_needs_more_loss_and_a_smaller_margin_less(check: Any) -> None:
    quiet, loud = (
        (run({"fast": 2.0}, noise=noise), run({"fast": 1.84}, noise=noise, seed=1)) for noise in (0.005, 0.3)
    )
    assert check(*quiet)[0] == 1 and check(*loud)[0] == 0
    assert check(*quiet, "--margin", "0.2")[0] == 0
    small = run({"fast": 2.0}, noise=0.002), run({"fast": 1.96}, noise=0.002, seed=1)
    assert check(*small)[0] == 0 and check(*small, "--margin", "0.01")[0] == 1


def test_seconds_do_not_count(check: Any) -> None:
    assert check(run({"fast": 2.0}), run({"fast": 2.0}, seed=1, scale=7.0, drift=1.5))[0] == 0


def test_a_gain_is_told_and_passes(check: Any) -> None:
    code, out, _ = check(run({"fast": 2.0}), run({"fast": 2.4}, seed=1))
    assert code == 0 and re.search(r"fast +faster: [\d.]+ .* -> [\d.]+ .*\(\+\d", out)


@pytest.mark.parametrize(
    ("old", "new", "word", "code"),
    [
        ({}, WRONG, "wrong", 1),
        ({}, ABSENT, "unmeasured", 1),
        (WRONG, {}, "mended", 0),
        (ABSENT, {}, "mended", 0),
        (WRONG, WRONG, "as before", 0),
        (ABSENT, ABSENT, "as before", 0),
        (ABSENT, WRONG, "as before", 0),
        (WRONG, ABSENT, "unmeasured", 1),
    ],
)
def test_a_case_fails_when_it_turns_wrong_or_can_no_longer_be_measured(
    check: Any, old: dict[str, Any], new: dict[str, Any], word: str, code: int
) -> None:
    got, out, _ = check(run({"fast": 2.0}, fields={"fast": old}), run({"fast": 2.0}, fields={"fast": new}))
    (line,) = [line for line in out.splitlines() if " fast " in line]
    assert got == code and f"{word}: " in line


def test_a_case_that_is_gone_fails_unless_its_benchmark_or_model_was_not_run(check: Any) -> None:
    elsewhere = [*run({"fast": 3.0}, model="large"), *run({"fast": 3.0}, benchmark="engines")]
    code, out, _ = check([*run({"fast": 2.0, "other": 1.5}), *elsewhere], run({"fast": 2.0, "third": 1.0}))
    assert code == 1 and [line.split()[0] for line in out.splitlines()[:-1]] == ["ok", "ok", "FAILED", "ok"]
    assert re.search(r"other +gone: was 1\.\d", out) and "new: " in out and "large" not in out and "engines" not in out


def test_of_several_lines_of_a_case_the_last_counts(check: Any) -> None:
    assert check(run({"fast": 2.0}), [*run({"fast": 1.0}), *run({"fast": 2.0}, seed=1)])[0] == 0


@pytest.mark.parametrize("other", [{"cpu": "Other CPU"}, {"cores": 4}, {"gpu": {"name": "GPU", "driver": "1"}}])
def test_another_machine_is_refused_in_one_line_unless_told_otherwise(check: Any, other: dict[str, Any]) -> None:
    old, new = run({"fast": 2.0}), run({"fast": 2.0}, **other)
    code, out, error = check(old, new)
    assert code == 2 and not out and error.count("\n") == 1
    assert "ratios hold on one machine only: Some CPU, 2 cores before" in error and "--anyway" in error
    assert check(old, new, "--anyway")[0] == 0


def test_of_results_from_several_machines_those_of_the_new_ones_count(check: Any) -> None:
    old = [*run({"fast": 2.0}), *run({"fast": 3.0}, cpu="Other CPU")]
    assert check(old, run({"fast": 2.0}, seed=1))[0] == 0
    assert check(old, run({"fast": 2.0}, seed=1, cpu="Other CPU"))[0] == 1


def test_nothing_to_compare_is_said(check: Any) -> None:
    code, _, error = check(run({"fast": 2.0}), run({"fast": 2.0}, benchmark="engines"))
    assert code == 2 and error == (
        "[check] no case is in both: benchmark, scenario, case, baseline and parameters must be the same\n"
    )


@pytest.mark.parametrize(
    ("part", "instead", "complaint"),
    [
        ('{"schema', "{half", "must be one JSON object a line: Expecting property name"),
        ('"rounds": 15', '"rounds": NaN', "must be one JSON object a line: JSON has no NaN"),
        ('"rounds": 15', '"rounds": "15"', "rounds: '15' is not of type 'integer'"),
        ("SingleStream", "Batch", "scenario: 'Batch' is not one of"),
        ('"run": "run-0", ', "", "the line: 'run' is a required property"),
        ('"schema_version": 2', '"schema_version": 1', "schema_version: 2 was expected"),
        ('"speedup": null', '"speedup": {}', "speedup: {} is not valid under any of the given schemas"),
    ],
)
def test_a_broken_line_is_named_by_file_number_rule_and_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, instead: str, complaint: str
) -> None:
    first, second = (json.dumps(line) for line in run({"fast": 2.0}))
    assert part in first
    path = tmp_path / "new.jsonl"
    path.write_text("\n".join([first, second, first.replace(part, instead, 1)]))
    assert main([str(path), "--against", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"[check] {path}:3: {complaint}") and error.count("\n") == 1


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").touch()
    for path, rule in (
        ("none.jsonl", "no such file or folder"),
        (".", "holds no line"),
        ("empty.jsonl", "holds no line"),
    ):
        assert main([str(tmp_path / path)]) == 2
        assert rule in capsys.readouterr().err


def test_a_new_edition_among_the_committed_ones_is_compared_with_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day, gain in ((20, 1.0), (21, 2.0), (25, 1.5)):
        lines = run({"fast": gain}, noise=0.01)
        (tmp_path / f"2026-11-{day}-txt2img.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    newest = str(tmp_path / "2026-11-25-txt2img.jsonl")
    assert main([newest, "--against", str(tmp_path)]) == 1
    assert "2.0" in capsys.readouterr().out
    assert main([str(tmp_path / "2026-11-21-txt2img.jsonl"), "--against", str(tmp_path)]) == 0  # faster than the newest
