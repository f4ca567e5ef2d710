"""Signal to wire: a server in a process of its own, a light client on real sockets, and what lies between.

A signal leaves at its intended time: a control datagram over UDP, or a camera's JPEG over the WebSocket. It has arrived
when the last byte of the first frame that knows of it was read: a frame's header tells how many signals had come when
it was begun, or which picture it shows. Times are of one monotonic clock, which this machine's processes share; a
signal that no frame shows is a drop. The client looks at no pixel; its own share of a core is stated.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Client", "Server", "Wire", "camera", "controls", "prompts", "shown_by"]

_FRAME = struct.Struct("<4sBBHIIIHHQQQQQII")
_PICTURE = struct.Struct("<4sIdII")
_HAIR = ("pink", "blue", "green", "black", "red")
_GRACE = 1.0  # seconds that frames of the last signals have
_PATIENCE = 60.0


class Server:
    """`hotloop live` as anyone starts it, on a free port of loopback. Raises RuntimeError with its last line."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-c", "from hotloop.cli import main; main()", "live", "--port", "0", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r"http://\S+?/", self._process.stdout.readline())
        if found is None:
            raise RuntimeError((self._process.communicate()[1].strip() or "no output").splitlines()[-1])
        self.address = found[0]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=15)
        self._process.kill()
        self._process.wait()

    def facts(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.address + "api/live", timeout=10) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        return told

    def processes(self) -> list[int]:
        """Its own id and those of its children."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
        rows = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
        found = [self._process.pid]
        for pid in found:
            found += [child for child, parent in rows if parent == pid and child not in found]
        return found


def _cpu(pids: list[int]) -> float:
    """Seconds of processor time that these have had."""
    tick, total = os.sysconf("SC_CLK_TCK"), 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def _resident(pids: list[int]) -> int:
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
    return total


class Client:
    """One WebSocket of a session; a thread reads frames, acknowledges them and answers pings.

    slow  seconds that it waits before each acknowledgement
    frames  (arrival, times of the header in seconds, source, bytes, version of the settings)
    """

    def __init__(self, address: str, *, session: str | None = None, form: str, fps: float, slow: float = 0.0) -> None:
        from websockets.sync.client import connect

        self._socket = connect(address.replace("http", "ws", 1) + "api/live/ws", compression=None, max_size=2**24)
        self.frames: list[tuple[float, tuple[float, ...], int, int, int]] = []
        self.errors: list[str] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._came, self._slow, self._ids = threading.Event(), slow, iter(range(1, 1 << 30))
        self.say({"hello": 1, "token": None, "session": session, "role": "owner", "format": form, "fps": fps})
        self.welcome = json.loads(self._socket.recv(timeout=_PATIENCE))
        if "error" in self.welcome:
            raise RuntimeError(self.welcome["error"])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def say(self, told: dict[str, Any]) -> None:
        self._socket.send(json.dumps(told))

    def ask(self, told: dict[str, Any]) -> dict[str, Any]:
        """The answer to something with an id."""
        number = next(self._ids)
        self.say(told | {"id": number})
        until = time.monotonic() + _PATIENCE
        while number not in self._answers:
            if time.monotonic() > until:
                raise RuntimeError(f"no answer to {told}")
            self._came.wait(0.1)
            self._came.clear()
        return self._answers.pop(number)

    def show(self, source: int, captured: float, data: bytes) -> None:
        """A camera's picture; captured: seconds."""
        self._socket.send(_PICTURE.pack(b"HLS1", source, 1000 * captured, len(data), 0) + data)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._socket.close()
        self._thread.join(5)

    def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed, OSError):
            while True:
                data = self._socket.recv()
                now = time.monotonic()
                if isinstance(data, bytes):
                    head = _FRAME.unpack_from(data)
                    self.frames.append((now, tuple(t / 1e6 for t in head[9:14]), head[5], len(data), head[6]))
                    if self._slow:
                        time.sleep(self._slow)
                    self.say({"ack": head[4]})
                    continue
                told = json.loads(data)
                if "ping" in told:
                    self.say({"pong": told["ping"], "client": 1000 * time.monotonic()})
                elif "id" in told:
                    self._answers[told["id"]] = told
                    self._came.set()
                elif "error" in told:
                    self.errors.append(told["error"])


@dataclass
class Wire:
    """What a run showed.

    at, latencies  of the signals that a frame showed: seconds from the run's begin; seconds from the intended time
    signals, dropped  sent; shown by no frame
    frames, bytes  that arrived; seconds: of the run
    server, client  shares of a core
    slope          of the server's resident memory over the second half, bytes a second
    stats          the server's own, of every session: ledgers, faults, moves of the governor
    """

    at: np.ndarray
    latencies: np.ndarray
    signals: int
    dropped: int
    frames: int
    bytes: int
    seconds: float
    server: float
    client: float
    slope: float
    stats: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.frames / self.seconds

    def percentiles(self) -> dict[str, float]:
        if not len(self.latencies):
            return {}
        told = {f"p{q}": float(np.percentile(self.latencies, q)) for q in (50, 95, 99)}
        return told | {"max": float(self.latencies.max())}

    def rungs(self) -> str:
        """Where the governor stands, if it has gone down in any session."""
        names = [one["rung"] for one in self.stats if one.get("rung") not in (None, "asked")]
        return f"; governor: {', '.join(names)}" if names else ""

    def balanced(self) -> bool:
        """Whether every ledger is exact."""
        return all(_balanced(one) for one in self.stats)


def _balanced(stats: dict[str, Any]) -> bool:
    source, viewer = stats["source"], stats["viewer"]
    ends = ("shown", "superseded", "skipped", "refused", "failed", "in_flight")
    whole = viewer["acknowledged"] + viewer["superseded"] + viewer["unacknowledged"]
    exact: bool = source["in"] == sum(source[end] for end in ends) and viewer["offered"] == whole
    return exact and viewer["unacknowledged"] <= 2


def shown_by(counts: np.ndarray, arrived: np.ndarray, signals: int) -> tuple[np.ndarray, np.ndarray]:
    """counts: how many signals each frame knows of, in order; arrived: when it had -> which of so many signals were
    shown, and when the first frame that knew of each had arrived."""
    first = np.searchsorted(counts, np.arange(1, signals + 1), side="left")
    shown = np.flatnonzero(first < len(counts))
    return shown, arrived[first[shown]]


def _osc(address: str, value: float) -> bytes:
    """An OSC message with one float (opensoundcontrol.org, 1.0)."""
    name = address.encode() + b"\0" * (4 - len(address) % 4)
    return name + b",f\0\0" + struct.pack(">f", value)


def _paced(rate: float, seconds: float) -> Iterator[tuple[int, float]]:
    """Number and intended time of every signal, each when its time has come."""
    begin = time.monotonic() + 0.05
    for k in range(math.ceil(rate * seconds)):
        at = begin + k / rate
        time.sleep(max(at - time.monotonic(), 0))
        yield k, at


def _storm(client: Client, ended: threading.Event, rate: float) -> None:
    for k in range(1 << 30):
        if ended.wait(1 / rate):
            return
        client.say({"set": {"seed": k % 1000}})


def _run(
    server: Server, clients: list[Client], send: Callable[[], list[float]], reckon: Callable[[list[float]], Any], *,
    storm: float = 0.0,
) -> Wire:  # fmt: skip
    """clients: the first is measured. send: sends every signal -> their intended times; reckon: which were shown."""
    pids, ended, memory = server.processes(), threading.Event(), list[tuple[float, int]]()

    def watch() -> None:
        while not ended.wait(1.0):
            memory.append((time.monotonic(), _resident(pids)))

    helpers = [threading.Thread(target=watch, daemon=True)]
    if storm:
        helpers.append(threading.Thread(target=_storm, args=(clients[-1], ended, storm), daemon=True))
    for helper in helpers:
        helper.start()
    for one in clients:
        one.frames.clear()
    began, busy, own = time.monotonic(), _cpu(pids), time.process_time()
    sent = send()
    time.sleep(_GRACE)
    seconds = time.monotonic() - began
    server_cpu, client_cpu = (_cpu(pids) - busy) / seconds, (time.process_time() - own) / seconds
    ended.set()
    for helper in helpers:
        helper.join()
    frames = list(clients[0].frames)
    stats = [one.ask({"stats": 1})["stats"] for one in clients]
    shown, arrived = reckon(sent)
    times = np.array(sent)
    latencies = arrived - times[shown]
    half = memory[len(memory) // 2 :]
    slope = float(np.polyfit([t for t, _ in half], [m for _, m in half], 1)[0]) if len(half) >= 3 else 0.0
    return Wire(
        times[shown] - began, latencies, len(times), len(times) - len(shown), len(frames), sum(f[3] for f in frames),
        seconds, server_cpu, client_cpu, slope, stats,
    )  # fmt: skip


def controls(
    server: Server, *, rate: float, seconds: float, fps: float, form: str = "jpeg+alpha", sessions: int = 1,
    storm: float = 0.0, slow: float = 0.0,
) -> Wire:  # fmt: skip
    """Datagrams to the server's OSC port, which move its main session.

    sessions  further ones run beside it, each with a viewer of its own; storm: settings a second in the last of them;
    slow      seconds that the last one's viewer waits before each acknowledgement
    """
    port = server.facts()["listening"]["osc"]
    clients = [Client(server.address, form=form, fps=fps)]
    for k in range(1, sessions):
        waits = slow if k == sessions - 1 else 0.0
        clients.append(Client(server.address, session="new", form=form, fps=fps, slow=waits))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:

            def send() -> list[float]:
                sent = []
                for k, at in _paced(rate, seconds):
                    out.sendto(_osc("/hotloop/jawOpen", 0.5 + 0.5 * math.sin(0.37 * k)), ("127.0.0.1", port))
                    sent.append(at)
                return sent

            before = clients[0].ask({"stats": 1})["stats"]["signals"]

            def reckon(sent: list[float]) -> tuple[np.ndarray, np.ndarray]:
                lost = before + len(sent) - clients[0].ask({"stats": 1})["stats"]["signals"]
                if lost:
                    raise RuntimeError(f"{lost} of {len(sent)} datagrams were lost on the way: nothing can be told")
                frames = clients[0].frames
                if not frames:
                    raise RuntimeError("no frame came")
                counts, arrived = np.array([f[2] for f in frames]) - before, np.array([f[0] for f in frames])
                return shown_by(counts, arrived, len(sent))

            return _run(server, clients, send, reckon, storm=storm)
    finally:
        for one in clients:
            one.close()


def prompts(server: Server, *, count: int, fps: float, form: str = "jpeg+alpha") -> np.ndarray:
    """Seconds from each of so many changes of prompt and seed to the first frame that turns to the drawn keyframe."""
    client, taken = Client(server.address, form=form, fps=fps), []
    try:
        for k in range(count):
            began = time.monotonic()
            answer = client.ask({"set": {"prompt": f"a girl with {_HAIR[k % len(_HAIR)]} hair", "seed": k}})
            if "error" in answer:
                raise RuntimeError(answer["error"])
            while not client.frames or client.frames[-1][4] < answer["version"]:
                if client.errors or time.monotonic() > began + _PATIENCE:
                    raise RuntimeError(client.errors[-1] if client.errors else "no keyframe came")
                time.sleep(0.005)
            taken.append(time.monotonic() - began)
            time.sleep(0.5)  # it turns, and rests
        return np.array(taken)
    finally:
        client.close()


def camera(server: Server, pictures: list[bytes], *, rate: float, seconds: float, fps: float) -> Wire:
    """A camera's JPEGs, one after another, to the main session; a frame tells which it shows."""
    client, first = Client(server.address, form="jpeg", fps=fps), 1
    try:
        # Until one is shown: the session changes over from its dream in the background.
        for k, at in _paced(rate, _PATIENCE):
            client.show(k + 1, at, pictures[k % len(pictures)])
            first = k + 2
            if any(frame[2] for frame in client.frames):
                break

        def send() -> list[float]:
            sent = []
            for k, at in _paced(rate, seconds):
                client.show(first + k, at, pictures[k % len(pictures)])
                sent.append(at)
            client.say({"source": False})
            return sent

        def reckon(sent: list[float]) -> tuple[np.ndarray, np.ndarray]:
            came: dict[int, float] = {}
            for arrival, _, source, *_ in client.frames:
                if first <= source < first + len(sent):
                    came.setdefault(source - first, arrival)
            if not came:
                raise RuntimeError("no picture was shown" + "".join(f"; {line}" for line in client.errors[:1]))
            shown = np.array(sorted(came), int)
            return shown, np.array([came[k] for k in shown])

        return _run(server, [client], send, reckon)
    finally:
        client.close()
