"""`hotloop live` with the avatar that comes with it, behind a token, and its control sources by clients of others."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator

import lz4.block
import numpy as np
import pytest
from live_client import Client, Frame, Server, balanced, get
from pythonosc.udp_client import SimpleUDPClient
from websockets.sync.client import connect

from hotloop_kernels.warp_blend import reference

pytest.importorskip("fastapi", reason="the extra [serve]")
TOKEN = "an example of a token that is long enough"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server("--no-governor", "--fps", "20", "--osc", "0", "--vmc", "0", "--vts", "0", env={"HOTLOOP_TOKEN": TOKEN})
    yield one
    status, errors = one.end(signal.SIGTERM)
    assert status == 0 and TOKEN not in errors


def facts(server: Server) -> dict:
    status, text = get(server.address, "api/live", Authorization=f"Bearer {TOKEN}")
    assert status == 200 and TOKEN not in text
    return json.loads(text)


def middle(frame: Frame) -> float:
    """Where the avatar stands: the mean column of its alpha, in shares of the width."""
    alpha = frame.pixels()[:, :, 3].astype(float)
    return float((alpha.sum(axis=0) * np.arange(alpha.shape[1])).sum() / alpha.sum() / alpha.shape[1])


def seen(eye: Client, held: Callable[[dict], bool], seconds: float = 10.0) -> dict:
    """The monitor's rows by name, once `held` is true of them."""
    end = time.monotonic() + seconds
    while True:
        rows = {row["name"]: row for row in eye.until("controls")["controls"]["controls"]}
        if held(rows):
            return rows
        assert time.monotonic() < end, {name: row for name, row in rows.items() if row["source"]}


def test_a_token_is_asked_for_everywhere_and_told_nowhere(server: Server) -> None:
    assert get(server.address, "api/live")[0] == 401 and get(server.address, "mjpeg")[0] == 401
    assert get(server.address, "")[0] == 200 and get(server.address, "healthz")[0] == 200
    assert facts(server)["token_needed"] is True and facts(server)["mode"] == "animate"
    for token in (None, TOKEN + "x", TOKEN[:-1]):
        refused = Client(server.address, token=token)
        assert "token is wrong" in refused.welcome["error"] and TOKEN not in refused.welcome["error"]
    with Client(server.address, token=TOKEN) as client:
        client.frame()


def test_the_avatar_has_alpha_in_every_format_and_does_what_controls_say(server: Server) -> None:
    with (
        Client(server.address, token=TOKEN, session="new", format="jpeg+alpha") as client,
        Client(server.address, token=TOKEN, session=client.welcome["session"], format="rgba-lz4", role="viewer") as raw,
        Client(server.address, token=TOKEN, session=client.welcome["session"], format="jpeg", role="viewer") as flat,
    ):
        assert client.welcome["motions"] and client.welcome["controls"]["jawOpen"] >= 0
        exact = {frame.number: frame for frame in (raw.frame() for _ in range(8))}
        frame = client.frame()
        while frame.number not in exact:
            frame = client.frame()
        mine, theirs = frame.pixels(), exact[frame.number].pixels()
        assert frame.kind == 2 and frame.flags == 1 and mine.shape == (512, 512, 4)
        assert np.array_equal(mine[:, :, 3], theirs[:, :, 3]) and mine[0, 0, 3] == 0 and mine[300, 256, 3] == 255
        assert np.abs(mine[:, :, :3].astype(int) - theirs[:, :, :3]).mean() < 4
        assert (theirs[:, :, :3] <= theirs[:, :, 3:]).all()  # premultiplied
        assert flat.frame().kind == 1
        places = []
        for x in (-12, 12):
            client.say(controls={"headX": x}, t=1000 * time.monotonic())
            begun = time.monotonic()
            while time.monotonic() - begun < 1:
                frame = client.frame()
            places.append(middle(frame))
        assert places[1] - places[0] > 0.02
        client.say(controls={"headX": 0}, t=1000 * time.monotonic())
        number = frame.source
        while (frame := client.frame()).source == number:
            pass
        assert 0 < frame.times[0] <= frame.times[2]  # captured: the client's clock is known by now
        stats = client.ask(stats=1)["stats"]
        assert balanced(stats) and stats["viewer"]["wire"]["count"] >= 2 and stats["signals"] == 3
        assert client.ask(play="nod").get("done") == 1 and "motion" in client.ask(play="fly")["error"]
        assert client.ask(set={"expression": "happy"})["version"] == 1


def test_what_a_viewer_is_given_to_draw_is_the_frame_that_others_see(server: Server) -> None:
    """Scene and fields, drawn by `warp_blend`'s reference, against the raw frame of the same number."""
    with (
        Client(server.address, token=TOKEN, session="new", format="warp") as client,
        Client(server.address, token=TOKEN, session=client.welcome["session"], format="rgba-lz4", role="viewer") as raw,
    ):
        exact = {frame.number: frame for frame in (raw.frame() for _ in range(8))}
        frame = client.frame()
        while frame.number not in exact:
            frame = client.frame()
        assert frame.kind == 5 and frame.flags == 1 and len(frame.colour) < 100_000
        layers, channels, width, zero, total, number = struct.unpack_from("<4H2I", frame.colour)
        assert (width, zero, number) == (2, 0, 1)
        table = [struct.unpack_from("<4f2H", frame.colour, 16 + 20 * i) for i in range(layers)]
        values = np.frombuffer(
            lz4.block.decompress(frame.colour[16 + 20 * layers :], uncompressed_size=total), np.float16
        ).astype(np.float32)
        grids, at = [], 0
        for *box, across, down in table:
            grids.append((values[at : at + channels * across * down].reshape(channels, down, across), box))
            at += channels * across * down
        query = f"api/live/scene?session={client.welcome['session']}&number="
        request = urllib.request.Request(
            f"{server.address}{query}{number}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        data = urllib.request.urlopen(request, timeout=10).read()
        (count,) = struct.unpack_from("<I", data)
        sources, at = [], 4 + 8 * count
        for i in range(count):
            across, down, size = struct.unpack_from("<HHI", data, 4 + 8 * i)
            block = lz4.block.decompress(data[at : at + size], uncompressed_size=4 * across * down)
            sources.append(np.frombuffer(block, np.uint8).reshape(down, across, 4))
            at += size
        drawn = reference(sources, grids, (frame.size[1], frame.size[0])).astype(int)
        apart = np.abs(drawn - exact[frame.number].pixels())
        assert apart.mean() < 0.5 and np.quantile(apart, 0.999) <= 24  # flows are rounded to half floats
        assert get(server.address, f"{query}99", Authorization=f"Bearer {TOKEN}")[0] == 404
        assert get(server.address, f"{query}1")[0] == 401


def test_osc_vmc_and_plugins_move_the_main_session(server: Server) -> None:
    ports = facts(server)["listening"]
    assert set(ports) == {"osc", "vmc", "vts"}
    osc, vmc = (SimpleUDPClient("127.0.0.1", ports[name]) for name in ("osc", "vmc"))
    with Client(server.address, token=TOKEN, role="monitor", format="none") as eye:

        def keep(rows: dict) -> bool:
            osc.send_message("/hotloop/mouthSmile", 0.5)
            vmc.send_message("/VMC/Ext/Blend/Val", ["A", 0.75])
            vmc.send_message("/VMC/Ext/Blend/Apply", [])
            return rows["mouthA"]["value"] > 0.7 and rows["mouthSmileLeft"]["value"] > 0.45

        rows = seen(eye, keep)
        assert rows["mouthA"]["source"] == "vmc" and rows["mouthSmileRight"]["source"] == "osc"
        osc.send_message("/hotloop/seed", 5)  # a setting
        assert eye.until("settings")["settings"]["seed"] == 5
        with connect(f"ws://127.0.0.1:{ports['vts']}") as plugin:

            def ask(kind: str, **data: object) -> dict:
                plugin.send(json.dumps({"apiName": "VTubeStudioPublicAPI", "apiVersion": "1.0", "requestID": "1",
                                        "messageType": kind, "data": data}))  # fmt: skip
                return json.loads(plugin.recv(timeout=5))["data"]

            who = {"pluginName": "a test", "pluginDeveloper": "nobody"}
            token = ask("AuthenticationTokenRequest", **who)["authenticationToken"]
            assert ask("AuthenticationRequest", **who, authenticationToken=token)["authenticated"]
            assert ask("HotkeyTriggerRequest", hotkeyID="nod")["hotkeyID"] == "TriggerAnimation-nod"

            def inject(rows: dict) -> bool:
                ask("InjectParameterDataRequest", parameterValues=[{"id": "FaceAngleX", "value": 20}])
                return rows["headYaw"]["value"] > 19

            assert seen(eye, inject)["headYaw"]["source"].startswith("vts:")
    for name in ("osc", "vmc"):  # on loopback alone
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, pytest.raises(OSError):
            probe.bind(("127.0.0.1", ports[name]))


def test_a_new_prompt_is_a_new_keyframe_which_a_killed_worker_does_not_lose(server: Server) -> None:
    with (
        Client(server.address, token=TOKEN, format="rgba-lz4") as client,
        Client(server.address, token=TOKEN, session="new", format="none") as other,
    ):
        before = client.frame().pixels()
        client.say(expression="happy")
        told = client.ask(set={"prompt": "an old man with a beard", "seed": 4, "steps": 1})
        assert client.until("event", event="keyframe", seconds=40)["name"] == "an old man with a beard"
        frames = [client.frame(version=told["version"]) for _ in range(15)]  # a transition is over by then
        drawn = frames[-1].pixels()
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        assert client.until("event", event="worker", state="resumed", seconds=40)
        again = client.until("settings", version=told["version"] + 1)
        assert again["settings"]["prompt"] == "an old man with a beard" and again["settings"]["seed"] == 4
        after = [client.frame(version=again["version"]) for _ in range(10)][-1].pixels()

        def apart(a: np.ndarray, b: np.ndarray) -> float:
            return float(np.abs(a.astype(int) - b).mean())

        assert apart(after, drawn) < 0.5 * apart(before, drawn)  # idle life moves it, but it is the same face
        stats = client.ask(stats=1)["stats"]
        assert stats["keyframe"] == "an old man with a beard" and balanced(stats)
        with Client(server.address, token=TOKEN, role="monitor", format="none") as eye:
            assert seen(eye, lambda rows: rows["happy"]["value"] > 0.99)["happy"]["source"].startswith("client")
        assert other.until("event", event="worker", state="resumed")
        assert other.ask(stats=1)["stats"]["keyframe"] != "an old man with a beard"
