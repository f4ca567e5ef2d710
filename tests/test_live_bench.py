"""What benchmarks/live.py reckons with: signals and the frames that know of them, ledgers, OSC, THA4's arithmetic."""

from __future__ import annotations

import io

import numpy as np
import pytest
import wire
from peers import siren
from PIL import Image


def test_a_signal_has_arrived_with_the_first_frame_that_knows_of_it():
    counts, arrived = np.array([0, 1, 3, 3, 4]), np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    shown, when = wire.shown_by(counts, arrived, 5)
    assert shown.tolist() == [0, 1, 2, 3]  # the fifth came after the last frame had begun
    assert when.tolist() == [2.0, 3.0, 3.0, 5.0]


def told(**changes) -> wire.Wire:
    source = dict.fromkeys(("in", "shown", "superseded", "skipped", "refused", "failed", "in_flight"), 0)
    viewer = {"offered": 5, "acknowledged": 3, "superseded": 1, "unacknowledged": 1}
    stats = {"source": source | {"in": 4, "shown": 3, "superseded": 1}, "viewer": viewer}
    for part, name, value in changes.values():
        stats[part][name] = value
    return wire.Wire(np.zeros(4), np.array([1.0, 2, 3, 4]), 5, 1, 20, 100, 2.0, 0.5, 0.1, 0.0, [stats])


@pytest.mark.parametrize("wrong", [("source", "in", 5), ("viewer", "offered", 6), ("viewer", "unacknowledged", 3)])
def test_a_ledger_that_does_not_add_up_is_seen(wrong):
    assert told().balanced() and not told(wrong=wrong).balanced()
    assert told().rate == 10 and told().percentiles()["p50"] == 2.5


def test_datagrams_are_osc():
    osc = pytest.importorskip("pythonosc.osc_message", reason="the test extra brings it: make test")
    message = osc.OscMessage(wire._osc("/hotloop/jawOpen", 0.25))
    assert message.address == "/hotloop/jawOpen" and message.params == [0.25]


def test_the_students_work_is_as_published():
    """37.9 GFLOP a frame: Khungurn 2025's student, two multiply-adds a weight and pixel."""
    assert pytest.approx(37.9e9, rel=0.001) == siren.FLOPS


@pytest.mark.long
def test_its_graph_gives_pictures_that_the_pose_moves():
    pytest.importorskip("openvino", reason="the test extra brings it: make test")
    run = siren.student(1)
    frames = [run().copy() for _ in range(2)]
    assert frames[0].shape == (4, 512, 512) and all(np.isfinite(frame).all() for frame in frames)
    assert np.abs(frames[0] - frames[1]).max() > 1e-4


def test_a_run_is_drawn_with_its_percentiles():
    from reporting.latencies import latencies
    from reporting.plots import render

    rng = np.random.default_rng(0)
    series = {"controls to frame": (np.sort(rng.uniform(0, 60, 3000)), rng.gamma(4, 0.004, 3000))}
    png, _ = render(lambda: latencies(series), "live", "latency")
    with Image.open(io.BytesIO(png)) as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 16
