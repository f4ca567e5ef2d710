"""The page in headless Chromium, against the server itself and the built-in model."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from browser import Page, chromium, until
from live_client import Client, Server
from PIL import Image
from test_adapters import write_lora

pytest.importorskip("uvicorn", reason="the extra [live] brings it: make test")

TOKEN = "the-token-of-the-tests-0123456789-abcdef"
# Quick and still: what a frame shows moves with its settings alone.
RESTYLE = ("--mode", "restyle", "--fps", "3", "--steps", "1", "--prompt", "a girl with pink hair", "--threads", "1")
ANIMATE = ("--mode", "animate", "--fps", "5", "--size", "256")


class Hosted:
    """A server with a token, that can be started again on its port."""

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.options = options
        self.start()

    def start(self) -> None:
        options = ("--no-governor", *self.options, "--port", str(self.port))
        self.server = Server(*options, env={"HOTLOOP_TOKEN": TOKEN})
        self.address = self.server.address.rstrip("/")

    def stop(self) -> None:
        self.server.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def stage(browser: Any) -> Iterator[Hosted]:
    """The avatar that controls move."""
    one = Hosted(*ANIMATE)
    yield one
    one.stop()


def open_page(browser: Any, server: Hosted, path: str = "/", *, token: str | None = TOKEN, **context: Any) -> Page:
    # Half the pixels each way: they are painted without a GPU.
    context = {
        "viewport": {"width": 920, "height": 620}, "device_scale_factor": 0.5, "reduced_motion": "reduce", **context,
    }  # fmt: skip
    page = Page(browser, server.address, path=path + ("" if token is None else f"#token={token}"), **context)
    if token is not None:
        page.until("globalThis.hotloop && ((hotloop.drawn ?? 0) > 1 || (hotloop.heard ?? 0) > 1)", 30)
    return page


def check_quiet(page: Page) -> None:
    page.assert_quiet()
    assert not [url for url in page.asked if TOKEN in url]


@pytest.fixture(scope="module")
def moved(browser: Any, stage: Hosted) -> Iterator[Page]:
    """The page of the avatar that controls move."""
    one = open_page(browser, stage, permissions=["microphone"])
    yield one
    check_quiet(one)


@pytest.fixture(scope="class")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """Pictures from words, and a LoRA."""
    folder = tmp_path_factory.mktemp("loras")
    write_lora(folder / "ink <b>.safetensors")
    one = Hosted(*RESTYLE, "--lora-dir", str(folder))
    yield one
    one.stop()


@pytest.fixture(scope="class")
def shared(browser: Any, server: Hosted) -> Page:
    return open_page(browser, server, permissions=["camera", "microphone"])


@pytest.fixture
def page(shared: Page) -> Iterator[Page]:
    """The page, once frames have come. It speaks to its own server alone, and nothing goes wrong in it."""
    yield shared
    check_quiet(shared)


@pytest.fixture(scope="class")
def monitor(browser: Any, stage: Hosted) -> Iterator[Page]:
    one = open_page(browser, stage, "/monitor", viewport={"width": 480, "height": 320})
    yield one
    check_quiet(one)
    one.context.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """open(path) -> one more page, once frames or controls have come."""
    pages: list[Page] = []

    def open_(at: Hosted, path: str = "/", **given: Any) -> Page:
        pages.append(open_page(browser, at, path, **given))
        return pages[-1]

    yield open_
    for one in pages:
        check_quiet(one)
        one.context.close()


PIXELS = """() => {
  const { width, height } = hotloop.painter.canvas;
  return [width, height, btoa(hotloop.painter.read().reduce((out, byte) => out + String.fromCharCode(byte), ""))];
}"""


def controls(server: Hosted) -> dict[str, float]:
    """The session's, as the server tells whoever comes."""
    with Client(server.server.address, token=TOKEN, role="viewer", format="none") as client:
        told: dict[str, float] = client.welcome["controls"]
        return told


PIXELS = """() => {
  const { width, height } = hotloop.painter.canvas;
  return [width, height, btoa(hotloop.painter.read().reduce((out, byte) => out + String.fromCharCode(byte), ""))];
}"""


def picture(page: Page) -> np.ndarray:
    """The canvas: premultiplied uint8 [H, W, 4]."""
    width, height, pixels = page.check(PIXELS)
    return np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)[::-1]


def still(page: Page) -> np.ndarray:
    """The picture once the newest settings are in it and, no dream drifting, it stays."""
    page.until("hotloop.settings.pending.size === 0 && hotloop.frame.version >= hotloop.settings.version")
    begun = page.check("hotloop.drawn")
    page.until(f"hotloop.drawn > {begun + 1}")
    return picture(page).astype(float)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


class TestPicturesFromWords:
    """The page of a session that draws from words and pictures."""

    def test_frames_arrive_and_are_seen(self, page: Page) -> None:
        shown = picture(page)
        assert shown.shape == (64, 64, 4) and (shown[..., 3] == 255).all() and shown[..., :3].std() > 10
        page.until("Number(document.querySelector('#fps').textContent) > 0")
        assert page.check("document.querySelector('#state').dataset.state") == "live"
        assert page.check("document.querySelector('#veil').hidden")

    def test_a_prompt_changes_the_face_and_a_refused_one_says_why(self, page: Page) -> None:
        page.check("hotloop.wire.set({ drift: 0, seed: 7 })")
        page.until("hotloop.settings.known.drift === 0")
        before = still(page)
        version = page.check("hotloop.frame.version")
        assert distance(before, still(page)) < 1, "the picture must stand still, or this proves nothing"
        page.page.fill("#prompt", "an old man with green hair")
        page.page.keyboard.press("Enter")
        page.until(f"hotloop.frame.version > {version}")
        after = still(page)
        assert distance(before, after) > 10
        page.page.fill("#prompt", "x" * 3000)
        page.page.click("#draw")
        page.until("document.querySelector('#told').classList.contains('bad')")
        assert "2000" in page.check("document.querySelector('#told').textContent")
        assert distance(after, still(page)) < 1

    def test_a_lora_is_switched_on_made_weaker_and_off_again(self, page: Page) -> None:
        page.check("hotloop.wire.set({ drift: 0, seed: 7 })")
        page.until("hotloop.settings.known.drift === 0 && hotloop.settings.seen >= hotloop.settings.version")
        plain = picture(page).astype(float)

        def drawn(expected: list[dict[str, Any]]) -> np.ndarray:
            wanted = json.dumps(json.dumps(expected, separators=(",", ":")))
            there = "hotloop.settings.seen >= hotloop.settings.version && !hotloop.settings.pending.size"
            page.until(f"JSON.stringify(hotloop.settings.known.lora) === {wanted} && {there}")
            return picture(page).astype(float)

        assert page.check("document.querySelector('.lora label').textContent") == "ink <b>"
        page.page.locator("#lora-0").check()
        whole = drawn([{"name": "ink <b>", "scale": 1}])
        page.page.locator("#lora-scale-0").fill("0.5")
        half = drawn([{"name": "ink <b>", "scale": 0.5}])
        page.page.locator("#lora-0").uncheck()
        assert np.array_equal(drawn([]), plain)
        assert np.abs(whole - plain).mean() > np.abs(half - plain).mean() > 1
        page.check("hotloop.wire.set({ lora: [{ name: 'nosuch' }] })")
        page.until("document.querySelector('#toasts').textContent.includes('LoRAs that there are')")

    def test_where_no_controls_move_it_an_expression_is_a_word(self, page: Page) -> None:
        page.page.keyboard.press("2")
        page.until("hotloop.settings.known.prompt.endsWith(', angry')")
        page.page.keyboard.press("2")  # the same again: neutral
        page.until("!hotloop.settings.known.prompt.includes('angry')")

    def test_the_camera_is_redrawn(self, page: Page) -> None:
        page.page.click("#tab-input")
        page.page.click("[data-source=camera]")
        page.until("hotloop.strip.stats?.source?.shown > 2", 30)
        page.until("hotloop.source.sent > 3 && hotloop.strip.numbers.p50 > 0")
        assert page.check("!document.querySelector('#preview').hidden && hotloop.strip.stats.dreams === false")
        page.page.click("[data-source=none]")
        page.until("hotloop.strip.stats.dreams")

    def test_films_and_pictures_are_saved(self, page: Page) -> None:
        with page.page.expect_download() as saved:
            page.page.keyboard.press("s")
        image = np.asarray(Image.open(saved.value.path()).convert("RGBA"))
        assert image.shape == (64, 64, 4) and image[..., :3].std() > 10
        page.page.keyboard.press("r")
        page.until("document.querySelector('#rec span').textContent === '0:01'")
        with page.page.expect_download() as saved:
            page.page.click("#record")
        film = saved.value.path().read_bytes()
        assert film[:4] == b"\x1aE\xdf\xa3" and b"\x1f\x43\xb6\x75" in film  # WebM: EBML, and a cluster of frames
        page.until("document.querySelector('#rec').hidden")

    def test_without_the_token_the_page_asks_for_it(self, server: Hosted, opened: Any) -> None:
        page = opened(server, token=None)
        page.until("document.querySelector('#token-dialog').open")
        page.page.fill("#token", TOKEN)
        page.page.keyboard.press("Enter")
        page.until("globalThis.hotloop.drawn > 0")
        page.complaints[:] = [line for line in page.complaints if "401" not in line]  # the browser's own line


NAMELESS = """() => [...document.querySelectorAll("button, input, textarea, select, a, canvas, [role]")].filter(one => {
  const labels = [...(one.labels ?? [])].map((label) => label.textContent).join("");
  const by = document.getElementById(one.getAttribute("aria-labelledby"))?.textContent;
  const said = one.getAttribute("aria-label") || by || labels || one.textContent || one.title;
  return !said.trim() && !one.hasAttribute("aria-hidden") && !["presentation", "alert", "status"].includes(one.role);
}).map((one) => one.outerHTML)"""
FOCUS = """() => {
  const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(document.activeElement);
  return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
}"""


def test_everything_is_reached_and_seen_by_keyboard_alone(stage: Hosted, opened: Any) -> None:
    page = opened(stage)
    assert page.check(NAMELESS) == []
    press = page.page.keyboard.press
    met = []
    for _ in range(40):
        press("Tab")
        met.append(page.check("document.activeElement.id || document.activeElement.dataset.name || ''"))
        seen = "document.activeElement.matches('.switch input')"
        assert page.check(FOCUS) or page.check(seen), f"{met[-1]} is not seen to have the focus"
        if met[-1] == "tab-look":
            break
    assert {"obs", "keys", "theme", "snap", "record", "full"} <= set(met)
    press("ArrowRight")
    assert page.check("document.activeElement.id") == "tab-face"
    assert page.check("!document.querySelector('#panel-face').hidden")
    press("Tab")
    press("Tab")
    assert page.check("document.activeElement.id") == "control-headYaw"
    press("ArrowRight")
    assert page.check("hotloop.face.held.headYaw") > 0
    press("Delete")
    assert page.check("'headYaw' in hotloop.face.held") is False
    press("?")
    assert page.check("document.querySelector('#keys-dialog').open")
    press("Escape")
    assert not page.check("document.querySelector('#keys-dialog').open")
    press("/")
    assert page.check("document.activeElement.id") == "prompt"
    page.page.keyboard.type("1")
    assert page.check("document.activeElement.value").endswith("1") and page.check("hotloop.face.expression") != "happy"
    press("Escape")


WEIGHTS = """Object.fromEntries(["happy", "angry", "cold", "sad", "surprised", "neutral"].map(
  (name) => [name, Number(document.querySelector(`[data-name=${name}] output`).textContent)]))"""
# What idle life moves.
STILL = ("headYaw", "headPitch", "headRoll", "headX", "gazeX", "gazeY", "eyeBlinkLeft", "eyeBlinkRight", "breath")


class TestTheMonitorSees:
    """What the page of an avatar sends, as the monitor shows it."""

    def test_keys_1_to_6_change_the_expression_in_the_next_frames(self, moved: Page, monitor: Page) -> None:
        page = moved
        page.check(f"hotloop.face.put({dict.fromkeys(STILL, 0)})")

        def face() -> np.ndarray:
            """Eyes and mouth, some frames from now."""
            drawn = page.check("hotloop.drawn")
            page.until(f"hotloop.drawn > {drawn + 3}")
            return picture(page)[110:210, 85:171].astype(float)

        shown = {}
        for key, name in enumerate(("happy", "angry", "cold", "sad", "surprised", "neutral"), 1):
            page.page.keyboard.press(str(key))
            monitor.until(f"({WEIGHTS})['{name}'] === 1")
            assert sum(monitor.check(f"({WEIGHTS})").values()) == 1
            assert page.check(f"document.querySelector('#faces [data-name={name}]').ariaChecked") == "true"
            shown[name] = face()
        still = distance(shown["neutral"], face())
        assert min(distance(shown[a], shown[b]) for a in shown for b in shown if a < b) > max(3 * still, 1)

    def test_what_is_let_go_of_lives_by_itself_again(self, moved: Page, monitor: Page) -> None:
        page = moved
        page.page.click("#tab-face")
        held = "document.querySelector('[data-name=headYaw] small').textContent !== 'idle'"
        page.page.fill("#control-headYaw", "20")
        monitor.until(f"{held} && Number(document.querySelector('[data-name=headYaw] output').textContent) > 18")
        page.page.click("#rest")
        monitor.until(f"!({held})")
        assert page.check("Object.keys(hotloop.face.held).length") == 0
        assert not page.check("[...document.querySelectorAll('.toast')].map((one) => one.textContent).join()")

    def test_the_microphone_moves_the_mouth(self, moved: Page, monitor: Page) -> None:
        page = moved
        page.page.click("#tab-input")
        page.page.check("#mic", force=True)
        page.until("document.querySelector('#mic-badge meter').value > 0")
        monitor.until("document.querySelector('[data-name=mouthA] small').textContent !== 'idle'")  # it is held
        page.page.uncheck("#mic", force=True)
        page.until("document.querySelector('#mic-badge').hidden")


@pytest.mark.parametrize(("query", "formats"), [("", [2]), ("?mode=warp", [5])])
def test_the_views_canvas_is_transparent_where_the_avatar_is_not(
    query: str, formats: list[int], stage: Hosted, opened: Any
) -> None:
    """Whether the server draws the frames or the view does, from a scene and fields."""
    page = opened(stage, f"/view{query}", viewport={"width": 360, "height": 256}, device_scale_factor=1)
    assert page.check("hotloop.frame.format") in formats
    shown = picture(page)
    assert shown.shape == (256, 256, 4)
    alpha = shown[..., 3]
    assert not shown[:8, :8].any() and not shown[:8, -8:].any() and (alpha[120:136, 120:136] == 255).all()
    assert 0.2 < (alpha == 0).mean() < 0.7 and ((alpha > 0) & (alpha < 255)).any()
    assert (shown[..., :3] <= alpha[..., None]).all()
    # It is the server's own picture, but for how it breathes and sways.
    with Client(stage.server.address, token=TOKEN, role="viewer", format="rgba-lz4") as client:
        assert distance(shown.astype(float), client.frame().pixels()) < 8
    # The window too: what lies behind the page shows through.
    shot = np.asarray(Image.open(io.BytesIO(page.page.screenshot(omit_background=True))).convert("RGBA"))
    assert not shot[:, :50].any() and not shot[:8, 60:100].any() and (shot[120:136, 172:188, 3] == 255).all()


# WCAG 2.2's contrast of two of the sheet's colours, as the theme has them.
CONTRAST = """(pairs) => {
  const light = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[0-9.]+/g).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    probe.remove();
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return pairs.map(([a, b]) => light(a) / light(b)).map((ratio) => Math.max(ratio, 1 / ratio));
}"""
PAIRS = [
    *((text, ground) for text in ("ink", "soft", "good", "warn", "bad") for ground in ("surface", "sunken")),
    ("ink", "paper"), ("soft", "paper"), ("hot", "surface"), ("hot", "raised"), ("on-hot", "hot"),
]  # fmt: skip


def test_it_fits_a_phone_and_wears_light_and_dark(moved: Page) -> None:
    page = moved
    page.page.set_viewport_size({"width": 390, "height": 800})
    page.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert page.check("document.documentElement.scrollWidth") <= 390
    paper = "getComputedStyle(document.body).backgroundColor"
    dark, contrasts = page.check(paper), page.check(CONTRAST, PAIRS)
    page.page.click("#theme")
    light = page.check(paper)
    contrasts += page.check(CONTRAST, PAIRS)
    assert not {pair: ratio for pair, ratio in zip(PAIRS * 2, contrasts, strict=True) if ratio < 4.5}
    assert max(map(int, dark[4:-1].split(","))) < 60 and min(map(int, light[4:-1].split(","))) > 200
    for tab in ("face", "input", "look"):
        page.page.click(f"#tab-{tab}")
        assert page.check("document.documentElement.scrollWidth") <= 390


def test_it_comes_back_by_itself_when_the_server_was_started_again(moved: Page, stage: Hosted) -> None:
    page = moved
    page.check("hotloop.face.express('sad')")
    stage.stop()
    page.until("document.querySelector('#state').dataset.state === 'lost'")
    stage.start()
    drawn = page.check("hotloop.drawn")
    page.until(f"hotloop.wire.state === 'live' && hotloop.drawn > {drawn}", 30)
    until(lambda: controls(stage)["sad"] == 1, 10, "what the page held is said again")
    page.complaints[:] = [line for line in page.complaints if "ERR_CONNECTION" not in line]  # the browser's own lines
