"""The CUDA attention without a GPU: the kernels' own source on an emulated block, against float64.

tests/emulator stands in for the instructions: every thread a fiber, fragments and descriptors by their documented
layouts, copies and matrix products as late as the waits allow. What only a GPU can tell stays open: that the hardware
does what its manual says, and how fast.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CXX = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(CXX is None, reason="no C++ compiler here")

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EAGER, LAZY, RANDOM = range(3)
# Shared memory of a block: sm_86, 89 and 120; sm_80; sm_90.
LIMITS = {"sm_86": 101376, "sm_80": 166912, "sm_90": 232448}


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "token", "head"))]


class KeySet(ctypes.Structure):
    _fields_ = [
        *(("k", View), ("v", View), ("keys", ctypes.c_int), ("weight", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in ("weight_batch", "weight_head", "weight_query")),
    ]


class MaskView(ctypes.Structure):
    _fields_ = [
        *(("data", ctypes.c_void_p), ("kind", ctypes.c_int)),
        *((name, ctypes.c_int64) for name in ("batch", "head", "query", "key")),
    ]


class Params(ctypes.Structure):
    _fields_ = [
        *(("q", View), ("out", View), ("set", KeySet * 9), ("sets", ctypes.c_int), ("mask", MaskView)),
        *(("queries", ctypes.c_int), ("head_size", ctypes.c_int), ("scale", ctypes.c_float)),
        *(("wide_loads", ctypes.c_bool), ("wide_stores", ctypes.c_bool), ("stages", ctypes.c_int)),
    ]


MASKS = {np.dtype(np.uint8): 1, np.dtype(np.float32): 2, np.dtype(np.float16): 3, np.dtype(ml_dtypes.bfloat16): 4}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    library = tmp_path_factory.mktemp("emulator") / "attention.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    folders = [f"-I{ROOT / 'kernels/csrc'}", f"-I{ROOT / 'tests/emulator'}"]
    source = ROOT / "tests/emulator/attention.cpp"
    built = subprocess.run([CXX, *flags, *folders, source, "-o", library], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = loaded.params_size.restype = ctypes.c_int64
    loaded.emulate.argtypes = [ctypes.POINTER(Params), ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
    loaded.emulate.argtypes += [ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
    loaded.last_fault.restype = ctypes.c_char_p
    assert loaded.params_size() == ctypes.sizeof(Params)
    return loaded


def view(array, order=(0, 1, 2)) -> View:
    batch, token, head = (array.strides[axis] // array.itemsize for axis in order)
    return View(array.ctypes.data, batch, token, head)


def fenced(shape, dtype, *, rng=None, offset=8, layout="plain"):
    """A random array [B, T, H, D] inside a larger one of NaN, 16-byte aligned plus `offset` elements."""
    B, T, H, D = shape
    shapes = {"plain": (B, T, H, D), "heads first": (B, H, T, D), "packed": (B, T, 3, H, D)}
    size = math.prod(shapes[layout])
    buffer = np.full(size + 64, np.nan, dtype)
    start = (-buffer.ctypes.data // buffer.itemsize) % (16 // buffer.itemsize) + offset
    array = buffer[start : start + size].reshape(shapes[layout])
    if layout == "heads first":
        array = array.swapaxes(1, 2)
    elif layout == "packed":
        array = array[:, :, 1]
    if rng is not None:
        array[...] = rng.standard_normal(shape).astype(dtype)
    return array


def reference(q, k, v, mask, scale, segments):
    """Float64. A row that may look nowhere gives zeros."""

    def attend(k, v, mask):
        s = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k.astype(np.float64)) * scale
        if mask is not None:
            s = s + (np.where(mask, 0, -np.inf) if mask.dtype == np.uint8 else mask.astype(np.float64))
        top = s.max(-1, keepdims=True, initial=-np.inf)
        p = np.exp(s - np.where(np.isfinite(top), top, 0))
        total = p.sum(-1, keepdims=True)
        return np.einsum("bhqk,bkhd->bqhd", p / np.where(total == 0, 1, total), v.astype(np.float64))

    out = attend(k, v, mask)
    for k_s, v_s, weight in segments:
        out += np.broadcast_to(weight, (*weight.shape[:2], q.shape[1])).swapaxes(1, 2)[..., None] * attend(k_s, v_s, None)
    return out


def run(emulator, q, k, v, *, mask=None, scale=None, segments=(), tall=False, limit="sm_86", order=LAZY, stages=2, out=None):
    """The emulated kernel's output; asserts that it wrote nothing else and met no bank conflict."""
    B, T, H, D = q.shape
    out = fenced(q.shape, q.dtype) if out is None else out
    arrays = [q, k, v, *(x for pair in segments for x in pair[:2])]
    p = Params(view(q), view(out), sets=1 + len(segments), queries=T, head_size=D, stages=stages)
    p.scale = D**-0.5 if scale is None else scale
    p.wide_loads = all(a.ctypes.data % 16 == 0 and all(s % 16 == 0 for s in a.strides[:3]) for a in arrays)
    p.wide_stores = out.ctypes.data % 4 == 0 and all(s % 4 == 0 for s in out.strides[:3])
    for i, (k_s, v_s, weight) in enumerate([(k, v, None), *segments]):
        p.set[i] = KeySet(view(k_s), view(v_s), k_s.shape[1])
        if weight is not None:
            weight = np.broadcast_to(weight, (B, H, T))
            p.set[i].weight = weight.ctypes.data
            p.set[i].weight_batch, p.set[i].weight_head, p.set[i].weight_query = (s // 4 for s in weight.strides)
    if mask is not None:
        size = mask.itemsize
        mask = np.broadcast_to(mask, (B, H, T, k.shape[1]))
        p.mask = MaskView(mask.ctypes.data, MASKS[mask.dtype], *(s // size for s in mask.strides))
    dtype = list(DTYPES.values()).index(q.dtype.type)
    conflicts = emulator.emulate(p, dtype, B, H, int(tall), LIMITS[limit], order, 1)
    assert conflicts >= 0, emulator.last_fault().decode()
    assert conflicts == 0
    root = out
    while root.base is not None:
        root = root.base
    assert np.isnan(root.astype(np.float32)).sum() == root.size - out.size
    return out


def assert_close(out, q, k, v, *, mask=None, scale=None, segments=()):
    """At most twice the error of the naive computation in the same dtype, and 2 ulp of the largest value."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    exact = reference(q, k, v, mask, scale, segments)
    dtype = q.dtype
    largest = np.abs(exact).max(initial=1e-9)
    eps = {2: 2.0**-10, 4: 2.0**-23}[dtype.itemsize] if dtype != ml_dtypes.bfloat16 else 2.0**-7
    ulp = eps * 2.0 ** math.floor(math.log2(largest))
    error = np.abs(out.astype(np.float64) - exact).max(initial=0)
    naive = np.abs(naive_attention(q, k, v, mask, scale, segments).astype(np.float64) - exact).max(initial=0)
    assert error <= 2 * naive + 2 * ulp, (error, naive, ulp)


def naive_attention(q, k, v, mask, scale, segments):
    """Every step rounded to the dtype."""
    dtype = q.dtype

    def f(x):
        return x.astype(np.float32)

    def attend(k, v, mask):
        s = np.einsum("bqhd,bkhd->bhqk", f(q), f(k)).astype(dtype)
        s = (f(s) * np.float32(scale)).astype(dtype)
        if mask is not None:
            m = np.where(mask, 0, -np.inf).astype(dtype) if mask.dtype == np.uint8 else mask
            s = (f(s) + f(m)).astype(dtype)
        top = f(s).max(-1, keepdims=True, initial=-np.inf)
        p = np.exp(f(s) - np.where(np.isfinite(top), top, 0))
        total = p.sum(-1, keepdims=True)
        p = (p / np.where(total == 0, 1, total)).astype(dtype)
        return np.einsum("bhqk,bkhd->bqhd", f(p), f(v)).astype(dtype)

    out = attend(k, v, mask)
    for k_s, v_s, weight in segments:
        weight = np.broadcast_to(weight, (*weight.shape[:2], q.shape[1])).swapaxes(1, 2)[..., None]
        out = (f(out) + weight * f(attend(k_s, v_s, None))).astype(dtype)
    return out


def case(B, Tq, Tk, H, D, dtype="float16", seed=0, **how):
    rng = np.random.default_rng(seed)
    return [fenced((B, T, H, D), DTYPES[dtype], rng=rng, **how) for T in (Tq, Tk, Tk)]


HEAD_SIZES = [8, 16, 24, 40, 48, 64, 72, 80, 96, 128, 136, 160, 200, 256]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_every_head_size_equals_float64(emulator, head_size, dtype):
    qkv = case(1, 21, 77, 1, head_size, dtype)
    assert_close(run(emulator, *qkv), *qkv)


@pytest.mark.parametrize("limit", LIMITS)
def test_head_size_512_equals_float64_in_the_shared_memory_of_every_gpu(emulator, limit):
    qkv = case(1, 70, 45, 1, 512)
    assert_close(run(emulator, *qkv, limit=limit), *qkv)


@pytest.mark.parametrize("head_size", [8, 40, 72, 80, 160, 256, 512])
def test_float32_equals_float64(emulator, head_size):
    qkv = case(1, 37, 77, 1, head_size, "float32")
    assert_close(run(emulator, *qkv), *qkv)


@pytest.mark.parametrize("head_size", [40, 64, 80])
def test_tall_blocks_equal_float64(emulator, head_size):
    qkv = case(1, 150, 77, 1, head_size)
    assert_close(run(emulator, *qkv, tall=True), *qkv)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 769), (77, 1), (64, 64), (65, 65), (129, 128), (3, 0)])
def test_any_token_counts_equal_float64(emulator, queries, keys):
    qkv = case(1, queries, keys, 1, 40)
    assert_close(run(emulator, *qkv), *qkv)


@pytest.mark.parametrize("order", [EAGER, LAZY, RANDOM])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("head_size", [40, 512])
def test_the_bits_do_not_depend_on_when_copies_arrive(emulator, head_size, stages, order):
    qkv = case(1, 33, 300, 1, head_size)
    assert np.array_equal(run(emulator, *qkv, stages=stages, order=order, segments=[some_segment(qkv, 70)]),
                          run(emulator, *qkv, stages=2, order=LAZY, segments=[some_segment(qkv, 70)]))  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("layout", "offset"), [("heads first", 8), ("packed", 8), ("plain", 1), ("packed", 3)])
def test_strided_and_unaligned_inputs_equal_float64(emulator, layout, offset, dtype):
    qkv = case(2, 17, 77, 2, 40, dtype, layout=layout, offset=offset)
    out = fenced(qkv[0].shape, DTYPES[dtype], layout=layout, offset=offset)
    assert_close(run(emulator, *qkv, out=out), *qkv)


@pytest.mark.parametrize("head_size", [40, 512])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 77), (2, 2, 21, 77), (1, 2, 1, 77)])
def test_masks_of_every_kind_and_broadcast_equal_float64(emulator, shape, kind, dtype, head_size):
    if head_size == 512 and (shape[0] == 1 or kind != "uint8"):
        pytest.skip("one mask is enough for a second tiling")
    qkv = case(2, 21, 77, 2, head_size, dtype)
    rng = np.random.default_rng(1)
    if kind == "uint8":
        mask = (rng.random(shape) < 0.7).astype(np.uint8)
    else:
        mask = rng.standard_normal(shape).astype(DTYPES.get(kind, np.uint8))
        mask[rng.random(shape) < 0.2] = -np.inf
    assert_close(run(emulator, *qkv, mask=mask), *qkv, mask=mask)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_that_may_look_nowhere_gives_zeros(emulator, dtype):
    qkv = case(1, 21, 77, 1, 40, dtype)
    mask = np.ones((1, 1, 21, 77), np.uint8)
    mask[0, 0, 3] = 0
    mask[0, 0, 4, :64] = 0  # the first tile alone
    out = run(emulator, *qkv, mask=mask)
    assert not out[0, 3].any() and out[0, 4].any()
    assert_close(out, *qkv, mask=mask)


def test_the_lowest_finite_mask_is_not_minus_infinity(emulator):
    qkv = case(1, 16, 24, 1, 40)
    mask = np.full((1, 1, 16, 24), np.finfo(np.float32).min, np.float32)
    mean = qkv[2].astype(np.float64).mean(1, keepdims=True)
    assert np.abs(run(emulator, *qkv, mask=mask).astype(np.float64) - mean).max() < 2e-3


@pytest.mark.parametrize("scale", [1.0, 1e-3, -0.3, 0.0])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_scale_equals_float64(emulator, scale, dtype):
    qkv = case(1, 16, 130, 1, 40, dtype)
    assert_close(run(emulator, *qkv, scale=scale), *qkv, scale=scale)


def some_segment(qkv, keys, *, seed=5, weight=None):
    B, T, H, D = qkv[0].shape
    rng = np.random.default_rng(seed)
    k, v = (fenced((B, keys, H, D), qkv[0].dtype, rng=rng) for _ in range(2))
    return k, v, rng.standard_normal((B, H, T)).astype(np.float32) if weight is None else weight


@pytest.mark.parametrize(("head_size", "dtype", "tall"), [(40, "float16", False), (40, "bfloat16", True)]
                         + [(80, "float16", True), (160, "float16", False), (512, "float16", False)]
                         + [(40, "float32", False), (512, "float32", False)])  # fmt: skip
def test_segments_equal_float64(emulator, head_size, dtype, tall):
    qkv = case(2, 37, 77, 2, head_size, dtype)
    segments = [some_segment(qkv, 4, seed=6), some_segment(qkv, 100, seed=7), some_segment(qkv, 257, seed=8)]
    segments[0] = (*segments[0][:2], segments[0][2][:1, :, :1])  # a weight that broadcasts
    mask = (np.random.default_rng(2).random((2, 1, 37, 77)) < 0.7).astype(np.uint8)
    out = run(emulator, *qkv, mask=mask, segments=segments, tall=tall)
    assert_close(out, *qkv, mask=mask, segments=segments)


def test_eight_segments_are_added(emulator):
    qkv = case(1, 20, 77, 1, 40)
    segments = [some_segment(qkv, 4 + i, seed=i) for i in range(8)]
    assert_close(run(emulator, *qkv, segments=segments), *qkv, segments=segments)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("head_size", [40, 512])
def test_weight_zero_equals_no_segment_bit_for_bit(emulator, head_size, dtype):
    qkv = case(1, 80, 77, 1, head_size, dtype)
    qkv[2][:, :, :, 0] = -0.0  # an output of -0 must stay one
    plain = run(emulator, *qkv)
    segment = some_segment(qkv, 70)
    segment[1][0, 0] = np.inf  # 0 x inf would be NaN
    zero = np.zeros((1, 1, 80), np.float32)
    assert run(emulator, *qkv, segments=[(*segment[:2], zero)]).tobytes() == plain.tobytes()
    some = zero.copy()
    some[..., 5] = 1.0  # one row of the block has a weight: the others still keep their bits
    segment[1][0, 0] = 1.0
    mixed = run(emulator, *qkv, segments=[(*segment[:2], some)])
    assert mixed[:, :5].tobytes() == plain[:, :5].tobytes() and mixed[:, 6:].tobytes() == plain[:, 6:].tobytes()
    assert (mixed[:, 5] != plain[:, 5]).any()


def test_nan_is_not_hidden(emulator):
    q, k, v = case(1, 20, 77, 1, 40)
    q[0, 3] = np.nan
    B, T, H, D = q.shape
    p = Params(view(q), view(out := np.zeros_like(q)), sets=1, queries=T, head_size=D, stages=2, scale=1.0)
    p.wide_loads = p.wide_stores = True
    p.set[0] = KeySet(view(k), view(v), 77)
    assert emulator.emulate(p, 1, B, H, 0, LIMITS["sm_86"], LAZY, 1) == 0
    assert np.isnan(out[0, 3]).all() and np.isfinite(np.delete(out[0], 3, 0)).all()
