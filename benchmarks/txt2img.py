"""One picture from words: hotloop's engines and the peers, the same weights, words, noise, sampler and steps for all.

    python benchmarks/txt2img.py                                        the built-in model, every peer that is installed
    python benchmarks/txt2img.py --model sd15-random --peers all        at the size of Stable Diffusion 1.5
    python benchmarks/txt2img.py --scenario Offline --batch 4           pictures per second
    python benchmarks/txt2img.py --scenario Server --rates 1,2,4        requests that come by themselves

Everybody draws in a process of its own and is stopped while others draw. A small model's cases are all there at once,
the first the baseline; of a large one hotloop meets each peer alone, so that two are in memory. A ratio is printed only
for pictures that agree with the baseline's as far as the precision lets them (`entrants.LIMITS`). The floor is the
least time that the plain work takes at ceilings measured at the beginning of the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ceilings
import floor
import numpy as np
from entrants import Entrant, Field, agreement, chosen, of_engine, precision_of, same_picture, work_for
from harness import Case, Measurement, Report, Unmeasured, compare
from peers.table import Peer
from peers.work import Setup, Work
from scenarios import serve

from hotloop import Bundle
from hotloop.evaluation.records import SCENARIOS, append, environment, record, run_id
from hotloop.spec import REWRITES
from hotloop_kernels import usable_cores
from models import LOCAL, Model, model

PROMPT = "A cute anime girl with pink hair, wearing a school uniform, smiling"
NEGATIVE = "blurry, watermark, low quality"
BASELINE = "diffusers eager fp32"
# The precision that its arithmetic is in, by the precision in a case's name: which ceiling its floor stands on.
_ARITHMETIC = {"fp16": "bf16", "q8_0": "int8"}


# What is drawn.


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The options that the benchmarks of whole pictures share; 0 or None: by the size of the model."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="built-in", help="built-in, sd15-random or a folder in diffusers' layout")
    parser.add_argument("--sampler", help="plms, euler, ddim or dpmpp_2m; by default plms, of a large model euler")
    parser.add_argument("--steps", type=int, default=0, help="20 by default, of a large model 4")
    parser.add_argument("--guidance", type=float, default=0.0, help="2.5 by default, of a large model 7.5")
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), help="64x64 or 512x512")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep-bundles", action="store_true", help="those made here before, whatever code made them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    cores = usable_cores()
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=0, help="15 by default, of a large model 3")
    parser.add_argument("--warmup", type=int, default=0, help="2 by default, of a large model 1")
    return parser


def settle(options: argparse.Namespace, source: Model) -> None:
    """Fill in what was left to the model's size."""
    small = source.small
    for name, by_size in {
        "sampler": ("plms", "euler"), "steps": (20, 4), "guidance": (2.5, 7.5), "size": ((64, 64), (512, 512)),
        "rounds": (15, 3), "warmup": (2, 1),
    }.items():  # fmt: skip
        if not getattr(options, name):
            setattr(options, name, by_size[0] if small else by_size[1])


def asked(options: argparse.Namespace, batch: int) -> Work:
    return work_for(
        PROMPT, NEGATIVE, family=options.family, seed=options.seed, batch=batch, size=options.size,
        sampler=options.sampler, steps=options.steps, guidance=options.guidance,
    )  # fmt: skip


def params_of(options: argparse.Namespace, source: Model, batch: int) -> dict[str, Any]:
    return {
        "model": source.name, "sampler": options.sampler, "steps": options.steps, "guidance": options.guidance,
        "size": list(options.size), "batch": batch, "threads": options.threads,
    }  # fmt: skip


def engine_of(row: Peer) -> dict[str, Any]:
    """What a record of hotloop tells beside its name."""
    return {"engine": row.settings["engine"], "rewrites": list(REWRITES)} if row.adapter == "hotloop" else {}


class Limits:
    """The machine's ceilings, measured now and, where asked, once more; and the floor of a picture under them."""

    def __init__(self, options: argparse.Namespace, source: Model, bundle: Path) -> None:
        self.ceilings = ceilings.measure(device=options.device, threads=options.threads)
        self._model = floor.Model.named("sd15" if source.name == "sd15-random" else bundle)
        self._options = options

    def again(self) -> None:
        """Measure once more and keep the higher of each: what else runs on a machine only lowers them."""
        now = ceilings.measure(device=self._options.device, threads=self._options.threads)
        self.ceilings = self.ceilings.highest(now)

    def of(self, name: str, evaluations: int, seconds: float, *, tiny: bool = False) -> dict[str, Any] | None:
        """The floor block for a case's seconds per picture; None for a precision without a ceiling here.

        tiny: with the tiny VAE, which is other work and not the plain one done better.
        """
        precision = precision_of(name)
        dtype = _ARITHMETIC.get(precision, precision)
        if dtype not in self.ceilings.flops:
            return None
        guided = self._options.guidance > 1
        work = floor.of_picture(self._model, size=self._options.size, evaluations=evaluations, guided=guided, tiny=tiny)
        return floor.floor(work, self.ceilings, dtype).record(seconds)


def complete(report: Report, known: Mapping[str, Any], limits: Limits, first: str) -> None:
    """Add to every measurement its floor, its ceilings, and how its picture compares with the baseline's."""
    for row in report.measurements:
        if row.error is not None:
            continue
        drawn = known[row.case.name]
        row.floor = limits.of(row.case.name, drawn.evaluations, row.median)
        row.extra |= {"evaluations": drawn.evaluations, "ceilings": limits.ceilings.record()}
        if row.case.name != first:
            row.quality = agreement(known[first], drawn)


# SingleStream and Offline.


def together(
    rows: Sequence[Peer], setup: Setup, options: argparse.Namespace, source: Model, limits: Limits, *, batch: int
) -> Report:
    """All cases in one interleaved run; the first one that opens is the baseline."""
    work = asked(options, batch)
    told = {row.name: engine_of(row) for row in rows}
    with Field(rows, setup) as field:
        if not field.entrants:
            raise SystemExit("\n".join(f"{name}: {why}" for name, why in field.failed.items()))
        cases = [one.case(work, **told[one.name]) for one in field.entrants]
        report = compare(
            cases, benchmark="txt2img", scenario=options.scenario, rounds=options.rounds, warmup=options.warmup,
            check={one.name: same_picture(precision_of(one.name)) for one in field.entrants},
            failed=field.failed, params=params_of(options, source, batch), model_hash=source.hash(),
        )  # fmt: skip
        drawn = {}
        for one in field.entrants:
            if report[one.name].error is None:
                with one.turn():
                    drawn[one.name] = one.draw(work).output
    limits.again()
    complete(report, drawn, limits, cases[0].name)
    return report


def opponents(rows: Sequence[Peer], engines: Sequence[str]) -> list[tuple[Peer, Peer]]:
    """Of a large model: each peer with hotloop's engine of the same library and precision, or else its fastest of that
    precision; int8 meets the fastest kind of peer that is not."""
    ours = {name: of_engine(name) for name in engines}
    pairs = []
    for row in rows:
        precision = precision_of(row.name)
        names = [name for name in ours if precision_of(name) == ("bf16" if precision == "fp16" else precision)]
        names = [name for name in names if name.split("-")[0] in row.name] or names or list(ours)
        pairs.append((row, ours[names[-1]]))
    strongest = [row for row in rows if row.name == "optimum openvino bf16"] or list(rows[:1])
    return pairs + [(strongest[0], row) for name, row in ours.items() if precision_of(name) == "int8" and strongest]


# Server.


def served(
    rows: Sequence[Peer],
    setup: Setup,
    options: argparse.Namespace,
    source: Model,
) -> list[dict[str, Any]]:
    """Every case at every rate, one worker each, the same requests for all; printed, and given as records."""
    run, records = run_id("txt2img"), []
    shared = params_of(options, source, 1) | {"max_batch": options.batch}
    with Field(rows, setup) as field:
        env = environment(model_hash=source.hash())
        for one in field.entrants:
            told = next(engine_of(row) for row in rows if row.name == one.name)
            with one.turn():
                for size in range(1, options.batch + 1):  # every batch that may come
                    one.draw(asked(options, size))
                for rate in options.rates:
                    made = _serve(one, rate, options)
                    row = record(
                        run=run, benchmark="txt2img", scenario="Server", case=one.name, environment=env,
                        params=shared | told | {"precision": precision_of(one.name), "rate": rate},
                        metrics=made.metrics(), rounds=options.requests, warmup=options.batch,
                        extra=made.extra(options.bound),
                    )  # fmt: skip
                    records.append(row)
                    verdict = "kept" if made.keeps(options.bound) else "missed"
                    p50, p99 = (row["metrics"]["latency"][name] for name in ("p50", "p99"))
                    print(f"{one.name:<28}{rate:>7.2f}/s offered {made.achieved:>7.2f}/s achieved  p50 {p50:.3f} s  "
                        f"p99 {p99:.3f} s  bound {options.bound:g} s {verdict}")  # fmt: skip
        for name, why in field.failed.items():
            records.append(record(run=run, benchmark="txt2img", scenario="Server", case=name, environment=env,
                                  params=shared, error=why))  # fmt: skip
            print(f"{name:<28}not measured: {why}")
    return records


def _serve(one: Entrant, rate: float, options: argparse.Namespace) -> Any:
    works = {size: asked(options, size) for size in range(1, options.batch + 1)}
    return serve(lambda size: one.draw(works[size]), rate, options.requests, max_batch=options.batch, seed=options.seed)


# The command.


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, default="SingleStream")
    parser.add_argument("--peers", default="all", help="all, none, or names joined by commas (environments.py --list)")
    parser.add_argument("--engines", default="onnx-fp32,openvino-fp32,openvino-bf16,openvino-int8", help="hotloop's")
    parser.add_argument("--batch", type=int, default=1, help="pictures per call; of a Server at most")
    parser.add_argument("--rates", default="1,2,4", help="of a Server: requests per second")
    parser.add_argument("--requests", type=int, default=60, help="of a Server")
    parser.add_argument("--bound", type=float, default=1.0, help="of a Server: seconds for the 99th percentile")
    parser.add_argument("--pairs", action="store_true", help="hotloop meets each peer alone, whatever the model's size")
    parser.add_argument("--out", type=Path, default=LOCAL / "txt2img.jsonl", help="JSON lines are added to this file")
    options = parser.parse_args()
    options.rates = [float(rate) for rate in options.rates.split(",")]
    source = model(options.model)
    settle(options, source)
    engines = options.engines.split(",")
    rows = chosen(options.peers, options.device)
    bundle = source.bundle(engines, keep=options.keep_bundles)
    options.family = Bundle.open(bundle, verify=False).family
    setup = Setup(
        model=source.folder, bundle=bundle, threads=options.threads, device=options.device, cache=LOCAL / "peers",
        size=options.size, batch=options.batch, guided=options.guidance > 1,
    )  # fmt: skip

    if options.scenario == "Server":
        append(options.out, served([*rows, *map(of_engine, engines)], setup, options, source))
        print(f"added to {options.out}")
        return
    limits = Limits(options, source, bundle)
    print(limits.ceilings.table(), flush=True)
    if source.small and not options.pairs:
        groups = [[*sorted(rows, key=lambda row: row.name != BASELINE), *map(of_engine, engines)]]
    else:
        groups = [list(pair) for pair in opponents(rows, engines)] or [list(map(of_engine, engines))]
    for group in groups:
        try:
            if len(group) == 2 and (reason := group[0].lacking(options.device, source.folder)):
                raise Unmeasured(reason)
            report = together(group, setup, options, source, limits, batch=options.batch)
        except Unmeasured as error:
            print(f"{group[0].name}: {error}")
            report = unmeasured(group[0], str(error), options, source)
        print(report.table(), flush=True)
        report.append(options.out)
    print(f"added to {options.out}")


def unmeasured(row: Peer, why: str, options: argparse.Namespace, source: Model) -> Report:
    """The report of a peer that failed while it drew."""
    failed = Measurement(Case(row.name, lambda: None), np.empty(0), error=why)
    return Report(
        "txt2img", params_of(options, source, options.batch), (failed,), options.warmup, environment(),
        run_id("txt2img"), options.scenario,
    )  # fmt: skip


if __name__ == "__main__":
    main()
