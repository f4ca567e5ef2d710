"""A picture of one's own as the avatar: what the server makes of it, and the page that asks for its ten points."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import portraits
import pytest
from browser import Page, chromium
from live_client import Client, Server, get
from PIL import ExifTags, Image

from hotloop.errors import InputError
from hotloop.live.animation import POINTS, builtin_keyframe, keyframe_from
from hotloop.live.animation.guessing import guess
from hotloop.live.animation.opening import guessed

pytest.importorskip("fastapi", reason="the extra [live] brings it: make test")
from hotloop.serve.animating import Animate
from hotloop.serve.shows import Opening


def file_of(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **more)
    return data.getvalue()


def served(cache: Path, *options: str, **env: str) -> Server:
    """Without the tracker's networks, wherever this runs."""
    return Server("--no-governor", "--fps", "4", "--size", "256", *options, env={"XDG_CACHE_HOME": str(cache)} | env)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = served(tmp_path_factory.mktemp("cache"))
    yield one
    assert one.end() == (0, "")


def bring(client: Client, told: Any, data: bytes = b"") -> dict[str, Any]:
    number = time.monotonic_ns() % 2**31
    text = json.dumps(told).encode()
    client.socket.send(struct.pack("<4sIII", b"HLA1", number, len(text), len(data)) + text + data)
    return client.until("avatar", "error", id=number)


def scene(address: str, client: Client) -> np.ndarray:
    """What the session's newest frame moves: uint8 [S, S, 4], once no transition is drawn."""
    data = b""
    while not data:
        if (frame := client.frame()).kind != 5:
            continue
        number = struct.unpack_from("<HHHHII", frame.colour)[5]
        query = f"session={client.welcome['session']}&number={number}"
        with suppress(urllib.error.HTTPError):  # of a worker that is no more: the next frame names another
            data = urllib.request.urlopen(f"{address}api/live/scene?{query}").read()
    count, width, height, size = struct.unpack_from("<IHHI", data)
    begin = 4 + 8 * count
    return np.frombuffer(
        lz4.block.decompress(data[begin : begin + size], uncompressed_size=4 * width * height), np.uint8
    ).reshape(height, width, 4)


def settled(address: str, client: Client, wanted: np.ndarray) -> None:
    end = time.monotonic() + 20
    while not np.array_equal(scene(address, client), wanted):
        assert time.monotonic() < end


# Guesses.


def test_from_the_eyes_the_rest_of_a_drawn_and_of_a_painted_face_is_found() -> None:
    """Against points that were placed by hand; distances in shares of that between the eyes."""
    for picture, truth in ((portraits.cat(256), portraits.CAT), (portraits.painted(256), portraits.PAINTED)):
        found, size = guessed(picture, eyes=np.array([truth["eyeRight"], truth["eyeLeft"]]))
        assert size == (256, 256) and found.by == "given" and tuple(found.points) == POINTS
        apart = truth["eyeLeft"][0] - truth["eyeRight"][0]
        for name, at in truth.items():
            far = float(np.hypot(*(np.array(found.points[name]) - at))) / apart
            assert far <= (0.001 if name in ("eyeLeft", "eyeRight") else 0.6 if name == "headCentre" else 0.35), name


def test_every_guess_makes_a_face_whatever_the_picture_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there is something to move."""
    monkeypatch.setattr("hotloop.live.animation.guessing._mesh", lambda: None)
    rng = np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (64, 64, 4)).astype(np.uint8), np.zeros((64, 64, 4), np.uint8),
                np.full((64, 64, 4), 255, np.uint8)]  # fmt: skip
    pictures += [np.asarray(portraits.cat(w).resize((w, h))) for w, h in ((64, 300), (300, 64))]
    for picture in pictures:
        found, _ = guessed(picture)
        assert found.by == "middle"
        keyframe_from(picture, points=found.points, side=64)
    mio = guess(builtin_keyframe().rgba)
    assert mio.by == "middle" and all(0 <= v <= 1 for at in mio.points.values() for v in at)


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_exif_turns_alpha_with_the_colours(turn: int, tmp_path: Path) -> None:
    """An orientation in the file against the same pixels turned beforehand by Pillow."""
    upright = portraits.cat(96).crop((0, 0, 96, 70))
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[turn]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    upright.transpose(back).save(tmp_path / "turned.png", exif=exif)
    made, truth = (keyframe_from(one, points=portraits.CAT, side=64) for one in (tmp_path / "turned.png", upright))
    assert np.array_equal(made.rgba, truth.rgba) and 0 < (made.rgba[..., 3] == 0).mean() < 1


# The server.


def test_what_a_client_brings_is_shown_as_the_command_line_shows_it(server: Server) -> None:
    data = file_of(portraits.cat(200))
    with (
        Client(server.address, session="new", format="warp") as client,
        Client(server.address, session=client.welcome["session"], role="viewer", format="none") as viewer,
    ):
        told = bring(client, {"name": "cat"}, data)["avatar"]
        assert told["by"] == "middle" and told["size"] == [200, 200] and set(told["points"]) == set(POINTS)
        assert bring(client, {"eyes": [[0.363, 0.435], [0.637, 0.435]]})["avatar"]["by"] == "given"
        assert bring(client, {"name": "cat", "points": portraits.CAT})["avatar"] == {"shown": "cat"}
        settled(server.address, client, keyframe_from(Image.open(io.BytesIO(data)), points=portraits.CAT).rgba)
        assert "only an owner may bring an avatar" in bring_refused(viewer, data)
        assert viewer.until("event", event="keyframe")["name"] == "cat"


def bring_refused(client: Client, data: bytes) -> str:
    client.socket.send(struct.pack("<4sIII", b"HLA1", 7, 2, len(data)) + b"{}" + data)
    return client.until("error")["error"]


def test_what_is_no_avatar_is_answered_in_one_line_and_nothing_changes(server: Server) -> None:
    fine, points = file_of(portraits.cat(64)), portraits.CAT
    huge = file_of(Image.new("L", (2400, 2000)))
    with Client(server.address, session="new", format="warp") as client:
        before = scene(server.address, client)
        for told, data, words in (
            ({"points": points}, b"", "first message must have the picture"),
            ({"points": points}, b"GIF89a" + bytes(20), "readable PNG, JPEG, WEBP"),
            ({"points": points}, fine[:200], "readable PNG, JPEG, WEBP"),
            ({"points": points}, huge, "at most 4000000 pixels"),
            ({}, file_of(Image.new("L", (31, 400))), "32 pixels a side at least"),
            ({}, bytes(2_000_001), "at most 2000000 bytes"),
            ({"points": points | {"chin": [0.5, 0.1]}}, fine, "mouth must lie between eyes and chin"),
            ({"points": {"chin": [0.5, 0.1]}}, fine, "missing"),
            ({"points": points | {"chin": [0.5, 1e999]}}, fine, "shares of the picture in 0..1"),
            ({"points": []}, fine, "must be an object"),
            ({"eyes": [[0.6, 0.4], [0.4, 0.4]]}, fine, "right eye must lie to the left"),
            ({"eyes": [[0.6, "x"], [0.4, 0.4]]}, fine, "eyes must be two of"),
            ({"name": "a\nb"}, fine, "name must be printable"),
            ({"picture": 1}, fine, "has points, eyes and name"),
            ([], fine, "must be a JSON object"),
            ({"name": "x" * 5000}, fine, "JSON must have at most"),
        ):
            line = bring(client, told, data)["error"]
            assert words in line and "\n" not in line, (told, line)
        client.socket.send(b"HLA1\x01\x00\x00\x00")
        assert "must have its header" in client.until("error", id=1)["error"]
        assert np.array_equal(scene(server.address, client), before)


@pytest.mark.long
def test_a_killed_worker_does_not_lose_what_was_brought(server: Server) -> None:
    with Client(server.address, session="new", format="warp") as client:
        bring(client, {"points": portraits.PAINTED}, file_of(portraits.painted(128)))
        truth = keyframe_from(portraits.painted(128), points=portraits.PAINTED).rgba
        settled(server.address, client, truth)
        os.kill(client.ask(stats=1)["stats"]["worker"]["pid"], 9)
        client.until("event", event="worker", state="resumed")
        settled(server.address, client, truth)


# The page.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


def opened(browser: Any, server: Server, **context: Any) -> Page:
    context = {"viewport": {"width": 1000, "height": 640}, "reduced_motion": "reduce", **context}
    page = Page(browser, server.address.rstrip("/"), accept_downloads=True, **context)
    page.until("globalThis.hotloop && hotloop.drawn > 1")
    return page


def choose(page: Page, name: str, data: bytes) -> None:
    kind = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}.get(name.rsplit(".", 1)[1], "text/plain")
    page.page.set_input_files("#own-file", [{"name": name, "mimeType": kind, "buffer": data}])


def points(page: Page) -> dict[str, list[float]]:
    told: dict[str, list[float]] = page.check("hotloop.points.board.points")
    return told


def spot(page: Page, at: tuple[float, float], size: int) -> tuple[float, float]:
    """A place of a square picture that is seen whole, on the screen."""
    box = page.page.locator("#points-board").bounding_box()
    side = min(box["width"], box["height"])
    return tuple(box[k] + (box[w] - side) / 2 + v * side for k, w, v in zip("xy", ("width", "height"), at, strict=True))


def saved(page: Page) -> dict[str, bytes]:
    files = {}
    told = page.page.expect_download(lambda one: one.suggested_filename == "points.json")
    with page.page.expect_download() as first, told as second:
        page.page.click("#points-save")
    for download in (first.value, second.value):
        files[download.suggested_filename] = Path(download.path()).read_bytes()
    return files


def test_by_mouse_a_drawn_cat_becomes_the_avatar(browser: Any, server: Server) -> None:
    """Eyes are clicked, others dragged; it is seen before it is taken; what is saved makes the same again."""
    page, data = opened(browser, server), file_of(portraits.cat(300))
    mouse = page.page.mouse
    page.page.click("#own")
    choose(page, "tom.cat.png", data)
    page.until("hotloop.points.board.points && hotloop.points.shown > 0")
    assert "Show the eyes" in page.check("document.querySelector('#points-lead').textContent")
    page.page.click("#points-whole")
    page.page.click("#points-eyes")
    for name in ("eyeLeft", "eyeRight"):  # in whatever order
        mouse.click(*spot(page, portraits.CAT[name], 300))
    page.until("document.querySelector('#points-lead').textContent.startsWith('The rest')")
    page.page.click("#points-whole")
    for name in ("mouthRight", "mouthLeft", "chin", "lidUpperRight"):
        mouse.move(*spot(page, tuple(points(page)[name]), 300))
        mouse.down()
        mouse.move(*spot(page, portraits.CAT[name], 300), steps=2)
        assert not page.check("document.querySelector('.glass').hidden")
        mouse.up()
    placed = points(page)
    for name in ("eyeLeft", "eyeRight", "mouthRight", "mouthLeft", "chin", "lidUpperRight"):
        np.testing.assert_allclose(placed[name], portraits.CAT[name], atol=0.006)
    page.until("!hotloop.points.busy")
    files = saved(page)
    assert list(files) == ["tom.cat.png", "points.json"] and files["tom.cat.png"] == data
    page.page.click("#points-take")
    page.until("!document.querySelector('#points-dialog').open")
    truth = keyframe_from(Image.open(io.BytesIO(data)), points=json.loads(files["points.json"]))
    with Client(server.address, role="viewer", format="warp") as client:
        settled(server.address, client, truth.rgba)
    page.assert_quiet()
    page.context.close()


def test_by_keyboard_a_painting_becomes_the_avatar(browser: Any, server: Server) -> None:
    """No mouse at all: Tab goes from point to point, each says its name, arrows move it and its lids along; another
    pose is seen; a picture that is none is answered in one line, and Escape leaves."""
    page = opened(browser, server, color_scheme="dark")
    keyboard = page.page.keyboard
    keyboard.press("a")
    page.until("document.querySelector('#points-dialog').open")
    choose(page, "note.txt", b"no picture")
    page.until("document.querySelector('#points-line').textContent.includes('no picture that can be read')")
    choose(page, "old master.jpg", file_of(portraits.painted(320), "JPEG", quality=90))
    page.until("hotloop.points.board.points && hotloop.points.shown > 0")
    named, before = [], points(page)
    for _ in range(24):
        keyboard.press("Tab")
        told = page.check("[document.activeElement.dataset.point, document.activeElement.ariaLabel]")
        if told[0]:
            named.append(told)
        if told[0] == "eyeLeft":
            for _ in range(3):
                keyboard.press("Shift+ArrowRight")
            keyboard.press("ArrowUp")
        if len(named) == len(POINTS):
            break
    assert {name for name, _ in named} == set(POINTS) and all(label for _, label in named)
    after = points(page)
    for name in ("eyeLeft", "lidUpperLeft", "lidLowerLeft"):
        dx, dy = np.subtract(after[name], before[name])
        assert dx > 0.02 and -0.01 < dy < 0 and dx / -dy == pytest.approx(30, rel=0.02)
    assert all(after[name] == before[name] for name in POINTS if "Left" not in name or "mouth" in name)
    page.until("document.querySelector('.board .sr').textContent.startsWith('Left eye: ')")
    page.page.focus("[data-pose=rest]")
    keyboard.press("ArrowRight")
    assert page.check("hotloop.points.pose") == "blink"
    session = page.check("hotloop.points.seen.session")
    with Client(server.address, session=session, role="viewer", format="none") as seen:
        assert seen.welcome["controls"]["eyeBlinkLeft"] > 0.9
    page.until("!hotloop.points.busy && !hotloop.points.again")
    keyboard.press("Escape")
    page.until("!document.querySelector('#points-dialog').open && hotloop.points.seen === null")
    page.assert_quiet()
    page.context.close()


def test_a_picture_too_large_for_the_server_is_made_smaller_and_fits_a_phone(browser: Any, server: Server) -> None:
    page = opened(browser, server, viewport={"width": 390, "height": 760}, has_touch=True, is_mobile=True)
    page.page.tap("#own")
    page.page.wait_for_selector("#points-drop")
    rng = np.random.default_rng(1)
    noisy = Image.fromarray(rng.integers(0, 255, (2200, 1100, 3), np.uint8))
    choose(page, "large.jpg", file_of(noisy, "JPEG", quality=95))
    page.until("hotloop.points.board.points", 60)
    assert page.check("hotloop.points.sent.size") <= 2_000_000
    assert page.check("hotloop.points.board.picture.width / hotloop.points.board.picture.height") == 0.5
    wide = page.check("document.scrollingElement.scrollWidth")
    boxes = [page.page.locator(f"#{name}").bounding_box() for name in ("points-board", "points-take", "points-preview")]
    assert wide <= 390 and all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes[:2])
    assert boxes[1]["y"] + boxes[1]["height"] <= 760
    before = points(page)["chin"]
    x, y = (page.check("hotloop.points.board.handles.find(one => one.dataset.point === 'chin').getBoundingClientRect()."
                       + k) + 18 for k in ("x", "y"))  # fmt: skip
    page.page.evaluate(TOUCH, [x, y, x, y - 30])
    assert points(page)["chin"][1] < before[1] - 0.01
    page.assert_quiet()
    page.context.close()


TOUCH = """([x0, y0, x1, y1]) => {
  const board = document.querySelector("#points-board");
  const say = (name, x, y) => document.elementFromPoint(x0, y0).dispatchEvent(new PointerEvent(name, {
    pointerId: 1, pointerType: "touch", isPrimary: true, bubbles: true, clientX: x, clientY: y }));
  board.setPointerCapture = () => {};
  say("pointerdown", x0, y0), say("pointermove", x1, y1), say("pointerup", x1, y1);
}"""


def test_a_server_whose_avatar_is_not_known_asks_on_the_page(browser: Any, tmp_path: Path) -> None:
    portraits.cat(160).save(tmp_path / "Tom.png")
    server = served(tmp_path / "cache", "--avatar", str(tmp_path / "Tom.png"))
    try:
        page = opened(browser, server)
        page.until("hotloop.points.board.points && hotloop.points.name === 'Tom'")
        with urllib.request.urlopen(f"{server.address}api/live/avatar") as answer:
            assert answer.read() == (tmp_path / "Tom.png").read_bytes()
        page.page.click("#points-take")
        page.until("!document.querySelector('#points-dialog').open")
        assert get(server.address, "api/live/avatar")[0] == 404
        page.assert_quiet()
        page.context.close()
    finally:
        status, said = server.end()
    assert status == 0 and "give its ten points" in said and "the page asks for them" in said


def test_with_masks_of_parts_it_still_ends_in_one_line(tmp_path: Path) -> None:
    portraits.cat(64).save(tmp_path / "Tom.png")
    (tmp_path / "parts").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "parts" / "front.png")
    opening = Opening("main", 60.0, False, {})
    with ThreadPoolExecutor(1) as background, pytest.raises(InputError, match="ten points in a JSON file"):
        Animate(opening, print, tmp_path / "Tom.png", background=background, painter=None, parts=tmp_path / "parts")
