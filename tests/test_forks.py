"""A forked child: every CPU engine either works in it or says so in one line, and nothing waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hotloop.bundle import Bundle, builtin
from hotloop.engines import KINDS, available

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# Two threads: a pool of one has none to lose. What a child tells comes back through a queue's pipe; 20 s are for ever.
SCRIPT = """
import dataclasses, hashlib, json, multiprocessing, os, sys, warnings
import hotloop
from hotloop.bundle import Bundle, builtin
from hotloop.pipeline import Pipeline
from hotloop.selection import Choice

kind = sys.argv[1]
bundle = Bundle.open(builtin(), verify=False)
entry = next((e for e in bundle.entries if e.kind == kind), dataclasses.replace(bundle.entries[0], kind=kind))

def load():
    return Pipeline(bundle, choice=Choice(entry, "cpu", ""), threads=2, keep_compiled=False)

def draw(pipe):
    made = pipe.txt2img("a smiling girl", seed=1, num_inference_steps=2, sampler="ddim", width=64, height=64)
    return hashlib.sha256(made.images[0].tobytes()).hexdigest()

def told(act):
    try:
        return act()
    except hotloop.InputError as error:
        return str(error)

def child(answers):
    lora = told(lambda: pipe.load_lora("none.safetensors"))
    answers.put([told(lambda: draw(pipe)), lora, told(lambda: draw(load()))])

def in_child(after):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    process.join(20)
    if process.is_alive():
        process.kill()
        return [f"waits for ever ({after})"]
    return answers.get()

def leaves(after):
    global pipe
    pid = os.fork()
    if pid == 0:
        pipe = None  # as `pipe = load()` would
        sys.exit(0)
    import time
    until = time.monotonic() + 20
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    return f"waits for ever ({after})"

pipe = load()
found = {"loaded": in_child("loaded")}
found["own"] = draw(pipe)
found |= {"used": in_child("used"), "exit": leaves("used"), "again": draw(pipe)}
print(json.dumps(found), flush=True)
"""


@pytest.mark.parametrize("kind", ["onnx", "openvino", "native"])
def test_a_child_draws_or_is_told_to_load_after_the_fork(kind, tmp_path):
    if available()[kind]:
        pytest.skip(f"{kind} is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, kind], capture_output=True, text=True, timeout=150,
        env=os.environ | {"HOTLOOP_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    used_again = "[engine] an engine runs in the process that loaded it (a fork leaves its threads behind): load after"
    for when in ("loaded", "used"):
        drawn, lora, anew = found[when]
        assert drawn.startswith(used_again) and lora.startswith(used_again)
        assert "\n" not in drawn and "used in" in drawn
        if kind == "onnx":  # its sessions bring their own threads
            assert anew == found["own"]
        else:
            library = KINDS[kind].package
            assert anew.startswith(f"[engine.{kind}] {library} ran before this process was forked and cannot start")
    assert found["exit"] == 0
    assert found["again"] == found["own"]


def test_auto_passes_over_what_cannot_start_in_a_child(monkeypatch):
    """An engine that would be faster is named with the reason."""
    from hotloop import selection
    from hotloop.engines import native
    from hotloop.process import Origin

    pytest.importorskip("torch")
    elsewhere = Origin()
    elsewhere.pid += 1
    monkeypatch.setattr(native, "_began", [elsewhere])
    able, unable = selection.candidates(Bundle.open(builtin(), verify=False), "cpu")
    assert [entry.name for entry, _ in able] == ["onnx-fp32"]
    assert unable["native-fp32"].startswith("torch ran before this process was forked")
