"""A peer that paints every picture in one grey."""

import numpy as np
from peers.work import Found


class Adapter:
    def __init__(self, setup, *, grey, breaks=False):
        self.versions, self.grey, self.breaks = {"painter": "1"}, grey, breaks

    def ready(self, work):
        self.work = work

    def draw(self):
        if self.breaks:
            raise RuntimeError("out of paint")
        width, height = self.work.size
        return list(np.full((self.work.batch, height, width, 3), self.grey, np.uint8))

    def found(self):
        return Found(self.work.steps, {"loop": 0.001, "step": 0.0001}, self.work.noise)
