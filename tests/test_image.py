"""image.py against diffusers' image processors, and against files that lie, lack or break."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hotloop import image as images
from hotloop.errors import InputError

PROCESSOR = VaeImageProcessor(vae_scale_factor=8)
MASK_PROCESSOR = VaeImageProcessor(
    vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)  # as StableDiffusionInpaintPipeline makes it


def picture(width: int = 64, height: int = 48, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise on them: interpolation and rounding both show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1)
    return Image.fromarray((base + rng.normal(0, 20, base.shape)).clip(0, 255).astype(np.uint8)).convert(mode)


def ramp_mask(width: int = 64, height: int = 48, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


# --- Against diffusers ---


def test_to_float_equals_diffusers_preprocess_for_all_256_levels() -> None:
    levels = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8))
    for image in (levels, picture(), picture(24, 8)):
        want = PROCESSOR.preprocess(image).numpy()
        got = images.to_float(image)
        assert got.dtype == np.float32 and got.flags.c_contiguous
        np.testing.assert_array_equal(got, want)


def test_to_rgb8_equals_diffusers_postprocess_with_its_rounding_and_clamping() -> None:
    edges = (np.arange(-30, 300, 0.5, dtype=np.float32) / 255) * 2 - 1  # all half-way points, and beyond both ends
    x = np.concatenate([edges, np.random.default_rng(0).normal(0, 0.7, 3 * 16 * 24 * 2 - edges.size)])
    x = x.astype(np.float32).reshape(2, 3, 16, 24)
    want = np.stack([np.asarray(i) for i in PROCESSOR.postprocess(torch.from_numpy(x), output_type="pil")])
    np.testing.assert_array_equal(images.to_rgb8(x), want)


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    image = picture()
    (back,) = images.from_array(images.to_rgb8(images.to_float(image)))
    assert same(back, image)


@pytest.mark.parametrize("size", [(64, 48), (32, 32), (96, 40), (8, 128)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resize_equals_diffusers_resize(size: tuple[int, int], mode: str) -> None:
    image = picture(mode=mode)
    assert same(images.resize(image, size), PROCESSOR.resize(image, size[1], size[0]))


@pytest.mark.parametrize("source", [(64, 48), (48, 64), (33, 91), (128, 128)])
@pytest.mark.parametrize("size", [(32, 32), (64, 24), (24, 64), (57, 31)])
def test_centre_crop_equals_diffusers_crop_mode(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = picture(*source)
    assert same(images.centre_crop(image, size), PROCESSOR.resize(image, size[1], size[0], resize_mode="crop"))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_masks_equal_those_of_the_stock_inpainting_pipeline(factor: int) -> None:
    mask = ramp_mask()
    condition = MASK_PROCESSOR.preprocess(mask, height=48, width=64)
    got = images.mask_array(mask)
    np.testing.assert_array_equal(got, condition.numpy())
    stock, _ = StableDiffusionInpaintPipeline.prepare_mask_latents(
        SimpleNamespace(vae_scale_factor=factor),
        condition, torch.zeros(1, 4, 1, 1), 1, 48, 64, torch.float32, "cpu", None, False,
    )  # fmt: skip
    np.testing.assert_array_equal(images.latent_mask(got, factor), stock.numpy())


@pytest.mark.parametrize("padding", [0, 5, 32])
@pytest.mark.parametrize("aspect", [(64, 64), (512, 256), (40, 96)])
def test_mask_region_equals_diffusers_crop_region(padding: int, aspect: tuple[int, int]) -> None:
    rng = np.random.default_rng(padding)
    for _ in range(60):
        width, height = rng.integers(20, 120, 2).tolist()
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        right, bottom = int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1))
        mask = Image.new("L", (width, height))
        mask.paste(200, (left, top, right, bottom))
        want = PROCESSOR.get_crop_region(mask, *aspect, pad=padding)
        assert images.mask_region(mask, padding=padding, aspect=aspect[0] / aspect[1]) == want


@pytest.mark.parametrize("target", [(64, 64), (64, 40), (16, 72), (24, 96)])
@pytest.mark.parametrize("size", [(64, 48), (23, 71), (50, 50), (120, 9), (7, 90)])
def test_fill_equals_diffusers_fill(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = picture().resize(size)
    assert same(images.fill(image, target), PROCESSOR.resize(image, target[1], target[0], resize_mode="fill"))
    mask = image.convert("L")
    want = PROCESSOR.resize(mask, target[1], target[0], resize_mode="fill").convert("L")
    assert same(images.fill(mask, target), want)


def test_paste_into_a_box_of_other_proportions_looks_as_diffusers_overlay() -> None:
    original, generated, box = picture(), picture(seed=5).resize((40, 64)), (3, 5, 60, 41)
    mask = Image.new("L", original.size)
    mask.paste(255, (6, 8, 58, 40))
    want = np.asarray(PROCESSOR.apply_overlay(mask, original, generated, box), int)
    got = np.asarray(images.paste(original, generated, mask, box=box), int)
    assert np.abs(got - want).max() <= 2


def test_blur_equals_diffusers_blur_and_radius_0_changes_nothing() -> None:
    mask = ramp_mask()
    assert same(images.blur(mask, 4), PROCESSOR.blur(mask, 4))
    assert same(images.blur(mask, 0), mask)


def test_paste_looks_as_diffusers_overlay() -> None:
    original, generated, mask = picture(), picture(seed=5), images.blur(ramp_mask().point(lambda v: 255 * (v > 99)), 3)
    want = np.asarray(PROCESSOR.apply_overlay(mask, original, generated), int)
    got = np.asarray(images.paste(original, generated, mask), int)
    assert np.abs(got - want).max() <= 2  # it goes by way of premultiplied alpha, which rounds twice


# --- Pasting ---


def test_paste_leaves_every_pixel_outside_the_blurred_mask_bit_identical() -> None:
    original, generated = picture(), picture(seed=9)
    mask = Image.new("L", original.size)
    mask.paste(255, (20, 10, 40, 30))
    mask = images.blur(mask, 2.5)
    weight = np.asarray(mask)
    assert (weight == 0).any() and (weight == 255).any() and ((weight > 0) & (weight < 255)).any()
    got, was, new = (np.asarray(i) for i in (images.paste(original, generated, mask), original, generated))
    np.testing.assert_array_equal(got[weight == 0], was[weight == 0])
    np.testing.assert_array_equal(got[weight == 255], new[weight == 255])
    between = (weight > 0) & (weight < 255)
    exact = was[between] + (new[between].astype(float) - was[between]) * weight[between][:, None] / 255
    assert np.abs(got[between] - exact).max() <= 1


def test_paste_into_a_box_touches_nothing_outside_the_box_or_the_mask() -> None:
    original, mask = picture(), Image.new("L", (64, 48), 255)
    box = (10, 5, 42, 37)
    got = np.asarray(images.paste(original, Image.new("RGB", (64, 64), (1, 2, 3)), mask, box=box))
    inside = np.zeros((48, 64), bool)
    inside[5:37, 10:42] = True
    assert (got[inside] == (1, 2, 3)).all()
    np.testing.assert_array_equal(got[~inside], np.asarray(original)[~inside])


def test_a_black_mask_has_no_region() -> None:
    with pytest.raises(InputError, match=r"\[mask_image\] mask must have a pixel that is not black"):
        images.mask_region(Image.new("L", (8, 8)))


# --- Reading ---


def write(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_files_read_back_exactly(tmp_path: Path, suffix: str) -> None:
    assert same(images.open_image(write(picture(), tmp_path / f"a.{suffix}")), picture())


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_read_back_closely(tmp_path: Path, suffix: str) -> None:
    smooth = picture().resize((640, 480))
    got = np.asarray(images.open_image(write(smooth, tmp_path / f"a.{suffix}", quality=95)), int)
    assert np.abs(got - np.asarray(smooth)).mean() < 4


def chunk(kind: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    check = zlib.crc32(kind + data) if crc is None else crc
    return len(data).to_bytes(4) + kind + data + check.to_bytes(4)


BROKEN_EXIF = b"Exif\0\0II*\0\xff\xff\xff\x7f"  # the directory lies beyond the end
HUGE_TEXT = b"a\0\0" + zlib.compress(bytes(70 << 20))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # PIL's own, which may stay
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [BROKEN_EXIF, b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\xff\xff", b"nonsense", b"\0"])
def test_broken_exif_counts_as_none(tmp_path: Path, kind: str, exif: bytes) -> None:
    whole = write(picture(), tmp_path / f"whole.{kind.lower()}")
    path = write(picture(), tmp_path / f"broken.{kind.lower()}", exif=exif)
    assert same(images.open_image(path), images.open_image(whole))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"eXIf", BROKEN_EXIF[6:]), chunk(b"tEXt", b"a\0b", crc=7), chunk(b"zTXt", HUGE_TEXT),
        chunk(b"iCCP", b"a\0\0not deflated"), chunk(b"iTXt", b"a\0\1\0\0\0nothing"), chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b""), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation='99'"),
    ],
    ids=["exif", "crc", "bomb", "icc", "itxt", "phys", "gama", "xmp"],
)  # fmt: skip
@pytest.mark.parametrize("before", [True, False])
def test_a_png_whose_metadata_is_broken_is_read(tmp_path: Path, broken: bytes, before: bool) -> None:
    path = write(picture(), tmp_path / "a.png")
    data = path.read_bytes()
    at = data.index(b"IDAT" if before else b"IEND") - 4
    path.write_bytes(data[:at] + broken + data[at:])
    assert same(images.open_image(path), picture())


def test_a_png_whose_pixels_are_cut_short_is_still_refused(tmp_path: Path) -> None:
    path = write(picture(), tmp_path / "a.png")
    data = path.read_bytes()
    at = data.index(b"IDAT") - 4
    path.write_bytes((data[:at] + chunk(b"tEXt", b"a\0b", crc=7) + data[at:])[: len(data) // 2])
    with pytest.raises(InputError, match=r"image must be readable") as told:
        images.open_image(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, np.bool_, np.float32])
def test_arrays_of_0_and_1_are_masks_as_in_diffusers(kind: Any) -> None:
    array = np.zeros((48, 64), kind)
    array[10:20, 30:50] = 1
    want = MASK_PROCESSOR.preprocess(array.astype(np.float32), height=48, width=64).numpy()
    np.testing.assert_array_equal(images.mask_array(images.open_mask(array)), want)


def test_a_mask_file_of_0_and_1_is_told_its_greatest_value(tmp_path: Path) -> None:
    path = write(Image.fromarray(np.eye(8, dtype=np.uint8)), tmp_path / "a.png")
    for source in (path, Image.open(path)):
        with pytest.raises(InputError, match=r"\[mask_image\] mask must be white, 255, .*, got 'greatest value is 1'"):
            images.open_mask(source)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(picture(), tmp_path / "a.png", exif=exif)
    upright = np.asarray(picture())
    turns: dict[int, Any] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }  # fmt: skip
    np.testing.assert_array_equal(np.asarray(images.open_image(path)), turns[orientation](upright))


def test_transparency_falls_on_white_for_images_and_on_black_for_masks(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (200, 100, 50, 255)
    rgba[4:6] = (0, 0, 0, 128)
    path = write(Image.fromarray(rgba), tmp_path / "a.png")
    got = np.asarray(images.open_image(path))
    assert got[0, 0].tolist() == [200, 100, 50] and got[7, 0].tolist() == [255] * 3 and got[4, 0].tolist() == [127] * 3
    assert np.asarray(images.open_mask(path))[6:].max() == 0
    white = np.full((8, 8, 4), 255, np.uint8)
    white[4:, :, 3] = 0
    assert np.asarray(images.open_mask(white))[:, 0].tolist() == [255] * 4 + [0] * 4


def test_palette_transparency_falls_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 1)
    path = write(image, tmp_path / "a.gif", transparency=0)
    got = np.asarray(images.open_image(path))
    assert got[0, 0].tolist() == [40, 50, 60] and got[3, 3].tolist() == [255] * 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA", "RGBX"])
def test_other_modes_become_rgb(mode: str) -> None:
    source = picture().convert(mode)
    got = images.open_image(source)
    assert got.mode == "RGB" and same(got, source.convert("RGBA").convert("RGB"))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    path = write(Image.fromarray(deep), tmp_path / "deep.png")
    for source in (path, deep, Image.fromarray(deep.astype(np.int32))):
        got = np.asarray(images.open_image(source))
        np.testing.assert_array_equal(got, np.repeat((deep // 257).astype(np.uint8)[:, :, None], 3, axis=2))


def test_a_32_bit_image_is_8_bit_where_nothing_in_it_exceeds_255(tmp_path: Path) -> None:
    mask = np.array([[0, 255], [128, 1]], np.int32)
    wide = Image.fromarray(mask)
    assert wide.mode == "I"
    for source in (wide, write(wide, tmp_path / "mask.tiff")):
        np.testing.assert_array_equal(np.asarray(images.open_mask(source)), mask)


def test_dark_16_bit_files_stay_dark(tmp_path: Path) -> None:
    dark = Image.fromarray(np.full((2, 2), 255, np.uint16))
    assert dark.mode == "I;16"
    for source in (dark, *(write(dark, tmp_path / f"dark.{suffix}") for suffix in ("png", "tiff", "ppm"))):
        assert np.asarray(images.open_image(source)).max() == 1


@pytest.mark.parametrize("values", [[[0, 70_000]], [[-1, 255]]])
def test_a_32_bit_image_beyond_16_bits_is_refused(values: list[list[int]]) -> None:
    line = refused(Image.fromarray(np.array(values, np.int32)), reader=images.open_mask)
    assert line.startswith("[mask_image] values of a 32-bit image must be from 0 to 65535, got [")


def test_a_float_image_is_refused_not_clipped(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    for source in (grey, write(grey, tmp_path / "a.tiff"), write(grey, tmp_path / "a.pfm", format="PPM")):
        assert "[image] image must have 8 or 16 bits a channel, or be a float array" in refused(source)
    assert np.asarray(images.open_image(np.asarray(grey))).max() == 128


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first = Image.new("RGB", (8, 8), (255, 0, 0))
    path = write(first, tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), (0, 0, 255))])
    assert same(images.open_image(path), first)


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_of_every_layout_are_images(channels: int, dtype: type) -> None:
    shape = (6, 5, channels) if channels else (6, 5)
    bytes_ = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if channels == 4:
        bytes_[..., 3] = 255
    array = bytes_ if dtype is np.uint8 else (bytes_ / 255).astype(dtype)
    want = bytes_[..., :3] if channels >= 3 else np.repeat(bytes_.reshape(6, 5, 1), 3, axis=2)
    np.testing.assert_array_equal(np.asarray(images.open_image(array)), want)


def test_opening_neither_alters_nor_shares_the_callers_image() -> None:
    source = picture()
    source.info["icc_profile"] = b"profile"
    got = images.open_image(source)
    got.putpixel((0, 0), (1, 1, 1))
    assert got.info == {} and source.info and same(source, picture())


def test_bool_masks_are_white_where_true() -> None:
    mask = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(np.asarray(images.open_mask(mask, (4, 4))), mask * 255)


# --- What is refused ---


def refused(*args: Any, reader: Any = images.open_image, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        reader(*args, **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    return line


def png_header_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9000, 12_000, 60_000])
def test_a_gigantic_image_is_refused_by_its_header_alone(tmp_path: Path, side: int) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(png_header_claiming(side, side))  # decoding these few bytes would fail in another way
    line = refused(path)
    assert line.startswith("[image] image must have at most 64000000 pixels, got ") and "big.png" in line


def test_a_warning_that_the_process_made_an_error_is_the_same_refusal(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(png_header_claiming(12_000, 12_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refused(path).startswith("[image] image must have at most 64000000 pixels, got ")


def test_threads_that_open_images_leave_the_process_filters_alone(tmp_path: Path) -> None:
    path, before = write(picture(8, 8), tmp_path / "a.png"), list(warnings.filters)

    def read() -> None:
        for _ in range(100):
            images.open_image(path)

    threads = [threading.Thread(target=read) for _ in range(6)]
    with pytest.warns(UserWarning) as heard:
        for thread in threads:
            thread.start()
        for i in range(100):
            warnings.warn(f"warning {i}", UserWarning, stacklevel=1)
        for thread in threads:
            thread.join()
    assert [str(one.message) for one in heard] == [f"warning {i}" for i in range(100)]
    assert list(warnings.filters) == before


def test_the_limit_counts_for_pil_images_and_arrays_too() -> None:
    assert "at most 100 pixels" in refused(picture(), limit_pixels=100)
    assert "at most 100 pixels" in refused(np.zeros((11, 10), np.uint8), limit_pixels=100)
    assert images.open_image(np.zeros((10, 10), np.uint8), limit_pixels=100).size == (10, 10)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = write(picture(200, 200), tmp_path / f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"cut.{suffix}" in refused(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("seed", range(30))
def test_a_corrupted_file_is_read_or_refused_and_nothing_else(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = write(picture(), tmp_path / ["a.png", "a.jpg", "a.webp", "a.gif", "a.tiff", "a.bmp"][seed % 6])
    data = bytearray(path.read_bytes())
    for at in rng.integers(0, len(data), 12):
        data[at] = rng.integers(0, 256)
    path.write_bytes(data)
    try:
        assert images.open_image(path).mode == "RGB"
    except InputError as error:
        assert path.name in str(error)


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    assert "(No such file or directory), got " in refused(tmp_path / "none.png")
    assert "Is a directory" in refused(tmp_path)
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.write_bytes(b"")
    text.write_text("not a picture")
    assert "empty.png" in refused(empty) and "file must be a PNG, JPEG" in refused(text)
    postscript = tmp_path / "a.eps"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "file must be a PNG, JPEG" in refused(postscript)
    assert refused(12).startswith("[image] ")
    assert refused("bad\0name.png").startswith("[image] ")


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.zeros((4, 4, 2), np.uint8), "array must be [H, W]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "array must be [H, W]"),
        (np.zeros((0, 4), np.uint8), "at least one pixel"),
        (np.zeros((4, 4), np.int64), "array must be uint8, uint16, bool or float"),
        (np.full((4, 4), np.nan, np.float32), "float array must lie in [0, 1]"),
        (np.full((4, 4), -1.0), "float array must lie in [0, 1]"),
        (np.full((4, 4), 1.01), "float array must lie in [0, 1]"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array: np.ndarray, rule: str) -> None:
    assert rule in refused(array)


def test_a_mask_of_another_size_is_refused() -> None:
    line = refused(Image.new("L", (32, 32)), (64, 48), reader=images.open_mask)
    assert line == "[mask_image] mask must have the image's size, 64 x 48, got '32 x 32'"


def test_a_mask_off_the_grid_has_no_latent_mask() -> None:
    assert "multiples of 8" in refused(images.mask_array(Image.new("L", (64, 44))), 8, reader=images.latent_mask)


@pytest.mark.parametrize("radius", [-1, float("nan"), float("inf"), 1e9])
def test_a_blur_out_of_range_is_refused(radius: float) -> None:
    assert "blur radius must be from 0 to 1000" in refused(ramp_mask(), radius, reader=images.blur)


# --- Writing ---


def test_png_text_of_any_script_reads_back(tmp_path: Path) -> None:
    text = {"hotloop": '{"prompt": "粉色头发 😀 café\\n"}', "plain": "a (b:1.2)", "long": "x" * 100_000}
    path = images.save(picture(), tmp_path / "a.png", text=text)
    assert images.read_text(path) == text
    assert same(images.open_image(path), picture())
    assert images.read_text(images.save(picture(), tmp_path / "b.png")) == {}


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_saving_twice_gives_the_same_bytes_and_leaves_no_other_file(tmp_path: Path, suffix: str) -> None:
    paths = [images.save(picture(), tmp_path / f"{i}.{suffix}", text={"k": "v"}) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}.{suffix}" for i in range(2)]


def test_a_source_files_profile_does_not_reach_the_saved_bytes(tmp_path: Path) -> None:
    source = write(picture(), tmp_path / "in.png", icc_profile=b"\0" * 200, dpi=(300, 300))
    assert images.encode(images.open_image(source), "PNG") == images.encode(picture(), "PNG")


def test_a_failed_save_keeps_the_old_file_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images.save(picture(), tmp_path / "a.png")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left on device" in refused(picture(seed=3), path, reader=images.save)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", ["write_bytes", "replace"])
def test_an_interrupted_save_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if at == "replace":
        monkeypatch.setattr("os.replace", interrupt)
    else:
        monkeypatch.setattr(Path, "write_bytes", lambda self, data: (self.touch(), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        images.save(picture(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    assert "must end in .png, .jpg" in refused(picture(), tmp_path / "none" / "a.exe", reader=images.save)
    assert list(tmp_path.iterdir()) == []
    file = images.save(picture(), tmp_path / "a.png")
    assert "image must be writable" in refused(picture(), file / "b.png", reader=images.save)
    assert "image must be writable" in refused(picture(), file / "folder" / "b.png", reader=images.save)
    (tmp_path / "folder.png").mkdir()
    assert "image must be writable" in refused(picture(), tmp_path / "folder.png", reader=images.save)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "folder.png"]


def test_missing_folders_are_made_by_saving(tmp_path: Path) -> None:
    path = images.save(picture(), tmp_path / "new" / "deep" / "a.png")
    assert same(images.open_image(path), picture())


def test_read_text_refuses_what_is_no_png(tmp_path: Path) -> None:
    assert "a.jpg" in refused(images.save(picture(), tmp_path / "a.jpg"), reader=images.read_text)
    big = tmp_path / "big.png"
    big.write_bytes(png_header_claiming(9000, 9000))
    assert "at most" in refused(big, reader=images.read_text)


# --- Layout ---


def test_a_contact_sheet_holds_every_picture_in_reading_order() -> None:
    cells = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(5)]
    sheet = np.asarray(images.contact_sheet(cells, 3, gap=2))
    assert sheet.shape == (18, 28, 3)
    for i in range(5):
        row, column = divmod(i, 3)
        assert (sheet[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8] == i).all()
    assert (sheet[10:, 20:] == 255).all()
    assert images.contact_sheet(cells).size == (32, 20)
    assert "at least one image" in refused([], reader=images.contact_sheet)
    assert "columns must be at least 1" in refused(cells, 0, reader=images.contact_sheet)


def test_the_bytes_of_encode_are_a_file_of_their_kind() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert Image.open(io.BytesIO(images.encode(picture(), kind))).format == kind
