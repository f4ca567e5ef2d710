"""Hostile input to `hotloop serve`: who may ask, what files and values may be, what it opens, what it lets out."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serve_client import Answer, Server

import hotloop

pytest.importorskip("fastapi", reason="the extra [serve]")

TOKEN = "a-token-of-more-than-thirty-two-characters"
# Python's own witness of what the processes of a server open, connect to and import: a line for each.
WITNESS = """
import os, sys
_file = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_kinds = {"open", "import", "socket.connect", "pickle.find_class", "os.listdir", "os.scandir", "subprocess.Popen"}
def _hook(event, args):
    if event in _kinds:
        told = args[0] if event != "socket.connect" else args[1]
        os.write(_file, f"{os.getpid()}\\t{event}\\t{told!s}\\n".encode(errors="replace"))
sys.addaudithook(_hook)
"""
LEAKS = re.compile(
    rb"0x[0-9a-f]{6,}|/(?:home|root|usr|tmp|work|etc|proc|opt)/|site-packages|Traceback|File \"|\.py\b|"
    + TOKEN.encode()
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the real engine, a LoRA folder and a witness in every process."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "sitecustomize.py").write_text(WITNESS)
    (folder / "loras").mkdir()
    (folder / "loras" / "known.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WITNESS", str(folder / "witness"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        with Server(folder, row=None, lanes=2, loras=[str(folder / "loras")]) as server:
            yield server


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("stub"), row=0.0, lanes=4, queue=100) as server:
        yield server


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    """Every refusal's body of this file's tests, and every list's: the last test reads them."""
    return []


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def form(files: dict[str, bytes], **texts: str) -> tuple[bytes, dict[str, str]]:
    head = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = [head.format(name, "").encode() + text.encode() for name, text in {"prompt": "a", **texts}.items()]
    parts += [head.format(name, '; filename="upload"').encode() + data for name, data in files.items()]
    return b"\r\n".join([*parts, b"--b--\r\n"]), {"content_type": "multipart/form-data; boundary=b"}


# S1: who may ask.


def test_every_route_but_health_wants_the_token(tmp_path: Path) -> None:
    with Server(tmp_path, token=TOKEN, failures=80) as server:
        said = {"authorization": f"Bearer {TOKEN}"}
        paths = server.get("/openapi.json", **said).json["paths"]
        routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        assert len(routes) > 40 and ("GET", "/metrics") in routes
        basic = base64.b64encode(f"user:{TOKEN}".encode()).decode()
        for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/")]:
            answer = server.ask(method, re.sub(r"\{\w+\}", "x", path), b"" if method == "POST" else None)
            assert answer.status == (200 if path == "/healthz" else 401), path
            if answer.status == 401:
                shape = ["error", "detail", "body", "errors"] if path.startswith("/sdapi") else ["error"]
                assert path.startswith("/hf/") or list(answer.json) == shape
        for header, status in ((f"Basic {basic}", 200), (f"Bearer {TOKEN}", 200)):
            assert server.get("/v1/models", authorization=header).status == status
        for host, origin, status in (
            ("evil.example", None, 403), ("127.0.0.1", "https://evil.example", 403), ("localhost", None, 200),
            ("127.0.0.1@evil.example", None, 403), ("127.0.0.1.evil.example", None, 403),
        ):  # fmt: skip
            more = {} if origin is None else {"origin": origin}
            assert server.get("/v1/models", host=host, **said, **more).status == status
        wrong = [server.get("/v1/models", authorization=f"Bearer {'x' * 40}").status for _ in range(100)]
        assert set(wrong) == {401, 429} and wrong[-1] == 429
        time.sleep(0.1)
        assert TOKEN not in server.err.read_text()


def test_an_open_address_without_a_token_is_refused() -> None:
    from hotloop.errors import InputError
    from hotloop.serve.images.settings import gathered

    with pytest.raises(InputError, match="needs a token"):
        gathered({"host": "0.0.0.0"}, {})
    with pytest.raises(InputError, match="at least 32"):
        gathered({"host": "0.0.0.0", "token": "short"}, {})
    assert gathered({"host": "0.0.0.0", "insecure": True}, {}).host == "0.0.0.0"


# B3: pictures and masks.


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels of one colour, whose file is small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), bytes(1 + 3 * side)
    data = b"".join(packer.compress(rows) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_picture_too_large_is_refused_by_its_header(stub: Server, bodies: list[bytes]) -> None:
    data = bomb(12_000)
    assert len(data) < 1_000_000

    def resident() -> int:
        return int(Path(f"/proc/{stub.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    body, kind = form({"image": data})
    stub.ask("POST", "/v1/images/edits", body, **kind)
    before, times = resident(), []
    for _ in range(5):
        answer = stub.ask("POST", "/v1/images/edits", body, **kind)
        times.append(answer.seconds)
        assert answer.status == 400 and answer.json["error"]["code"] == "invalid_picture"
        bodies.append(answer.body)
    assert min(times) < 0.05 and resident() - before < 10e6


def test_files_that_are_no_picture_are_refused_and_odd_ones_read(stub: Server, bodies: list[bytes]) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
    whole = png(noise)
    jpeg, webp, gif, tiff = (io.BytesIO() for _ in range(4))
    noise.save(jpeg, "JPEG")
    noise.save(webp, "WEBP")
    noise.save(gif, "GIF")
    noise.save(tiff, "TIFF")
    moving = io.BytesIO()
    noise.save(moving, "WEBP", save_all=True, append_images=[noise.rotate(90)])
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        "png": whole, "jpeg": jpeg.getvalue(), "webp": webp.getvalue(), "grey": png(noise.convert("L")),
        "palette": png(noise.convert("P")), "alpha": png(noise.convert("RGBA")),
        "16 bit": png(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))),
        "exif": png(noise, exif=turned),
    }  # fmt: skip
    bad = {
        "gif": gif.getvalue(), "tiff": tiff.getvalue(), "animated": moving.getvalue(), "nothing": b"", "text": b"hello",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "psd": b"8BPS\0\1" + bytes(100),
        "pickle": b"\x80\x04\x95" + bytes(64), "zip": b"PK\x03\x04" + bytes(64), "mp4": b"\0\0\0\x18ftypmp42",
        "1 x 100000": png(Image.new("L", (1, 100_000))) + b"", "header alone": whole[:33],
    }  # fmt: skip
    bad |= {f"cut at {share}": whole[: len(whole) * share // 100] for share in range(2, 97, 5)}
    bad |= {f"jpeg cut at {share}": jpeg.getvalue()[: len(jpeg.getvalue()) * share // 100] for share in (10, 50, 90)}
    for name, data in good.items():
        body, kind = form({"image": data})
        assert stub.ask("POST", "/v1/images/edits", body, **kind).status == 200, name
        told = {"prompt": "a", "init_images": ["data:image/png;base64," + base64.b64encode(data).decode()]}
        assert stub.post("/sdapi/v1/img2img", told).status == 200, name
    for name, data in bad.items():
        body, kind = form({"image": data})
        answer = stub.ask("POST", "/v1/images/edits", body, **kind)
        other = stub.post("/sdapi/v1/img2img", {"prompt": "a", "init_images": [base64.b64encode(data).decode()]})
        bodies += [answer.body, other.body]
        if name == "1 x 100000":  # a picture, but no side that a model draws
            assert (answer.status, other.status) == (400, 422)
        else:
            assert answer.status == 400 and answer.json["error"]["code"] == "invalid_picture", name
            assert other.status == 422, name
    for url in ("http://127.0.0.1:1/a.png", "https://example.org/a.png", "file:///etc/passwd", "ftp://x/y"):
        answer = stub.post("/sdapi/v1/img2img", {"prompt": "a", "init_images": [url]})
        assert answer.status == 422 and answer.json["error"] == "url_refused"
        body, kind = form({"image": whole}, url=url)
        assert stub.ask("POST", "/v1/images/edits", body, **kind).json["error"]["code"] == "url_refused"


def test_a_mask_has_its_pictures_size_and_each_family_its_polarity(stub: Server) -> None:
    picture, half = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 16, 64))  # a quarter is to be repainted
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 16, 64))

    def seen(body: bytes, kind: dict[str, str], path: str) -> int:
        answer = stub.ask("POST", path, body, **kind)
        assert answer.status == 200, answer.body
        data = base64.b64decode(answer.json["data"][0]["b64_json"])
        return Image.open(io.BytesIO(data)).convert("RGB").getpixel((1, 0))[0]  # the stub's: the mask's mean

    quarter = round(255 / 4)
    files = {"image": png(picture)}
    for path, name, mask, mean in (
        ("/v1/images/edits", "mask", clear, quarter), ("/v1/images/edits", "mask_image", half, quarter),
        ("/v3/images/edits", "mask", half, quarter), ("/v3/images/edits", "mask", Image.eval(half, lambda v: 255 - v),
                                                     255 - quarter),
    ):  # fmt: skip
        assert abs(seen(*form({**files, name: png(mask)}), path) - mean) <= 1
    for name, mask in (("mask", Image.new("RGBA", (32, 64))), ("mask", half), ("mask_image", half.resize((65, 64)))):
        body, kind = form({**files, name: png(mask)})
        answer = stub.ask("POST", "/v1/images/edits", body, **kind)
        assert answer.status == 400 and answer.json["error"]["param"] == name


# B4: values.

HOSTILE: tuple[Any, ...] = (
    None, True, [], {}, "", "x", "\0", "\ud800", "../../etc/passwd", -1, 0, 2**64, 2**64 - 1, 10**300, 1.5, -1e308,
    [1, "a", None], {"a": {"b": []}}, "a" * 3000,
)  # fmt: skip


def test_no_value_of_any_field_is_a_fault(stub: Server, bodies: list[bytes]) -> None:
    """Every field of every route that takes JSON, with each of these: never 5xx, and always the family's own shape."""
    document = stub.get("/openapi.json").json
    from hotloop.serve.images.a1111_fields import _IDLE, _USED

    told = 0
    for path, shape in (
        ("/v1/images/generations", {"error"}), ("/v1/jobs", {"error"}),
        ("/hf/models/avatar-tiny", {"error", "error_type"}),
        ("/sdapi/v1/txt2img", {"error", "detail", "body", "errors"}),
        ("/sdapi/v1/extra-single-image", {"error", "detail", "body", "errors"}),
    ):  # fmt: skip
        schema = document["paths"].get(path, document["paths"].get("/hf/models/{model}"))["post"]["requestBody"]
        said = schema["content"]["application/json"]["schema"]
        fields = set(said.get("oneOf", [said])[0].get("properties", {}))
        if "sdapi" in path:
            fields = {*_USED, *_IDLE, "upscaler_1", "upscaling_resize", "image", "enable_hr", "hr_upscaler"}
        base = {"prompt": "a", "inputs": "a", "num_inference_steps": 1}
        base = {name: value for name, value in base.items() if name in fields} or {"prompt": "a"}
        for name in sorted(fields):
            for value in HOSTILE if path != "/sdapi/v1/extra-single-image" else HOSTILE[:6]:
                given = {**base, **({"enable_hr": True} if name.startswith("hr_") else {}), name: value}
                answer = stub.post(path, given)
                told += 1
                assert answer.status < 500 or answer.json.get("error", {}) == "", (path, name, value, answer.body)
                if answer.status >= 400:
                    assert set(answer.json) == shape
                    bodies.append(answer.body)
                elif path == "/v1/jobs":
                    stub.ask("DELETE", f"/v1/jobs/{answer.json['id']}")
    assert told > 1500
    assert stub.balanced()["failed"] == 0


def test_bodies_that_are_no_json_of_this_size_and_depth_are_refused_at_once(stub: Server, bodies: list[bytes]) -> None:
    deep = b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    cases: list[tuple[bytes, dict[str, str], int]] = [
        (deep, {}, 400), (b'{"prompt":"a","seed":NaN}', {}, 400), (b'{"prompt":"a","guidance_scale":1e400}', {}, 400),
        (b'{"prompt":"\xff"}', {}, 400), (b'{"prompt":"\\ud800"}', {}, 400), (b"[]", {}, 400), (b"", {}, 400),
        (b'{"prompt":"a","seed":' + b"9" * 5000 + b"}", {}, 400), (b'{"prompt":"a"', {}, 400),
        (b'{"prompt":"a"}', {"content_type": "text/plain"}, 415), (b"x" * 20_000_001, {}, 413),
        (b'{"prompt":"' + b"a" * 1_000_000 + b'"}', {}, 400), (b'{"a":' * 40 + b"1" + b"}" * 40, {}, 400),
    ]  # fmt: skip
    for data, headers, status in cases:
        began = time.monotonic()
        try:
            answer = stub.ask("POST", "/v1/images/generations", data, **headers)
        except (ConnectionError, OSError):  # told while it was still being sent
            assert status == 413
            continue
        assert answer.status == status, (data[:40], answer.body)
        assert time.monotonic() - began < 1
        bodies.append(answer.body)
    many = b"".join(f'--b\r\nContent-Disposition: form-data; name="f{i}"\r\n\r\nx\r\n'.encode() for i in range(10_000))
    answer = stub.ask("POST", "/v1/images/edits", many + b"--b--\r\n", content_type="multipart/form-data; boundary=b")
    assert answer.status == 400 and answer.seconds < 1


def test_peers_that_never_come_to_an_end_are_left_and_others_do_not_wait(tmp_path: Path) -> None:
    """L7 in short: no head, half of one, a body that stops, a second request that is not whole."""
    with Server(tmp_path, row=0.001, limits={"head_seconds": 1, "body_seconds": 1}, queue=50) as server:
        began = time.monotonic()
        peers = [socket.create_connection((server.host, server.port)) for _ in range(60)]
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\n"
        begun = ("", head, f"{head}Content-Length: 100\r\n\r\n{{", f"GET / HTTP/1.1\r\nHost: {server.host}")
        for peer, said in zip(peers, itertools.cycle(begun), strict=False):
            peer.sendall(said.encode())
        kept = socket.create_connection((server.host, server.port))  # a whole request, and then half of another one
        kept.sendall(f"GET /healthz HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"ok\n"):
            answer += kept.recv(4096)
        kept.sendall(b"GET /hea")
        quick = [server.post("/v1/images/generations", {"prompt": "a"}).seconds for _ in range(8)]
        assert min(quick) < 0.5 and max(quick) < 1.5
        for peer in (*peers, kept):
            peer.settimeout(max(0.1, began + 8 - time.monotonic()))
            data = b""
            while more := peer.recv(65_536):
                data += more
            assert not data or b" 408 " in data.split(b"\r\n")[0]
            peer.close()
        assert time.monotonic() - began < 8
        told = server.balanced()
        assert told["completed"] == 8 and told["invalid"] == 15


def test_long_prompts_are_read_in_windows_and_too_long_ones_refused(watched: Server) -> None:
    words = " ".join(itertools.islice(itertools.cycle(["a", "smiling", "girl", "with", "hair"]), 200))
    given = {"prompt": words, "seed": 3, "num_inference_steps": 2}
    answer = watched.post("/v1/images/generations", given)
    picture = Image.open(io.BytesIO(base64.b64decode(answer.json["data"][0]["b64_json"])))
    pipe = hotloop.load(adapters=True)  # as the server, which has LoRAs
    own = pipe.txt2img(words, seed=3, num_inference_steps=2, long_prompt="chunk").images[0]
    assert np.array_equal(np.asarray(picture), np.asarray(own))
    answer = watched.post("/v1/images/generations", {**given, "prompt": "a " * 990})
    assert answer.status == 400 and "windows" in answer.json["error"]["message"]


# S2, S3: what it opens, and what it lets out.


def lines(server: Server, start: int = 0) -> list[list[str]]:
    text = (server.log.parent / "witness").read_bytes()[start:].decode(errors="replace")
    return [line.split("\t") for line in text.splitlines() if line.count("\t") >= 2]


def test_no_name_is_ever_a_path(watched: Server, bodies: list[bytes]) -> None:
    names = [
        "../avatar-tiny", "..", ".", "/etc/passwd", "/", "\\\\host\\share", "..\\..\\x", "a/../avatar-tiny",
        "%2e%2e%2f", "%2e%2e/%2e%2e/etc/passwd", "avatar-tiny\0", "avatar-tiny/", "./avatar-tiny",
        "avatar-tiny/manifest.json", "CON", "NUL", "COM1", "/dev/zero", "/proc/self/environ",
        "\u2025/\u2025/etc", "\uff0e\uff0e/x", "~",
        "~root", "$HOME", "file:///etc/passwd", "known.safetensors", "../loras/known", "known/../../x", "x" * 5000, "",
    ]  # fmt: skip
    watched.get("/v1/models")
    mark = (watched.log.parent / "witness").stat().st_size
    asked: list[Answer] = []
    for name in names:
        draws = {"prompt": "a", "num_inference_steps": 1}
        if name:
            asked.append(watched.post("/v1/images/generations", {**draws, "model": name}))
        asked.append(watched.post("/v1/images/generations", {**draws, "loras": [{"name": name}]}))
        asked.append(watched.post("/v1/images/generations", {**draws, "sampler": name or "x"}))
        safe = "".join(f"%{byte:02x}" for byte in name.encode()[:100]) or "x"
        for path in (f"/v1/models/{safe}", f"/v1/jobs/{safe}", f"/static/{safe}", f"/sdapi/v1/{safe}"):
            asked.append(watched.get(path))
        told = f"a <lora:{name.replace(':', '')[:100] or 'x'}:1>"
        asked.append(watched.post("/sdapi/v1/txt2img", {"prompt": told, "steps": 1}))
    # A LoRA that is there, but none: refused by the worker, without its path.
    answer = watched.post("/v1/images/generations", {"prompt": "a", "loras": [{"name": "known"}]})
    assert answer.status == 400 and b"known" not in answer.body
    asked.append(answer)
    bodies += [one.body for one in asked]
    assert len(asked) >= 200 and {one.status for one in asked} <= {400, 404, 405, 422}
    code = tuple({sys.prefix, sys.base_prefix, *(str(Path(one).resolve()) for one in sys.path if one), *sys.path})
    opened = [path for _, event, path in lines(watched, mark) if event in ("open", "os.listdir", "os.scandir")]
    known = str(watched.log.parent / "loras" / "known.safetensors")
    foreign = {path for path in opened if not path.startswith(code) and not path.isdigit() and path != known}
    assert foreign <= {"/proc/self/statm"}, foreign


def test_links_in_a_lora_folder_are_refused(tmp_path: Path) -> None:
    from hotloop.errors import InputError
    from hotloop.serve.images.settings import gathered, names_of

    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"x")
    for make in (os.symlink, os.link):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(outside, folder / "in.safetensors")
        with pytest.raises(InputError, match="no link"):
            names_of(gathered({"loras": (str(folder),)}, {}))


def test_the_listening_process_opens_no_engine_connects_nowhere_and_unpickles_nothing(watched: Server) -> None:
    drawn = watched.post("/v1/images/generations", {"prompt": "a", "num_inference_steps": 1})
    assert drawn.status == 200
    seen = lines(watched)
    own = {path.split(".")[0] for pid, event, path in seen if event == "import" and int(pid) == watched.process.pid}
    assert "fastapi" in own
    assert not own & {
        "torch", "transformers", "diffusers", "onnxruntime", "openvino", "tensorrt", "safetensors", "peft", "requests",
    }  # fmt: skip
    workers = {path.split(".")[0] for pid, event, path in seen if event == "import" and int(pid) != watched.process.pid}
    assert "numpy" in workers and not workers & {"torch", "transformers", "diffusers", "fastapi", "uvicorn"}
    assert not [line for line in seen if line[1] in ("socket.connect", "pickle.find_class")]


def test_nothing_that_was_answered_tells_of_the_inside(bodies: list[bytes], stub: Server) -> None:
    assert len(bodies) > 200
    told = [stub.get(path).body for path in ("/v1/capabilities", "/sdapi/v1/sd-models", "/sdapi/v1/loras", "/metrics")]
    for body in [*bodies, *told]:
        assert not LEAKS.search(body), body[:500]
    assert all(json.loads(body) for body in bodies if body)
