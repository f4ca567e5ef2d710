"""The picture of a live run: latency over time, and its distribution."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from .plots import MUTED, PALE, SERIES, WIDTH

__all__ = ["latencies"]

_MOST = 4000  # points that are drawn, of each


def latencies(series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """name -> (seconds from the begin, latencies in seconds). A row each: every signal and the percentiles of each
    hundredth of the run; counts, with the percentiles of the whole."""
    figure = Figure(figsize=(WIDTH, 2.1 * len(series)))
    axes = figure.subplots(len(series), 2, width_ratios=[3, 1], squeeze=False, sharey="row")
    for (name, (at, seconds)), (left, right), colour in zip(series.items(), axes, SERIES, strict=False):
        ms = 1e3 * np.asarray(seconds)
        left.set_title(name)
        if not len(ms):
            continue
        step = max(len(ms) // _MOST, 1)
        left.plot(at[::step], ms[::step], ".", color=PALE, markersize=2, rasterized=True)
        parts = [part for part in np.array_split(np.arange(len(ms)), min(100, max(len(ms) // 20, 1))) if len(part)]
        middles = [at[part].mean() for part in parts]
        for share, line in ((50, "-"), (99, "--")):
            values = [np.percentile(ms[part], share) for part in parts]
            left.plot(middles, values, line, color=colour, label=f"p{share}", linewidth=1.2)
        left.legend(loc="upper right", frameon=False, ncols=2)
        left.set_ylabel("ms")
        left.set_ylim(0, max(np.percentile(ms, 99.9) * 1.25, 1e-3))
        right.hist(ms, bins=60, range=(0, left.get_ylim()[1]), orientation="horizontal", color=colour, alpha=0.8)
        for share in (50, 99):
            value = float(np.percentile(ms, share))
            right.axhline(value, color=MUTED, linewidth=0.8)
            right.annotate(f"p{share} {value:.1f} ms", (1, value), xycoords=("axes fraction", "data"), ha="right",
                           va="bottom", color=MUTED, fontsize=8)  # fmt: skip
        right.set_xticks([])
    axes[-1, 0].set_xlabel("seconds")
    return figure
