"""A server that records: told, written as it goes, and replayed elsewhere to the same pictures."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from live_client import Client, Server, get
from PIL import Image

import hotloop
from hotloop.errors import InputError
from hotloop.live.animation import replay_animation
from hotloop.live.playback import replay
from hotloop.live.recording import Recording, WrittenRecording, digest

pytest.importorskip("fastapi", reason="the extra [serve]")

RESTYLE = ("--mode", "restyle", "--no-governor", "--steps", "1", "--threads", "1", "--engine", "onnx-fp32")


def jpeg(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (level, 90, 255 - level)).save(file, "JPEG")
    return file.getvalue()


def test_what_a_server_shows_is_recorded_and_replays_to_the_same_hashes(tmp_path: Path):
    """Pictures, a change of settings, a worker that is killed: what was there till then replays too."""
    server = Server(*RESTYLE, "--record", str(tmp_path / "kept"))
    shown: list[str] = []
    try:
        assert json.loads(get(server.address, "api/live")[1])["recording"] is True
        with Client(server.address, format="rgba-lz4") as client:
            assert client.welcome["recording"] is True
            for k in range(1, 5):
                client.picture(jpeg(40 * k), source=k)
                while (frame := client.frame()).source != k:
                    pass
                shown.append(digest(np.ascontiguousarray(frame.pixels()[..., :3])))
            version = client.ask(set={"prompt": "an old man", "seed": 9})["version"]
            shown.append(digest(np.ascontiguousarray(client.frame(version=version).pixels()[..., :3])))
            os.kill(server.workers()[0], signal.SIGKILL)
            client.until("event", event="worker", state="resumed")
            client.frame()
    finally:
        assert server.end()[0] == 0
    first, second = sorted((tmp_path / "kept").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    assert stat.S_IMODE(first.stat().st_mode) == stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    pipe = hotloop.load(engine="onnx-fp32", threads=1)
    recording = Recording.load(first)
    hashes = [one[2] for one in replay(recording, pipe)]
    assert set(shown) <= set(hashes)  # what a client was sent is among what was recorded
    assert len(replay(Recording.load(second), pipe)) >= 1
    wrong = next(one for one in recording.decisions if one["do"] == "shown")
    wrong["sha256"] = digest(np.zeros(1))
    with pytest.raises(InputError, match="frame 0 of the replay"):
        replay(recording, pipe)


@pytest.mark.long
def test_an_animated_session_is_recorded_frame_by_frame(tmp_path: Path):
    server = Server("--mode", "animate", "--size", "128", "--fps", "20", "--no-governor", "--record", str(tmp_path))
    try:
        with Client(server.address, format="rgba-lz4") as client:
            client.say(controls={"jawOpen": 1.0})
            frames = [client.frame() for _ in range(6)]
    finally:
        server.end()
    (folder,) = tmp_path.iterdir()
    hashes = [one[2] for one in replay_animation(Recording.load(folder))]
    assert {digest(frame.pixels()) for frame in frames} <= set(hashes)


def test_a_recording_that_is_full_or_has_no_room_says_so_once_and_frames_go_on(tmp_path: Path):
    told: list[str] = []
    picture = np.zeros((8, 8, 3), np.uint8)
    recording = WrittenRecording(tmp_path / "a", most=300, ended=told.append)
    key = recording.keep(picture)
    assert recording.keep(picture) == key == digest(picture)  # written once
    for k in range(9):
        recording.note("shown", session=0, frame=k, sha256="0" * 8, kind="drawn")
    recording.close()
    assert len(told) == 1 and "nothing more is recorded" in told[0]
    loaded = Recording.load(tmp_path / "a")
    assert 1 <= len(loaded.decisions) < 9 and np.array_equal(loaded.inputs[key], picture)
    with (tmp_path / "a" / "decisions.jsonl").open("ab") as file:
        file.write(b'{"do": "shown", "sess')  # cut off
    assert Recording.load(tmp_path / "a").decisions == loaded.decisions
    with pytest.raises(InputError, match="new and writable"):
        WrittenRecording(tmp_path / "a")
