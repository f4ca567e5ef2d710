"""Textual inversion (Gal et al. 2022): words of one's own, learned as rows of the text encoder's token table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotloop.adapters.embedding import Embedding, check_tokens
from hotloop.errors import InputError
from hotloop.files import read_json
from hotloop.tokenizer import Tokenizer

__all__ = ["add_embeddings"]

_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


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
    check_tokens(embeddings, tokenizer)
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
