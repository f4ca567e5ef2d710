"""Installing: with a compiler the operators are compiled, without one the package works all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hotloop_kernels.testing import can_compile

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long

USE = """
import json, numpy as np, hotloop_kernels as k
state = np.ones((1, 1, 1, 2, 2), np.float32)
k.cfg_step(state, state[0].copy(), None, [0], [1.0], [[[1.0, -0.5, 0.0]]], [0.0], [1.0])
print(json.dumps(k.build_info() | {"x": state.ravel().tolist(), "bytes": k.rgb.pack(state[0]).ravel().tolist()}))
"""


def build_and_use(folder: Path, **environment: str) -> dict:
    """Build the wheel as pip does, unpack it, and run an operator from it."""
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    built = subprocess.run(wheel, env=os.environ | environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("hotloop-*.whl")
    site = folder / "site"
    zipfile.ZipFile(path).extractall(site)
    # Prefer the unpacked wheel to an editable install, whose finder is an instance on sys.meta_path.
    prefer = (
        "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
    )
    used = subprocess.run([sys.executable, "-c", prefer + USE], capture_output=True, text=True, cwd=folder)
    assert used.returncode == 0, used.stderr
    return json.loads(used.stdout)


RESULT = {"x": [0.5] * 4, "bytes": [191] * 4}


@pytest.mark.parametrize(
    "environment",
    [{"CXX": "/nonexistent/c++"}, {"CMAKE_ARGS": "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON"}],
    ids=["no C++ compiler", "no Python.h"],
)
def test_without_a_compiler_it_installs_and_runs_on_numpy(tmp_path, environment):
    info = build_and_use(tmp_path, **environment)
    assert info["compiled"] is False and "_ops" in info["reason"]
    assert {key: info[key] for key in RESULT} == RESULT


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler or Python.h here")
def test_with_a_compiler_the_operators_are_compiled(tmp_path):
    info = build_and_use(tmp_path)
    assert info["compiled"] is True
    assert {key: info[key] for key in RESULT} == RESULT
