"""What a table shows of one line: its name, a parameter, how its output stands, memory, floor, quality."""

from __future__ import annotations

from .measures import measure, quality
from .results import Line
from .tables import NONE, Cell, memory, percent

__all__ = ["SHARED", "floor", "name", "output", "param", "peak", "quality_of", "shares"]

SHARED = "Memory with *: the process held other cases too."


def name(line: Line) -> Cell:
    return Cell(line["case"], mark="ours" if line.ours else "")


def param(line: Line, known: str) -> Cell:
    value = line.params.get(known)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float):
        return Cell(f"{value:,}" if isinstance(value, int) else f"{value:g}", value)
    return NONE if value is None else Cell(str(value))


def output(line: Line) -> Cell:
    """How the output stands to the baseline's, or why there is none."""
    if line["error"] is not None:
        return Cell(f"not measured: {line['error']}", mark="bad")
    check = line["check"]
    if check is None:
        return Cell("baseline") if line["baseline"] == line["case"] else NONE
    form = "{:.1f} dB" if check["what"].endswith(" dB") else "{:.5f}" if check["what"] == "cosine" else "{:.5g}"
    value, limit = (None if one is None else form.format(one) for one in (check["value"], check["limit"]))
    told = f"{check['what'].removesuffix(' dB')} {value or ('infinite' if check['ok'] else 'not finite')}"
    return Cell(told, check["value"]) if check["ok"] else Cell(f"DIFFERS: {told}, limit {limit}", mark="bad")


def floor(line: Line) -> Cell:
    return percent(line["floor"] and line["floor"]["share"])


def peak(line: Line) -> Cell:
    """Peak memory of the process and, where there is one, of the device; * beside what others share."""
    peaks = line["memory"]
    host, device = memory(peaks["peak_rss_bytes"]), memory(peaks["peak_device_bytes"])
    if host is NONE:
        return device
    star = "" if peaks["alone"] else "*"
    return Cell(host.text + star + ("" if device is NONE else f", device {device.text}"), host.sort)


def shares(line: Line) -> bool:
    """Whether its memory is also that of others."""
    return line["memory"]["peak_rss_bytes"] is not None and not line["memory"]["alone"]


def quality_of(line: Line, known: str) -> Cell:
    value = quality(line, known)
    return NONE if value is None else Cell(measure(known).write(value), value)
