"""The report on made-up lines: nothing is left out, nothing wrong gets a ratio, and the page stands alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report import main
from reporting.contents import sections
from reporting.goals import GOALS, judge
from reporting.groups import shared_ratio
from reporting.marked import parts
from reporting.measures import front
from reporting.results import ROOT, Line, ResultsError, find, read

from hotloop.evaluation.records import block, record

ENVIRONMENT = {
    "date": "2026-11-25T10:00:00+00:00", "commit": "0123456789ab", "dirty": False, "cpu": "Some CPU", "cores": 2,
    "memory_bytes": 25_276_510_208, "gpu": None, "load": 0.4, "os": "Linux x86_64", "python": "3.11.7",
    "versions": {"numpy": "2.4.6", "torch": "2.13.0"}, "kernels": {"compiled": True}, "omp_num_threads": "2",
    "model_hash": "ab" * 32,
}  # fmt: skip
COMMAND = "python benchmarks/txt2img.py --peers all"


BASE = "diffusers eager fp32"
WORK = {"sampler": "plms", "steps": 20, "guidance": 2.5, "size": [64, 64], "batch": 1, "threads": 2}
WRONG = {"ok": False, "what": "PSNR dB", "value": 21.34, "limit": 50.0}
REASON = "optimum-onnx is not installed: make bench-env | builds <it>"
# Case -> its time as a share of the baseline's.
CASES = {
    BASE: 1.0, "diffusers compile bf16": 0.52, "optimum openvino bf16": 0.42, "optimum onnx fp32": 0.8,
    "hotloop onnx fp32": 0.71, "hotloop openvino bf16": 0.39, "hotloop openvino int8": 0.22,
}  # fmt: skip
RUNGS = (
    ("diffusers", 1.0, None), ("ONNX Runtime", 1.31, 92.5), ("OpenVINO", 1.52, 91.0), ("bf16", 2.61, 48.2),
    ("kv", 2.63, 48.2), ("time", 2.66, 48.1), ("prefix", 2.74, 48.3), ("phase", 2.71, 48.0), ("int8", 4.75, 31.6),
    ("tiny VAE", 5.31, 24.9),
)  # fmt: skip
SAMPLERS = {"ddim": (0.9, 9.0), "plms": (0.94, 6.0), "lms": (0.92, 7.0), "dpmpp_2m": (0.945, 3.4)}

Record = dict[str, Any]


class Maker:
    """Lines with seeded noise round times that are said."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def line(self, case: str, seconds: float, base: str, base_seconds: float, **fields: Any) -> Record:
        """As the harness writes it; `fields` are put over it, metrics and extra beside what there is."""
        ratio = base_seconds / seconds
        metrics = {"latency": block("s", seconds * (1 + 0.02 * self.rng.random(15)))}
        made: Record = {"run": "run", "benchmark": "txt2img", "rounds": 15, "warmup": 2, "environment": ENVIRONMENT}
        if case != base:
            made["check"] = {"ok": True, "what": "PSNR dB", "value": 62.125, "limit": 50.0}
            made["speedup"] = {"median": ratio, "low": ratio * 0.98, "high": ratio * 1.02, "confidence": 0.95}
        made |= fields
        made["metrics"] = metrics | fields.get("metrics", {})
        made["extra"] = {"command": COMMAND} | fields.get("extra", {})
        return record(case=case, baseline=base, **made)

    def drawn(self, case: str, base: str, base_seconds: float, run: str, **params: Any) -> Record:
        """A case of text to image, with all that its process tells."""
        share, precision = CASES[case], case.split()[-1]
        seconds = base_seconds * share / CASES[base]
        parts = {"text": 0.02, "loop": 0.8, "step": 0.16, "vae_decoder": 0.15, "host_copy": 0.005}
        noisy = {name: seconds * part * (1 + 0.01 * self.rng.random(15)) for name, part in parts.items()}
        metrics = {f"stage.{name}": block("s", times) for name, times in noisy.items()}
        metrics |= {"load": block("s", [seconds * 3]), "first_image": block("s", [seconds * 5])}
        least = base_seconds / CASES[base] * (0.62 if precision == "fp32" else 0.31 if precision == "bf16" else 0.16)
        floor = {"seconds": least, "share": least / seconds, "flops": 8e11, "bytes": 2e9, "dtype": precision}
        floor |= {"ceiling_flops": {"fp32": 1.9e11, "bf16": 4.3e11, "int8": 8.3e11}[precision], "ceiling_bytes": 5.6e10}
        more = {"rewrites": ["kv", "time", "prefix", "phase"]} if case.startswith("hotloop") else {}
        return self.line(
            case, seconds, base, base_seconds, metrics=metrics, floor=floor, run=run,
            params=WORK | {"precision": precision, "versions": {"torch": "2.12.0"}} | more | params,
            memory={"peak_rss_bytes": int(1.2e9 * (0.4 + share)), "alone": True},
            quality=None if case == base else {"psnr_db": 62.125, "ssim": 0.9991, "latents_cosine": 0.99993},
        )  # fmt: skip

    def together(self) -> Iterator[Record]:
        """The small model: all cases in one run, one that draws something else, one that is not there."""
        for case in CASES:
            yield self.drawn(case, BASE, 0.33, "all", model="built-in")
        params = {"model": "built-in", **WORK}
        other = {"params": params | {"precision": "q8_0"}, "check": WRONG, "speedup": None, "run": "all"}
        yield self.line("stable-diffusion.cpp q8_0", 1.0, BASE, 0.33, **other)
        yield record(
            run="all", benchmark="txt2img", case="optimum onnx bf16", baseline=BASE, params=params, error=REASON,
            environment=ENVIRONMENT,
        )  # fmt: skip

    def pairs(self) -> Iterator[Record]:
        """The large model: hotloop and each peer alone, the peer being the baseline."""
        pairs = [
            (BASE, "hotloop onnx fp32"), ("optimum onnx fp32", "hotloop onnx fp32"),
            ("diffusers compile bf16", "hotloop openvino bf16"), ("optimum openvino bf16", "hotloop openvino bf16"),
            ("optimum openvino bf16", "hotloop openvino int8"),
        ]  # fmt: skip
        for i, pair in enumerate(pairs):
            for case in pair:
                params = {"model": "sd15-random", "size": [512, 512], "steps": 4, "guidance": 7.5}
                yield self.drawn(case, pair[0], 48.0 * CASES[pair[0]], f"pair-{i}", **params)

    def offline(self) -> Iterator[Record]:
        for case, gain in (
            ("diffusers eager bf16", 1.0),
            ("optimum openvino bf16", 1.4),
            ("hotloop openvino bf16", 1.5),
        ):
            for batch in (1, 2, 4, 8):
                rate = gain * 5 * batch / (batch + 0.6)
                yield self.line(
                    case, 1 / rate, "diffusers eager bf16", gain / rate, scenario="Offline", work=batch,
                    run=f"offline-{batch}", params=WORK | {"model": "built-in", "batch": batch, "precision": "bf16"},
                )  # fmt: skip

    def server(self) -> Iterator[Record]:
        for case, gain in (("diffusers eager bf16", 1.0), ("hotloop openvino bf16", 1.6)):
            for rate in (1.0, 2.0, 3.0, 4.0, 5.0):
                busy = min(rate / gain / 4.4, 0.95)
                waits = block("s", self.rng.exponential(0.1 / gain / (1 - busy), 60) + 0.15 / gain)
                yield record(
                    run="server", benchmark="txt2img", scenario="Server", case=case, environment=ENVIRONMENT, rounds=60,
                    params=WORK | {"model": "built-in", "max_batch": 1, "precision": "bf16", "rate": rate},
                    metrics={"latency": waits, "throughput": block("1/s", [min(rate, 4.4 * gain)], keep=False)},
                    extra={"offered_rate": rate, "bound_seconds": 1.0, "bound_met": waits["p99"] <= 1.0},
                )  # fmt: skip

    def ladder(self) -> Iterator[Record]:
        before = 1.0
        for rung, (switch, gain, psnr) in enumerate(RUNGS):
            step = {"median": gain / before, "low": gain / before * 0.985, "high": gain / before * 1.015}
            yield self.line(
                switch, 0.33 / gain, "diffusers", 0.33, benchmark="ladder",
                params={"model": "built-in", "steps": 20, "rung": rung, "switch": switch},
                quality={"psnr_db": psnr, "attribute_accuracy": 0.938 - 0.002 * rung},
                extra={"against_previous": step} if rung else {},
            )  # fmt: skip
            before = gain

    def compare(self) -> Iterator[Record]:
        for sampler, (best, slow) in SAMPLERS.items():
            for precision, gain, loss in (("fp32", 1.0, 0.0), ("bf16", 1.6, 0.003), ("int8", 2.1, 0.017)):
                for steps in (5, 10, 20, 50):
                    case = f"{sampler} {steps} {precision}"
                    accuracy = best * (1 - np.exp(-steps / slow)) - loss
                    psnr = None if case == "dpmpp_2m 50 fp32" else 15 + 9 * np.log2(steps) * best - 300 * loss
                    seconds = 0.009 * (steps + (sampler == "plms")) / gain + 0.006
                    yield self.line(
                        case, seconds, "dpmpp_2m 50 fp32", 0.456, benchmark="compare",
                        params={"model": "built-in", "sampler": sampler, "steps": steps, "precision": precision},
                        quality={"attribute_accuracy": accuracy, "psnr_db": psnr, "fid_p": 2000 * (1 - accuracy)},
                    )  # fmt: skip

    def attention(self) -> Iterator[Record]:
        for tokens, size in ((4096, 40), (1024, 80)):
            for case, seconds in (("torch", 0.27), ("hotloop", 0.1)):
                params = {"shape": {"name": "self", "B": 2, "Tq": tokens, "D": size}, "dtype": "float32", "threads": 1}
                times = (seconds * tokens / 4096, "torch", 0.27 * tokens / 4096)
                yield self.line(case, *times, benchmark="attention", params=params, run=f"attention-{tokens}")

    def all(self) -> list[Record]:
        kinds = (self.together, self.pairs, self.offline, self.server, self.ladder, self.compare, self.attention)
        return [line for kind in kinds for line in kind()]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return path


class Page(HTMLParser):
    """The page's tags, checked as they come: each is closed in turn, ids are told apart, nothing is fetched."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        assert len(names) == len(attrs), (tag, attrs)
        self.tags.append((tag, names))
        self.ids += [names["id"] or ""] if "id" in names else []
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action", "poster", "background") or (
                name == "href" and not (value or "").startswith("#")
            ):
                self.fetched.append(f"{tag} {name}={value}")
            elif name == "href":
                self.links.append((value or "")[1:])
            self.links += re.findall(r"url\(#([^)]+)\)", value or "")
            if re.search(r"url\((?!#)|@import", value or ""):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("style", "script"):
            assert not re.search(r"https?:|url\(|@import|fetch|XMLHttp|import\(", data)


@dataclass(frozen=True)
class Made:
    lines: list[dict[str, Any]]
    source: Path
    folder: Path

    @cached_property
    def markdown(self) -> str:
        return (self.folder / "report.md").read_text()

    @cached_property
    def html(self) -> str:
        return (self.folder / "index.html").read_text()

    @cached_property
    def page(self) -> Page:
        return Page(self.html)

    def rows(self, *words: str) -> list[str]:
        """Rows of the Markdown tables in which all the words stand."""
        return [row for row in self.markdown.splitlines() if row.startswith("|") and all(word in row for word in words)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One report for all tests here: drawing takes seconds."""
    folder = tmp_path_factory.mktemp("report")
    lines = Maker().all()
    source = write(folder / "lines.jsonl", lines)
    assert main([str(source), "--out", str(folder / "out")]) == 0
    return Made(lines, source, folder / "out")


def test_every_made_up_line_fits_the_schema(made: Made) -> None:
    assert [line.data for line in read([made.source])] == made.lines


def test_every_case_is_in_both_reports(made: Made) -> None:
    told = {cell for row in made.page.rows for cell in row[:3]}
    for line in made.lines:
        assert made.rows(line["case"]), line["case"]
        assert line["case"] in told, line["case"]


def test_a_case_that_differs_is_marked_and_has_no_ratio(made: Made) -> None:
    (row,) = made.rows("stable-diffusion.cpp q8_0")
    assert "**DIFFERS: PSNR 21.3 dB, limit 50.0 dB**" in row
    assert row.count("[") == 1  # the latency's percentiles
    (cells,) = [row for row in made.page.rows if row[0] == "stable-diffusion.cpp q8_0"]
    assert sum("[" in cell for cell in cells) == 1
    assert "stable-diffusion.cpp" not in "".join(made.rows("fastest peer"))


def test_a_case_that_could_not_be_measured_says_why(made: Made) -> None:
    assert len(made.rows("optimum onnx bf16", "not measured: " + REASON.replace("|", "\\|").replace("<", "&lt;"))) == 1
    assert sum(f"not measured: {REASON}" in row for row in made.page.rows) == 1


def test_ratios_against_hotloop_are_those_of_the_rounds(made: Made) -> None:
    by_case = {line["case"]: line["metrics"] for line in made.lines if line["run"] == "all"}
    theirs, ours = (
        np.array(by_case[case]["latency"]["samples"]) for case in ("optimum openvino bf16", "hotloop openvino bf16")
    )
    (row,) = made.rows("| optimum openvino bf16 | bf16 | 1", "| 0.9991 |")
    assert row.split(" | ")[6].startswith(f"{np.median(theirs / ours):.2f} [")
    assert made.rows("**hotloop openvino bf16**", "62.1 dB", " best ")


def test_lines_of_two_runs_have_no_ratio_nor_have_requests_to_a_server() -> None:
    a, b = lines_of(list(Maker().together())[:2])
    assert shared_ratio(a, b) is not None
    for change in ({"run": "another"}, {"scenario": "Server"}):
        assert shared_ratio(*lines_of([a.data | change, b.data])) is None


def test_hotloop_beside_each_peer_alone_is_told_pair_by_pair(made: Made) -> None:
    (pair,) = made.rows("| **hotloop openvino int8** | 10.6 s | optimum openvino bf16 | 20.")
    assert "| 1.91 [1.87, 1.95] | 1.9" in pair and "PSNR 62.1 dB" in pair
    (once,) = made.rows("| **hotloop onnx fp32** | fp32 | 34.")
    assert "1.41" not in once  # no ratio without the peer that it is to
    assert "hotloop onnx fp32 34.4 s to 34.4 s in 2 runs" in made.markdown


def test_the_page_is_well_formed_and_fetches_nothing(made: Made) -> None:
    page = made.page
    assert page.fetched == []
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.links) <= set(page.ids)
    assert sum(tag == "html" for tag, _ in page.tags) == 1


def test_tables_and_pictures_can_be_read_without_seeing_them(made: Made) -> None:
    tags = made.page.tags
    tables = sum(tag == "table" for tag, _ in tags)
    assert tables == sum(tag == "caption" for tag, _ in tags) > 8
    assert {names.get("scope") for tag, names in tags if tag == "th"} == {"col", "row"}
    pictures = [names for tag, names in tags if tag == "svg"]
    assert len(pictures) == len(list(made.folder.glob("*.png"))) == made.markdown.count("![")
    assert all(names["role"] == "img" and len(names["aria-label"] or "") > 60 for names in pictures)


def test_goals_are_judged_by_the_fastest_peer_of_the_run(made: Made) -> None:
    for model in ("built-in", "sd15-random"):
        (best,) = made.rows("| at least as fast as the fastest peer", f"| {model} |", "SingleStream", "| bf16 |")
        assert "**met**" in best and "| optimum openvino bf16 |" in best and "| 1.08 [" in best
        (rewritten,) = made.rows("| 1.05 times", f"| {model} |", "| bf16 |")
        assert "**met**" in rewritten and "| 1.08 [" in rewritten
        (eight,) = made.rows("| 1.8 times", f"| {model} |")
        assert "**met**" in eight and "| 1.9" in eight and "| hotloop openvino int8 | optimum openvino bf16 |" in eight
    assert len(made.rows("| at least as fast", "Offline")) == 4 and not made.rows("| at least as fast", "Server")


def test_the_bound_of_a_server_is_judged(made: Made) -> None:
    assert made.rows("diffusers eager bf16", "**not met**") and made.rows("hotloop openvino bf16", "**met**")


def lines_of(data: Iterable[dict[str, Any]]) -> list[Line]:
    return [Line(one, Path("lines.jsonl"), i) for i, one in enumerate(data)]


@pytest.mark.parametrize(
    ("case", "change", "verdict", "why"),
    [
        ("hotloop openvino int8", {"check": WRONG}, "not shown", "its output differs"),
        ("hotloop openvino int8", {"params": {"precision": "int8"}}, "not shown", "hotloop was not measured so"),
        ("hotloop openvino int8", {"metrics": {"latency": block("s", [0.1] * 15)}}, "not met", ""),
        ("optimum openvino bf16", {"run": "another"}, "not shown", "no run timed both in turns"),
        ("optimum openvino bf16", {"check": WRONG}, "met", ""),
    ],
)
def test_a_goal_that_the_lines_do_not_show_is_not_met_by_them(
    case: str, change: Record, verdict: str, why: str
) -> None:
    lines = list(Maker().together())
    changed = next(line for line in lines if line["case"] == case)
    changed |= change | ({"params": WORK | {"model": "built-in"} | change["params"]} if "params" in change else {})
    (goal,) = [one for one in judge(lines_of(lines)) if one.goal is GOALS[2]]
    assert (goal.verdict, goal.why) == (verdict, why)


def test_a_peer_that_is_the_baseline_and_draws_something_else_is_no_peer() -> None:
    lines = list(Maker().pairs())
    for line in lines:
        if line["run"] == "pair-3" and line["case"].startswith("hotloop"):  # beside OpenVINO in bf16
            line |= {"check": WRONG, "speedup": None}
    (goal,) = [one for one in judge(lines_of(lines)) if one.goal is GOALS[0] and one.precision == "bf16"]
    assert (goal.verdict, goal.peer) == ("met", "diffusers compile bf16")


def test_a_median_below_the_goal_is_not_met_though_the_interval_holds_it() -> None:
    rng, maker = np.random.default_rng(0), Maker()
    peer, ours = 1 + 0.2 * rng.random(9), 1.02 + 0.2 * rng.random(9)
    lines = [
        maker.line(case, 1, "peer", 1, metrics={"latency": block("s", times)})
        for case, times in (("peer", peer), ("hotloop", ours))
    ]
    goal = judge(lines_of(lines))[0]
    assert goal.ratio is not None and goal.ratio["median"] == pytest.approx(np.median(peer / ours))
    assert goal.verdict == "not met" and goal.open


def test_a_case_of_many_pairwise_runs_is_one_row_the_middle_one() -> None:
    maker, runs = Maker(), []
    for i, seconds in enumerate((1.0, 1.2, 1.1)):
        fields = {"params": {"model": "m"}, "run": f"run-{i}"}
        runs += [
            maker.line("hotloop", seconds, "hotloop", 1, **fields),
            maker.line(f"peer {i}", 1, "hotloop", 1, **fields),
        ]
    (section,) = [one for one in sections(lines_of(runs)) if one.slug == "txt2img-m"]
    (table,) = section.tables
    assert [row[0].text for row in table.rows] == ["hotloop", "peer 0", "peer 1", "peer 2"]
    assert table.rows[0][1].text.startswith("1.11 s") and "hotloop 1.01 s to 1.21 s in 3 runs" in table.note


def test_machines_are_not_set_side_by_side() -> None:
    older = {"environment": ENVIRONMENT | {"cpu": "Old CPU", "date": "2026-11-20T10:00:00+00:00"}}
    lines = [*Maker(1).all(), *(line | older for line in Maker(2).all())]
    made = {section.slug: section for section in sections(lines_of(lines))}
    alone = [section.slug for section in sections(lines_of(Maker(1).all()))]
    old = [f"{name}-old-cpu--2-cores" for name in alone if name not in ("run", "goals")]
    assert sorted(made) == sorted(alone + old)  # the newest machine's keep the names that a README asks for
    for name, section in made.items():
        if name not in ("run", "goals"):
            assert len({line.machine for line in section.lines}) == 1
            assert section.title.endswith("(Old CPU, 2 cores)" if name in old else "(Some CPU, 2 cores)")
    judged = judge(lines_of(lines))
    assert [replace(one, machine="") for one in judged if one.machine == "Some CPU, 2 cores"] == [
        replace(one, machine="") for one in judge(lines_of(Maker(1).all()))
    ]
    (table,) = made["goals"].tables
    assert [column.title for column in table.columns][:4] == ["goal", "verdict", "machine", "model"]


def test_the_front_is_what_no_line_beats_in_both() -> None:
    maker, points = Maker(), np.random.default_rng(0).random((60, 2))
    lines = lines_of(
        maker.line(f"case {i}", seconds, "none", 1, quality={"psnr_db": value, "fid_p": -value})
        for i, (seconds, value) in enumerate(points)
    )
    at = {line["case"]: (line.latency(), line["quality"]["psnr_db"]) for line in lines}
    unbeaten = {
        name for name, (x, y) in at.items() if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in at.values())
    }
    assert {line["case"] for line in front(lines, "psnr_db")} == unbeaten
    assert front(lines, "fid_p") == front(lines, "psnr_db")  # less is better


def test_the_same_lines_give_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "lines.jsonl", [*Maker().offline(), *list(Maker().ladder())[:3]])
    for name in ("a", "b"):
        assert main([str(source), "--out", str(tmp_path / name)]) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    (tmp_path / "b" / "old.png").touch()
    assert main([str(source), "--out", str(tmp_path / "b")]) == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == files  # what is not in the report goes


PAGE = """Before.

<!-- report:speed begin -->
anything
<!-- report:speed end -->
Between. <!-- report:runs begin -->
<!-- report:runs end --> After.
"""


def test_marked_places_are_replaced_once_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "lines.jsonl", [*Maker().together(), *Maker().attention()])
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    asked = [str(source), "--fill", str(page)]
    assert main([*asked, "--check"]) == 1 and page.read_text() == PAGE
    assert "report:speed is not what the results give" in capsys.readouterr().out
    assert main(asked) == 0
    text = page.read_text()
    assert main([*asked, "--check"]) == 0 and main(asked) == 0 and page.read_text() == text
    assert text.startswith("Before.\n\n<!-- report:speed begin -->\n| model | precision | hotloop | fastest peer |")
    assert "\nanything\n" not in text and f"```text\n{COMMAND}\n" in text and "[lines](lines.jsonl)" in text
    assert "Between. <!--" in text and text.endswith("<!-- report:runs end --> After.\n")
    page.write_text(text.replace("| built-in |", "| built-out |", 1).replace("64x64", "65x65", 1))
    assert main([*asked, "--check"]) == 1


def test_the_speed_table_sets_hotloop_beside_the_fastest_peer_of_its_run(tmp_path: Path) -> None:
    older = {"environment": ENVIRONMENT | {"cpu": "Old CPU", "date": "2026-11-20T10:00:00+00:00"}}
    lines = lines_of([*Maker(0).together(), *Maker(0).pairs(), *(line | older for line in Maker(2).together())])
    table, told = parts(lines, tmp_path)["speed"].split("\n\n")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    found = [(row[0].split(",")[0].split(" (")[0], row[1], row[2].split(",")[0], row[3].split(",")[0]) for row in rows]
    assert found == [
        (model, precision, f"hotloop {engine} {precision}", peer)
        for model in ("the built-in model", "SD 1.5's shape")
        for precision, engine, peer in (
            ("fp32", "onnx", "optimum onnx fp32"),
            ("bf16", "openvino", "optimum openvino bf16"),
            ("int8", "openvino", "optimum openvino bf16"),
        )
    ]
    assert rows[0][2].endswith(", 237 ms") and rows[0][3].endswith(" ms") and rows[0][4].startswith("1.13 [")
    assert "Some CPU" in told and "Old CPU" not in told and "PSNR 62.1 dB (the built-in model)" in told


def test_a_page_has_one_section_for_each_processor_the_newest_first(made: Made) -> None:
    older = {"environment": ENVIRONMENT | {"cpu": "Old CPU", "date": "2026-11-20T10:00:00+00:00"}}
    lines = lines_of([*made.lines, *(line | older for line in Maker(2).together())])
    text = parts(lines)["processors"]
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### Some CPU, 2 cores", "### Old CPU, 2 cores",
    ]  # fmt: skip
    assert "(Some CPU" not in text and text.count("#### Goals") == 2
    titles = [section.title for section in sections(lines_of(made.lines))[1:]]
    older_titles = [section.title for section in sections(lines_of(Maker(2).together()))[1:]]
    assert [line[5:] for line in text.splitlines() if line.startswith("#### ")] == titles + older_titles


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "\n<!-- report:nothing begin -->\n<!-- report:nothing end -->",
            "line 2: report:nothing must be one of processors, runs, speed",
        ),
        (
            "<!-- report:speed begin -->\n",
            "line 1: report:speed must be closed by <!-- report:speed end -->",
        ),
    ],
)
def test_a_marker_that_cannot_be_filled_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    source = write(tmp_path / "lines.jsonl", list(Maker().attention()))
    page = tmp_path / "page.md"
    page.write_text(text)
    assert main([str(source), "--fill", str(page)]) == 2
    assert complaint in capsys.readouterr().err and page.read_text() == text


def test_the_committed_tables_are_what_the_committed_results_give() -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md"]
    assert all("<!-- report:" in page.read_text() for page in pages)
    assert main(["--fill", *map(str, pages), "--check"]) == 0


def test_of_a_folder_the_newest_edition_of_every_file_is_read(tmp_path: Path) -> None:
    for name in ("2026-11-20-a.jsonl", "2026-11-21-a.jsonl", "2026-10-01-b.jsonl", "c.jsonl", "d.txt"):
        (tmp_path / name).touch()
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "a.jsonl").touch()
    assert [path.name for path in find([tmp_path])] == ["2026-11-21-a.jsonl", "2026-10-01-b.jsonl", "c.jsonl"]
    with pytest.raises(ResultsError, match="holds no results"):
        find([tmp_path / "local"], without=[tmp_path / "local" / "a.jsonl"])


def test_a_broken_line_ends_the_report_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = list(Maker().attention())
    lines[1]["metrics"]["latency"]["p50"] = "fast"
    path = write(tmp_path / "lines.jsonl", lines)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2 and not (tmp_path / "out").exists()
    assert capsys.readouterr().err == f"[report] {path}:2: metrics.latency.p50: 'fast' is not of type 'number'\n"
