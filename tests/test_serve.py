"""`hotloop live` in a process of its own, asked by a client that knows nothing of hotloop (tests/live_client.py)."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from live_client import Client, Server, balanced, get
from PIL import Image
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import hotloop.serve
from hotloop.cli import app
from hotloop.errors import HotloopError

pytest.importorskip("fastapi", reason="the extra [serve]")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Ends as a person would end it, and then there is nothing left of it."""
    one = Server("avatar-tiny", "--mode", "restyle", "--no-governor", "--steps", "1", "--threads", "1")
    yield one
    port = int(one.address.rsplit(":", 1)[1].strip("/"))
    children = one.workers()
    watcher = Client(one.address, format="none")
    with deaf(one.address):  # who does not hear of the end is not waited for long, and meanwhile the address answers
        one.process.send_signal(signal.SIGINT)
        states = [get(one.address, path) for path in ("healthz", "readyz")]
        while states[-1][0] == 200:
            states.append(get(one.address, "readyz"))
        assert states[0] == (200, "ok\n") and states[-1] == (503, "not ready\n")
        errors = one.process.communicate(timeout=15)[1]
    assert one.process.returncode == 0 and errors == ""
    assert watcher.until("event", event="ending")
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            watcher.receive()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
    assert len(children) == 1 and not os.path.exists(f"/proc/{children[0]}")
    socket.create_server(("127.0.0.1", port)).close()  # the port is free again


@contextmanager
def deaf(address: str) -> Iterator[None]:
    """A viewer that joined and from then on neither reads nor answers; without a library, which would."""
    host, port = address.removeprefix("http://").strip("/").split(":")
    hello = json.dumps({"hello": 1, "format": "none"}).encode()
    frame = bytes([0x81, 0x80 | len(hello), 0, 0, 0, 0]) + hello  # masked by zeros
    asking = f"GET /api/live/ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    asking += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as one:
        one.sendall(asking.encode())
        assert one.recv(4096).startswith(b"HTTP/1.1 101")
        one.sendall(frame)
        assert b"welcome" in one.recv(4096)
        yield


def picture(seed: int = 0, side: int = 64, form: str = "JPEG") -> bytes:
    y, x = np.mgrid[:side, :side]
    pixels = np.dstack([x * 255 // side, y * 255 // side, (x + seed * 40) % 256]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


# Frames.


def test_frames_come_in_order_and_their_times_too(server: Server) -> None:
    with Client(server.address) as client:
        assert client.welcome["session"] == "main" and client.welcome["mode"] == "restyle"
        frames = [client.frame() for _ in range(12)]
    numbers = [frame.number for frame in frames]
    assert numbers == sorted(set(numbers))
    assert frames[-1].pixels().shape == (64, 64, 3) and frames[-1].pixels().std() > 10
    assert not np.array_equal(frames[0].pixels(), frames[-1].pixels())  # it dreams
    for frame in frames[1:]:
        captured, received, taken, made, encoded = frame.times
        assert captured == 0 and 0 < received <= taken <= made <= encoded


def test_every_format_shows_the_same_picture(server: Server) -> None:
    with Client(server.address, session="new") as client, Client(
        server.address, session=client.welcome["session"], format="rgba-lz4", role="viewer"
    ) as raw:  # fmt: skip
        version = client.ask(set={"prompt": "an old man", "drift": 0})["version"]
        jpeg, exact = client.frame(version=version), raw.frame(version=version)
        assert exact.kind == 3 and (exact.pixels()[:, :, 3] == 255).all()
        assert np.abs(jpeg.pixels().astype(int) - exact.pixels()[:, :, :3]).mean() < 6


def test_settings_change_between_frames_and_all_who_watch_are_told(server: Server) -> None:
    with Client(server.address, session="new") as client, Client(
        server.address, session=client.welcome["session"], role="viewer", format="none"
    ) as other:  # fmt: skip
        told = client.ask(set={"prompt": "an angry boy", "seed": 7, "drift": 0}, blend=0)
        assert told["settings"]["prompt"] == "an angry boy" and told["version"] == 2
        assert other.until("settings")["settings"] == told["settings"]
        first = client.frame(version=2)
        again = client.frame(version=2)
        assert np.array_equal(first.pixels(), again.pixels())  # nothing drifts
        told = client.ask(set={"prompt": "an old man"})
        assert not np.array_equal(client.frame(version=told["version"]).pixels(), first.pixels())


def test_the_picture_is_the_pipelines_own(server: Server, pipe: object) -> None:
    """A dream that stands still is what txt2img draws from its seed and table."""
    with Client(server.address, session="new", format="rgba-lz4") as client:
        given = {"prompt": "a girl with pink hair", "seed": 5, "steps": 2, "drift": 0}
        version = client.ask(set=given)["version"]
        seen = client.frame(version=version).pixels()[:, :, :3]
    drawn = pipe.txt2img(  # type: ignore[attr-defined]
        given["prompt"], seed=5, num_inference_steps=2, sampler="lcm", guidance_scale=1.0, width=64, height=64
    )
    assert np.abs(seen.astype(int) - np.asarray(drawn.images[0])).max() <= 1


def test_pictures_are_redrawn_and_each_has_one_end(server: Server) -> None:
    with Client(server.address, session="new") as client:
        client.frame()
        for i in range(1, 40):
            client.picture(picture(i), source=i)
            if i % 4 == 0:
                client.frame()
        while (frame := client.frame()).source != 39:
            assert frame.source < 39
        assert frame.times[0] > 0 and frame.times[0] <= frame.times[1] <= frame.times[2]  # captured, by a known clock
        stats = client.ask(stats=1)["stats"]
        assert stats["source"]["in"] == 39 and stats["source"]["shown"] >= 1 and balanced(stats)
        assert stats["viewer"]["clock"]["error"] < 0.5 and stats["dreams"] is False
        with Client(server.address, session=client.welcome["session"], role="viewer") as late:
            assert late.frame().source == 39  # who comes late sees what stands
        # A picture that stands is drawn again when the settings change.
        version = client.ask(set={"prompt": "an old man"})["version"]
        assert client.frame(version=version).source == 39
        client.say(source=False)
        while client.frame().source == 39:
            pass
        assert client.ask(stats=1)["stats"]["dreams"] is True


def test_the_last_word_counts_while_pictures_are_still_being_taken(server: Server) -> None:
    """Said right behind them, before the session has opened for pictures: it dreams in the end."""
    with Client(server.address) as client:
        client.frame()
        for i in range(1, 4):
            client.picture(picture(i), source=i)
        client.say(source=False)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            client.frame()
        while not (stats := client.ask(stats=1)["stats"])["dreams"]:
            assert time.monotonic() < end + 15, stats
            with suppress(TimeoutError):
                client.receive(0.2)
        assert balanced(stats) and stats["source"]["in_flight"] == 0
        client.frames.clear()
        assert client.frame().number != client.frame().number  # and goes on


def test_a_slow_viewer_gets_fewer_frames_but_never_older_ones(server: Server) -> None:
    with Client(server.address) as quick, Client(server.address, role="viewer", acks=False) as slow:
        fast = [quick.frame().number for _ in range(5)]
        first = slow.frame()
        fast += [quick.frame().number for _ in range(15)]
        with suppress(TimeoutError):
            for _ in range(5):
                slow.receive(0.1)
        assert not slow.frames  # it owes an answer for one: no more is sent
        slow.say(ack=first.number)
        second = slow.frame()
        assert second.number >= fast[-1] - 1
        stats = slow.ask(stats=1)["stats"]
        assert balanced(stats) and stats["viewer"]["superseded"] >= 10
        assert quick.ask(stats=1)["stats"]["viewer"]["superseded"] <= 5


def test_mjpeg_plays_in_anything_that_reads_a_url(server: Server) -> None:
    with urllib.request.urlopen(server.address + "mjpeg?session=main", timeout=10) as stream:
        kind = stream.headers["Content-Type"]
        boundary = kind.split("boundary=")[1].encode()
        assert kind.startswith("multipart/x-mixed-replace")
        for _ in range(3):
            assert stream.readline() == b"--" + boundary + b"\r\n"
            assert stream.readline() == b"Content-Type: image/jpeg\r\n"
            size = int(stream.readline().split(b":")[1])
            assert stream.readline() == b"\r\n"
            assert Image.open(io.BytesIO(stream.read(size))).size == (64, 64)
            assert stream.readline() == b"\r\n"


def test_pages_and_facts(server: Server) -> None:
    for path in ("", "view", "monitor"):
        status, text = get(server.address, path)
        assert status == 200 and "<html" in text
    assert get(server.address, "healthz") == (200, "ok\n") and get(server.address, "readyz")[0] == 200
    facts = json.loads(get(server.address, "api/live")[1])
    assert {"jawOpen", "happy", "headYaw"} <= {row["name"] for row in facts["controls"]}
    assert facts["settings"]["properties"]["strength"]["maximum"] == 1 and facts["token_needed"] is False
    assert get(server.address, "static/..%2fapp.py")[0] == 404 and get(server.address, "docs")[0] == 404


def test_a_monitor_sees_every_control_as_it_comes(server: Server) -> None:
    with Client(server.address, format="none") as client, Client(server.address, role="monitor", format="none") as eye:
        client.say(controls={"jawOpen": 0.75}, expression="happy")
        deadline = time.monotonic() + 10
        values: dict = {}
        while time.monotonic() < deadline and values.get("happy", 0) < 0.99:
            rows = eye.until("controls")["controls"]["controls"]
            values = {row["name"]: row["value"] for row in rows}
        assert values["jawOpen"] == pytest.approx(0.75) and values["happy"] > 0.99


# What is wrong.


def test_what_is_wrong_is_one_line_and_the_stream_goes_on(server: Server) -> None:
    with Client(server.address, session="new") as client:
        client.frame()
        version = client.ask(set={"strength": 0.6})["version"]
        for given, rule in (
            ({"strength": 7}, "strength"), ({"strength": float("nan")}, "strength"), ({"promt": "x"}, "prompt"),
            ({"steps": 0}, "steps"), ({"size": 99999}, "size"), ({"size": 63}, "multiple of"),
            ({"callback": 1}, "callback"), ({"sampler": "nosuch"}, "sampler"), ({"seed": -7}, "seed"),
            ({"cfg_type": "self", "guidance_scale": 3}, "dream"), ({"prompt": "x" * 5000}, "characters"),
            ({"sampler_options": {"a": {"b": 1}}}, "sampler option"),
        ):  # fmt: skip
            told = client.ask(set=given)
            assert rule in told["error"] and "\n" not in told["error"], given
        for send, rule in (
            (lambda: client.socket.send("{"), "JSON"),
            (lambda: client.socket.send('{"nod": 1}'), "fields are"),
            (lambda: client.socket.send("x" * 70_000), "characters"),
            (lambda: client.say(controls={"jawOpen": float("nan"), "headYaw": 3}), "not finite"),
            (lambda: client.say(controls={"jawOpen": 9}), "held in their range"),
            (lambda: client.say(controls={"nose": 1}), "no controls"),
            (lambda: client.say(expression="bored"), "expression"),
            (lambda: client.say(play="nod"), "motions"),
            (lambda: client.say(ack=2**31), "ack must name"),
            (lambda: client.say(record=True), "record"),
            (lambda: client.socket.send(b"HLS1"), "source picture"),
            (lambda: client.picture(b"no picture"), "readable"),
            (lambda: client.picture(picture()[:300]), "readable"),
            (lambda: client.picture(picture(), size=5), "header tells"),
            (lambda: client.picture(bytes(2_100_000)), "2000000 bytes"),
        ):  # fmt: skip
            send()
            told = client.until("error")
            assert rule in told["error"] and "\n" not in told["error"] and len(told["error"]) < 400
            client.frame()
        # Another format and another size in mid-stream are no fault.
        client.picture(picture(3, 64), source=1)
        client.picture(picture(4, 200, "PNG"), source=2)
        client.picture(picture(5, 33, "WEBP"), source=3)
        while (frame := client.frame()).source != 3:
            pass
        assert frame.version == version
        stats = client.ask(stats=1)["stats"]
        assert stats["source"]["refused"] == 2 and balanced(stats)
        assert not any("Traceback" in json.dumps(told) or "/" in told.get("error", "") for told in client.texts)


def test_only_an_owner_acts(server: Server) -> None:
    with Client(server.address, role="viewer") as viewer:
        for act in (
            lambda: viewer.say(set={"seed": 1}), lambda: viewer.say(controls={"jawOpen": 1}),
            lambda: viewer.picture(picture()), lambda: viewer.say(play="nod"), lambda: viewer.say(source=False),
        ):  # fmt: skip
            act()
            assert "only an owner" in viewer.until("error")["error"]
        viewer.frame()


@pytest.mark.parametrize(
    ("hello", "rule"),
    [({"hello": 2}, "hello"), ({"role": "king"}, "role"), ({"session": "nobody"}, "no such session"),
     ({"session": "../../etc"}, "no such session")],
)  # fmt: skip
def test_who_does_not_say_who_it_is_is_sent_away(server: Server, hello: dict, rule: str) -> None:
    with Client(server.address, **hello) as client:
        assert rule in client.welcome["error"] and "etc" not in client.welcome["error"]
        with pytest.raises(ConnectionClosed):
            client.receive()


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_foreign_pages_and_names_are_refused_before_the_handshake(server: Server, headers: dict[str, str]) -> None:
    if "Origin" in headers:
        with pytest.raises(InvalidStatus) as refused:
            Client(server.address, headers=headers)
        assert refused.value.response.status_code == 403
        assert b"Origin" in refused.value.response.body
    assert get(server.address, "api/live", **headers)[0] == 403


def test_sessions_and_their_number_are_bounded(server: Server) -> None:
    with Client(server.address, session="new", format="none") as one:
        others = []
        while "welcome" in (made := Client(server.address, session="new", format="none")).welcome:
            others.append(made)
            assert len(others) < 5
        assert "at most 4 sessions" in made.welcome["error"]
        name = one.welcome["session"]
        assert Client(server.address, session=name, format="none").welcome["session"] == name
        for other in others:
            other.socket.close()


def test_a_flood_of_messages_is_answered_with_one_line(server: Server) -> None:
    with Client(server.address, session="main", format="none") as client:
        for _ in range(1500):
            client.say(ping=1)
        assert "messages a second" in client.until("error")["error"]
        time.sleep(0.3)
        client.texts.clear()
        assert client.ask(stats=1)["stats"]["version"] >= 1


def test_who_says_nothing_is_sent_away(server: Server) -> None:
    with connect(server.address.replace("http", "ws") + "api/live/ws") as one:
        assert "say hello" in json.loads(one.recv(timeout=15))["error"]


def test_connections_are_bounded(server: Server) -> None:
    clients = [Client(server.address, format="none") for _ in range(32)]
    refused = [client for client in [*clients, Client(server.address, format="none")] if "error" in client.welcome]
    for client in clients:
        client.socket.close()
    assert refused and "at most 32 connections" in refused[0].welcome["error"]


def test_what_is_larger_than_any_message_ends_its_connection_alone(server: Server) -> None:
    with Client(server.address) as client, Client(server.address, role="viewer") as other:
        with pytest.raises(ConnectionClosed) as closed:
            client.socket.send(bytes(5_000_000))
            while True:
                client.receive()
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        other.frame()


def test_the_process_that_listens_opens_no_engine(server: Server) -> None:
    (worker,) = server.workers()
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (server.process.pid, worker)]
    assert ["onnxruntime" in text or "openvino" in text for text in maps] == [False, True]


def test_no_pickle_goes_between_the_processes() -> None:
    """Nor anything that would make one: `multiprocessing` sends objects so."""
    named = set()
    for path in Path(hotloop.serve.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                named.add(node.module.split(".")[0])
    assert "json" in named and not named & {"pickle", "multiprocessing", "shelve", "marshal", "dill", "cloudpickle"}


# Faults.


def test_a_killed_worker_comes_back_with_the_sessions_settings(server: Server) -> None:
    with Client(server.address) as client, Client(server.address, role="viewer", format="rgba-lz4") as other:
        told = client.ask(set={"prompt": "an angry boy", "seed": 9, "strength": 0.7, "drift": 0})
        before = client.frame(version=told["version"])
        for i in range(5):
            client.picture(picture(i), source=100 + i)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        assert client.until("event", event="worker", state="down")
        assert get(server.address, "healthz")[0] == 200  # the address never goes
        assert "again" in client.ask(set={"seed": 3})["error"]
        while (after := client.frame()).number <= before.number or after.version <= told["version"]:
            pass
        assert client.until("event", event="worker", state="resumed")
        again = client.until("settings")
        assert again["settings"] == told["settings"] and again["version"] == after.version
        while other.frame().version < again["version"]:
            pass
        assert client.welcome["session"] == "main" and server.workers() != [worker]
        stats = client.ask(stats=1)["stats"]
        assert balanced(stats) and stats["worker"]["restarts"] == 1
        client.say(source=False)


# Starting and ending.


def refused(*options: str) -> str:
    """`hotloop live` in this process, which does not come to listen -> the line that says why."""
    result = CliRunner().invoke(app, ["live", "--mode", "restyle", *options])
    assert isinstance(result.exception, HotloopError), result.output
    assert result.output == "" and "\n" not in str(result.exception)
    return str(result.exception)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--host", "0.0.0.0"], "needs a token"), (["--token", "short"], "32"), (["--steps", "900"], "steps"),
        (["--mode=dance"], "mode"), (["--token-file", "/no/such/file"], "token-file"),
        (["--token-file", "/dev/zero"], "token-file"),
        (["--lora", "style"], "NAME=FILE"),
        (["--lora-dir", "/nosuch"], "lora-dir"),
        (["--lora", "a=/nosuch.safetensors"], "nosuch.safetensors"),
        (["--ice-server", "turn:x"], "ice-server"),
    ],
)  # fmt: skip
def test_a_server_that_may_not_start_says_why_in_one_line(options: list[str], rule: str) -> None:
    assert rule in refused("--port", "0", *options)


def test_what_the_worker_refuses_at_the_start_is_the_servers_line(server: Server, tmp_path: Path) -> None:
    port = server.address.rsplit(":", 1)[1].strip("/")
    assert f"port {port}" in refused("--port", port)
    assert str(tmp_path) in refused("--port", "0", str(tmp_path))  # no bundle
    assert "nosuch" in refused("--port", "0", "--engine", "nosuch")
    done = subprocess.run(
        [sys.executable, "-c", "from hotloop.cli import main; main()", "live", "--port", port],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
