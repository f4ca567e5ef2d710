"""The loop against the table's own definition, and what it promises its caller."""

import gc
import re
import weakref
from pathlib import Path

import numpy as np
import pytest

from hotloop import loop, samplers
from hotloop.errors import InputError
from hotloop.loop import Inpaint, denoise, run
from hotloop.samplers.schedule import Schedule

SCHEDULE = Schedule.from_config({"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False})
SHAPE = (3, 4, 5, 7)
GUIDANCE = np.array([1.5, 7.5, 3.0], np.float32)


class Fake:
    """A nonlinear network of input, timestep and a per-image condition; counts its calls."""

    def __init__(self, guided=True):
        self.guided, self.begun, self.rows = guided, [], []

    def begin(self, cond, table, shape):
        self.begun.append((cond, table, shape))
        self.cond, self.table = cond, table

    def step(self, x, rows):
        assert rows.dtype == np.int32 and rows.shape == (len(x),)
        self.rows.append(rows.copy())
        u = self.table.c_in[rows][:, None, None, None] * x
        t = self.table.timesteps[rows][:, None, None, None]
        m_c = np.tanh(u + self.cond["context"] + t / 500).astype(np.float32)
        return m_c, np.sin(u).astype(np.float32) if self.guided else None


def inputs(table, images=SHAPE[0], seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=SHAPE).astype(np.float32)
    noise = rng.normal(size=(table.noises, *SHAPE)).astype(np.float32)
    cond = rng.normal(size=(SHAPE[0], 1, 1, 1)).astype(np.float32)
    mask = (rng.random((SHAPE[0], 1, *SHAPE[2:])) < 0.5).astype(np.float32)
    known, eps = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return x[:images], {
        "cond": {"context": cond[:images]}, "guidance": GUIDANCE[:images], "noise": noise[:, :images],
        "inpaint": Inpaint(mask[:images], known[:images], eps[:images]),
    }  # fmt: skip


def by_definition(table, e, S, denoiser, guidance, z, inpaint):
    """Row e of the contract of StepTable, spelled out in float64: the state after it, from the state S before it."""
    m, m_u = denoiser.step(S[0], np.full(S.shape[1], e, np.int32))
    if m_u is not None:
        m = m_u + guidance.astype(float)[:, None, None, None] * (m.astype(float) - m_u)
    d = table.p_x[e] * S[0].astype(float) + table.p_m[e] * m
    S = np.tensordot(table.update[e].astype(float), np.concatenate([S, d[None], z[None]]), 1)
    if inpaint is not None:
        known = table.k_img[e] * inpaint.known + table.k_eps[e] * inpaint.eps
        S[0] = inpaint.mask * S[0] + (1 - inpaint.mask) * known
    return S


@pytest.mark.parametrize("inpainting", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_row_is_the_tables_definition(name, guided, inpainting):
    table = samplers.build(name, SCHEDULE, 6)
    x, given = inputs(table)
    given["inpaint"] = given["inpaint"] if inpainting else None
    witness, noise, rows = Fake(guided), iter(given["noise"]), 0
    witness.begin(given["cond"], table, x.shape)
    state = np.zeros((samplers.K + 1, *SHAPE), np.float32)
    state[0] = x
    for progress in denoise(Fake(guided), table, x, **given):
        e = progress.row
        z = next(noise) if table.draws[e] else np.zeros_like(x)
        expected = by_definition(table, e, state, witness, given["guidance"], z, given["inpaint"])
        state = progress.latents.base.copy()
        assert np.abs(state - expected).max() <= 2e-6 * max(1, np.abs(expected).max()) * np.abs(table.update[e]).max()
        rows += 1
    assert rows == len(table) and next(noise, None) is None


@pytest.mark.parametrize("name", samplers.NAMES)
def test_run_and_denoise_are_bit_equal(name):
    table = samplers.build(name, SCHEDULE, 6)
    x, given = inputs(table)
    *_, last = denoise(Fake(), table, x, **given)
    result = run(Fake(), table, x, **given)
    assert np.array_equal(result, last.latents) and result.base is None


@pytest.mark.parametrize("name", ["plms", "euler_a", "unipc"])
def test_an_image_of_a_batch_is_bit_equal_to_its_single_run(name):
    table = samplers.build(name, SCHEDULE, 6)
    x, given = inputs(table)
    single_x, single = inputs(table, images=1)
    assert np.array_equal(run(Fake(), table, x, **given)[:1], run(Fake(), table, single_x, **single))


def test_progress_counts_rows_and_steps():
    table = samplers.build("plms", SCHEDULE, 4)
    x, given = inputs(table)
    seen = [(p.row, p.rows, p.step, p.steps, p.timestep) for p in denoise(Fake(), table, x, **given)]
    assert seen == [(0, 5, 0, 4, 751), (1, 5, 0, 4, 501), (2, 5, 1, 4, 501), (3, 5, 2, 4, 251), (4, 5, 3, 4, 1)]


def test_begin_is_called_once_and_every_image_is_on_the_same_row():
    table = samplers.build("ddim", SCHEDULE, 4)
    x, given = inputs(table)
    fake = Fake()
    run(fake, table, x, **given)
    assert [(c is given["cond"], t is table, s) for c, t, s in fake.begun] == [(True, True, SHAPE)]
    assert [rows.tolist() for rows in fake.rows] == [[e] * 3 for e in range(4)]


def test_guidance_is_per_image_and_one_means_the_condition_alone():
    table = samplers.build("ddim", SCHEDULE, 4)
    x, given = inputs(table)
    given["inpaint"] = None
    given["guidance"] = np.array([1.0, 7.5, 1.0], np.float32)
    guided, plain = run(Fake(True), table, x, **given), run(Fake(False), table, x, **given)
    same = [np.allclose(a, b, atol=1e-5) for a, b in zip(guided, plain, strict=True)]
    assert same == [True, False, True]


def test_the_start_is_not_modified_and_latents_are_a_view():
    table = samplers.build("euler", SCHEDULE, 3)
    x, given = inputs(table)
    before = x.copy()
    first, *_ = (p.latents for p in denoise(Fake(), table, x, **given))
    assert np.array_equal(x, before) and not first.flags.owndata
    assert np.array_equal(first, run(Fake(), table, x, **given))  # the buffer has moved on to the last row


def test_a_cancelled_run_stops_and_leaves_nothing_behind():
    table = samplers.build("plms", SCHEDULE, 20)
    x, given = inputs(table)
    fake = Fake()
    rows = denoise(fake, table, x, **given)
    next(rows)
    progress = next(rows)
    state = weakref.ref(progress.latents.base)
    rows.close()
    del progress
    gc.collect()
    assert len(fake.rows) == 2 and state() is None
    assert next(rows, None) is None
    fresh = Fake()
    assert np.array_equal(run(fresh, table, x, **given), run(fake, table, x, **given))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.zeros((3, 4, 5), np.float32)}, r"loop.x\] must be float32 \['N', 'C', 'h', 'w'\]"),
        ({"x": np.zeros(SHAPE)}, r"loop.x\] must be float32"),
        ({"guidance": np.ones(2, np.float32)}, r"loop.guidance\] must be float32 \[3\], got 'float32 \[2\]'"),
        ({"noise": None}, r"loop.noise\] must be float32 \[6, 3, 4, 5, 7\], got None"),
        ({"noise": np.zeros((5, *SHAPE), np.float32)}, r"loop.noise\]"),
        ({"inpaint": Inpaint(*np.zeros((3, *SHAPE), np.float32))}, r"loop.mask\] must be float32 \[3, 1, 5, 7\]"),
    ],
    ids=["3d", "f64", "guidance", "no noise", "little noise", "mask"],
)
def test_what_does_not_fit_is_refused_before_the_first_row(change, message):
    table = samplers.build("euler_a", SCHEDULE, 6)
    x, given = inputs(table)
    given.update(change)
    fake = Fake()
    with pytest.raises(InputError, match=message):
        denoise(fake, table, given.pop("x", x), **given)
    assert not fake.begun


def test_the_loop_knows_no_sampler_by_name():
    words = set(re.findall(r"\w+", Path(loop.__file__).read_text(encoding="utf-8")))
    assert not words & set(samplers.NAMES)
