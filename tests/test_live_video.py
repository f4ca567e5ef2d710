"""Video files in and out of a session: against clips that PyAV makes, each frame known by its colour."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from doubles.live_pipeline import PipelineDouble

from hotloop.errors import InputError
from hotloop.live.headless import run
from hotloop.live.sinks import open_sink
from hotloop.live.sinks.camera import VirtualCamera
from hotloop.live.sources import video as video_module
from hotloop.live.sources.video import Follower, Video

av = pytest.importorskip("av", reason="the test extra brings it: make test")

SIDE = 32
RATE = 25


def colour(k: int) -> tuple[int, int, int]:
    return 16 + 23 * (k % 9), 40 + 80 * (k % 3), 200 - 15 * (k % 7)


def picture(k: int, side: int = SIDE) -> np.ndarray:
    return np.broadcast_to(np.array(colour(k), np.uint8), (side, side, 3)).copy()


def clip(path: Path, count: int, *, codec: str = "ffv1", times: list[int] | None = None, side: int = SIDE) -> Path:
    """times: of the frames, in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width = stream.height = side
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(picture(k, side), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = (times[k] if times else k * 1000 // RATE), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


# Sources.


@pytest.mark.parametrize("times", [None, [0, 40, 110, 111, 400, 1000, 1033]])
def test_every_picture_of_a_file_comes_once_in_order_at_its_own_time(tmp_path, times):
    path = clip(tmp_path / "a.mkv", 7, times=times)
    with Video(path) as video:
        assert video.size == (SIDE, SIDE) and not video.live
        shots = list(video)
    assert [shot.number for shot in shots] == list(range(7))
    expected = times or [40 * k for k in range(7)]
    np.testing.assert_allclose([shot.time for shot in shots], np.array(expected) / 1000, atol=1e-6)
    for k, shot in enumerate(shots):
        np.testing.assert_array_equal(shot.pixels, picture(k))
        assert shot.captured is None


def test_a_file_that_is_cut_off_gives_what_there_is_and_counts_the_rest(tmp_path):
    whole = clip(tmp_path / "a.mkv", 40, side=64)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    (tmp_path / "cut.mkv").write_bytes(data[: 3 * len(data) // 4])
    with Video(tmp_path / "cut.mkv") as video:
        shots = list(video)
        assert 10 <= len(shots) < 40 and len(shots) + video.broken <= 40
    assert all(a.time < b.time for a, b in pairwise(shots))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.mp4", None, "must be a file, an address"),
        ("text.mp4", b"no pictures here, only words " * 20, "cannot be opened"),
        ("empty.mp4", b"", "cannot be opened"),
    ],
)
def test_what_is_no_video_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Video(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_of_sound_alone_has_no_pictures(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
    with pytest.raises(InputError, match="must hold moving pictures"):
        Video(tmp_path / "a.wav")


def test_a_playlist_on_the_disk_makes_nothing_be_fetched(tmp_path):
    """A listener of our own would see the connection."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.m3u8").write_text(playlist)
        with pytest.raises(InputError):
            list(Video(tmp_path / "list.m3u8"))
        with pytest.raises(TimeoutError):
            listener.accept()


def test_an_address_is_followed_on_a_thread(tmp_path):
    """A clip over HTTP from a server of this test, as a camera's address would give it."""
    import functools
    import http.server
    import threading

    clip(tmp_path / "a.mkv", 9)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Video(f"http://127.0.0.1:{server.server_port}/a.mkv") as video:
            assert video.live
            seen, ended = [], threading.Event()
            Follower(video, seen.append, ended=lambda why: ended.set())
            assert ended.wait(10)
        server.shutdown()
    assert [shot.number for shot in seen] == list(range(9))
    np.testing.assert_array_equal(seen[-1].pixels, picture(8))


def test_a_source_can_be_closed_while_it_is_read(tmp_path):
    import threading

    video, seen, over = Video(clip(tmp_path / "a.mkv", 60)), [], threading.Event()

    def take(shot):
        seen.append(shot)
        if len(seen) == 5:
            video.close()

    follower = Follower(video, take, ended=lambda why: over.set())
    assert over.wait(20) and 5 <= len(seen) <= 6
    follower.stop()
    video.close()  # twice does no harm


# Sinks.


def test_a_video_has_every_frame_at_its_time_in_its_colours(tmp_path):
    times = [0.0, 0.04, 0.11, 0.111, 0.4, 1.0, 1.0333]
    sink = open_sink(tmp_path / "out.mp4", rate=RATE)
    for k, at in enumerate(times):
        sink.write(picture(k), at)
    assert not (tmp_path / "out.mp4").exists()
    sink.close()
    made = frames_of(tmp_path / "out.mp4")
    np.testing.assert_allclose([at for at, _ in made], times, atol=1 / 90_000)
    for k, (_, pixels) in enumerate(made):
        # Flat colours; limited range and half the colour's resolution lose no more.
        assert np.abs(pixels.astype(int) - picture(k)).max() <= 4
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_equal_frames_give_an_equal_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        sink = open_sink(tmp_path / name, rate=RATE)
        for k in range(12):
            sink.write(picture(k), k / RATE)
        sink.close()
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("where", ["shots/*.png", "shots/*.webp", "shots"])
def test_a_folder_has_a_lossless_picture_a_frame_and_their_times(tmp_path, where):
    from PIL import Image

    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(3)]
    sink = open_sink(tmp_path / where)
    for k, frame in enumerate(frames):
        sink.write(frame, k / RATE)
    sink.close()
    suffix = ".webp" if where.endswith("webp") else ".png"
    assert sorted(path.name for path in (tmp_path / "shots").iterdir()) == [
        *(f"{k:06d}{suffix}" for k in range(3)), "times.json",
    ]  # fmt: skip
    for k, frame in enumerate(frames):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "shots" / f"{k:06d}{suffix}")), frame)
    assert json.loads((tmp_path / "shots" / "times.json").read_text())["times"] == [0, 0.04, 0.08]


def test_an_animated_picture_shows_each_frame_until_the_next(tmp_path):
    from PIL import Image

    times = [0.0, 0.1, 0.15, 0.4]
    sink = open_sink(tmp_path / "out.webp", rate=10)
    for k, at in enumerate(times):
        sink.write(picture(k), at)
    sink.close()
    with Image.open(tmp_path / "out.webp") as image:
        assert image.n_frames == 4
        shown = []
        for k in range(4):
            image.seek(k)
            image.load()
            shown.append(image.info["duration"])
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - picture(k)).max() <= 6
    assert shown == [100, 50, 250, 100]


@pytest.mark.parametrize(
    ("where", "message"),
    [("out.avi", "must end with"), ("out.png", "single frames need a folder"), ("no/out.mp4", "can be written")],
)
def test_a_sink_that_cannot_be_is_one_line_and_leaves_nothing(tmp_path, where, message):
    with pytest.raises(InputError, match=message) as caught:
        open_sink(tmp_path / where)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="new or empty"):
        open_sink(tmp_path / "shots")
    assert [path.name for path in tmp_path.rglob("*")] == ["shots", "mine.txt"]


@pytest.mark.parametrize("fault", ["size", "odd", "time"])
def test_frames_that_a_video_cannot_hold_are_refused(tmp_path, fault):
    sink = open_sink(tmp_path / "out.mp4", rate=RATE)
    if fault != "odd":
        sink.write(picture(0), 0.0)
    wrong = {"size": (picture(1, 64), 0.1), "odd": (picture(1, 33), 0.1), "time": (picture(1), 0.0)}[fault]
    with pytest.raises(InputError):
        sink.write(*wrong)
    sink.abandon()
    assert not list(tmp_path.iterdir())


# Sources that go and come back.


@contextmanager
def sender(data: bytes, times: int, port: int = 0):
    """A TCP server that gives its callers these bytes, one after another, so often, and then refuses: its port."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            for _ in range(times):
                with suppress(OSError):
                    one = server.accept()[0]
                    one.sendall(data)
                    one.close()
            server.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_a_stream_that_was_lost_is_found_again_and_its_times_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "_FIRST_WAIT", 0.05)
    data = clip(tmp_path / "a.ts", 10, codec="libx264").read_bytes()
    shots, told, over = [], [], threading.Event()
    with sender(data, 2) as port, Video(f"tcp://127.0.0.1:{port}") as video:
        assert video.live and video.lasting
        follower = Follower(video, shots.append, ended=lambda why: over.set(), patience=0.6, lost=told.append)
        assert over.wait(20)
        follower.stop()
    assert [shot.number for shot in shots] == list(range(len(shots))) and len(shots) >= 18
    times = [shot.time for shot in shots]
    assert times == sorted(set(times)) and times[-1] >= 2 * 0.36 + 0.05
    assert [why is None for why in told] == [False, True, False]  # lost, back, lost for good


def test_a_source_is_looked_for_ever_less_often(monkeypatch):
    class Gone:
        lasting, tries = True, 0

        def __iter__(self):
            return iter(())

        def again(self):
            self.tries += 1
            raise InputError("live.source", "cannot be opened")

    waits, over = [], threading.Event()
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def wait(seconds):
        waits.append(seconds)
        clock.now += seconds
        return False

    monkeypatch.setattr(video_module, "time", clock)
    event = SimpleNamespace(wait=wait, is_set=lambda: False)
    monkeypatch.setattr(video_module, "threading", SimpleNamespace(Event=lambda: event, Thread=threading.Thread))
    gone = Gone()
    Follower(gone, print, ended=lambda why: over.set(), patience=40)._thread.join(5)
    assert waits == [1, 2, 4, 8, 10, 10, 10] and gone.tries == 7 and over.is_set()


def test_a_film_at_an_address_ends_and_is_not_looked_for(tmp_path):
    path = clip(tmp_path / "a.mkv", 3)
    over = threading.Event()
    with Video(path) as video:
        assert not video.lasting
        Follower(video, lambda shot: None, ended=lambda why: over.set(), patience=99)
        assert over.wait(5)


RTSP_SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( videotestsrc is-live=true pattern=blue ! video/x-raw,width=160,height=120,framerate=20/1 ! "
                   "x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 pt=96 )")
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


@contextmanager
def rtsp(port: int):
    """GStreamer's RTSP server, which Debian's Python knows (gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-ugly)."""
    process = subprocess.Popen(["/usr/bin/python3", "-c", RTSP_SERVER, str(port)], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    try:
        if process.stdout.readline() != "ready\n":
            pytest.skip("no RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-ugly")
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
def test_an_rtsp_camera_of_another_maker_is_read_and_found_again():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shots, told = [], []

    def seen(count, seconds=30.0):
        until = time.monotonic() + seconds
        while len(shots) < count:
            assert time.monotonic() < until, (len(shots), told)
            time.sleep(0.05)

    with rtsp(port):
        video = Video(f"rtsp://127.0.0.1:{port}/cam")
        assert video.lasting and video.size == (160, 120) and video.rate == 20
        follower = Follower(video, shots.append, patience=60, lost=told.append)
        seen(40)
    while not told:
        time.sleep(0.05)
    before = len(shots)
    with rtsp(port):
        seen(before + 20)
    follower.stop()
    video.close()
    assert told[0] is not None and told[1] is None
    times = [shot.time for shot in shots]
    assert times == sorted(set(times)) and shots[-1].number == len(shots) - 1
    assert (shots[-1].pixels.mean((0, 1)).round() == (0, 0, 255)).all() or shots[-1].pixels[..., 2].mean() > 220


# Devices. No loopback device can be loaded where this is tested: the device is PyAV's error, and a file in its place.


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match=r"cannot be opened \(.*\), got '/dev/video97'") as caught:
        Video("/dev/video97")
    assert len(str(caught.value).splitlines()) == 1


def test_a_devices_pictures_have_the_drivers_time(tmp_path, monkeypatch):
    path, asked, real = clip(tmp_path / "a.mkv", 3, times=[5000, 5040, 5100]), {}, av.open

    def opened(where, **given):
        asked.update(given, where=where)
        return real(str(path))

    monkeypatch.setattr(av, "open", opened)
    with Video("/dev/video0") as video:
        shots = list(video)
    assert asked["where"] == "/dev/video0" and asked["format"] == "v4l2" and asked["timeout"] is None
    assert asked["options"] == {"timestamps": "default"} and video.lasting
    assert [shot.captured for shot in shots] == pytest.approx([5.0, 5.04, 5.1])
    assert [shot.time for shot in shots] == pytest.approx([0, 0.04, 0.1])


class PyVirtualCam:
    """A double of the package: a device that takes frames of one size."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.opened, self.shown = fault, [], []

    def Camera(self, **given):
        if self.fault:
            raise RuntimeError(self.fault)
        self.opened.append(given)
        return SimpleNamespace(**given, send=self._send, close=lambda: self.opened.append("closed"))

    def _send(self, frame):
        given = self.opened[-1]
        assert frame.dtype == np.uint8 and frame.shape == (given["height"], given["width"], 3)
        self.shown.append(frame.copy())


def test_a_virtual_camera_shows_every_frame_when_its_time_has_come(monkeypatch):
    package, clock = PyVirtualCam(), SimpleNamespace(now=50.0)
    monkeypatch.setitem(sys.modules, "pyvirtualcam", package)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        clock.now += seconds

    sink = VirtualCamera("/dev/video10", rate=25, clock=lambda: clock.now, sleep=sleep)
    assert not package.opened  # with the first frame
    for k, size in enumerate((SIDE, SIDE, 2 * SIDE)):
        clock.now += 0.01
        sink.write(picture(k, size), 3 + k * 0.5)
    sink.close()
    assert package.opened == [{"width": SIDE, "height": SIDE, "fps": 25, "device": "/dev/video10"}, "closed"]
    assert slept == pytest.approx([0.49, 0.49]) and sink.frames == 3
    np.testing.assert_array_equal(package.shown[1], picture(1))
    assert np.abs(package.shown[2].astype(int) - picture(2)).mean() < 8  # brought to the camera's size


@pytest.mark.parametrize("package", [None, PyVirtualCam("'v4l2loopback' backend: No device\nmore")])
def test_without_package_or_device_a_virtual_camera_is_one_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, "pyvirtualcam", package)
    with pytest.raises(InputError, match="No device" if package else r"\.\[camera\]") as caught:
        run(PipelineDouble(), None, "virtual-camera", **SETTINGS)
    assert len(str(caught.value).splitlines()) == 1


def test_a_dream_goes_on_in_a_virtual_camera_until_it_is_ended(monkeypatch):
    package = PyVirtualCam()
    monkeypatch.setitem(sys.modules, "pyvirtualcam", package)

    def say(frames):
        if frames == 4:
            raise KeyboardInterrupt

    outcome = run(PipelineDouble(), None, "virtual-camera", rate=200, say=say, **SETTINGS)
    assert outcome.frames == 4 == len(package.shown) and package.opened[-1] == "closed"


# Source to sink.

SETTINGS = {"prompt": "a face", "steps": 2, "strength": 0.5, "seed": 3, "size": SIDE}


class Kept:
    """A sink that keeps its frames."""

    endless = False

    def __init__(self) -> None:
        self.frames, self.pixels, self.times, self.state = 0, [], [], "open"

    def write(self, pixels, time):
        self.pixels.append(pixels.copy())
        self.times.append(time)
        self.frames += 1

    def close(self):
        self.state = "closed"

    def abandon(self):
        self.state = "abandoned"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_clip_is_redrawn_picture_by_picture_at_its_times_and_accounted_for(tmp_path, depth):
    times = [0, 40, 110, 111, 400, 1000, 1033]
    path = clip(tmp_path / "a.mkv", 7, times=times)
    sink = Kept()
    outcome = run(PipelineDouble(), path, sink, depth=depth, **SETTINGS)
    assert sink.state == "closed" and outcome.frames == 7
    assert outcome.source == {
        "in": 7, "shown": 7, "superseded": 0, "skipped": 0, "refused": 0, "failed": 0, "in_flight": 0,
    }  # fmt: skip
    np.testing.assert_allclose(sink.times, np.array(times) / 1000, atol=1e-6)
    for k, pixels in enumerate(sink.pixels):  # each is that of its own picture alone
        alone = Kept()
        one = clip(tmp_path / f"{k}.mkv", k + 1)
        run(PipelineDouble(), one, alone, **SETTINGS)
        np.testing.assert_array_equal(pixels, alone.pixels[-1])


def test_to_a_file_and_again_is_the_same_file_with_every_frame(tmp_path):
    path = clip(tmp_path / "a.mkv", 10)
    for name in ("x.mp4", "y.mp4"):
        outcome = run(PipelineDouble(), path, tmp_path / name, **SETTINGS)
        assert outcome.frames == outcome.source["shown"] == 10
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "y.mp4").read_bytes()
    made = frames_of(tmp_path / "x.mp4")
    np.testing.assert_allclose([at for at, _ in made], np.arange(10) / RATE, atol=1 / 90_000)


def test_a_picture_that_is_skipped_repeats_the_frame_before(tmp_path):
    still = tmp_path / "still.mkv"
    with av.open(str(still), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "bgr0"
        for k in (0, 0, 0, 4, 4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    sink = Kept()
    outcome = run(PipelineDouble(), still, sink, similarity=0.99, **SETTINGS)
    assert outcome.frames == 5 and outcome.source["shown"] == 2 and outcome.source["skipped"] == 3
    same = [np.array_equal(a, b) for a, b in pairwise(sink.pixels)]
    assert same == [True, True, False, True]


def test_a_dream_has_as_many_frames_as_were_asked_for(tmp_path):
    sink = Kept()
    outcome = run(PipelineDouble(), None, sink, frames=5, rate=10, **SETTINGS)
    assert outcome.frames == 5 and sink.times == [0, 0.1, 0.2, 0.3, 0.4]
    with pytest.raises(InputError, match="a dream does not end"):
        run(PipelineDouble(), None, Kept(), **SETTINGS)


class FakeTracker:
    """Opens the mouth in the second half of a clip, and sees no face in one picture."""

    def __init__(self) -> None:
        self.count = 0

    def feed(self, pixels):
        self.count += 1
        return None if self.count == 4 else {"jawOpen": float(self.count > 6), "headYaw": 10.0}


def test_the_face_in_a_clip_moves_an_avatar_into_a_video(tmp_path):
    from hotloop.live import Bus
    from hotloop.live.animation import AnimationSession
    from hotloop.live.headless import act

    path = clip(tmp_path / "a.mkv", 12)

    def acted(**given):
        sink = Kept()
        session = AnimationSession(controls=Bus(seed=1), side=96)
        outcome = act(session, path, sink, tracker=FakeTracker(), **given)
        assert sink.state == "closed"
        return sink, outcome

    (white, outcome), (again, _), (green, _) = acted(), acted(), acted(ground=(0, 255, 0))
    assert outcome.frames == outcome.source["in"] == 12 and outcome.source["skipped"] == 1
    np.testing.assert_allclose(white.times, np.arange(12) / RATE, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(white.pixels, again.pixels, strict=True))
    assert white.pixels[0][0, 0].tolist() == [255] * 3 and green.pixels[0][0, 0].tolist() == [0, 255, 0]
    mouth = [int(np.abs(pixels[60:80, 40:56].astype(int) - white.pixels[0][60:80, 40:56]).sum())
             for pixels in white.pixels]  # fmt: skip
    assert min(mouth[9:]) > 3 * max(mouth[1:6])


def test_a_stream_moves_an_avatar_which_lives_on_where_it_is_lost(tmp_path, monkeypatch):
    from hotloop.live import Bus
    from hotloop.live.animation import AnimationSession
    from hotloop.live.headless import act

    monkeypatch.setattr(video_module, "_FIRST_WAIT", 0.05)
    data, sink = clip(tmp_path / "a.ts", 12, codec="libx264").read_bytes(), Kept()
    session = AnimationSession(controls=Bus(seed=1), side=64, interval=1 / 50)
    with sender(data, 1) as port:
        outcome = act(session, f"tcp://127.0.0.1:{port}", sink, tracker=FakeTracker(), frames=40)
    assert outcome.frames == 40 and sink.times == sorted(set(sink.times)) and sink.times[-1] > 0.5
    assert outcome.source["in"] == sum(outcome.source.values()) - outcome.source["in"] > 1


def test_the_command_redraws_a_clip_and_tells_where_its_pictures_went(tmp_path, monkeypatch, capsys):
    import hotloop
    from hotloop.cli.headless import redraw

    monkeypatch.setattr(hotloop, "load", lambda *_, **__: PipelineDouble())
    path, out = clip(tmp_path / "a.mkv", 6), tmp_path / "out.mp4"
    given = {"bundle": None, "engine": "auto", "threads": None, "size": SIDE, "rate": 30.0}
    redraw(str(path), str(out), None, settings={"prompt": "a face", "num_inference_steps": 1}, **given)
    assert len(frames_of(out)) == 6
    assert "out.mp4  6 frames" in (said := capsys.readouterr().out) and said.endswith("of 6 pictures: shown 6\n")
    redraw(str(path), str(tmp_path / "few.mp4"), 4, settings={"prompt": "a face"}, **given)
    assert len(frames_of(tmp_path / "few.mp4")) == 4
    with pytest.raises(InputError, match="need a sink"):
        redraw(str(path), None, None, settings={}, **given)


@pytest.mark.parametrize("fault", ["source", "settings", "sink"])
def test_what_is_refused_leaves_no_file(tmp_path, fault):
    path = clip(tmp_path / "a.mkv", 3)
    source = tmp_path / "none.mp4" if fault == "source" else path
    settings = SETTINGS | ({"steps": 0} if fault == "settings" else {})
    with pytest.raises(InputError):
        run(PipelineDouble(), source, tmp_path / ("out.avi" if fault == "sink" else "out.mp4"), **settings)
    assert [one.name for one in tmp_path.iterdir()] == ["a.mkv"]
