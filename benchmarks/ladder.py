"""The ladder: from stock diffusers up, one switch more on every rung, and what each bought.

    python benchmarks/ladder.py                                     the built-in model
    python benchmarks/ladder.py --model sd15-random --steps 2       at the size of Stable Diffusion 1.5

A rung stands when its output agrees with the first one's. Exact rungs and lower precisions are held to the pictures,
another decoder to the latents, fewer steps (which draw another picture) to the attributes that a judge reads: no more
than two points of accuracy lost. All rungs of a small model are timed in one interleaved run; of a large one each rung
against the one below it, two in memory, and what stands against the first is the product of the rungs so far.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from entrants import Entrant, Field, agreement, of_engine, precision_of, same_picture, work_for
from harness import CONFIDENCE, Agreement, Check, Report, compare, cosine_at_least, ratio_of
from peers.table import PEERS, Peer
from peers.work import Drawn, Setup, Work
from txt2img import BASELINE, Limits, asked, params_of, parser_of, settle

from hotloop import Bundle
from hotloop.evaluation.judge import Judge, builtin_judge
from hotloop.evaluation.records import append
from hotloop.spec import REWRITES
from models import LOCAL, Model, model

LOST = 0.02  # of attribute accuracy, at most
COSINE = 0.99


@dataclass(frozen=True)
class Rung:
    """switch: what it adds to the one below; the rest is all that it runs with. work: options in place of the run's."""

    switch: str
    engine: str
    rewrites: tuple[str, ...] = ()
    tiny: bool = False
    work: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Unique, and its last word is its precision: what its pictures are held to."""
        return f"{self.switch} {precision_of(self.engine)}"

    def row(self) -> Peer:
        if self.engine in PEERS:
            return replace(PEERS[self.engine], name=self.label)
        return replace(of_engine(self.engine, vae="tiny" if self.tiny else "full"), name=self.label)


def rungs_of(source: Model) -> list[Rung]:
    """On the CPU. The native engine's switches, fused operators and graphs among them, have a ladder in tunings.py."""
    exact = [
        Rung("prompt's K and V and time embedding once", "onnx-fp32", ("kv", "time")),
        Rung("guidance's halves share their prefix", "onnx-fp32", ("kv", "time", "prefix")),
        Rung("upsampling as phase convolutions", "onnx-fp32", REWRITES),
    ]
    first, last = "hotloop's loop on ONNX Runtime", Rung("tiny VAE", "openvino-int8", REWRITES, tiny=True)
    if source.small:
        first += ", guidance's halves side by side"  # alone: spread.py
        fewer = {"sampler": "dpmpp_2m", "steps": 10}
        last = Rung("10 steps of DPM-Solver++", "openvino-int8", REWRITES, work=fewer)
    else:  # an export each of a large model, for two per cent each: together
        exact = [Rung("all exact rewrites", "onnx-fp32", REWRITES)]
    return [
        Rung("diffusers", BASELINE),
        Rung(first, "onnx-fp32"),
        *exact,
        Rung("OpenVINO", "openvino-fp32", REWRITES),
        Rung("bfloat16", "openvino-bf16", REWRITES),
        Rung("int8", "openvino-int8", REWRITES),
        last,
    ]


def bundles_of(source: Model, rungs: Sequence[Rung], *, keep: bool) -> dict[tuple[str, ...], Path]:
    """A bundle for every set of rewrites, with the engines that its rungs ask for."""
    found = {}
    for rewrites in dict.fromkeys(rung.rewrites for rung in rungs if rung.engine not in PEERS):
        engines = dict.fromkeys(r.engine for r in rungs if r.rewrites == rewrites and r.engine not in PEERS)
        found[rewrites] = source.bundle(list(engines), rewrites, keep=keep)
    return found


class Drawing:
    """The judge's prompts drawn by a rung, and what the judge makes of them."""

    def __init__(self, judge: Judge, prompts: int, options: argparse.Namespace) -> None:
        self._judge, self._count, self._options = judge, prompts, options

    def scores(self, one: Entrant, work: Work) -> dict[str, float]:
        pictures = []
        for i, prompt in enumerate(self._judge.prompts[: self._count]):
            asked_for = work_for(
                prompt, "", family=self._options.family, seed=i, batch=1, size=work.size, sampler=work.sampler,
                steps=work.steps, guidance=work.guidance,
            )  # fmt: skip
            pictures.append(one.draw(asked_for).output.images[0])
        seen = self._judge.read(np.stack(pictures))
        return {"attribute_accuracy": self._judge.accuracy(seen.guesses, self._judge.claims[: self._count])["mean"]}


def check_of(rung: Rung, quality: Mapping[str, Mapping[str, float]], first: str) -> Check:
    """How the rung's output is held to the first one's."""
    if rung.work:
        lost = quality[first]["attribute_accuracy"] - quality[rung.label]["attribute_accuracy"]
        return lambda expected, got: Agreement(lost <= LOST, "attribute accuracy lost", lost, LOST)
    if rung.tiny:
        latents = cosine_at_least(COSINE)
        return lambda expected, got: latents(expected.latents, got.latents)
    return same_picture(precision_of(rung.label))


def climb(rungs: Sequence[Rung], source: Model, options: argparse.Namespace, judge: Judge | None) -> list[Report]:
    """Time the rungs together, or two by two."""
    made = bundles_of(source, rungs, keep=options.keep_bundles)
    any_bundle = next(iter(made.values()))
    options.family = Bundle.open(any_bundle, verify=False).family
    shared = Setup(
        model=source.folder, threads=options.threads, cache=LOCAL / "peers", size=options.size,
        guided=options.guidance > 1,
    )  # fmt: skip
    setups = {rung.label: replace(shared, bundle=made.get(rung.rewrites)) for rung in rungs}
    limits = Limits(options, source, any_bundle)
    groups = [list(rungs)] if source.small else [list(pair) for pair in itertools.pairwise(rungs)]
    reports = []
    for group in groups:
        with Field([rung.row() for rung in group], shared, setups=setups) as opened:
            if not opened.entrants or opened.entrants[0].name != group[0].label:
                raise SystemExit(f"the ladder needs {group[0].label}: {opened.failed.get(group[0].label)}")
            report = timed(group, opened, source, options, limits, judge)
        reports.append(report)
        print(report.table(), flush=True)
    return reports


def timed(
    group: Sequence[Rung], opened: Field, source: Model, options: argparse.Namespace, limits: Limits,
    judge: Judge | None,
) -> Report:  # fmt: skip
    here = {rung.label: rung for rung in group}
    works = {name: replace(asked(options, 1), **rung.work) for name, rung in here.items()}
    first = group[0].label
    quality: dict[str, dict[str, float]] = {}
    if judge is not None:
        # Rungs in float32 draw the first one's pictures; that is what their check says.
        drawing = Drawing(judge, options.prompts, options)
        for one in opened.entrants:
            if one.name == first or precision_of(one.name) != "fp32":
                with one.turn():
                    quality[one.name] = drawing.scores(one, works[one.name])
    cases = [one.case(works[one.name], rewrites=list(here[one.name].rewrites)) for one in opened.entrants]
    report = compare(
        cases, benchmark="ladder", rounds=options.rounds, warmup=options.warmup, failed=opened.failed,
        check={name: check_of(rung, quality, first) for name, rung in here.items()},
        params=params_of(options, source, 1), model_hash=source.hash(),
    )  # fmt: skip
    drawn: dict[str, Drawn] = {}
    for one in opened.entrants:
        if report[one.name].error is None:
            with one.turn():
                drawn[one.name] = one.draw(works[one.name]).output
    limits.again()
    for row in report.measurements:
        if row.error is None:
            name = row.case.name
            # Fewer steps are less work: the floor stays that of what was asked for at first.
            row.floor = limits.of(name, drawn[first].evaluations, row.median, tiny=here[name].tiny)
            row.quality = ({} if name == first else agreement(drawn[first], drawn[name])) | quality.get(name, {})
            row.extra |= {"evaluations": drawn[name].evaluations, "ceilings": limits.ceilings.record()}
    return report


def records_of(rungs: Sequence[Rung], reports: Sequence[Report]) -> list[dict[str, Any]]:
    """One line per rung: its place, its switch, and its ratio to the rung below beside that to the first."""
    lines = []
    below: np.ndarray | None = None
    total = (1.0, 1.0, 1.0)
    for i, rung in enumerate(rungs):
        report = reports[0] if len(reports) == 1 else reports[max(i - 1, 0)]
        row = report[rung.label]
        line = next(one for one in report.records() if one["case"] == rung.label)
        line["case"], line["baseline"] = rung.switch, rungs[0].switch
        line["params"] |= {"rung": i, "switch": rung.switch, **rung.work}
        if len(reports) > 1:
            line["run"] = f"{reports[0].run}-chain"
            below = None if i == 0 else report[rungs[i - 1].label].seconds
        if row.error is None and below is not None and row.speedup is not None:
            gained = ratio_of(below, row.seconds)
            line["extra"]["against_previous"] = dict(zip(("median", "low", "high"), gained, strict=True))
            if len(reports) > 1:
                total = tuple(a * b for a, b in zip(total, gained, strict=True))  # type: ignore[assignment]
                line["speedup"] = {
                    **dict(zip(("median", "low", "high"), total, strict=True)), "confidence": CONFIDENCE,
                }  # fmt: skip
                line["extra"]["speedup_is"] = "the product of the rungs' ratios"
        below = row.seconds if row.error is None else below
        lines.append(line)
    return lines


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="that the judge reads, where the model has one")
    parser.add_argument("--out", type=Path, default=LOCAL / "ladder.jsonl", help="JSON lines are added to this file")
    options = parser.parse_args()
    source = model(options.model)
    settle(options, source)
    judges = builtin_judge("avatar-tiny") if source.name == "built-in" else None
    rungs = rungs_of(source)
    reports = climb(rungs, source, options, Judge.open(judges) if judges else None)
    lines = records_of(rungs, reports)
    append(options.out, lines)
    for line in lines:
        ratio, step = line["speedup"], line["extra"].get("against_previous")
        told = line["error"] or (
            "1.00x" if line["params"]["rung"] == 0 else "differs" if ratio is None or step is None
            else f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}], this rung {step['median']:.2f}x"
        )  # fmt: skip
        print(f"{line['params']['rung']}  {line['case']:<44}{told}")
    print(f"added to {options.out}")


if __name__ == "__main__":
    main()
