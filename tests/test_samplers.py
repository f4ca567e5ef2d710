"""Every table against the diffusers scheduler it stands for: row by row, on a nonlinear network, in float32."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch

from hotloop import samplers
from hotloop.errors import InputError
from hotloop.loop import Inpaint, denoise
from hotloop.samplers import D, Grid, Rows, X, Z, face
from hotloop.samplers.schedule import Schedule

# As Stable Diffusion 1.5 ships it: it names no spacing, so each scheduler class has its own.
SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
NAMES = tuple(samplers.NAMES)
NO_X0 = {"pndm", "plms", "euler_a", "kdpm2"}  # diffusers has no x0 prediction for these: it gets eps from x0
RESTARTS_WRONG = {"pndm", "plms", "lms"}  # stock img2img runs these with a history they do not have
FREE_SPACING = [name for name in NAMES if name not in ("lcm", "tcd")]
FREE_SIGMAS = ["lms", "euler", "heun", "kdpm2", "dpmpp_2m", "dpmpp_2m_sde", "unipc"]
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SHAPE = (2, 4, 5, 6)
MIX = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0].astype(np.float32)
TOLERANCE = 1e-4


def network(u, t):
    """A fixed nonlinear function of input and timestep, float32."""
    mixed = np.einsum("ij,njhw->nihw", MIX, u)
    return (np.tanh(1.3 * mixed) + 0.3 * np.sin(2.0 * u + t / 150) + 0.1 * mixed).astype(np.float32)


class Fake:
    """The network as a Denoiser, without guidance."""

    def begin(self, cond, table, shape):
        self.table = table

    def step(self, x, rows):
        return network(self.table.c_in[rows[0]] * x, self.table.timesteps[rows[0]]), None


def drawn(seed, count=1):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


KNOWN, EPS = drawn(11)[0], drawn(12)[0]
MASK = (np.random.default_rng(13).random((2, 1, 5, 6)) < 0.5).astype(np.float32)


@pytest.fixture(scope="session")
def scheduler_for(schedulers):
    """A function: the diffusers scheduler of a sampler, with its timesteps from `start` on: (scheduler, timesteps)."""

    def make(name, config, steps, start=0, prediction="epsilon"):
        cls, fixed = schedulers[name]
        if prediction == "sample" and name in NO_X0:
            prediction = "epsilon"
        told = {**config, **fixed, "prediction_type": prediction}
        if "algorithm_type" in config:  # DPM-Solver's older forms, beside what the sampler's name says
            told["algorithm_type"] = config["algorithm_type"]
        scheduler = getattr(diffusers, cls).from_config(told)
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps[start * scheduler.order :]
        if name in ("plms", "pndm") and start:
            timesteps = restart_pndm(scheduler, steps - start)
        elif name == "lms" and start:
            scheduler.sigmas, scheduler.timesteps = scheduler.sigmas[start:], timesteps
            scheduler.set_begin_index(0)
        elif hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start * scheduler.order)
        return scheduler, timesteps

    return make


def restart_pndm(scheduler, left):
    """The timesteps PNDMScheduler would have made itself, had it been given only the cleanest `left` of them."""
    ascending = scheduler._timesteps[:left].astype(int).tolist()
    down = ascending[::-1]
    if scheduler.config.skip_prk_steps:
        scheduler.prk_timesteps = np.array([])
        timesteps = [down[0], *down[1:2], *down[1:]] if left > 1 else down
    else:
        half = scheduler.config.num_train_timesteps // scheduler.num_inference_steps // 2
        timesteps = []
        for here, following in itertools.pairwise(down[:4]):
            timesteps += [here, following + half, following + half, following]
        scheduler.prk_timesteps = np.array(timesteps)
        timesteps += down[3:]
    scheduler.timesteps = torch.tensor(timesteps)
    return scheduler.timesteps


def stock(name, scheduler, timesteps, x, prediction="epsilon", inpaint=False, seed=5, **step_options):
    """Runs the scheduler as the pipelines do. Yields (timestep, x) after each evaluation; then the generator."""
    generator = torch.Generator().manual_seed(seed)
    if name in ("ddpm", "ddim", "euler_a", "dpmpp_2m_sde", "lcm", "tcd"):
        step_options["generator"] = generator
    x = torch.from_numpy(x)
    trajectory = []
    for i, t in enumerate(timesteps):
        u = scheduler.scale_model_input(x, t)
        m = torch.from_numpy(network(u.numpy(), np.float32(t)))
        if prediction == "sample" and name in NO_X0:
            m = eps_from_x0(scheduler, x, m, t)
        x = scheduler.step(m, t, x, **step_options, return_dict=False)[0]
        if inpaint:
            known = torch.from_numpy(KNOWN)
            if i < len(timesteps) - 1:
                known = scheduler.add_noise(known, torch.from_numpy(EPS), timesteps[i + 1 : i + 2])
            x = (1 - torch.from_numpy(MASK)) * known + torch.from_numpy(MASK) * x
        assert x.dtype == torch.float32
        trajectory.append((float(t), x.numpy().copy()))
    return trajectory, generator


def eps_from_x0(scheduler, x, x0, t):
    if isinstance(scheduler, diffusers.PNDMScheduler):
        a = scheduler.alphas_cumprod[int(t)]
        return (x - a.sqrt() * x0) / (1 - a).sqrt()
    first = getattr(scheduler, "state_in_first_order", True)
    sigma = (scheduler.sigmas if first else scheduler.sigmas_interpol)[scheduler.step_index]
    return (x - x0) / sigma


def ours(table, x, inpaint=False, seed=5):
    generator = torch.Generator().manual_seed(seed)
    noise = np.stack(
        [torch.randn(SHAPE, generator=generator).numpy() for _ in range(table.noises)] or [np.zeros(SHAPE)]
    )
    rows = denoise(
        Fake(), table, x, cond={}, guidance=np.ones(SHAPE[0], np.float32), noise=noise.astype(np.float32),
        inpaint=Inpaint(MASK, KNOWN, EPS) if inpaint else None,
    )  # fmt: skip
    return [(row.timestep, row.latents.copy()) for row in rows], generator


@pytest.fixture(scope="session")
def check(scheduler_for):
    """A function: compiles and runs both, asserts the same timesteps, rows, start and use of the generator."""

    def run(
        name, steps, *, config=SD15, prediction="epsilon", start=0, inpaint=False, stock_config=None, step=None, **opts
    ):
        schedule = Schedule.from_config({**config, "prediction_type": prediction})
        table = samplers.build(name, schedule, steps, start=start, **opts)
        scheduler, timesteps = scheduler_for(name, {**config, **(stock_config or {})}, steps, start, prediction)
        assert len(table) == len(timesteps)
        begin = drawn(1)[0]
        if start or inpaint:
            x = table.start_img * KNOWN + table.start_eps * begin
            expected = scheduler.add_noise(torch.from_numpy(KNOWN), torch.from_numpy(begin), timesteps[:1]).numpy()
        else:
            x, expected = table.init_scale * begin, begin * np.float32(scheduler.init_noise_sigma)
        assert relative(x, expected) < 1e-5
        mine, my_generator = ours(table, x.astype(np.float32), inpaint)
        theirs, their_generator = stock(name, scheduler, timesteps, expected, prediction, inpaint, **(step or {}))
        for row, ((t, latents), (t_stock, latents_stock)) in enumerate(zip(mine, theirs, strict=True)):
            assert abs(t - t_stock) < 2e-3, (row, t, t_stock)
            assert relative(latents, latents_stock) < TOLERANCE, (row, t)
        assert torch.equal(my_generator.get_state(), their_generator.get_state())
        return table

    return run


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def defined(name, steps):
    return not (name == "pndm" and steps < 4)


def test_every_sampler_has_a_reference(schedulers):
    assert set(schedulers) == set(NAMES)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_trajectory_is_the_reference_schedulers(check, name, prediction, steps):
    if not defined(name, steps):
        with pytest.raises(InputError, match="at least 4 steps"):
            samplers.build(name, Schedule.from_config(SD15), steps)
        return
    check(name, steps, prediction=prediction)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize(
    "name, steps", [(name, steps) for name in FREE_SPACING for steps in (1, 2, 7, 20) if defined(name, steps)]
)
def test_spacing_named_in_the_file_and_given_as_an_option_agree_with_the_reference(check, name, spacing, steps):
    in_file = check(name, steps, config={**SD15, "timestep_spacing": spacing})
    option = samplers.build(name, Schedule.from_config(SD15), steps, spacing=spacing)
    assert np.array_equal(in_file.update, option.update)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["karras", "exponential"])
@pytest.mark.parametrize("name", FREE_SIGMAS)
def test_sigma_kinds_agree_with_the_reference(check, name, kind, prediction, steps):
    in_file = check(name, steps, config={**SD15, f"use_{kind}_sigmas": True}, prediction=prediction)
    schedule = Schedule.from_config({**SD15, "prediction_type": prediction})
    option = samplers.build(name, schedule, steps, sigmas=kind)
    assert np.array_equal(in_file.update, option.update)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name, steps, start",
    [
        (name, steps, start)
        for name, (steps, start) in itertools.product(NAMES, [(2, 1), (7, 3), (20, 8), (50, 20)])
        if defined(name, steps - start)
    ],
)
def test_image_to_image_starts_where_the_reference_does(check, name, prediction, steps, start):
    """For pndm, plms and lms: a reference that is given the remaining timesteps only (see RESTARTS_WRONG)."""
    check(name, steps, start=start, prediction=prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps, start", [(20, 8), (20, 1), (8, 2), (7, 5), (7, 0)])
@pytest.mark.parametrize("name", sorted(RESTARTS_WRONG))
def test_history_of_diffusers_missteps_as_stock_image_to_image_does(scheduler_for, name, steps, start, prediction):
    """The reason for the exception above, measured: running on from a sliced list gives another trajectory."""
    schedule = Schedule.from_config({**SD15, "prediction_type": prediction})
    scheduler, _ = scheduler_for(name, SD15, steps, prediction=prediction)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    follows = samplers.build(name, schedule, steps, start=start, history="diffusers")
    x = (follows.start_img * KNOWN + follows.start_eps * EPS).astype(np.float32)
    mine, _ = ours(follows, x, inpaint=True)
    theirs, _ = stock(name, scheduler, scheduler.timesteps[start:], x, prediction, inpaint=True)
    assert len(mine) == len(theirs)
    for (t, latents), (t_stock, latents_stock) in zip(mine, theirs, strict=True):
        assert abs(t - t_stock) < 2e-3
        assert relative(latents, latents_stock) < TOLERANCE
    if (steps, start) == (20, 8):
        own = samplers.build(name, schedule, steps, start=start)
        assert relative(ours(own, x, inpaint=True)[0][-1][1], theirs[-1][1]) > 10 * TOLERANCE


@pytest.mark.parametrize("steps, start", [(7, 0), (7, 3), (20, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_inpainting_blends_what_the_reference_pipeline_blends(check, name, steps, start):
    check(name, steps, start=start, inpaint=True)


@pytest.mark.parametrize(
    "name, config, step, options",
    [
        ("ddim", {}, {"eta": 0.5}, {"eta": 0.5}),
        ("ddim", {}, {"eta": 1.0}, {"eta": 1.0}),
        ("ddim", {"set_alpha_to_one": True}, {}, {"set_alpha_to_one": True}),
        ("ddpm", {"variance_type": "fixed_large"}, {}, {"variance_type": "fixed_large"}),
        ("ddpm", {"variance_type": "fixed_small_log"}, {}, {"variance_type": "fixed_small_log"}),
        ("ddpm", {"steps_offset": 0}, {}, {"steps_offset": 0}),
        ("lms", {}, {"order": 1}, {"order": 1}),
        ("lms", {}, {"order": 2}, {"order": 2}),
        ("lms", {}, {"order": 3}, {"order": 3}),
        ("euler", {"final_sigmas_type": "sigma_min"}, {}, {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"solver_order": 1}, {}, {"solver_order": 1}),
        ("dpmpp_2m", {"solver_order": 3}, {}, {"solver_order": 3}),
        ("dpmpp_2m", {"solver_type": "heun"}, {}, {"solver_type": "heun"}),
        ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}, {}, {"final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"euler_at_final": True}, {}, {"euler_at_final": True}),
        ("dpmpp_2m", {"lower_order_final": False}, {}, {"lower_order_final": False}),
        ("dpmpp_2m_sde", {"solver_order": 1}, {}, {"solver_order": 1}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}, {}, {"solver_type": "heun"}),
        ("unipc", {"solver_order": 1}, {}, {"solver_order": 1}),
        ("unipc", {"solver_order": 3}, {}, {"solver_order": 3}),
        ("unipc", {"final_sigmas_type": "sigma_min", "solver_type": "bh1"}, {},
         {"final_sigmas_type": "sigma_min", "solver_type": "bh1"}),
        ("unipc", {"disable_corrector": [0, 2]}, {}, {"disable_corrector": [0, 2]}),
        ("lcm", {"timestep_scaling": 3.0}, {}, {"timestep_scaling": 3.0}),
        ("lcm", {"original_inference_steps": 100}, {}, {"original_inference_steps": 100}),
        ("tcd", {}, {"eta": 0.0}, {"eta": 0.0}),
        ("tcd", {}, {"eta": 1.0}, {"eta": 1.0}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("steps", [7, 20])
def test_options_agree_with_the_reference(check, name, config, step, options, steps):
    check(name, steps, stock_config=config, step=step, **options)


@pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver:FutureWarning")
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("order, kind", [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")])
@pytest.mark.parametrize("name, algorithm", [("dpmpp_2m", "dpmsolver"), ("dpmpp_2m_sde", "sde-dpmsolver")])
def test_solvers_that_predict_noise_agree_with_the_reference(check, name, algorithm, order, kind, prediction):
    if name == "dpmpp_2m_sde" and order == 3:
        return
    told = {"algorithm_type": algorithm, "solver_order": order, "solver_type": kind, "final_sigmas_type": "sigma_min"}
    for steps, start in ((2, 0), (7, 0), (20, 0), (7, 3)):
        check(name, steps, config={**SD15, **told}, prediction=prediction, start=start)


HOSTILE = (None, True, -1, 0, 2.5, 1e-300, 1e300, 10**400, math.inf, math.nan, "x", [], [1], {"a": 1}, [0.5] * 7)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_schedule_gives_a_table_or_one_line(name):
    """Out of a file anything may come: every key that the sampler or the schedule reads, with every kind of value."""
    spacings = {"timestep_spacing", "use_karras_sigmas", "use_exponential_sigmas", "sigma_min", "sigma_max"}
    keys = {*SD15, *samplers.options(name), *spacings, "prediction_type", "_use_default_values"}
    refused = 0
    for key, value, karras in itertools.product(sorted(keys), HOSTILE, (False, True)):
        try:
            schedule = Schedule.from_config({**SD15, "use_karras_sigmas": karras, key: value})
            table = samplers.build(name, schedule, 4)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert np.isfinite(table.update).all() and np.isfinite(table.init_scale)
    assert refused > 50


def test_a_table_that_cannot_be_solved_is_one_line():
    """The corrector of third order has no step to sigma 0."""
    schedule = Schedule.from_config({**SD15, "solver_order": 3, "lower_order_final": False})
    with pytest.raises(InputError, match=r"samplers.unipc\] this schedule and these steps"):
        samplers.build("unipc", schedule, 7)


@pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver:FutureWarning")
def test_a_solver_that_predicts_noise_cannot_end_at_sigma_0():
    schedule = Schedule.from_config({**SD15, "algorithm_type": "dpmsolver"})
    with pytest.raises(InputError, match=r"final_sigmas_type\] must be sigma_min with algorithm_type"):
        samplers.build("dpmpp_2m", schedule, 20)
    with pytest.raises(ValueError, match="final_sigmas_type"):
        diffusers.DPMSolverMultistepScheduler.from_config({**SD15, "algorithm_type": "dpmsolver"})


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd"]
)
def test_zero_terminal_snr_agrees_with_the_reference(check, name):
    trailing = {} if name in ("lcm", "tcd") else {"timestep_spacing": "trailing"}
    check(name, 7, config={**SD15, **trailing, "rescale_betas_zero_snr": True}, prediction="v_prediction")


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", ["ddim", "plms", "lms", "heun", "dpmpp_2m", "unipc"])
def test_other_beta_schedules_agree_with_the_reference(check, name, schedule):
    for kind in ("default", "karras") if name in FREE_SIGMAS else ("default",):
        named = {} if kind == "default" else {"use_karras_sigmas": True}
        check(name, 7, config={**SD15, **named, "beta_schedule": schedule})


@pytest.mark.parametrize("name", NAMES)
def test_values_the_source_scheduler_filled_in_itself_are_not_taken_for_the_files(name):
    """A live PNDM configuration says spacing = leading, by default only: Euler made from it stays at linspace."""
    live = diffusers.PNDMScheduler.from_config(SD15).config
    assert live["timestep_spacing"] == "leading" and "timestep_spacing" in live["_use_default_values"]
    a = samplers.build(name, Schedule.from_config(live), 7)
    b = samplers.build(name, Schedule.from_config(SD15), 7)
    assert np.array_equal(a.update, b.update) and np.array_equal(a.timesteps, b.timesteps)


@pytest.mark.parametrize("name", NAMES)
def test_unit_vectors_through_the_reference_give_the_first_rows_coefficients(scheduler_for, name):
    """Every sampler is linear: x = 1, m = 0 and x = 0, m = 1 read the coefficients off the reference."""
    for prediction in PREDICTIONS:
        if prediction == "sample" and name in NO_X0:
            continue
        table = samplers.build(name, Schedule.from_config({**SD15, "prediction_type": prediction}), 20)
        row, p_x, p_m = table.update[0, 0].astype(float), float(table.p_x[0]), float(table.p_m[0])
        expected = row[0] + row[samplers.K + 1] * p_x, row[samplers.K + 1] * p_m
        for unit, coefficient in ((0, expected[0]), (1, expected[1])):
            scheduler, timesteps = scheduler_for(name, SD15, 20, prediction=prediction)
            x, m = torch.full((1, 1, 1, 1), 1.0 - unit), torch.full((1, 1, 1, 1), float(unit))
            scheduler.scale_model_input(x, timesteps[0])
            out = []
            for sign in (1, -1):  # the noise drops out of the difference
                scheduler, timesteps = scheduler_for(name, SD15, 20, prediction=prediction)
                scheduler.scale_model_input(x, timesteps[0])
                torch.manual_seed(0)
                out.append(scheduler.step(sign * m, timesteps[0], sign * x, return_dict=False)[0].item())
            assert (out[0] - out[1]) / 2 == pytest.approx(coefficient, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize(
    "name, evaluations, from_start_20",
    [("pndm", 59, 39), ("plms", 51, 31), ("heun", 99, 59), ("kdpm2", 99, 59), ("ddim", 50, 30), ("euler", 50, 30),
     ("lms", 50, 30), ("dpmpp_2m", 50, 30), ("unipc", 50, 30), ("ddpm", 50, 30)],
)  # fmt: skip
def test_fifty_steps_take_the_published_number_of_evaluations(name, evaluations, from_start_20):
    schedule = Schedule.from_config(SD15)
    whole, part = samplers.build(name, schedule, 50), samplers.build(name, schedule, 50, start=20)
    assert (len(whole), len(part)) == (evaluations, from_start_20)
    for table, steps in ((whole, 50), (part, 30)):
        assert table.steps.tolist() == sorted(table.steps) and set(table.steps) == set(range(steps))


def test_twenty_steps_take_the_published_number_of_evaluations():
    schedule = Schedule.from_config(SD15)
    assert [len(samplers.build(name, schedule, 20)) for name in ("pndm", "plms", "ddim")] == [29, 21, 20]


def test_lcm_runs_at_its_published_timesteps():
    table = samplers.build("lcm", Schedule.from_config(SD15), 4)
    assert table.timesteps.tolist() == [999, 759, 499, 259]
    assert table.draws.tolist() == [True, True, True, False]


def test_euler_with_one_step_returns_denoised():
    table = samplers.build("euler", Schedule.from_config(SD15), 1, spacing="trailing")
    x = (table.init_scale * drawn(1)[0]).astype(np.float32)
    ((_, result),) = ours(table, x)[0]
    sigma = np.float32(table.init_scale)
    assert relative(result, x - sigma * network(x / np.sqrt(sigma**2 + 1), np.float32(999))) < 1e-5


def test_every_step_count_gives_the_reference_timesteps(schedulers):
    schedule = Schedule.from_config(SD15)
    for name in ("ddim", "dpmpp_2m", "euler"):
        cls = getattr(diffusers, schedulers[name][0])
        for spacing in ("leading", "linspace", "trailing"):
            scheduler = cls.from_config(SD15, timestep_spacing=spacing)
            for steps in (*range(1, 60), 99, 100, 128, 250, 333, 500, 998):
                scheduler.set_timesteps(steps)
                table = samplers.build(name, schedule, steps, spacing=spacing)
                expected = scheduler.timesteps.numpy().astype(np.float32)[:steps]  # 998 trailing: one too many, -1
                assert np.array_equal(table.timesteps, expected), (spacing, steps)


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_float32_read_only_and_of_one_state_size(name):
    table = samplers.build(name, Schedule.from_config(SD15), 7)
    assert table.update.shape == (len(table), samplers.K + 1, samplers.K + 3)
    for array in (table.timesteps, table.c_in, table.p_x, table.p_m, table.update, table.k_img, table.k_eps):
        assert array.dtype == np.float32 and not array.flags.writeable and len(array) == len(table)
    assert table.steps.dtype == np.int32 and table.draws.dtype == bool
    assert (table.k_img[-1], table.k_eps[-1]) == (1, 0)
    assert not table.update[~table.draws, :, -1].any()


def test_a_sampler_is_registered_with_one_decorator():
    @samplers.sampler("churned_euler", spacing="linspace", sigmas="default", steps_offset=0, churn=0.0)
    def churned_euler(grid: Grid) -> Rows:
        """Euler with noise added back."""
        ve = grid.ve()
        rows = Rows(init_scale=ve.init_scale)
        for i in grid.indices:
            dt = ve.sigmas[i + 1] - ve.sigmas[i]
            rows.add(i, ve.timesteps[i], X + dt * D + grid["churn"] * ve.sigmas[i + 1] * Z, draws=True, **ve.at(i))
        return rows

    try:
        schedule = Schedule.from_config(SD15)
        plain, mine = samplers.build("euler", schedule, 7), samplers.build("churned_euler", schedule, 7)
        assert "churned_euler" in samplers.NAMES and mine.noises == 7
        assert np.array_equal(mine.update, plain.update)
        assert churned_euler(schedule, 7, churn=0.5).update[0, 0, -1] > 0
        assert churned_euler.__doc__ == "Euler with noise added back."
        with pytest.raises(InputError, match="taken"):
            samplers.sampler("churned_euler")(lambda grid: Rows())
    finally:
        del face._REGISTRY["churned_euler"]


@pytest.mark.parametrize(
    "name, steps, options, message",
    [
        ("eulr", 20, {}, r"did you mean .*euler"),
        ("DDIM", 20, {}, r"sampler must be one of ddim, ddpm, .*did you mean ddim"),
        ("ddim", 0, {}, r"ddim.steps\] must be a whole number from 1 to 1000, got 0"),
        ("ddim", 1001, {}, "from 1 to 1000, got 1001"),
        ("ddim", 20.0, {}, "whole number"),
        ("ddim", True, {}, "whole number"),
        ("ddim", 1000, {"steps_offset": 1}, "must stay below 1000"),
        ("ddim", 20, {"start": 20}, r"start\] must be a whole number from 0 to steps - 1 = 19, got 20"),
        ("ddim", 20, {"start": -1}, "start"),
        ("ddim", 20, {"etta": 1.0}, r"options are .*did you mean eta"),
        ("ddim", 20, {"eta": float("nan")}, r"ddim.eta\] must be a number from 0 to 1, got nan"),
        ("ddim", 20, {"eta": 1.5}, "from 0 to 1"),
        ("ddim", 20, {"spacing": "cosine"}, "leading, linspace, trailing, got 'cosine'"),
        ("ddim", 20, {"clip_sample": True}, r"clip_sample\] must be False"),
        ("dpmpp_2m", 20, {"thresholding": True}, r"thresholding\] must be False"),
        ("dpmpp_2m", 20, {"solver_order": 4}, "from 1 to 3"),
        ("dpmpp_2m_sde", 20, {"solver_order": 3}, "must be 1 or 2"),
        ("dpmpp_2m", 1000, {}, "must be at most 999"),
        ("dpmpp_2m", 20, {"lower_order_final": 1}, "True or False"),
        ("euler_a", 20, {"sigmas": "karras"}, "options are"),
        ("lcm", 51, {}, "must be at most original_inference_steps = 50, got 51"),
        ("tcd", 51, {}, "must be at most original_inference_steps = 50"),
        ("lms", 20, {"order": 5}, "from 1 to 4"),
        ("unipc", 20, {"disable_corrector": "all"}, "list of step numbers"),
        ("unipc", 20, {"lower_order_final": False}, "finite"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_by_name(name, steps, options, message):
    with pytest.raises(InputError, match=message) as caught:
        samplers.build(name, Schedule.from_config(SD15), steps, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, config, message",
    [
        ("ddim", {"clip_sample": True}, "clip_sample"),
        ("ddpm", {"thresholding": True}, "thresholding"),
        ("heun", {"clip_sample": True}, "clip_sample"),
        ("euler", {"timestep_type": "continuous"}, "timestep_type"),
        ("euler", {"use_beta_sigmas": True}, "sigmas"),
        ("dpmpp_2m", {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ("dpmpp_2m", {"use_lu_lambdas": True}, "use_lu_lambdas"),
        ("unipc", {"use_flow_sigmas": True}, "use_flow_sigmas"),
        ("unipc", {"predict_x0": False}, "predict_x0"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "finite"),
    ],
)
def test_a_configuration_that_cannot_be_compiled_is_refused_by_name(name, config, message):
    with pytest.raises(InputError, match=message):
        samplers.build(name, Schedule.from_config({**SD15, **config}), 20)


def test_clip_sample_is_refused_where_the_file_is_silent_and_diffusers_would_clip():
    silent = {k: v for k, v in SD15.items() if k != "clip_sample"}
    with pytest.raises(InputError, match="clip_sample"):
        samplers.build("ddim", Schedule.from_config(silent), 20)
    assert len(samplers.build("ddim", Schedule.from_config(silent), 20, clip_sample=False)) == 20
    assert len(samplers.build("euler", Schedule.from_config({**SD15, "clip_sample": True}), 20)) == 20
