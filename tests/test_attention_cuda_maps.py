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
EAGER, LAZY, MIXED, RANDOM = range(4)  # as Order in the emulator
# Shared memory of a block: sm_86, 89 and 120; sm_80; sm_90.
LIMITS = {"sm_86": 101376, "sm_80": 166912, "sm_90": 232448}
PER_SM = {"sm_86": 102400, "sm_80": 167936, "sm_90": 233472}


class Tensor(ctypes.Structure):
    _fields_ = [
        *(("data", ctypes.c_void_p), ("dtype", ctypes.c_int), ("cuda", ctypes.c_bool), ("device", ctypes.c_int)),
        *(("ndim", ctypes.c_int), ("shape", ctypes.c_int64 * 5), ("stride", ctypes.c_int64 * 5)),
    ]


class Segment(ctypes.Structure):
    _fields_ = [("k", Tensor), ("v", Tensor), ("weight", Tensor)]


class Attention(ctypes.Structure):
    _fields_ = [
        *((name, Tensor) for name in ("q", "k", "v", "out", "mask")),
        *(("scale", ctypes.c_float), ("segments", ctypes.c_int), ("segment", Segment * 8)),
    ]


CODES = ["float32", "float16", "bfloat16", "uint8"]  # of DType
PORTABLE, TALL, HOPPER = range(3)


def tensor(array) -> Tensor:
    strides = (stride // array.itemsize for stride in array.strides)
    shape, stride = (ctypes.c_int64 * 5)(*array.shape), (ctypes.c_int64 * 5)(*strides)
    return Tensor(array.ctypes.data, CODES.index(array.dtype.name), False, 0, array.ndim, shape, stride)


def operation(q, k, v, out, *, mask=None, scale=None, segments=()) -> Attention:
    """The operator's struct as the bindings fill it: masks and weights broadcast by strides of 0."""
    B, T, H, D = q.shape
    op = Attention(tensor(q), tensor(k), tensor(v), tensor(out), segments=len(segments))
    op.scale = D**-0.5 if scale is None else scale
    if mask is not None:
        op.mask = tensor(np.broadcast_to(mask, (B, H, T, k.shape[1])))
    for i, (k_s, v_s, weight) in enumerate(segments):
        op.segment[i] = Segment(tensor(k_s), tensor(v_s), tensor(np.broadcast_to(weight, (B, H, T))))
    return op


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    library = tmp_path_factory.mktemp("emulator") / "attention.so"
    # Fibers jump between stacks, which fortified longjmp takes for an attack.
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-U_FORTIFY_SOURCE"]
    folders = [f"-I{ROOT / 'kernels/csrc'}", f"-I{ROOT / 'tests/emulator'}"]
    source = ROOT / "tests/emulator/attention.cpp"
    built = subprocess.run([CXX, *flags, *folders, source, "-o", library], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = loaded.attention_size.restype = loaded.segment_offset.restype = ctypes.c_int64
    loaded.emulate.argtypes = [ctypes.POINTER(Attention), *[ctypes.c_int] * 4, ctypes.c_uint64]
    loaded.takes_wgmma.argtypes = [ctypes.POINTER(Attention)]
    loaded.last_fault.restype = ctypes.c_char_p
    loaded.swizzle_128.restype = ctypes.c_uint32
    loaded.descriptor_k_major.restype = loaded.descriptor_mn_major.restype = ctypes.c_uint64
    assert loaded.attention_size() == ctypes.sizeof(Attention)
    assert loaded.segment_offset() == Attention.segment.offset
    return loaded


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


def per_query(weight, q):
    """[B or 1, H or 1, Tq or 1] -> [B, Tq, H, 1]"""
    B, T, H, _ = q.shape
    return np.broadcast_to(weight, (B, H, T)).swapaxes(1, 2)[..., None]


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
        out += per_query(weight, q) * attend(k_s, v_s, None)
    return out


def run(emulator, *qkv, out=None, kernel=PORTABLE, limit="sm_86", order=LAZY, stages=2, seed=1, **more):
    """The emulated kernel's output; asserts that it wrote nothing else and met no bank conflict."""
    out = fenced(qkv[0].shape, qkv[0].dtype) if out is None else out
    op = operation(*qkv, out, **more)
    conflicts = emulator.emulate(op, kernel, stages, LIMITS[limit], order, seed)
    assert conflicts >= 0, emulator.last_fault().decode()
    assert conflicts == 0
    root = out
    while root.base is not None:
        root = root.base
    assert np.isnan(root.astype(np.float32)).sum() == root.size - np.isfinite(out.astype(np.float32)).sum()
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
        out = (f(out) + per_query(weight, q) * f(attend(k_s, v_s, None))).astype(dtype)
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
    assert_close(run(emulator, *qkv, kernel=TALL), *qkv)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 769), (77, 1), (64, 64), (65, 65), (129, 128), (3, 0)])
def test_any_token_counts_equal_float64(emulator, queries, keys):
    qkv = case(1, queries, keys, 1, 40)
    assert_close(run(emulator, *qkv), *qkv)


@pytest.mark.parametrize("order", [EAGER, LAZY, MIXED, RANDOM])
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


BROADCAST = [(1, 1, 1, 77), (2, 2, 21, 77), (1, 2, 1, 77)]
MASKED = [(40, shape, kind) for shape in BROADCAST for kind in ("uint8", "float32", "float16", "bfloat16")]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("head_size", "shape", "kind"), [*MASKED, (512, (2, 2, 21, 77), "uint8")])
def test_masks_of_every_kind_and_broadcast_equal_float64(emulator, shape, kind, dtype, head_size):
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


SEGMENTED = [(40, "float16", PORTABLE), (40, "bfloat16", TALL), (80, "float16", TALL), (160, "float16", PORTABLE)]
SEGMENTED += [(512, "float16", PORTABLE), (40, "float32", PORTABLE), (512, "float32", PORTABLE)]


@pytest.mark.parametrize(("head_size", "dtype", "kernel"), SEGMENTED)
def test_segments_equal_float64(emulator, head_size, dtype, kernel):
    qkv = case(2, 37, 77, 2, head_size, dtype)
    segments = [some_segment(qkv, 4, seed=6), some_segment(qkv, 100, seed=7), some_segment(qkv, 257, seed=8)]
    segments[0] = (*segments[0][:2], segments[0][2][:1, :, :1])  # a weight that broadcasts
    mask = (np.random.default_rng(2).random((2, 1, 37, 77)) < 0.7).astype(np.uint8)
    out = run(emulator, *qkv, mask=mask, segments=segments, kernel=kernel)
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
    out = run(emulator, q, k, v)
    assert np.isnan(out[0, 3]).all() and np.isfinite(np.delete(out[0], 3, 0)).all()


# --- Hopper ---
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("head_size", "queries", "keys"), [(40, 200, 600), (80, 128, 300), (160, 130, 256)])
def test_the_hopper_kernel_equals_float64(emulator, head_size, queries, keys, dtype):
    qkv = case(1, queries, keys, 1, head_size, dtype)
    assert_close(run(emulator, *qkv, kernel=HOPPER), *qkv)


@pytest.mark.parametrize("order", [EAGER, MIXED, RANDOM])
@pytest.mark.parametrize("head_size", [40, 80, 160])
def test_the_hopper_kernel_does_not_depend_on_when_copies_and_products_are_done(emulator, head_size, order):
    qkv = case(1, 128, 700, 1, head_size)
    lazy = run(emulator, *qkv, kernel=HOPPER)
    assert all(np.array_equal(lazy, run(emulator, *qkv, kernel=HOPPER, order=order, seed=s)) for s in range(3))


@pytest.mark.parametrize("keys", [1, 64, 128, 129, 512])
def test_the_hopper_kernel_handles_every_count_of_tiles(emulator, keys):
    qkv = case(1, 128, keys, 1, 40)
    assert_close(run(emulator, *qkv, kernel=HOPPER), *qkv)


@pytest.mark.parametrize("layout", ["plain", "heads first", "packed"])
def test_the_hopper_kernel_takes_strided_inputs(emulator, layout):
    qkv = case(2, 128, 130, 2, 40, layout=layout)
    out = fenced(qkv[0].shape, np.float16, layout=layout)
    assert emulator.takes_wgmma(operation(*qkv, out))
    assert_close(run(emulator, *qkv, kernel=HOPPER, out=out), *qkv)


UNFIT = ["mask", "segment", "head size", "dtype", "scale", "few queries", "few keys", "unaligned", "broadcast"]


@pytest.mark.parametrize("change", [*UNFIT, "odd output"])
def test_the_hopper_kernel_is_not_chosen_for_what_it_cannot_do(emulator, change):
    dtype = "float32" if change == "dtype" else "float16"
    queries, keys = 64 if change == "few queries" else 128, 77 if change == "few keys" else 128
    head_size = 64 if change == "head size" else 40
    q, k, v = case(2, queries, keys, 2, head_size, dtype, offset=3 if change == "unaligned" else 8)
    out = fenced(q.shape, DTYPES[dtype], offset=1 if change == "odd output" else 8)
    more = {"scale": -1.0} if change == "scale" else {}
    if change == "mask":
        more["mask"] = np.ones((1, 1, 1, keys), np.uint8)
    if change == "segment":
        more["segments"] = [some_segment((q, k, v), 4)]
    if change == "broadcast":
        k = np.broadcast_to(k[:1], k.shape)
    assert not emulator.takes_wgmma(operation(q, k, v, out, **more))


@pytest.mark.long
@pytest.mark.parametrize("kernel", [PORTABLE, TALL, HOPPER])
@pytest.mark.parametrize(("tokens", "head_size"), [(4096, 40), (1024, 80), (256, 160)])
def test_the_self_attentions_of_sd_equal_float64(emulator, tokens, head_size, kernel):
    qkv = case(1, tokens, tokens, 1, head_size)
    assert_close(run(emulator, *qkv, kernel=kernel, order=RANDOM), *qkv)


# --- Plans and maps ---
@pytest.mark.parametrize("gpu", LIMITS)
def test_every_head_size_fits_the_shared_memory_of_every_gpu(emulator, gpu):
    for head_size in [*range(8, 257, 8), 512]:
        for tall in (0, 1):
            used = ctypes.c_int()
            stages = emulator.stages_of(head_size, tall, LIMITS[gpu], PER_SM[gpu], 2, ctypes.byref(used))
            assert stages in (2, 3) and used.value <= LIMITS[gpu]
        assert emulator.ffma_bytes(head_size) <= LIMITS[gpu]


def test_the_hopper_tiles_fit_the_shared_memory_of_sm_90(emulator):
    assert all(emulator.wgmma_bytes(head_size) <= LIMITS["sm_90"] for head_size in (40, 80, 160))


@pytest.mark.parametrize("chunks", range(1, 65))
def test_a_tile_has_a_place_for_every_chunk_and_eight_rows_fill_the_banks(emulator, chunks):
    places = np.array([[emulator.chunk_offset(row, chunk, chunks) for chunk in range(chunks)] for row in range(16)])
    assert sorted(places.ravel()) == list(range(0, 16 * 16 * chunks, 16))
    for rows in (places[:8], places[8:]):
        assert (np.sort(rows // 16 % 8, axis=0) == np.arange(8)[:, None]).all()


def test_fragments_are_those_of_the_manual(emulator):
    lanes = np.arange(32)
    assert [emulator.fragment_row(int(lane)) for lane in lanes] == (lanes // 4).tolist()
    assert [emulator.fragment_column(int(lane)) for lane in lanes] == (lanes % 4 * 2).tolist()


def test_the_swizzle_permutes_the_chunks_of_each_row_and_is_its_own_inverse(emulator):
    addresses = np.arange(0, 4096, 2)
    there = np.array([emulator.swizzle_128(int(a)) for a in addresses])
    assert (there // 128 == addresses // 128).all() and sorted(there) == addresses.tolist()
    assert [emulator.swizzle_128(int(a)) for a in there] == addresses.tolist()
    column = there[addresses % 128 == 0] // 16 % 8  # the first chunk of successive rows: all banks
    assert (column == np.arange(32) % 8).all()


def test_descriptors_hold_start_offsets_and_swizzle_in_their_fields(emulator):
    # Panel 1 (columns 64..127) of a tile of 128 rows at 0x4000, column 80: 32 bytes into its rows.
    assert emulator.descriptor_k_major(0x4000, 128, 80) == (0x4000 + 128 * 128 + 32) >> 4 | 1 << 16 | 64 << 32 | 1 << 62
    # Rows 32.. of a tile of 64 rows at 0x8000; the next 64 columns are 64 x 128 bytes on.
    assert emulator.descriptor_mn_major(0x8000, 64, 32) == (0x8000 + 32 * 128) >> 4 | 512 << 16 | 64 << 32 | 1 << 62
