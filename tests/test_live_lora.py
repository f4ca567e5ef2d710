"""LoRAs of a session: named, merged beside, swapped between two frames, and never another session's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_adapters import write_lora

import hotloop
from hotloop.adapters import scanned
from hotloop.errors import InputError
from hotloop.live.animation.keyframe import builtin_keyframe
from hotloop.live.animation.painting import PipelinePainter
from hotloop.live.playback import replay
from hotloop.live.recording import Recording
from hotloop.live.settings import DEFAULTS
from hotloop.live.stage import Stage
from hotloop.request import Request, schema

WORDS = {"prompt": "a girl with red hair", "seed": 5, "drift": 0, "steps": 1}
ONE, BOTH = {"style": 1.0}, [{"name": "style", "scale": 0.5}, {"name": "other", "scale": 0.8}]


def opened() -> Any:
    return hotloop.load(engine="onnx-fp32", threads=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    write_lora(folder / "style.safetensors")
    write_lora(folder / "other.safetensors", seed=5, components="unet text_encoder")
    (folder / "note.txt").write_text("no LoRA")
    return folder


@pytest.fixture(scope="module")
def shelved(files: Path) -> Any:
    """A pipeline that knows both by name."""
    pipe = opened()
    for name, file in scanned(files).items():
        pipe.adapters.shelf.put(name, file)
    return pipe


def loaded(files: Path, **scales: float) -> Any:
    """A pipeline that draws with these."""
    pipe = opened()
    for name, scale in scales.items():
        pipe.load_lora(files / f"{name}.safetensors", scale)
    return pipe


def frame(session: Any, version: int = 1) -> np.ndarray:
    for one in session.frames():
        if one.stamp.version >= version:
            return one.pixels
    raise AssertionError


def alone(pipe: Any, **given: Any) -> np.ndarray:
    with Stage(pipe) as stage:
        return frame(stage.open(source=False, **WORDS, **given))


def test_a_set_is_told_by_names_and_scales_in_any_form():
    kind = hotloop.request.fields("live")["lora"].kind
    pairs = (("a", 0.5), ("b", 1.0))
    for value in ({"b": 1, "a": 0.5, "c": 0}, [{"name": "b"}, {"name": "a", "scale": 0.5}], [("b", 1.0), ("a", 0.5)]):
        assert kind.check("live", "lora", value) == pairs
    row = schema("live")["properties"]["lora"]["items"]
    assert row["required"] == ["name"] and row["properties"]["scale"]["maximum"] == 10


@pytest.mark.parametrize(
    "value",
    ["style", 5, [5], [{"scale": 1}], [{"name": 1}], [{"name": "a", "path": "/x"}], [{"name": "a"}, {"name": "a"}],
     {"a": float("nan")}, {"a": 11}, {"a": True}, {"a": "1"}, {str(i): 1.0 for i in range(9)}],
)  # fmt: skip
def test_what_is_no_set_is_one_line(value: Any):
    with pytest.raises(InputError, match="lora") as caught:
        Request.checked("live", {"prompt": "x", "lora": value}, DEFAULTS)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_and_names_are_scanned(files: Path):
    assert scanned(files) == {name: files / f"{name}.safetensors" for name in ("other", "style")}
    assert scanned(None, [f"mine={files / 'style.safetensors'}"]) == {"mine": files / "style.safetensors"}
    for folder, named, rule in (
        (files / "none", [], "must be a folder"), (None, ["x"], "NAME=FILE"), (files, ["style=x"], "different names"),
        (None, ["a\nb=x"], "printable"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rule):
            scanned(folder, named)


def test_what_is_no_lora_of_this_model_is_not_shelved(files: Path, tmp_path: Path):
    from hotloop.weights import save

    pipe = opened()
    other = {"unet.nosuch.to_q.lora_A.weight": np.ones((2, 4), np.float32),
             "unet.nosuch.to_q.lora_B.weight": np.ones((4, 2), np.float32)}  # fmt: skip
    with pytest.raises(InputError, match="must be for this model"):
        pipe.adapters.shelf.put("other", save(other, tmp_path / "a.safetensors"))
    pipe.adapters.shelf.put("style", files / "style.safetensors")
    with pytest.raises(InputError, match="different names"):
        pipe.adapters.shelf.put("style", files / "other.safetensors")
    assert list(pipe.adapters.shelf.loras) == ["style"]


def test_a_session_draws_what_a_pipeline_with_these_loras_draws(files: Path, shelved: Any):
    plain = alone(opened())
    for given, scales in ((ONE, {"style": 1.0}), (BOTH, {"other": 0.8, "style": 0.5})):
        want = alone(loaded(files, **scales))
        assert np.array_equal(alone(shelved, lora=given), want) and np.abs(want.astype(int) - plain).mean() > 3
    assert np.array_equal(alone(shelved), plain)


def test_sessions_with_different_sets_never_mix_and_each_is_its_run_alone(shelved: Any):
    sets: dict[str, Any] = {"none": [], "one": ONE, "both": BOTH}
    want = {name: alone(shelved, lora=given) for name, given in sets.items()}
    with Stage(shelved) as stage:
        sessions = {name: stage.open(source=False, **WORDS, lora=given) for name, given in sets.items()}
        for _ in range(3):
            for name, session in sessions.items():
                assert np.array_equal(frame(session), want[name]), name
        # They change places, one after another, while the others go on.
        for name, other in (("none", "one"), ("one", "both"), ("both", "none")):
            version = sessions[name].set(lora=sets[other])
            assert np.array_equal(frame(sessions[name], version), want[other])
            for still in sets.keys() - {name}:
                kept = {"none": "one", "one": "both", "both": "none"}
                done = list(sets).index(still) < list(sets).index(name)
                assert np.array_equal(frame(sessions[still]), want[kept[still] if done else still])


def test_frames_go_on_while_a_set_is_merged_and_what_is_refused_changes_nothing(shelved: Any):
    shelved.adapters.shelf._made.clear()
    started, free, real = threading.Event(), threading.Event(), shelved.adapters.beside

    def slow(loras: Any) -> Any:
        started.set()
        assert free.wait(20)
        return real(loras)

    shelved.adapters.beside = slow
    try:
        with ThreadPoolExecutor(1) as pool, Stage(shelved, background=pool) as stage:
            session = stage.open(source=False, **WORDS)
            plain = frame(session)
            with pytest.raises(InputError, match=r"one of the LoRAs that there are \(other, style\)"):
                session.set(lora={"../../etc/passwd": 1.0})
            version = session.set(lora=ONE)
            assert np.array_equal(frame(session), plain) and started.wait(20)
            for _ in range(5):
                assert np.array_equal(frame(session), plain)  # the old version, whole
            free.set()
            assert not np.array_equal(frame(session, version), plain)
    finally:
        free.set()
        del shelved.adapters.beside


def test_equal_sets_are_one_and_sets_that_are_left_go(shelved: Any):
    shelf = shelved.adapters.shelf
    first = shelf.networks((("style", 1.0),))
    assert shelf.networks((("style", 1.0),)) is first and shelf.networks(()) is shelved.networks
    for k in range(1, 6):
        shelf.networks((("style", k / 10),))
    assert shelf.networks((("style", 1.0),)) is not first


def test_a_keyframe_is_drawn_with_its_sessions_loras(files: Path, shelved: Any):
    def painted(pipe: Any, **given: Any) -> np.ndarray:
        request = Request.checked(
            "live", {"prompt": "a girl with red hair", "seed": 3, "num_inference_steps": 1, **given}, DEFAULTS
        )
        painter = PipelinePainter(pipe)
        painter.check(request)
        return painter.paint(request, builtin_keyframe()).rgba

    plain = painted(shelved)
    want = painted(loaded(files, style=1.0))
    assert np.array_equal(painted(shelved, lora=ONE), want) and not np.array_equal(want, plain)
    assert np.array_equal(painted(shelved), plain)
    with pytest.raises(InputError, match="LoRAs that there are"):
        painted(shelved, lora={"nosuch": 1.0})


def test_a_recording_with_loras_replays_where_they_are_known(shelved: Any):
    recording = Recording()
    with Stage(shelved, recording=recording) as stage:
        session = stage.open(source=False, **WORDS, lora=ONE)
        frame(session)
        frame(session, session.set(lora=BOTH))
        session.close()
        while stage.tick():
            pass
    assert len(replay(recording, shelved)) >= 2
    with pytest.raises(InputError, match="none here"):
        replay(recording, opened())
