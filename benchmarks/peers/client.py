"""The measuring side of a peer: a process that is started, asked, paused, weighed and ended.

    with Process(peer, setup) as process:
        process.open()
        process.reset_peak()
        drawn = process.draw(work)
        print(drawn.seconds, process.peak_rss())

Whatever goes wrong over there is a PeerError of one line. A worker never outlives this process: it ends with the pipe,
and the kernel kills it with its parent, stopped or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from peers.messages import Closed, receive, send
from peers.table import Peer
from peers.work import Drawn, Opened, Setup, Work

__all__ = ["PeerError", "Process"]

_WORKER = Path(__file__).with_name("worker.py")
_GRACE = 5.0  # seconds a worker has to end by itself


class PeerError(Exception):
    """A peer that cannot be measured. str: "[its name] the reason", one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"[{name}] {reason}")
        self.name, self.reason = name, reason


class Process:
    """A peer in a process of its own, begun by the first request.

    timeout: seconds that `open` and `draw` may take; preparing (an export, once) may take `prepare_timeout`.
    Start it from a thread that lives as long as it should: the kernel ends it with the thread.
    """

    def __init__(self, peer: Peer, setup: Setup, *, timeout: float = 1800.0, prepare_timeout: float = 3600.0) -> None:
        self.peer, self.setup = peer, setup
        self._timeout, self._prepare_timeout = timeout, prepare_timeout
        self._running: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._said: Any = None  # the file its output goes to
        self._stopped = self._closed = False
        self._end: Callable[[], Any] = lambda: None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests.

    def open(self) -> Opened:
        """Load the model; before that, where the peer needs its own form of it and has none yet, make that."""
        self._check()
        self._prepare()
        header, _ = self._ask(self._request("open", self.peer.settings), timeout=self._timeout)
        return Opened(load=header["load"], versions=header["versions"])

    def draw(self, work: Work) -> Drawn:
        """One call. The seconds are the worker's own, around the call alone."""
        header, arrays = self._ask({"op": "draw", "work": work.header()}, {"noise": work.noise}, timeout=self._timeout)
        images = arrays["images"]
        expected = (work.batch, work.size[1], work.size[0], 3)
        if images.shape != expected:
            raise PeerError(self.peer.name, f"images must be {list(expected)}, got {list(images.shape)}")
        return Drawn(images=images, latents=arrays.get("latents"), **header)

    # Its state.

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running else None

    def pause(self) -> None:
        """Stop the process and its children, so that it takes nothing from the others. Asking it continues it."""
        if not self._stopped and self._running is not None and self._signal(signal.SIGSTOP):
            os.waitid(os.P_PID, self._running.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            self._stopped = True

    def resume(self) -> None:
        if self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped = False

    def reset_peak(self) -> None:
        """Forget the peak so far, where the system can."""
        try:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        except OSError:
            return

    def peak_rss(self) -> int | None:
        """Bytes resident at most since the last reset (or its start); None where the system does not tell."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return None
        line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        return int(line.split()[1]) * 1024 if line else None

    def close(self) -> None:
        """End it, stopped or not; it has a few seconds to do so by itself."""
        self.resume()
        if self._connection is not None:
            self._connection.close()
        if self._running is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.wait(_GRACE)
        self._kill()

    # How.

    def _check(self) -> None:
        if reason := self.peer.lacking(self.setup.device, self.setup.model):
            raise PeerError(self.peer.name, reason)

    def _prepare(self) -> None:
        """In a process of its own, which is ended: its memory and time are not the measured one's."""
        peer, model = self.peer, self.setup.model
        if peer.prepares is None:
            return
        files = sorted(path for path in model.rglob("*") if path.is_file())
        about = {
            "adapter": peer.adapter,
            "requirements": peer.stamp(),
            "settings": dict(peer.prepares),
            "model": str(model.absolute()),
            "files": [(path.name, path.stat().st_size, path.stat().st_mtime) for path in files],
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.setup = replace(self.setup, cache=self.setup.cache / f"{peer.adapter}-{key}")
        done = self.setup.cache / "prepared"
        if done.exists():
            return
        shutil.rmtree(self.setup.cache, ignore_errors=True)  # one that was interrupted is not built upon
        self.setup.cache.mkdir(parents=True)
        with Process(peer, self.setup) as helper:
            helper._ask(helper._request("prepare", peer.prepares), timeout=self._prepare_timeout)
        done.touch()

    def _request(self, op: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"op": op, "setup": self.setup.header(), "settings": dict(settings)}

    def _ask(
        self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, *, timeout: float
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if self._closed:
            raise PeerError(self.peer.name, f"has ended before it was asked to {header['op']}")
        connection = self._connected()
        self.resume()
        connection.settimeout(timeout)
        try:
            send(connection, header, arrays)
            answer, made = receive(connection)
        except TimeoutError:
            self._kill()
            raise PeerError(self.peer.name, f"{header['op']} took longer than {timeout:g} s") from None
        except Closed:
            reason = self._last_words(header["op"])
            self._kill()
            raise PeerError(self.peer.name, reason) from None
        except BaseException:
            self._kill()  # half a message was said: nothing sensible can follow
            raise
        if "error" in answer:
            raise PeerError(self.peer.name, answer["error"])
        return answer, made

    def _connected(self) -> socket.socket:
        if self._connection is None:
            self._check()
            ours, theirs = socket.socketpair()
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
            told = (theirs.fileno(), os.getpid(), self.peer.adapter)
            command = [self.peer.python(), "-P", str(_WORKER), *map(str, told)]
            with theirs:
                self._running = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said,
                    pass_fds=[theirs.fileno()], start_new_session=True, env=self._environment(),
                )  # fmt: skip
            self._connection = ours
            self._end = weakref.finalize(self, _end, self._running)
        return self._connection

    def _environment(self) -> dict[str, str]:
        """Ours, without what would reach into another environment's packages."""
        kept = dict(os.environ)
        if self.peer.environment is not None:
            for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
                kept.pop(name, None)
        # Models are on this disk; a library must not look for them anywhere else, nor report home, nor tidy up there.
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
        offline["HF_HOME"] = str(self.setup.cache.absolute() / "huggingface")
        threads = {} if self.setup.threads is None else {"OMP_NUM_THREADS": str(self.setup.threads)}
        return {**kept, **offline, **threads, "TOKENIZERS_PARALLELISM": "false"}

    def _last_words(self, op: str) -> str:
        """Why a worker that closed its end is gone."""
        assert self._running is not None
        try:
            code = self._running.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return f"stopped answering while asked to {op}"
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        said = f"; it last said: {lines[-1][:200]}" if lines else ""
        if code >= 0:
            return f"ended with status {code} while asked to {op}{said}"
        name = signal.Signals(-code).name
        guess = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"was ended by {name}{guess} while asked to {op}{said}"

    def _signal(self, number: signal.Signals) -> bool:
        if self._running is None or self._running.poll() is not None:
            return False
        os.killpg(self._running.pid, number)
        return True

    def _kill(self) -> None:
        self._closed = True
        self._end()
        if self._connection is not None:
            self._connection.close()
        if self._said is not None:
            self._said.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and its children, and wait: no zombie either."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
