"""Text to image: for every model and scenario a table of cases, of the pairs measured alone, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from . import cells, plots
from .groups import WORK, Place, by, once, said, shared_ratio, varying
from .measures import measure, measures
from .results import Line
from .section import AGREE, Picture, Section, slug
from .tables import NONE, Cell, Table, figures, number, ratio, seconds, spread, texts

__all__ = ["images"]

SCENARIOS = {
    "SingleStream": "one picture after another",
    "Offline": "batches",
    "Server": "requests that arrive by themselves",
}
RATIOS = f"{AGREE} hotloop's best is its fastest case of the same precision in the same run."
Special = dict[str, Callable[[Line], Cell]]


def images(model: str, lines: Sequence[Line], where: Place) -> list[Section]:
    """A section for every scenario that this model was measured in on a machine."""
    made = []
    for (scenario,), group in by(lines, "scenario").items():
        name = slug("txt2img", model, "" if scenario == "SingleStream" else scenario, where.slug)
        title = f"Text to image, {model}: {SCENARIOS[scenario]} ({scenario}){where.title}"
        text = ". ".join(filter(None, (said(group), RATIOS if scenario != "Server" else "")))
        special, pictures = {"SingleStream": _single, "Offline": _offline, "Server": _server}[scenario](name, group)
        tables = [_cases(f"{title}: cases", group, special)]
        if _pairwise(group):
            tables.insert(0, _pairs(f"{title}: hotloop and each peer in turns", group))
        made.append(Section(name, title, group, (text,), tuple(tables), tuple(pictures)))
    return made


# Scenarios: what their table has beyond the others', and their pictures.


def _single(name: str, lines: Sequence[Line]) -> tuple[Special, list[Picture]]:
    pictures = []
    for i, group in enumerate(by(lines, "asked").values()):
        bars = [line for line, _ in once(group) if line["error"] is None]
        if bars:
            times = "; ".join(f"{line['case']} {seconds(line.p50()).text}" for line in bars)
            alt = f"Bars of the time of one picture, by stage. {times}."
            pictures.append(
                Picture(
                    f"{name}-stages" + (f"-{i + 1}" if i else ""),
                    alt,
                    partial(plots.stages, bars, ratios=not _pairwise(group)),
                )
            )
    return {}, pictures


def _offline(name: str, lines: Sequence[Line]) -> tuple[Special, list[Picture]]:
    special: Special = {"pictures a second": _throughput}
    series = _series(lines)
    if len({line.params.get("batch") for one in series.values() for line in one}) < 2:
        return special, []
    told = [
        f"{case}: " + ", ".join(f"{number(line.throughput)} at {line.params.get('batch')}" for line in one) + "."
        for case, one in series.items()
    ]
    alt = " ".join(["Pictures a second against the size of the batch.", *told])
    return special, [Picture(f"{name}-throughput", alt, partial(plots.throughput, series))]


def _server(name: str, lines: Sequence[Line]) -> tuple[Special, list[Picture]]:
    special: Special = {
        "offered a second": lambda line: cells.param(line, "rate"),
        "achieved a second": _throughput,
        "bound of p99": lambda line: seconds(line["extra"].get("bound_seconds")),
        "bound": _bound,
    }
    series = {case: one for case, one in _series(lines).items() if all("rate" in line.params for line in one)}
    if not series:
        return special, []
    told = [
        f"{case}: " + ", ".join(f"{seconds(line.latency('p99')).text} at {line.params['rate']:g}" for line in one) + "."
        for case, one in series.items()
    ]
    alt = " ".join(["Latency, 50th and 99th percentile, against requests offered a second. The 99th of", *told])
    return special, [Picture(f"{name}-latency", alt, partial(plots.server, series))]


def _throughput(line: Line) -> Cell:
    return Cell(number(line.throughput), line.throughput)


def _bound(line: Line) -> Cell:
    kept = line["extra"].get("bound_met")
    return NONE if kept is None else Cell("met" if kept else "not met", mark="good" if kept else "bad")


def _series(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Measured lines by case, each in order of batch and rate."""
    measured = [line for line, _ in once(lines) if line["error"] is None]
    return {
        str(case): sorted(group, key=lambda line: (line.params.get("batch") or 0, line.params.get("rate") or 0))
        for (case,), group in by(measured, "case").items()
    }


# Tables.


def _pairwise(lines: Sequence[Line]) -> bool:
    """Whether there is no one baseline that every case was measured with."""
    return len({line["baseline"] for line in lines if line["error"] is None and line["speedup"]}) > 1


def _cases(caption: str, lines: Sequence[Line], special: Special) -> Table:
    """A row per case. special: further columns, of a line that was measured."""
    moving = [name for name in varying(lines, WORK) if name not in ("rate", "max_batch")]
    kinds = [name for name in measures(lines) if name != "psnr_db"]  # that is the output's own column
    pairwise = _pairwise(lines)
    columns = (
        *texts("case"), *texts("precision", brief=False), *figures(*moving, *special),
        *figures("latency p50 [p5, p95, p99]", "per evaluation", "faster than the baseline"), *texts("output"),
        *figures("time / hotloop's best", "floor / measured", "peak memory"),
        *figures(*(measure(kind).title for kind in kinds), "load", "first picture", brief=False),
    )  # fmt: skip
    rows, repeated = [], []
    for line, same in once(lines):
        measured = line["error"] is None
        rows.append((
            cells.name(line), Cell(line.precision or "-"), *(cells.param(line, name) for name in moving),
            *(tell(line) if measured else NONE for tell in special.values()), spread(line.metric("latency")),
            seconds(line.p50("stage.step")), NONE if pairwise else ratio(line["speedup"]),
            NONE if pairwise and measured else cells.output(line), _against_ours([line, *same], lines),
            cells.floor(line), cells.peak(line), *(cells.quality_of(line, kind) for kind in kinds),
            seconds(line.p50("load")), seconds(line.p50("first_image")),
        ))  # fmt: skip
        if len(same) > 1 and measured:
            times = sorted(one.latency() for one in same if one["error"] is None)
            repeated.append(
                f"{line['case']} {seconds(times[0]).text} to {seconds(times[-1]).text} in {len(times)} runs"
            )
    notes = [f"Measured more than once, the middle run is shown: {'; '.join(repeated)}."] if repeated else []
    notes += [cells.SHARED] if any(cells.shares(line) for line in lines) else []
    return Table(caption, columns, tuple(rows), " ".join(notes)).without_empty()


def _pairs(caption: str, lines: Sequence[Line]) -> Table:
    """A row per line that has a baseline of its own run: both times, the ratio, and whether the outputs agree."""
    columns = (
        *texts("case"), *figures("latency p50"), *texts("in turns with"), *figures("its latency p50", "faster"),
        *figures("per evaluation"), *texts("output"), *figures("floor / measured"),
    )  # fmt: skip
    rows = []
    for group in by(lines, "run", "asked").values():
        base = next((line for line in group if line["case"] == line["baseline"] and line["error"] is None), None)
        for line in group:
            if base is None or line is base:
                continue
            step = shared_ratio(base, line, "stage.step") if line.comparable else None
            rows.append((
                cells.name(line), seconds(line.p50()), Cell(base["case"]), seconds(base.p50()), ratio(line["speedup"]),
                ratio(step), cells.output(line), cells.floor(line),
            ))  # fmt: skip
    return Table(caption, columns, tuple(rows)).without_empty()


def _against_ours(same: Sequence[Line], lines: Sequence[Line]) -> Cell:
    """Time over that of hotloop's fastest case of the same run, work and precision; `same`: one case's lines."""
    groups = by(lines, "run", "precision", "asked").values()
    for line in same:
        (group,) = (group for group in groups if any(one is line for one in group))
        beside = [one for one in group if one.ours and one.comparable]
        if beside and line.comparable and line["scenario"] != "Server":
            best = min(beside, key=Line.latency)
            return Cell("best", 1.0) if best is line else ratio(shared_ratio(line, best))
    return NONE
