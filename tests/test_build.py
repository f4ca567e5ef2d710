"""Installing: the wheel holds all that is needed, with a compiler the operators too; without one it works as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from scikit_build_core.build import build_wheel

from hotloop_kernels.testing import can_compile

ROOT = Path(__file__).parents[1]
MODEL = "hotloop/assets/avatar-tiny"
JUDGE = "hotloop/assets/avatar-tiny-judge"

USE = """
import json, numpy as np, hotloop, hotloop_kernels as k
from hotloop.bundle import builtin
state = np.ones((1, 1, 1, 2, 2), np.float32)
k.cfg_step(state, state[0].copy(), None, [0], [1.0], [[[1.0, -0.5, 0.0]]], [0.0], [1.0])
drawn = hotloop.load().txt2img("a face", num_inference_steps=2, seed=1).images[0]
print(json.dumps(k.build_info() | {
    "x": state.ravel().tolist(), "bytes": k.rgb.pack(state[0]).ravel().tolist(),
    "from": [hotloop.__file__, k.__file__, str(builtin())], "size": drawn.size, "levels": len(set(drawn.tobytes())),
}))
"""


def test_the_wheel_holds_the_packages_the_built_in_model_with_its_judge_and_their_types(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = build_wheel(str(tmp_path), {"wheel.cmake": "false"})
    with zipfile.ZipFile(tmp_path / name) as wheel:
        held = set(wheel.namelist())
        manifests = {folder: json.loads(wheel.read(f"{folder}/manifest.json")) for folder in (MODEL, JUDGE)}
    model = {f"{at}/{file}" for at, made in manifests.items() for file in ("manifest.json", *made["files"])}
    assert {Path(file).suffix for file in model} >= {".onnx", ".safetensors", ".json"}
    assert model <= held
    packages = {"hotloop", "hotloop_export", "hotloop_kernels"}
    assert {f"{package}/py.typed" for package in packages} <= held
    assert {file.split("/")[0] for file in held if ".dist-info/" not in file} == packages
    avatar = {file for file in held if file.startswith("hotloop/assets/avatar-live/")}
    page = {file for file in held if file.startswith("hotloop/serve/web/")}
    assert {Path(file).suffix for file in avatar} == {".json", ".png", ".webp"}
    assert {Path(file).suffix for file in page} == {".css", ".html", ".js", ".svg"}
    others = {file for file in held - model - avatar - page if ".dist-info/" not in file}
    assert {Path(file).suffix for file in others} == {".json", ".py", ".typed"}


def build_and_use(folder: Path, **environment: str) -> dict:
    """Build the wheel as pip does, unpack it, run an operator from it and draw a picture with its model."""
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
    info = json.loads(used.stdout)
    assert all(Path(file).is_relative_to(site) for file in info["from"])
    assert (info["x"], info["bytes"]) == ([0.5] * 4, [191] * 4)
    assert min(info["size"]) > 0 and info["levels"] > 1
    return info


@pytest.mark.long
@pytest.mark.parametrize(
    "environment",
    [{"CXX": "/nonexistent/c++"}, {"CMAKE_ARGS": "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON"}],
    ids=["no C++ compiler", "no Python.h"],
)
def test_without_a_compiler_it_installs_and_runs_on_numpy(tmp_path, environment):
    info = build_and_use(tmp_path, **environment)
    assert info["compiled"] is False and "_ops" in info["reason"]


@pytest.mark.long
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler or Python.h here")
def test_with_a_compiler_the_operators_are_compiled(tmp_path):
    assert build_and_use(tmp_path)["compiled"] is True
