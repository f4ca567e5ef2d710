"""Words that change from row to row, and several prompts at once: a wrapper around any Denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..samplers.table import StepTable
from .protocols import Denoiser

__all__ = ["Composed", "Composition", "Words"]

F32 = np.ndarray


@dataclass(frozen=True)
class Words:
    """What the images of a row are told: of each the texts that AND joins, with their weights, and the negative one.

    Texts go by their numbers in `Composition.states`. negatives: None without guidance.
    """

    prompts: tuple[tuple[tuple[int, float], ...], ...]
    negatives: tuple[int, ...] | None

    @property
    def several(self) -> bool:
        """Whether outputs must be put together."""
        return any(len(one) > 1 or one[0][1] != 1 for one in self.prompts)


@dataclass(frozen=True, eq=False)
class Composition:
    """The words of a run. states f32 [U, T, C], of every text, the empty one first where there is no guidance: outputs
    that are put together are counted from its; rows: what each row of the table is told."""

    states: F32
    rows: tuple[Words, ...]


class Composed:
    """Liu et al. 2022 (arXiv 2206.01714), equation 11: m_c = m_u + sum over i of w_i (m_i - m_u), m_u the unconditional
    output; each m_i is an evaluation of its own, all of a row in one batch.

    Rows of one text each are told it as they would be without this wrapper, bit for bit. The denoiser begins anew where
    the words change. All images of a step must be at the same row, as the loop has them.

    cond of begin(): what is beside the words; a row per image, or the rows of unconditional halves, then the others
    """

    def __init__(self, denoiser: Denoiser, composition: Composition) -> None:
        self._denoiser, self._composition = denoiser, composition

    def begin(self, cond: Mapping[str, np.ndarray], table: StepTable, shape: tuple[int, ...]) -> None:
        self._cond, self._table, self._shape = cond, table, shape
        self._told: Words | None = None

    def step(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        words = self._composition.rows[int(rows[0])]
        if words != self._told:
            self._tell(words)
        if not words.several:
            return self._denoiser.step(x, rows)
        m, _ = self._denoiser.step(x[self._images], rows[self._images])
        n = len(x)
        m_u, each = m[:n].copy(), iter(m[n:])
        m_c = m_u.copy()
        for image, prompt in enumerate(words.prompts):
            for _, weight in prompt:
                one = next(each)
                alone = len(prompt) == 1 and weight == 1
                m_c[image] = one if alone else m_c[image] + np.float32(weight) * (one - m_u[image])
        return m_c, None if words.negatives is None else m_u

    def _tell(self, words: Words) -> None:
        states, n = self._composition.states, len(words.prompts)
        if not words.several:
            told = {"context": states[[one[0][0] for one in words.prompts]]}
            if words.negatives is not None:
                told["negative_context"] = states[list(words.negatives)]
            self._denoiser.begin({**self._cond, **told}, self._table, self._shape)
        else:
            texts = [*(words.negatives or (0,) * n), *(text for one in words.prompts for text, _ in one)]
            self._images = np.array([*range(n), *(i for i, one in enumerate(words.prompts) for _ in one)])
            told = {"context": states[texts], **{name: self._spread(value, n) for name, value in self._cond.items()}}
            self._denoiser.begin(told, self._table, (len(texts), *self._shape[1:]))
        self._told = words

    def _spread(self, value: np.ndarray, n: int) -> np.ndarray:
        """A condition of every evaluation: of the images' unconditional halves, then of the prompts."""
        halves = value if len(value) == n else value[n:]
        return np.concatenate([value[:n], halves[self._images[n:]]])
