"""The operators' own tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer, threads on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hotloop_kernels.testing import can_compile

ROOT = Path(__file__).parents[1]
OPERATORS = (
    "arrays", "attention", "cfg_step", "formula", "geglu", "group_norm_silu", "layer_norm", "rgb", "warp_blend",
)  # fmt: skip
# Left out: full sizes, which take minutes here and no other paths, and what measures time or starts a process anew.
LEFT_OUT = "not shapes_of_sd and not idle_threads and not forked and not environment"
COMPILER = shutil.which("g++") or shutil.which("c++")


def library(name: str) -> str | None:
    """Where the compiler has it; None for one that keeps it elsewhere."""
    if COMPILER is None:
        return None
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return found if Path(found).is_absolute() else None


# In this order: the sanitizers' malloc first, and the exceptions that they intercept already there.
LIBRARIES = [library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]

# An editable install would give its own module.
PLUGIN = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
from hotloop_kernels import backend
assert backend.ops is not None and backend.ops.__file__.startswith({folder!r}), backend.build_info()
backend.set_threads(3)
"""

OUT_OF_BOUNDS = """
import numpy as np
from hotloop_kernels import layer_norm
x = np.zeros((4, 16), np.float32)
past = np.lib.stride_tricks.as_strided(x, (4, 1 << 10), x.strides)
layer_norm(past, np.ones(1 << 10, np.float32), np.ones(1 << 10, np.float32))
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with hotloop_kernels as it is built with the sanitizers, and the environment that it needs."""
    import pybind11

    folder = tmp_path_factory.mktemp("sanitized")
    package = folder / "hotloop_kernels"
    shutil.copytree(ROOT / "kernels/hotloop_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    build = folder / "build"
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    configure += [f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", str(build), "--parallel", str(os.cpu_count())]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (module,) = build.glob("_ops*.so")
    shutil.copy(module, package)
    (folder / "sanitized.py").write_text(PLUGIN.format(folder=str(folder)))
    layers = [str(folder), str(ROOT / "runtime"), str(ROOT / "export")]
    return folder, os.environ | {
        "LD_PRELOAD": ":".join(filter(None, LIBRARIES)), "PYTHONPATH": os.pathsep.join(layers),
        # Python frees little at its end. No stack traces of slow unwinding for every malloc.
        "ASAN_OPTIONS": "detect_leaks=0:malloc_context_size=5", "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


needs_them = pytest.mark.skipif(
    None in LIBRARIES or not can_compile() or shutil.which("cmake") is None or not sys.platform.startswith("linux"),
    reason="no cmake, g++ with its sanitizers or Python.h here",
)


@pytest.mark.long
@needs_them
def test_a_read_past_an_array_is_found(sanitized):
    _, environment = sanitized
    script = "import sanitized\n" + OUT_OF_BOUNDS
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr


@pytest.mark.long
@needs_them
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_tests_of_an_operator_find_no_bad_access_and_no_undefined_behaviour(sanitized, operator):
    _, environment = sanitized
    command = [sys.executable, "-m", "pytest", "-p", "sanitized", "-p", "no:cacheprovider", "-q", "-x", "-k", LEFT_OUT]
    done = subprocess.run(
        [*command, f"tests/test_{operator}.py"], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=3600
    )
    assert done.returncode == 0, done.stdout + done.stderr
