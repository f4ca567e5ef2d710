"""All of it on the built-in model, about ten minutes on two cores: `make bench`.

    python benchmarks/suite.py [--out benchmarks/results/local]

Every peer that is installed (`make bench-env`) and hotloop's engines, one picture after another; batches; requests that
come by themselves; the ladder; live sessions through real sockets and against their peers; samplers and steps with the
quality of what they draw. Then the report. Each part is one command, printed, that can be run alone.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from models import LOCAL

HERE = Path(__file__).parent
HOTLOOP = [sys.executable, "-c", "from hotloop.cli import main; main()"]
FEW = "diffusers eager fp32,diffusers eager bf16,optimum onnxruntime fp32,optimum openvino bf16"
PARTS = {
    "txt2img": ["txt2img.py", "--rounds", "12"],
    "txt2img-offline": [
        "txt2img.py", "--scenario", "Offline", "--batch", "4", "--peers", FEW, "--rounds", "6", "--warmup", "1",
    ],
    "txt2img-server": [
        "txt2img.py", "--scenario", "Server", "--peers", "diffusers eager fp32,optimum openvino bf16",
        "--engines", "onnx-fp32,openvino-int8", "--rates", "2,4", "--requests", "40",
    ],
    "ladder": ["ladder.py", "--rounds", "12"],
    "live": ["live.py", "--engines", "onnx-fp32,openvino-bf16,openvino-int8", "--rounds", "10"],
    "compare": ["hotloop", "compare", "--steps", "5,10,20", "--prompts", "24"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=LOCAL, help="the folder of the JSON lines and of the report")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began, files = time.perf_counter(), []
    for name in options.only:
        file = options.out / f"{date.today()}-{name}.jsonl"
        file.unlink(missing_ok=True)  # a run is one run
        program, *rest = PARTS[name]
        if program == "hotloop":
            run([*HOTLOOP, *rest, "--json", str(file)])
        else:
            run([sys.executable, str(HERE / program), *rest, "--out", str(file)])
        files.append(str(file))
    run([sys.executable, str(HERE / "report.py"), *files, "--out", str(options.out / "report")])
    print(f"{time.perf_counter() - began:.0f} s in all")


def run(command: list[str]) -> None:
    print("$", shlex.join(command), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
