"""Textual inversion (Gal et al. 2022): words of one's own, learned as rows of the text encoder's token table."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotloop.errors import InputError
from hotloop.files import read_json
from hotloop.tokenizer import Tokenizer, series
from hotloop.weights import Weights, refuse_non_finite

__all__ = ["MAX_VECTORS", "Embedding", "add_embeddings", "open_embedding"]

MAX_VECTORS = 75  # what one window of a prompt holds
MAX_NAME = 128

_A1111 = "emb_params"
_SDXL = {"clip_l", "clip_g"}
# Brackets and backslashes are a prompt's emphasis: a name with them would be cut apart.
_SYNTAX = set("()[]\\")
_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


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
    return Embedding(name, vectors, hashlib.sha256(path.read_bytes()).hexdigest())


def _check_name(name: str) -> None:
    if not name or name != name.strip():
        raise InputError("embedding", "the token must be a word, not empty and without space around it", name)
    if not name.isprintable() or len(name) > MAX_NAME or _SYNTAX & set(name):
        rule = (
            f"the token must be printable, at most {MAX_NAME} characters, without ( ) [ ] \\ : choose another (token=)"
        )
        raise InputError("embedding", rule, name)


def add_embeddings(
    source: str | Path, table: npt.NDArray[Any], embeddings: Sequence[Embedding], out: str | Path
) -> npt.NDArray[Any]:
    """Teach tokenizer and token table new words: the table with their rows, [V + k, C], dtype as it was.

    source   a diffusers tokenizer folder; its files are copied to `out`, another one, with the tokens added, for
             Tokenizer here and CLIPTokenizer of transformers alike
    table    the text encoder's token_embedding, [V, C], a row for each of the tokenizer's tokens; the encoder's
             configuration must be told the new vocab_size, V + k
    Raises InputError for vectors of another width, values too large for the table's dtype, a token that exists
    already (in any case of letters: CLIP knows no capitals) and names that would read as one another's numbered parts.
    """
    source, out = Path(source), Path(out)
    if source.resolve() == out.resolve():
        raise InputError("embedding", "the tokenizer with the new tokens must go to another folder", str(out))
    tokenizer = Tokenizer.from_dir(source)
    known = tokenizer.vocabulary()
    if table.ndim != 2 or len(table) != len(known):
        rule = f"the token table must have a row for each of the tokenizer's {len(known)} tokens"
        raise InputError("embedding", rule, table.shape)
    for one in embeddings:
        if one.vectors.shape[1] != table.shape[1]:
            rule = f"{one.token} must be for this model, whose token vectors are {table.shape[1]} wide"
            raise InputError("embedding", rule, one.vectors.shape[1])
    _check_tokens(embeddings, tokenizer)
    tokens = [token for one in embeddings for token in one.tokens]
    ids = {token: len(known) + i for i, token in enumerate(tokens)}
    with np.errstate(over="ignore"):
        rows = [one.vectors.astype(table.dtype) for one in embeddings]
    for one, row in zip(embeddings, rows, strict=True):
        if not np.isfinite(row).all():
            raise InputError("embedding", f"{one.token} must be finite as {table.dtype}", float(abs(one.vectors).max()))
    _write(source, out, ids)
    _check_read(Tokenizer.from_dir(out), embeddings, ids)
    return np.concatenate([table, *rows])


def _check_tokens(embeddings: Sequence[Embedding], tokenizer: Tokenizer) -> None:
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


def _write(source: Path, out: Path, ids: dict[str, int]) -> None:
    """The tokenizer's files, with the new tokens in each that lists added ones.

    transformers 5 reads the configuration's list where there is one, else added_tokens.json, and tokenizer.json with
    either; transformers 4 reads added_tokens.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    config = read_json(out / "tokenizer_config.json", place="embedding", optional=True)
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(i): {"content": token, **flags} for token, i in ids.items()}
        _save(out / "tokenizer_config.json", config)
    whole = read_json(out / "tokenizer.json", place="embedding", optional=True)
    if whole:
        whole["added_tokens"] = [
            *whole.get("added_tokens", []), *({"id": i, "content": token, **flags} for token, i in ids.items())
        ]  # fmt: skip
        _save(out / "tokenizer.json", whole)
    _save(out / "added_tokens.json", read_json(out / "added_tokens.json", place="embedding", optional=True) | ids)


def _check_read(tokenizer: Tokenizer, embeddings: Sequence[Embedding], ids: dict[str, int]) -> None:
    """A name may still be read as something else, by a special token within it, say."""
    for one in embeddings:
        want = [ids[token] for token in one.tokens]
        tokens = tokenizer.encode(one.token, syntax="plain", long_prompt="chunk")
        if tokens.ids[0, 0, 1 : len(want) + 1].tolist() != want:
            raise InputError("embedding", "the tokenizer must read a token as one: choose another name", one.token)


def _save(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
