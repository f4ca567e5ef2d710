"""The way between two generations: exact ends, even steps, files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import hotloop
from hotloop.cli import app
from hotloop.errors import InputError
from hotloop.image.movie import save_movie
from hotloop.live import builtin_keyframe, interpolate, open_avatar
from hotloop.live.interpolation import EVEN, _prepared, even

A = {"prompt": "a girl with pink hair", "seed": 3}
B = {"prompt": "a boy with blue hair", "seed": 8}
LIKE: dict[str, Any] = {"num_inference_steps": 2, "sampler": "lcm", "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe() -> hotloop.Pipeline:
    return hotloop.load(threads=1)


def test_the_ends_are_txt2img_and_the_steps_are_even(pipe: hotloop.Pipeline) -> None:
    way = interpolate(pipe, A | LIKE, B | LIKE, 6)
    assert way.pixels.shape == (6, 64, 64, 3) and way.places[0] == 0 and way.places[-1] == 1
    for end, picture in ((A, way.pixels[0]), (B, way.pixels[-1])):
        assert np.array_equal(picture, np.asarray(pipe.txt2img(**end, **LIKE).images[0]))  # type: ignore[arg-type]
    assert way.unevenness < EVEN and way.places == sorted(way.places)
    steps = [np.sqrt(((a.astype(float) - b) ** 2).mean()) for a, b in zip(way.pixels[:-1], way.pixels[1:], strict=True)]
    np.testing.assert_allclose(way.steps, steps, rtol=1e-5)


def test_equal_ends_are_one_picture(pipe: hotloop.Pipeline) -> None:
    way = interpolate(pipe, A | LIKE, A | LIKE, 3)
    assert (way.pixels == way.pixels[0]).all() and way.unevenness == 1 and way.drawn == 3


def curved(bend: float) -> Any:
    """A grey that follows t ** bend: equal places are unequal steps."""
    return lambda t: np.full((8, 8, 3), round(250 * t**bend), np.uint8)


@pytest.mark.parametrize("bend", [0.25, 1.0, 6.0])
def test_uneven_ways_are_spaced_again_by_what_is_seen(bend: float) -> None:
    """Of a curve whose equal steps are known: grey itself in equal steps."""
    places, pixels = even(curved(bend), 11)
    steps = np.diff(pixels[:, 0, 0, 0].astype(float))
    assert len(places) == 11 and pixels[0].max() == 0 and pixels[-1].min() == 250
    assert steps.min() > 0 and steps.max() < 1.5 * steps.mean()
    if bend == 6:
        np.testing.assert_allclose(np.array(places[1:-1]) ** bend, np.arange(1, 10) / 10, atol=0.06)


def test_a_jump_is_told_and_not_smoothed_over(pipe: hotloop.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    last, drawn = _prepared(pipe, B | LIKE).mix.start, []

    def jumping(_: Any, __: Any, mix: Any, ___: Any) -> np.ndarray:
        drawn.append(mix)
        return np.full((8, 8, 3), 200 if np.allclose(mix.start, last) else 10, np.uint8)

    monkeypatch.setattr("hotloop.live.interpolation.redrawn", jumping)
    with pytest.warns(RuntimeWarning, match=r"\[interpolate\] the largest step of the way is .* times the mean one"):
        way = interpolate(pipe, A | LIKE, B | LIKE, 5)
    assert way.unevenness == pytest.approx(4) and len(drawn) <= 4 * 5


@pytest.mark.parametrize(
    ("a", "b", "frames", "message"),
    [
        ({}, {}, 1, "frames must be a whole number"),
        ({}, {"num_inference_steps": 3}, 4, r"both ends must have the same num_inference_steps, got \[2, 3\]"),
        ({"prompt": ["a", "b"]}, {}, 4, "an end is one image"),
        ({"stepps": 3}, {}, 4, "stepps is no argument"),
        ({"seed": -5}, {}, 4, "seed must be"),
    ],
)
def test_bad_ends_are_refused(
    pipe: hotloop.Pipeline, a: dict[str, Any], b: dict[str, Any], frames: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        interpolate(pipe, A | LIKE | a, B | LIKE | b, frames)


def test_frames_become_files(tmp_path: Path) -> None:
    frames = np.stack([np.full((10, 12, 3), v, np.uint8) for v in (0, 120, 250)])
    files = save_movie(frames, tmp_path / "frames")
    assert [file.name for file in files] == ["0000.png", "0001.png", "0002.png"]
    (file,) = save_movie(frames, tmp_path / "way.webp", fps=10)
    with Image.open(file) as movie:
        assert movie.n_frames == 3  # type: ignore[attr-defined]
        for i in range(3):
            movie.seek(i)
            assert np.array_equal(np.asarray(movie.convert("RGB")), frames[i])
    for path, fps, message in (
        ("way.gif", 10, "the file must be a folder, or end with"), ("way.webp", 0, "fps must be a number"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            save_movie(frames, tmp_path / path, fps=fps)


def test_an_mp4_needs_pyav_and_holds_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.stack([np.full((33, 49, 3), v, np.uint8) for v in (10, 120, 240)])
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "av", None)
        with pytest.raises(InputError, match="an mp4 needs PyAV: pip install av"):
            save_movie(frames, tmp_path / "way.mp4")
    av = pytest.importorskip("av")
    (file,) = save_movie(frames, tmp_path / "way.mp4", fps=5)
    with av.open(str(file)) as movie:
        seen = [frame.to_ndarray(format="rgb24") for frame in movie.decode(video=0)]
    assert len(seen) == 3 and seen[0].shape == (32, 48, 3)
    assert all(np.abs(a.mean() - b.mean()) < 4 for a, b in zip(seen, frames, strict=True))


def test_the_command_writes_the_way_between_prompts_and_pictures(tmp_path: Path) -> None:
    runner, picture = CliRunner(), str(tmp_path / "b.png")
    like = ["--steps", "2", "--guidance", "1", "--threads", "1"]
    drawn = runner.invoke(app, ["txt2img", "a boy", "--seed", "4", "--sampler", "lcm", *like, "--out", picture])
    assert drawn.exit_code == 0, drawn.output
    way = ["--frames", "3", "--json", "--out", str(tmp_path / "way")]
    made = runner.invoke(app, ["interpolate", "a girl", picture, *like, *way])
    assert made.exit_code == 0, made.output
    told = json.loads(made.output)
    assert told["frames"] == 3 and len(told["files"]) == 3
    last = np.asarray(Image.open(told["files"][-1]))
    assert np.array_equal(last, np.asarray(Image.open(tmp_path / "b.png")))
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    refused = runner.invoke(app, ["interpolate", "a", str(tmp_path / "plain.png"), "--out", str(tmp_path / "no")])
    assert isinstance(refused.exception, InputError) and not (tmp_path / "no").exists()


# A pipeline that draws keyframes.


def test_a_prompt_draws_a_keyframe_whose_face_moves(pipe: hotloop.Pipeline) -> None:
    """By the built-in model: a figure is left that fills a fifth of the picture or more, its face lies about where the
    one before it lay, and the same seed draws the same one again."""
    session, now = open_avatar(pipeline=pipe, side=96, clock=lambda: 0.0), 0.0
    made = []
    for _ in range(2):
        session.set(prompt="a boy with blue hair", seed=5, steps=2)
        for _ in range(20):
            now += 1 / 30
            session.tick(now)
        made.append(session.keyframe)
        session.show(builtin_keyframe())
        for _ in range(20):
            now += 1 / 30
            session.tick(now)
    assert made[0].name == "a boy with blue hair" and made[0].geometry is not None and made[0].id == made[1].id
    assert 0.2 < (made[0].rgba[..., 3] > 128).mean() <= 1
    current = builtin_keyframe().geometry
    assert current is not None and np.abs(made[0].geometry.anchors - current.anchors).max() < 0.09
