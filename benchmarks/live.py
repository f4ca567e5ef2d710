"""Live: how long a signal takes to a frame on the wire, and each way to make a frame against its peer.

    python benchmarks/live.py                    # all parts, short
    python benchmarks/live.py wire --seconds 600 # control datagrams and a synthetic camera through real sockets
    python benchmarks/live.py restyle            # against StreamDiffusion's own loop on the same weights
    python benchmarks/live.py animate            # against the architecture of Talking Head Anime 4's student

restyle and animate are interleaved, outputs checked before a ratio is printed; animate's peer has random weights and is
there for its time alone. The report draws wire's latency over time and its distribution.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import wire
from entrants import Field, same_picture, work_for
from harness import Agreement, Case, Report, compare
from peers import siren
from peers.adapters.restyle_streamdiffusion import picture
from peers.table import Peer
from peers.work import Setup
from PIL import Image

from hotloop.bundle import Bundle
from hotloop.evaluation.records import append, block, environment, record, run_id
from hotloop_kernels import usable_cores
from models import LOCAL, Model, model

PARTS = ("wire", "restyle", "animate")
PROMPT = "a smiling girl with purple hair"


# Restyle.


def restylers(engines: list[str], *, compiled: bool) -> list[Peer]:
    theirs, ours = "restyle_streamdiffusion", "restyle_hotloop"
    rows = [Peer("streamdiffusion eager fp32", theirs)]
    if compiled:
        rows.append(Peer("streamdiffusion compiled fp32", theirs, settings={"compiled": True}))
    return [*rows, *(Peer(f"hotloop {name.replace('-', ' ')}", ours, settings={"engine": name}) for name in engines)]


def restyle(source: Model, options: argparse.Namespace) -> list[Report]:
    """One report for each number of evaluations; StreamDiffusion's loop is the baseline."""
    bundle = source.bundle(options.engines)
    family = Bundle.open(bundle, verify=False).family
    setup = Setup(model=source.folder, bundle=bundle, threads=options.threads, cache=LOCAL / "peers",
                  size=options.size, guided=False)  # fmt: skip
    reports = []
    with Field(restylers(options.engines, compiled=options.compiled), setup) as field:
        for steps in options.steps:
            work = work_for(PROMPT, "", family=family, seed=7, batch=1, size=options.size, steps=steps, guidance=1.0)
            cases = [one.case(work) for one in field.entrants]
            reports.append(compare(
                cases, benchmark="live-restyle", rounds=options.rounds, warmup=options.warmup, failed=field.failed,
                check={one.name: same_picture(one.name.rsplit(" ", 1)[-1]) for one in field.entrants},
                params={"model": source.name, "size": list(options.size), "evaluations": steps, "strength": 0.5,
                        "threads": options.threads}, model_hash=source.hash(),
            ))  # fmt: skip
    return reports


# Animate.


def untimed(expected: Any, got: Any) -> Agreement:
    """Nothing to agree on: weights are random, times alone are compared; frames must be finite and not flat."""
    values = np.asarray(got, np.float64)
    moved = float(np.ptp(values)) if np.isfinite(values).all() else 0.0
    return Agreement(moved > 0, "timing only, range", moved, 0.0)


def rig(size: int) -> Callable[[], np.ndarray]:
    """A frame uint8 [size, size, 4] as a session makes it today: the geometric rig, watchdog and `warp_blend`."""
    from hotloop.live.animation import AnimationSession
    from hotloop.live.controls import CONTROLS

    class Moving:
        """Other controls at every sample: nothing may be left out as unchanged."""

        def __init__(self) -> None:
            self._rng = np.random.default_rng(0)

        def sample(self, t: float) -> np.ndarray:
            return np.array([self._rng.uniform(0.6 * c.low, 0.6 * c.high) for c in CONTROLS])

    session, now = AnimationSession(controls=Moving(), side=size), [0.0]

    def run() -> np.ndarray:
        now[0] += 1 / 60
        frame = session.tick(now[0])
        assert frame is not None and frame.stamp.kind == "drawn"
        return frame.pixels

    return run


def animator(threads: int, precision: str, size: int) -> Callable[[], np.ndarray]:
    """A frame uint8 [size, size, 4]: controls through the animator's decoder in OpenVINO, then `warp_blend`. The
    network is the product's, its weights random here: what it costs, not what it shows."""
    import openvino as ov
    import torch

    from hotloop.live.controls import ANIMATOR
    from hotloop.nets.animator import Animator
    from hotloop_kernels import warp_blend

    torch.manual_seed(0)
    net = Animator({"controls": [list(row) for row in ANIMATOR]}).eval()
    with torch.no_grad():
        *maps, prior, _, boxes, held = net.encode(torch.rand(1, 4, 128, 128))

    class Frame(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.net.animate(*given)

    example = (*maps, boxes, held, torch.rand(1, len(ANIMATOR)), torch.randn(1, prior.shape[1] // 2))
    with torch.no_grad():
        graph = ov.convert_model(Frame(), example_input=example)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(graph, "CPU", settings).create_infer_request()
    kept = [np.ascontiguousarray(value.numpy()) for value in example]
    for i, value in enumerate(kept):
        request.set_input_tensor(i, ov.Tensor(value))
    rng = np.random.default_rng(0)
    alpha = rng.integers(0, 256, (2, size, size, 1))
    textures = np.concatenate([rng.integers(0, 256, (2, size, size, 3)) * alpha // 255, alpha], -1).astype(np.uint8)

    def run() -> np.ndarray:
        kept[-2][:] = rng.uniform(0, 1, kept[-2].shape)
        request.set_input_tensor(len(kept) - 2, ov.Tensor(kept[-2]))
        request.infer()
        whole, parts, places = (request.get_output_tensor(i).data[0] for i in range(3))
        drawn: np.ndarray = warp_blend(list(textures), whole, parts=parts, boxes=places.clip(0, 1), size=(size, size))
        return drawn

    return run


def animate(options: argparse.Namespace) -> list[Report]:
    """At 512 x 512; the student of Talking Head Anime 4 in OpenVINO is the baseline. Rectifiers in the sines' place
    cost next to nothing: the least that its matrices take in any runtime."""
    import hotloop_kernels as kernels

    threads, told = options.threads, {"weights": "random"}
    kernels.set_threads(threads)
    cases = [
        Case("THA4 student fp32", siren.student(threads), params=told | {"flops": siren.FLOPS}),
        Case("THA4 student bf16", siren.student(threads, precision="bf16"), params=told),
        Case("THA4 student bf16, no sines", siren.student(threads, precision="bf16", sine=False), params=told),
        Case("hotloop rig", rig(512), params={"weights": "none"}),
        Case("hotloop animator fp32", animator(threads, "f32", 512), params=told),
        Case("hotloop animator bf16", animator(threads, "bf16", 512), params=told),
    ]
    return [compare(
        cases, benchmark="live-animate", check=untimed, rounds=options.rounds, warmup=options.warmup,
        params={"size": [512, 512], "threads": threads, "peer": "architecture, random weights: timing only"},
    )]  # fmt: skip


# Wire.


def clip(side: int, count: int = 60) -> list[bytes]:
    """A synthetic camera's JPEGs: a face of discs that moves to and fro."""
    pictures = []
    for k in range(count):
        face = np.roll(picture((side, side), 0), round(side / 8 * np.sin(2 * np.pi * k / count)), axis=1)
        file = io.BytesIO()
        Image.fromarray(face).save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    return pictures


def wires(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for control datagrams to an avatar, and one for a camera's pictures redrawn; printed as they come."""
    run, records = run_id("live-wire"), list[dict[str, Any]]()
    osc, few = ["--osc", "0"], ["--fps", f"{options.fps:g}", "--size", f"{options.side}"]
    parts: list[tuple[str, list[str], Callable[[wire.Server], wire.Wire]]] = [
        ("controls to frame", [*osc, *few], lambda server: wire.controls(
            server, rate=options.fps, seconds=options.seconds, fps=options.fps, sessions=options.sessions,
            storm=options.storm, slow=options.slow)),
        ("camera to frame", ["--mode", "restyle", "--steps", "1", "--fps", "30"], lambda server: wire.camera(
            server, clip(options.size[0]), rate=30.0, seconds=options.seconds, fps=30.0)),
    ]  # fmt: skip
    for name, words, measured in parts:
        params = {"seconds": options.seconds, "server": words, "sessions": options.sessions, "storm": options.storm,
                  "slow": options.slow, "transport": "loopback"}  # fmt: skip
        row: dict[str, Any] = {"run": run, "benchmark": "live-wire", "case": name, "params": params}
        try:
            with wire.Server(*words) as server:
                told = measured(server)
        except (RuntimeError, OSError) as error:
            print(f"{name:<20}not measured: {error}")
            records.append(record(**row, environment=environment(), error=str(error)))
            continue
        print(wire_line(name, told), flush=True)
        metrics = {"latency": block("s", told.latencies, keep=False)}
        records.append(record(
            **row, environment=environment(), metrics=metrics, rounds=len(told.latencies),
            extra={"signals": told.signals, "dropped": told.dropped, "frames": told.frames, "rate": told.rate,
                   "bytes_per_frame": told.bytes / max(told.frames, 1), "server_cores": told.server,
                   "client_cores": told.client, "memory_slope_bytes_per_second": told.slope,
                   "ledgers_exact": told.balanced(), "load": os.getloadavg()[0], "curve": curve(told)},
        ))  # fmt: skip
    return [*records, *([prompted(run, osc + few, options)] if options.prompts else [])]


def prompted(run: str, words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """A record of how long a change of prompt takes to the first frame of the keyframe drawn for it; printed."""
    row: dict[str, Any] = {"run": run, "benchmark": "live-wire", "case": "prompt to keyframe",
                           "params": {"server": words, "changes": options.prompts}}  # fmt: skip
    try:
        with wire.Server(*words) as server:
            taken = wire.prompts(server, count=options.prompts, fps=options.fps)
    except (RuntimeError, OSError) as error:
        print(f"{row['case']:<20}not measured: {error}")
        return record(**row, environment=environment(), error=str(error))
    print(f"{row['case']:<20}median {np.median(taken):.2f}  most {taken.max():.2f} s   of {len(taken)}", flush=True)
    metrics = {"latency": block("s", taken, keep=False)}
    return record(**row, environment=environment(), metrics=metrics, rounds=len(taken),
                  extra={"load": os.getloadavg()[0]})  # fmt: skip


def curve(told: wire.Wire, most: int = 2000) -> dict[str, list[float]]:
    """For the report's picture: so many of the signals, evenly."""
    some = np.linspace(0, len(told.at) - 1, min(most, len(told.at))).round().astype(int)
    return {"at": told.at[some].round(3).tolist(), "seconds": told.latencies[some].round(5).tolist()}


def wire_line(name: str, told: wire.Wire) -> str:
    times = "  ".join(f"{key} {1e3 * value:.1f}" for key, value in told.percentiles().items())
    return (
        f"{name:<20}{times} ms   {told.rate:.1f} fps, {told.dropped} of {told.signals} signals dropped, "
        f"{told.bytes / max(told.frames, 1) / 1e3:.0f} kB a frame; server {told.server:.2f} of a core, client "
        f"{told.client:.2f}{told.rungs()}; memory {told.slope / 1e3:+.1f} kB/s; "
        f"ledgers {'exact' if told.balanced() else 'WRONG'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--model", default="built-in", help="of restyle: built-in or a folder")
    parser.add_argument("--engines", default="onnx-fp32", type=lambda text: text.split(","), help="hotloop's")
    parser.add_argument("--compiled", action="store_true", help="StreamDiffusion's networks by torch.compile as well")
    parser.add_argument("--steps", default="1,2", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--size", default="64x64", type=lambda text: tuple(map(int, text.split("x"))), help="restyled")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of wire, each")
    parser.add_argument("--fps", type=float, default=60.0, help="of wire's avatar, and its datagrams a second")
    parser.add_argument("--sessions", type=int, default=1, help="of wire: avatars at once")
    parser.add_argument("--side", type=int, default=512, help="of wire's avatar, pixels")
    parser.add_argument("--prompts", type=int, default=4, help="of wire: changes of prompt that are timed")
    parser.add_argument("--storm", type=float, default=0.0, help="of wire: settings a second in the last session")
    parser.add_argument("--slow", type=float, default=0.0, help="of wire: seconds that the last viewer takes a frame")
    parser.add_argument("--out", type=Path, default=LOCAL / "live.jsonl", help="JSON lines are added to this file")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    for part in options.parts or PARTS:
        if part == "wire":
            append(options.out, wires(options))
            continue
        reports = restyle(model(options.model), options) if part == "restyle" else animate(options)
        for report in reports:
            print(report.table(), flush=True)
            report.append(options.out)
    print(f"added to {options.out}")


if __name__ == "__main__":
    main()
