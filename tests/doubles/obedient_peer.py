"""A peer that does what its prompt says: raise, crash, leave, sleep, allocate; else it draws one grey."""

import os
import signal
import time

import numpy as np
from peers.work import Found


def prepare(setup, **settings):
    (setup.cache / "made").write_text(str(os.getpid()))


class Adapter:
    def __init__(self, setup, **settings):
        if settings.get("broken"):
            raise ImportError("no module named painting\nsecond line")
        self.versions = {"fake": "1"}
        self.settings, self.setup = settings, setup
        self.kept = np.empty(0, np.uint8)

    def ready(self, work):
        self.work = work

    def draw(self):
        words = self.work.prompt.split()
        print("libraries print", self.work.prompt)
        if words[0] == "raise":
            raise ValueError("colours are out\nof stock")
        if words[0] == "memory":
            raise MemoryError
        if words[0] == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if words[0] == "leave":
            os._exit(3)
        if words[0] == "sleep":
            time.sleep(float(words[1]))
        if words[0] == "allocate":
            np.ones(int(words[1]), np.uint8).sum()
        width, height = self.work.size
        return list(np.full((len(self.work.seeds), height, width, 3), len(self.work.prompt), np.uint8))

    def found(self):
        return Found(self.work.steps, {"loop": 0.5}, self.work.noise * 2)
