"""A small CLIP tokenizer, learned on the caption grammar: `python models/avatar/vocabulary.py` writes tokenizer/.

It is CLIP's own byte-level BPE (lower case, `</w>` ends a word): 256 bytes, 256 bytes that end a word, the merges, the
two special tokens. Any UTF-8 text encodes; every word of the grammar is one token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from captions import full_prompt, make_caption, two_caption
from render import sample_face, sample_two
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

__all__ = ["FOLDER", "learn", "words", "write"]

FOLDER = Path(__file__).parent / "tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Words a prompt may well use that the captions do not.
_EXTRA = (
    "woman man female male children anime cartoon illustration portrait of the is and or in on at wearing has who "
    "looking face eyes hair smile glasses high low quality very beautiful handsome young background painting picture "
    "photo "
    "person people elderly grandmother grandfather kid teenager smile crying shocked calm blond white silver "
    "粉色 紫色 蓝色 红色 绿色 黑色 金色 银色 棕色 头发 眼睛 眼镜 动漫 可爱 微笑 的 老人 小孩 女孩 男孩 校服 西装 和服"
)


def _alphabet() -> list[str]:
    """A printable character for every byte, as GPT-2 assigns them: printable bytes stand for themselves, the others
    follow from U+0100 on. Listed in CLIP's order, printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def _bytes() -> dict[int, str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [b for b in range(256) if b not in printable]
    return dict(zip([*printable, *rest], _alphabet(), strict=True))


def words(texts: Iterable[str]) -> Counter[str]:
    """How often each word (as CLIP splits text) occurs."""
    split = Split(Regex(_WORD), behavior="removed", invert=True)
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(text.lower()))


def learn(counts: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word is one token (Sennrich et al. 2016)."""
    letter = _bytes()
    pieces = {}
    for word in sorted(counts):
        symbols = [letter[b] for b in word.encode()]
        pieces[word] = [*symbols[:-1], symbols[-1] + "</w>"]
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in pieces.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for symbols in pieces.values():
            i = 0
            while i < len(symbols) - 1:
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
                i += 1


def write(folder: Path = FOLDER, *, faces: int = 6_000) -> None:
    """Learns on the captions of the first faces and writes the files that transformers' CLIPTokenizer reads."""
    texts = [make_caption(sample_face(seed), seed).text for seed in range(faces)]
    texts += [full_prompt(sample_face(seed, natural=False), seed).text for seed in range(faces // 4)]
    texts += [two_caption(sample_two(seed), seed).text for seed in range(faces // 8)]
    counts = words([*texts, *_EXTRA.split(" ")])
    merges = learn(counts)
    alphabet = _alphabet()
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)

    def put(name: str, value: object) -> None:
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    put("vocab.json", vocabulary)
    put("special_tokens_map.json", special)
    put("tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace",
        "add_prefix_space": False, **special,
    })  # fmt: skip
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
