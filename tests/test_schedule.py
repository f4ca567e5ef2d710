"""Noise schedules against diffusers and closed forms."""

import diffusers
import numpy as np
import pytest
import torch

from hotloop.errors import InputError
from hotloop.samplers import schedule
from hotloop.samplers.schedule import Schedule
from hotloop.spec import ScheduleConstants

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1, 2, 10, 999, 1000])
def test_alphas_are_the_references_bit_for_bit(kind, steps):
    config = {**SD15, "beta_schedule": kind, "num_train_timesteps": steps}
    reference = diffusers.DDIMScheduler(**config).alphas_cumprod.numpy()
    mine = Schedule.from_config(config)
    assert mine.alphas_cumprod.dtype == np.float64 and mine.alphas_cumprod.shape == (steps,)
    assert np.array_equal(mine.alphas_cumprod, reference)
    assert not mine.alphas_cumprod.flags.writeable


def test_trained_betas_replace_the_formula():
    betas = [0.1, 0.2, 0.5]
    mine = Schedule.from_config({"trained_betas": betas, "num_train_timesteps": 3})
    assert np.allclose(mine.alphas_cumprod, [0.9, 0.72, 0.36])


def test_sigmas_are_the_noise_to_signal_ratio():
    mine = Schedule.from_config(SD15)
    a = mine.alphas_cumprod
    assert np.allclose(mine.sigmas, np.sqrt((1 - a) / a), rtol=1e-4)
    assert mine.sigmas[[0, -1]] == pytest.approx([0.02916753, 14.6146], rel=1e-5)  # the published ends for SD 1.x


def test_what_the_file_does_not_name_is_the_familys():
    family = ScheduleConstants(prediction_type="v_prediction", beta_end=0.02)
    mine = Schedule.from_config({"beta_start": 0.001}, family)
    same = Schedule.from_config({**SD15, "beta_start": 0.001, "beta_end": 0.02})
    assert mine.prediction_type == "v_prediction" and np.array_equal(mine.alphas_cumprod, same.alphas_cumprod)
    assert Schedule.from_config({"prediction_type": "epsilon"}, family).prediction_type == "epsilon"


def test_an_empty_file_is_the_schedule_of_stable_diffusion():
    assert np.array_equal(Schedule.from_config({}).alphas_cumprod, Schedule.from_config(SD15).alphas_cumprod)


def test_private_keys_and_filled_in_values_are_dropped():
    config = {**SD15, "_class_name": "PNDMScheduler", "beta_end": 0.5, "_use_default_values": ["beta_end"]}
    assert dict(Schedule.from_config(config).config) == {k: v for k, v in SD15.items() if k != "beta_end"}


@pytest.mark.parametrize(
    "config, message",
    [
        ({"beta_schedule": "sigmoid"}, r"beta_schedule\] must be one of linear, scaled_linear"),
        ({"prediction_type": "flow"}, r"prediction_type\] must be one of epsilon"),
        ({"num_train_timesteps": 0}, r"num_train_timesteps\] must be a whole number from 1 to 1000000, got 0"),
        ({"num_train_timesteps": -5}, r"num_train_timesteps\] .* got -5"),
        ({"num_train_timesteps": "many"}, r"num_train_timesteps\] .* got 'many'"),
        ({"num_train_timesteps": 1000.0}, r"num_train_timesteps\]"),
        ({"num_train_timesteps": True}, r"num_train_timesteps\]"),
        ({"num_train_timesteps": 10**12}, r"num_train_timesteps\]"),
        ({"num_train_timesteps": None}, r"num_train_timesteps\]"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas\] must hold 1000 numbers"),
        ({"trained_betas": "nonsense"}, r"trained_betas\] must hold 1000 numbers, got 'nonsense'"),
        ({"trained_betas": 0.1}, r"trained_betas\]"),
        ({"trained_betas": {"a": 1}}, r"trained_betas\]"),
        ({"trained_betas": [[0.1], [0.1, 0.2]]}, r"trained_betas\]"),
        ({"trained_betas": ["x", "y"], "num_train_timesteps": 2}, r"trained_betas\] must hold 2 numbers"),
        ({"trained_betas": [None, 0.1], "num_train_timesteps": 2}, r"trained_betas\]"),
        ({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, "between 0 and 1"),
        ({"beta_start": "x"}, r"beta_start\] must be a number between 0 and 1, got 'x'"),
        ({"beta_start": "x", "beta_schedule": "linear"}, r"beta_start\]"),
        ({"beta_start": -0.1}, r"beta_start\]"),
        ({"beta_start": None}, r"beta_start\]"),
        ({"beta_start": float("nan")}, r"beta_start\]"),
        ({"beta_end": 2.0}, r"beta_end\] must be a number between 0 and 1, got 2.0"),
        ({"beta_end": [0.012]}, r"beta_end\]"),
        ({"beta_schedule": ["linear"]}, r"beta_schedule\]"),
        ({"beta_schedule": None}, r"beta_schedule\]"),
        ({"prediction_type": {}}, r"prediction_type\]"),
        ({"_use_default_values": "beta_end"}, r"_use_default_values\] must be a list of names"),
        ({"_use_default_values": None}, r"_use_default_values\]"),
    ],
    ids=str,
)
def test_bad_constants_are_refused_by_name(config, message):
    with pytest.raises(InputError, match=message) as caught:
        Schedule.from_config({**SD15, **config})
    assert "\n" not in str(caught.value)


def test_zero_terminal_snr_is_the_references():
    reference = diffusers.DDIMScheduler(**SD15, rescale_betas_zero_snr=True).alphas_cumprod.numpy()
    mine = schedule.zero_terminal_snr(Schedule.from_config(SD15).alphas_cumprod)
    assert mine[-1] == 0 and np.allclose(mine, reference, atol=1e-6)


def test_karras_sigmas_end_where_asked_and_are_even_in_their_seventh_root():
    sigma = schedule.karras(14.6, 0.03, 20)
    assert sigma[[0, -1]] == pytest.approx([14.6, 0.03])
    assert np.allclose(np.diff(sigma ** (1 / 7), 2), 0, atol=1e-12)


def test_exponential_sigmas_keep_one_ratio():
    sigma = schedule.exponential(14.6, 0.03, 20)
    assert sigma[[0, -1]] == pytest.approx([14.6, 0.03])
    assert np.ptp(sigma[1:] / sigma[:-1]) < 1e-12


def test_sigma_to_t_inverts_the_training_sigmas():
    train = Schedule.from_config(SD15).sigmas
    assert np.allclose(schedule.sigma_to_t(train, train), np.arange(1000), atol=1e-3)
    between = np.sqrt(train[:-1] * train[1:])
    assert np.allclose(schedule.sigma_to_t(between, train), np.arange(999) + 0.5, atol=1e-2)
    assert schedule.sigma_to_t(np.array([0.0, 1e9]), train).tolist() == [0, 999]


def test_sigma_to_t_is_the_references():
    scheduler = diffusers.EulerDiscreteScheduler(**SD15)
    train = Schedule.from_config(SD15).sigmas
    log_train = np.log(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy())
    for sigma in np.geomspace(0.01, 30, 101):
        mine = schedule.sigma_to_t(np.array(sigma), train)
        assert mine == pytest.approx(scheduler._sigma_to_t(np.float64(sigma), log_train), abs=1e-3)


def test_linspace_is_torchs_bit_for_bit():
    for start, stop, count in [(0.00085, 0.012, 1000), (1e-4, 0.02, 7), (0.5, 0.25, 2), (0.3, 0.4, 1)]:
        expected = torch.linspace(start, stop, count, dtype=torch.float32).numpy()
        assert np.array_equal(schedule._linspace32(start, stop, count), expected)


def test_unknown_spacing_is_refused_by_name():
    with pytest.raises(InputError, match=r"spacing\] must be one of leading, linspace, trailing"):
        schedule.spaced("cosine", 10, 1000)
