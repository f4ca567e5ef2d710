"""What running a small network's rows side by side brings: one evaluation of a UNet, its batch in parts against whole.

    python benchmarks/spread.py [--bundle DIR] [--images 1] [--rounds 40]

Every engine of ONNX Runtime and OpenVINO in the bundle, by default one of the built-in model, with guidance (two rows
an image), whole and in parts in turns. A speed-up is printed only where the outputs agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import Case, compare, cosine_at_least

from hotloop.bundle import Bundle, Entry
from hotloop.engines.onnx import OnnxEngine
from hotloop.engines.openvino import OpenVinoEngine
from hotloop.spec import cells
from hotloop_kernels import usable_cores
from models import LOCAL, model

ENGINES = ("onnx-fp32", "openvino-fp32", "openvino-bf16", "openvino-int8")
AGREE = {"fp32": 0.99999, "bf16": 0.999, "int8": 0.99}


def evaluation(bundle: Bundle, entry: Entry, images: int, *, threads: int, spread: bool) -> Callable[[], np.ndarray]:
    """One run of the UNet on seeded inputs."""
    row = bundle.networks(entry)["unet"]
    engine = (OnnxEngine if entry.kind == "onnx" else OpenVinoEngine)(
        bundle.network_file(entry, "unet"), row, threads=threads, precision=entry.precision_of("unet"), spread=spread
    )
    width, height = (side // bundle.family.vae_factor for side in bundle.family.default_size)
    known = {"N": images, "B": 2 * images, "T": bundle.family.vocab_tokens, "Ti": 1, **cells(height, width)}
    context = engine.context(**row.pick(known))
    rng = np.random.default_rng(1)
    for array in context.inputs.values():
        array[...] = rng.standard_normal(array.shape)

    def run() -> np.ndarray:
        context.run()
        return context.outputs["out"].copy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="of a small model")
    parser.add_argument("--images", type=int, default=1)
    cores = usable_cores()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=LOCAL / "spread.jsonl", help="JSON lines are added to this file")
    options = parser.parse_args()
    folder = options.bundle or model("built-in").bundle(ENGINES)
    bundle = Bundle.open(folder)
    for entry in (entry for entry in bundle.entries if entry.kind in ("onnx", "openvino")):
        whole, parts = (
            evaluation(bundle, entry, options.images, threads=options.threads, spread=spread)
            for spread in (False, True)
        )
        report = compare(
            [Case("whole batch", whole), Case("parts side by side", parts)],
            benchmark="spread", check=cosine_at_least(AGREE[entry.precision]), rounds=options.rounds, warmup=5,
            params={"family": bundle.family.name, "images": options.images, "engine": entry.name,
                    "precision": entry.precision, "rewrites": list(entry.rewrites), "threads": options.threads},
        )  # fmt: skip
        print(f"{entry.name}\n{report.table()}", flush=True)
        report.append(options.out)
    print(f"added to {options.out}")


if __name__ == "__main__":
    main()
