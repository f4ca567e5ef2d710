"""`hotloop serve` as a client sees it: seconds to ready, memory, a load curve, and what a shared batch is worth.

    python benchmarks/serve.py                        # the built-in model, short
    python benchmarks/serve.py --steps 20 --count 662 # enough requests for a p99

S is a request's time alone, C the requests a second of four clients that never pause; an open loop offers shares of C
as a Poisson process, and its times count from when a request was meant to be sent. Batching: four clients at once on
a server with one lane and on one with four, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from hotloop_kernels import usable_cores


class Served:
    """A server in a process of its own, on a free port."""

    def __init__(self, bundle: str, lanes: int, queue: int, threads: int | None) -> None:
        command = [str(Path(sys.executable).with_name("hotloop")), "serve", bundle, "--port", "0", "--log", "off"]
        command += ["--lanes", str(lanes), "--queue", str(queue), "--linger", "0"]
        command += [] if threads is None else ["--threads", str(threads)]
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready = time.monotonic() - began
        address = next(word for word in line.split() if word.startswith("http://"))
        host, port = address.removeprefix("http://").strip("/").rsplit(":", 1)
        self.host, self.port = host, int(port)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def resident(self) -> tuple[float, list[float]]:
        """MB of the listening process, and of its workers."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own, *others = (
            int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            for one in (pid, *children)
        )
        return own, others

    async def draw(self, steps: int, at: float | None = None) -> tuple[int, float]:
        """Status, and seconds since it was meant to be sent."""
        loop = asyncio.get_running_loop()
        meant = loop.time() if at is None else at
        await asyncio.sleep(max(0.0, meant - loop.time()))
        body = json.dumps({"prompt": "a smiling girl", "seed": 1, "num_inference_steps": steps}).encode()
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(head.encode() + body)
        data = await reader.read()
        writer.close()
        return int(data.split(b" ", 2)[1]), loop.time() - meant


def together(server: Served, steps: int, clients: int, each: int) -> float:
    """Requests a second of so many clients that never pause."""

    async def all_of() -> float:
        async def one() -> None:
            for _ in range(each):
                status, _ = await server.draw(steps)
                assert status == 200, status

        began = time.monotonic()
        await asyncio.gather(*(one() for _ in range(clients)))
        return clients * each / (time.monotonic() - began)

    return asyncio.run(all_of())


def offered(server: Served, steps: int, rate: float, count: int) -> tuple[list[float], int, float]:
    """Times of what was drawn, how many were not, and requests a second."""
    gaps = np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))

    async def all_of() -> list[tuple[int, float]]:
        begun = asyncio.get_running_loop().time() + 0.1
        return await asyncio.gather(*(server.draw(steps, begun + float(at)) for at in gaps))

    began = time.monotonic()
    answers = asyncio.run(all_of())
    times = sorted(seconds for status, seconds in answers if status == 200)
    return times, count - len(times), len(times) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="avatar-tiny")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--count", type=int, default=100, help="requests of each offered load")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.8])
    parser.add_argument("--rounds", type=int, default=3, help="of batching's comparison")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{usable_cores()} cores, load {load:.1f} before; {options.bundle}, {options.steps} steps")
    with Served(options.bundle, 4, 8, options.threads) as four, Served(options.bundle, 1, 8, options.threads) as one:
        own, workers = four.resident()
        print(f"ready after {four.ready:.1f} s; idle {own:.0f} MB, worker {workers[0]:.0f} MB")
        for server in (four, one):
            together(server, options.steps, 1, 3)
        alone = median(asyncio.run(four.draw(options.steps))[1] for _ in range(9))
        turns = [[together(server, options.steps, 4, 2) for server in (four, one)] for _ in range(options.rounds)]
        ratios = [both / single for both, single in turns]
        C = median(both for both, _ in turns)
        single = median(each for _, each in turns)
        print(f"S {1000 * alone:.0f} ms; 4 clients: {C:.2f}/s with four lanes, {single:.2f}/s one after the other, "
              f"ratio {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")  # fmt: skip
        for share in options.shares:
            times, lost, rate = offered(four, options.steps, share * C, options.count)
            p50, p99 = (times[min(len(times) - 1, int(part * len(times)))] for part in (0.5, 0.99))
            print(f"{share} C: offered {share * C:.2f}/s, drawn {rate:.2f}/s, shed {lost}, p50 {1000 * p50:.0f} ms, "
                  f"p99 {1000 * p99:.0f} ms ({p50 / alone:.1f} S, {p99 / alone:.1f} S)")  # fmt: skip
        own, workers = four.resident()
        print(f"after it {own:.0f} MB, worker {workers[0]:.0f} MB")


if __name__ == "__main__":
    main()
