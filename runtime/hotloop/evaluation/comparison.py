"""Latency against quality over samplers x steps x engines, measured on the very pictures that are timed.

    comparison = Comparison(bundle, samplers=["ddim", "plms"], steps=[10, 20], prompts=64)
    for _ in comparison.run():  # a picture, or a batch of them, at a time; what is done may be looked at in between
        ...
    print(comparison.table())

Every round draws the next prompt once at every point, beginning with another point each time, so that drift of the
machine meets all of them. Nothing is kept from the last picture: every call encodes its prompt and schedule itself.

Quality is measured against
  the float32 engine with the same seed, sampler and steps: what the precision lost;
  the converged picture: the same seed's end of the ODE that all deterministic samplers approximate, in float32;
  the words and the real pictures of a judge, where the model has one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import image as images
from .. import samplers
from ..bundle import Bundle
from ..checks import check_integer
from ..errors import InputError
from ..noise import seeds_for
from ..pipeline import Pipeline
from ..request import MAX_IMAGES
from ..samplers import StepTable
from ..samplers.schedule import Schedule
from ..selection import Choice, candidates, choose
from . import metrics as quality
from .certificates import Images
from .judge import Judge, builtin_judge
from .records import block, environment, finite, record, run_id

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline import Result

__all__ = ["CONVERGED", "Comparison", "Point", "Row", "front"]

# Sampler, steps and options of the converged picture: 57 to 59 dB from the same with 250 steps, on the built-in model.
# It begins at the noisiest timestep; `leading`, the spacing in SD 1.x's configuration, may begin far below it.
CONVERGED: tuple[str, int, Mapping[str, Any]] = ("heun", 50, {"spacing": "linspace"})
_CONVERGED_MOST = 64  # pictures: 99 evaluations each, and a PSNR needs no more
MAX_PROMPTS, MAX_ROUNDS = 100_000, 100_000
_FID_FROM = 128  # pictures: below that the bias outgrows what samplers differ by
_WARMUP = 1
_STAGES = {"text": "text", "loop": "loop", "vae": "vae_decoder"}  # of a result's timings -> of a record
_COLUMNS = {
    "psnr_db": ("PSNR dB", ".1f"), "ssim": ("SSIM", ".4f"), "converged_psnr_db": ("conv. PSNR", ".1f"),
    "converged_ssim": ("conv. SSIM", ".4f"), "attribute_accuracy": ("accuracy", ".3f"), "fid_p": ("FID-p", ".0f"),
    "kid_p": ("KID-p", ".3g"),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """What is compared: a sampler with a number of steps on an engine."""

    sampler: str
    steps: int
    engine: str

    def __str__(self) -> str:
        return f"{self.sampler} {self.steps} {self.engine}"


@dataclass(frozen=True)
class Row:
    """What a point showed.

    seconds   per picture, one value per round
    stages    the same of a call's parts
    pictures  how many the quality is of
    quality   by name, as in `records`: those that were measured; a PSNR may be infinite
    front     no other point is as fast and as good, and better in one of the two
    """

    point: Point
    evaluations: int
    seconds: np.ndarray
    stages: Mapping[str, np.ndarray]
    pictures: int
    quality: Mapping[str, float]
    front: bool

    @property
    def latency(self) -> float:
        """Median seconds per picture."""
        return float(np.median(self.seconds))


@dataclass
class _Difference:
    """Pictures against the ones they should be."""

    errors: list[float] = field(default_factory=list)
    likeness: list[float] = field(default_factory=list)

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        for a, b in zip(got, want, strict=True):
            self.errors.append(quality.mse(a, b))
            self.likeness.append(quality.ssim(a, b))

    def figures(self, prefix: str) -> dict[str, float]:
        """PSNR of all pixels together (the mean of decibels would be infinite with one equal picture), mean SSIM."""
        if not self.errors:
            return {}
        mean = float(np.mean(self.errors))
        return {f"{prefix}psnr_db": quality.decibels(mean), f"{prefix}ssim": float(np.mean(self.likeness))}


@dataclass
class _Tally:
    """What whole rounds have shown of one point."""

    seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    precision: _Difference = field(default_factory=_Difference)
    converged: _Difference = field(default_factory=_Difference)
    guesses: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    first: Image | None = None


class Comparison:
    """The engines of a bundle, opened, and what has been measured so far.

    engines   names or kinds, as `hotloop.load` takes them
    prompts   pictures that quality is measured on: the judge's prompts, or the bundle's own over and over
    guidance, size, threads  as `hotloop.load` and `txt2img` have them
    batch     pictures per call; times are per picture
    rounds    at least so many, where latency needs more of them than the prompts take
    seed      picture i has seed + i, whatever the batch

    Raises InputError for what cannot be compared, before an engine is opened; BundleError for one that does not open.
    """

    def __init__(
        self, bundle: Bundle, *, samplers: Sequence[str], steps: Sequence[int], engines: Sequence[str] = ("auto",),
        prompts: int = 16, guidance: float | None = None, size: tuple[int, int] | None = None, batch: int = 1,
        rounds: int = 1, seed: int = 0, threads: int | None = None,
    ) -> None:  # fmt: skip
        check_integer("compare", "batch", batch, 1, MAX_IMAGES)
        check_integer("compare", "rounds", rounds, 1, MAX_ROUNDS)
        check_integer("compare", "prompts", prompts, 1, MAX_PROMPTS)
        if prompts % batch:
            raise InputError("compare", f"prompts must be a multiple of the batch, {batch}", prompts)
        seeds_for(seed, max(prompts, rounds * batch))
        self.bundle, self.batch, self.seed, self.threads = bundle, batch, seed, threads
        self.guidance = guidance if guidance is not None else bundle.defaults.get("guidance_scale", 7.5)
        self.size = size or bundle.family.default_size
        self.tables = _tables(bundle, samplers, steps)
        self.judge = _judge(bundle, self.size)
        self.prompts = _prompts(bundle, self.judge, prompts)
        self._calls = prompts // batch
        self.rounds = max(self._calls, rounds)
        chosen = {choice.entry.name: choice for name in engines for choice in choose(bundle, name)[:1]}
        self._open(chosen)
        self.points = [Point(*pair, engine) for engine in chosen for pair in self.tables]
        self._tallies = {point: _Tally() for point in self.points}
        # What the float32 engine draws beside the points, untimed.
        self._beside = [pair for pair in self.tables if self.exact and Point(*pair, self.exact) not in self._tallies]
        solves = self.exact is not None and any(map(_deterministic, self.tables.values()))
        self._ends = min(self._calls, math.ceil(_CONVERGED_MOST / batch)) if solves else 0  # calls of CONVERGED
        self.done = 0  # whole rounds so far

    def _open(self, chosen: Mapping[str, Choice]) -> None:
        """The engines, and the float32 one that they are compared with: one of them, or else one more."""
        exact = next((choice for choice in chosen.values() if choice.entry.precision == "fp32"), None)
        if exact is None:
            able = candidates(self.bundle)[0]
            found = next((pair for pair in able if pair[0].precision == "fp32"), None)
            exact = Choice(*found, "what the others are compared with") if found else None
        opened = dict(chosen) | ({exact.entry.name: exact} if exact else {})
        self.exact = exact.entry.name if exact else None
        self._pipes = {
            name: Pipeline(self.bundle, choice=choice, threads=self.threads) for name, choice in opened.items()
        }

    def __len__(self) -> int:
        """How many calls a whole run makes."""
        return len(self.points) * (_WARMUP + self.rounds) + len(self._beside) * self._calls + self._ends

    def run(self) -> Iterator[None]:
        """Do it, yielding after every call. A round counts once it is whole; later ones add to it."""
        for point in self.points:
            for _ in range(_WARMUP):
                self._timed(point, 0)
                yield
        for at in range(self.done, self.rounds):
            drawn: dict[Point, tuple[Result, float]] = {}
            for i in range(len(self.points)):
                point = self.points[(at + i) % len(self.points)]
                drawn[point] = self._timed(point, at)
                yield
            exact = {
                (point.sampler, point.steps): _pixels(result)
                for point, (result, _) in drawn.items() if point.engine == self.exact
            }  # fmt: skip
            converged = None
            if self.exact is not None:
                for sampler, steps in self._beside if at < self._calls else ():
                    exact[sampler, steps] = _pixels(self._draw(self.exact, at, sampler, steps))
                    yield
                if at < self._ends:
                    sampler, steps, options = CONVERGED
                    converged = _pixels(self._draw(self.exact, at, sampler, steps, options))
                    yield
            self._tally(at, drawn, exact, converged)

    def _timed(self, point: Point, at: int) -> tuple[Result, float]:
        """A call's result and its seconds per picture."""
        self._pipes[point.engine].networks.forget()
        began = time.perf_counter()
        result = self._draw(point.engine, at, point.sampler, point.steps)
        return result, (time.perf_counter() - began) / self.batch

    def _draw(self, engine: str, at: int, sampler: str, steps: int, options: Mapping[str, Any] | None = None) -> Result:
        first = at * self.batch
        texts = [self.prompts[(first + i) % len(self.prompts)] for i in range(self.batch)]
        return self._pipes[engine].txt2img(
            texts, seed=self.seed + first, sampler=sampler, num_inference_steps=steps, sampler_options=options,
            guidance_scale=self.guidance, width=self.size[0], height=self.size[1],
        )  # fmt: skip

    def _tally(
        self, at: int, drawn: Mapping[Point, tuple[Result, float]], exact: Mapping[tuple[str, int], np.ndarray],
        converged: np.ndarray | None,
    ) -> None:  # fmt: skip
        for point, (result, seconds) in drawn.items():
            tally = self._tallies[point]
            tally.seconds.append(seconds)
            table = self.tables[point.sampler, point.steps]
            parts = {stage: result.timings[name] for name, stage in _STAGES.items()}
            for stage, value in (parts | {"step": parts["loop"] / len(table)}).items():
                tally.stages.setdefault(stage, []).append(value / self.batch)
            if at >= self._calls:
                continue
            tally.first = tally.first or result.images[0]
            pixels = _pixels(result)
            if exact:
                tally.precision.add(pixels, exact[point.sampler, point.steps])
            if converged is not None and _deterministic(table):
                tally.converged.add(pixels, converged)
            if self.judge is not None:
                seen = self.judge.read(pixels)
                tally.guesses.append(seen.guesses)
                tally.features.append(seen.features)
        self.done = at + 1

    # What was found.

    @property
    def by(self) -> str | None:
        """The figure that the front is of: accuracy where there is a judge, else nearness to the converged picture."""
        if self.judge is not None and self.judge.scored:
            return "attribute_accuracy"
        return "converged_psnr_db" if self._ends else None

    @property
    def pictures(self) -> int:
        """How many pictures of each point quality is of, so far."""
        return min(self.done, self._calls) * self.batch

    def rows(self) -> list[Row]:
        """The points in order. Raises InputError before the first round is whole."""
        if not self.done:
            raise InputError("compare", "there is nothing to show before the first round is whole")
        found = [(point, tally, self._quality(tally)) for point, tally in self._tallies.items()]
        on = front([(float(np.median(tally.seconds)), figures.get(self.by or "")) for _, tally, figures in found])
        return [
            Row(
                point, len(self.tables[point.sampler, point.steps]), np.array(tally.seconds),
                {name: np.array(values) for name, values in tally.stages.items()}, self.pictures, figures, best,
            )
            for (point, tally, figures), best in zip(found, on, strict=True)
        ]  # fmt: skip

    def _quality(self, tally: _Tally) -> dict[str, float]:
        figures = tally.precision.figures("") | tally.converged.figures("converged_")
        if self.judge is None or not tally.guesses:
            return figures
        features = np.concatenate(tally.features)
        shares = self.judge.accuracy(np.concatenate(tally.guesses), self.judge.claims[: len(features)])
        if "mean" in shares:
            figures["attribute_accuracy"] = shares["mean"]
        if len(features) >= _FID_FROM:
            figures |= {"fid_p": self.judge.fid(features), "kid_p": self.judge.kid(features)}
        return figures

    def records(self, *, model: str) -> list[dict[str, Any]]:
        """A line per point, as benchmarks/result.schema.json says. model: the name that the lines give it.

        Of `quality`, psnr_db and ssim are against the float32 engine, those named converged_ against CONVERGED.
        """
        about, run = environment(model_hash=self.bundle.id), run_id("compare")
        lines = []
        for row in self.rows():
            entry = self._pipes[row.point.engine].entry
            params = {
                "model": model, "sampler": row.point.sampler, "steps": row.point.steps, "guidance": self.guidance,
                "batch": self.batch, "size": list(self.size), "threads": self.threads or about["cores"],
                "precision": entry.precision, "engine": entry.name, "device": self._pipes[row.point.engine].device,
                "rewrites": list(entry.rewrites), "seed": self.seed, "prompts": row.pictures,
            }  # fmt: skip
            metrics = {"latency": block("s", row.seconds)}
            metrics |= {f"stage.{name}": block("s", values) for name, values in row.stages.items()}
            if self.batch > 1:
                metrics["throughput"] = block("1/s", 1 / row.seconds, keep=False)
            lines.append(record(
                run=run, benchmark="compare", scenario="SingleStream" if self.batch == 1 else "Offline",
                case=str(row.point), environment=about, params=params, metrics=metrics, rounds=len(row.seconds),
                warmup=_WARMUP, work=self.batch,
                quality={name: finite(value) for name, value in row.quality.items()} or None,
                extra={
                    "evaluations": row.evaluations, "front": row.front, "front_by": self.by, "exact": self.exact,
                    "judge": self.judge.path.name if self.judge else None,
                },
            ))  # fmt: skip
        return lines

    def table(self) -> str:
        """Fixed-width text: a line per point, the points of the front marked, and what the columns mean."""
        rows = self.rows()
        shown = [name for name in _COLUMNS if any(name in row.quality for row in rows)]
        head = ["", "sampler", "steps", "evals", "engine", "ms", *(_COLUMNS[name][0] for name in shown)]
        lines = [head]
        for row in rows:
            cells = [_shown(row.quality.get(name), _COLUMNS[name][1]) for name in shown]
            point = [row.point.sampler, str(row.point.steps), str(row.evaluations), row.point.engine]
            lines.append(["*" if row.front else "", *point, f"{1e3 * row.latency:.1f}", *cells])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        left = {0, 1, 4}
        text = [
            "  ".join(
                cell.ljust(width) if i in left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *self._notes(shown)])

    def _notes(self, shown: Sequence[str]) -> Iterator[str]:
        width, height = self.size
        yield (
            f"ms: median per picture of {width} x {height}, {self.done} interleaved rounds of {self.batch}; guidance "
            f"{self.guidance:g}; quality of {self.pictures} pictures"
        )
        if "psnr_db" in shown:
            yield f"PSNR, SSIM: against {self.exact} with the same seed, sampler and steps"
        if "converged_psnr_db" in shown:
            sampler, steps, options = CONVERGED
            told = ", ".join(f"{name} {value}" for name, value in options.items())
            few = min(self.done, self._ends) * self.batch
            of = f" ({few} pictures)" if few < self.pictures else ""
            yield f"conv.: against {self.exact}, {sampler}, {steps} steps, {told}{of}; deterministic samplers only"
        if self.judge is not None:
            far = f"; FID and KID from {_FID_FROM} pictures on" if "fid_p" not in shown else ""
            yield f"accuracy, -p: as {self.judge.path.name} reads them{far}"
        elif folder := builtin_judge(self.bundle.family.name):
            yield f"no accuracy: {folder.name} reads pictures of another size"
        if self.by is not None:
            yield f"*: no point is as fast and as good by {_COLUMNS[self.by][0]}, and better in one of the two"

    def sheets(self) -> dict[str, Image]:
        """engine -> the first prompt's picture at every point: a row per sampler, a column per number of steps."""
        columns = len({steps for _, steps in self.tables})
        drawn: dict[str, list[Image]] = {}
        for point, tally in self._tallies.items():
            if tally.first is not None:
                drawn.setdefault(point.engine, []).append(tally.first)
        return {engine: images.contact_sheet(cells, columns) for engine, cells in drawn.items()}


def front(points: Sequence[tuple[float, float | None]]) -> list[bool]:
    """Which of (seconds, quality) no other is as fast and as good as, and better in one of the two: the Pareto front.

    Of equal points all are. A point without a quality is not on it, and takes nobody off it.
    """
    rated = [(seconds, value) for seconds, value in points if value is not None]
    return [
        value is not None
        and not any(s <= seconds and v >= value and (s, v) != (seconds, value) for s, v in rated)
        for seconds, value in points
    ]  # fmt: skip


def _tables(bundle: Bundle, names: Sequence[str], steps: Sequence[int]) -> dict[tuple[str, int], StepTable]:
    """The table of every sampler with every number of steps, in order, each once."""
    if not names or not steps:
        raise InputError("compare", "there must be at least one sampler and one number of steps", [*names, *steps])
    schedule = Schedule.from_config(bundle.scheduler_config, bundle.family.schedule)
    return {(name, count): samplers.build(name, schedule, count) for name in names for count in steps}


def _judge(bundle: Bundle, size: tuple[int, int]) -> Judge | None:
    """The judge of the bundle's family, if it can read pictures of this size."""
    folder = builtin_judge(bundle.family.name)
    judge = Judge.open(folder) if folder else None
    return judge if judge and judge.size == tuple(size) else None


def _prompts(bundle: Bundle, judge: Judge | None, count: int) -> tuple[str, ...]:
    if judge is not None:
        if count > len(judge.prompts):
            rule = f"prompts must be at most {len(judge.prompts)}, as many as {judge.path.name} has"
            raise InputError("compare", rule, count)
        return judge.prompts[:count]
    stored = bundle.manifest["parity"].get("images")
    own = Images.read(stored).prompts if stored else ()
    if not own:
        raise InputError("compare", "bundle must hold reference images, whose prompts are drawn", str(bundle.path))
    return tuple(own[i % len(own)] for i in range(count))


def _deterministic(table: StepTable) -> bool:
    """Whether a sampler draws no noise on its way: then it solves the ODE that CONVERGED solves."""
    return not table.noises


def _pixels(result: Result) -> np.ndarray:
    """uint8 [N, H, W, 3]."""
    return np.stack([np.asarray(one) for one in result.images])


def _shown(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return "inf" if math.isinf(value) else format(value, form)
