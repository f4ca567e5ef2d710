"""Headless Chromium for the page's tests: found on the PATH, driven through Playwright."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

__all__ = ["WEB", "Page", "chromium", "static_site", "until"]

ROOT = Path(__file__).parents[1]
WEB = ROOT / "runtime" / "hotloop" / "serve" / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser with a fake camera and microphone. Skips where there is none; with CI=true that is a failure, unless
    make tried to install one and could not (it says so above the tests)."""
    missing = None
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is missing: make test installs it"
    if found is None:
        missing = f"no browser: install Chromium ({', '.join(BROWSERS)} are looked for on the PATH)"
    if missing:
        must = os.environ.get("CI") == "true" and not (ROOT / "build" / "no-browser").exists()
        (pytest.fail if must else pytest.skip)(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Page:
    """One page, with what it asked for and what it complained of. Opened at `address`."""

    def __init__(self, browser: Any, address: str, *, path: str = "/", **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.origin = urlsplit(address).netloc
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.goto(address + path)

    def check(self, code: str, given: Any = None) -> Any:
        return self.page.evaluate(code, given)

    def until(self, code: str, seconds: float = 30.0) -> Any:
        """Waits until an expression is true -> its value. The page's rules allow no code from text, so it is asked."""
        return until(lambda: self.check(code), seconds, code)

    def assert_quiet(self) -> None:
        """It spoke to its own origin alone, and nothing went wrong in it."""
        asked = [urlsplit(url) for url in self.asked]
        assert not [url for url in asked if url.scheme not in ("blob", "data") and url.netloc != self.origin]
        assert not self.complaints


def until(check: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return value


class _Static(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        name = path.removeprefix("/static/")
        body = (WEB / name).read_bytes() if path.startswith("/static/") else b"<!doctype html><title>empty</title>"
        kind = "text/javascript" if name.endswith(".js") else "text/html"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def static_site() -> Iterator[str]:
    """The modules below /static/, and an empty page: its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Static)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
