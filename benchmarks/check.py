"""Has anything become slower, or wrong? New results against the last committed ones, by ratios, never by seconds.

    python benchmarks/check.py benchmarks/results/local
    python benchmarks/check.py new.jsonl --against benchmarks/results/2026-11-25-txt2img.jsonl --margin 0.03

A case is one in both when benchmark, scenario, case, baseline and parameters (but for versions) are the same; of
several lines of one case the last counts. A new file that lies among the committed ones is compared with the edition
before it. A case fails when

* its speed-up fell by more than the margin and the noise together. The noise is that of the change: both runs' 95 %
  bootstrap intervals are taken on a logarithmic scale, and as the runs are independent their halves add in quadrature:

      new * exp(hypot(ln(new.high / new), ln(old / old.low))) < old * (1 - margin)

  (with 15 rounds and 2 % of noise in each, 97 of 100 losses of a tenth are found and no loss of 2 % is taken for one);
* its output agreed and now differs, or it was measured and now is not;
* it is gone, though the new results hold other cases of its benchmark, scenario, baseline and model.

Ratios hold on one kind of machine: of committed results from several, those of the new ones' machine count, and another
processor, number of cores or GPU is refused unless --anyway is said.
Exits with 0 when nothing failed, with 1 when something did, with 2 when there is nothing to go by.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reporting.results import RESULTS, Line, ResultsError, find, read

MARGIN = 0.05
BAD = ("slower", "wrong", "unmeasured", "gone")
ROW = "{:<11}{:<46}  {}"

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Verdict:
    """What became of one case: a word, and why in a few."""

    word: str
    case: str
    why: str

    @property
    def failed(self) -> bool:
        return self.word in BAD


def verdicts(old: Sequence[Line], new: Sequence[Line], margin: float = MARGIN) -> list[Verdict]:
    """One for every case of the old lines that the new ones should hold, then one for every case that is new."""
    was, now = ({_key(line): line for line in lines} for lines in (old, new))
    families = {_family(line) for line in new}
    made = [
        _compared(line, now.get(key), margin) for key, line in was.items() if key in now or _family(line) in families
    ]
    return made + [_verdict("new", line, _state(line)) for key, line in now.items() if key not in was]


def _compared(old: Line, new: Line | None, margin: float) -> Verdict:
    if new is None:
        return _verdict("gone", old, f"was {_state(old)}")
    change = f"{_state(old)} -> {_state(new)}"
    if new["error"] is not None:
        return _verdict("unmeasured" if old["error"] is None else "as before", old, change)
    if new.differs:
        return _verdict("wrong" if old.comparable else "as before", old, change)
    if not old.comparable:
        return _verdict("mended", old, change)
    if new["speedup"] is None or old["speedup"] is None:
        return _verdict("as before", old, change)
    gain = new["speedup"]["median"] / old["speedup"]["median"]
    change = f"{change} ({gain - 1:+.1%})"
    if gain * _noise(new, old) < 1 - margin:
        return _verdict("slower", old, change)
    return _verdict("faster" if gain / _noise(old, new) > 1 + margin else "as before", old, change)


def _noise(upper: Line, lower: Line) -> float:
    """How far chance may have moved one speed-up down and the other up, as a factor."""
    above = math.log(upper["speedup"]["high"] / upper["speedup"]["median"])
    below = math.log(lower["speedup"]["median"] / lower["speedup"]["low"])
    return math.exp(math.hypot(above, below))


def _key(line: Line) -> Key:
    params = json.dumps({k: v for k, v in line["params"].items() if k != "versions"}, sort_keys=True)
    return (line["benchmark"], line["scenario"], line["case"], line["baseline"] or "", params)


def _family(line: Line) -> tuple[str, str, str, str]:
    return (line["benchmark"], line["scenario"], line["baseline"] or "", line.model)


def _state(line: Line) -> str:
    if line["error"] is not None:
        return f"not measured ({line['error']})"
    if line.differs:
        return "output differs"
    return "measured" if line["speedup"] is None else "{median:.3f} [{low:.3f}, {high:.3f}]".format(**line["speedup"])


def _verdict(word: str, line: Line, why: str) -> Verdict:
    names = (
        line["benchmark"],
        "" if line["scenario"] == "SingleStream" else line["scenario"],
        line.model,
        line["case"],
    )
    return Verdict(word, " ".join(filter(None, names)), why)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("new", nargs="+", type=Path, help="results files, or folders: their newest files")
    parser.add_argument(
        "--against", nargs="+", type=Path, default=[RESULTS], help="the same; the committed ones by default"
    )
    parser.add_argument("--margin", type=float, default=MARGIN, help="share of the speed-up that may be lost")
    parser.add_argument("--anyway", action="store_true", help="compare though the machines differ")
    options = parser.parse_args(arguments)
    if not 0 <= options.margin < 1:
        parser.error(f"--margin must be from 0 to below 1, got {options.margin:g}")
    try:
        files = find(options.new)
        new, old = read(files), read(find(options.against, without=files))
    except ResultsError as error:
        return _refused(str(error))
    shared = {_key(line) for line in old} & {_key(line) for line in new}
    if not shared:
        return _refused("no case is in both: benchmark, scenario, case, baseline and parameters must be the same")
    here, there = ({line.machine for line in lines if _key(line) in shared} for lines in (new, old))
    if here <= there:  # of results from several machines, those of this one
        old = [line for line in old if line.machine in here]
    elif not options.anyway:
        told = f"{'; '.join(sorted(there))} before, {'; '.join(sorted(here))} now"
        return _refused(f"ratios hold on one machine only: {told} (--anyway compares)")

    found = verdicts(old, new, options.margin)
    for one in found:
        print(ROW.format("FAILED" if one.failed else "ok", one.case, f"{one.word}: {one.why}"))
    failed = sum(one.failed for one in found)
    print(f"{failed} of {len(found)} cases failed at a margin of {options.margin:.0%}")
    return 1 if failed else 0


def _refused(why: str) -> int:
    print(f"[check] {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
