"""What a model's own tokenizer and embedding table make of a prompt, for a library that has another vocabulary.

PYTHON clip_rows.py MODEL PROMPT FILE  writes the rows as a textual inversion.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["embedding_table", "tokenizer"]

_TABLE = "text_model.embeddings.token_embedding.weight"


def tokenizer(model: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)


def embedding_table(text_encoder: dict[str, np.ndarray]) -> np.ndarray:
    """[vocabulary, channels]; transformers 5 leaves the first part of its name out."""
    return text_encoder[_TABLE if _TABLE in text_encoder else _TABLE.removeprefix("text_model.")]


def write(model: Path, prompt: str, file: Path) -> None:
    """The rows of a prompt's tokens, without those that begin and end it."""
    from safetensors.numpy import load_file, save_file

    ids = tokenizer(model)(prompt, truncation=True, max_length=77).input_ids[1:-1]
    table = embedding_table(load_file(model / "text_encoder" / "model.safetensors"))
    save_file({"emb_params": table[ids].astype(np.float32)}, file)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
