"""cfg_step: the reference against a dense float64 oracle, the compiled operator against the reference."""

from __future__ import annotations

import os

import numpy as np
import pytest

import hotloop_kernels
from hotloop.samplers.table import K
from hotloop_kernels import KernelError, backend, cfg_step
from hotloop_kernels.cfg_step import MAX_STATES
from hotloop_kernels.testing import BACKENDS, ISAS, can_compile, use, use_isa

SIZES = [
    (2, 4, 64, 64),  # SD 1.5 at 512 x 512
    (2, 4, 16, 16),  # the built-in model
    (3, 4, 7, 11),  # 77 values: every vector length has a tail
    (1, 1, 1, 769),  # three blocks and one value
    (5, 9, 1, 1),
    (0, 4, 8, 8),
]


def case(shape, *, rows=6, states=8, seed=0, **parts):
    """Random (state, positional rest, keywords) of cfg_step; `parts` may be guidance, z, mask, residual."""
    rng = np.random.default_rng(seed)
    n = shape[0]

    def normal(*size):
        return rng.standard_normal(size, dtype=np.float32)

    update = normal(rows, states, states + 2)
    if states == 8:
        update[rng.random(update.shape) < 0.6] = 0
        update[:, 3] = np.eye(states, states + 2, dtype=np.float32)[3]  # a saved state that stays
        update[:, 5] = 0
    if not parts.get("z"):
        update[:, :, -1] = 0
    keywords = {}
    if parts.get("z"):
        keywords["z"] = normal(*shape)
    if parts.get("mask"):
        keywords |= {"mask": rng.random((n, 1, *shape[2:]), dtype=np.float32), "known": normal(*shape)}
        keywords |= {"eps": normal(*shape), "k_img": normal(rows), "k_eps": normal(rows)}
    if parts.get("residual"):
        keywords["residual"] = normal(rows, states)
    m_u = normal(*shape) if parts.get("guidance") else None
    index = rng.integers(0, rows, n).astype(np.int32)
    arguments = (normal(*shape), m_u, index, 5 * rng.random(n, dtype=np.float32), update, normal(rows), normal(rows))
    return normal(states, *shape), arguments, keywords


def dense_oracle(state, arguments, keywords):
    """The definition in float64, every column taken whether zero or not, the whole batch at once."""
    m_c, m_u, rows, g, update, p_x, p_m = (None if a is None else np.asarray(a) for a in arguments)
    S, m = state.astype(np.float64), m_c.astype(np.float64)
    per_image = (slice(None), None, None, None)
    if "residual" in keywords:
        m_u = np.einsum("nk,knchw->nchw", keywords["residual"][rows].astype(np.float64), S)
    if m_u is not None:
        m = m_u + g[per_image] * (m - m_u)
    d = p_x[rows][per_image] * S[0] + p_m[rows][per_image] * m
    z = keywords.get("z", np.zeros_like(S[0]))
    out = np.einsum("nij,jnchw->inchw", update[rows].astype(np.float64), np.concatenate([S, d[None], z[None]]))
    if "mask" in keywords:
        mask = keywords["mask"].astype(np.float64)
        known = keywords["k_img"][rows][per_image] * keywords["known"]
        out[0] = mask * out[0] + (1 - mask) * (known + keywords["k_eps"][rows][per_image] * keywords["eps"])
    return out


def run(state, arguments, keywords):
    out = state.copy()
    cfg_step(out, *arguments, **keywords)
    return out


PARTS = [
    {},
    {"guidance": True},
    {"guidance": True, "z": True},
    {"guidance": True, "mask": True},
    {"residual": True},
    {"residual": True, "z": True, "mask": True},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(p) or "plain")
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_it_equals_the_dense_definition_in_float64(backend, shape, parts):
    state, arguments, keywords = case(shape, **parts)
    with use(backend):
        got = run(state, arguments, keywords)
    want = dense_oracle(state, arguments, keywords)
    assert np.abs(got - want).max(initial=0) <= 1e-6 * max(1.0, np.abs(want).max(initial=0)) * 16


@pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")
@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(p) or "plain")
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_compiled_operator_equals_the_reference_bit_for_bit(shape, parts):
    state, arguments, keywords = case(shape, seed=1, **parts)
    with use("reference"):
        want = run(state, arguments, keywords)
    assert np.array_equal(run(state, arguments, keywords), want)


compiled = pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")


@compiled
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(isa):
    state, arguments, keywords = case((3, 4, 7, 11), guidance=True, z=True, mask=True)
    want = run(state, arguments, keywords)
    with use_isa(isa):
        assert np.array_equal(run(state, arguments, keywords), want)


def by_value(state, arguments, keywords):
    """What a CUDA thread does for each value, run on the CPU."""
    names = ("z", "mask", "known", "eps", "k_img", "k_eps", "residual")
    out = state.copy()
    rest = [keywords.get(name) for name in names]
    backend.ops.cfg_step(out, *arguments, *rest, 0, False, True)
    return out


@compiled
@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(p) or "plain")
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_a_cuda_threads_arithmetic_gives_the_same_bits(shape, parts):
    state, arguments, keywords = case(shape, seed=2, **parts)
    assert np.array_equal(by_value(state, arguments, keywords), run(state, arguments, keywords))


@compiled
def test_a_cuda_thread_reads_nothing_with_a_zero_coefficient():
    state, arguments, _ = case((2, 4, 5, 5))
    update = np.zeros_like(arguments[4])
    update[:, 0, 0] = 0.5
    update[:, 1] = np.eye(8, 10, dtype=np.float32)[1]
    state[1:] = np.nan
    m_c = np.full_like(arguments[0], np.nan)
    got = by_value(state, (m_c, *arguments[1:4], update, *arguments[5:]), {})
    assert np.array_equal(got[0], state[0] / 2) and np.isnan(got[1]).all() and not got[2:].any()


@compiled
def test_what_the_host_cannot_check_on_a_device_gives_nan_there():
    state, arguments, _ = case((3, 1, 2, 2), states=1)
    m_c, m_u, _, g, update, p_x, p_m = arguments
    update[1, 0, -1] = 1  # noise, and no z
    got = by_value(state, (m_c, m_u, np.array([0, 1, 6], np.int32), g, update, p_x, p_m), {})
    assert np.isfinite(got[0, 0]).all() and np.isnan(got[0, 1:]).all()


@compiled
@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(p) or "plain")
def test_torch_tensors_give_the_same_bits_in_place(parts):
    torch = pytest.importorskip("torch")
    state, arguments, keywords = case((3, 4, 7, 11), **parts)
    tensors = torch.from_numpy(state.copy())
    arguments_t = [None if a is None else torch.from_numpy(a) for a in arguments]
    cfg_step(tensors, *arguments_t, **{name: torch.from_numpy(a) for name, a in keywords.items()})
    assert np.array_equal(tensors.numpy(), run(state, arguments, keywords))


def on_gpu(arrays):
    torch = pytest.importorskip("torch")
    return [None if a is None else torch.from_numpy(a).cuda() for a in arrays]


def run_on_gpu(state, arguments, keywords):
    (out,) = on_gpu([state])
    cfg_step(out, *on_gpu(arguments), **dict(zip(keywords, on_gpu(keywords.values()), strict=True)), unproved=True)
    return out.cpu().numpy()


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("states", [1, 3, 8])
@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(p) or "plain")
@pytest.mark.parametrize("shape", [*SIZES, (16, 4, 64, 64)], ids=str)
def test_a_gpu_gives_the_cpus_bits(shape, parts, states):
    state, arguments, keywords = case(shape, states=states, seed=3, **parts)
    assert np.array_equal(run_on_gpu(state, arguments, keywords), run(state, arguments, keywords))


@pytest.mark.gpu
@compiled
def test_a_gpu_takes_views_of_larger_batches():
    state, arguments, keywords = case((3, 4, 7, 11), guidance=True, z=True)
    want = run(state, arguments, keywords)
    m_c, m_u, *rest = arguments
    whole = np.zeros((8, 9, 4, 7, 11), np.float32)
    whole[:, 2:8:2] = state
    tensors, halves, z, *rest = on_gpu([whole, np.stack([m_c, m_u], axis=1), keywords["z"], *rest])
    cfg_step(tensors[:, 2:8:2], halves[:, 0], halves[:, 1], *rest, z=z, unproved=True)
    got = tensors.cpu().numpy()
    assert np.array_equal(got[:, 2:8:2], want) and not got[:, [0, 1, 3, 5, 7, 8]].any()


@pytest.mark.gpu
@compiled
def test_a_gpu_reads_nothing_with_a_zero_coefficient():
    state, arguments, _ = case((2, 4, 5, 5))
    update = np.zeros_like(arguments[4])
    update[:, 0, 0] = 0.5
    state[1:] = np.nan
    m_c = np.full_like(arguments[0], np.nan)
    got = run_on_gpu(state, (m_c, *arguments[1:4], update, *arguments[5:]), {})
    assert np.array_equal(got[0], state[0] / 2) and not got[1:].any()


@pytest.mark.gpu
@compiled
def test_a_gpu_gives_nan_for_a_row_outside_the_table_and_for_missing_noise():
    state, arguments, _ = case((4, 1, 20, 20), states=1)
    m_c, m_u, _, g, update, p_x, p_m = arguments
    update[1, 0, -1] = 1  # noise, and no z
    got = run_on_gpu(state, (m_c, m_u, np.array([0, 1, 6, -1], np.int32), g, update, p_x, p_m), {})
    assert np.isfinite(got[0, 0]).all() and np.isnan(got[0, 1:]).all()


@pytest.mark.gpu
@compiled
def test_a_captured_graph_follows_its_inputs(capture):
    parts = {"guidance": True, "z": True, "mask": True}
    state, arguments, keywords = case((2, 4, 64, 64), **parts)
    (held, *first), rest = on_gpu([state, *arguments]), dict(zip(keywords, on_gpu(keywords.values()), strict=True))
    replay = capture(lambda stream: cfg_step(held, *first, **rest, stream=stream, unproved=True))
    for seed in (1, 2):  # other images, rows, guidance scales and tables
        state, arguments, keywords = case((2, 4, 64, 64), seed=seed, **parts)
        changed = on_gpu([state, *arguments, *keywords.values()])
        for old, new in zip((held, *first, *rest.values()), changed, strict=True):
            old.copy_(new)
        replay()
        assert np.array_equal(held.cpu().numpy(), run(state, arguments, keywords))


@compiled
def test_bad_tensors_name_the_rule_and_the_value():
    torch = pytest.importorskip("torch")
    arrays, arguments, _ = case((2, 4, 5, 5), guidance=True)
    state = torch.from_numpy(arrays)
    m_c, m_u, rows, *rest = (torch.from_numpy(a) for a in arguments)
    update, p_x, p_m = rest[1:]
    noisy = update.clone()
    noisy[:, 0, -1] = 1
    for message, call in {
        r"\[cfg_step\] state must be float32 \[K\+1, N, C, h, w\], got float16": lambda: cfg_step(
            state.half(), m_c, m_u, rows, *rest
        ),
        r"\[cfg_step\] rows must be int32 \[2\], got int64 \[2\]": lambda: cfg_step(
            state, m_c, m_u, rows.long(), *rest
        ),
        r"\[cfg_step\] rows must lie in 0\.\.5, got 6": lambda: cfg_step(state, m_c, m_u, rows * 0 + 6, *rest),
        r"\[cfg_step\] z must be given for rows with a noise column": lambda: cfg_step(
            state, m_c, m_u, rows, rest[0], noisy, p_x, p_m
        ),
        r"\[cfg_step\] m_c must be contiguous, got gaps between values": lambda: cfg_step(
            state, m_c.transpose(2, 3), m_u, rows, *rest
        ),
        r"\[cfg_step\] known must be float32 \[2, 4, 5, 5\], got NoneType": lambda: cfg_step(
            state, m_c, m_u, rows, *rest, mask=torch.zeros(2, 1, 5, 5)
        ),
    }.items():
        with pytest.raises(KernelError, match=message):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_in_a_batch_equals_the_image_alone_bit_for_bit(backend):
    state, arguments, keywords = case((5, 4, 9, 13), guidance=True, z=True, mask=True)
    per_image = {"z", "mask", "known", "eps"}
    with use(backend):
        batch = run(state, arguments, keywords)
        for i in range(5):
            one = slice(i, i + 1)
            alone = run(
                state[:, one],
                tuple(a[one] if place < 4 else a for place, a in enumerate(arguments)),
                {k: v[one] if k in per_image else v for k, v in keywords.items()},
            )
            assert np.array_equal(alone, batch[:, one])


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_need_not_be_contiguous(backend):
    state, arguments, keywords = case((3, 4, 7, 11), guidance=True, z=True)
    with use(backend):
        want = run(state, arguments, keywords)
        m_c, m_u, *rest = arguments
        halves = np.stack([m_c, m_u], axis=1)  # [N, 2, C, h, w]: every other image of one network output
        got = run(state, (halves[:, 0], halves[:, 1], *rest), {"z": np.asfortranarray(keywords["z"])})
        assert np.array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["images of a larger batch", "transposed pixels"])
def test_the_state_may_be_a_view_and_is_updated_in_place(backend, view):
    state, arguments, keywords = case((3, 4, 7, 11), guidance=True)
    with use(backend):
        want = run(state, arguments, keywords)
        if view == "transposed pixels":
            whole = np.zeros((8, 3, 4, 11, 7), np.float32)
            part = whole.swapaxes(3, 4)
        else:
            whole = np.zeros((8, 9, 4, 7, 11), np.float32)
            part = whole[:, 2:8:2]
        part[...] = state
        cfg_step(part, *arguments, **keywords)
        assert np.array_equal(part, want)
        if view != "transposed pixels":
            assert not whole[:, [0, 1, 3, 5, 7, 8]].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_a_zero_coefficient_is_never_read(backend):
    state, arguments, _ = case((2, 4, 5, 5))
    update = np.zeros_like(arguments[4])
    update[:, 0, 0] = 0.5  # x' = x / 2; every saved state becomes 0
    state[1:] = np.nan
    m_c = np.full_like(arguments[0], np.nan)
    with use(backend):
        got = run(state, (m_c, *arguments[1:4], update, *arguments[5:]), {})
    assert np.array_equal(got[0], state[0] / 2)
    assert not got[1:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_works_on_a_row_that_leaves_x_as_it_is(backend):
    state, arguments, keywords = case((2, 4, 5, 5), mask=True)
    update = np.zeros_like(arguments[4])
    update[:] = np.eye(8, 10, dtype=np.float32)
    arguments = (*arguments[:4], update, *arguments[5:])
    with use(backend):
        got = run(state, arguments, keywords)
    assert np.allclose(got, dense_oracle(state, arguments, keywords), atol=1e-5)
    assert np.array_equal(got[1:], state[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_first_order_sampler_needs_no_history(backend):
    state, arguments, keywords = case((2, 4, 6, 6), states=1, guidance=True, z=True)
    with use(backend):
        got = run(state, arguments, keywords)
    assert np.allclose(got, dense_oracle(state, arguments, keywords), atol=1e-4)


def test_bad_arguments_name_the_rule_and_the_value():
    state, arguments, _ = case((2, 4, 5, 5), guidance=True)
    m_c, m_u, rows, g, update, p_x, p_m = arguments
    noisy = update.copy()
    noisy[:, 0, -1] = 1
    for message, call in {
        r"\[cfg_step\] state must be float32 \[K\+1, N, C, h, w\], got float64": lambda: cfg_step(
            state.astype(np.float64), *arguments
        ),
        r"\[cfg_step\] m_c must be float32 \[2, 4, 5, 5\], got float32 \[1, 4, 5, 5\]": lambda: cfg_step(
            state, m_c[:1], *arguments[1:]
        ),
        r"\[cfg_step\] m_u must be float32": lambda: cfg_step(state, m_c, m_u.tolist(), *arguments[2:]),
        r"\[cfg_step\] rows must lie in 0\.\.5, got \[0, 6\]": lambda: cfg_step(
            state, m_c, m_u, np.array([0, 6]), g, update, p_x, p_m
        ),
        r"\[cfg_step\] rows must be integer \[2\], got float64 \[2\]": lambda: cfg_step(
            state, m_c, m_u, np.zeros(2), g, update, p_x, p_m
        ),
        r"\[cfg_step\] update must be \[E, 8, 10\], got \[6, 8, 9\]": lambda: cfg_step(
            state, m_c, m_u, rows, g, update[:, :, :9], p_x, p_m
        ),
        r"\[cfg_step\] z must be given": lambda: cfg_step(state, m_c, m_u, rows, g, noisy, p_x, p_m),
        r"\[cfg_step\] known must be float32": lambda: cfg_step(
            state, *arguments, mask=np.zeros((2, 1, 5, 5), np.float32)
        ),
        r"\[cfg_step\] m_u and residual exclude each other": lambda: cfg_step(
            state, *arguments, residual=np.zeros((6, 8), np.float32)
        ),
        r"\[cfg_step\] guidance must be \[2\], got \[3\]": lambda: cfg_step(
            state, m_c, m_u, rows, np.ones(3), update, p_x, p_m
        ),
    }.items():
        with pytest.raises(KernelError, match=message):
            call()


def test_the_largest_state_is_the_step_tables_and_the_compiled_operators():
    assert MAX_STATES == K + 1
    assert backend.ops is None or backend.ops.max_states == MAX_STATES


def test_the_operators_are_compiled_where_a_compiler_was_at_hand():
    """A silent fallback to NumPy must not pass for a successful build. HOTLOOP_PURE=1 says it is intended."""
    if os.environ.get("HOTLOOP_PURE") == "1" or not can_compile():
        pytest.skip("no C++ compiler or Python.h here, or HOTLOOP_PURE=1")
    assert hotloop_kernels.compiled(), hotloop_kernels.build_info()
    assert set(hotloop_kernels.build_info()) == {"compiled", "compiler", "isa", "threads", "cuda"}
