"""Textual inversion (Gal et al. 2022): words of one's own, on a running pipeline.

The vectors take the rows of tokens that no text can give (`Tokenizer.spare`), so the token table keeps its shape and no
engine is made anew but by patching that one weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import sha256
from ..tokenizer import Tokenizer, series
from ..weights import Weights, refuse_non_finite

__all__ = ["MAX_VECTORS", "TOKEN_TABLE", "Embedding", "check_tokens", "open_embedding", "place_words"]

MAX_VECTORS = 75  # what one window of a prompt holds
MAX_NAME = 128
TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"

_A1111 = "emb_params"
_SDXL = {"clip_l", "clip_g"}
# Brackets and backslashes are a prompt's emphasis: a name with them would be cut apart.
_SYNTAX = set("()[]\\")


@dataclass(frozen=True)
class Embedding:
    """A learned word: the token that stands for it in prompts, its vectors f32 [n, C], the hash of its file."""

    token: str
    vectors: npt.NDArray[np.float32]
    sha256: str

    @property
    def tokens(self) -> list[str]:
        """One per vector, named as diffusers names them: token, token_1, token_2, ..."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors)))]


def open_embedding(path: str | Path, *, token: str | None = None) -> Embedding:
    """Read a textual inversion: diffusers' file (its only tensor's name is the token) or A1111's (`emb_params`; the
    file's name is the token). `token` overrides the name.

    Raises InputError for a file that is something else, SDXL's, empty or too long, and for a name that cannot be a
    token; BundleError for one that is not safetensors (a pickled .pt or .bin must be converted) or not finite.
    """
    path = Path(path)
    weights = Weights.open(path)
    names = set(weights)
    if names & _SDXL:
        raise InputError("embedding", f"{path.name} must be for Stable Diffusion 1.x or 2.x, this one is for SDXL")
    if len(names) != 1 and _A1111 not in names:
        raise InputError("embedding", f"{path.name} must hold one tensor, named by its token", sorted(names)[:5])
    key = _A1111 if _A1111 in names else names.pop()
    if len(weights) > 1:
        raise InputError("embedding", f"{path.name} must hold {_A1111} alone", sorted(weights)[:5])
    refuse_non_finite(weights)
    vectors = weights[key]
    if vectors.dtype.kind != "f" or vectors.ndim not in (1, 2):
        kind = f"{vectors.dtype} {list(vectors.shape)}"
        raise InputError("embedding", f"{path.name} must hold vectors [C] or [n, C] in floating point", kind)
    vectors = np.atleast_2d(vectors).astype(np.float32)
    if not 0 < len(vectors) <= MAX_VECTORS or not vectors.shape[1]:
        raise InputError("embedding", f"{path.name} must hold 1 to {MAX_VECTORS} vectors", vectors.shape)
    name = token if token is not None else path.stem if key == _A1111 else key
    _check_name(name)
    return Embedding(name, vectors, sha256(path))


def _check_name(name: str) -> None:
    if not name or name != name.strip():
        raise InputError("embedding", "the token must be a word, not empty and without space around it", name)
    if not name.isprintable() or len(name) > MAX_NAME or _SYNTAX & set(name):
        rule = (
            f"the token must be printable, at most {MAX_NAME} characters, without ( ) [ ] \\ : choose another (token=)"
        )
        raise InputError("embedding", rule, name)


def check_tokens(embeddings: Sequence[Embedding], tokenizer: Tokenizer) -> None:
    """Every token is new, and no name continues another's: `cat_1` beside `cat` would be cat's second vector."""
    own = set(tokenizer.vocabulary(added=False))
    learned = sorted(set(tokenizer.vocabulary()) - own)
    taken = {name.lower() for name in learned}
    tokens = list(learned)
    for one in embeddings:
        for token in one.tokens:
            if token in own or token.lower() in taken:
                raise InputError("embedding", "a token must be new to the tokenizer, whatever its capitals", token)
        taken |= {token.lower() for token in one.tokens}
        tokens += one.tokens
    before, after = series(learned), series(tokens)
    before |= {one.token: one.tokens for one in embeddings}
    for name in [*learned, *(one.token for one in embeddings)]:
        if after.get(name, [name]) != before.get(name, [name]):
            rule = f"tokens must not read as numbered parts of one another: {name} would be"
            raise InputError("embedding", rule, after.get(name, [name])[:5])


def place_words(
    tokenizer: Tokenizer, table: npt.NDArray[np.float32], embeddings: Sequence[Embedding]
) -> tuple[Tokenizer, npt.NDArray[np.float32]]:
    """The tokenizer that knows the words, and the token table f32 [V, C] with their vectors in rows no text can give.

    Raises InputError for vectors of another width, a word that exists already, and more vectors than there is room for.
    """
    for one in embeddings:
        if one.vectors.shape[1] != table.shape[1]:
            rule = f"{one.token} must be for this model, whose token vectors are {table.shape[1]} wide"
            raise InputError("embedding", rule, one.vectors.shape[1])
    check_tokens(embeddings, tokenizer)
    spare, count = tokenizer.spare(), sum(len(one.vectors) for one in embeddings)
    if count > len(spare):
        rule = f"a running pipeline has room for {len(spare)} vectors: hotloop export --embedding takes any number"
        raise InputError("embedding", rule, count)
    table, rows = table.copy(), iter(spare)
    words = {one.token: [next(rows) for _ in one.vectors] for one in embeddings}
    for one in embeddings:
        table[words[one.token]] = one.vectors
    parts = {name: [row] for one in embeddings for name, row in zip(one.tokens[1:], words[one.token][1:], strict=True)}
    placed = tokenizer.with_words(words | parts)
    for one in embeddings:
        ids = placed.encode(one.token, syntax="plain", long_prompt="chunk").ids[0, 0]
        if ids[1 : len(words[one.token]) + 1].tolist() != words[one.token]:
            raise InputError("embedding", "the tokenizer must read a token as one: choose another name", one.token)
    return placed, table
