"""Build the peers' virtual environments: one for each file of `peers/requirements`.

    python benchmarks/environments.py                 # all of them; those that are up to date are left alone
    python benchmarks/environments.py diffusers       # these
    python benchmarks/environments.py --list          # which peers can run here

They lie in .venv-bench, or where HOTLOOP_BENCH_ENVS says. One that cannot be built says why in a line and does not stop
the others. Wheels come from pip's own index; stable-diffusion.cpp is compiled for this processor (minutes; it needs a
C++ compiler and cmake).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time

from peers.table import ENVIRONMENTS, PEERS, environment_python, requirements

# What a source build reads; wheels do not.
_BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"}
_STAMP = "requirements.sha256"


def build(name: str, *, jobs: int, pip_args: list[str]) -> str:
    """Make one environment; a line on what came of it. Raises CalledProcessError when a command fails."""
    python = environment_python(name)
    folder = python.parents[1]
    # The Python belongs to it: another minor version is another environment.
    files = requirements(name)
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()
    stamp = folder / _STAMP
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return "up to date"
    began = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **_BUILD, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}
    environment.pop("PYTHONPATH", None)
    # Our pip works on it: one that came with each would be another version.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    alone = [["--no-deps"] if file.suffixes[0] == ".no-deps" else [] for file in files]
    commands = [[*pip, *pip_args, *more, "-r", str(file)] for file, more in zip(files, alone, strict=True)]
    for command in ([sys.executable, "-m", "venv", "--without-pip", str(folder)], *commands):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # half an environment would seem to be one
            raise
    stamp.write_text(wanted)
    return f"built in {time.perf_counter() - began:.0f} s"


def reason(error: subprocess.CalledProcessError | OSError) -> str:
    """The line of the output that says most: pip's last error, else its last line."""
    if isinstance(error, OSError):
        return str(error)
    lines = [line.strip() for line in (error.stderr + "\n" + error.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "fatal", "cmake error"))]
    return ([*lines, *errors] or [str(error)])[-1][:300]


def show(device: str) -> None:
    for peer in PEERS.values():
        print(f"{peer.name:<28}{peer.lacking(device) or 'ready'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all by default")
    parser.add_argument("--list", action="store_true", help="the peers and their state here; builds nothing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for --list")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="of a source build")
    parser.add_argument("--pip-args", default="", help="more options for pip, such as another index")
    options = parser.parse_args()
    if options.list:
        show(options.device)
        return
    if unknown := set(options.names) - set(ENVIRONMENTS):
        parser.error(f"environments are {', '.join(ENVIRONMENTS)}, got {', '.join(sorted(unknown))}")
    failed = 0
    for name in options.names or ENVIRONMENTS:
        try:
            outcome = build(name, jobs=options.jobs, pip_args=options.pip_args.split())
        except (subprocess.CalledProcessError, OSError) as error:
            failed += 1
            outcome = f"failed: {reason(error)}"
        print(f"{name:<24}{outcome}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
