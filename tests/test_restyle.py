"""Live sessions that redraw pictures: against img2img, against the paper's equations, alone and together, replayed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from doubles.live_pipeline import PipelineDouble, network, words

from hotloop.live import Recording, Stage
from hotloop.noise import SeededNoise

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


