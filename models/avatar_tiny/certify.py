"""Attribute accuracy of every engine of a bundle of this model, before (fp32) and after, into its certificates.

    python models/avatar_tiny/certify.py BUNDLE --prompts 256

All engines draw the same held-out prompts from the same seeds. An engine that loses more than two points keeps the
certificate it has, and the exit code says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import hotloop
from hotloop.evaluation.certificates import update_certificates
from hotloop.evaluation.judge import Judge, builtin_judge
from hotloop.selection import candidates

BOUND = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=int, default=256)
    options = parser.parse_args()
    bundle = hotloop.Bundle.open(options.bundle)
    folder = builtin_judge(bundle.family.name)
    if folder is None:
        sys.exit(f"there is no judge for {bundle.family.name}")
    judge = Judge.open(folder)
    texts, claims = judge.prompts[: options.prompts], judge.claims[: options.prompts]
    # The exact engines first: what the others are compared with.
    able = sorted((entry for entry, _ in candidates(bundle)[0]), key=lambda entry: entry.precision != "fp32")
    means: dict[str, float] = {}
    certificates = {}
    for entry in able:
        pipe = hotloop.load(options.bundle, engine=entry.name)
        drawn = [np.asarray(pipe.txt2img(text, seed=i).images[0]) for i, text in enumerate(texts)]
        found = judge.accuracy(judge.read(np.stack(drawn)).guesses, claims)
        scores = {name: round(share, 4) for name, share in found.items()}
        means[entry.name] = scores["mean"]
        before = means[able[0].name]
        certificates[entry.name] = {
            "attributes": {"prompts": len(texts), "before": before, "after": scores["mean"], "of": scores}
        }
        print(f"{entry.name:<16} mean {scores['mean']:.4f}  {100 * (scores['mean'] - before):+.2f} points", flush=True)
    lost = {name: round(before - mean, 4) for name, mean in means.items() if before - mean > BOUND}
    update_certificates(bundle, {name: made for name, made in certificates.items() if name not in lost})
    if lost:
        sys.exit(f"attribute accuracy must not drop by more than {BOUND:g}: {lost}")


if __name__ == "__main__":
    main()
