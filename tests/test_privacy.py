"""Nothing phones home and nothing is left outside hotloop's cache, with a fresh home and every library there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What Python opens, connects and starts is seen by the hook; what a library's own code leaves lies in the fresh home
# (every place that it could be told of points there), or is a socket among the open files at the end.
WATCH = """
import json, os, sys, tempfile, warnings
warnings.simplefilter("ignore")
seen = []
def watch(event, given):
    if event == "open" and isinstance(given[0], (str, bytes)):
        mode, flags = given[1], given[2] or 0
        if (mode and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(["open", os.fsdecode(given[0])])
    elif event in ("os.mkdir", "os.rename", "os.remove"):
        seen.append([event, os.fsdecode(given[0]) if isinstance(given[0], (str, bytes)) else str(given[0])])
    elif event.startswith("socket.") and event not in ("socket.gethostname",):
        seen.append([event, str(given)])
    elif event == "subprocess.Popen":
        seen.append([event, str(given[1])])
sys.addaudithook(watch)
"""
TELL = """
def socket_of(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False
sockets = [fd for fd in os.listdir("/proc/self/fd") if socket_of(fd)] if os.path.isdir("/proc/self/fd") else []
print(json.dumps({"seen": seen, "sockets": sockets, "loaded": [n for n in names if sys.modules.get(n)]}), flush=True)
"""
DRAW = """
import dataclasses
from hotloop.bundle import Bundle, builtin
from hotloop.cli import doctor
from hotloop.engines import available
from hotloop.pipeline import Pipeline
from hotloop.selection import Choice

names = ["onnxruntime", "openvino", "torch", "nncf", "openvino_telemetry"]
doctor.examine()
bundle = Bundle.open(builtin())
for kind in ("onnx", "openvino", "native"):
    if available()[kind] is None:
        entry = next((e for e in bundle.entries if e.kind == kind), dataclasses.replace(bundle.entries[0], kind=kind))
        pipe = Pipeline(bundle, choice=Choice(entry, "cpu", ""), threads=1)
        pipe.txt2img("a smiling girl", num_inference_steps=1, sampler="ddim", width=64, height=64)
try:
    import nncf
except ImportError:
    pass
"""
EXPORT = """
from pathlib import Path
from hotloop.bundle import builtin
from hotloop_export.bundle import write_bundle
from hotloop_export.recipe import Recipe, Target

names = ["torch", "diffusers", "transformers", "huggingface_hub"]
recipe = Recipe(builtin(), targets=(Target("onnx", "fp32"), Target("openvino", "fp32")))
write_bundle(recipe, Path(tempfile.gettempdir()) / "bundle")
"""


def run(script: str, tmp_path: Path) -> tuple[dict, Path, Path]:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    kept = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {
        "HOME": str(home), "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WATCH + script + TELL], capture_output=True, text=True, env=environment, cwd=scratch,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), home, scratch


def check(found: dict, home: Path, scratch: Path) -> None:
    cache = home / ".cache" / "hotloop"
    allowed = (str(cache), str(scratch), "/dev/", "/proc/self/")
    strange = [(event, path) for event, path in found["seen"] if event == "open" and not path.startswith(allowed)]
    assert not strange
    assert not [one for one in found["seen"] if one[0].startswith("socket.")] and not found["sockets"]
    left = [path for path in home.rglob("*") if path.is_file() and not path.is_relative_to(cache)]
    assert not left


def test_load_draw_and_doctor_write_to_the_cache_alone_and_open_no_socket(tmp_path):
    found, home, scratch = run(DRAW, tmp_path)
    check(found, home, scratch)
    assert "onnxruntime" in found["loaded"] and "openvino_telemetry" not in found["loaded"]


@pytest.mark.long
def test_an_export_writes_to_the_cache_and_the_bundle_alone(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("openvino")
    found, home, scratch = run(EXPORT, tmp_path)
    check(found, home, scratch)
    assert (scratch / "bundle" / "manifest.json").exists()


def test_the_watch_sees_what_it_is_for(tmp_path):
    """Else the tests above could not fail."""
    leave = "names = []; open(os.path.expanduser('~/id'), 'w').close(); import socket; s = socket.socket()\n"
    found, home, scratch = run(leave, tmp_path)
    assert ["open", str(home / "id")] in found["seen"] and found["sockets"]
    with pytest.raises(AssertionError):
        check(found, home, scratch)


def test_a_users_own_setting_stands(monkeypatch):
    from hotloop import telemetry

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    telemetry.switch_off()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
