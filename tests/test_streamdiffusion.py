"""Restyle held to StreamDiffusion's own pipeline class, on the built-in model's weights in stock diffusers' modules.

Its class is PyPI's streamdiffusion 0.1.1 (Apache-2.0), unaltered; only its clock, CUDA's events, is stood in for. What
a session draws at random both are given: the noise of the picture's latents, of the start and after each step.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from hotloop.live import Stage
from hotloop.noise import SeededNoise

SIDE = 64
PROMPT, NEGATIVE, SEED = "a smiling girl with purple hair", "an old man", 7
GUIDANCE, DELTA = 1.8, 0.7
# LCM's 50 timesteps 999, 979, .. 19; the steps that strength 0.5 leaves of twice as many, as LCM spaces them.
SUB_STEPS = {1: [25], 2: [25, 37], 4: [25, 31, 37, 43]}


class Event:
    """torch.cuda.Event where there is no CUDA."""

    def __init__(self, enable_timing: bool) -> None: ...

    def record(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 0.0


class KnownPosterior:
    """A VAE whose posteriors are sampled with the noise that it is given."""

    def __init__(self, vae, noise) -> None:
        self.vae, self.noise = vae, noise
        self.dtype, self.config, self.decode = vae.dtype, vae.config, vae.decode

    def encode(self, pixels):
        posterior = self.vae.encode(pixels).latent_dist
        return SimpleNamespace(
            latent_dist=SimpleNamespace(sample=lambda generator: posterior.mean + posterior.std * self.noise)
        )


@pytest.fixture(scope="module")
def pictures():
    """Three different faces uint8 [SIDE, SIDE, 3], drawn by no network: discs and bars."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    made = []
    for k in range(3):
        face = ((x - 0.4 - 0.05 * k) ** 2 + (y - 0.5) ** 2 < 0.1)[..., None]
        eyes = ((np.abs(y - 0.4) < 0.04) & (np.abs(np.abs(x - 0.4 - 0.05 * k) - 0.1) < 0.04))[..., None]
        ground = np.stack([x, y, 0 * x + k / 4], -1)
        made.append((255 * np.where(eyes, 0.1, np.where(face, [0.9, 0.7 - 0.1 * k, 0.6], ground))).astype(np.uint8))
    return made


def noises(evaluations: int):
    """[1, 4, h, w] of the posterior, and [evaluations, 4, h, w] of the start and after each step but the last."""
    stream, shape = SeededNoise([SEED]), (4, SIDE // 4, SIDE // 4)
    posterior = stream.normal(shape)
    return posterior, np.concatenate([stream.normal(shape) for _ in range(evaluations)])


def theirs(stock, monkeypatch, pictures, form, evaluations, *, before=lambda stream: None):
    """Latents of StreamDiffusion's stream, the calls that fill its batch left out. before: done before each call."""
    import torch

    streamdiffusion = pytest.importorskip("streamdiffusion", reason="the test environment brings it: make test")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    posterior, start = (torch.from_numpy(noise) for noise in noises(evaluations))
    stream = streamdiffusion.StreamDiffusion(
        stock.txt2img, SUB_STEPS[evaluations], torch_dtype=torch.float32, width=SIDE, height=SIDE, cfg_type=form
    )
    stream.prepare(PROMPT, NEGATIVE, 50, GUIDANCE, DELTA, generator=torch.Generator(), seed=SEED)
    assert stream.init_noise.shape == start.shape
    stream.init_noise, stream.vae = start, KnownPosterior(stream.vae, posterior)
    made, decode = [], stream.decode_image
    monkeypatch.setattr(stream, "decode_image", lambda latents: made.append(latents.numpy()) or decode(latents))
    from PIL import Image

    for one in [*pictures, *pictures[: evaluations - 1]]:
        before(stream)
        stream(Image.fromarray(one))
    return np.concatenate(made[evaluations - 1 :])


def ours(pipe, monkeypatch, pictures, form, evaluations, depth):
    """Latents of a session, of every picture in turn."""
    made, decode = [], pipe.autoencoder.decode

    def seen(networks, latents):
        made.append(latents.copy())
        return decode(networks, latents)

    monkeypatch.setattr(pipe.autoencoder, "decode", seen)
    with Stage(pipe) as stage:
        session = stage.open(
            size=SIDE, steps=evaluations, strength=0.5, depth=depth, prompt=PROMPT, guidance_scale=GUIDANCE, seed=SEED,
            negative_prompt=NEGATIVE if form in ("full", "initialize") else "", cfg_type=form, delta=DELTA,
        )  # fmt: skip
        for one in pictures:
            session.push(one)
            while len(session.inbox):
                stage.tick()
        while stage.tick():
            pass
    return np.concatenate(made)


@pytest.mark.parametrize("evaluations", [1, 2, 4])
@pytest.mark.parametrize("form", ["none", "full", "self", "initialize"])
def test_latents_are_those_of_streamdiffusions_stream_batch(pipe, stock, monkeypatch, pictures, form, evaluations):
    """At 1 step its self guidance is put right first: the test below says what is wrong there."""

    def put_right(stream):
        if form == "self" and evaluations == 1:
            stream.stock_noise = stream.init_noise

    expected = theirs(stock, monkeypatch, pictures, form, evaluations, before=put_right)
    got = ours(pipe, monkeypatch, pictures, form, evaluations, depth=evaluations)
    assert got.shape == expected.shape == (3, 4, SIDE // 4, SIDE // 4)
    assert np.abs(got - expected).max() <= 1e-3


def test_streamdiffusions_self_guidance_of_one_step_carries_the_frame_before_into_the_next(
    pipe, stock, monkeypatch, pictures
):
    """With more steps it begins each picture's residual noise with the picture's own; with one step it does not: the
    first frame is guided away from nothing, each other one from what the frame before left. The paper (section 3.2)
    starts from the picture's own noise, and so do we: equal pictures give equal frames."""
    still = pictures[:1] * 3
    drifting = theirs(stock, monkeypatch, still, "self", 1)
    assert min(np.abs(a - b).max() for a, b in pairwise(drifting)) > 0.01
    frames = ours(pipe, monkeypatch, still, "self", 1, depth=1)
    assert np.array_equal(frames[0], frames[1]) and np.array_equal(frames[1], frames[2])
