"""rgb: against float64 arithmetic and the baseline's own image processor."""

from __future__ import annotations

import numpy as np
import pytest

from hotloop_kernels import KernelError, rgb
from hotloop_kernels.testing import BACKENDS, use

SIZES = [(1, 3, 64, 64), (2, 3, 7, 11), (1, 4, 1, 1025), (3, 1, 5, 1), (0, 3, 8, 8)]


def pictures(shape, seed=0):
    """Values well beyond [-1, 1], with both ends and the halves between two bytes among them."""
    x = np.random.default_rng(seed).uniform(-1.5, 1.5, shape).astype(np.float32)
    edges = np.r_[-1, 1, 0, -0.0, (np.arange(256) + 0.5) / 127.5 - 1].astype(np.float32)
    count = min(x.size, edges.size)
    x.reshape(-1)[:count] = edges[:count]
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_pack_rounds_to_the_nearest_byte(backend, shape):
    x = pictures(shape)
    with use(backend):
        got = rgb.pack(x)
    assert got.shape == (shape[0], *shape[2:], shape[1]) and got.dtype == np.uint8
    exact = np.clip(x.astype(np.float64) / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1) * 255
    assert np.abs(got - exact).max(initial=0) <= 0.5 + 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_pack_gives_the_bytes_of_the_baseline(backend):
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    x = pictures((2, 3, 33, 47))
    want = processor.postprocess(torch.from_numpy(x), output_type="pil")
    with use(backend):
        assert np.array_equal(rgb.pack(x), np.stack([np.asarray(image) for image in want]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unpack_gives_the_pixels_of_the_baseline(backend):
    Image = pytest.importorskip("PIL.Image")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor(vae_scale_factor=1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    want = processor.preprocess([Image.fromarray(p) for p in pixels]).numpy()
    with use(backend):
        got = rgb.unpack(pixels)
    assert got.dtype == np.float32 and np.array_equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_byte_survives_unpack_and_pack(backend):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    with use(backend):
        assert np.array_equal(rgb.pack(rgb.unpack(pixels)), pixels)


@pytest.mark.skipif("compiled" not in BACKENDS, reason="no compiled operators")
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_compiled_operators_equal_their_references_bit_for_bit(shape):
    x = pictures(shape, seed=1)
    with use("reference"):
        packed = rgb.pack(x)
        unpacked = rgb.unpack(packed)
    assert np.array_equal(rgb.pack(x), packed)
    assert np.array_equal(rgb.unpack(packed), unpacked)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_need_not_be_contiguous(backend):
    x = pictures((2, 3, 8, 10))
    with use(backend):
        assert np.array_equal(rgb.pack(x[:, :, ::2, 1::3]), rgb.pack(x[:, :, ::2, 1::3].copy()))
        pixels = rgb.pack(x)
        assert np.array_equal(rgb.unpack(pixels[:, ::-1]), rgb.unpack(pixels[:, ::-1].copy()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error_not_a_black_pixel(backend, value):
    x = pictures((2, 3, 9, 9))
    x[1, 2, 8, 8] = value
    with use(backend), pytest.raises(KernelError, match=r"\[rgb.pack\] images must be finite, got 1 values"):
        rgb.pack(x)


def test_another_dtype_or_layout_is_an_error():
    with pytest.raises(KernelError, match=r"\[rgb.pack\] images must be float32 \[N, C, h, w\], got float64 \[1"):
        rgb.pack(np.zeros((1, 3, 2, 2)))
    with pytest.raises(KernelError, match=r"\[rgb.unpack\] pixels must be uint8 \[N, h, w, C\], got uint8 \[2, 2, 3\]"):
        rgb.unpack(np.zeros((2, 2, 3), np.uint8))
