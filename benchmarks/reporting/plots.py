"""The report's pictures. The same lines give the same bytes; hotloop stands out, and nothing is told by colour alone.

A picture is drawn once and leaves as PNG for files and as SVG for the page, where its ink and grid become the page's
own colours, so that it reads in the dark.
"""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from .measures import front, measure, measures, quality
from .results import Line
from .tables import quantity, scale

__all__ = ["ladder", "pareto", "render", "server", "stages", "throughput"]

# Okabe & Ito's palette (2008), told apart by colour-blind readers. The accent is hotloop's alone.
ACCENT, BLUE, SKY, GREEN, AMBER, PINK = "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7"
INK, MUTED, GRID, PALE, PAPER = "#22262B", "#69707A", "#DFE3E8", "#B4BBC4", "#FEFEFE"
SLATE = "#8D95A0"
SERIES = (BLUE, GREEN, PINK, AMBER, SKY, MUTED, ACCENT)
MARKERS = {"fp32": "o", "fp16": "D", "bf16": "s", "int8": "^"}
PARTS = {"text": SKY, "loop": BLUE, "VAE": AMBER, "host copy": PINK, "rest": PALE, "not split": SLATE}
BESIDE = ("attribute_accuracy", "psnr_db", "fid_p")  # measures with room beside a ladder
ON_PAGE = {INK: "ink", MUTED: "muted", GRID: "line", PALE: "pale", PAPER: "paper"}  # colour -> the page's variable
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": MUTED,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "svg.fonttype": "path",
    "grid.linewidth": 0.8, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titlecolor": INK,
    "xtick.minor.size": 0, "ytick.minor.size": 0, "figure.constrained_layout.use": True,
}  # fmt: skip
WIDTH = 7.6  # inches


# Leaving.


def render(draw: Callable[[], Figure], name: str, alt: str) -> tuple[bytes, str]:
    """(PNG, <svg> element): one drawing, laid out once."""
    with matplotlib.rc_context(cast(Any, STYLE | {"svg.hashsalt": name})):
        figure = draw()
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=150, facecolor=PAPER, pil_kwargs={"compress_level": 1})
        figure.set_layout_engine("none")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return _small(png), _for_page(svg.getvalue(), name, alt)


def _small(png: io.BytesIO) -> bytes:
    """In 128 colours: a third of the bytes."""
    with Image.open(png) as drawn:
        few = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    out = io.BytesIO()
    few.save(out, format="png", optimize=True)
    return out.getvalue()


def _for_page(text: str, name: str, alt: str) -> str:
    """An <svg> element with ids that no other picture has, the page's colours and the alt text."""
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="|url\()#', rf"\g<1>#{name}-", text).replace("xlink:href", "href")
    for colour, variable in ON_PAGE.items():
        text = re.sub(f"{colour}\\b", f"var(--{variable})", text, flags=re.IGNORECASE)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box.group() if box else ""} role="img" aria-label="{html.escape(alt)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


# Drawing.


def stages(lines: Sequence[Line], *, ratios: bool = True) -> Figure:
    """A bar per case, in parts, the fastest on top; the floor as a stroke across it.

    ratios: beside the times, where all are to one baseline.
    """
    lines = sorted(lines, key=lambda line: line.latency())
    figure, axes = _sheet(0.9 + 0.36 * len(lines))
    totals = [line.latency() for line in lines]
    unit, by = scale(totals[-1])
    # One that is far behind would leave the others no room: its bar is broken off.
    end = totals[-1] if len(totals) == 1 or totals[-1] < 2 * totals[-2] else 1.3 * totals[-2]
    for row, (line, total) in enumerate(zip(lines, totals, strict=True)):
        start = 0.0
        for part, value in _parts(line).items():
            axes.barh(row, value * by, left=start * by, height=0.62, color=PARTS[part], linewidth=0)
            start += value
        if total > end:
            axes.plot([end * by * at for at in (0.955, 0.975)], [row + 0.4, row - 0.4], color=PAPER, linewidth=4)
        floor = line["floor"]["seconds"] if line["floor"] else 0.0
        if floor:
            axes.plot([floor * by] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.6, solid_capstyle="butt")
        ratio = f"   {line['speedup']['median']:.2f}x" if line["speedup"] and ratios else ""
        ratio = "   DIFFERS" if line.differs else ratio
        axes.text(
            min(max(start, total, floor), end) * by + 0.012 * end * by, row, quantity(total, "s") + ratio, va="center",
            color=ACCENT if line.ours else INK, fontweight="bold" if line.ours else "normal",
        )  # fmt: skip
    _names(axes, lines)
    axes.set_xlim(0, end * by)
    floors = "; the stroke is the floor" if any(line["floor"] for line in lines) else ""
    axes.set_xlabel(f"time of one picture, median, {unit}{floors}")
    used = {part for line in lines for part, value in _parts(line).items() if value > 0}
    _key(axes, [Patch(color=colour, label=part) for part, colour in PARTS.items() if part in used])
    return figure


def _parts(line: Line) -> dict[str, float]:
    """Seconds of every stage that the case tells; what they leave of the whole is the rest."""
    told = {
        "text": line.p50("stage.text"),
        "loop": line.p50("stage.loop"),
        "VAE": line.p50("stage.vae_decoder") or line.p50("stage.vae"),
        "host copy": line.p50("stage.host_copy"),
    }
    known = {name: value for name, value in told.items() if value is not None}
    total = line.p50() or 0.0
    return known | {"rest": max(0.0, total - sum(known.values()))} if known else {"not split": total}


def ladder(lines: Sequence[Line]) -> Figure:
    """A waterfall: each rung starts where the one before ended; what it came to, bought and cost stands beside it.

    Logarithmic, because rungs multiply: equal gains are equally long wherever they stand.
    """
    figure, axes = _sheet(1.0 + 0.38 * len(lines), width=8.6)
    reached = least = most = 1.0
    reached_so_far, bought = [], []
    for row, line in enumerate(lines):
        ratio, before = line["speedup"], line["extra"].get("against_previous")
        axes.barh(row, reached - 1, left=1, height=0.62, color=GRID, linewidth=0)
        if ratio:
            now = ratio["median"]
            colour = ACCENT if now > reached else MUTED
            axes.barh(row, now - reached, left=reached, height=0.62, color=colour, linewidth=0)
            axes.plot([ratio["low"], ratio["high"]], [row, row], color=INK, linewidth=1.1)
            reached = now
            least, most = min(least, now), max(most, now)
        reached_so_far.append(f"{reached:.2f}x" if ratio or not row else "DIFFERS" if line.differs else "-")
        bought.append(f"{before['median'] - 1:+.1%}" if before and ratio else "")
    _names(axes, lines, [textwrap.fill(str(line.params["switch"]), 26) for line in lines])
    axes.set_xscale("log")
    axes.set_xlim(least * 0.9, most * 1.12)
    _ticks(axes.xaxis, [least, most])
    axes.set_xlabel("times as fast as the first rung (log);\ncoloured: what the rung changed; line: 95 % interval")
    columns = {"speed-up": reached_so_far, "this rung": bought}
    for name in [name for name in measures(lines) if name in BESIDE]:
        values = [quality(line, name) for line in lines]
        columns[measure(name).title] = ["" if value is None else measure(name).write(value) for value in values]
    at = 0.0
    for i, (title, texts) in enumerate(columns.items()):
        title = title.replace(" ", "\n")
        at += 16 + 5.6 * max(
            map(len, [*title.split("\n"), *texts])
        )  # points, so that the layout sees the room they take
        beside: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontweight": "normal" if i else "bold"}
        axes.annotate(title, (1, 1), (at, 3), xycoords="axes fraction", color=MUTED, va="bottom", **beside)
        for row, text in enumerate(texts):
            axes.annotate(text, (1, row), (at, 0), xycoords=axes.get_yaxis_transform(), va="center", **beside)
    return figure


def pareto(lines: Sequence[Line], name: str) -> Figure:
    """Latency against one measure: a colour for each sampler, a marker for each precision, the front behind them.

    Where engines share a precision, a marker for each engine.
    """
    what = measure(name)
    figure, axes = _sheet(4.7)
    points = [
        _Point(line, x, y)
        for line in lines
        if (x := line.p50()) is not None and (y := quality(line, name)) is not None and math.isfinite(y)
    ]
    unit, by = scale(max(point.x for point in points))
    edge = [point for line in front(lines, name) for point in points if point.line is line]
    axes.plot(
        [one.x * by for one in edge], [one.y for one in edge], color=PALE, linewidth=7, alpha=0.55,
        solid_joinstyle="round", zorder=1,
    )  # fmt: skip
    samplers = list(dict.fromkeys(point.sampler for point in points))
    colours = {sampler: SERIES[i % len(SERIES)] for i, sampler in enumerate(samplers)}
    engines = {(point.line.precision, point.line.params.get("engine")) for point in points}
    by_engine = len(engines) > len({precision for precision, _ in engines})
    kinds = [str(point.line.params.get("engine")) if by_engine else point.line.precision for point in points]
    known = list(dict.fromkeys(kinds))
    markers = {kind: (None if by_engine else MARKERS.get(kind)) or "os^DvPX*"[i % 8] for i, kind in enumerate(known)}
    for sampler, kind in product(samplers, known):
        series = [p for p, own in zip(points, kinds, strict=True) if p.sampler == sampler and own == kind]
        series.sort(key=lambda p: p.x)
        xs, ys, colour = [p.x * by for p in series], [p.y for p in series], colours[sampler]
        axes.plot(xs, ys, color=colour, linewidth=1, alpha=0.55, zorder=2)
        axes.plot(
            xs, ys, color=colour, linestyle="", marker=markers[kind], markersize=5.5, markeredgewidth=0.8,
            markeredgecolor=PAPER, zorder=3,
        )  # fmt: skip
    axes.set_xscale("log")
    _ticks(axes.xaxis, [point.x * by for point in points])
    up = 1 if what.higher_is_better else -1
    _name_steps(axes, [(point.x * by, point.y, str(point.line.params.get("steps", ""))) for point in edge], up)
    axes.set_xlabel(f"latency, {unit} (log); figures are steps, the band joins what nothing beats")
    axes.set_ylabel(f"{what.title}{what.unit and ', ' + what.unit} ({'more' if up > 0 else 'less'} is better)")
    axes.grid(True)
    _key(axes, [Line2D([], [], color=colour, linewidth=3, label=sampler) for sampler, colour in colours.items()], 1)
    marks = [(kind, mark) for kind, mark in markers.items() if kind]
    _key(axes, [Line2D([], [], color=MUTED, linestyle="", marker=mark, label=kind) for kind, mark in marks])
    return figure


def _name_steps(axes: Axes, points: Sequence[tuple[float, float, str]], up: int) -> None:
    """Beside each point, on the side where nothing is; one that would cover the last one written is left out."""
    axes.autoscale_view()
    last = np.array([-math.inf, -math.inf])
    for x, y, text in points:
        place = axes.transData.transform((x, y))
        if np.abs(place - last).max() > 0.16 * axes.figure.dpi:
            axes.annotate(
                text, (x, y), (-4, up * 6), textcoords="offset points", ha="right", va="bottom" if up > 0 else "top",
                fontsize=8,
            )  # fmt: skip
            last = place


@dataclass(frozen=True)
class _Point:
    line: Line
    x: float
    y: float

    @property
    def sampler(self) -> str:
        return str(self.line.params.get("sampler", self.line["case"]))


def throughput(series: Mapping[str, Sequence[Line]]) -> Figure:
    """Pictures a second against batch size, a line for each case."""
    figure, axes = _sheet(3.6)
    for lines in series.values():
        batches = [line.params.get("batch") or 1 for line in lines]
        _series(axes, batches, [line.throughput for line in lines], lines[0].ours)
    axes.set_xscale("log", base=2)
    _exact_ticks(axes.xaxis, sorted({line.params.get("batch") or 1 for lines in series.values() for line in lines}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pictures in a batch")
    axes.set_ylabel("pictures a second")
    _label_ends(axes, [(name, lines[-1].throughput, lines[0].ours) for name, lines in series.items()])
    return figure


def server(series: Mapping[str, Sequence[Line]]) -> Figure:
    """p99 (full) and p50 (dashed) of latency against offered requests a second, with the bound of p99."""
    figure, axes = _sheet(3.6)
    found = [line["metrics"]["latency"] for lines in series.values() for line in lines]
    unit, by = scale(max(block["p99"] for block in found))
    ends = []
    for name, lines in series.items():
        rates, ours = [line.params["rate"] for line in lines], lines[0].ours
        p50, p99 = ([line.latency(one) * by for line in lines] for one in ("p50", "p99"))
        _series(axes, rates, p99, ours)
        axes.plot(rates, p50, color=ACCENT if ours else MUTED, linewidth=1, linestyle=(0, (4, 2)))
        ends.append((name, p99[-1], ours))
    axes.set_yscale("log")
    bounds = {line["extra"].get("bound_seconds") for lines in series.values() for line in lines}
    for bound in sorted(bounds - {None}):
        axes.axhline(bound * by, color=INK, linewidth=1)
        axes.annotate(
            f"bound of p99, {quantity(bound, 's')}", (0, bound * by), (3, 3), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
        )  # fmt: skip
    _ticks(axes.yaxis, [block[one] * by for block in found for one in ("p50", "p99")])
    _exact_ticks(axes.xaxis, sorted({line.params["rate"] for lines in series.values() for line in lines}))
    axes.set_xlabel("requests offered a second (Poisson)")
    axes.set_ylabel(f"latency, {unit} (log): p99 full, p50 dashed")
    _label_ends(axes, ends)
    return figure


# What the drawings share.


def _sheet(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _names(axes: Axes, lines: Sequence[Line], names: Sequence[str] | None = None) -> None:
    """Down the side; by default the cases, hotloop's in its colour."""
    axes.set_yticks(range(len(lines)), names or [line["case"] for line in lines])
    for label, line in zip(axes.get_yticklabels(), lines, strict=True):
        if line.ours and not names:
            label.set_color(ACCENT)
            label.set_fontweight("bold")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _key(axes: Axes, handles: Sequence[Artist], row: int = 0) -> None:
    """A row of names over the picture, each after its sign; row: counted upwards."""
    if not handles:
        return
    height = 0.24 / axes.bbox.height * axes.figure.dpi  # 0.24 inches, before the layout: a little more after it
    legend = axes.legend(
        handles=list(handles), loc="lower left", bbox_to_anchor=(-0.01, 1.0 + row * height), ncols=len(handles),
        frameon=False, handlelength=0.9, handleheight=0.9, handletextpad=0.45, columnspacing=1.3, borderaxespad=0.2,
    )  # fmt: skip
    axes.add_artist(legend)
    legend.set_clip_on(False)  # or the layout would leave it no room


def _series(axes: Axes, x: Sequence[float], y: Sequence[float], ours: bool) -> None:
    colour, width, size = (ACCENT, 2.2, 4.5) if ours else (MUTED, 1.2, 3.5)
    axes.plot(x, y, color=colour, linewidth=width, marker="o", markersize=size, zorder=3 if ours else 2)
    axes.margins(x=0.02)
    axes.grid(axis="y")


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, bool]]) -> None:
    """(name, where its line ends, hotloop's) beside the picture, pushed apart where they would overlap."""
    axes.autoscale_view()
    on_sheet = axes.transData + axes.transAxes.inverted()
    free = -math.inf
    for name, value, ours in sorted(ends, key=lambda end: end[1]):
        _, height = on_sheet.transform((axes.get_xlim()[0], value))
        free = max(height, free + 0.06)
        axes.text(
            1.015, free, name, transform=axes.transAxes, va="center", color=ACCENT if ours else INK,
            fontweight="bold" if ours else "normal",
        )  # fmt: skip


def _ticks(axis: Axis, values: Sequence[float]) -> None:
    """Ticks at round figures of a logarithmic axis, written as figures, not as powers."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        places = [digit * 10.0**decade for decade in decades for digit in digits]
        shown = [place for place in places if low * 0.8 <= place <= high * 1.25]
        if len(shown) > 3:
            break
    _exact_ticks(axis, shown)


def _exact_ticks(axis: Axis, places: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
