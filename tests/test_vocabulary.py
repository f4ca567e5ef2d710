"""CLIP's vocabulary is found where people have it, is the true one, and gives transformers' token ids."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from hotloop.tokenizer import Tokenizer
from hotloop_export import vocabulary

# Ids of these prompts, without begin and end: made with transformers 5.23's CLIPTokenizer on the vocabulary published
# with CLIP (https://github.com/openai/CLIP, `bpe_simple_vocab_16e6.txt.gz`, SHA-256 924691ac...).
PUBLISHED: dict[str, list[int]] = {
    'a photo of a cat': [320, 1125, 539, 320, 2368],
    'A cute anime girl with pink hair, smiling': [320, 2242, 6469, 1611, 593, 3360, 2225, 267, 9200],
    '': [],
    'masterpiece, best quality, 1girl, solo': [12066, 267, 949, 3027, 267, 272, 1611, 267, 5797],
    "don't you've I'M": [847, 713, 592, 1200, 328, 880],
    'ein Mädchen mit grünen Augen': [24524, 76, 10896, 67, 8983, 4551, 709, 6522, 15451, 627, 3278],
    '女の子、笑顔': [29290, 111, 21575, 35751, 494, 45262, 163, 105, 239, 165, 94, 498],
    '😀 emoji 👩\u200d🎨': [7334, 16327, 26304, 13461],
    '(word:1.3) [x] 512x768': [263, 2653, 281, 272, 269, 274, 264, 314, 343, 316, 276, 272, 273, 343, 278, 277, 279],
    '  many\t\n spaces  ': [1346, 9006],
    'ftfy: “quotes” … ﬁ': [3391, 2702, 281, 728, 506, 5808, 728, 507, 959, 171, 105, 479],
    'antidisestablishmentarianism': [3120, 4262, 7726, 12658, 1585, 44351],
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Four merges that stand for CLIP's, and a machine that has none of its own."""
    merges = ["h i</w>", "t h", "th e</w>", "é ¨"]
    monkeypatch.setattr(vocabulary, "_MERGES", len(merges))
    monkeypatch.setattr(vocabulary, "_SHA256", hashlib.sha256("\n".join(merges).encode()).hexdigest())
    monkeypatch.setattr(vocabulary, "distributions", lambda: iter(()))
    monkeypatch.setattr(vocabulary, "find_spec", lambda name: None)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOTLOOP_CACHE", str(tmp_path / "cache"))
    return merges


def write_merges(folder: Path, merges: list[str]) -> Path:
    folder.mkdir(parents=True)
    file = folder / "merges.txt"
    file.write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    return file


@pytest.mark.parametrize(
    ("variable", "place"),
    [("", "home/.cache/huggingface/hub"), ("XDG_CACHE_HOME", "x/huggingface/hub"), ("HF_HOME", "x/hub"),
     ("HF_HUB_CACHE", "x"), ("HUGGINGFACE_HUB_CACHE", "x")],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["tokenizer", ""])
def test_it_is_found_in_the_hub_cache(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, place: str, inside: str
) -> None:
    assert vocabulary.find_merges() is None
    write_merges(tmp_path / place / "models--a--other/snapshots/0123" / inside, small[:-1])
    assert vocabulary.find_merges() is None, "another vocabulary is passed over"
    file = write_merges(tmp_path / place / "models--b--clip/snapshots/4567" / inside, small)
    if variable:
        assert vocabulary.find_merges() is None
        monkeypatch.setenv(variable, str(tmp_path / "x"))
    assert vocabulary.find_merges() == (file, small)


@pytest.mark.parametrize("damage", [None, "cut", "other"])
def test_it_is_read_from_a_package_that_is_never_imported(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str | None
) -> None:
    from importlib.util import find_spec

    package = tmp_path / "site/open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    lines = ["#version: 0.2", *(small if damage != "other" else small[::-1]), "more than CLIP uses", ""]
    packed = gzip.compress("\n".join(lines).encode())
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(packed[:-9] if damage == "cut" else packed)
    monkeypatch.setattr(vocabulary, "find_spec", find_spec)
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = vocabulary.find_merges()
    assert found == (None if damage else (package / "bpe_simple_vocab_16e6.txt.gz", small))
    assert "open_clip" not in sys.modules


def test_the_files_are_those_that_stock_loaders_read(small: list[str]) -> None:
    for pad in ("<|endoftext|>", "!"):
        folder = vocabulary.write_tokenizer(small, pad=pad)
        assert vocabulary.write_tokenizer(small, pad=pad) == folder
        ours, theirs = Tokenizer.from_dir(folder), transformers.CLIPTokenizer.from_pretrained(folder)
        assert theirs.model_max_length == ours.length == 77
        texts = ["hi the é", "", "hi!"]
        want = theirs(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
        assert np.array_equal(ours.encode(texts, syntax="plain").ids[:, 0], want)
    assert len(json.loads((folder / "vocab.json").read_text("utf-8"))) == 512 + len(small) + 2


# --- The true one -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's folder of the true vocabulary; `make test` installs a package that carries it."""
    found = vocabulary.find_merges()
    if found is None:
        pytest.skip(f"needs CLIP's vocabulary: {vocabulary.HOW_TO_GET}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTLOOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return vocabulary.write_tokenizer(found[1])


def test_token_ids_of_the_true_vocabulary_are_the_published_ones(clip: Path) -> None:
    tokenizer = Tokenizer.from_dir(clip)
    tokens = tokenizer.vocabulary()
    assert (len(tokens), tokenizer.begin, tokenizer.end, tokenizer.pad) == (vocabulary.TOKENS, 49406, 49407, 49407)
    assert sorted(tokens.values()) == list(range(vocabulary.TOKENS))
    for text, ids in PUBLISHED.items():
        row = tokenizer.encode(text, syntax="plain").ids[0, 0].tolist()
        assert row == [49406, *ids, *[49407] * (76 - len(ids))], text


def test_token_ids_of_the_true_vocabulary_equal_transformers(clip: Path) -> None:
    words = [token.removesuffix("</w>") for token in json.loads((clip / "vocab.json").read_text("utf-8"))]
    rng = np.random.default_rng(4)
    texts = [" ".join(rng.choice(words[512:-2], 20)) for _ in range(150)] + [*PUBLISHED]
    texts += ["".join(map(chr, rng.integers(32, 0x3000, 40))) for _ in range(50)]
    theirs = transformers.CLIPTokenizer.from_pretrained(clip)
    want = theirs(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
    assert np.array_equal(Tokenizer.from_dir(clip).encode(texts, syntax="plain", long_prompt="chunk").ids[:, 0, :50],
                          want[:, :50])  # fmt: skip
