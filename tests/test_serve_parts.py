"""What the server is made of, without a server: frames' memory, messages, wire, limits, tokens, names, mirrors."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import socket
import struct
import sys
import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from hotloop.errors import InputError
from hotloop.live.bus import Bus
from hotloop.live.controls import INDEX
from hotloop.live.ledgers import ENDS
from hotloop.live.stamps import Stamp
from hotloop.serve import supervisor
from hotloop.serve.auth import Guard, Tokens
from hotloop.serve.beat import Beat
from hotloop.serve.channel import Channel, pack, receive
from hotloop.serve.config import Config
from hotloop.serve.encoding import encode, open_picture
from hotloop.serve.filming import Filming
from hotloop.serve.limits import Limits, settable
from hotloop.serve.live import Live
from hotloop.serve.mirror import Mirror, replay
from hotloop.serve.ring import Ring, memory
from hotloop.serve.supervisor import Supervisor
from hotloop.serve.viewer import Finished, Viewer, plain
from hotloop.serve.wire import FORMATS, ask, frame_header, hello, picture

TOKEN = "0123456789abcdef0123456789abcdef"


# A camera of this machine.


def test_the_server_shows_the_newest_frame_as_a_camera(monkeypatch):
    shown, told = [], []
    camera = SimpleNamespace(width=8, height=6, send=lambda frame: shown.append(frame.copy()), close=lambda: None)
    package = SimpleNamespace(Camera=lambda **given: told.append(given) or camera)
    monkeypatch.setitem(sys.modules, "pyvirtualcam", package)
    session = SimpleNamespace(
        config=Config(fps=100), worker=SimpleNamespace(facts={"size": [8, 6]}), viewers=set(),
        leave=lambda viewer, now: session.viewers.discard(viewer), join=lambda viewer: session.viewers.add(viewer),
    )  # fmt: skip

    async def film() -> None:
        filming = Filming(session, None, (0, 255, 0))
        await filming.start()
        (viewer,) = session.viewers
        rgba = np.zeros((6, 8, 4), np.uint8)
        rgba[0, 0] = 255, 0, 0, 255
        done = encode(rgba, FORMATS["rgba-lz4"])
        head = frame_header(Stamp(1, None, 1, received=1.0, taken=1.0), done.kind, (8, 6), len(done.colour), 0,
                            source=0, version=1, frame=1)  # fmt: skip
        viewer.offer(Finished(head + done.colour, 1, 1.0, None, False), 1.0)
        while len(shown) < 2:
            await asyncio.sleep(0.01)
        filming.close()

    asyncio.run(asyncio.wait_for(film(), 10))
    assert told[0]["width"] == 8 and (shown[0] == (0, 255, 0)).all() and not session.viewers
    assert tuple(shown[1][0, 0]) == (255, 0, 0) and (shown[1][1:] == (0, 255, 0)).all()


# Between the processes.


def test_what_is_read_from_the_ring_is_what_was_written_then_or_nothing():
    fd = memory(3 * 256)
    writer, reader = Ring(fd, 3, 256), Ring(fd, 3, 256)
    os.close(fd)
    places = [writer.write(bytes([i]) * i, b"end") for i in range(1, 6)]
    assert [slot for slot, _ in places] == [0, 1, 2, 0, 1]
    read = [reader.read(*place) for place in places]
    assert read == [None, None, *(bytes([i]) * i + b"end" for i in (3, 4, 5))]
    assert writer.write(bytes(256)) is None and writer.write(bytes(240)) is not None


def test_a_message_arrives_whole_whatever_pieces_it_comes_in():
    async def through() -> list[tuple[dict, bytes]]:
        reader = asyncio.StreamReader()
        data = pack({"do": "a", "x": [1.5, "ü"]}, bytes(range(256))) + pack({"do": "b"})
        for i in range(0, len(data), 7):
            reader.feed_data(data[i : i + 7])
        reader.feed_eof()
        told = [await receive(reader), await receive(reader)]
        with pytest.raises(EOFError):
            await receive(reader)
        return told

    assert asyncio.run(through()) == [({"do": "a", "x": [1.5, "ü"]}, bytes(range(256))), ({"do": "b"}, b"")]
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    ours.sendall(pack({"do": "c"}, b"12"))
    assert channel.receive() == ({"do": "c"}, b"12")
    ours.sendall(struct.pack("<II", 2**31, 0))  # more than any message has
    with pytest.raises(EOFError):
        channel.receive()


def test_what_may_be_lost_is_not_waited_for():
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    sent = 0
    while channel.offer({"do": "frame", "pad": "x" * 1000}):
        sent += 1
        assert sent < 10_000
    assert sent > 10
    ours.recv(1 << 20)
    assert channel.offer({"do": "frame"})


def test_a_worker_that_falls_again_and_again_is_left_alone(capfd):
    states = []

    async def fall() -> float:
        command = (sys.executable, "-S", "-c", "import sys; sys.exit(3)")
        one = Supervisor({"do": "config"}, Ring, 2, 64, heard=print, changed=states.append, command=command)
        with pytest.raises(InputError, match="must start"):
            await asyncio.wait_for(one.start(), 60)
        return one.restarts

    assert asyncio.run(fall()) == 4 and states == ["down"] * 4 + ["stopped"]
    assert "left alone" in capfd.readouterr().err


def test_a_worker_that_was_left_alone_is_tried_once_more_where_that_is_wanted(tmp_path, capfd):
    """It falls five times, and after that no more: whoever waits a while has a worker again."""
    states, count = [], tmp_path / "count"
    code = (
        "import socket, sys, time\nfrom pathlib import Path\nfrom hotloop.serve.channel import Channel\n"
        "channel = Channel(socket.socket(fileno=int(sys.argv[1])))\ntold, _ = channel.receive()\n"
        "channel.send({'do': 'answer', 'id': told['id']})\n"
        f"file = Path({str(count)!r})\nfile.write_text(file.read_text() + 'x' if file.exists() else 'x')\n"
        "time.sleep(0 if len(file.read_text()) <= 5 else 1000)\n"
    )

    async def live() -> None:
        command = (sys.executable, "-c", code)
        one = Supervisor({"do": "config"}, Ring, 2, 64, heard=print, changed=states.append, command=command, again=0.3)
        await asyncio.wait_for(one.start(), 60)
        async with asyncio.timeout(60):
            while states[-2:] != ["stopped", "ready"]:
                await asyncio.sleep(0.02)
        await one.close(0.0)

    asyncio.run(live())
    assert states.count("ready") == 6 and states.count("stopped") == 1 and "left alone" in capfd.readouterr().err


# Answers that it is ready, and what it was told first; then ends, or (SLEEP) gives no more sign of life.
FAKE = """
import socket, sys, time
from hotloop.serve.channel import Channel
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
told, body = channel.receive()
channel.send({"do": "answer", "id": told["id"], "echo": told["say"]}, b"bytes")
time.sleep(SLEEP)
"""


@pytest.mark.parametrize(("sleep", "falls"), [("0", 5), ("1000", 1)])
def test_a_worker_that_falls_or_sticks_is_started_again(sleep, falls, capfd, monkeypatch):
    monkeypatch.setattr(supervisor, "_STILL", 0.5)

    async def live() -> tuple[list[str], Supervisor]:
        states: list[str] = []
        command = (sys.executable, "-c", FAKE.replace("SLEEP", sleep))
        one = Supervisor({"do": "config", "say": "ü"}, Ring, 2, 64, heard=print, changed=states.append, command=command)
        await asyncio.wait_for(one.start(), 60)
        assert one.facts["echo"] == "ü" and one.facts["body"] == b"bytes"
        while states.count("down") < min(falls, 4) or (falls == 5 and one.state != "stopped"):
            await asyncio.sleep(0.05)
        await one.close()
        with pytest.raises(InputError, match="starting again"):
            await one.ask({"do": "stats"})
        return states, one

    states, one = asyncio.run(asyncio.wait_for(live(), 60))
    if falls == 5:  # and then no more
        assert states == ["ready", "down"] * 4 + ["ready", "stopped"] and one.restarts == 4
    else:
        assert states[:2] == ["ready", "down"] and "no sign of life" in capfd.readouterr().err
    assert one._process is not None and one._process.poll() is not None  # nothing is left


# The wire.


def test_a_frame_header_says_what_the_documentation_says():
    stamp = Stamp(0, 1, 1, captured=1.0, received=1.5, taken=2.0, decoded=2.25, encoded=2.5)
    data = frame_header(stamp, 2, (64, 48), 100, 7, source=9, version=3, frame=2**32 + 5)
    assert len(data) == 72 and data[:4] == b"HLF1" and data[4] == 2 and data[5] == 1
    assert struct.unpack("<HIIIHH", data[6:24]) == (72, 5, 9, 3, 64, 48)
    assert struct.unpack("<5Q", data[24:64]) == (1_000_000, 1_500_000, 2_000_000, 2_250_000, 2_500_000)
    assert struct.unpack("<II", data[64:]) == (100, 7)
    assert frame_header(Stamp(0, None, 1), 1, (1, 1), 1, 0, source=0, version=1, frame=0)[5] == 0


def test_frames_decode_to_what_was_encoded():
    import io

    import lz4.block
    from PIL import Image

    y, x = np.mgrid[:48, :64]
    rgba = np.dstack([3 * x, 4 * y, x + y, 255 * (x > 20)]).astype(np.uint8)
    done = encode(rgba, FORMATS["jpeg+alpha"])
    seen = np.asarray(Image.open(io.BytesIO(done.colour))).astype(int)
    assert done.kind == 2 and np.abs(seen - rgba[:, :, :3]).mean() < 3
    alpha = np.frombuffer(lz4.block.decompress(done.alpha, uncompressed_size=48 * 64), np.uint8)
    assert np.array_equal(alpha.reshape(48, 64), rgba[:, :, 3])
    raw = encode(rgba, FORMATS["rgba-lz4"])
    assert lz4.block.decompress(raw.colour, uncompressed_size=rgba.size) == rgba.tobytes() and not raw.alpha
    rgb = np.ascontiguousarray(rgba[:, :, :3])
    assert encode(rgb, FORMATS["jpeg+alpha"]).kind == FORMATS["jpeg"]
    opaque = encode(rgb, FORMATS["rgba-lz4"])
    assert lz4.block.decompress(opaque.colour, uncompressed_size=rgba.size)[3::4] == b"\xff" * (48 * 64)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "JSON"), ("[1]", "JSON object"), ("[" * 100_000, "at most 65536 characters"), ("[" * 5000, "JSON"),
        ('{"set": 3}', "set must be"), ('{"blend": -1}', "blend"), ('{"ack": -1}', "ack"), ('{"ack": true}', "ack"),
        ('{"ping": NaN}', "ping"), ('{"ping": 1e400}', "ping"), ('{"id": [1]}', "id"), ('{"record": 1}', "record"),
        ('{"nod": 1}', "fields are"), ('{"controls": 3}', "controls"), ('{"expression": "bored"}', "expression"),
        ('{"t": NaN}', "t must"), ('{"play": 3}', "play"), ('{"set": {}, "settings": 5}', "settings"),
    ],
)  # fmt: skip
def test_a_bad_message_is_answered_in_one_line(text, rule):
    with pytest.raises(InputError, match=rule) as raised:
        ask(text, 65536)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("told", "rule"),
    [
        ({}, "first message"), ({"hello": 2}, "first message"), ({"hello": 1, "role": "king"}, "role"),
        ({"hello": 1, "format": "gif"}, "format"), ({"hello": 1, "fps": 0}, "fps"), ({"hello": 1, "fps": "a"}, "fps"),
        ({"hello": 1, "token": 5}, "token"), ({"hello": 1, "session": []}, "session"),
    ],
)  # fmt: skip
def test_a_bad_hello_is_answered_in_one_line(told, rule):
    with pytest.raises(InputError, match=rule):
        hello(json.dumps(told), 60)
    assert hello('{"hello": 1, "fps": 500}', 60).fps == 60


def test_a_source_picture_is_what_its_header_says():
    data = struct.pack("<4sIdII", b"HLS1", 7, 12.5, 3, 0) + b"abc"
    assert picture(data, 100) == (7, 12.5, b"abc")
    wrong = [data[:-1], data + b"d", b"HLS2" + data[4:], data[:20], struct.pack("<4sIdII", b"HLS1", 7, math.nan, 0, 0)]
    for one in wrong:
        with pytest.raises(InputError):
            picture(one, 100)
    with pytest.raises(InputError, match="at most 20 bytes"):
        picture(data, 20)


def test_pictures_are_measured_before_they_are_read():
    import io
    import zlib

    from PIL import Image

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    # The header alone: were the pixels read, it would fail as broken, not as too large.
    for side in (6000, 60_000):
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb += chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        with pytest.raises(InputError, match="at most 4000000 pixels"):
            open_picture(bomb, 4_000_000)
    good = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(good, "PNG")
    assert open_picture(good.getvalue(), 64).tolist() == [[[10, 20, 30]] * 8] * 8
    gif = io.BytesIO()
    Image.new("RGB", (8, 8)).save(gif, "GIF")
    for data in (b"", b"nothing", good.getvalue()[:-36], gif.getvalue()):
        with pytest.raises(InputError, match="readable PNG, JPEG, WEBP"):
            open_picture(data, 64)


# Viewers.


def test_a_viewers_ledger_is_exact_and_no_older_frame_follows_a_newer_one():
    rng, viewer, sent, now = random.Random(4), Viewer("viewer", 1, 60), [], 0.0
    flying = None
    for number in range(3000):
        now += rng.uniform(0, 0.03)
        viewer.offer(Finished(b"", number, now, now, False), now)
        if (frame := viewer.frame()) is not None:
            sent.append(frame.number)
            flying = frame.number
        if flying is not None and rng.random() < 0.4:
            viewer.acknowledge(flying, None, now)
            flying = None
            if (frame := viewer.frame()) is not None:
                sent.append(frame.number)
                flying = frame.number
        told = viewer.stats(now)
        assert told["offered"] == told["acknowledged"] + told["superseded"] + told["unacknowledged"]
        assert told["unacknowledged"] <= 2
    assert sent == sorted(set(sent)) and told["superseded"] > 100
    with pytest.raises(InputError, match="ack must name"):
        viewer.acknowledge(12345678, None, now)


@pytest.mark.parametrize("fps", [10, 24, 30])
def test_a_viewer_gets_the_rate_that_it_asked_for(fps):
    viewer, now, got = Viewer("viewer", 1, fps), 0.0, 0
    for number in range(600):  # ten seconds at 60 frames a second
        now += 1 / 60
        viewer.offer(Finished(b"", number, now, None, False), now)
        if viewer.frame() is not None:
            got += 1
            viewer.acknowledge(number, None, now)
    assert got == pytest.approx(10 * fps, abs=2 + fps / 10)


def test_json_has_no_nan():
    assert plain({"a": [math.nan, 1.0], "b": (math.inf, {"c": "x"})}) == {"a": [None, 1.0], "b": [None, {"c": "x"}]}


# Limits, tokens, names.


def test_only_what_json_carries_can_be_set_and_only_as_large_as_the_limits():
    limits = Limits()
    assert limits.settings({"steps": 2, "prompt": "a boy", "size": 64}) == {
        "num_inference_steps": 2, "prompt": "a boy", "size": 64,
    }  # fmt: skip
    assert not {"callback", "generator", "latents", "num_images_per_prompt", "num_images"} & settable()
    for given in (
        {"callback": 1}, {"generator": 1}, {"num_images": 3}, {"stepz": 1}, {"size": 4096}, {"size": [64, 9e9]},
        {"width": 5000}, {"steps": 1000}, {"prompt": "x" * 2001}, {"prompt": ["a", "b"]}, {"size": 2048},
    ):  # fmt: skip
        with pytest.raises(InputError):
            limits.settings(given)


@pytest.mark.parametrize(
    "given",
    [
        {"host": "0.0.0.0"}, {"host": "::"}, {"host": "192.168.1.5"}, {"host": "example.org"}, {"token": "short"},
        {"host": "0.0.0.0", "token": "x" * 31}, {"port": 70000}, {"fps": 0}, {"fps": math.nan}, {"size": 5000},
        {"mode": "dance"}, {"osc": -1}, {"settings": {"steps": 1000}},
    ],
)  # fmt: skip
def test_a_server_is_not_started_open_to_others_nor_out_of_range(given):
    with pytest.raises(InputError):
        Config(**given)


def test_an_open_address_takes_a_token_or_the_word_that_it_needs_none():
    assert Config(host="0.0.0.0", token=TOKEN).token == TOKEN and Config(host="0.0.0.0", insecure=True).insecure
    assert [Config(host=host).host for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9")]


FREE = ("/healthz", "/readyz", *Live.pages)


def through_guard(config, path="/api/live", kind="http", address="10.0.0.9", tokens=None, **headers):
    """Status that the guard answers with; 0 where it lets a request through."""
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def receive():
        return {"type": f"{kind}.connect"}

    async def send(message):
        sent.append(message)

    tokens = tokens or Tokens(config.token, 10, lambda: 0.0)
    scope = {
        "type": kind, "path": path, "client": (address, 1), "extensions": {"websocket.http.response": {}},
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(Guard(app, config, tokens, FREE)(scope, receive, send))
    return 0 if passed else sent[0]["status"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:8188", None, 0), ("localhost:8188", None, 0), ("[::1]:8188", None, 0),
        ("127.0.0.1:8188", "http://127.0.0.1:8188", 0), ("me.example:1", None, 0),
        ("localhost:8188", "https://page.example", 0), ("evil.example", None, 403), ("", None, 403),
        ("127.0.0.1.evil.example", None, 403), ("192.168.1.5:8188", None, 403), ("localhost@evil.example", None, 403),
        ("127.0.0.1:8188", "http://evil.example", 403), ("127.0.0.1:8188", "null", 403),
        ("127.0.0.1:8188", "http://127.0.0.1:9999", 403), ("127.0.0.1:8188", "file://", 403),
        ("127.0.0.1:8188", "http://[", 403), ("[", None, 403),
    ],
)  # fmt: skip
def test_foreign_names_and_pages_are_refused(kind, host, origin, status):
    config = Config(allow_hosts=("me.example",), allow_origins=("https://page.example",))
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    for path in ("/", "/api/live/ws", "/healthz"):
        assert through_guard(config, path, kind, **headers) == status


def test_an_open_server_is_known_by_any_address_but_by_no_foreign_name():
    config = Config(host="0.0.0.0", token=TOKEN)
    assert through_guard(config, "/", host="192.168.1.5:8188") == 0
    assert through_guard(config, "/", host="evil.example") == 403


def test_every_route_but_pages_and_health_wants_the_token():
    from base64 import b64encode

    from hotloop.serve.app import create_app

    config = Config(token=TOKEN)
    host = {"host": "localhost"}
    routes = {getattr(route, "path", "") for route in create_app(config).routes}
    free = {path for path in routes if path != "/api/live/ws" and through_guard(config, path, **host) == 0}
    assert free == {"/", "/view", "/monitor", "/healthz", "/readyz"} and "/mjpeg" in routes
    assert through_guard(config, "/static/app.js", **host) == 0
    assert through_guard(config, "/static", **host) == 401
    basic = b64encode(f"obs:{TOKEN}".encode()).decode()
    for said, status in (
        (f"Bearer {TOKEN}", 0), (f"Basic {basic}", 0), (f"Bearer {TOKEN}x", 401), (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer", 401), ("Basic %%%", 401), (TOKEN, 401), ("Bearer " + "y" * 5000, 401),
    ):  # fmt: skip
        assert through_guard(config, authorization=said, **host) == status
    assert through_guard(config, f"/api/live?token={TOKEN}", **host) == 401


def test_wrong_tokens_are_counted_by_address():
    now = [0.0]
    tokens, config = Tokens(TOKEN, 10, lambda: now[0]), Config(token=TOKEN)

    def ask_with(token, address):
        return through_guard(config, host="localhost", authorization=f"Bearer {token}", address=address, tokens=tokens)

    assert [ask_with("no", "1.1.1.1") for _ in range(11)] == [401] * 10 + [429]
    assert ask_with(TOKEN, "1.1.1.1") == 429 and ask_with(TOKEN, "2.2.2.2") == 0
    now[0] = 61.0
    assert ask_with(TOKEN, "1.1.1.1") == 0


def test_other_pages_may_not_embed_the_stream():
    config = Config()
    assert through_guard(config, "/mjpeg", host="localhost", sec_fetch_site="cross-site") == 403
    assert through_guard(config, "/mjpeg", host="localhost", sec_fetch_site="same-origin") == 0
    assert through_guard(config, "/mjpeg", host="localhost", sec_fetch_site="none") == 0


# Controls.


def test_the_workers_bus_gives_the_bits_of_the_servers_and_of_one_that_was_started_again():
    told = []
    bus, twin = Mirror(lambda one: told.append(json.loads(json.dumps(one))), seed=3), Bus(seed=3)
    bus.join("page", smooth=False, timeout=math.inf)
    rng, t = random.Random(2), 0.0
    for i in range(200):
        t += rng.uniform(0.005, 0.03)
        bus.put("cam", t, {"jawOpen": rng.random(), "headYaw": rng.uniform(-80, 80), "nose": 1})
        if i == 50:
            bus.put("page", t, {"happy": 0.7})
        if i % 7 == 0:
            bus.put("vts:a", t, {"headPitch": 3.0}, mode="add")
        while told:
            replay(twin, told.pop(0))
        assert np.array_equal(bus.sample(t), twin.sample(t))
    bus.repeat(t)
    again = Bus(seed=3)
    for one in told:
        replay(again, one)
    told.clear()
    after = again.sample(t + 0.5)
    assert after[INDEX["happy"]] == pytest.approx(0.7) and after[INDEX["jawOpen"]] > 0
    bus.release("page")
    bus.repeat(t + 5)
    assert [one["bus"] for one in told] == ["release"]  # what is old is not repeated


def test_a_channels_threads_do_not_mix_their_messages():
    ours, theirs = socket.socketpair()
    channel, reader = Channel(theirs), Channel(ours)

    def talk(name):
        for i in range(200):
            channel.send({"do": name, "i": i}, name.encode() * i)

    threads = [threading.Thread(target=talk, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    got = [reader.receive() for _ in range(400)]
    for thread in threads:
        thread.join()
    for name in "ab":
        assert [(told["i"], body) for told, body in got if told["do"] == name] == [
            (i, name.encode() * i) for i in range(200)
        ]
    assert len(ENDS) == 5


# When frames begin.


def paced(signals: list[float], *, interval: float = 1 / 60, cost: float = 0.004) -> tuple[np.ndarray, np.ndarray]:
    """Ten seconds of a beat that signals come to at these times -> when frames began, how long each signal waited."""
    beat, now, waiting, began, waits = Beat(interval), 0.0, list[float](), list[float](), list[float]()
    coming = deque(signals)
    while now < 10:
        due = max(beat.next(bool(waiting)), now)
        if coming and coming[0] <= due:
            now = max(now, coming[0])
            waiting.append(coming.popleft())
            continue
        now = due
        beat.began(now, bool(waiting))
        began.append(now)
        waits += [now - at for at in waiting]
        waiting.clear()
        now += cost
    return np.array(began), np.array(waits)


def test_without_signals_frames_come_on_the_beat() -> None:
    began, _ = paced([])
    np.testing.assert_allclose(np.diff(began[2:]), 1 / 60, atol=1e-9)


@pytest.mark.parametrize("jitter", [0.0, 0.0005, 0.001])
@pytest.mark.parametrize("rate", [60, 120])
def test_signals_at_the_frames_rate_find_a_frame_that_waits_for_them(rate: int, jitter: float) -> None:
    """Whatever their phase: on a beat of its own a frame would let them wait half an interval."""
    rng = np.random.default_rng(0)
    for phase in (0.003, 0.009, 0.015):
        at = phase + np.arange(0, 9.9, 1 / rate)
        _, waits = paced(np.sort(at + rng.normal(0, jitter * 60 / rate, len(at))).tolist(), interval=1 / rate)
        settled = waits[30:]
        assert np.median(settled) < 1e-6 and np.quantile(settled, 0.95) < 0.0025


@pytest.mark.parametrize("rate", [24, 100, 1000])
def test_other_rates_of_signals_do_not_hurry_frames(rate: int) -> None:
    began, waits = paced(np.arange(0.003, 9.9, 1 / rate).tolist())
    assert 59 <= len(began) / 10 <= 60 * (1 + 1 / 30) + 0.5
    assert waits.max() <= 1.25 / 60 + 1e-6


# Several sessions.


class Heard:
    """A channel that keeps what it was told, and fails where it is told to."""

    def __init__(self) -> None:
        self.told: list[dict] = []
        self.broken = False

    def offer(self, told: dict) -> bool:
        if self.broken:
            raise OSError("no more")
        self.told.append(told)
        return True


@pytest.mark.parametrize("sessions", [1, 2, 3])
def test_frames_of_each_session_leave_in_order_however_many_are_encoded_beside_others(sessions):
    from hotloop.live.session import Frame
    from hotloop.serve.shows import Made
    from hotloop.serve.worker import Worker

    heard, fd = Heard(), memory(8 << 14)
    worker = Worker(heard, Ring(fd, 8, 1 << 14))
    os.close(fd)
    shows = [SimpleNamespace(name=f"s{i}", kinds=(2,), close=lambda: None) for i in range(sessions)]
    worker.shows = {one.name: one for one in shows}
    pixels = np.full((16, 16, 4), 200, np.uint8)
    try:
        for number in range(20):
            for show in shows:
                worker._encode(show, Made(Frame(pixels, Stamp(number, None, 1, taken=1.0)), number, 1, 0, False), (2,))
            assert len(worker._encoded) <= (sessions if sessions > 1 else 0)
        while worker._encoded:
            worker._encoded.popleft().result()
        for show in shows:
            assert [told["frame"] for told in heard.told if told["s"] == show.name] == list(range(20))
        heard.broken = True
        made = Made(Frame(pixels, Stamp(20, None, 1, taken=1.0)), 20, 1, 0, False)
        with pytest.raises(OSError, match="no more"):  # not silent: the worker falls, as by any other fault
            for _ in range(sessions + 1):
                worker._encode(shows[0], made, (2,))
    finally:
        worker._encoded.clear()
        worker.close()
