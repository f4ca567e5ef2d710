"""The rules of a live session on a virtual clock: mailbox, stamps, ledgers, settings, governor, watchdog, skips."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from hotloop.errors import InputError, NonFiniteError
from hotloop.live.governor import Governor, Rung, restyle_ladder
from hotloop.live.ledgers import ENDS, ProducedLedger, SourceLedger, ViewerLedger
from hotloop.live.mailbox import Mailbox
from hotloop.live.settings import Settings
from hotloop.live.similarity import StandStill, similarity
from hotloop.live.stamps import Histogram, SenderClock, Stamp
from hotloop.live.watchdog import Watchdog


def noise(seed=0, side=8):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


# Mailbox.


def test_in_a_mailbox_the_newest_wins_and_nothing_queues():
    box = Mailbox()
    assert box.take() is None and not box.wait(0)
    assert [box.put(i) for i in range(3)] == [None, 0, 1] and len(box) == 1 and box.wait(0)
    assert box.take() == 2 and box.take() is None and not box.wait(0)


# Stamps.


def test_percentiles_are_numpys_within_a_class_and_never_below():
    rng = np.random.default_rng(0)
    for values in (rng.lognormal(-4, 1, 5000), rng.uniform(0.001, 0.02, 777), np.full(9, 0.004)):
        histogram = Histogram()
        for value in values:
            histogram.add(float(value))
        for share in (0.5, 0.95, 0.99):
            true = np.quantile(values, share, method="inverted_cdf")
            assert true * (1 - 1e-9) <= histogram.percentile(share) <= true * 1.0101
        assert histogram.summary()["max"] == values.max() and len(histogram) == len(values)


def test_jitter_follows_rfc_3550_and_is_nothing_for_equal_latencies():
    values, expected = [0.010, 0.014, 0.010, 0.020], 0.0
    for before, after in itertools.pairwise(values):
        expected += (abs(after - before) - expected) / 16
    histogram, even = Histogram(), Histogram()
    for value in values:
        histogram.add(value)
        even.add(0.01)
    assert histogram.jitter == pytest.approx(expected) and even.jitter == 0
    assert math.isnan(Histogram().percentile(0.5))


@pytest.mark.parametrize("seed", range(6))
def test_a_senders_clock_is_known_within_the_bound_that_is_told(seed):
    """Delays of any asymmetry, a drift of up to 100 ppm, lost pings."""
    rng = random.Random(seed)
    offset, drift, clock, now = rng.uniform(-1e4, 1e4), rng.uniform(-1e-4, 1e-4), SenderClock(), 50.0
    assert clock.offset(now) is None and clock.ours(1.0, now) is None
    for _ in range(200):
        now += 1.0
        there, back = rng.expovariate(1 / 0.004), rng.expovariate(1 / 0.02)
        if rng.random() < 0.8:
            answered = now + there
            clock.ping(now, answered + offset + drift * (answered - 50), now + there + back)
        later = now + there + back + rng.uniform(0, 1)
        if (found := clock.offset(later)) is not None:
            true = offset + drift * (later - 50)
            assert abs(found.seconds - true) <= found.error + 1e-6
            assert clock.ours(later + true, later) == pytest.approx(later, abs=found.error + 1e-6)
    assert "sender's clock" in str(found) and found.error < 0.01  # the smallest trips of 16 are far below the mean


def test_latency_counts_from_capture_or_is_labelled_as_from_receipt():
    stamp = Stamp(0, 1, 1, captured=1.0, received=1.2, taken=1.3)
    assert stamp.latency is None
    stamp.decoded = 1.5
    assert stamp.latency == pytest.approx(0.5) and stamp.since == "capture"
    stamp.sent = 1.6
    assert stamp.latency == pytest.approx(0.6)
    assert Stamp(0, 1, 1, received=1.2, decoded=1.5).since == "receipt"


# Ledgers.


def test_ledgers_balance_after_every_event_of_a_random_history():
    rng, source, viewer, produced = random.Random(1), SourceLedger(), ViewerLedger(), ProducedLedger()
    flying, sent = [], []
    for i in range(2000):
        what = rng.random()
        if what < 0.5:
            source.arrive(i)
            flying.append(i)
        elif flying:
            source.end(flying.pop(rng.randrange(len(flying))), rng.choice(ENDS))
        if rng.random() < 0.6:
            sent += [frame] if (frame := viewer.offer(i)) is not None else []
        elif viewer.unacknowledged:
            sent += [frame] if (frame := viewer.acknowledge()) is not None else []
        counts, seen = source.counts(), viewer.counts()
        assert counts["in"] == sum(counts[end] for end in ENDS) + counts["in_flight"]
        assert counts["in_flight"] == len(flying)
        assert seen["offered"] == seen["acknowledged"] + seen["superseded"] + seen["unacknowledged"]
        assert seen["unacknowledged"] <= 2
    assert sent == sorted(set(sent)) and seen["superseded"] > 0  # never an older frame
    produced.drawn, produced.held = 3, 2
    assert produced.counts()["produced"] == 5


def test_a_picture_has_one_end():
    ledger = SourceLedger()
    ledger.arrive(1)
    with pytest.raises(ValueError):
        ledger.arrive(1)
    with pytest.raises(ValueError):
        ledger.end(1, "lost")
    ledger.end(1, "shown")
    with pytest.raises(ValueError):
        ledger.end(1, "skipped")
    with pytest.raises(ValueError):
        ViewerLedger().acknowledge()


# Settings.


def settings_of(**given):
    """What is prepared is the request's prompt and steps; prompts that begin with ! cannot be prepared."""

    def check(request, blend):
        if request["width"] == 7:
            raise InputError("live", "width must fit", 7)

    def prepare(request, blend):
        if request.prompts[0].startswith("!"):
            raise InputError("live", "prompt must be encodable", request.prompts[0])
        return request.prompts[0], request["num_inference_steps"]

    return Settings({"prompt": "a"} | given, check=check, prepare=prepare)


def test_settings_change_whole_and_only_between_frames():
    settings = settings_of()
    assert settings.active.prepared == ("a", 2) and not settings.pending
    settings.set(prompt="b", steps=4)
    assert settings.pending and settings.swap() is None and settings.active.prepared == ("a", 2)
    settings.prepare()
    assert settings.active.prepared == ("a", 2)
    assert settings.swap() is settings.active and settings.active.prepared == ("b", 4) and settings.swap() is None


def test_in_a_storm_no_value_is_lost_and_only_the_newest_sum_is_prepared():
    settings = settings_of()
    for i in range(100):
        settings.set(prompt=f"p{i}") if i % 2 else settings.set(steps=1 + i % 4)
    settings.prepare()
    assert settings.swap().prepared == ("p99", 3) and settings.active.number == 101 and not settings.pending


@pytest.mark.parametrize("given, message", [
    ({"stepps": 3}, r"\[live\] stepps is no argument: did you mean steps\?"),
    ({"guidance_scale": -1}, r"\[live\] guidance_scale must be a number in 0..1000, got -1"),
    ({"strength": 0}, r"\[live\] strength must be a number in 0.01..1, got 0"),
    ({"cfg_type": "half"}, r"\[live\] cfg_type must be one of none, full, self, initialize, got 'half'"),
    ({"steps": 3, "num_inference_steps": 4}, r"must not both tell num_inference_steps"),
    ({"prompt": ["a", "b"]}, r"\[live\] a session shows one image"),
    ({"callback": print}, r"\[live\] a session takes no callback"),
    ({"size": (1, 2, 3)}, r"\[live\] size must be \(width, height\)"),
    ({"width": 7}, r"\[live\] width must fit, got 7"),
    ({"blend": -1}, r"\[live\] blend must be a whole number"),
    ({"guidance_scale": 2.0, "cfg_type": "self", "negative_prompt": "x"}, r"self does not read negative_prompt: set"),
])  # fmt: skip
def test_a_refused_setting_keeps_the_old_version_and_tells_in_one_line(given, message):
    settings = settings_of()
    with pytest.raises(InputError, match=message) as refused:
        settings.set(**given)
    assert "\n" not in str(refused.value) and settings.refusal == str(refused.value) and settings.refused == 1
    assert not settings.pending and settings.active.number == 1
    settings.set(seed=5)  # nothing of it stuck
    settings.prepare()
    assert settings.swap().prepared == ("a", 2)


def test_what_cannot_be_prepared_is_refused_and_later_changes_begin_from_the_old():
    settings = settings_of()
    settings.set(prompt="!", steps=4)
    settings.prepare()
    assert settings.swap() is None and settings.refused == 1 and "encodable" in settings.refusal
    settings.set(guidance_scale=2.0)
    settings.prepare()
    assert settings.swap().prepared == ("a", 2)


def test_aliases_and_sizes_are_the_tables_and_a_random_seed_is_drawn_once():
    settings = settings_of(seed=-1, size=96)
    seed = settings.active.request.seeds[0]
    settings.set(num_inference_steps=3, size=(64, 128))
    settings.prepare()
    request = settings.swap().request
    assert request.seeds == [seed] and (request["width"], request["height"]) == (64, 128)
    settings.touch()
    assert settings.pending
    settings.prepare()
    assert settings.swap().prepared == ("a", 3)


# Governor.

COSTS = (0.030, 0.016, 0.009, 0.005)  # of each rung, at load 1
INTERVAL = 1 / 30


def governed(costs=COSTS):
    governor = Governor([Rung(f"r{i}", {}) for i in range(len(costs))], INTERVAL)
    for rung, cost in zip(governor.ladder, costs, strict=True):
        governor.warm(rung, cost)
    return governor


def drive(governor, load, seconds, *, costs=COSTS, start=0.0):
    """load(t): what costs are multiplied by -> (time, rung, cost over the interval) of each frame."""
    seen, t = [], start
    while t < start + seconds:
        cost = costs[int(governor.rung.name[1:])] * load(t)
        seen.append((t, governor.rung.name, cost > INTERVAL))
        governor.frame(t, cost)
        t += max(cost, INTERVAL)
    return seen


def test_two_misses_in_thirty_frames_go_down_and_one_does_not():
    governor = governed()
    for i in range(90):
        assert governor.frame(i * INTERVAL, 0.05 if i in (10, 41) else 0.02) is None
    assert governor.frame(90 * INTERVAL, 0.05) is None
    move = governor.frame(91 * INTERVAL, 0.05)
    assert (move.left, move.taken) == ("r0", "r1") and "2 of the last 30 frames" in move.reason


def test_up_needs_three_seconds_and_a_cost_below_seventy_per_cent():
    governor = governed()
    governor.frame(0.0, 1.0)
    governor.frame(0.1, 1.0)
    seen = drive(governor, lambda t: 0.5, 4.0, start=0.1)
    ups = [t for t, rung, _ in seen if rung == "r0"]
    assert ups and 3.0 <= ups[0] - 0.1 <= 3.2
    tight = governed()
    tight.frame(0.0, 1.0)
    tight.frame(0.1, 1.0)
    assert {rung for _, rung, _ in drive(tight, lambda t: 0.8, 60.0, start=0.1)} == {"r1"}  # 24 ms of 33 is 72 %


def test_a_step_of_load_settles_on_the_best_rung_that_holds_and_comes_back():
    governor = governed()
    seen = drive(governor, lambda t: 2.5 if 10 <= t < 40 else 0.6, 60.0)
    during = [rung for t, rung, _ in seen if 15 <= t < 40]
    assert set(during) == {"r2"} and seen[0][1] == seen[-1][1] == "r0"
    assert sum(late for t, _, late in seen if t >= 12) == 0
    assert sum(governor.counts.values()) == 4 and all(move.reason for move in governor.moves)


def test_on_a_ramp_it_goes_down_rung_by_rung_and_never_misses_twice_on_one():
    governor = governed()
    seen = drive(governor, lambda t: 0.5 + t / 20, 80.0)
    rungs = [rung for _, rung, _ in seen]
    assert rungs == sorted(rungs) and rungs[-1] != "r0"
    for rung in set(rungs) - {"r3"}:
        assert sum(late for _, at, late in seen if at == rung) <= 2


def test_single_spikes_change_nothing():
    governor = governed()
    seen = drive(governor, lambda t: 5.0 if int(t / INTERVAL) % 60 == 0 else 0.7, 60.0)
    assert {rung for _, rung, _ in seen} == {"r0"} and sum(late for _, _, late in seen) > 20


@pytest.mark.parametrize("seed", range(3))
def test_under_any_constant_load_it_does_not_oscillate(seed):
    """Even where its idea of the rungs' costs is wrong by a factor: few moves in ten minutes, most of them early."""
    rng = random.Random(seed)
    true = sorted((rng.uniform(0.002, 0.06) for _ in range(4)), reverse=True)
    governor = governed(tuple(cost * rng.uniform(0.3, 3) for cost in true))
    seen = drive(governor, lambda t: rng.gauss(1, 0.05), 600.0, costs=true)
    assert sum(governor.counts.values()) <= 24
    late = [t for t, _, missed in seen if missed]
    if true[-1] < 0.8 * INTERVAL:  # the last rung holds
        assert sum(t > 300 for t in late) <= 8


def test_a_rung_that_is_dearer_than_it_seemed_is_tried_less_and_less():
    true, believed = (0.040, 0.015), (0.020, 0.015)
    governor = governed(believed)
    seen = drive(governor, lambda t: 1.0, 600.0, costs=true)
    assert 4 <= sum(governor.counts.values()) <= 20  # every three seconds it would be nearly 400
    assert sum(late for t, _, late in seen if t > 300) <= 4


def test_a_cold_rung_is_never_taken():
    governor = Governor([Rung("r0", {}), Rung("cold", {}), Rung("r2", {})], INTERVAL)
    with pytest.raises(InputError, match=r"\[live.governor\] a rung must be warmed before frames are made on it"):
        governor.frame(0.0, 0.01)
    governor.warm(governor.ladder[0], 0.03)
    governor.frame(0.0, 1.0)
    assert governor.frame(0.1, 1.0) is None  # nowhere to go
    governor.warm(governor.ladder[2], 0.01)
    assert governor.frame(0.2, 1.0).taken == "r2"
    assert "cold" not in {move.taken for move in governor.moves}
    with pytest.raises(InputError, match="a ladder must have a rung"):
        Governor([], 1.0)


def test_the_ladder_of_restyle_gives_up_rows_then_size_then_the_vae_then_the_rate():
    ladder = restyle_ladder(4, 128, tiny=True)
    names = ["asked", "rows 2", "rows 1", "size 96", "size 64", "tiny VAE", "half rate"]
    assert [rung.name for rung in ladder] == names
    assert ladder[4].changes == {"num_inference_steps": 1, "width": 64, "height": 64} and ladder[-1].intervals == 2
    assert [rung.name for rung in restyle_ladder(1, 64)] == ["asked", "half rate"]


# Watchdog.


def raising():
    raise NonFiniteError("vae_decoder", "image must be finite")


@pytest.mark.parametrize("broken, fault", [
    (raising, "non-finite"), (lambda: np.zeros((8, 8, 3), np.uint8), "black"),
    (lambda: np.full((8, 8, 3), 90, np.uint8), "constant"),
])  # fmt: skip
def test_a_broken_frame_is_made_again_once_and_else_the_last_good_one_is_held(broken, fault):
    dog, good, second = Watchdog(), noise(1), noise(2)
    assert dog.see(broken, None, moved=True).pixels is None  # there is none yet
    assert np.array_equal(dog.see(lambda: good, None, moved=True).pixels, good)
    calls = []
    seen = dog.see(broken, lambda: calls.append(1) or second, moved=True)
    assert np.array_equal(seen.pixels, second) and seen.again and not seen.held and seen.fault == fault
    held = dog.see(broken, lambda: calls.append(1) or broken(), moved=True)
    assert held.held and held.pixels is seen.pixels and len(calls) == 2 and dog.counts == {fault: 3}


def test_a_frozen_picture_is_a_fault_only_while_the_controls_move():
    still, moving, same = Watchdog(), Watchdog(), noise(3)
    faults = [(still.see(lambda: same, None, moved=False).fault, moving.see(lambda: same, None, moved=True).fault)
              for _ in range(12)]  # fmt: skip
    assert {one for one, _ in faults} == {""} and faults[7][1] == "" and faults[8][1] == "frozen"
    other = noise(4)
    assert np.array_equal(moving.see(lambda: same, lambda: other, moved=True).pixels, other)
    assert moving.see(lambda: noise(5), None, moved=True).fault == ""


# Similarity.


def test_a_still_source_is_skipped_at_most_n_in_a_row_and_slow_changes_add_up():
    filt, base = StandStill(), np.full((8, 8, 3), 100, np.uint8)
    assert [filt.skips(base, 0.99, 3) for _ in range(9)] == [False, True, True, True, False, True, True, True, False]
    slow = StandStill()
    drawn = [not slow.skips(base + np.uint8(i), 0.98, 1000) for i in range(20)]  # 0.98: 5.1 levels
    assert [i for i, one in enumerate(drawn) if one] == [0, 6, 12, 18]
    assert not StandStill().skips(base, 1.0, 9)
    never = StandStill()
    assert not any(never.skips(base, 1.0, 9) for _ in range(3))
    filt.reset()
    assert not filt.skips(base, 0.99, 3) and not filt.skips(noise(1, 16), 0.0, 99)


def test_similarity_is_one_minus_the_rms_difference():
    a, b = noise(1), noise(2)
    theirs = 1 - np.sqrt(((a.astype(float) - b) ** 2).mean()) / 255
    assert similarity(a, b) == pytest.approx(theirs, abs=1e-6) and similarity(a, a) == 1
