"""Peers in processes of their own: what is said arrives, what goes wrong is one line, and nothing is left behind."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import environments
import numpy as np
import pytest
from peers.client import PeerError, Process
from peers.messages import receive, send
from peers.table import ENVIRONMENTS, PEERS, Peer, hotloop, requirements
from peers.work import SAMPLERS, Setup, Work

from hotloop import samplers
from hotloop.bundle import builtin
from hotloop.noise import SeededNoise

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


# Draws its noise as grey; the prompt says what else to do.
@pytest.fixture
def fake(tmp_path: Path) -> Peer:
    return Peer("fake", shutil.copy(Path(__file__).parent / "doubles/obedient_peer.py", tmp_path))


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(model=builtin(), cache=tmp_path / "cache", size=(16, 8))


def work(prompt: str = "a face") -> Work:
    noise = np.arange(2 * 4 * 2 * 4, dtype=np.float32).reshape(2, 4, 2, 4)
    return Work(prompt=prompt, noise=noise, seeds=(3, 4), steps=5, size=(16, 8))


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pid: int, *, within: float = 5.0) -> bool:
    until = time.monotonic() + within
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def test_work_goes_over_and_comes_back_unchanged(fake: Peer, setup: Setup):
    with Process(fake, setup) as process:
        opened = process.open()
        drawn = process.draw(work())
    assert opened.versions == {"fake": "1"} and opened.load > 0
    assert drawn.images.shape == (2, 8, 16, 3) and drawn.images.dtype == np.uint8 and np.all(drawn.images == 6)
    assert drawn.latents is not None and np.array_equal(drawn.latents, work().noise * 2)
    assert drawn.evaluations == 5 and drawn.stages == {"loop": 0.5} and 0 < drawn.seconds < 1


def test_arrays_of_every_shape_survive_a_message():
    a, b = socket.socketpair()
    arrays = {
        "scalar": np.float32(3).reshape(()),
        "empty": np.zeros((0, 4), np.int64),
        "strided": np.arange(24, dtype=np.float64).reshape(2, 3, 4)[:, ::2, ::-1],
        "bytes": np.arange(7, dtype=np.uint8),
    }
    with a, b:
        send(a, {"op": "x", "text": "ü"}, arrays)
        header, got = receive(b)
        assert header == {"op": "x", "text": "ü"}
        for name, array in arrays.items():
            assert got[name].dtype == array.dtype and np.array_equal(got[name], array), name
        with pytest.raises(TypeError, match="objects must be one of"):
            send(a, {}, {"objects": np.array([object()])})
        a.sendall(b"print noise")
        with pytest.raises(ValueError, match="must begin with"):
            receive(b)


def test_an_exception_over_there_is_one_line_here_and_the_process_goes_on(fake: Peer, setup: Setup):
    with Process(fake, setup) as process:
        process.open()
        with pytest.raises(PeerError, match=r"^\[fake\] ValueError: colours are out$"):
            process.draw(work("raise"))
        with pytest.raises(PeerError, match=r"^\[fake\] out of memory$"):
            process.draw(work("memory"))
        assert process.draw(work()).evaluations == 5


def test_a_library_that_does_not_import_is_one_line(fake: Peer, setup: Setup):
    with (
        Process(replace(fake, settings={"broken": True}), setup) as process,
        pytest.raises(PeerError, match=r"^\[fake\] ImportError: no module named painting$"),
    ):
        process.open()


@pytest.mark.parametrize(
    ("prompt", "reason"), [("crash", "was ended by SIGSEGV while asked to draw"), ("leave", "ended with status 3")]
)
def test_a_crash_names_its_signal_and_the_last_words(fake: Peer, setup: Setup, prompt: str, reason: str):
    with Process(fake, setup) as process:
        process.open()
        with pytest.raises(PeerError, match=reason):
            process.draw(work(prompt))
        assert process.pid is not None and gone(process.pid)


def test_a_call_that_takes_too_long_is_ended(fake: Peer, setup: Setup):
    with Process(fake, setup, timeout=10) as process:
        process.open()
        process._timeout = 0.3
        with pytest.raises(PeerError, match=r"draw took longer than 0\.3 s"):
            process.draw(work("sleep 60"))
        assert process.pid is not None and gone(process.pid)
        with pytest.raises(PeerError, match="has ended before"):
            process.draw(work())


def test_what_is_not_installed_says_what_to_run(fake: Peer, setup: Setup, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOTLOOP_BENCH_ENVS", str(tmp_path / "nowhere"))
    with (
        Process(replace(fake, environment="diffusers"), setup) as process,
        pytest.raises(PeerError, match=r"\[fake\] not installed: run `make bench-env`"),
    ):
        process.open()
    assert process.pid is None


def test_a_peer_for_another_device_says_so(fake: Peer, setup: Setup):
    with Process(replace(fake, devices=("cuda",)), setup) as process, pytest.raises(PeerError, match="needs CUDA"):
        process.open()


def test_a_paused_process_takes_no_time_and_wakes_when_asked(fake: Peer, setup: Setup):
    with Process(fake, setup) as process:
        process.open()
        process.pause()
        state = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state == "T"
        assert process.draw(work()).evaluations == 5
        process.pause()
    assert process.pid is not None and gone(process.pid)


def test_peak_memory_is_the_peers_own_and_of_one_call(fake: Peer, setup: Setup):
    ballast = np.ones(200_000_000, np.uint8)  # here, not there
    with Process(fake, setup) as process:
        process.open()
        process.reset_peak()
        process.draw(work("allocate 100000000"))
        big = process.peak_rss()
        process.reset_peak()
        process.draw(work())
        small = process.peak_rss()
    assert big is not None and small is not None
    assert 100e6 < big < 190e6 and small < 90e6 < ballast.size


def test_a_model_is_prepared_once_and_in_another_process(fake: Peer, setup: Setup):
    peer = replace(fake, prepares={})
    seen = set()
    for _ in range(2):
        with Process(peer, setup) as process:
            process.open()
            made = process.setup.cache / "made"
            seen.add((made, made.read_text()))
            assert made.read_text() != str(process.pid)
    assert len(seen) == 1


def test_interrupting_a_request_ends_the_worker(fake: Peer):
    """In a process of its own: a signal that came late would end the tests."""
    asking = f"""
        import signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(BENCHMARKS)!r})
        import numpy as np
        from peers.client import Process
        from peers.table import Peer
        from peers.work import Setup, Work
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Process(Peer("fake", {fake.adapter!r}), Setup(model=Path({str(builtin())!r}))) as process:
            process.open()
            print(process.pid, flush=True)
            try:
                process.draw(Work("sleep 60", np.zeros((1, 4, 2, 2), np.float32), (1,), size=(16, 16)))
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(asking)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        time.sleep(0.5)  # it is drawing by now
        run.send_signal(signal.SIGINT)
        assert run.stdout.readline() == "interrupted\n"
        assert gone(pid)
        run.kill()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_does_not_outlive_a_killed_parent(fake: Peer, stopped: bool):
    parent = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(BENCHMARKS)!r})
        from peers.client import Process
        from peers.table import Peer
        from peers.work import Setup
        process = Process(Peer("fake", {fake.adapter!r}), Setup(model=Path({str(builtin())!r})))
        process.open()
        if {stopped}:
            process.pause()
        print(process.pid, flush=True)
        time.sleep(60)
    """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    assert alive(pid)
    run.kill()
    run.wait()
    run.stdout.close()
    assert gone(pid)


def test_rows_of_the_table_fit_what_is_there():
    adapters = {path.stem for path in (BENCHMARKS / "peers" / "adapters").glob("*.py")}
    for name, peer in {**PEERS, "hotloop onnx-fp32": hotloop("onnx-fp32")}.items():
        assert peer.name == name and peer.adapter in adapters
        assert peer.environment is None or peer.environment in ENVIRONMENTS
        assert set(peer.devices) <= {"cpu", "cuda"} and peer.families in ("any", "sd15")
        source = (BENCHMARKS / "peers" / "adapters" / f"{peer.adapter}.py").read_text()
        assert ("def prepare(" in source) == (peer.prepares is not None)
    assert {peer.environment for peer in PEERS.values()} == set(ENVIRONMENTS)


def test_peers_that_draw_published_shapes_only_say_so_of_the_built_in_model(monkeypatch, tmp_path: Path):
    peer = PEERS["stable-diffusion.cpp fp16"]
    python = tmp_path / str(peer.environment) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setenv("HOTLOOP_BENCH_ENVS", str(tmp_path))
    assert peer.lacking("cpu") is None
    assert "published shapes" in (peer.lacking("cpu", builtin()) or "")


def test_every_requirement_is_pinned():
    for name in ENVIRONMENTS:
        for file in requirements(name):
            lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
            assert lines and all("==" in line for line in lines), file


def test_samplers_carry_hotloops_names_and_spacings():
    for name, (_, options) in SAMPLERS.items():
        known = samplers.options(name)
        assert "spacing" in known and "timestep_spacing" in options


def test_an_environment_that_cannot_be_built_says_why_and_leaves_nothing(monkeypatch, tmp_path: Path):
    broken = tmp_path / "broken.txt"
    broken.write_text("no-such-package-anywhere==1\n")
    monkeypatch.setenv("HOTLOOP_BENCH_ENVS", str(tmp_path / "envs"))
    monkeypatch.setattr(environments, "requirements", lambda name: (broken,))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        environments.build("broken", jobs=1, pip_args=["--no-index"])
    assert "no-such-package-anywhere" in environments.reason(caught.value)
    assert not (tmp_path / "envs" / "broken").exists()


def test_an_environment_is_built_once_until_its_requirements_change(monkeypatch, tmp_path: Path):
    file, commands = tmp_path / "empty.txt", []

    def pretend(command: list[str], **_: object) -> None:
        commands.append(command)
        python = tmp_path / "envs" / "empty" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    monkeypatch.setenv("HOTLOOP_BENCH_ENVS", str(tmp_path / "envs"))
    monkeypatch.setattr(environments, "requirements", lambda name: (file,))
    monkeypatch.setattr(environments.subprocess, "run", pretend)
    counts = []
    for text in ("# nothing", "# nothing", "# still nothing"):
        file.write_text(text)
        environments.build("empty", jobs=1, pip_args=[])
        counts.append(len(commands))
    assert counts == [2, 2, 4]  # the environment and its packages


@pytest.mark.long
def test_diffusers_and_hotloop_draw_the_built_in_model_alike_through_their_processes(tmp_path: Path):
    peers = [replace(PEERS["diffusers eager fp32"], environment=None), hotloop("onnx-fp32")]
    noise = SeededNoise((7, 8)).normal((4, 16, 16))
    setup = Setup(builtin(), threads=1, cache=tmp_path, size=(64, 64), batch=2)
    for sampler in SAMPLERS:
        asked = Work("a smiling girl", noise, (7, 8), "blurry", sampler, 4, 4.0, (64, 64))
        drawn = []
        for peer in peers:
            with Process(peer, setup) as process:
                process.open()
                drawn.append(process.draw(asked))
        theirs, ours = drawn
        mse = np.mean((theirs.images.astype(float) - ours.images.astype(float)) ** 2)
        assert 10 * np.log10(255**2 / max(mse, 1e-12)) >= 50, sampler
        assert theirs.latents is not None and ours.latents is not None
        assert np.abs(theirs.latents - ours.latents).max() < 1e-3, sampler
        assert theirs.evaluations == ours.evaluations, sampler
