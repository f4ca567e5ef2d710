"""The CUDA operators compile for every GPU that hotloop names, without spills, and import where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_report
import pytest

from hotloop_kernels.testing import can_compile

ROOT = Path(__file__).parents[1]
NVCC = cuda_report.nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not here (neither on the path nor named by CUDACXX)")
can_build = can_compile() and shutil.which("cmake") is not None

REPORT = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4add2ILi8EEvPfi' for 'sm_90a'
ptxas info    : Function properties for _Z4add2ILi8EEvPfi
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 256 bytes smem, 908 bytes cmem[0]
"""


def test_the_report_reads_what_ptxas_prints():
    (kernel,) = cuda_report.parse(REPORT)
    assert kernel.name in ("add2<8>", "_Z4add2ILi8EEvPfi")  # without c++filt as it is
    assert (kernel.arch, kernel.registers, kernel.shared, kernel.stack, kernel.spills) == ("sm_90a", 40, 256, 16, 32)
    assert cuda_report.unexcused([kernel]) == [kernel]


def test_an_excuse_is_for_one_kernel_and_has_a_reason():
    def spilling(name):
        return cuda_report.Kernel(name, "sm_80", 255, 0, 8, 16)

    excused = spilling("attention_mma<F16, MmaShape<512, 1, 16, 2, 2>, true>")
    plain = spilling("attention_mma<F16, MmaShape<512, 1, 16, 2, 2>, false>")
    assert excused.excuse and cuda_report.unexcused([excused, plain]) == [plain]


def check(architectures: tuple[str, ...], files: list[Path]) -> None:
    kernels = cuda_report.compile_all(architectures, files=files)
    cuda_report.print_table(kernels)  # shown by pytest -rP
    assert {kernel.arch for kernel in kernels} == set(architectures)
    assert not cuda_report.unexcused(kernels)


# wgmma is compiled for this one alone. attention_f16.cu and attention_bf16.cu are one template for tensor cores in two
# types, each as long as all the rest: the long test has them.
@needs_nvcc
def test_the_cuda_operators_compile_for_hopper_without_warnings_or_spills():
    long = ("attention_f16", "attention_bf16")
    check(("sm_90a",), [source for source in cuda_report.sources() if source.stem not in long])


@needs_nvcc
@pytest.mark.long
def test_the_cuda_operators_compile_for_every_architecture_without_warnings_or_spills():
    check(cuda_report.ARCHITECTURES, cuda_report.sources())


IMPORT = """
import json, hotloop_kernels
maps = open("/proc/self/maps").read()
libraries = [name for name in ("libcuda", "libcudart") if name in maps]
print(json.dumps(hotloop_kernels.build_info() | {"libraries": libraries}))
"""


@needs_nvcc
@pytest.mark.long
@pytest.mark.skipif(not can_build, reason="no cmake, C++ compiler or Python.h here")
def test_a_module_with_cuda_imports_without_a_gpu_or_a_driver_and_names_its_architectures(tmp_path):
    import pybind11

    package = tmp_path / "hotloop_kernels"
    shutil.copytree(ROOT / "kernels/hotloop_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    configure = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-DHOTLOOP_CUDA=ON"]
    configure += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CUDA_ARCHITECTURES=90a-real", f"-DCMAKE_CUDA_COMPILER={NVCC}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    build = ["cmake", "--build", str(tmp_path / "build"), "--parallel", str(os.cpu_count())]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (module,) = (tmp_path / "build").glob("_ops*.so")
    shutil.copy(module, package)

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    prefer = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]\n"
    used = subprocess.run([sys.executable, "-c", prefer + IMPORT], capture_output=True, text=True, env=environment)
    assert used.returncode == 0, used.stderr
    info = json.loads(used.stdout)
    assert info["compiled"] and info["cuda"] == ["sm_90a"]
    assert info["libraries"] == []  # the runtime is inside, the driver is looked up when it is needed
