"""What nvcc makes of the CUDA kernels: registers, shared memory, stack and spills, per kernel and architecture.

    python benchmarks/cuda_report.py --arch sm_80 sm_90a

Compiles every kernels/csrc/*.cu with warnings as errors, as CMakeLists.txt does; needs no GPU. Exits with 1 when a
kernel spills that SPILLS does not excuse.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ARCHITECTURES", "SPILLS", "BuildError", "Kernel", "compile_all", "compile_source", "nvcc", "sources"]

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_120")
FLAGS = ("-std=c++17", "-O3", "-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-fPIC", "-Xptxas=-v")

# Spills that are meant: a pattern of the kernel's name -> the reason.
SPILLS = {
    r"attention_mma<.*MmaShape<512, .*, true>": "one head of 512 holds 128 sums a lane. Its segments' code needs a few "
    "registers more; the VAE, the one user of this head size, has no segments and runs the kernel without them",
}

ROW = "{:<8}{:<57}{:>10}{:>8}{:>7}{:>7}"
PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'\n"
    r"(?:.*Function properties.*\n)?"
    r" *(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


class BuildError(RuntimeError):
    """nvcc did not compile a file: its output."""


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled. shared: static bytes, launches may ask for more; stack, spills: bytes of a thread."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int

    @property
    def excuse(self) -> str | None:
        """Why it may spill, if it may."""
        return next((reason for pattern, reason in SPILLS.items() if re.search(pattern, self.name)), None)


def nvcc() -> str | None:
    """The CUDA compiler: of CUDACXX, of the path, or of CUDA's usual place."""
    return shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which("/usr/local/cuda/bin/nvcc")


def sources() -> list[Path]:
    return sorted((ROOT / "kernels/csrc").glob("*.cu"))


def compile_source(source: Path, arch: str, folder: Path) -> list[Kernel]:
    """Compile one file for one architecture into `folder`. Raises BuildError."""
    compiler = nvcc()
    if compiler is None:
        raise BuildError("[cuda_report] nvcc must be on the path or named by CUDACXX")
    virtual = arch.replace("sm_", "compute_")
    target = folder / f"{source.stem}.{arch}.o"
    command = [compiler, *FLAGS, f"-gencode=arch={virtual},code={arch}", "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    # ptxas's advice on wgmma (serialised products, registers not given up) would cost most of the kernel's speed.
    if done.returncode != 0 or "(C75" in output:
        raise BuildError(f"{source.name} for {arch}:\n{output}")
    return parse(output)


def parse(output: str) -> list[Kernel]:
    """The kernels that ptxas -v reports."""
    found = list(PTXAS.finditer(output))
    names = demangled([match["name"] for match in found])
    return [
        Kernel(
            name,
            match["arch"],
            int(match["registers"]),
            int(shared[1]) if (shared := re.search(r"(\d+) bytes smem", match["rest"])) else 0,
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
        )
        for name, match in zip(names, found, strict=True)
    ]


def demangled(names: list[str]) -> list[str]:
    """Names as written, short: without namespaces, argument lists and casts; as they are where c++filt is missing."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    clutter = re.compile(r"\([^()]*\)(?=\d|true|false)|\b\w+::|^void |\(anonymous namespace\)::")
    short = (clutter.sub("", line).replace(" >", ">") for line in text.splitlines())
    return [line[:end] if (end := _arguments(line)) else line for line in short]


def _arguments(name: str) -> int:
    """Where a function's list of arguments begins: the first bracket outside of its template's."""
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return i
    return 0


def compile_all(
    architectures: Sequence[str], jobs: int | None = None, *, files: Sequence[Path] | None = None
) -> list[Kernel]:
    """Every kernel for every architecture, `jobs` (default: one a core) compilers side by side. Raises BuildError.

    files: all sources by default.
    """
    # The longest first, so that none is left over at the end.
    files = sorted(files or sources(), key=lambda source: not source.stem.endswith("f16"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        work = [(source, arch) for source in files for arch in architectures]
        done = pool.map(lambda one: compile_source(one[0], one[1], Path(folder)), work)
        return [kernel for kernels in done for kernel in kernels]


def unexcused(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Those that spill without a reason."""
    return [kernel for kernel in kernels if kernel.spills and not kernel.excuse]


def print_table(kernels: Sequence[Kernel]) -> None:
    print(ROW.format("arch", "kernel", "registers", "shared", "stack", "spills"))
    for k in sorted(kernels, key=lambda k: (k.name, ARCHITECTURES.index(k.arch) if k.arch in ARCHITECTURES else 0)):
        print(ROW.format(k.arch, k.name, k.registers, k.shared, k.stack, k.spills))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help="default: all of them")
    parser.add_argument("--jobs", type=int, help="compilers side by side (default: one per core)")
    arguments = parser.parse_args()
    kernels = compile_all(arguments.arch, arguments.jobs)
    print_table(kernels)
    for reason in sorted({kernel.excuse for kernel in kernels if kernel.spills and kernel.excuse}):
        print(f"excused: {reason}")
    for kernel in (failed := unexcused(kernels)):
        print(f"spills: {kernel.name} for {kernel.arch}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
