"""The samplers, each as in its paper: a function from a Grid to Rows, so that the loop knows none of them by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .face import sampler
from .grids import Grid, Solver
from .schedule import sigma_to_t
from .table import D, Rows, S, Vector, X, Z, combine, outputs

# Option defaults as the diffusers scheduler classes have them.
_WHOLE: dict[str, Any] = {"spacing": "leading", "steps_offset": 0}
_CONTINUOUS: dict[str, Any] = {"spacing": "linspace", "steps_offset": 0}


@sampler(
    "ddim", eta=0.0, **_WHOLE, set_alpha_to_one=True, rescale_betas_zero_snr=False, clip_sample=True, thresholding=False
)
def ddim(grid: Grid) -> Rows:
    """DDIM, Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16. eta = 0: deterministic; eta = 1: ancestral."""
    eta, timesteps, rows = grid["eta"], grid.timesteps(), Rows()
    for i in grid.indices:
        t, prev = timesteps[i], timesteps[i] - grid.stride
        x0, eps = outputs(grid.schedule.prediction_type, grid.level(t))
        a, a_prev = grid.alpha_cumprod(t), grid.alpha_cumprod(prev, final=grid.final_alpha)
        std = eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        x = math.sqrt(a_prev) * x0 + math.sqrt(max(1 - a_prev - std**2, 0)) * eps + std * Z
        rows.add(i, t, x, level=grid.level(t), draws=eta > 0)
    return rows


@sampler(
    "ddpm", **_WHOLE, variance_type="fixed_small", rescale_betas_zero_snr=False, clip_sample=True, thresholding=False
)
def ddpm(grid: Grid) -> Rows:
    """DDPM ancestral sampling, Ho et al. 2020 (arXiv 2006.11239), eq. 7, between neighbouring chosen timesteps."""
    timesteps, rows = [*grid.timesteps(), -1], Rows()
    for i in grid.indices:
        t = timesteps[i]
        x0, _ = outputs(grid.schedule.prediction_type, grid.level(t))
        a, a_prev = grid.alpha_cumprod(t), grid.alpha_cumprod(timesteps[i + 1], final=1.0)
        alpha, beta = a / a_prev, 1 - a / a_prev
        x = math.sqrt(a_prev) * beta / (1 - a) * x0 + math.sqrt(alpha) * (1 - a_prev) / (1 - a) * X
        small = max((1 - a_prev) / (1 - a) * beta, 1e-20)
        std = math.sqrt(beta if grid["variance_type"] == "fixed_large" else small)
        rows.add(i, t, x + std * Z if t > 0 else x, level=grid.level(t), draws=t > 0)
    return rows


class _PseudoNumerical:
    """What PLMS and PNDM share: the transfer part, and the timesteps left from the grid's start.

    Image to image warms up at that start. With history="diffusers" it runs on as stock pipelines do (`resumed`).
    v is averaged raw and turned into eps at the end, as diffusers does; x_0 becomes eps at once.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid, self.rows = grid, Rows()
        self.timesteps = grid.timesteps()[grid.start :]
        self.v = grid.schedule.prediction_type == "v_prediction"

    def transfer(self, x: Vector, output: Vector, t: int, prev: int) -> Vector:
        """x at t carried to prev along eps: PNDM eq. 9 (DDIM with eta = 0)."""
        alpha, sigma = self.grid.level(t)
        eps = alpha * output + sigma * x if self.v else output
        alpha_prev, sigma_prev = self.grid.level(prev, final=self.grid.final_alpha)
        return alpha_prev / alpha * x + (sigma_prev - alpha_prev / alpha * sigma) * eps

    def add(self, step: int, t: int, x: Vector, save: Mapping[int, Vector]) -> None:
        level = self.grid.level(t)
        d = D if self.v else outputs(self.grid.schedule.prediction_type, level)[1]
        self.rows.add(self.grid.start + step, t, x, level=level, d=d, save=save)

    def multistep(self, first: int, known: int) -> None:
        """Adams-Bashforth from step `first` on, order rising to 4; `known` of s_1..s_3 hold the latest outputs."""
        for i in range(first, len(self.timesteps)):
            t = self.timesteps[i]
            output = combine(_ADAMS_BASHFORTH[known], (D, S[1], S[2], S[3]))
            self.add(i, t, self.transfer(X, output, t, t - self.grid.stride), {1: D, 2: S[1], 3: S[2]})
            known = min(known + 1, 3)

    def resumed(self, told: list[int], warm_up: list[int]) -> Rows:
        """What diffusers' scheduler makes of its own list of timesteps, `warm_up` and the rest, from the start on.

        It counts its calls, not the steps: whatever it is told first, it takes for the first of the warm-up.
        """
        r, known = self.grid.stride, 0
        for count, t in enumerate(told):
            if count < len(warm_up):
                phase, at = count % 4, warm_up[count // 4 * 4]
                x, output = (S[4], S[5] + D / 6) if phase == 3 else (S[4] if phase else X, D)
                kept: dict[int, Vector] = {} if phase == 3 else {5: S[5] + D / 3}
                if phase == 0:
                    kept, known = {1: D, 2: S[1], 3: S[2], 4: X, 5: D / 6}, min(known + 1, 3)
                self.add(count // 4, t, self.transfer(x, output, at, t - (0 if count % 2 else r // 2)), kept)
            elif count == 1:
                self.add(0, t, self.transfer(S[4], (D + S[1]) / 2, t + r, t), {})
            else:
                output = combine(_ADAMS_BASHFORTH[known], (D, S[1], S[2], S[3]))
                kept = {1: D, 2: S[1], 3: S[2]} | ({4: X} if count == 0 else {})
                step = count - 9 if warm_up else max(count - 1, 0)
                self.add(step, t, self.transfer(X, output, t, t - r), kept)
                known = min(known + 1, 3)
        return self.rows


_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@sampler("pndm", **_WHOLE, set_alpha_to_one=False, history="own")
def pndm(grid: Grid) -> Rows:
    """F-PNDM, Liu et al. 2022 (arXiv 2202.09778), algorithm 2: three pseudo Runge-Kutta steps, then linear multistep.

    N steps take N + 9 evaluations; the warm-up needs at least four steps to run.
    """
    run = _PseudoNumerical(grid)
    resumed, half = grid["history"] == "diffusers", grid.stride // 2
    left = grid.steps if resumed else len(run.timesteps)
    if left < 4:
        raise grid.refuse("steps", "its warm-up needs at least 4 steps to run (plms does not)", left)
    if resumed:
        whole = grid.timesteps()
        warm_up = [t for i in range(3) for t in (whole[i], *[whole[i + 1] + half] * 2, whole[i + 1])]
        return run.resumed([*warm_up, *whole[3:]][grid.start :], warm_up)
    for i in range(3):
        t, following = run.timesteps[i], run.timesteps[i + 1]
        middle = following + half
        e = (D, D, D, S[5] + D / 6)  # S[4]: x before the step; S[5]: the weighted sum of outputs so far
        run.add(i, t, run.transfer(X, e[0], t, t - half), {1: D, 2: S[1], 3: S[2], 4: X, 5: D / 6})
        run.add(i, middle, run.transfer(S[4], e[1], t, middle), {5: S[5] + D / 3})
        run.add(i, middle, run.transfer(S[4], e[2], t, middle - half), {5: S[5] + D / 3})
        run.add(i, following, run.transfer(S[4], e[3], t, following), {})
    run.multistep(first=3, known=3)
    return run.rows


@sampler("plms", **_WHOLE, set_alpha_to_one=False, history="own")
def plms(grid: Grid) -> Rows:
    """PLMS, Liu et al. 2022 (arXiv 2202.09778), eq. 12 and 13, started by one improved Euler step (two evaluations)."""
    run = _PseudoNumerical(grid)
    if grid["history"] == "diffusers":
        whole = grid.timesteps()
        return run.resumed([*whole[:2], *whole[1:]][grid.start :], [])
    t, r = run.timesteps[0], grid.stride
    run.add(0, t, run.transfer(X, D, t, t - r), {1: D, 4: X})
    if len(run.timesteps) > 1:
        t = run.timesteps[1]
        run.add(0, t, run.transfer(S[4], (D + S[1]) / 2, t + r, t), {})
        run.multistep(first=1, known=1)
    return run.rows


@sampler("lms", order=4, **_CONTINUOUS, sigmas="default", history="own")
def lms(grid: Grid) -> Rows:
    """K-LMS: linear multistep in sigma (Crowson, k-diffusion), Adams-Bashforth for uneven steps.

    Image to image warms up at its start; with history="diffusers" it is of order 4 at once, as in stock pipelines,
    without the derivatives it needs.
    The coefficient of derivative k is the exact integral of its Lagrange polynomial.
    """
    ve = grid.ve()
    rows = Rows(init_scale=ve.init_scale)
    for i in grid.indices:
        known = i - grid.start + 1  # derivatives, this row's among them
        order = min(grid["order"], i + 1 if grid["history"] == "diffusers" else known)
        weights = _lagrange_integrals(ve.sigmas[i - order + 1 : i + 1][::-1], ve.sigmas[i], ve.sigmas[i + 1])
        history = (D, *S[1:])
        x = X + combine(weights[:known], history)
        save = {k: history[k - 1] for k in range(1, grid["order"])}
        rows.add(i, ve.timesteps[i], x, save=save, **ve.at(i))
    return rows


def _lagrange_integrals(nodes: Vector, start: float, stop: float) -> Vector:
    """For each node, the integral from start to stop of the polynomial that is 1 there and 0 at the others."""
    gauss = np.array([-1, 1]) / math.sqrt(3)  # two points integrate degree 3, so order 4, exactly
    tau = start + (stop - start) * (gauss + 1) / 2
    others = [np.delete(nodes, k) for k in range(len(nodes))]
    basis = [np.prod((tau[:, None] - rest) / (node - rest), axis=1) for node, rest in zip(nodes, others, strict=True)]
    return np.sum(basis, axis=1) * (stop - start) / 2


@sampler(
    "euler", **_CONTINUOUS, sigmas="default", final_sigmas_type="zero", rescale_betas_zero_snr=False,
    interpolation_type="linear", timestep_type="discrete",
)  # fmt: skip
def euler(grid: Grid) -> Rows:
    """Euler's method on the probability-flow ODE, Karras et al. 2022 (arXiv 2206.00364), algorithm 2 without churn."""
    ve = grid.ve()
    rows = Rows(init_scale=ve.init_scale)
    for i in grid.indices:
        dt = ve.sigmas[i + 1] - ve.sigmas[i]
        rows.add(i, ve.timesteps[i], X + dt * D, **ve.at(i))
    return rows


@sampler("euler_a", **_CONTINUOUS, rescale_betas_zero_snr=False)
def euler_a(grid: Grid) -> Rows:
    """Ancestral Euler (Crowson, k-diffusion): Euler down to sigma_down, then noise back up to the next sigma."""
    ve = grid.ve()
    rows = Rows(init_scale=ve.init_scale)
    for i in grid.indices:
        sigma, following = ve.sigmas[i], ve.sigmas[i + 1]
        up = math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
        down = math.sqrt(following**2 - up**2)
        rows.add(i, ve.timesteps[i], X + (down - sigma) * D + up * Z, draws=True, **ve.at(i))
    return rows


@sampler("heun", **_CONTINUOUS, sigmas="default", clip_sample=False)
def heun(grid: Grid) -> Rows:
    """Heun's second-order method, Karras et al. 2022 (arXiv 2206.00364), algorithm 1. The last step is Euler's."""
    ve = grid.ve()
    rows = Rows(init_scale=ve.init_scale)
    for i in grid.indices:
        dt = ve.sigmas[i + 1] - ve.sigmas[i]
        rows.add(i, ve.timesteps[i], X + dt * D, save={1: X, 2: D}, **ve.at(i))
        if i + 1 < grid.steps:
            rows.add(i, ve.timesteps[i + 1], S[1] + dt * (S[2] + D) / 2, **ve.at(i + 1))
    return rows


@sampler("kdpm2", **_CONTINUOUS, sigmas="default")
def kdpm2(grid: Grid) -> Rows:
    """Midpoint method at the geometric mean of two sigmas: DPM-Solver-2 in sigma (Karras et al. 2022; Crowson).

    The last step is Euler's.
    """
    ve = grid.ve(round_karras=True)
    rows = Rows(init_scale=ve.init_scale)
    for i in grid.indices:
        sigma, following = ve.sigmas[i], ve.sigmas[i + 1]
        middle = math.sqrt(sigma * following)
        rows.add(i, ve.timesteps[i], X + (middle - sigma) * D, save={1: X}, **ve.at(i))
        if i + 1 < grid.steps:
            t = float(sigma_to_t(np.array(middle), grid.train_sigmas))
            rows.add(i, t, S[1] + (following - sigma) * D, **{**ve.at(i + 1), **ve.on(middle)})
    return rows


_DPM_SOLVER: dict[str, Any] = {
    "solver_order": 2, "solver_type": "midpoint", **_CONTINUOUS, "sigmas": "default", "final_sigmas_type": "zero",
    "lower_order_final": True, "euler_at_final": False, "rescale_betas_zero_snr": False, "thresholding": False,
    "use_lu_lambdas": False, "use_flow_sigmas": False, "lambda_min_clipped": -math.inf,
}  # fmt: skip


@sampler("dpmpp_2m", **_DPM_SOLVER, algorithm_type="dpmsolver++")
def dpmpp_2m(grid: Grid) -> Rows:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), algorithm 2; solver_order 1 and 3 likewise.

    With algorithm_type dpmsolver it is DPM-Solver's multistep form, which predicts noise (arXiv 2206.00927).
    """
    return _dpm_solver(grid, sde=False)


@sampler("dpmpp_2m_sde", **_DPM_SOLVER, algorithm_type="sde-dpmsolver++")
def dpmpp_2m_sde(grid: Grid) -> Rows:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), section 5: the same with 2h for h, and fresh noise."""
    return _dpm_solver(grid, sde=True)


def _dpm_solver(grid: Grid, *, sde: bool) -> Rows:
    """Taylor expansion of x_0, or of the noise, in lambda over one step; D0, D1, D2 estimate it and its derivatives
    (times h^k). Whether noise is added is the sampler's to say, what is expanded the algorithm's."""
    noise = not grid["algorithm_type"].endswith(("++", "deis"))
    if noise and grid["final_sigmas_type"] == "zero":
        rule = f"must be sigma_min with algorithm_type {grid['algorithm_type']}, which cannot reach sigma 0"
        raise grid.refuse("final_sigmas_type", rule, "zero")
    g = grid.solver(round_karras=grid.schedule.config.get("beta_schedule") != "squaredcos_cap_v2")
    if sde and grid["solver_order"] > 2:
        raise grid.refuse("solver_order", "must be 1 or 2", grid["solver_order"])
    order, short, rows = grid["solver_order"], grid["lower_order_final"] and grid.steps < 15, Rows()
    for i in grid.indices:
        left = grid.steps - i
        last_is_first_order = grid["euler_at_final"] or short or grid["final_sigmas_type"] == "zero"
        k = min(order, i - grid.start + 1, 2 if short and left == 2 else 3)
        if left == 1 and last_is_first_order:
            k = 1
        h = g.lam[i + 1] - g.lam[i]
        if noise:
            x = g.alpha[i + 1] / g.alpha[i] * X - (2 if sde else 1) * g.sigma[i + 1] * math.expm1(h) * D
        else:
            H = 2 * h if sde else h  # the SDE's drift is twice the ODE's
            phi = -math.expm1(-H)
            x = g.sigma[i + 1] / g.sigma[i] * (math.exp(-h) if sde else 1.0) * X + g.alpha[i + 1] * phi * D
        if k >= 2:
            r0 = (g.lam[i] - g.lam[i - 1]) / h
            D1 = (D - S[1]) / r0
            if k == 3:
                r1 = (g.lam[i - 1] - g.lam[i - 2]) / h
                D2 = (D1 - (S[1] - S[2]) / r1) / (r0 + r1)
                D1 = D1 + r0 * D2
                first = True
            else:
                D2, first = np.zeros_like(D1), grid["solver_type"] == "heun"
            if noise:
                e = math.expm1(h)
                weight = (e / h - 1) if first else e / 2
                x -= g.sigma[i + 1] * ((2 if sde else 1) * weight * D1 + ((e - h) / h**2 - 0.5) * D2)
            else:
                weight = 1 - phi / H if first else phi / 2
                x += g.alpha[i + 1] * (weight * D1 - ((H - phi) / H**2 - 0.5) * D2)
        if sde:
            x = x + g.sigma[i + 1] * math.sqrt(math.expm1(2 * h) if noise else -math.expm1(-2 * h)) * Z
        rows.add(i, g.timesteps[i], x, save={1: D, 2: S[1]}, draws=sde, **g.at(i, noise=noise))
    return rows


@sampler(
    "unipc", solver_order=2, solver_type="bh2", **_CONTINUOUS, sigmas="default", final_sigmas_type="zero",
    lower_order_final=True, disable_corrector=(), predict_x0=True, rescale_betas_zero_snr=False, thresholding=False,
    use_flow_sigmas=False,
)  # fmt: skip
def unipc(grid: Grid) -> Rows:
    """UniPC, Zhao et al. 2023 (arXiv 2302.04867), algorithms 7 and 8 (data prediction): predictor UniP, corrector UniC.

    The corrector of a step uses the output evaluated for the next one, so it costs nothing: it opens the next row.
    """
    g, rows = grid.solver(), Rows()
    bh1, before = grid["solver_type"] == "bh1", 0  # before: the order of the step before, which UniC repeats
    for i in grid.indices:
        x = X
        outputs_before = S[2:5]  # S[1]: x before the last step; S[2..4]: x_0 at steps i - 1, i - 2, i - 3
        if before and i - 1 not in grid["disable_corrector"]:
            x = _unipc_step(g, i - 1, before, S[1], outputs_before, corrected_by=D, bh1=bh1)
        order = min(grid["solver_order"], i - grid.start + 1)
        if grid["lower_order_final"]:
            order = min(order, grid.steps - i)
        following = _unipc_step(g, i, order, x, (D, *outputs_before), corrected_by=None, bh1=bh1)
        rows.add(i, g.timesteps[i], following, save={1: x, 2: D, 3: S[2], 4: S[3]}, **g.at(i))
        before = order
    return rows


def _unipc_step(
    g: Solver, i: int, order: int, x: Vector, m: tuple[Vector, ...], *, corrected_by: Vector | None, bh1: bool
) -> Vector:
    """x carried from point i to i + 1. m[k] is x_0 at point i - k; `corrected_by` is x_0 at point i + 1 (UniC)."""
    h = g.lam[i + 1] - g.lam[i]
    x = g.sigma[i + 1] / g.sigma[i] * x - g.alpha[i + 1] * math.expm1(-h) * m[0]
    r = [(g.lam[i - k] - g.lam[i]) / h for k in range(1, order)]
    differences = [(m[k] - m[0]) / r[k - 1] for k in range(1, order)]
    if corrected_by is not None:
        r.append(1.0)
        differences.append(corrected_by - m[0])
    if not differences:
        return x
    B = -h if bh1 else math.expm1(-h)
    if len(r) == 1:
        rho = np.array([0.5])
    else:
        phi, b = math.expm1(-h) / -h - 1, []
        for k in range(1, len(r) + 1):  # b_k = k! phi_{k+1}(-h) h^k / B
            b.append(phi * math.factorial(k) / B)
            phi = phi / -h - 1 / math.factorial(k + 1)
        rho = np.linalg.solve(np.power(r, np.arange(len(r))[:, None]), b)
    return x - g.alpha[i + 1] * B * combine(rho, differences)


_CONSISTENCY: dict[str, Any] = {"original_inference_steps": 50, "rescale_betas_zero_snr": False}


@sampler("lcm", **_CONSISTENCY, timestep_scaling=10.0, clip_sample=False, thresholding=False)
def lcm(grid: Grid) -> Rows:
    """Latent consistency multistep sampling, Luo et al. 2023 (arXiv 2310.04378), algorithm 3."""
    timesteps, rows, sigma_data = _distilled_timesteps(grid), Rows(), 0.5
    for i in grid.indices:
        t = timesteps[i]
        x0, _ = outputs(grid.schedule.prediction_type, grid.level(t))
        scaled = t * grid["timestep_scaling"]
        c_skip, c_out = sigma_data**2 / (scaled**2 + sigma_data**2), scaled / math.hypot(scaled, sigma_data)
        x, last = c_skip * X + c_out * x0, i == grid.steps - 1
        if not last:
            alpha, sigma = grid.level(timesteps[i + 1])
            x = alpha * x + sigma * Z
        rows.add(i, t, x, level=grid.level(t), draws=not last)
    return rows


@sampler("tcd", eta=0.3, **_CONSISTENCY)
def tcd(grid: Grid) -> Rows:
    """Trajectory consistency (strategic stochastic) sampling, Zheng et al. 2024 (arXiv 2402.19159), algorithm 4.

    eta is the paper's gamma: how far past the next timestep a step lands before noise takes it back.
    """
    eta, timesteps, rows = grid["eta"], _distilled_timesteps(grid), Rows()
    for i in grid.indices:
        t, last = timesteps[i], i == grid.steps - 1
        following = 0 if last else timesteps[i + 1]
        s = math.floor(np.float32(1 - eta) * np.float32(following))  # float32 as diffusers: the floor depends on it
        x0, eps = outputs(grid.schedule.prediction_type, grid.level(t))
        alpha, sigma = grid.level(s)
        x, draws = alpha * x0 + sigma * eps, eta > 0 and not last
        if draws:
            a = grid.alpha_cumprod(following) / grid.alpha_cumprod(s)
            x = math.sqrt(a) * x + math.sqrt(1 - a) * Z
        rows.add(i, t, x, level=grid.level(t), draws=draws)
    return rows


def _distilled_timesteps(grid: Grid) -> list[int]:
    """N of the timesteps a consistency model was distilled on, evenly skipped from the noisiest."""
    original, T = grid["original_inference_steps"], grid.schedule.num_train_timesteps
    if original > T:
        raise grid.refuse("original_inference_steps", f"must be at most {T}", original)
    if grid.steps > original:
        raise grid.refuse("steps", f"must be at most original_inference_steps = {original}", grid.steps)
    distilled = (np.arange(1, original + 1) * (T // original) - 1)[::-1]
    return distilled[np.floor(np.linspace(0, original, grid.steps, endpoint=False)).astype(int)].tolist()
