"""What the report says, in order: sections of words, tables and pictures, made from the lines alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from . import cells, plots
from .goals import Judgement, judge
from .groups import WORK, Place, by, once, places, said, varying
from .images import images
from .latencies import latencies
from .measures import front, measure, measures, quality
from .results import Line, shown
from .section import AGREE, Picture, Section, commands, slug, span
from .tables import NONE, Cell, Column, Table, figures, number, ratio, seconds, spread, texts

__all__ = ["sections"]

TITLES = {
    "adapters": "LoRAs on a running pipeline",
    "attention": "The fused attention against torch's",
    "engines": "Engines of one model",
    "live-animate": "An avatar's frame, against the architecture of Talking Head Anime 4's student",
    "live-restyle": "A picture redrawn, against StreamDiffusion's loop",
    "live-wire": "From a signal to a frame on the wire",
    "spread": "Rows of a small network side by side",
    "tunings": "Tunings of the native engine",
    "warp": "A frame moved by flows, against OpenVINO's GridSample",
}


def sections(lines: Sequence[Line]) -> list[Section]:
    """Everything there is to say about these lines."""
    made = [_run(lines)]
    drawn = [line for line in lines if line["benchmark"] == "txt2img"]
    if judgements := judge(drawn):
        made.append(_goals(drawn, judgements))
    tell = {"txt2img": images, "ladder": _ladder, "compare": _compare}
    for name, tell_of in tell.items():
        for (model,), of_model in by((line for line in lines if line["benchmark"] == name), "model").items():
            for place, group in places(of_model):
                made += tell_of(model, group, place)
    others = by((line for line in lines if line["benchmark"] not in tell), "benchmark")
    for (name,), of_name in others.items():
        made += [_operators(name, group, place) for place, group in places(of_name)]
    return made


# What was run.


def _run(lines: Sequence[Line]) -> Section:
    columns = (
        *texts("benchmark", "date (UTC)", "commit", "machine"), *figures("memory", "load", "runs", "lines"),
        *texts("model's SHA-256", "record"),
    )  # fmt: skip
    rows = []
    for (name, path), group in by(lines, "benchmark", "path").items():
        envs = [line["environment"] for line in group]
        dates = [env["date"][:16].replace("T", " ") for env in envs]
        sizes = [f"{env['memory_bytes'] / 1e9:.0f} GB" for env in envs]
        loads = dict.fromkeys(f"{env['load']:.1f}" for env in sorted(envs, key=lambda env: env["load"]))
        hashes = [env["model_hash"][:12] for env in envs if env["model_hash"]]
        row = (
            name, span(dates), _all(map(_commit, envs)), _all(line.machine for line in group), span(sizes),
            span(list(loads)), str(len({line["run"] for line in group})), str(len(group)), _all(hashes) or "-",
            shown(path),
        )  # fmt: skip
        rows.append(tuple(map(Cell, row)))
    tables = (Table("What was run, where and when", columns, tuple(rows)).without_empty(), _versions(lines))
    told = tuple(f"Command: `{command}`" for command in commands(lines))
    return Section("run", "What was run", lines, told, tables + _ceilings(lines))


def _all(told: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(told))


def _commit(env: dict[str, Any]) -> str:
    return (env["commit"] or "none") + (" and changes" if env["dirty"] else "")


def _versions(lines: Sequence[Line]) -> Table:
    """Of the process that measured, and of cases that had an environment of their own."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for line in lines:
        env = line["environment"]
        driver = {"GPU driver": env["gpu"]["driver"]} if env["gpu"] else {}
        own = line["params"].get("versions", {})
        for part, version in {"python": env["python"], "system": env["os"], **env["versions"], **driver}.items():
            found.setdefault((part, version), {})
        for part, version in own.items():
            if version != env["versions"].get(part):
                found.setdefault((part, version), {})[line["case"]] = None
    rows = tuple(
        (Cell(part), Cell(version), Cell(", ".join(cases))) for (part, version), cases in sorted(found.items())
    )
    return Table("Versions", texts("part", "version", "of"), rows).without_empty()


def _ceilings(lines: Sequence[Line]) -> tuple[Table, ...]:
    """What the floors stand on."""
    found: dict[tuple[str, str, str, float, float], None] = {}
    for line in lines:
        if floor := line["floor"]:
            place = (line["benchmark"], line.model, floor["dtype"], floor["ceiling_flops"], floor["ceiling_bytes"])
            found[place] = None
    rows = tuple(
        (Cell(name), Cell(model), Cell(dtype), Cell(number(flops / 1e9), flops), Cell(number(size / 1e9), size))
        for name, model, dtype, flops, size in found
    )
    columns = (*texts("benchmark", "model", "precision"), *figures("GFLOP/s", "GB/s"))
    caption = "Ceilings measured in the same runs: a floor is the plain work at these"
    return (Table(caption, columns, rows),) if rows else ()


# Goals.


def _goals(lines: Sequence[Line], judgements: Sequence[Judgement]) -> Section:
    columns = (
        *texts("goal", "verdict", "machine", "model", "scenario"), *texts("work", brief=False), *texts("precision"),
        *figures("peer's time / hotloop's", "per evaluation"), *texts("hotloop", "fastest peer"),
    )  # fmt: skip
    rows = []
    several = len({one.machine for one in judgements}) > 1
    for one in judgements:
        verdict = one.verdict + (f": {one.why}" if one.why else ", the interval holds the goal" if one.open else "")
        mark = {"met": "good", "not met": "bad"}.get(one.verdict, "")
        place = map(Cell, (one.machine if several else "-", one.model, one.scenario, one.said, one.precision or "-"))
        sides = (ratio(one.ratio), ratio(one.step), Cell(one.ours), Cell(one.peer))
        rows.append((Cell(one.goal.text), Cell(verdict, mark=mark), *place, *sides))
    met = sum(one.verdict == "met" for one in judgements)
    text = f"{met} of {len(judgements)} met. {AGREE} Every figure is against the fastest peer of hotloop's own run."
    table = Table("Goals and verdicts", columns, tuple(rows)).without_empty()
    return Section("goals", "Goals", lines, (text,), (table,))


# The ladder.


def _ladder(model: str, lines: Sequence[Line], where: Place) -> list[Section]:
    rungs = sorted((line for line, _ in once(lines)), key=lambda line: line.params["rung"])
    names = measures(rungs)
    columns = (
        *figures("rung"), *texts("what it adds"),
        *figures("latency p50 [p5, p95, p99]", "per evaluation", "faster than the first", "than the rung before"),
        *texts("output"), *figures(*(measure(name).title for name in names)), *figures("floor / measured"),
        *figures("peak memory", brief=False),
    )  # fmt: skip
    rows = tuple(
        (
            cells.param(line, "rung"), Cell(str(line.params["switch"])), spread(line.metric("latency")),
            seconds(line.p50("stage.step")), ratio(line["speedup"]), ratio(line["extra"].get("against_previous")),
            cells.output(line), *(cells.quality_of(line, name) for name in names), cells.floor(line),
            cells.peak(line),
        )
        for line in rungs
    )  # fmt: skip
    steps = [line for line in rungs if line["error"] is None]
    reached = [f"{line.params['switch']} {line['speedup']['median']:.2f}" for line in steps if line["speedup"]]
    alt = f"Speed-up against the first rung, one bar a rung: {'; '.join(reached)}."
    place = slug("ladder", model, where.slug)
    pictures = (Picture(place, alt, partial(plots.ladder, steps)),) if reached else ()
    table = Table(f"The ladder of {model}, one switch more a rung", columns, rows).without_empty()
    title = f"What each optimisation bought: {model}{where.title}"
    return [Section(place, title, rungs, _told(rungs), (table,), pictures)]


def _told(lines: Sequence[Line], names: Sequence[str] = WORK) -> tuple[str]:
    """What the lines have in common, and what a ratio is."""
    return (". ".join(filter(None, (said(lines, names), AGREE))),)


# Latency against quality.


def _compare(model: str, lines: Sequence[Line], where: Place) -> list[Section]:
    lines = [line for line, _ in once(lines)]
    names = measures(lines)
    fronts = {name: front(lines, name) for name in names}
    columns = (
        *texts("case", brief=False), *texts("sampler"), *figures("steps"), *texts("precision"),
        *figures("latency p50 [p5, p95, p99]", *(measure(name).title for name in names)),
        *texts("nothing is faster and better in", "not measured"),
    )  # fmt: skip
    rows = []
    for line in lines:
        unbeaten = [measure(name).title for name in names if any(one is line for one in fronts[name])]
        rows.append((
            cells.name(line), cells.param(line, "sampler"), cells.param(line, "steps"), Cell(line.precision or "-"),
            spread(line.metric("latency")), *(cells.quality_of(line, name) for name in names),
            Cell(", ".join(unbeaten) or "-"), Cell(line["error"] or "-"),
        ))  # fmt: skip
    place = slug("compare", model, where.slug)
    pictures = []
    for name, unbeaten_lines in fronts.items():
        if sum(math.isfinite(quality(line, name) or math.inf) for line in lines) > 1:
            best = "; ".join(f"{line['case']} {seconds(line.p50()).text}" for line in unbeaten_lines)
            alt = f"Latency against {measure(name).title}, a series for each sampler. Nothing beats {best}."
            pictures.append(Picture(slug(place, name), alt, partial(plots.pareto, lines, name)))
    table = Table(f"Samplers, steps and precisions of {model}", columns, tuple(rows)).without_empty()
    title = f"Latency against quality: {model}{where.title}"
    return [Section(place, title, lines, tuple(filter(None, [said(lines)])), (table,), tuple(pictures))]


# Everything else.


def _operators(name: str, lines: Sequence[Line], where: Place) -> Section:
    """A row per line: what varies, time, ratio, output, and whatever figures the benchmark adds."""
    moving = [one for one in varying(lines) if not one.startswith("versions.")]
    extras = [one for one in dict.fromkeys(chain.from_iterable(line["extra"] for line in lines)) if _plain(lines, one)]
    columns = (
        *texts("case"), *(Column(_last(one), _numeric(lines, one)) for one in moving),
        *figures("latency p50 [p5, p95, p99]", "faster than the baseline"), *texts("output"),
        *figures("floor / measured"), *figures("peak memory", brief=False),
        *figures(*(one.removesuffix("_seconds").replace("_", " ") for one in extras), brief=False),
    )  # fmt: skip
    rows = tuple(
        (
            cells.name(line), *(cells.param(line, one) for one in moving), spread(line.metric("latency")),
            ratio(line["speedup"]), cells.output(line), cells.floor(line), cells.peak(line),
            *(_extra(line, one) for one in extras),
        )
        for line in lines
    )  # fmt: skip
    title = TITLES.get(name, name) + where.title
    same = [one for one in lines[0].params if one not in moving and not one.startswith("versions.")]
    note = cells.SHARED if any(cells.shares(line) for line in lines) else ""
    table = Table(title, columns, rows, note).without_empty()
    place = slug(name, where.slug)
    return Section(place, title, lines, _told(lines, same), (table,), _curves(place, lines))


def _curves(place: str, lines: Sequence[Line]) -> tuple[Picture, ...]:
    """Latency over time, of lines that tell it."""
    told = {line["case"]: line["extra"]["curve"] for line in lines if "curve" in line["extra"]}
    series = {name: (np.array(curve["at"]), np.array(curve["seconds"])) for name, curve in told.items()}
    alt = "Latency over time, and its distribution: " + "; ".join(
        f"{name} p50 {1e3 * np.percentile(values, 50):.1f} ms, p99 {1e3 * np.percentile(values, 99):.1f} ms"
        for name, (_, values) in series.items()
    )
    return (Picture(f"{place}-curve", alt, partial(latencies, series)),) if series else ()


def _plain(lines: Sequence[Line], name: str) -> bool:
    return name != "command" and all(isinstance(line["extra"].get(name, 0), int | float) for line in lines)


def _numeric(lines: Sequence[Line], name: str) -> bool:
    values = [line.params.get(name, 0) for line in lines]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _last(name: str) -> str:
    """shape.Tq is Tq, and shape.name the shape."""
    head, _, last = name.rpartition(".")
    return head if last == "name" else last


def _extra(line: Line, name: str) -> Cell:
    value = line["extra"].get(name)
    if value is None:
        return NONE
    return seconds(value) if name.endswith("seconds") else Cell(number(value), value)
