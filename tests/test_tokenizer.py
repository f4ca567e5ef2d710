"""tokenizer.py against transformers' CLIPTokenizer, on vocabularies of CLIP's form learned here."""

# ruff: noqa: RUF001 (look-alike characters are what is tested)

from __future__ import annotations

import json
import subprocess
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from hotloop.errors import BundleError, InputError, TruncationWarning
from hotloop.tokenizer import Tokenizer, apply_weights, parse_weights

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

# --- Vocabularies ---


def byte_letters() -> list[str]:
    """The letter that stands for each byte, in CLIP's order: printable Latin-1 first, then the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def learn(corpus: Iterator[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges as CLIP has them: bytes, bytes at a word's end, merges, the two special tokens."""
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2, initial_alphabet=byte_letters(), end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    merges = [tuple(m) for m in json.loads(backend.to_str())["model"]["merges"]]
    words = byte_letters()
    words += [letter + "</w>" for letter in words]
    words += [a + b for a, b in merges]
    words = [*list(dict.fromkeys(words))[: size - 2], BEGIN, END]
    vocab = {word: i for i, word in enumerate(words)}
    return vocab, [(a, b) for a, b in merges if {a, b, a + b} <= vocab.keys()]


def grammar() -> Iterator[str]:
    for hair in ("pink", "blue", "silver", "black", "粉色", "紫色"):
        for eyes in ("purple_eyes", "green eyes", "golden eyes", "紫色眼睛"):
            for mood in ("smiling", "angry", "sad", "surprised", "开心", "愤怒"):
                yield f"A cute anime girl with {hair} hair, {eyes}, wearing a school uniform, {mood}, floating_hair"
                yield f"{hair} hair, {eyes}, {mood}, 1girl, highly detailed, 头发 头发 眼镜"


def prose() -> Iterator[str]:
    for text in topics.values():
        yield from text.splitlines()


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def flags(content: str, *, normalized: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": normalized,
        "rstrip": False,
        "single_word": False,
        **more,
    }


def write_model(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    path.mkdir()
    write_json(path / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sd1_folder(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """As Stable Diffusion 1.x ships it: padded with the end token."""
    write_model(path, vocab, merges)
    named = {key: flags(value) for key, value in (("bos_token", BEGIN), ("eos_token", END), ("unk_token", END))}
    write_json(path / "special_tokens_map.json", {**named, "pad_token": END})
    typed = {key: {"__type": "AddedToken", **value} for key, value in named.items()}
    write_json(path / "tokenizer_config.json", {
        **typed, "pad_token": END, "model_max_length": 77, "add_prefix_space": False, "do_lower_case": True,
        "errors": "replace", "tokenizer_class": "CLIPTokenizer",
    })  # fmt: skip


def sd2_folder(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """As Stable Diffusion 2.x ships it: padded with "!", id 0, by special_tokens_map.json's word alone."""
    sd1_folder(path, vocab, merges)
    special = json.loads((path / "special_tokens_map.json").read_text())
    write_json(path / "special_tokens_map.json", {**special, "pad_token": "!"})


def decoder_folder(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """As later 4.x versions save it: the special tokens by id, here with two more words taught to the model."""
    write_model(path, vocab, merges)
    tokens = {str(vocab[t]): flags(t, normalized=False, special=True) for t in (BEGIN, END)}
    tokens[str(len(vocab))] = flags("<my-face>", normalized=True, special=False)
    tokens[str(len(vocab) + 1)] = flags("sksStyle", normalized=False, special=False, single_word=True)
    write_json(path / "tokenizer_config.json", {
        "added_tokens_decoder": tokens, "bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END,
        "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
    })  # fmt: skip


def added_folder(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """With added_tokens.json, as textual inversion leaves it."""
    sd1_folder(path, vocab, merges)
    write_json(path / "added_tokens.json", {"<My-Face>": len(vocab), "粉": len(vocab) + 1})


def bare_folder(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Nothing but the model: the defaults of the class."""
    write_model(path, vocab, merges)


def saved_folder(
    before: Callable[[Path, dict[str, int], list[tuple[str, str]]], None],
) -> Callable[[Path, dict[str, int], list[tuple[str, str]]], None]:
    """What transformers 5 saves after reading another folder: tokenizer.json and no vocab.json."""

    def make(path: Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        before(path.with_name(path.name + "-before"), vocab, merges)
        CLIPTokenizer.from_pretrained(path.with_name(path.name + "-before")).save_pretrained(path)
        assert (path / "tokenizer.json").is_file() and not (path / "vocab.json").exists()

    return make


FOLDERS = {
    "sd1": sd1_folder, "sd2": sd2_folder, "decoder": decoder_folder, "added": added_folder, "bare": bare_folder,
    "sd1-saved": saved_folder(sd1_folder), "sd2-saved": saved_folder(sd2_folder),
    "added-saved": saved_folder(added_folder),
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabularies() -> dict[str, tuple[dict[str, int], list[tuple[str, str]]]]:
    return {"small": learn(grammar(), 1000), "large": learn(prose(), 8000)}


@pytest.fixture(scope="module")
def folder(
    vocabularies: dict[str, tuple[dict[str, int], list[tuple[str, str]]]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    root, made = tmp_path_factory.mktemp("tokenizers"), {}

    def get(size: str, form: str) -> Path:
        path = root / f"{size}-{form}"
        if path not in made:
            FOLDERS[form](path, *vocabularies[size])
            made[path] = True
        return path

    return get


@pytest.fixture(scope="module")
def tok(folder: Callable[[str, str], Path]) -> Tokenizer:
    return Tokenizer.from_dir(folder("large", "sd1"))


def reference(path: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(path)


def reference_ids(clip: CLIPTokenizer, texts: list[str]) -> np.ndarray:
    """As StableDiffusionPipeline.encode_prompt asks for them."""
    return np.array(clip(texts, padding="max_length", max_length=77, truncation=True)["input_ids"])


def plain_ids(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return tokenizer.encode(texts, syntax="plain").ids[:, 0]


# --- Strings ---

CURATED = [
    "",
    " ",
    "\n",
    "\t\r\n\v\f",
    "a",
    "A",
    "!",
    "!!",
    "a!",
    "! a !b",
    "hello world",
    "Hello,World!",
    "  two  spaces  ",
    "\u00a0no-break\u3000ideographic\u2003em\u200bzero\ufeffbom\u2028line\u2029para\x85next\x1cfs\u180emvs",
    "it's we're I'll they've I'm he'd don't rock'n'roll 'S 'RE ''s 's's ’s can’t O'REILLY 'ſ",
    "1girl, 2girls, 3.14159, 100%, 2024-01-01, ½ ² ①Ⅳ٣४三 1,000,000th",
    "snake_case __init__ a_b_c purple_eyes floating_hair",
    "粉色头发 紫色眼睛 开心 愤怒 冷漠 悲伤 惊讶 眼镜",
    "粉色头发的女孩,戴着眼镜。微笑!",
    "日本語カタカナひらがな ﾊﾝｶｸ 한국어 조선말 ｆｕｌｌ Ｗｉｄｔｈ",
    "Ελληνικά Русский עברית العربية हिन्दी ไทย ქართული",
    "naïve café Ångström ﬁ ﬃ Ǆ ẞ ß İstanbul ı ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ",
    "cafe\u0301 A\u030angstro\u0308m e\u0301\u0302\u0303 q\u0323\u0307 \u0301alone 각 \u1100\u1161\u11a8 zalgo̴̵̶̷",
    "😀 😀😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇯🇵🇨🇳 ☺️ ❤️‍🔥 a😀b",
    "\x00 \x01a\x02 b\x7f \x80\x9f \x1b[31mred \ufffd \uffff \U0010ffff \ue000",
    "𝕳𝖊𝖑𝖑𝖔 𝟘𝟙𝟚 𐍈 𓀀 𠀀𪚥 𞤀𞤁",
    "\u202eright to left\u202c \u2066iso\u2069",
    "… — – “quotes” «guillemets» ‘single’ „low“",
    "<|startoftext|>",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "a <|endoftext|> b",
    "<|ENDOFTEXT|>",
    "<|EndOfText|> <|startOfText|>",
    "<|endoftext|><|endoftext|>",
    "<|startoftext|>hi<|endoftext|>",
    "< |endoftext|>",
    "<|endoftext",
    "endoftext|>",
    "</w> a</w>",
    "<my-face> <My-Face> <MY-FACE>x sksStyle asksStyleb sksstyle",
    "(a:1.3) [b] \\(c\\) ((d))",
    "a\\b \\n \\\\",
    "http://example.com/?q=1&r=%20#f",
    "e=mc^2 ∑∫√∞ ≠≤≥ a→b ×÷",
    "$5 €3 £2 ¥1 @home #tag ~tilde `code` {x} |y|",
    "a" * 300,
    "ab" * 150,
    "!" * 200,
    "1" * 100,
    "粉" * 90,
    "é" * 120,
    " ".join(["word"] * 200),
    ", ".join(f"detail number {i}" for i in range(80)),
    "x " * 74 + "y",
    "x " * 75 + "y",
    "x " * 73 + "end",
    "&amp; &lt;b&gt; â€œmojibakeâ€\x9d",
    "\u0345 \u1e9e\u0307 \u0130 i\u0307 \u03a3 ς",
    "\r\nwindows\r\nlines\r\n",
    "tab\tbed",
    "end  ",
]


def random_strings(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = sorted({w for line in list(prose())[:4000] for w in line.split()} | set(" ".join(grammar()).split()))
    ranges = [
        (0x20, 0x7F), (0x00, 0x21), (0x7F, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80),
        (0x1100, 0x1200), (0x1E00, 0x2070), (0x2070, 0x2C00), (0x3000, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7B0),
        (0xE000, 0x10000), (0x10000, 0x12000), (0x1D400, 0x1D800), (0x1F300, 0x1FB00), (0x20000, 0x30000),
    ]  # fmt: skip
    glue = [" ", "  ", ", ", "", "\n", "'s ", "-", "! ", "</w>", "<|endoftext|>", "\u3000", "'"]

    def letters() -> str:
        low, high = ranges[rng.integers(len(ranges))]
        return "".join(chr(c) for c in rng.integers(low, high, rng.integers(1, 12)))

    out = []
    for _ in range(n):
        parts = []
        for _ in range(rng.integers(1, 90 if rng.random() < 0.1 else 12)):
            word = letters() if rng.random() < 0.4 else words[rng.integers(len(words))]
            parts.append(word.upper() if rng.random() < 0.2 else word)
            parts.append(glue[rng.integers(len(glue))])
        text = "".join(parts)
        out.append(unicodedata.normalize("NFD", text) if rng.random() < 0.2 else text)
    return out


STRINGS = CURATED + random_strings(1200, seed=1)


@pytest.mark.parametrize("form", list(FOLDERS))
@pytest.mark.parametrize("size", ["small", "large"])
def test_ids_equal_clip_tokenizer(folder: Callable[[str, str], Path], size: str, form: str) -> None:
    path = folder(size, form)
    assert len(STRINGS) > 1000
    got, want = plain_ids(Tokenizer.from_dir(path), STRINGS), reference_ids(reference(path), STRINGS)
    assert got.dtype == np.int32 and got.shape == (len(STRINGS), 77)
    wrong = [STRINGS[i] for i in np.flatnonzero((got != want).any(axis=1))]
    assert not wrong


def test_ids_equal_clip_tokenizer_on_every_character_alone(folder: Callable[[str, str], Path]) -> None:
    path = folder("small", "sd1")
    characters = [chr(c) for c in range(0x3400) if not 0xD800 <= c < 0xE000]
    tokenizer, clip = Tokenizer.from_dir(path), reference(path)
    texts = ["x".join(characters[i : i + 8]) for i in range(0, len(characters), 8)]
    np.testing.assert_array_equal(plain_ids(tokenizer, texts), reference_ids(clip, texts))


def test_the_learned_vocabularies_use_their_merges(tok: Tokenizer) -> None:
    ids = tok.encode("the interpreter raises an exception when this statement fails", syntax="plain").ids[0, 0]
    assert (ids != tok.pad).sum() + 1 <= 12  # a token per word, or nearly


def test_padding_is_the_end_token_in_sd1_and_id_0_in_sd2(folder: Callable[[str, str], Path]) -> None:
    one, two = (Tokenizer.from_dir(folder("small", form)).encode("a").ids[0, 0] for form in ("sd1", "sd2"))
    assert one[3:].tolist() == [one[2]] * 74 and two[3:].tolist() == [0] * 74 and two[2] == one[2]


# --- Long prompts ---


def test_a_truncated_prompt_warns_with_the_words_it_drops(tok: Tokenizer) -> None:
    text = "x " * 74 + "y dropped\nwords, 粉色"
    with pytest.warns(TruncationWarning, match=r"dropped: dropped words, 粉色 \(") as caught:
        tokens = tok.encode(text)
    assert "\n" not in str(caught[0].message)
    assert tokens.ids.shape == (1, 1, 77)
    assert tokens.ids[0, 0, 0] == tok.begin and tokens.ids[0, 0, 76] == tok.end


def test_a_warning_shows_at_most_300_characters(tok: Tokenizer) -> None:
    with pytest.warns(TruncationWarning) as caught:
        tok.encode("word " * 5000)
    assert len(str(caught[0].message)) < 420


def test_exactly_75_tokens_neither_warn_nor_take_a_second_chunk(tok: Tokenizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tok.encode("x " * 75).ids.shape == (1, 1, 77)
        assert tok.encode("x " * 75, long_prompt="chunk").ids.shape == (1, 1, 77)
        assert tok.encode("x " * 76, long_prompt="chunk").ids.shape == (1, 2, 77)
        assert tok.encode("x " * 75 * 32, long_prompt="chunk").ids.shape == (1, 32, 77)
        with pytest.raises(InputError, match=r"at most 32 windows of 75 tokens, got '33 windows'"):
            tok.encode("x " * (75 * 32 + 1), long_prompt="chunk")


def test_chunks_hold_every_token_in_framed_windows_of_75(tok: Tokenizer, folder: Callable[[str, str], Path]) -> None:
    clip = reference(folder("large", "sd1"))
    text = ", ".join(f"(detail {i}:1.2)" for i in range(60))
    for syntax in ("plain", "a1111"):
        tokens = tok.encode(text, syntax=syntax, long_prompt="chunk")
        inner = []
        for chunk, weights in zip(tokens.ids[0], tokens.weights[0], strict=True):
            assert chunk[0] == tok.begin and weights[0] == 1
            stop = 1 + chunk[1:].tolist().index(tok.end)
            assert (chunk[stop + 1 :] == tok.pad).all() and (weights[stop:] == 1).all()
            inner += chunk[1:stop].tolist()
        assert tokens.ids.shape[1] == -(-len(inner) // 75) > 2
        if syntax == "plain":
            assert inner == clip(text, add_special_tokens=False)["input_ids"]


def test_shorter_prompts_of_a_batch_get_empty_chunks(tok: Tokenizer) -> None:
    tokens = tok.encode(["x", "y " * 100, ""], long_prompt="chunk")
    empty = tok.encode("").ids[0, 0]
    assert tokens.ids.shape == tokens.weights.shape == (3, 2, 77)
    np.testing.assert_array_equal(tokens.ids[0, 1], empty)
    np.testing.assert_array_equal(tokens.ids[2], [empty, empty])
    np.testing.assert_array_equal(tokens.ids[0, 0], tok.encode("x").ids[0, 0])


def test_a_string_and_a_list_of_it_are_the_same_and_empty_is_legal(tok: Tokenizer) -> None:
    np.testing.assert_array_equal(tok.encode("a b").ids, tok.encode(["a b"]).ids)
    assert tok.encode("").ids[0, 0, :2].tolist() == [tok.begin, tok.end]
    assert tok.encode([]).ids.shape == (0, 1, 77)


# --- Weights ---

PARSED = [
    ("", [("", 1)]),
    ("plain text", [("plain text", 1)]),
    ("a (bright) lake", [("a ", 1), ("bright", 1.1), (" lake", 1)]),
    ("((bright))", [("bright", 1.21)]),
    ("[dim]", [("dim", 1 / 1.1)]),
    ("[[dim]]", [("dim", 1 / 1.21)]),
    ("(a:1.3)", [("a", 1.3)]),
    ("(a: 1.3 )(b:.5)(c:-1)(d:+2)(e:0)", [("a", 1.3), ("b", 0.5), ("c", -1), ("d", 2), ("e", 0)]),
    ("((a:1.3))", [("a", 1.43)]),
    ("([a])", [("a", 1)]),
    ("(one)(two)", [("onetwo", 1.1)]),
    (r"\(a\) \[b\] \\ c", [("(a) [b] \\ c", 1)]),
    (r"(a\)b)", [("a)b", 1.1)]),
    (r"a\b", [("ab", 1)]),
    ("(open", [("open", 1.1)]),
    ("a [open", [("a ", 1), ("open", 1 / 1.1)]),
    ("closed) here]", [("closed) here]", 1)]),
    ("(a)) b", [("a", 1.1), (") b", 1)]),
    ("a:1.3) b", [("a:1.3) b", 1)]),
    ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
    ("time 12:30, ratio 1:2", [("time 12:30, ratio 1:2", 1)]),
    ("(a:1.2.3)", [("a:1.2.3)", 1.1)]),
    ("(a:b:1.5)", [("a:b", 1.5)]),
    ("()", [("", 1)]),
    ("(粉色头发:1.2)，微笑", [("粉色头发", 1.2), ("，微笑", 1)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
    (
        "a (((castle:1.3)) [by] a (lake:0.5), dawn, (((fog))).",  # the first bracket never closes
        [("a ", 1), ("castle", 1.573), (" ", 1.1), ("by", 1), (" a ", 1.1), ("lake", 0.55), (", dawn, ", 1.1),
         ("fog", 1.4641), (".", 1.1)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "want"), PARSED, ids=[repr(t) for t, _ in PARSED])
def test_prompt_weights_are_read_as_a1111_reads_them(text: str, want: list[tuple[str, float]]) -> None:
    got = parse_weights(text)
    assert [part for part, _ in got] == [part for part, _ in want]
    assert [weight for _, weight in got] == pytest.approx([weight for _, weight in want])


def test_every_token_carries_the_weight_of_its_segment(tok: Tokenizer) -> None:
    tokens = tok.encode("a (b c:1.5) [d]")
    assert tokens.weights.dtype == np.float32
    assert tokens.weights[0, 0, :7].tolist() == pytest.approx([1, 1, 1.5, 1.5, 1 / 1.1, 1, 1])
    np.testing.assert_array_equal(tokens.ids, tok.encode("a b c d").ids)


def test_plain_syntax_takes_brackets_as_text(tok: Tokenizer, folder: Callable[[str, str], Path]) -> None:
    texts = ["a (b:1.5) [d]", r"\(c\)"]
    tokens = tok.encode(texts, syntax="plain")
    assert (tokens.weights == 1).all()
    np.testing.assert_array_equal(tokens.ids[:, 0], reference_ids(reference(folder("large", "sd1")), texts))


def test_both_syntaxes_agree_where_there_is_no_bracket_and_no_backslash(tok: Tokenizer) -> None:
    texts = [text for text in STRINGS if not set(text) & set("()[]\\")]
    assert len(texts) > 500
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        np.testing.assert_array_equal(tok.encode(texts).ids, tok.encode(texts, syntax="plain").ids)


def test_apply_weights_multiplies_and_restores_each_rows_mean() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(0.1, 1, (3, 77, 16)).astype(np.float32)
    weights = np.ones((3, 77), np.float32)
    weights[1, 3:9], weights[2, 5] = 1.3, 0.0
    got = apply_weights(hidden, weights)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0], hidden[0])
    np.testing.assert_allclose(got.mean(axis=(1, 2)), hidden.mean(axis=(1, 2)), rtol=1e-4)
    for row in (1, 2):
        weighted = hidden[row].astype(np.float64) * weights[row][:, None]
        np.testing.assert_allclose(got[row], weighted * hidden[row].mean() / weighted.mean(), rtol=1e-3)
        np.testing.assert_array_equal(got[row], apply_weights(hidden[row : row + 1], weights[row : row + 1])[0])
    assert (apply_weights(np.zeros((1, 4, 2), np.float32), weights[:1, :4]) == 0).all()


# --- What is refused ---


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a" * 1_000_000, "[prompt] prompt must have at most 100000 characters, got 1000000"),
        ("lone \ud800 surrogate", "[prompt] prompt must be valid Unicode"),
        ("(" * 101 + "a", "[prompt] brackets must nest at most 100 deep"),
        ("[" * 100_000, "[prompt] brackets must nest at most 100 deep"),
        ("(a:1000)", "[prompt] weights must be from -100 to 100, got 'a:1000'"),
        ("(" * 90 + "a" + ")" * 90, "[prompt] weights must be from -100 to 100"),
        ("(a:" + "9" * 400 + ")", "[prompt] weights must be from -100 to 100, got 'a:inf'"),
        (7, "[prompt] prompt must be text, got 7"),
        (None, "[prompt] prompt must be text, got None"),
    ],
    ids=range(9),
)
def test_bad_prompts_are_refused_in_one_short_line(tok: Tokenizer, text: Any, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        tok.encode([text])
    line = str(caught.value)
    assert line.startswith(rule) and len(line) < 300 and "\n" not in line


def test_unknown_settings_are_refused(tok: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"prompt_syntax must be one of a1111, plain, got 'compel'"):
        tok.encode("a", syntax="compel")
    with pytest.raises(InputError, match=r"long_prompt must be one of truncate, chunk, got 'cut'"):
        tok.encode("a", long_prompt="cut")


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "(a" * 99 + ")" * 99_000, "[a](b)" * 16_000, ":" * 100_000, "(a:1" * 99 + "." * 99_000]
)
def test_the_longest_prompt_allowed_takes_no_more_than_seconds(tok: Tokenizer, text: str) -> None:
    start = time.perf_counter()
    try:
        tok.encode(text, long_prompt="chunk")
    except InputError as error:
        assert "weights must be" in str(error) or "at most 32 windows" in str(error)
    assert time.perf_counter() - start < 5


def test_a_folder_that_is_broken_is_refused_by_name(
    tmp_path: Path, vocabularies: dict[str, tuple[dict[str, int], list[tuple[str, str]]]]
) -> None:
    vocab, merges = vocabularies["small"]
    breaks: dict[str, Callable[[Path], object]] = {
        "gone": lambda p: (p / "vocab.json").unlink(),
        "merges": lambda p: (p / "merges.txt").unlink(),
        "cut": lambda p: (p / "vocab.json").write_text('{"a": 1'),
        "list": lambda p: (p / "vocab.json").write_text("[1, 2]"),
        "other": lambda p: (p / "merges.txt").write_text("#version\nno such\n"),
        "three": lambda p: (p / "merges.txt").write_text("a b c\n"),
        "binary": lambda p: (p / "merges.txt").write_bytes(b"\xff\xfe\x00"),
        "config": lambda p: (p / "tokenizer_config.json").write_text("{"),
        "fast": lambda p: (p / "tokenizer.json").write_text('{"model": {}}'),
    }
    for name, damage in breaks.items():
        path = tmp_path / name
        sd1_folder(path, vocab, merges)
        damage(path)
        with pytest.raises(BundleError, match=r"^\[tokenizer\] .*, got .*" + name):
            Tokenizer.from_dir(path)
    with pytest.raises(BundleError, match=r"vocab\.json"):
        Tokenizer.from_dir(tmp_path / "nowhere")


def test_importing_the_module_loads_neither_tokenizers_nor_transformers() -> None:
    code = "import sys, hotloop.tokenizer; print({'tokenizers', 'transformers', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
