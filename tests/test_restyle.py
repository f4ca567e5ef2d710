"""Live sessions that redraw pictures: against img2img, against the paper's equations, alone and together, replayed."""

from __future__ import annotations

import itertools
import math
import random
import threading
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from doubles.live_pipeline import Autoencoder, PipelineDouble, Unet, network, words

from hotloop.errors import BundleError, InputError
from hotloop.live import CONTROLS, Bus, Recording, Stage, choose_depth
from hotloop.live import replay as replayed
from hotloop.live.conditions import slerp
from hotloop.live.residual import KEPT, with_residual
from hotloop.noise import SeededNoise, normal
from hotloop.samplers import build
from hotloop.samplers.schedule import Schedule

SIDE = 32


def picture(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def stage_of(double: PipelineDouble, **given) -> Stage:
    return Stage(double, clock=double.clock, **given)


def opened(double: PipelineDouble, recording: Recording | None = None, **given):
    return stage_of(double, recording=recording).open(size=SIDE, **given)


def made(session, pictures):
    """Every picture pushed and drawn, one after another, as many in flight as the session's depth allows."""
    frames = []
    for one in pictures:
        session.push(one)
        while len(session.inbox):
            session.stage.tick()
            frames += [session.outbox.take()] if len(session.outbox) else []
    session.close()
    return frames + list(session.frames())


# The paper's equations (Kodaira et al. 2023, section 3.2; LCM: Luo et al. 2023, algorithm 3), written by themselves.


def paper(known, start, steps_noise, *, evaluations, strength, prompt, negative, gamma, delta, form):
    """Latents float64 of one picture: known [1, C, h, w], its starting noise and the noise after each step."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    whole = max(math.ceil(evaluations / strength), evaluations)
    distilled = (np.arange(1, 51) * 20 - 1)[::-1]
    taus = distilled[np.floor(np.linspace(0, 50, whole, endpoint=False)).astype(int)][whole - evaluations :]

    def eps_theta(x, tau, text):
        return network(x, np.array([float(tau)]), words(text))

    def a(tau):
        return alpha_bar[tau]

    x_0 = known.astype(np.float64)
    x = math.sqrt(a(taus[0])) * x_0 + math.sqrt(1 - a(taus[0])) * start
    towards = x_0  # what the virtual residual noise points to
    for i, tau in enumerate(taus):
        eps_c = eps_theta(x, tau, prompt)
        if form == "none":
            eps = eps_c
        elif form == "full":
            eps_n = eps_theta(x, tau, negative)
            eps = eps_n + gamma * (eps_c - eps_n)
        else:
            if form == "initialize" and i == 0:
                eps_n = eps_theta(x, tau, negative)
                towards = (x - math.sqrt(1 - a(tau)) * eps_n) / math.sqrt(a(tau))
            virtual = (x - math.sqrt(a(tau)) * towards) / math.sqrt(1 - a(tau))
            eps = delta * virtual + gamma * (eps_c - delta * virtual)
        predicted = (x - math.sqrt(1 - a(tau)) * eps) / math.sqrt(a(tau))
        scaled = 10.0 * tau
        x = 0.25 / (scaled**2 + 0.25) * x + scaled / math.sqrt(scaled**2 + 0.25) * predicted
        if i < len(taus) - 1:
            following = taus[i + 1]
            x = math.sqrt(a(following)) * x + math.sqrt(1 - a(following)) * steps_noise[i]
    return x


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("evaluations", [1, 2, 4])
@pytest.mark.parametrize("form", ["none", "full", "self", "initialize"])
def test_every_guidance_form_is_the_papers_from_the_first_frame_to_the_steady_state(form, evaluations, depth):
    double = PipelineDouble()
    negative = "blurred" if form in ("full", "initialize") else ""
    session = opened(
        double, depth=depth, steps=evaluations, strength=0.5, prompt="a face", negative_prompt=negative,
        guidance_scale=1.8, delta=0.7, cfg_type=form, seed=7,
    )  # fmt: skip
    stream, shape = SeededNoise([7]), (4, SIDE // 4, SIDE // 4)
    posterior, start = stream.normal(shape), stream.normal(shape)
    after = [stream.normal(shape) for _ in range(evaluations - 1)]
    pictures = [picture(seed) for seed in range(6)]
    frames = made(session, pictures)
    assert len(double.autoencoder.latents) == len(pictures)
    assert [frame.stamp.source for frame in frames] == list(range(6))
    for one, ours in zip(pictures, double.autoencoder.latents, strict=True):
        pixels = (one.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
        known = np.concatenate([pixels[:, :, ::4, ::4], pixels[:, :1, ::4, ::4]], axis=1) + 0.05 * posterior
        theirs = paper(
            known, start, after, evaluations=evaluations, strength=0.5, prompt="a face", negative=negative,
            gamma=1.8, delta=0.7, form=form,
        )  # fmt: skip
        assert np.abs(ours - theirs).max() <= 1e-3
    extra = {"none": 0, "self": 0, "full": evaluations, "initialize": 1}[form]
    assert double.evaluations == len(pictures) * (evaluations + extra)


def test_guidance_forms_and_the_negative_prompt_differ():
    """Or the test above could not tell them apart."""
    results = {}
    for form, negative in [("none", ""), ("full", "a"), ("full", "b"), ("self", ""), ("initialize", "a")]:
        double = PipelineDouble()
        session = opened(double, prompt="x", negative_prompt=negative, cfg_type=form, guidance_scale=2.0, delta=0.5)
        made(session, [picture(1)])
        results[form, negative] = double.autoencoder.latents[0]
    found = list(results.values())
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(found) for b in found[:i])


# Settings, in a session.

BEGUN = {"prompt": "a", "negative_prompt": "n", "guidance_scale": 2.0, "seed": 3, "steps": 4, "size": SIDE}


def latents_alone(settings, pictures):
    double = PipelineDouble()
    made(stage_of(double).open(**settings), pictures)
    return double.autoencoder.latents


@pytest.mark.parametrize("change", [
    {"negative_prompt": "other"}, {"prompt": "other"}, {"guidance_scale": 3.0}, {"guidance_scale": 1.0}, {"seed": 9},
    {"cfg_type": "initialize"}, {"steps": 1}, {"strength": 0.9}, {"size": 48}, {"sampler": "ddim"},
    {"negative_prompt": "", "cfg_type": "self", "delta": 0.3},
], ids=str)  # fmt: skip
def test_after_a_change_frames_are_those_of_a_session_that_began_so_and_those_in_flight_end_as_they_began(change):
    double = PipelineDouble()
    session = stage_of(double).open(depth=2, **BEGUN)
    session.push(picture(0))
    session.stage.tick()
    number = session.set(**change)
    assert session.flying == [0]
    session.push(picture(1))
    frames = list(session.frames(wait=0))
    assert {frame.stamp.version for frame in frames} <= {1, number}
    before, after = latents_alone(BEGUN, [picture(0)])[0], latents_alone(BEGUN | change, [picture(1)])[0]
    found = double.autoencoder.latents
    assert len(found) == 2
    assert any(np.array_equal(one, before) for one in found) and any(np.array_equal(one, after) for one in found)


def test_a_refused_change_in_a_stream_loses_nothing():
    session = opened(PipelineDouble(), prompt="a", seed=1)
    for bad in ({"sampler": "nope"}, {"size": 30}, {"steps": 60}, {"sampler": "plms", "steps": 0}, {"width": 1 << 20}):
        with pytest.raises(InputError):
            session.set(**bad)
    frames = made(session, [picture(0), picture(1)])
    assert [frame.stamp.version for frame in frames] == [1, 1] and session.stats()["refused"] == 5


def test_a_sampler_that_needs_every_state_is_refused_residual_guidance():
    table = PipelineDouble().table("lcm", 2)
    update = table.update.copy()
    update[0, 0, KEPT] = 0.5
    with pytest.raises(InputError, match=r"\[live\] lcm leaves no state for residual guidance: use lcm, tcd or ddim"):
        with_residual(replace(table, update=update), "epsilon", 1.0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", ["lcm", "ddim", "euler", "dpmpp_2m"])
def test_the_virtual_output_leads_back_to_the_known_picture_whatever_is_predicted(sampler, prediction):
    """x of any level, known x_0: the output that a network would give if it knew x_0, in float64."""
    schedule = Schedule.from_config({"prediction_type": prediction})
    options = {"clip_sample": False} if sampler == "ddim" else {}
    table = with_residual(build(sampler, schedule, 4, **options), prediction, 1.0)
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 9))
    levels = [(table.start_img, table.start_eps), *zip(table.k_img[:-1], table.k_eps[:-1], strict=True)]
    for row, (img, noise) in zip(table.residual, levels, strict=True):
        x = img * x0 + noise * eps
        alpha, sigma = np.array([img, noise]) / np.hypot(img, noise)
        wanted = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction]
        assert np.allclose(row[0] * x + row[KEPT] * x0, wanted, rtol=1e-4, atol=1e-4)
        assert not row[1:KEPT].any()


def test_a_blend_slides_from_where_it_is_and_ends_exactly_there():
    double = PipelineDouble()
    session = opened(double, prompt="a", seed=1, steps=1)
    made_by = latents_alone({"prompt": "a", "seed": 1, "steps": 1, "size": SIDE}, [picture(0)])[0]
    there = latents_alone({"prompt": "b", "seed": 2, "steps": 1, "size": SIDE}, [picture(0)])[0]
    session.push(picture(0))
    session.stage.tick()
    session.set(prompt="b", seed=2, blend=8)
    for _ in range(10):
        session.push(picture(0))
        session.stage.tick()
    found = double.autoencoder.latents
    assert np.array_equal(found[0], made_by)
    assert np.array_equal(found[8], there) and np.array_equal(found[10], there)
    path = [float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(found[:9])]
    assert max(path) < 2 * np.mean(path) and not np.array_equal(found[7], there)
    # Another way in the middle begins where the first one was.
    session.set(prompt="a", seed=1, blend=4)
    session.push(picture(0))
    session.stage.tick()
    session.set(prompt="c", seed=3, blend=100)
    session.push(picture(0))
    session.stage.tick()
    assert np.linalg.norm(found[12] - found[11]) < 0.2 * np.linalg.norm(found[11] - found[10])
    with pytest.raises(InputError, match=r"\[live\] blend needs the size, the sampler and the steps to stay"):
        session.set(steps=2, blend=3)


def test_slerp_has_exact_ends_even_steps_and_the_closed_form_on_a_circle():
    a, b = normal(1, (4, 6)), normal(2, (4, 6))
    x, y = np.array([1.0, 0], np.float32), np.array([0, 1.0], np.float32)
    for t in (0.25, 0.5, 0.9):
        assert np.allclose(slerp(x, y, t), [np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)], atol=1e-6)
    assert np.allclose(slerp(a, b, 0.0), a, atol=1e-6) and np.allclose(slerp(a, b, 1.0), b, atol=1e-6)
    assert np.array_equal(slerp(a, a, 0.3), a) and np.allclose(slerp(np.zeros_like(a), b, 0.5), b / 2)


def test_prompts_are_encoded_off_the_frame_path_and_frames_go_on_meanwhile():
    """The executor is held back by hand: frames are drawn with the old version until it has done its work."""

    class Later:
        def __init__(self):
            self.work = []

        def submit(self, do):
            future = Future()
            self.work.append((do, future))
            return future

        def run(self):
            for do, future in self.work:
                do()
                future.set_result(None)
            self.work = []

    double, later = PipelineDouble(), Later()
    session = Stage(double, clock=double.clock, background=later).open(prompt="a", size=SIDE)
    for i in range(5):
        session.set(prompt=f"b{i}")
        session.push(picture(i))
        while session.stage.tick():
            pass
        assert session.outbox.take().stamp.version == 1
    assert double.conditioning.encoded == ["a"] and len(later.work) == 1
    later.run()
    session.push(picture(9))
    while session.stage.tick():
        pass
    assert session.outbox.take().stamp.version == 6 and double.conditioning.encoded == ["a", "b4"]


def test_when_the_engines_change_frames_begin_with_the_new_ones():
    double = PipelineDouble()
    session = opened(double, prompt="a")
    made_first = session.prepared.networks
    double.networks = double.others()
    session.push(picture(0))
    session.stage.tick()
    assert session.prepared.networks is double.networks is not made_first and session.settings.active.number == 2


# Pictures.


def test_the_newest_picture_wins_and_the_ledger_balances():
    session = opened(PipelineDouble(), prompt="a", steps=2)
    for i in range(5):
        session.push(picture(i))
    counts = session.stats()["source"]
    assert counts == {"in": 5, "shown": 0, "superseded": 4, "skipped": 0, "refused": 0, "failed": 0, "in_flight": 1}
    with pytest.raises(InputError, match=r"\[live\]"):
        session.push(np.zeros((3, 3, 7), np.uint8))
    session.push(picture(5, side=20))  # another size in mid-stream
    frames = list(session.frames(wait=0))
    session.close()
    assert [frame.stamp.source for frame in frames] == [6] and frames[0].pixels.shape == (SIDE, SIDE, 3)
    counts = session.stats()["source"]
    assert counts["in"] == 7 == counts["shown"] + counts["superseded"] + counts["refused"] and not counts["in_flight"]
    with pytest.raises(InputError, match="a closed session takes no pictures"):
        session.push(picture(0))


def test_another_thread_may_push_and_set_while_frames_are_drawn():
    session = opened(PipelineDouble(), prompt="a", steps=2, depth=2)

    def camera():
        for i in range(150):
            session.push(picture(i % 5))
            if i % 10 == 0:
                session.set(prompt=f"p{i}")
        session.close()

    pushing = threading.Thread(target=camera)
    pushing.start()
    frames = [frame.stamp for frame in session.frames()]
    pushing.join()
    counts = session.stats()["source"]
    assert counts["in"] == 150 == counts["shown"] + counts["superseded"] and counts["in_flight"] == 0
    assert [one.source for one in frames] == sorted({one.source for one in frames})
    assert [one.version for one in frames] == sorted(one.version for one in frames)


def test_a_source_that_stands_still_is_not_redrawn():
    double = PipelineDouble()
    session = opened(double, prompt="a", similarity=0.99, similarity_most=3, steps=1)
    frames = made(session, [picture(0)] * 9)
    counts = session.stats()["source"]
    assert len(frames) == counts["shown"] == 3 and counts["skipped"] == 6 and double.evaluations == 3


def test_frames_end_where_nothing_comes_in_time_and_a_dream_needs_no_source():
    session = opened(PipelineDouble(), prompt="a")
    session.push(picture(0))
    assert [frame.stamp.source for frame in session.frames(wait=0)] == [0]
    dream = opened(PipelineDouble(), prompt="a", source=False, drift=4, seed=5, steps=1)
    with pytest.raises(InputError, match="a dream takes no pictures"):
        dream.push(picture(0))
    frames = dream.frames()
    seen = [next(frames).pixels for _ in range(9)]
    assert not np.array_equal(seen[0], seen[1]) and len(dream.stage.pipeline.autoencoder.latents) == 9
    ahead = opened(PipelineDouble(), prompt="a", source=False, drift=0, seed=6, steps=1)
    assert np.array_equal(next(ahead.frames()).pixels, seen[4])  # one seed on
    with pytest.raises(InputError, match="a dream has none"):
        dream.set(cfg_type="self", guidance_scale=2.0)


@pytest.mark.parametrize("evaluations, depth, latency, period", [(4, 1, 4, 4), (4, 2, 8, 4), (4, 4, 16, 4)])
def test_depth_adds_the_latency_that_is_told(evaluations, depth, latency, period):
    """On the double a row costs a second wherever it runs: what depth d adds is (d - 1) E seconds."""
    double = PipelineDouble(cost=1.0)
    session = opened(double, prompt="a", steps=evaluations, depth=depth)
    frames = made(session, [picture(i) for i in range(10)])
    steady = frames[3:-4]
    assert {round(frame.stamp.decoded - frame.stamp.taken) for frame in steady} == {latency}
    taken = [frame.stamp.taken for frame in steady]
    assert {round(b - a) for a, b in itertools.pairwise(taken)} == {period}
    costs = {d: float(d) for d in (1, 2, 4)}
    assert all(len(frame.stamp.rows) == evaluations for frame in frames)
    assert choose_depth(costs, evaluations, 4.0) == (1, 0.0)
    assert latency - 4 == evaluations * (costs[depth] - costs[1])


def test_the_depth_is_the_smallest_that_is_fast_enough():
    costs = {1: 0.010, 2: 0.012, 4: 0.016}
    assert choose_depth(costs, 4, 0.050) == (1, 0.0)
    assert choose_depth(costs, 4, 0.030) == (2, pytest.approx(0.008))
    assert choose_depth(costs, 4, 0.017) == (4, pytest.approx(0.024))
    assert choose_depth(costs, 4, 0.001)[0] == 4 and choose_depth(costs, 2, 0.001)[0] == 2


def test_a_depth_can_be_chosen_by_timing_and_what_it_adds_is_told():
    """On the double a row costs 10 ms wherever it runs, so more in flight makes no more frames."""
    session = opened(PipelineDouble(cost=0.010), prompt="a", steps=4, depth=None, interval=0.001)
    assert session.depth == 1 and session.stats()["added_latency"] == 0


def test_controls_are_sampled_at_each_frames_time_and_stand_in_its_stamp():
    double, bus = PipelineDouble(cost=0.1), Bus()
    session = stage_of(double).open(prompt="a", size=SIDE, controls=bus)
    bus.put("test", 0.0, {"jawOpen": 0.5})
    frames = made(session, [picture(0), picture(1)])
    assert [len(frame.stamp.controls) for frame in frames] == [len(CONTROLS)] * 2
    alone = Bus()
    alone.put("test", 0.0, {"jawOpen": 0.5})
    expected = [alone.sample(frame.stamp.taken) for frame in frames]
    assert all(np.array_equal(frame.stamp.controls, one) for frame, one in zip(frames, expected, strict=True))
    assert not np.array_equal(expected[1], Bus().sample(frames[1].stamp.taken))  # what was put is in it


# Sessions together.

VIEWERS = [
    {"prompt": "a", "steps": 2, "seed": 1}, {"prompt": "b", "steps": 4, "seed": 2, "depth": 4, "guidance_scale": 3.0},
    {"prompt": "c", "steps": 1, "seed": 3, "size": 48}, {"prompt": "d", "steps": 3, "seed": 4, "sampler": "ddim"},
]  # fmt: skip


def concurrently(pipeline, viewers, **given):
    """Every viewer's frames, pictures pushed whenever its box is empty: viewer -> source -> pixels."""
    stage, shown = Stage(pipeline, **given), {}
    sessions = [stage.open(**({"size": SIDE} | viewer)) for viewer in viewers]
    for i in range(4):
        for j, session in enumerate(sessions):
            session.push(picture(10 * j + i))
        while any(len(session.inbox) for session in sessions):
            stage.tick()
            for j, session in enumerate(sessions):
                if (frame := session.outbox.take()) is not None:
                    shown[j, frame.stamp.source] = frame.pixels
    while stage.tick():
        for j, session in enumerate(sessions):
            if (frame := session.outbox.take()) is not None:
                shown[j, frame.stamp.source] = frame.pixels
    stage.close()
    return shown


def test_four_sessions_at_once_are_each_its_run_alone():
    together = concurrently(PipelineDouble(), VIEWERS)
    assert len(together) == 16
    for (viewer, source), pixels in together.items():
        settings = {"size": SIDE} | VIEWERS[viewer]
        double = PipelineDouble()
        alone = made(stage_of(double).open(**settings), [picture(10 * viewer + source)])
        assert np.array_equal(alone[0].pixels, pixels), (viewer, source)


def test_closing_one_session_leaves_the_others():
    stage = stage_of(PipelineDouble())
    one, two = stage.open(prompt="a", size=SIDE), stage.open(prompt="b", size=SIDE)
    one.push(picture(0))
    two.push(picture(1))
    stage.tick()
    one.close()
    while stage.tick():
        pass
    assert set(stage.sessions) == {two.number} and one.stats()["source"]["shown"] == 1
    two.push(picture(2))
    with two:
        while stage.tick():
            pass
    assert two.stats()["source"]["shown"] == 2 and not stage.sessions


# Faults.


def test_a_frame_that_is_not_finite_is_made_again_by_the_plain_engines_and_else_held():
    double, plain = PipelineDouble(), PipelineDouble()
    session = Stage(double, clock=double.clock, plain=plain).open(prompt="a", size=SIDE, depth=1)
    good = made_frame(session, picture(0))
    double.spoil = np.nan
    again = made_frame(session, picture(1))
    assert again.stamp.fault == "non-finite" and again.stamp.kind == "drawn"
    fresh = PipelineDouble()
    assert np.array_equal(again.pixels, made(opened(fresh, prompt="a"), [picture(1)])[0].pixels)
    plain.spoil = np.nan
    held = made_frame(session, picture(2))
    assert held.stamp.kind == "held" and np.array_equal(held.pixels, again.pixels)
    double.spoil = 1.0
    assert made_frame(session, picture(3)).stamp.kind == "drawn" and not np.array_equal(good.pixels, held.pixels)
    stats = session.stats()
    assert stats["frames"] == {"produced": 4, "drawn": 3, "held": 1, "again": 1}
    assert stats["faults"] == {"non-finite": 2} and stats["source"]["failed"] == 1


def made_frame(session, one):
    session.push(one)
    while session.stage.tick():
        pass
    return session.outbox.take()


def test_a_governed_session_warms_its_rungs_and_holds_the_interval():
    double = PipelineDouble(cost=0.010)
    session = opened(double, prompt="a", steps=2, interval=0.030, governed=True, guidance_scale=1.0)
    assert session.stats()["rung"] == "asked"
    double.cost = 0.020
    for i in range(4):
        made_frame(session, picture(i))
    assert session.stats()["rung"] == "rows 1" and session.prepared.evaluations == 1
    session.set(prompt="b")  # the same rung of the new version
    made_frame(session, picture(5))
    assert session.prepared.evaluations == 1 and session.settings.active.number == 2
    double.cost = 0.004
    for i in range(900):
        double.clock.now += 0.030
        made_frame(session, picture(i))
        if session.stats()["rung"] == "asked":
            break
    moves = session.stats()["moves"]
    assert [move.taken for move in moves] == ["rows 1", "asked"] and session.prepared.evaluations == 2
    session.set(steps=4)
    made_frame(session, picture(5))
    assert [rung.name for rung in session.governor.ladder][:3] == ["asked", "rows 2", "rows 1"]


def test_an_engine_that_does_not_run_loses_its_frames_and_nothing_else(monkeypatch):
    double = PipelineDouble()
    session = opened(double, prompt="a", steps=2)
    good = made_frame(session, picture(0))
    with monkeypatch.context() as broken:
        broken.setattr(Unet, "step", lambda *_: (_ for _ in ()).throw(BundleError("engine", "unet does not run")))
        assert made_frame(session, picture(1)) is None
        broken.undo()
        broken.setattr(Autoencoder, "decode", lambda *_: (_ for _ in ()).throw(BundleError("engine", "no memory")))
        assert made_frame(session, picture(2)) is None
    again = made_frame(session, picture(0))
    assert np.array_equal(again.pixels, good.pixels)
    assert session.stats()["source"]["failed"] == 2 and session.stats()["source"]["in_flight"] == 0
    assert session.stats()["faults"] == {"[engine] unet does not run": 1, "[engine] no memory": 1}


@pytest.mark.parametrize("seed", range(2))
def test_in_a_storm_of_everything_ledgers_balance_at_every_tick_and_frames_never_go_back(seed):
    """Four sessions, settings changed all the time, bad input, broken frames, sessions that go and come."""
    rng, double = random.Random(seed), PipelineDouble(cost=0.002)
    stage, sessions, last = stage_of(double), [], {}
    changes = [{"prompt": "a"}, {"steps": 4}, {"steps": 1}, {"size": 48}, {"size": SIDE}, {"cfg_type": "initialize"},
               {"guidance_scale": 2.0}, {"guidance_scale": 1.0}, {"seed": -1}, {"similarity": 0.9}]  # fmt: skip
    for _ in range(700):
        if len(sessions) < 4:
            sessions.append(stage.open(prompt="x", size=SIDE, depth=rng.choice([1, 2]), source=rng.random() < 0.8))
        session = rng.choice([one for one in sessions if not one.closed] or [stage.open(prompt="x", size=SIDE)])
        if session.source and rng.random() < 0.7:
            session.push(picture(rng.randrange(3)))
        if rng.random() < 0.2:
            session.set(blend=0, **rng.choice(changes))
        if rng.random() < 0.1:
            with pytest.raises(InputError):
                session.set(steps=rng.choice([0, "2", 51]), strength=0.5)
            if session.source:
                with pytest.raises(InputError):
                    session.push("no such file.png")
        double.spoil = np.nan if rng.random() < 0.05 else 1.0
        if rng.random() < 0.01:
            session.close()
        stage.tick()
        for one in list(sessions):
            source, frames = one.stats()["source"], one.stats()["frames"]
            ends = ("shown", "superseded", "skipped", "refused", "failed")
            assert source["in"] == sum(source[end] for end in ends) + source["in_flight"]
            assert source["in_flight"] == len(one.inbox) + (len(one.flying) if one.source else 0)
            assert frames["produced"] == frames["drawn"] + frames["held"] and len(one.flying) <= one.depth
            if (frame := one.outbox.take()) is not None:
                assert frame.stamp.frame > last.get(one, -1)
                last[one] = frame.stamp.frame
            if one.number not in stage.sessions:
                assert source["in_flight"] == 0
                sessions.remove(one)
    assert len(last) > 4 and sum(one.stats()["faults"].get("non-finite", 0) for one in last) > 5


# Recording.


@pytest.mark.parametrize("governed", [False, True])
def test_a_replay_gives_the_same_frames_without_a_clock(tmp_path, governed):
    double, recording = PipelineDouble(cost=0.02), Recording()
    stage = stage_of(double, recording=recording)
    one = stage.open(prompt="a", size=SIDE, depth=2, similarity=0.999, governed=governed)
    two = stage.open(prompt="b", size=SIDE, source=False, seed=-1, drift=3)
    for i in range(12):
        one.push(picture(i // 2))
        if i == 4:
            one.push(picture(50))
            one.set(prompt="other", blend=3)
        if i == 7:
            two.set(seed=9, steps=1)
        for _ in range(1 + i % 3):
            stage.tick()
    stage.close()
    done = {one["do"] for one in recording.decisions}
    assert {"swap", "superseded", "skipped", "shown", "begin"} <= done and ("rung" in done) == governed
    recording.save(tmp_path / "show")
    loaded = Recording.load(tmp_path / "show")
    shown = replayed(loaded, PipelineDouble())
    assert len(shown) > 10 and shown == [
        (d["session"], d["frame"], d["sha256"]) for d in recording.decisions if d["do"] == "shown"
    ]
    with pytest.raises(InputError, match="must be new and writable"):
        recording.save(tmp_path / "show")
    begin = next(d for d in loaded.decisions if d["do"] == "open")
    begin["values"]["seed"] = 77
    with pytest.raises(InputError, match=r"\[live.recording\] frame 0 of the replay must be the recorded one"):
        replayed(loaded, PipelineDouble())
    (tmp_path / "show" / "decisions.jsonl").write_text('{"do": "dance"}\n')
    with pytest.raises(InputError, match="decisions must be among"):
        Recording.load(tmp_path / "show")
    with pytest.raises(InputError, match="a folder that a recording was saved to"):
        Recording.load(tmp_path)


# The built-in model.


def test_a_session_on_the_built_in_model_draws_what_img2img_draws(pipe):
    portrait = pipe.txt2img("a smiling woman", seed=1, num_inference_steps=4).images[0]
    given = {"negative_prompt": "hat", "seed": 4, "guidance_scale": 2.0, "sampler": "lcm", "strength": 0.5}
    theirs = pipe.img2img("an old man", image=portrait, num_inference_steps=4, **given).images[0]
    with Stage(pipe) as stage:
        session = stage.open(prompt="an old man", steps=2, depth=2, **given)
        session.push(portrait)
        frames = list(session.frames(wait=0))
    assert len(frames) == 1 and np.array_equal(frames[0].pixels, np.asarray(theirs))
    latency = frames[0].stamp.latency
    assert latency > 0 and session.stats()["latency"]["max"] == pytest.approx(latency)


def test_four_sessions_on_the_built_in_model_are_each_its_run_alone(pipe):
    viewers = [
        {"prompt": "a girl", "steps": 2, "seed": 1, "size": 64},
        {"prompt": "an old man", "steps": 1, "seed": 2, "size": 64},
        {"prompt": "a smiling woman", "steps": 2, "seed": 3, "size": 64, "guidance_scale": 2.0, "depth": 2},
        {"prompt": "a boy", "steps": 1, "seed": 4, "size": 64, "cfg_type": "self", "guidance_scale": 1.5},
    ]
    together = concurrently(pipe, viewers)
    alone = {}
    for j, viewer in enumerate(viewers):
        with Stage(pipe) as stage:
            session = stage.open(**viewer)
            for i in range(4):
                session.push(picture(10 * j + i))
                for frame in session.frames(wait=0):
                    alone[j, frame.stamp.source] = frame.pixels
    assert together.keys() == alone.keys() and all(np.array_equal(together[key], alone[key]) for key in alone)


def test_pipe_live_is_a_session_that_prepares_beside_the_frames(pipe):
    with pipe.live(prompt="a girl", steps=1, size=64) as session:
        session.push(picture(0, 64))
        first = next(session.frames())
        number = session.set(prompt="an old man")
        while session.settings.pending:
            session.push(picture(0, 64))
            next(session.frames())
        session.push(picture(0, 64))
        last = list(session.frames(wait=0.2))[-1]
    assert (first.stamp.version, last.stamp.version) == (1, number) and not np.array_equal(first.pixels, last.pixels)
    with pytest.raises(InputError, match=r"\[live\] prompt must be given"):
        pipe.live(steps=1)


def test_an_engine_that_keeps_its_state_says_that_it_cannot_share():
    class OnDevice:
        pixels = None
        begin = step = start = advance = run = print

    double = PipelineDouble()
    double.networks.denoiser = OnDevice
    with pytest.raises(InputError, match=r"\[live\] an engine that keeps a run's state on its device cannot share"):
        Stage(double)
