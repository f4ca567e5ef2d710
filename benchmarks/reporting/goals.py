"""What hotloop set out to reach, judged by the lines: met, not met, or not shown, and by what margin.

Only lines of one run are compared, round by round, only with outputs that agree, and against every peer there: the
figure is the one against the fastest. The verdict is the median's; whether the interval leaves it open is said beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .groups import WORK, by, said, shared_ratio, varying
from .results import Line

__all__ = ["GOALS", "Goal", "Judgement", "judge"]


@dataclass(frozen=True)
class Goal:
    """ours, peer: which lines stand for the two sides; peer also sees the precision that is being judged."""

    text: str
    at_least: float
    ours: Callable[[Line], bool]
    peer: Callable[[Line, str], bool]


def _same_precision(line: Line, precision: str) -> bool:
    return line.precision == precision


def _rewritten(line: Line) -> bool:
    return bool(line.params.get("rewrites"))


GOALS = (
    Goal("at least as fast as the fastest peer, output equal", 1.0, lambda line: True, _same_precision),
    Goal("1.05 times the fastest peer with the exact rewrites", 1.05, _rewritten, _same_precision),
    Goal(
        "1.8 times the fastest peer with int8 and the rewrites", 1.8,
        lambda line: line.precision == "int8" and _rewritten(line), lambda line, _: line.lossless,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """One goal for one piece of work. ratio: the peer's time over hotloop's; None when no run shows it."""

    goal: Goal
    machine: str
    model: str
    scenario: str
    said: str
    precision: str
    ours: str = "-"
    peer: str = "-"
    seconds: tuple[float, float] | None = None  # hotloop's median latency and the peer's, in the run of the ratio
    ratio: dict[str, float] | None = None
    step: dict[str, float] | None = None  # the same per evaluation, where both sides know it
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "not shown"
        return "met" if self.ratio["median"] >= self.goal.at_least else "not met"

    @property
    def open(self) -> bool:
        """Whether the interval holds the goal."""
        return self.ratio is not None and self.ratio["low"] < self.goal.at_least <= self.ratio["high"]


def judge(lines: Sequence[Line]) -> list[Judgement]:
    """Every goal for every machine, model, scenario, work and precision in which hotloop was measured beside peers.

    Batches need not show the goals of single pictures; requests that arrive by themselves have no rounds to compare.
    """
    made = []
    for (where, model, scenario), of_model in by(lines, "machine", "model", "scenario").items():
        if scenario == "Server":
            continue
        differ = varying(of_model, WORK)
        for group in by(of_model, "asked").values():
            measured = [line for line in group if line["error"] is None]
            if all(line.ours for line in measured):
                continue
            for goal in GOALS:
                place = (where, model, scenario, said(group, differ))
                asked = [line for line in measured if line.ours and goal.ours(line)]
                if not asked and scenario == "SingleStream":
                    made.append(Judgement(goal, *place, precision="-", why="hotloop was not measured so"))
                for precision in dict.fromkeys(line.precision for line in asked):
                    ours = [line for line in asked if line.precision == precision]
                    peers = [line for line in measured if not line.ours and goal.peer(line, precision)]
                    if peers:
                        made.append(_judged(goal, ours, peers, place))
    return made


def _judged(goal: Goal, ours: list[Line], peers: list[Line], place: tuple[str, str, str, str]) -> Judgement:
    """hotloop's best against each peer of its run; of these the least."""
    precision = ours[0].precision
    equal = [line for line in ours if line.comparable]
    equal_peers = [line for line in peers if line.comparable and not _all_differ(line, peers, ours)]
    if not equal:
        return Judgement(goal, *place, precision, ours=ours[0]["case"], why="its output differs")
    if not equal_peers:
        return Judgement(goal, *place, precision, ours=equal[0]["case"], why="every peer's output differs")
    shown = []
    for peer in equal_peers:
        beside = [line for line in equal if line["run"] == peer["run"]]
        if beside:
            best = min(beside, key=Line.latency)
            ratio = shared_ratio(peer, best)
            if ratio is not None:
                shown.append((ratio["median"], peer, best, ratio))
    fastest = min(equal_peers, key=Line.latency)["case"]
    if all(peer["case"] != fastest for _, peer, _, _ in shown):
        return Judgement(goal, *place, precision, peer=fastest, why="no run timed both in turns")
    _, peer, best, ratio = min(shown, key=lambda one: one[0])
    step = shared_ratio(peer, best, "stage.step")  # nothing where a side does not tell its steps
    seconds = (best.latency(), peer.latency())
    return Judgement(goal, *place, precision, best["case"], peer["case"], seconds, ratio, step)


def _all_differ(peer: Line, peers: Sequence[Line], ours: Sequence[Line]) -> bool:
    """Whether the peer is the baseline where hotloop stood beside it, and no output there agreed with it."""
    runs = {line["run"] for line in peers if line["case"] == peer["case"] == line["baseline"]}
    beside = [line for line in ours if line["run"] in runs]
    return bool(beside) and all(line.differs for line in beside)
