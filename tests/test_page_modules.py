"""The page's modules, each by itself in headless Chromium: held to LZ4's package, Pillow, float64 and our Python."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from browser import Page, chromium, static_site
from PIL import Image
from test_warp_blend import CASES, ROUNDED, case, exact

from hotloop.live.controls import VISEMES
from hotloop.live.sources.microphone import RATE, Visemes

lz4 = pytest.importorskip("lz4.block", reason="the test extra brings it: make test")

HEADER = struct.Struct("<4sBBHIIIHHQQQQQII")  # docs/live-server.md


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page without anything, of an origin that has the modules below /static/."""
    with chromium() as browser, static_site() as address:
        page = Page(browser, address)
        page.check(HELP)
        yield page
        page.assert_quiet()


# Arrays come as base64 and go back so.
HELP = """async () => {
  const { Painter } = await import("/static/canvas.js");
  globalThis.painter = new Painter(document.createElement("canvas"));
  globalThis.bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  globalThis.text = (array) => {
    const all = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    return btoa(all.reduce((out, byte) => out + String.fromCharCode(byte), ""));
  };
}"""


def told(array: np.ndarray | bytes) -> str:
    return base64.b64encode(array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes()).decode()


def heard(text: str, dtype: Any = np.uint8) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


# --- LZ4 ---

DECODE = """async ([block, size]) => {
  const { decodeBlock } = await import("/static/lz4.js");
  try { return text(decodeBlock(bytes(block), size)); } catch (error) { return error.message; }
}"""


def alphas() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:97, :131] / 64 - 0.9
    disc = np.clip(40 * (0.6 - np.hypot(x, y)), 0, 1)
    return {
        "a soft disc": (255 * disc).astype(np.uint8), "noise": rng.integers(0, 256, 5000).astype(np.uint8),
        "zeros": np.zeros(70_000, np.uint8), "one byte": np.array([7], np.uint8), "nothing": np.zeros(0, np.uint8),
        "a period of 3": np.resize(np.array([1, 2, 3], np.uint8), 9001),
        "long literals": np.concatenate([rng.integers(0, 256, 700), np.zeros(300), rng.integers(0, 256, 280)]).astype(
            np.uint8
        ),
    }  # fmt: skip


def test_what_the_lz4_package_packs_is_unpacked(page: Page) -> None:
    for name, array in alphas().items():
        for mode in ("default", "high_compression"):
            block = lz4.compress(array.tobytes(), mode=mode, store_size=False)
            got = heard(page.check(DECODE, [told(block), array.size]))
            assert np.array_equal(got, array.ravel()), (name, mode)


def test_broken_blocks_are_refused(page: Page) -> None:
    whole = alphas()["a soft disc"]
    block = lz4.compress(whole.tobytes(), store_size=False)
    for broken, size in (
        (block[:-3], whole.size), (block, whole.size - 1), (block, whole.size + 1), (b"\x10a\x05\x00", 6),
        (b"\x10a\x00\x00", 6), (b"\xf0", 20), (b"\x1fa\x01", 30),
    ):  # fmt: skip
        assert page.check(DECODE, [told(broken), size]).startswith("[lz4] "), (broken[:4], size)


# --- Frames ---


def frame(
    kind: int, size: tuple[int, int], colour: bytes, alpha: bytes = b"", times: tuple[int, ...] = (0,) * 5
) -> bytes:
    head = HEADER.pack(b"HLF1", kind, int(kind > 1), HEADER.size, 5, 6, 7, *size, *times, len(colour), len(alpha))
    return head + colour + alpha


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


PAINT = """async (message) => {
  const { parseFrame } = await import("/static/wire.js");
  const drawn = await painter.paint(parseFrame(bytes(message).buffer));
  return [drawn, painter.canvas.width, painter.canvas.height, text(painter.read())];
}"""


def painted(page: Page, message: bytes) -> np.ndarray:
    """What the canvas holds: premultiplied uint8 [H, W, 4], the first row first."""
    drawn, width, height, pixels = page.check(PAINT, told(message))
    assert drawn
    return heard(pixels).reshape(height, width, 4)[::-1]


def test_a_jpeg_is_drawn_as_pillow_reads_it(page: Page) -> None:
    y, x = np.mgrid[:48, :80]
    data = jpeg(np.stack([3 * x, 5 * y, 255 - 3 * x], -1).clip(0, 255).astype(np.uint8))
    got = painted(page, frame(1, (80, 48), data))
    known = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert (got[..., 3] == 255).all()
    assert np.abs(got[..., :3] - known).max() <= 4  # two decoders: their transforms and colour differ by rounding
    assert np.abs(got[..., :3] - known).mean() < 0.6


def test_colour_and_alpha_are_joined_and_nothing_shines_where_nothing_is(page: Page) -> None:
    alpha = alphas()["a soft disc"]
    colour = np.stack([alpha, alpha // 2, alpha // 3], -1)  # premultiplied
    data = jpeg(colour)
    got = painted(page, frame(2, alpha.shape[::-1], data, lz4.compress(alpha.tobytes(), store_size=False)))
    assert np.array_equal(got[..., 3], alpha)
    assert (got[..., :3] <= got[..., 3:]).all() and not got[alpha == 0].any()
    known = np.minimum(np.asarray(Image.open(io.BytesIO(data))), alpha[..., None]).astype(int)
    assert np.abs(got[..., :3] - known).mean() < 0.6
    assert (np.asarray(Image.open(io.BytesIO(data)))[alpha == 0] > 0).any(), "this JPEG has no ripples to take away"


def test_raw_pixels_come_through_bit_for_bit(page: Page) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (31, 17, 4)).astype(np.uint8)
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    got = painted(page, frame(3, (17, 31), lz4.compress(pixels.tobytes(), store_size=False)))
    assert np.array_equal(got, pixels)


PARSE = """async (message) => {
  const { parseFrame, packPicture } = await import("/static/wire.js");
  try {
    const { colour, alpha, ...rest } = parseFrame(bytes(message).buffer);
    return { ...rest, colour: text(colour), alpha: text(alpha), picture: text(packPicture(9, 12.5, bytes("YWJj"))) };
  } catch (error) { return error.message; }
}"""


def test_headers_are_read_and_written_as_the_wire_says(page: Page) -> None:
    times = (1_000_000, 2_500_000, 0, 3_000_001, 2**52)
    got = page.check(PARSE, told(frame(2, (640, 480), b"colour", b"alpha", times)))
    expected = {
        "format": 2, "transparent": True, "id": 5, "source": 6, "version": 7, "width": 640,
        "height": 480, "captured": 1000, "received": 2500, "taken": None, "made": 3000.001, "encoded": 2**52 / 1000,
    }  # fmt: skip
    assert {name: got[name] for name in expected} == expected
    assert (heard(got["colour"]).tobytes(), heard(got["alpha"]).tobytes()) == (b"colour", b"alpha")
    assert heard(got["picture"]).tobytes() == struct.pack("<4sIdII", b"HLS1", 9, 12.5, 3, 0) + b"abc"
    whole = frame(1, (8, 8), b"colour")
    for broken in (whole[:-1], whole + b"x", whole[:50], b"HLF2" + whole[4:], b""):
        assert page.check(PARSE, told(broken)).startswith("[wire] "), broken[:8]


# --- warp_blend ---


def scene(sources: list[np.ndarray]) -> bytes:
    """The payload that warp.js describes."""
    blocks = [lz4.compress(np.ascontiguousarray(one).tobytes(), store_size=False) for one in sources]
    table = [struct.pack("<HHI", one.shape[1], one.shape[0], len(b)) for one, b in zip(sources, blocks, strict=True)]
    return b"".join([struct.pack("<I", len(sources)), *table, *blocks])


def fields(layers: list[np.ndarray], boxes: np.ndarray, dtype: str, number: int) -> bytes:
    numbers = b"".join(layer.astype(dtype).tobytes() for layer in layers)
    table = [struct.pack("<4f2H", *box, one.shape[2], one.shape[1]) for one, box in zip(layers, boxes, strict=True)]
    head = struct.pack("<4H2I", len(layers), len(layers[0]), np.dtype(dtype).itemsize, 0, len(numbers), number)
    return b"".join([head, *table, lz4.compress(numbers, store_size=False)])


WARP = """async ([scene, fields]) => {
  const { parseFrame } = await import("/static/wire.js");
  painter.asked = async () => bytes(scene);
  painter.scene = null;
  const drawn = await painter.paint(parseFrame(bytes(fields).buffer));
  return drawn && text(painter.read());
}"""


def warped(
    page: Page, sources: list[np.ndarray], layers: list[np.ndarray], boxes: np.ndarray, size: Any, dtype: str
) -> np.ndarray:
    message = frame(5, size[::-1], fields(layers, boxes, dtype, 3))
    return heard(page.check(WARP, [told(scene(sources)), told(message)])).reshape(*size, 4)[::-1]


@pytest.mark.parametrize(("name", "dtype"), [*((name, "<f4") for name in CASES), ("reduced", "<f2"), ("one", "<f2")])
def test_warp_blend_in_the_browser_is_its_definition_in_float64_rounded(page: Page, name: str, dtype: str) -> None:
    sources, whole, keywords = case(name)
    size, parts = keywords["size"], keywords["parts"]
    boxes = np.float32(keywords["boxes"]).reshape(-1, 4)
    layers = [layer.astype(dtype).astype(np.float32) for layer in (whole, *parts)]
    got = warped(page, sources, layers, np.concatenate([np.float32([[0, 0, 1, 1]]), boxes]), size, dtype)
    known = exact(sources, layers[0], parts=layers[1:], boxes=boxes.astype(np.float64), size=size)
    assert np.abs(got - known).max() <= ROUNDED


def test_without_flow_and_mask_the_keyframe_comes_through_and_nonsense_shows_nothing(page: Page) -> None:
    (key, reveal), _, _ = case("two of the frame's size")
    still = np.zeros((5, 4, 4), np.float32)
    assert np.array_equal(warped(page, [key, reveal], [still], np.float32([[0, 0, 1, 1]]), (40, 40), "<f4"), key)
    still[0], still[4] = np.nan, np.nan
    assert not warped(page, [key, reveal], [still], np.float32([[0, 0, 1, 1]]), (40, 40), "<f4").any()


# --- Visemes ---

LISTEN = """async (pcm) => {
  const { Visemes } = await import("/static/visemes.js");
  const samples = new Float32Array(bytes(pcm).buffer);
  const visemes = new Visemes();
  const told = [];
  for (let i = 0; i + 160 <= samples.length; i += 160) {
    told.push([...Object.values(visemes.feed([...samples.subarray(i, i + 160)])), visemes.silence]);
  }
  return told;
}"""


def test_the_browser_hears_what_the_server_would(page: Page) -> None:
    rng, t = np.random.default_rng(2), np.arange(RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 25)) * (0.2 + 0.2 * np.sin(9 * t))
    sound = np.float32(0.2 * voice * (t > 0.2) * (t < 0.8) + 0.002 * rng.standard_normal(RATE))
    got = page.check(LISTEN, told(sound))
    ours = Visemes()
    known = []
    for i in range(0, RATE, 160):
        weights = ours.feed(sound[i : i + 160])
        known.append([*(weights[name] for name in VISEMES), ours.silence])
    assert np.abs(np.array(got) - known).max() < 1e-9
    assert max(row[-1] for row in known) > 0.9 and min(row[-1] for row in known) < 0.1  # both were heard
