"""`hotloop serve`: routes, queue, deadlines, faults and the end on a stub worker; pictures on the real one."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from serve_client import Server

from hotloop.bundle import builtin
from hotloop.weights import Weights

pytest.importorskip("fastapi", reason="the extra [serve]")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("stub"), row=0.001) as server:
        yield server


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("real"), row=None, lanes=4) as server:
        yield server


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def png(array: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def many(*work: Any) -> list[Any]:
    async def all_of() -> list[Any]:
        return await asyncio.gather(*(make() for make in work))

    return asyncio.run(all_of())


# Pictures.


def test_a_picture_is_the_pipelines_own_whoever_is_drawn_beside_it(real: Server, pipe: Any) -> None:
    """Requests join a running batch between two rows; each picture is that of its seed alone, bit for bit."""
    others: list[dict[str, Any]] = [
        {}, {"num_images_per_prompt": 2}, {"guidance_rescale": 0.7}, {"hires": 1.5, "sampler": "euler_a"},
    ]  # fmt: skip
    asked = [{"prompt": f"a girl {i}", "seed": 10 + i, "num_inference_steps": 4 + i, **one}
             for i, one in enumerate(others)]  # fmt: skip
    answers = many(*(lambda one=one: real.draw(**one) for one in asked))
    for one, answer in zip(asked, answers, strict=True):
        assert answer.status == 200, answer.body
        for i, picture in enumerate(answer.json["data"]):
            own = pipe.txt2img(**{**one, "seed": one["seed"] + i, "num_images_per_prompt": 1})
            assert np.array_equal(pixels(picture["b64_json"]), np.asarray(own.images[0]))
        assert len(answer.json["data"]) == one.get("num_images_per_prompt", 1)


def test_edits_are_the_pipelines_own_and_each_routes_mask_has_its_polarity(real: Server, pipe: Any) -> None:
    picture = np.linspace(0, 255, 64 * 64 * 3).astype(np.uint8).reshape(64, 64, 3)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 8:40] = 255
    given = {"seed": 3, "num_inference_steps": 4, "strength": 0.8}
    expected = pipe.inpaint("a girl", image=picture, mask_image=mask, **given)
    want = np.asarray(expected.images[0])
    assert not np.array_equal(want, picture)
    clear = np.dstack([np.zeros((64, 64, 3), np.uint8), 255 - mask])  # transparent where it is to be repainted

    def form(name: str, file: np.ndarray, path: str) -> np.ndarray:
        files = {"image": picture, name: file}
        body, kind = multipart({"prompt": "a girl", **{k: str(v) for k, v in given.items()}}, files)
        answer = real.ask("POST", path, body, content_type=kind)
        assert answer.status == 200, answer.body
        return pixels(answer.json["data"][0]["b64_json"])

    assert np.array_equal(form("mask", clear, "/v1/images/edits"), want)
    assert np.array_equal(form("mask_image", mask, "/v1/images/edits"), want)
    assert np.array_equal(form("mask", mask, "/v3/images/edits"), want)
    assert not np.array_equal(form("mask", 255 - mask, "/v3/images/edits"), want)
    sd = {
        "prompt": "a girl", "seed": 3, "steps": 4, "denoising_strength": 0.8, "init_images": [png(picture)],
        "inpainting_fill": 1, "inpaint_full_res": False, "mask_blur": 0.5,
    }  # fmt: skip
    own = np.asarray(pipe.inpaint("a girl", image=picture, mask_image=mask, mask_blur=0.5, **given).images[0])
    for told in ({"mask": png(mask)}, {"mask": png(255 - mask), "inpainting_mask_invert": 1}):
        answer = real.post("/sdapi/v1/img2img", {**sd, **told})
        assert answer.status == 200 and np.array_equal(pixels(answer.json["images"][0]), own)


def test_a1111s_words_that_change_from_row_to_row_are_drawn_as_the_pipeline_does(real: Server, pipe: Any) -> None:
    """With the prompt of A1111's own tests; such runs have rows of their own beside the batch."""
    words = "((emphasis)), (emphasis1:1.1), [to:1], [from::2], [from:to:0.3], [alt|alt1]"
    for prompt in (words, "a girl AND a hat:0.5"):
        answer = real.post("/sdapi/v1/txt2img", {"prompt": prompt, "steps": 4, "seed": 1})
        own = pipe.txt2img(prompt, seed=1, num_inference_steps=4)
        assert np.array_equal(pixels(answer.json["images"][0]), np.asarray(own.images[0]))


def multipart(fields: dict[str, str], files: dict[str, np.ndarray]) -> tuple[bytes, str]:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    for name, array in files.items():
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="upload"\r\n'
        parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
        parts.append(base64.b64decode(png(array)) + b"\r\n")
    return b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"


def test_partial_pictures_come_before_the_whole_one(real: Server, pipe: Any) -> None:
    body = {"prompt": "a girl", "seed": 5, "num_inference_steps": 6, "stream": True, "partial_images": 2}
    answer = real.post("/v1/images/generations", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    kinds = [one["type"].removeprefix("image_generation.") for one in told]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [one.get("partial_image_index") for one in told] == [0, 1, None]
    drawn = np.asarray(pipe.txt2img("a girl", seed=5, num_inference_steps=6).images[0])
    assert np.array_equal(pixels(told[2]["b64_json"]), drawn)
    far = [np.abs(pixels(one["b64_json"]).astype(int) - drawn).mean() for one in told]
    assert far[0] > far[1] > far[2] == 0


def test_a_job_is_told_of_and_kept_until_it_is_forgotten(stub: Server) -> None:
    before = stub.balanced()
    made = stub.post("/v1/jobs", {"prompt": "a", "seed": 9, "num_inference_steps": 100, "output_format": "webp"})
    assert made.status == 202 and made.json["status"] in ("queued", "generating") and made.json["seeds"] == [9]
    at = made.headers["location"]
    events = stub.get(f"{at}/events").body.decode()
    names = [line[7:] for line in events.splitlines() if line.startswith("event: ")]
    assert names[0] == "job" and names[-1] == "completed" and set(names[1:-1]) == {"progress"}
    rows = [json.loads(line[6:]) for line in events.splitlines() if line.startswith('data: {"row"')]
    assert [one["row"] for one in rows] == sorted({one["row"] for one in rows}) and rows[0]["rows"] == 100
    told = stub.get(at).json
    image = told["result"]["images"][0]
    assert told["status"] == "completed" and (image["width"], image["seed"]) == (64, 9)
    assert Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).format == "WEBP"
    assert stub.ask("DELETE", at).status == 204 and stub.get(at).status == 404
    second = stub.post("/v1/jobs", {"prompt": "slow", "num_inference_steps": 150, "seed": 1})
    cancelled = stub.post(f"{second.headers['location']}/cancel", {}).json
    assert cancelled["status"] == "cancelled" and cancelled["error"]["code"] == "cancelled"
    after = stub.balanced()
    assert after["completed"] == before["completed"] + 1 and after["cancelled"] == before["cancelled"] + 1


def test_loras_and_models_are_named_and_those_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    """F6: sets of LoRAs come and go between requests of the same moment; each is the pipeline's own with that set."""
    import hotloop

    for name, seed in (("hat", 1), ("hair", 2)):
        lora(tmp_path / "loras" / f"{name}.safetensors", seed)
    (tmp_path / "loras" / "broken.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    shutil.copytree(builtin(), tmp_path / "models" / "second")
    given = {"prompt": "a girl", "seed": 3, "num_inference_steps": 3}
    sets: list[list[tuple[str, float]]] = [[], [("hat", 1.0)], [("hat", 0.5), ("hair", -1.0)], []]
    own, pipe = [], hotloop.load(adapters=True)
    for loras in sets:
        for name, scale in loras:
            pipe.load_lora(tmp_path / "loras" / f"{name}.safetensors", scale)
        own.append(np.asarray(pipe.txt2img(**given).images[0]))
        for name, _ in loras:
            pipe.unload_lora(name)
    assert not np.array_equal(own[0], own[1]) and not np.array_equal(own[1], own[2])
    with Server(tmp_path, row=None, lanes=4, bundles=["avatar-tiny", str(tmp_path / "models")],
                loras=[str(tmp_path / "loras")]) as server:  # fmt: skip
        assert [one["id"] for one in server.get("/v1/models").json["data"]] == ["avatar-tiny", "second"]
        told = [[{"name": name, "scale": scale} for name, scale in loras] for loras in sets]
        asked = [*told, [{"name": "broken"}]]
        answers = many(*(lambda loras=loras: server.draw(**given, loras=loras, model="second") for loras in asked))
        for answer, picture in zip(answers, own, strict=False):
            assert np.array_equal(pixels(answer.json["data"][0]["b64_json"]), picture)
        assert answers[-1].status == 400 and answers[-1].json["error"]["code"] == "invalid_lora"
        words = server.post("/sdapi/v1/txt2img", {"prompt": "a girl<lora:hat:1>", "seed": 3, "steps": 3})
        assert np.array_equal(pixels(words.json["images"][0]), own[1])
        after = server.post("/v1/images/generations", given)
        assert np.array_equal(pixels(after.json["data"][0]["b64_json"]), own[0])
        server.balanced()


def lora(path: Path, seed: int) -> None:
    """Kohya's keys, on every query of the built-in model's attention."""
    weights = Weights.open(builtin() / "unet" / "diffusion_pytorch_model.safetensors")
    random = np.random.default_rng(seed)
    tensors = {}
    for key in weights:
        if key.endswith("to_q.weight"):
            out, into = weights.shape(key)
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = random.normal(0, 0.2, (4, into)).astype(np.float32)
            tensors[f"{name}.lora_up.weight"] = random.normal(0, 0.2, (out, 4)).astype(np.float32)
            tensors[f"{name}.alpha"] = np.array(4.0, np.float32)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)


# Queue, deadlines, cancellation.


def test_what_waits_too_long_is_never_drawn_and_what_runs_too_long_stops(tmp_path: Path) -> None:
    """L4: 504 within the deadline, 100 ms and one step; no row of what expired in the queue."""
    with Server(tmp_path, row=0.02, queue=8) as server:
        at = {"num_inference_steps": 50}

        async def ask() -> list[Any]:
            first = asyncio.create_task(server.draw("first", **at))
            await asyncio.sleep(0.1)
            waiting = [asyncio.create_task(server.draw(f"waits{i}", timeout=0.2 + 0.05 * i, **at)) for i in range(6)]
            return [await one for one in (first, *waiting)]

        first, *waiting = asyncio.run(ask())
        assert first.status == 200 and [one.status for one in waiting] == [504] * 6
        for i, one in enumerate(waiting):
            assert 0.2 + 0.05 * i <= one.seconds <= 0.2 + 0.05 * i + 0.12 + 0.15  # 150 ms of a loaded machine
        assert server.rows("waits") == []
        late = many(lambda: server.draw("late", timeout=0.3, **at))[0]
        assert late.status == 504 and late.seconds < 0.3 + 0.12 + 0.15
        time.sleep(0.1)
        drawn = len(server.rows("late"))
        assert 5 <= drawn <= 18
        time.sleep(0.2)
        assert len(server.rows("late")) == drawn
        told = server.balanced()
        assert told["expired"] == 7 and told["completed"] == 1
        assert server.post("/v1/images/generations", {"prompt": "a"}, x_request_timeout_seconds="nan").status == 400


def test_a_client_that_goes_takes_its_request_with_it(tmp_path: Path) -> None:
    """L5, 100 requests: half are dropped at a random time, plain and streaming; nothing goes on for them."""
    random = np.random.default_rng(0)
    with Server(tmp_path, row=0.002, queue=200, lanes=2) as server:
        fds = len(os.listdir(f"/proc/{server.process.pid}/fd"))

        async def ask() -> list[Any]:
            loop = asyncio.get_running_loop()
            begun = loop.time() + 0.05
            return await asyncio.gather(*(
                server.draw(f"r{i:03d} ", at=begun + 0.02 * i, leave=float(random.uniform(0, 0.4)) if i % 2 else None,
                            stream=i % 4 == 1, num_inference_steps=10) for i in range(100)
            ))  # fmt: skip

        answers = asyncio.run(ask())
        ended = time.monotonic()
        assert all(answer.status == 200 for answer in answers[::2])
        told = server.balanced()
        gone = sum(answer.status == 0 for answer in answers)
        assert gone > 10 and abs(told["gone"] - gone) <= 3 and told["completed"] + told["gone"] == 100
        assert max(at for *_, at in server.rows()) <= ended + 0.1 + 0.15
        until = time.monotonic() + 5
        while len(os.listdir(f"/proc/{server.process.pid}/fd")) > fds + 1:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_dropped_request_stops_within_a_row(tmp_path: Path) -> None:
    with Server(tmp_path, row=0.05) as server:
        for stream in (False, True):
            name = f"left{stream} "
            began = time.monotonic()
            many(lambda name=name, stream=stream: server.draw(name, leave=0.4, stream=stream, num_inference_steps=150))
            server.balanced(2.0)
            rows = server.rows(name)
            assert len(rows) >= 3 and rows[-1][2] - began <= 0.4 + 0.05 + 0.1 + 0.15


def test_beyond_the_queue_requests_are_shed_at_once_and_told_when_to_come_again(tmp_path: Path) -> None:
    with Server(tmp_path, row=0.01, queue=2) as server:
        answers = many(*(lambda i=i: server.draw(f"p{i}", num_inference_steps=30) for i in range(10)))
        statuses = sorted(answer.status for answer in answers)
        assert statuses == [200] * 3 + [503] * 7
        for answer in answers:
            if answer.status == 503:
                assert answer.json["error"]["code"] == "overloaded" and int(answer.headers["retry-after"]) >= 1
        told = server.balanced()
        assert told["overloaded"] == 7 and told["completed"] == 3


# Faults.


def test_a_worker_that_falls_takes_only_what_it_drew(tmp_path: Path) -> None:
    """F1, three times: killed from outside, ended by itself, a segmentation fault; what waits is drawn by the next."""
    with Server(tmp_path, row=0.02, queue=8) as server:
        for how in ("kill", "exit", "segfault"):

            async def ask(how: str = how) -> list[Any]:
                victim = asyncio.create_task(server.draw(f"{how} ", num_inference_steps=20))
                await asyncio.sleep(0.15)
                waiting = asyncio.create_task(server.draw("waits", num_inference_steps=5))
                await asyncio.sleep(0.05)
                if how == "kill":
                    os.kill(server.workers()[0], signal.SIGKILL)
                health = server.get("/healthz").status
                return [await victim, health, await waiting]

            victim, health, waiting = asyncio.run(ask())
            assert victim.status == 503 and victim.json["error"]["code"] == "worker_lost" and victim.seconds < 1.5
            assert health == 200 and waiting.status == 200 and waiting.seconds < 8
        told = server.balanced()
        assert told["lost"] == 3 and told["completed"] == 3
        assert server.metrics()['hotloop_worker_restarts_total{worker="0"}'] == 3
        assert "secret" not in server.err.read_text()


def test_a_worker_that_does_not_let_go_is_killed(tmp_path: Path) -> None:
    """A row that does not end: its request is answered in time, and the next one is drawn by another worker."""
    prelude = "import hotloop.serve.images.pool as pool\npool.STUCK = 0.5\n"
    with Server(tmp_path, row=0.001, prelude=prelude) as server:

        async def ask() -> list[Any]:
            hangs = asyncio.create_task(server.draw("hang", timeout=0.5))
            await asyncio.sleep(0.2)
            return [await server.draw("waits"), await hangs]

        waits, late = asyncio.run(ask())
        assert late.status == 504 and late.seconds < 0.9
        assert waits.status == 200 and server.metrics()['hotloop_worker_restarts_total{worker="0"}'] == 1
        told = server.balanced()
        assert (told["expired"], told["completed"]) == (1, 1)


def test_after_too_many_falls_the_circuit_is_open(tmp_path: Path) -> None:
    with Server(tmp_path, row=0.001) as server:
        for _ in range(5):
            until = time.monotonic() + 20
            while server.get("/readyz").status != 200 and time.monotonic() < until:
                time.sleep(0.02)
            assert server.post("/v1/images/generations", {"prompt": "exit"}).status == 503
        until = time.monotonic() + 5
        while server.get("/readyz").status == 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert server.get("/readyz").status == 503 and server.get("/healthz").status == 200
        answer = server.post("/v1/images/generations", {"prompt": "a"})
        assert answer.status == 503 and answer.json["error"]["code"] == "unavailable" and answer.headers["retry-after"]
        assert server.workers() == []


def test_what_the_model_cannot_do_has_an_answer_of_the_table(stub: Server) -> None:
    for prompt, status, code in (
        ("broken", 500, "internal"), ("nan", 500, "non_finite_output"), ("memory", 503, "out_of_memory")
    ):  # fmt: skip
        answer = stub.post("/v1/images/generations", {"prompt": prompt})
        assert (answer.status, answer.json["error"]["code"]) == (status, code)
        assert b"secret" not in answer.body and b"0x" not in answer.body
    assert stub.post("/v1/images/generations", {"prompt": "next"}).status == 200


def test_two_workers_draw_twice_as_much_and_each_keeps_what_it_knows(tmp_path: Path) -> None:
    """S46: rows of a known time, so that the machine's cores do not count; a fall of one is not the other's."""

    def seconds(workers: int) -> float:
        folder = tmp_path / str(workers)
        folder.mkdir()
        with Server(folder, row=0.02, queue=20, workers=workers) as server:
            seeds = list(range(12))
            began = time.monotonic()
            answers = many(*(lambda seed=seed: server.draw(f"s{seed} ", seed=seed) for seed in seeds))
            took = time.monotonic() - began
            reds = [pixels(one.json["data"][0]["b64_json"])[9, 9, 0] for one in answers]
            assert reds == seeds and all(one.status == 200 for one in answers)
            if workers == 2:
                assert len(set(server.workers())) == 2
                told = sorted(server.rows(), key=lambda row: row[2])  # two processes write it: by the clock they share
                each = [[row for name, row, _ in told if name.strip() == f"s{seed}"] for seed in seeds]
                first = each[0][0]
                assert all(rows == list(range(first, first + len(each[0]))) for rows in each), "each row once, in order"
                victim = asyncio.run(one_falls(server))
                assert [one.status for one in victim] == [503, 200]
            return took

    async def one_falls(server: Server) -> list[Any]:
        falls = asyncio.create_task(server.draw("exit "))
        await asyncio.sleep(0.02)
        return [await falls, await server.draw("stays ")]

    assert 1.6 < seconds(1) / seconds(2) < 2.3


# The end.


def test_the_end_has_two_phases_and_loses_nothing(tmp_path: Path) -> None:
    """L6: ready is 503 at once, the address answers 503 for `linger`, everything that was taken gets its 200."""
    with Server(tmp_path, row=0.01, queue=50, linger=2.0) as server:
        states: list[tuple[float, int, int]] = []

        async def ask() -> tuple[list[Any], float]:
            loop = asyncio.get_running_loop()
            taken = [asyncio.create_task(server.draw(f"t{i}", num_inference_steps=10)) for i in range(12)]
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            began = loop.time()
            while loop.time() - began < 1.9:
                ready = await asyncio.to_thread(server.get, "/readyz")
                late = await server.draw("late")
                states.append((loop.time() - began, ready.status, late.status))
                await asyncio.sleep(0.1)
            return [await one for one in taken], began

        answers, _ = asyncio.run(ask())
        assert [answer.status for answer in answers] == [200] * 12
        assert all(ready == late == 503 for at, ready, late in states if at > 0.25) and states[-1][0] > 1.5
        assert server.process.wait(5) == 0
        assert server.rows("late") == []
        lines = [json.loads(line) for line in server.err.read_text().splitlines()]
        assert {line["outcome"] for line in lines} == {"completed", "draining"}


def test_the_real_engine_is_left_killed_and_drained_as_the_stub_is(tmp_path: Path) -> None:
    """L5 with 50 requests, F1 and L6 once each; a picture is the same before and after."""
    with Server(tmp_path, row=None, queue=60, lanes=4) as server:
        given = {"prompt": "a girl", "seed": 3, "num_inference_steps": 4}
        first = server.post("/v1/images/generations", given).json["data"][0]["b64_json"]
        random = np.random.default_rng(1)

        async def drop() -> list[Any]:
            return await asyncio.gather(*(
                server.draw("a boy", num_inference_steps=3, seed=i, stream=i % 4 == 1,
                            leave=float(random.uniform(0, 1.5)) if i % 2 else None) for i in range(50)
            ))  # fmt: skip

        answers = asyncio.run(drop())
        told = server.balanced(60)
        assert all(answer.status == 200 for answer in answers[::2])
        assert told["gone"] > 3 and told["completed"] + told["gone"] == 51

        async def kill() -> tuple[Any, Any]:
            victim = asyncio.create_task(server.draw("a boy", num_inference_steps=150))
            while not server.metrics()['hotloop_worker_running{worker="0"}']:
                await asyncio.sleep(0.02)
            os.kill(server.workers()[0], signal.SIGKILL)
            return await victim, await server.draw(**given)

        victim, again = asyncio.run(kill())
        assert victim.status == 503 and again.json["data"][0]["b64_json"] == first

        async def drain() -> list[Any]:
            taken = [asyncio.create_task(server.draw(**given)) for _ in range(6)]
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            return [await one for one in taken]

        assert [one.json["data"][0]["b64_json"] for one in asyncio.run(drain())] == [first] * 6
        assert server.process.wait(20) == 0


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with Server(tmp_path, row=0.01) as server:

        async def ask() -> Any:
            taken = asyncio.create_task(server.draw("hang"))
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await asyncio.to_thread(server.process.wait, 10)
            taken.cancel()
            return time.monotonic() - began

        children = server.workers()
        assert asyncio.run(ask()) < 2.0
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
