"""What only a GPU can tell, in one command: `make gpu-check`. Under eight minutes, no network, no diffusers.

1. Builds the operators for this machine's GPU.
2. Runs the tests that need one (`pytest -m gpu`). An operator whose tests are green is written into
   kernels/hotloop_kernels/proved.json for this architecture, and runs fused there from then on.
3. Times every operator against torch's at the shapes of SD 1.5, and four workloads on random weights of its shape
   against the plain networks run eagerly by torch: W1 text to image at 50 steps, W2 one-step live images with a tiny
   VAE, W3 four steps, W4 sixteen images.

JSON lines go to benchmarks/results/, as the harness writes them; a short table comes last. `--rehearse` does steps 2
and 3 in small on the CPU: it proves the script, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PROVED = ROOT / "kernels" / "hotloop_kernels" / "proved.json"
RESULTS = ROOT / "benchmarks" / "results"
ROW = "{:<40}{:>12}{:>12}  {:<24}{}"
# By name: other files import packages that such a machine may lack. (The GPU tests of test_tensorrt.py need TensorRT.)
GPU_TESTS = (
    "attention", "attention_wgmma", "cfg_step", "geglu", "group_norm_silu", "layer_norm", "rgb", "warp_blend",
    "native", "native_cuda", "ceilings",
)  # fmt: skip
COLD = 128 << 20  # bytes of inputs to go round, so that no launch finds its own in the L2 cache


# Build and test.


def build(architecture: str) -> None:
    """The operators for `architecture`, such as "90a", put beside their Python files."""
    folder = ROOT / "build" / "gpu-check"
    hints = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True)
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DHOTLOOP_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={hints.stdout.strip()}",
    ]  # fmt: skip
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "--parallel"], check=True, stdout=subprocess.DEVNULL)
    (made,) = folder.glob("_ops*.so")
    shutil.copy(made, PROVED.parent / made.name)


@dataclass(frozen=True)
class Outcome:
    """passed, failed: test file -> how many; first: the first failure, in one line."""

    passed: dict[str, int]
    failed: dict[str, int]
    first: str | None


def run_tests(environment: dict[str, str], *, rehearse: bool) -> Outcome:
    """Every test that needs a GPU; what they print is shown."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        on_gpu = ["-m", "gpu", *(f"tests/test_{name}.py" for name in GPU_TESTS)]
        chosen = on_gpu if not rehearse else ["tests/test_resident.py", "-k", "euler or read"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *chosen]
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if not report.is_file():
            return Outcome({}, {}, "pytest wrote no report")
        return read_tests(report)


def read_tests(report: Path) -> Outcome:
    """From JUnit's XML."""
    passed: dict[str, int] = {}
    failed: dict[str, int] = {}
    first = None
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        broken = [one for kind in ("failure", "error") for one in case.iter(kind)]
        if broken:
            failed[file] = failed.get(file, 0) + 1
            said = (broken[0].get("message") or "").splitlines()
            first = first or f"{file}::{case.get('name')}: {said[0] if said else 'no message'}"
        elif case.find("skipped") is None:
            passed[file] = passed.get(file, 0) + 1
    return Outcome(passed, failed, first)


def proved_by(tests: Outcome, operators: tuple[str, ...]) -> list[str]:
    """The operators with green GPU tests, and none that is not."""
    files = {name: "test_" + name.partition(".")[0] for name in operators}
    return [name for name, file in files.items() if tests.passed.get(file) and not tests.failed.get(file)]


# Operators.


def operator_cases(device: str, *, small: bool) -> Iterator[tuple[str, list[Any], Callable, Callable]]:
    """(name, sets of inputs to go round, torch's way, ours), at two images of 512 x 512 (guidance)."""
    import torch
    import torch.nn.functional as F

    import hotloop_kernels as kernels
    from hotloop.nets.cuda_stream import stream_of

    half, on = torch.float16 if device == "cuda" else torch.float32, torch.device(device)

    def sets(*shapes: tuple[int, ...]) -> list[list[torch.Tensor]]:
        size = sum(int(np.prod(shape)) for shape in shapes) * half.itemsize
        return [[torch.randn(shape, device=on).to(half) for shape in shapes] for _ in range(max(2, COLD // size))
                ][: 2 if small else 64]  # fmt: skip

    scale = 8 if small else 1
    for tokens, size, keys in (
        (4096, 40, 4096), (1024, 80, 1024), (256, 160, 256), (64, 160, 64), (4096, 40, 77), (1024, 80, 77),
    ):  # fmt: skip
        q, k = (2, tokens // scale, 8, size), (2, max(keys // scale, 1), 8, size)
        yield (
            f"attention {tokens} x {size}, {keys} keys", sets(q, k, k),
            lambda q, k, v: F.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2),
            lambda q, k, v: kernels.attention(q, k, v, stream=stream_of(q), unproved=True),
        )  # fmt: skip
    for channels, side in ((320, 64), (640, 32), (1280, 16), (1280, 8)):
        side = max(side // scale, 1)
        weight, bias = (torch.randn(channels, device=on).to(half) for _ in range(2))
        maps = [
            [x.contiguous(memory_format=torch.channels_last)] for (x,) in sets((2, channels, side, side))
        ]  # fmt: skip
        yield (
            f"group_norm_silu {channels} x {side}^2", maps,
            lambda x, w=weight, b=bias: F.silu(F.group_norm(x, 32, w, b)),
            lambda x, w=weight, b=bias: kernels.group_norm_silu(x, w, b, 32, stream=stream_of(x), unproved=True),
        )  # fmt: skip
    for tokens, channels in ((4096, 320), (1024, 640), (256, 1280)):
        weight, bias = (torch.randn(channels, device=on).to(half) for _ in range(2))
        yield (
            f"layer_norm {tokens} x {channels}", sets((2, tokens // scale, channels)),
            lambda x, w=weight, b=bias, c=channels: F.layer_norm(x, (c,), w, b),
            lambda x, w=weight, b=bias: kernels.layer_norm(x, w, b, stream=stream_of(x), unproved=True),
        )  # fmt: skip
        yield (
            f"geglu {tokens} x {4 * channels}", sets((2, tokens // scale, 8 * channels)),
            lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]),
            lambda x: kernels.geglu(x, stream=stream_of(x), unproved=True),
        )  # fmt: skip
    side = 512 // scale
    frames = [
        [*(torch.randint(256, (side, side, 4), device=on, dtype=torch.uint8) for _ in range(2)),
         torch.rand(9, 64, 64, device=on) * 0.1]
        for _ in range(2 if small else max(2, COLD // (8 * side * side)))
    ]  # fmt: skip

    def warped(key: torch.Tensor, reveal: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        values = F.interpolate(field[None], (side, side), mode="bilinear", align_corners=False)
        still = F.affine_grid(torch.eye(2, 3, device=on)[None], [1, 4, side, side], align_corners=False)

        def moved(source: torch.Tensor, first: int) -> torch.Tensor:
            at = still + 2 * values[:, first : first + 2].permute(0, 2, 3, 1)
            return F.grid_sample(source.permute(2, 0, 1)[None].float(), at, align_corners=False)

        mixed = torch.lerp(moved(key, 0), moved(reveal, 2), values[:, 4:5])
        return (255 * values[:, 5:] + (1 - values[:, 8:]) * mixed).round().clamp(0, 255)[0].permute(1, 2, 0).byte()

    yield (
        f"warp_blend {side}^2", frames, warped,
        lambda key, reveal, field: kernels.warp_blend([key, reveal], field, stream=stream_of(key), unproved=True),
    )  # fmt: skip


def time_operators(device: str, out: Path, *, small: bool) -> list[str]:
    """Each operator's launches in one graph, going round its inputs; lines of the table."""
    from harness import Case, compare, cosine_at_least

    lines = []
    for name, inputs, theirs, ours in operator_cases(device, small=small):
        count = len(inputs)
        report = compare(
            [Case("torch", launched(device, theirs, inputs), work=count),
             Case("hotloop", launched(device, ours, inputs), work=count)],
            benchmark="gpu-operators", check=cosine_at_least(0.9999), rounds=3 if small else 15,
            params={"operator": name, "inputs": count}, warmup=2,
        )  # fmt: skip
        report.append(out)
        lines.append(line(name, report["torch"], report["hotloop"], 1e6, "us"))
    return lines


def launched(device: str, work: Callable, inputs: list[Any]) -> Callable[[], np.ndarray]:
    """Does the work on every set of inputs and waits; captured on CUDA, so that launches cost no Python."""
    import torch

    def all_of_them() -> Any:
        result = None
        for arrays in inputs:
            result = work(*arrays)
        return result

    if device == "cpu":
        return lambda: all_of_them().float().numpy()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        all_of_them()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = all_of_them()

    def replay() -> np.ndarray:
        graph.replay()
        torch.cuda.synchronize()
        return Sample(result)  # type: ignore[return-value]

    return replay


class Sample:
    """A result that stays on the device until it is compared: copying it back is not what is timed."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._result.float().cpu().numpy(), dtype)


def line(name: str, theirs: Any, ours: Any, unit: float, word: str) -> str:
    ratio = "{:.2f}x [{:.2f}, {:.2f}]".format(*ours.speedup) if ours.speedup else "DIFFERS"
    times = [f"{m.median * unit:.1f} {word}" for m in (theirs, ours)]
    agreed = f"{ours.agreement.what} {ours.agreement.value:.6g}"
    return ROW.format(name, *times, ratio, agreed)


# Workloads.


@dataclass(frozen=True)
class Workload:
    name: str
    steps: int
    sampler: str
    images: int = 1
    guided: bool = True
    tiny: bool = False
    live: bool = False  # an image comes in, one step of it


WORKLOADS = (
    Workload("W1 txt2img 512, 50 steps, guidance", 50, "ddim"),
    Workload("W2 live img2img 512, 1 step, tiny VAE", 1, "euler", guided=False, tiny=True, live=True),
    Workload("W3 4 steps, VAE", 4, "lcm", guided=False),
    Workload("W3' 4 steps, tiny VAE", 4, "lcm", guided=False, tiny=True),
    Workload("W4 batch 16, 50 steps, guidance", 50, "ddim", images=16),
)


def checkpoint(folder: Path, *, small: bool) -> Any:
    """Random weights of SD 1.5's shape with a tiny VAE; in small, the built-in model's. Gives the family."""
    import torch
    from random_checkpoint import random_net, write_checkpoint

    from hotloop.bundle import builtin
    from hotloop.nets.vae import TinyVAE
    from hotloop.spec import family

    if small:
        for name in ("unet", "vae"):
            shutil.copytree(builtin() / name, folder / name)
        row = family("avatar-tiny")
    else:
        write_checkpoint(folder, "sd15")
        row = family("sd15")
    widths = {"encoder_block_out_channels": [64] * (3 if small else 4), "num_encoder_blocks": [1, 3, 3, 3],
              "decoder_block_out_channels": [64] * (3 if small else 4), "num_decoder_blocks": [3, 3, 3, 1]}  # fmt: skip
    if small:
        widths |= {"num_encoder_blocks": [1, 1, 1], "num_decoder_blocks": [1, 1, 1]}
    random_net(TinyVAE, widths, seed=9).save(folder / "tiny_vae", dtype=torch.float16)
    return row


def engines_of(folder: Path, row: Any, device: str, *, plain: bool) -> dict[str, Any]:
    """Plain and untuned, or with every rewrite and every tuning at hand, in half precision on CUDA."""
    from hotloop.engines.native import NativeEngine
    from hotloop.spec import REWRITES

    networks = row.split(() if plain else REWRITES, ())
    precision = "fp16" if device == "cuda" else "fp32"
    options: dict[str, Any] = {"device": device, "precision": precision} | ({"tunings": ()} if plain else {})
    places = {"unet": "unet", "prompt": "unet", "time": "unet", "vae_decoder": "vae", "tiny_vae_decoder": "tiny_vae",
              "tiny_vae_encoder": "tiny_vae"}  # fmt: skip
    return {
        name: NativeEngine(folder / place, networks[name], **options)
        for name, place in places.items() if name in networks
    }  # fmt: skip


def work_of(engines: dict[str, Any], row: Any, work: Workload, *, graphs: bool) -> Callable[[], np.ndarray]:
    """One call of the workload: latents (and pixels, made on the way) as a pipeline would give them."""
    from hotloop import loop, samplers
    from hotloop.denoiser.resident import ResidentLoop
    from hotloop.samplers.schedule import Schedule

    rng = np.random.default_rng(0)
    side, n = row.default_size[0] // row.vae_factor, work.images
    shape = (n, row.latent_channels, side, side)
    # One step of two: the second half of the way, as at strength 0.5.
    steps, start = (2, 1) if work.live else (work.steps, 0)
    table = samplers.build(work.sampler, Schedule.from_config({"clip_sample": False}, row.schedule), steps, start=start)
    cond = {"context": rng.standard_normal((n, 77, row.context_dim), np.float32)}
    if work.guided:
        cond["negative_context"] = rng.standard_normal((n, 77, row.context_dim), np.float32)
    noise = rng.standard_normal((table.noises, *shape), np.float32) if table.noises else None
    x = rng.standard_normal(shape, np.float32)
    image = rng.uniform(-1, 1, (n, 3, *row.default_size)).astype(np.float32)
    prefix = "tiny_" if work.tiny else ""
    parts = {name: engines[name] for name in ("prompt", "time") if name in engines}
    denoiser = ResidentLoop(
        engines["unet"], decoder=engines[prefix + "vae_decoder"],
        scaling=1.0 if work.tiny else row.scaling_factor, graphs=graphs, **parts,
    )  # fmt: skip
    run = dict(cond=cond, guidance=np.full(n, 7.5, np.float32), noise=noise)

    def call() -> np.ndarray:
        begin = x * np.float32(table.init_scale)
        if work.live:
            encoder = engines["tiny_vae_encoder"]
            with encoder.contexts.lease(B=n, h=side, w=side, H=image.shape[2], W=image.shape[3]) as context:
                context.inputs["image"][:] = image
                context.run()
                known = context.outputs["mean"]
            begin = np.float32(table.start_img) * known + np.float32(table.start_eps) * x
        return loop.run(denoiser, table, begin, **run)  # type: ignore[arg-type]

    return call


def time_workloads(device: str, out: Path, *, small: bool) -> list[str]:
    """Ours in turns with torch's eager networks; lines of the table."""
    from harness import Case, compare, cosine_at_least

    lines = []
    with tempfile.TemporaryDirectory() as place:
        row = checkpoint(Path(place), small=small)
        row = replace(row, default_size=(32, 32)) if small else row
        plain = engines_of(Path(place), row, device, plain=True)
        ours = engines_of(Path(place), row, device, plain=False)
    for work in WORKLOADS:
        if small:
            work = replace(work, steps=min(work.steps, 3), images=min(work.images, 2))
        rounds = 2 if small else 100 if work.live else 10 if work.images == 1 else 3
        report = compare(
            [Case("torch eager", work_of(plain, row, work, graphs=False)),
             Case("hotloop native", work_of(ours, row, work, graphs=True))],
            benchmark="gpu-workloads", check=cosine_at_least(0.99), rounds=rounds, warmup=2,
            params={"workload": work.name, "steps": work.steps, "images": work.images, "guided": work.guided,
                    "tunings": list(ours["unet"].tunings)},
        )  # fmt: skip
        native = report["hotloop native"]
        native.extra["p50_ms"], native.extra["p99_ms"] = (
            float(np.percentile(native.seconds, q) * 1e3) for q in (50, 99)
        )  # fmt: skip
        report.append(out)
        lines.append(line(work.name, report["torch eager"], native, 1e3, "ms"))
    return lines


# The command.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="in small, on the CPU")
    parser.add_argument("--out", type=Path, help="the folder for the JSON lines; benchmarks/results by default")
    parser.add_argument("--timings", metavar="DEVICE", help=argparse.SUPPRESS)  # the second process
    options = parser.parse_args()
    out = options.out or (RESULTS / "local" if options.rehearse else RESULTS)
    if options.timings:
        file = out / f"{date.today()}-gpu-check.jsonl"
        told = time_operators(options.timings, file, small=options.rehearse)
        told += time_workloads(options.timings, file, small=options.rehearse)
        print("\n".join([ROW.format("", "torch", "hotloop", "speed-up [95 %]", "output"), *told, f"added to {file}"]))
        return

    try:
        import torch
    except ImportError:
        sys.exit(f"gpu-check needs torch, which {sys.executable} does not have; name another: make PYTHON=...")
    began = time.perf_counter()
    device, architecture = "cpu", None
    if not options.rehearse:
        if not torch.cuda.is_available():
            sys.exit("gpu-check needs a CUDA device that torch can use; `--rehearse` proves the script without one")
        device = "cuda"
        major, minor = torch.cuda.get_device_capability()
        architecture = f"sm_{major}{minor}"
        build(f"{major}{minor}{'a' if major >= 9 else ''}")
    layers = [str(ROOT / name) for name in ("runtime", "export", "kernels", "benchmarks")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(layers)}
    tests = run_tests(environment, rehearse=options.rehearse)
    if architecture is not None:
        sys.path[:0] = layers
        from hotloop_kernels import OPERATORS

        known = json.loads(PROVED.read_text()) | {architecture: proved_by(tests, (*OPERATORS, "attention_wgmma"))}
        PROVED.write_text(json.dumps(known, indent=1) + "\n")
        print(f"proved on {architecture}: {', '.join(known[architecture]) or 'nothing'}")
    # A process of its own: it sees the new operators, and what is proved now.
    command = [sys.executable, __file__, "--timings", device, "--out", str(out)]
    timed = subprocess.run([*command, *(["--rehearse"] if options.rehearse else [])], env=environment, check=False)
    print(f"tests: {sum(tests.passed.values())} passed, {sum(tests.failed.values())} failed; "
          f"{time.perf_counter() - began:.0f} s in all")  # fmt: skip
    if tests.first:
        print(f"first failure: {tests.first}")
    sys.exit(1 if tests.failed or tests.first or timed.returncode else 0)


if __name__ == "__main__":
    main()
