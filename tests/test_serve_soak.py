"""A server under everything at once: four sessions, a storm of settings, a slow viewer, a camera that comes and goes, a
worker that is killed. Ledgers stay exact, nothing queues, memory stays. SECONDS of the environment: how long."""

from __future__ import annotations

import io
import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from live_client import Client, Server, balanced
from PIL import Image

pytestmark = pytest.mark.long
SECONDS = float(os.environ.get("SECONDS", 60))


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


class Viewer(threading.Thread):
    """Watches, and does `act` about every `every` seconds; remembers what was wrong."""

    def __init__(self, server: Server, end: float, act: Any = None, every: float = 1.0, **hello: Any) -> None:
        super().__init__(daemon=True)
        self.client, self.end, self.act, self.every = Client(server.address, **hello), end, act, every
        self.wrong: list[str] = []
        self.frames = 0
        self.stats: dict[str, Any] = {}

    def run(self) -> None:
        try:
            due, last = time.monotonic(), -1
            while time.monotonic() < self.end:
                if self.act is not None and time.monotonic() >= due:
                    due = time.monotonic() + self.every
                    self.act(self.client)
                try:
                    self.client.receive(min(self.every, 0.2))
                except TimeoutError:
                    continue
                while self.client.frames:
                    frame = self.client.frames.pop(0)
                    if frame.number <= last:
                        self.wrong.append(f"frame {frame.number} after {last}")
                    last, self.frames = frame.number, self.frames + 1
                del self.client.texts[:-50]
            self.stats = self.client.ask(stats=1)["stats"]
        except Exception as error:
            self.wrong.append(repr(error))


@pytest.mark.parametrize("mode", ["restyle", "animate"])
def test_ledgers_are_exact_and_memory_stays_under_everything_at_once(mode: str) -> None:
    rng, end = random.Random(1), time.monotonic() + SECONDS
    server = Server("--mode", mode, "--fps", "20", *(("--steps", "1") if mode == "restyle" else ()))
    pictures = [picture(i) for i in range(8)]

    def storm(client: Client) -> None:  # 100 a second
        client.say(set={"guidance_scale": rng.uniform(0, 1), "seed": rng.randrange(5)})

    def slow(client: Client) -> None:
        if client.held is not None and rng.random() < 0.3:
            client.say(ack=client.held)
            client.held = None

    def camera(client: Client) -> None:
        if int(time.monotonic() / 5) % 2:  # five seconds there, five gone
            client.picture(pictures[rng.randrange(8)], source=1)
        elif mode == "animate":
            client.say(controls={"headYaw": rng.uniform(-60, 60), "jawOpen": rng.random()}, t=1000 * time.monotonic())

    def nonsense(client: Client) -> None:
        client.socket.send(rng.choice(["{", '{"set": {"steps": 1e9}}', '{"controls": {"jawOpen": "x"}}', "[]"]))

    class Slow(Client):
        held = None

        def receive(self, seconds: float = 20.0) -> None:
            self.acks = False
            super().receive(seconds)
            if self.frames:
                self.held = self.frames[-1].number

    viewers = [
        Viewer(server, end, storm, 0.01, session="new"), Viewer(server, end, camera, 0.03, session="new"),
        Viewer(server, end, nonsense, 0.1, session="new"), Viewer(server, end, session=None, format="jpeg+alpha"),
    ]  # fmt: skip
    late = Viewer(server, end, slow, 0.2, session=None, role="viewer")
    late.client.socket.close()
    late.client = Slow(server.address, role="viewer")
    for viewer in (*viewers, late):
        viewer.start()
    resident: list[tuple[float, float]] = []
    watch, kill = Client(server.address, format="none"), time.monotonic() + SECONDS / 4
    while time.monotonic() < end - 2:
        time.sleep(1)
        told = watch.ask(stats=1)
        if kill is not None and time.monotonic() > kill:
            os.kill(server.workers()[0], signal.SIGKILL)
            assert watch.until("event", event="worker", state="resumed", seconds=60)
            kill, resident = None, []
        elif "stats" in told and told["stats"]["worker"]["rss"]:
            resident.append((time.monotonic(), told["stats"]["worker"]["rss"] / 1e6))
    for viewer in (*viewers, late):
        viewer.join(60)
    status, errors = server.end()
    assert status == 0, errors
    for viewer in (*viewers, late):
        assert not viewer.wrong and balanced(viewer.stats), (viewer.wrong, viewer.stats)
        assert viewer.stats["viewer"]["unacknowledged"] <= 2
    assert viewers[0].frames > SECONDS and late.frames < viewers[3].frames
    assert (watch is not None and viewers[1].stats["source"]["in"] > 10) or mode == "animate"
    half = resident[len(resident) // 2 :]
    slope = np.polyfit(*np.array(half).T, 1)[0] * 60
    assert slope < 8, f"{slope:.2f} MB a minute, {resident[0]} to {resident[-1]}"
