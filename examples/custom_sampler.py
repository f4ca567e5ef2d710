"""Register a sampler of your own: one decorated function, and it works everywhere by name.

A sampler is written on unit vectors: X is the state, D what the network's output was turned into (here the
derivative), Z unit noise. This one is Euler's method that adds a little noise after each step.

    python examples/custom_sampler.py
"""

from __future__ import annotations

import hotloop
from hotloop.samplers import D, Grid, Rows, X, Z, sampler


@sampler("noisy_euler", spacing="linspace", sigmas="default", steps_offset=0, churn=0.05)
def noisy_euler(grid: Grid) -> Rows:
    """Euler's method with `churn` times the next noise level added."""
    ve = grid.ve()
    rows = Rows(init_scale=ve.init_scale)
    for i in grid.indices:
        dt = ve.sigmas[i + 1] - ve.sigmas[i]
        rows.add(i, ve.timesteps[i], X + dt * D + grid["churn"] * ve.sigmas[i + 1] * Z, draws=True, **ve.at(i))
    return rows


if __name__ == "__main__":
    result = hotloop.load().txt2img("a smiling girl with purple hair", sampler="noisy_euler", seed=7)
    result.images[0].save("noisy-euler.png")
    print("noisy-euler.png")
