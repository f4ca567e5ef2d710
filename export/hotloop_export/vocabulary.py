"""CLIP's vocabulary where people have it, for checkpoints in single files, which carry no tokenizer.

All of Stable Diffusion 1.x and 2.x was trained on one vocabulary of 49,408 tokens (Radford et al. 2021). It is looked
for, in this order, and taken only when it is that one, merge by merge:

1. Hugging Face's cache (`HF_HUB_CACHE`, `HF_HOME`, `~/.cache/huggingface`): `vocab.json` and `merges.txt` in any
   model's snapshot, or in its `tokenizer/`
2. installed packages that carry `bpe_simple_vocab_16e6.txt.gz`: clip, open_clip, then any other. It is read as a data
   file: no package is imported

Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from hotloop.files import MOST_TEXT, cache_folder, read_file

__all__ = ["HOW_TO_GET", "TOKENS", "Found", "find_merges", "vocabulary", "write_tokenizer"]

TOKENS = 49408
HOW_TO_GET = "pip install --no-deps clip-anytorch"
# Of the merges, one a line, without the file's first line.
_MERGES = 48894
_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
_PACKED = "bpe_simple_vocab_16e6.txt.gz"
_PACKAGES = ("clip", "open_clip")
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_LENGTH = 77

Found = tuple[Path, list[str]]


def find_merges() -> Found | None:
    """(the file, its 48,894 merges) of the first place that has the true vocabulary; None when there is none."""
    for file in (*_in_hub_cache(), *_in_packages()):
        merges = _read(file)
        if len(merges) == _MERGES and hashlib.sha256("\n".join(merges).encode()).hexdigest() == _SHA256:
            return file, merges
    return None


def _read(file: Path) -> list[str]:
    """The merges in a file as Hugging Face keeps it, or as CLIP does, with more of them than it uses."""
    try:
        raw = read_file(file, most=MOST_TEXT)
        # Not splitlines(): some of the characters that stand for bytes would count as line ends.
        lines = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode().split("\n")
    except (OSError, ValueError, EOFError):
        return []
    return lines[1 : 1 + _MERGES]


def _in_hub_cache() -> Iterator[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    hub = Path(os.environ.get("HF_HOME") or home) / "hub"
    for name in ("HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"):  # the second is today's, and counts
        hub = Path(os.environ.get(name) or hub)
    for pattern in ("models--*/snapshots/*/tokenizer/merges.txt", "models--*/snapshots/*/merges.txt"):
        yield from sorted(hub.expanduser().glob(pattern))


def _in_packages() -> Iterator[Path]:
    for name in _PACKAGES:
        spec = find_spec(name)  # a package's own name: nothing of it is run
        for place in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(place) / _PACKED
    for distribution in distributions():
        yield from (Path(str(file.locate())) for file in distribution.files or () if file.name == _PACKED)


def vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """Every token's id: the letters that stand for bytes, the same at a word's end, the merges, begin and end."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # bytes that print as nothing
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(m.split()) for m in merges), _BEGIN, _END]
    return {token: i for i, token in enumerate(tokens)}


def write_tokenizer(merges: Sequence[str], *, pad: str = _END) -> Path:
    """A tokenizer's folder in hotloop's cache, with the files that stock loaders read. pad: the token after the end."""
    kind = "end" if pad == _END else f"{ord(pad):x}"
    folder = cache_folder() / "tokenizers" / f"clip-{_SHA256[:12]}-{kind}"
    special = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": pad}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": _LENGTH}
    files = {
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "vocab.json": json.dumps(vocabulary(merges), ensure_ascii=False),
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps(config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        file = folder / name
        if not file.is_file() or file.read_text("utf-8") != text:
            work = file.with_name(f".{name}.{os.getpid()}")
            work.write_text(text, "utf-8", newline="\n")
            work.replace(file)
    return folder
