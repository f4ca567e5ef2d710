"""The table of controls and the bus, against closed forms; the animator's list against the model's."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from hotloop.errors import InputError
from hotloop.live.bus import MOST_SOURCES, Bus
from hotloop.live.controls import ANIMATOR, ARKIT, CONTROLS, EXPRESSIONS, INDEX, NAMES, Face, expression
from hotloop.live.idle import Idle
from hotloop.live.one_euro import one_euro, share

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    spec = importlib.util.spec_from_file_location("avatar_controls", ROOT / "models/avatar/controls.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["avatar_controls"] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


# The table.


def test_the_animators_list_is_what_the_model_is_trained_on(model):
    assert [(c.name, c.low, c.high) for c in model.CONTROLS] == list(ANIMATOR)


def test_the_table_names_arkits_52_shapes_and_every_expression_once():
    assert len(ARKIT) == len(set(ARKIT)) == 52
    assert len(set(NAMES)) == len(NAMES) and set(ARKIT) | set(EXPRESSIONS) <= set(NAMES)
    assert all(c.low <= 0 <= c.high and c.low < c.high and c.timeout == 1 for c in CONTROLS)


def sample(**values) -> np.ndarray:
    told = np.zeros(len(CONTROLS), np.float32)
    for name, value in values.items():
        told[INDEX[name]] = value
    return told


def test_the_animators_vector_is_the_models_own_for_names_that_both_have(model):
    values = {"jawOpen": 0.4, "headYaw": -40.0, "headPitch": 6.0, "gazeY": -0.5, "happy": 0.75, "eyeBlinkLeft": 1.0}
    np.testing.assert_allclose(Face().vector(sample(**values)), model.to_vector(values), atol=1e-6)


def test_two_sided_shapes_and_looks_become_one_number():
    face = Face()
    told = dict(zip(face.names, face.vector(sample(
        mouthSmileLeft=0.2, mouthSmileRight=0.6, jawOpen=0.5, mouthClose=0.2, eyeLookOutLeft=0.8, eyeLookInRight=0.4,
        eyeLookDownLeft=0.5, eyeLookDownRight=0.5, headX=7.5, headY=-3.0,
    )), strict=True))  # fmt: skip
    expected = {"mouthSmile": 0.4, "jawOpen": 0.3, "gazeX": 0.6, "gazeY": -0.5, "shiftX": 0.5, "shiftY": 0.2}
    assert {name: told[name] for name in expected} == pytest.approx(expected)


def test_expressions_never_sum_to_more_than_one():
    face = Face()
    told = face.vector(sample(happy=1.0, sad=0.5, neutral=0.5))
    assert dict(zip(face.names, told, strict=True))["happy"] == pytest.approx(0.5)
    assert face.vector(sample(happy=0.3))[0] == pytest.approx(0.3)
    with pytest.raises(InputError, match=r"\[controls\] expression must be one of happy, .*, got 'joy'"):
        expression("joy")


def test_a_face_takes_a_bundles_own_table_and_refuses_what_the_bus_cannot_make():
    assert Face([["headYaw", -10, 10], ["mouthA", 0, 1]]).vector(sample(headYaw=5)).tolist() == [0.5, 0]
    with pytest.raises(InputError, match="earWiggle"):
        Face([["earWiggle", 0, 1]])


# The filter.


def one(x, past, speed, dt, cutoff, beta):
    filtered, speed = one_euro(*(np.array([float(v)]) for v in (x, past, speed, dt, cutoff, beta)))
    return filtered[0], speed[0]


def test_without_beta_the_filter_is_exponential_smoothing():
    """Step response of a first-order low-pass: 1 - (1 - a)^n with a = 1 / (1 + tau / dt)."""
    dt, cutoff = 1 / 60, 1.5
    a = 1 / (1 + 1 / (2 * math.pi * cutoff) / dt)
    assert share(cutoff, dt) == pytest.approx(a)
    past = speed = 0.0
    for n in range(1, 30):
        past, speed = one(1.0, past, speed, dt, cutoff, 0.0)
        assert past == pytest.approx(1 - (1 - a) ** n)


def test_on_a_ramp_the_lag_is_that_of_the_cutoff_that_speed_allows():
    """x = v t: the filtered speed tends to v, the lag of x to v tau with tau of cutoff + beta |v|."""
    v, dt, cutoff, beta = 3.0, 1 / 500, 1.0, 0.8
    past = speed = 0.0
    for n in range(1, 5000):
        past, speed = one(v * n * dt, past, speed, dt, cutoff, beta)
    # In steady state x - past is constant, so past grows by v dt each step: a (x - before) = v dt, before the step.
    lag_before = v * dt / share(cutoff + beta * speed, dt)
    assert speed == pytest.approx(lag_before / dt, rel=1e-3)
    assert v * 4999 * dt - past == pytest.approx(lag_before - v * dt, rel=1e-3)


# The bus.


def value(bus: Bus, t: float, name: str) -> float:
    return float(bus.sample(t)[INDEX[name]])


def quiet() -> Bus:
    bus = Bus(idle=False)
    for name in "abc":
        bus.join(name, smooth=False)
    return bus


def test_between_two_values_it_interpolates_and_beyond_extrapolates_within_a_bound():
    bus = quiet()
    bus.put("a", 1.0, {"headYaw": 0.0})
    value(bus, 1.0, "headYaw")
    bus.put("a", 1.1, {"headYaw": 10.0})
    ahead = CONTROLS[INDEX["headYaw"]].ahead
    assert value(bus, 1.05, "headYaw") == pytest.approx(5.0)
    assert value(bus, 1.1 + ahead / 2, "headYaw") == pytest.approx(10 + 100 * ahead / 2)
    assert value(bus, 1.9, "headYaw") == pytest.approx(10 + 100 * ahead)
    bus.put("a", 2.0, {"jawOpen": 0.2})
    bus.put("a", 2.01, {"jawOpen": 0.9})
    assert value(bus, 2.5, "jawOpen") == 1.0  # held in its range; the last step, .7, is the furthest


def test_smoothing_follows_the_table():
    bus = Bus(idle=False)
    c = CONTROLS[INDEX["headYaw"]]
    bus.put("a", 0.0, {"headYaw": 0.0})
    bus.put("a", 0.02, {"headYaw": 10.0})
    expected, _ = one(10.0, 0.0, 0.0, 0.02, c.cutoff, c.beta)
    assert value(bus, 0.02, "headYaw") == pytest.approx(expected)


def test_the_tables_numbers_calm_a_head_at_rest_and_prediction_brings_it_nearer_in_motion():
    """A tracker at 30 Hz with a quarter degree of noise, frames at 60: the errors are measured against the truth."""

    def error(size: float, *, smooth: bool, ahead: bool) -> float:
        rng, bus, n, errors = np.random.default_rng(0), Bus(idle=False), 0, []
        bus.join("a", smooth=smooth)
        for k in range(400):
            t = k / 60 + 0.004
            while n / 30 <= t:
                yaw = size * math.sin(1.6 * math.pi * n / 30) + 0.25 * rng.normal()
                bus.put("a", n / 30, {"headYaw": yaw})
                n += 1
            shown = value(bus, t, "headYaw") if ahead else bus._sources["a", "set"].v1[INDEX["headYaw"]]
            errors.append(shown - size * math.sin(1.6 * math.pi * t))
        return float(np.std(errors[60:]))

    assert error(0.0, smooth=True, ahead=True) < 0.5 * error(0.0, smooth=False, ahead=True)
    assert error(15.0, smooth=True, ahead=True) < 0.7 * error(15.0, smooth=True, ahead=False)
    assert error(15.0, smooth=True, ahead=True) < 1.0


def test_the_higher_priority_holds_and_among_equals_who_began_last():
    bus = quiet()
    bus.join("c", priority=1, smooth=False)
    for t in (0.0, 0.1):
        bus.put("a", t, {"jawOpen": 0.1})
        bus.put("b", t, {"jawOpen": 0.2})
    assert value(bus, 0.1, "jawOpen") == pytest.approx(0.2)
    bus.put("a", 0.2, {"jawOpen": 0.1})  # gives on, does not begin
    assert value(bus, 0.2, "jawOpen") == pytest.approx(0.2)
    bus.put("c", 0.3, {"jawOpen": 0.9})
    bus.put("b", 0.4, {"jawOpen": 0.2})
    value(bus, 0.4, "jawOpen")
    bus.put("c", 0.9, {"jawOpen": 0.9})
    bus.put("a", 0.9, {"jawOpen": 0.1})
    assert value(bus, 1.0, "jawOpen") == pytest.approx(0.9)
    bus.release("c")
    bus.sample(1.01)
    assert value(bus, 1.39, "jawOpen") == pytest.approx(0.2)  # b's is a second old in 10 ms
    bus.sample(1.41)
    assert value(bus, 1.7, "jawOpen") == pytest.approx(0.1)  # b lost it


def test_weights_let_the_next_one_show_and_added_values_add_up():
    bus = quiet()
    bus.put("a", 0.0, {"headYaw": 10.0})
    bus.put("b", 0.0, {"headYaw": 20.0}, weights={"headYaw": 0.3})
    assert value(bus, 0.0, "headYaw") == pytest.approx(10 + 0.3 * 10)
    bus.put("c", 0.1, {"headYaw": -4.0}, mode="add")
    bus.put("a", 0.1, {"headYaw": -1.0}, mode="add")
    bus.sample(0.1)
    assert value(bus, 0.9, "headYaw") == pytest.approx(13 - 5)
    with pytest.raises(InputError, match="mode must be set or add"):
        bus.put("a", 1.0, {}, mode="mul")


def test_a_lost_source_is_held_a_second_then_idle_then_back_without_a_jump():
    bus, idle, dt = Bus(seed=3), Idle(3), 1 / 120
    rows, at = [], np.arange(0.0, 6.0, dt)
    for t in at:
        if t < 1.0 or t >= 4.0:
            bus.put("a", t, {"headYaw": 20.0, "headPitch": -12.0})
        rows.append(bus.sample(t)[[INDEX["headYaw"], INDEX["headPitch"]]])
    yaw = np.array(rows)[:, 0]
    assert np.allclose(yaw[(at > 0.5) & (at < 1.98)], 20.0, atol=0.02)
    alone = np.array([idle.at(t)[INDEX["headYaw"]] for t in at])
    assert np.allclose(yaw[(at > 2.7) & (at < 4.0)], alone[(at > 2.7) & (at < 4.0)], atol=1e-4)
    assert np.allclose(yaw[at > 4.3], 20.0, atol=0.01)
    # Smoothstep's largest slope is 1.5 / its length: of 20 degrees in .15 s, of 20 in .6 s.
    assert np.abs(np.diff(yaw)).max() <= 1.1 * 1.5 * 20 / 0.15 * dt
    assert np.abs(np.diff(yaw[at < 4.0])).max() <= 1.15 * 1.5 * 21.6 / 0.6 * dt


def test_a_source_without_a_timeout_stays_and_eases_what_is_switched():
    bus = quiet()
    bus.join("page", smooth=False, timeout=math.inf)
    bus.put("page", 0.0, expression("neutral"))
    value(bus, 0.0, "happy")
    bus.put("page", 1.0, expression("happy"))
    assert [value(bus, t, "happy") for t in (1.0, 1.06, 1.12, 900.0)] == pytest.approx([0, 0.5, 1, 1])
    bus.put("a", 900.5, {"happy": 0.2})
    bus.put("a", 901.0, {"happy": 0.2})
    bus.sample(901.0)
    assert value(bus, 901.4, "happy") == pytest.approx(0.2)
    bus.put("page", 901.5, {"happy": 0.6})  # begins anew
    bus.put("a", 901.6, {"happy": 0.2})
    bus.sample(901.6)
    assert value(bus, 901.9, "happy") == pytest.approx(0.6)


def test_a_source_holds_what_it_gave_and_no_more():
    bus, idle = Bus(seed=1), Idle(1)
    bus.join("page", timeout=math.inf)
    bus.put("page", 0.0, {"happy": 1.0})
    rest = np.arange(len(CONTROLS)) != INDEX["happy"]
    for t in (0.0, 0.5, 30.0):
        np.testing.assert_allclose(bus.sample(t)[rest], idle.at(t)[rest], atol=1e-6)


def test_none_lets_go_of_a_control_without_a_jump_and_of_no_other():
    bus = Bus(idle=False)
    bus.join("page", smooth=False, timeout=math.inf)
    bus.put("page", 0.0, {"headYaw": 20.0, "mouthSmile": 0.5, "jawOpen": 1.0})
    assert bus.sample(0.98)[INDEX["headYaw"]] == 20
    assert bus.put("page", 1.0, {"headYaw": None, "mouthSmile": None, "noSuch": None}) is not None  # of noSuch alone
    told = [bus.sample(1.0 + k / 60) for k in range(60)]
    yaw = np.array([one[INDEX["headYaw"]] for one in told])
    assert yaw[0] > 19 and yaw[-1] == 0 and np.abs(np.diff(yaw)).max() < 3
    assert told[-1][INDEX["mouthSmileLeft"]] == told[-1][INDEX["mouthSmileRight"]] == 0
    assert told[-1][INDEX["jawOpen"]] == 1
    assert bus.snapshot(2.0)["sources"][0]["unknown"] == 1 and bus.snapshot(2.0)["sources"][0]["refused"] == 0
    bus.put("page", 2.1, {"headYaw": -10.0})
    assert bus.sample(4.0)[INDEX["headYaw"]] == -10


def test_bad_values_are_counted_and_answered_in_one_line_and_the_rest_counts():
    bus = quiet()
    line = bus.put("a", 0.0, {
        "jawOpen": math.nan, "headYaw": math.inf, "headRoll": 400.0, "mouthA": "wide", "mouthI": 10**400,
        "mouthU": [0.5], "earWiggle": 1.0, "mouthO": 0.5, "happy": -1,
    })  # fmt: skip
    assert line == (
        "[controls] a: held in their range: headRoll, happy; "
        "not finite numbers: jawOpen, headYaw, mouthA, mouthI, ...; no controls: earWiggle"
    )
    assert value(bus, 0.0, "mouthO") == 0.5 and value(bus, 0.0, "headRoll") == 45.0 and value(bus, 0.0, "jawOpen") == 0
    (told,) = bus.snapshot(0.0)["sources"]
    assert {k: told[k] for k in ("clamped", "refused", "unknown", "values", "late")} == {
        "clamped": 2, "refused": 5, "unknown": 1, "values": 3, "late": 0,
    }  # fmt: skip
    assert told["names"] == {"earWiggle": 1} and told["said"] == line
    assert bus.put("a", 0.1, {"mouthO": 0.5}) is None
    assert "times must be finite" in bus.put("a", math.nan, {"mouthO": 0.1})


def test_old_values_are_refused_until_the_clock_was_set_anew():
    bus = quiet()
    bus.put("a", 100.0, {"jawOpen": 0.5})
    assert "older than what is there: 1" in bus.put("a", 99.5, {"jawOpen": 0.9})
    assert value(bus, 100.0, "jawOpen") == 0.5
    bus.put("b", 1e9, {"jawOpen": 0.3})  # a clock that is far ahead does not hold forever
    assert value(bus, 100.05, "jawOpen") == 0.5
    assert bus.put("b", 100.1, {"jawOpen": 0.8}) is None
    bus.sample(100.2)
    assert value(bus, 100.5, "jawOpen") == pytest.approx(0.8)


def test_there_are_a_bounded_number_of_sources_and_silent_ones_make_room():
    bus = Bus(idle=False)
    for i in range(MOST_SOURCES):
        assert bus.put(f"s{i}", 0.0, {"jawOpen": 0.1}) is None
    assert "none is silent" in bus.put("late", 5.0, {"jawOpen": 0.1})
    assert bus.put("late", 11.0, {"jawOpen": 0.1}) is None
    assert len(bus.snapshot(11.0)["sources"]) == MOST_SOURCES
    for i in range(100):
        bus.put("late", 11.0, {f"n{i}": 1})
    assert len(bus.snapshot(11.0)["sources"][-1]["names"]) == 32


def test_the_monitor_sees_value_source_age_and_rate_and_changes_nothing():
    bus = quiet()
    for i in range(60):
        bus.put("a", i / 50, {"headYaw": 5.0})
    bus.put("b", 1.0, {"headYaw": 1.0}, mode="add")
    before = bus.sample(1.2)
    row = next(r for r in bus.snapshot(1.2)["controls"] if r["name"] == "headYaw")
    assert row["source"] == "a" and row["added"] == ["b"] and row["value"] == pytest.approx(6.0)
    assert row["age"] == pytest.approx(1.2 - 59 / 50) and row["rate"] == pytest.approx(50, rel=0.01)
    np.testing.assert_array_equal(bus.sample(1.2), before)
    with pytest.raises(InputError, match="a frame is not before the last one"):
        bus.sample(1.0)


def test_the_same_puts_and_times_give_the_same_bits():
    def once() -> np.ndarray:
        bus, rng = Bus(seed=5), np.random.default_rng(0)
        rows = []
        for i in range(200):
            if i % 50 < 20:
                bus.put("a", i / 30, {n: float(v) for n, v in zip(NAMES, rng.normal(size=len(NAMES)), strict=True)})
            rows.append(bus.sample(i / 30 + 0.01))
        return np.stack(rows)

    first = once()
    assert first.tobytes() == once().tobytes()
    assert np.isfinite(first).all()
    low, high = (np.array([getattr(c, k) for c in CONTROLS]) for k in ("low", "high"))
    assert (first >= low).all() and (first <= high).all()


# Idle life.


def test_idle_life_blinks_and_breathes_as_people_at_rest_do():
    idle = Idle(7)
    gaps = np.diff(idle.blinks(0, 7200))
    assert 15 <= 60 / gaps.mean() <= 20  # a minute; Bentivoglio et al. 1997: 17 at rest
    assert gaps.min() > 0.2 and gaps.max() < 16 and 0.4 < gaps.std() / gaps.mean() < 0.9
    times = np.arange(0, 120, 0.02)
    rows = np.stack([idle.at(t) for t in times])
    breath = rows[:, INDEX["breath"]]
    rises = ((breath[:-1] < 0.5) & (breath[1:] >= 0.5)).sum()
    assert 12 <= rises / 2 <= 18
    blink = rows[:, INDEX["eyeBlinkLeft"]]
    assert blink.max() > 0.95 and 0.02 < (blink > 0.5).mean() < 0.08
    moving = {"eyeBlinkLeft", "eyeBlinkRight", "breath", "headYaw", "headPitch", "headRoll", "headX", "gazeX", "gazeY"}
    assert {NAMES[i] for i in np.flatnonzero(np.abs(rows).max(0))} == moving
    assert np.abs(rows[:, INDEX["headYaw"]]).max() < 2 and np.abs(np.diff(rows[:, INDEX["headYaw"]])).max() < 0.05


def test_idle_life_is_of_its_seed_and_time_alone():
    one, other = Idle(1), Idle(2)
    late = one.at(1e6)
    assert np.array_equal(Idle(1).at(1e6), late) and not np.array_equal(one.at(50.0), other.at(50.0))
    assert one.blinks(10, 20) + one.blinks(20, 30) == one.blinks(10, 30)


# The page.


def tables() -> dict[str, list[str]]:
    """The rows of docs/live-controls.md that the code knows, under their headings."""
    from hotloop.live.sources.vmc import SHAPES
    from hotloop.live.sources.vtube_parameters import PARAMETERS
    from hotloop.live.sources.vtube_studio import ErrorID

    alike: dict[tuple, list[str]] = {}
    for c in CONTROLS:
        key = (c.unit, c.low, c.high, c.cutoff, c.beta, c.ahead, c.ease, c.timeout)
        alike.setdefault(key, []).append(f"`{c.name}`")
    rows = {"The table": [
        f"| {' '.join(names)} | {low:g}..{high:g} {unit} | {f'{cutoff:g}, {beta:g}' if cutoff else 'none'} | "
        f"{1000 * ahead:g} | {1000 * ease:g} | {timeout:g} |"
        for (unit, low, high, cutoff, beta, ahead, ease, timeout), names in alike.items()
    ]}  # fmt: skip
    by_face: dict[str, list[str]] = {}
    for shape, moves in SHAPES.items():
        if shape not in {name.lower() for name in moves}:
            told = " ".join(f"`{control}`" + f" x {factor:g}" * (factor != 1) for control, factor in moves.items())
            by_face.setdefault(told, []).append(f"`{shape}`")
    rows["VMC"] = [f"| {' '.join(names)} | {told} |" for told, names in by_face.items()]

    def term(control: str, factor: float, offset: float) -> str:
        return f"`{control}`" + f" = {factor:g} v{offset:+g}" * ((factor, offset) != (1, 0))

    rows["VTube Studio"] = [
        f"| `{p.name}` | {p.low:g}..{p.high:g} | {p.default:g} | {', '.join(term(*m) for m in p.moves) or 'nothing'} |"
        for p in PARAMETERS.values()
        if p.owner == "VTube Studio"
    ]
    rows["Errors"] = [f"| {int(e)} | `{e.name}` |" for e in ErrorID]
    return rows


def test_the_page_shows_the_tables_as_they_are():
    page = (ROOT / "docs" / "live-controls.md").read_text()
    for heading, rows in tables().items():
        part = page.split(f"## {heading}\n")[1].split("\n## ")[0]
        shown = [line for line in part.splitlines() if line.startswith("| ") and "`" in line]
        assert shown == rows, f"docs/live-controls.md, {heading}:\n" + "\n".join(rows)
