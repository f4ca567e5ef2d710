"""Rows of load on `hotloop serve` with a stub of a known service time, by an open loop whose times count from when a
request was meant to be sent; S and C are measured on the same machine just before. Service times of 10 to 50 ms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_client import Answer, Server, quantile

pytest.importorskip("fastapi", reason="the extra [serve]")

QUEUE = 8


def capacity(server: Server, seconds: float = 1.0) -> tuple[float, float]:
    """S, the seconds of a request alone, and C, requests a second of a server that is never idle."""

    async def alone() -> list[float]:
        return [(await server.draw("alone")).seconds for _ in range(15)]

    async def busy() -> float:
        loop = asyncio.get_running_loop()
        end, done = loop.time() + seconds, 0

        async def one() -> None:
            nonlocal done
            while loop.time() < end:
                answer = await server.draw("busy")
                done += answer.status == 200

        began = loop.time()
        await asyncio.gather(*(one() for _ in range(4)))
        return done / (loop.time() - began)

    return quantile(asyncio.run(alone()), 0.5), asyncio.run(busy())


def offered(server: Server, rate: float, count: int, seed: int, **told: Any) -> list[Answer]:
    """So many requests of a Poisson process."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)

    async def all_of() -> list[Answer]:
        begun = asyncio.get_running_loop().time() + 0.05
        return await asyncio.gather(*(
            server.draw(f"p{i}", at=begun + float(at), **told) for i, at in enumerate(np.cumsum(gaps))
        ))  # fmt: skip

    return asyncio.run(all_of())


def settled(check: Callable[[], bool], tries: int = 3) -> None:
    """Another process may take the machine for a while: what time decides may fail twice."""
    assert any(check() for _ in range(tries))


def steady(server: Server, count: int) -> None:
    for share, most in ((0.5, 5.0), (0.8, 14.0)):

        def holds(share: float = share, most: float = most) -> bool:
            S, C = capacity(server)
            began = time.monotonic()
            answers = offered(server, share * C, count, seed=int(10 * share))
            rate = count / (time.monotonic() - began)
            statuses = {answer.status for answer in answers}
            times = [answer.seconds for answer in answers]
            tail = quantile(times, 0.99 if count >= 662 else 0.95)
            middle = quantile(times, 0.5)
            print(f"{share} C: S {S:.4f} C {C:.1f} p50 {middle / S:.2f} S tail {tail / S:.2f} S {rate:.1f}/s")
            return statuses == {200} and tail <= most * max(S, 1 / C) and rate >= 0.9 * share * C

        settled(holds)


def test_a_steady_load_is_served_whole(tmp_path: Path) -> None:
    """L1 in short: 80 requests at 0.5 C and 0.8 C, which claims p95 and not p99; K is that of the queueing table."""
    with Server(tmp_path, row=0.003, queue=100) as server:
        steady(server, 80)
        told = server.balanced()
        assert told["completed"] == sum(told.values())


@pytest.mark.long
def test_a_steady_load_of_662_requests_has_the_p99_of_the_table(tmp_path: Path) -> None:
    """L1."""
    with Server(tmp_path, row=0.001, queue=100) as server:
        steady(server, 662)


def test_what_is_too_much_is_shed_and_the_rest_is_served(tmp_path: Path) -> None:
    """L2 in short, 2 C for 3 s: the client and other work share the cores, so goodput and tail have room."""
    with Server(tmp_path, row=0.005, queue=QUEUE) as server:

        def holds() -> bool:
            S, C = capacity(server)
            began = time.monotonic()
            answers = offered(server, 2 * C, round(6 * C), seed=2)
            wall = time.monotonic() - began
            good = [answer.seconds for answer in answers if answer.status == 200]
            shed = [answer for answer in answers if answer.status == 503]
            assert len(good) + len(shed) == len(answers)
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in shed)
            tail = quantile(good, 0.95)
            print(f"2 C: {len(good) / wall / C:.2f} C good, {len(shed)} shed, p95 {tail / S:.1f} S")
            return len(shed) > 0.25 * len(answers) and len(good) / wall >= 0.7 * C and tail <= 1.5 * (QUEUE + 1) * S

        settled(holds)
        told = server.balanced()
        assert told["completed"] + told["overloaded"] == sum(told.values())


@pytest.mark.long
@pytest.mark.parametrize("times", [2.0, 5.0])
def test_a_minute_of_too_much(tmp_path: Path, times: float) -> None:
    """L2, with a service time beside which the client's own work is small."""
    with Server(tmp_path, row=0.01, queue=QUEUE) as server:
        S, C = capacity(server, 3.0)
        answers = offered(server, times * C, round(times * C * 60), seed=3)
        good = [answer.seconds for answer in answers if answer.status == 200]
        shed = [answer.seconds for answer in answers if answer.status == 503]
        assert len(good) + len(shed) == len(answers)
        assert len(good) / 60 >= 0.95 * C and quantile(good, 0.99) <= 1.2 * (QUEUE + 1) * S
        assert quantile(shed, 0.99) <= 0.05
        server.balanced()


def test_after_a_burst_all_is_as_before(tmp_path: Path) -> None:
    """L3: 10 C for a second, then 0.3 C: the queue is empty, and p50 what it was, after 2 (K + 1) S."""
    with Server(tmp_path, row=0.004, queue=QUEUE) as server:

        def holds() -> bool:
            S, C = capacity(server)
            offered(server, 10 * C, round(5 * C), seed=4)
            time.sleep(2 * (QUEUE + 1) * S)
            assert server.metrics()["hotloop_requests_queued"] == 0
            after = quantile([answer.seconds for answer in offered(server, 0.3 * C, 25, seed=5)], 0.5)
            before = quantile([answer.seconds for answer in offered(server, 0.3 * C, 25, seed=5)], 0.5)
            print(f"S {S:.4f} C {C:.1f} p50 before {before:.4f} after {after:.4f}")
            return after <= 1.1 * before + 0.005

        settled(holds)
        server.balanced()
