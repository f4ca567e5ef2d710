"""Textual inversion against diffusers' load_textual_inversion and transformers' CLIPTokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from hotloop.adapters.embedding import MAX_VECTORS, Embedding, open_embedding
from hotloop.bundle import builtin
from hotloop.errors import BundleError, InputError, TruncationWarning
from hotloop.tokenizer import Tokenizer
from hotloop_export.embeddings import add_embeddings

WIDTH = 12
SOURCE = Path(builtin()) / "tokenizer"
CLIP = transformers.CLIPTokenizer


def vectors(n: int, *, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def learned(token: str, n: int = 1, *, width: int = WIDTH, seed: int = 0) -> Embedding:
    return Embedding(token, vectors(n, width=width, seed=seed).numpy(), "0" * 64)


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


# --- Forms of the folder ---


def as_published(path: Path) -> None:
    shutil.copytree(SOURCE, path)


def as_transformers_4_saves(path: Path) -> None:
    """The special tokens by id, and added_tokens.json beside."""
    shutil.copytree(SOURCE, path)
    vocab = json.loads((path / "vocab.json").read_text())
    config = json.loads((path / "tokenizer_config.json").read_text())
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = [word for word in vocab if word.startswith("<|")]
    config["added_tokens_decoder"] = {str(vocab[word]): {"content": word, **special} for word in tokens}
    config |= {f"{name}_token": tokens[1] for name in ("eos", "unk", "pad")} | {"bos_token": tokens[0]}
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def as_transformers_5_saves(path: Path) -> None:
    """tokenizer.json alone."""
    CLIP.from_pretrained(SOURCE).save_pretrained(path)
    assert (path / "tokenizer.json").is_file() and not (path / "vocab.json").exists()


def with_a_word_before(path: Path) -> None:
    shutil.copytree(SOURCE, path)
    (path / "added_tokens.json").write_text(json.dumps({"<earlier>": len(CLIP.from_pretrained(SOURCE))}))


FORMS: dict[str, Callable[[Path], None]] = {
    form.__name__.replace("_", " "): form
    for form in (as_published, as_transformers_4_saves, as_transformers_5_saves, with_a_word_before)
}


def stock(folder: Path) -> Any:
    """A stock pipeline with that tokenizer and a narrow text encoder."""
    tokenizer = CLIP.from_pretrained(folder)
    torch.manual_seed(1)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=None, tokenizer=tokenizer, text_encoder=text, unet=None, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def table_of(pipe: Any) -> np.ndarray:
    return pipe.text_encoder.get_input_embeddings().weight.detach().numpy().copy()


def stock_ids(pipe: Any, prompts: list[str], tokenizer: Any = None) -> np.ndarray:
    """As StableDiffusionPipeline.encode_prompt makes them."""
    tokenizer = tokenizer or pipe.tokenizer
    prompts = [pipe.maybe_convert_prompt(prompt, tokenizer) for prompt in prompts]
    return np.array(tokenizer(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"])


WORDS = {
    "<cat-toy>": 1,
    "mystyle": 3,
    "bad-hands-v2": 12,
    "粉猫": 2,
    "verybad_v1.3": 75,
    "OneWord": 1,
    "EasyNegative": 4,
}
PROMPTS = [
    "a photo of <cat-toy>", "a photo of mystyle, blue hair", "mystyle", "mystyle mystyle", "mystylemystyle",
    "in mystyle with <cat-toy> and a mystyle hat, bad-hands-v2", "<cat-toy><cat-toy>", "mystyles and amystyle",
    "粉猫,微笑", "pink hair, 粉猫 smiling", "no trigger here", "", "mystyle_1 alone", "verybad_v1.3",
    "a girl, verybad_v1.3, smiling", "<CAT-TOY> in capitals", "oneword, OneWord and ONEWORD",
    "< cat-toy>", "my style", "mystyle" * 30,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::hotloop.errors.TruncationWarning")
@pytest.mark.parametrize("form", list(FORMS))
def test_ids_and_rows_are_those_of_load_textual_inversion(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "before")
    pipe = stock(tmp_path / "before")
    table = table_of(pipe)
    files = [
        saved(tmp_path / f"{i}.safetensors", {token: vectors(n, seed=i)}) for i, (token, n) in enumerate(WORDS.items())
    ]
    new = add_embeddings(tmp_path / "before", table, [open_embedding(file) for file in files], tmp_path / "after")
    for path in files:
        pipe.load_textual_inversion(str(path))
    np.testing.assert_array_equal(new, table_of(pipe))
    assert new.dtype == table.dtype and len(new) == len(table) + sum(WORDS.values())
    ours = Tokenizer.from_dir(tmp_path / "after")
    want = stock_ids(pipe, PROMPTS)
    assert (want >= len(table)).any(axis=1).sum() == len(PROMPTS) - 4
    np.testing.assert_array_equal(ours.encode(PROMPTS, syntax="plain").ids[:, 0], want)
    # The folder itself, in stock hands.
    np.testing.assert_array_equal(stock_ids(pipe, PROMPTS, CLIP.from_pretrained(tmp_path / "after")), want)


def test_words_can_be_added_to_words_that_were_added(tmp_path: Path) -> None:
    table = np.zeros((len(CLIP.from_pretrained(SOURCE)), WIDTH), np.float16)
    one = add_embeddings(SOURCE, table, [learned("mystyle", 2)], tmp_path / "one")
    two = add_embeddings(tmp_path / "one", one, [learned("<cat-toy>", 3)], tmp_path / "two")
    assert two.dtype == np.float16 and len(two) == len(table) + 5
    at_once = add_embeddings(SOURCE, table, [learned("mystyle", 2), learned("<cat-toy>", 3)], tmp_path / "both")
    np.testing.assert_array_equal(two, at_once)
    first, second = (Tokenizer.from_dir(tmp_path / name) for name in ("two", "both"))
    np.testing.assert_array_equal(first.encode(PROMPTS[:8]).ids, second.encode(PROMPTS[:8]).ids)


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("words") / "tokenizer"
    table = np.zeros((len(CLIP.from_pretrained(SOURCE)), WIDTH), np.float32)
    add_embeddings(SOURCE, table, [learned(token, n) for token, n in WORDS.items()], out)
    return out


def row(tokenizer: Tokenizer, prompt: str) -> list[tuple[int, float]]:
    tokens = tokenizer.encode(prompt)
    stop = tokens.ids[0, 0].tolist().index(tokenizer.end)
    return [(int(i), float(w)) for i, w in zip(tokens.ids[0, 0, 1:stop], tokens.weights[0, 0, 1:stop], strict=True)]


@pytest.mark.parametrize("token", ["<cat-toy>", "mystyle", "bad-hands-v2", "粉猫"])
def test_emphasis_works_around_a_word(after: Path, token: str) -> None:
    tokenizer = Tokenizer.from_dir(after)
    plain = [i for i, _ in row(tokenizer, token)]
    assert len(plain) == WORDS[token]
    for prompt, weight in (
        (f"({token}:1.2)", 1.2),
        (f"({token})", 1.1),
        (f"[{token}]", 1 / 1.1),
        (f"(({token}))", 1.21),
    ):
        assert row(tokenizer, prompt) == [(i, pytest.approx(weight)) for i in plain]
    mixed = row(tokenizer, f"blue hair, (a {token} hat:1.3), smiling")
    weights = {i: w for i, w in mixed}
    assert [i for i, _ in mixed if i in plain] == plain
    assert all(weights[i] == pytest.approx(1.3) for i in plain) and mixed[0][1] == mixed[-1][1] == 1


def test_a_word_with_capitals_stands_for_all_its_vectors(after: Path) -> None:
    """Over transformers 5, which lowers the letters of what it finds, diffusers takes the first vector alone; over
    transformers 4 it took all. The stock tokenizer here gets a prompt with all of them written out.
    """
    word = "EasyNegative"
    prompt = " ".join([word, *(f"{word}_{i}" for i in range(1, WORDS[word]))])
    written_out = CLIP.from_pretrained(after)(f"blue hair, {prompt}, smiling")["input_ids"]
    assert [i for i, _ in row(Tokenizer.from_dir(after), f"blue hair, {word}, smiling")] == written_out[1:-1]


def test_a_word_in_other_letters_stands_for_all_its_vectors(after: Path) -> None:
    tokenizer = Tokenizer.from_dir(after)
    assert row(tokenizer, "MyStyle") == row(tokenizer, "mystyle") and len(row(tokenizer, "MYSTYLE")) == 3
    assert row(tokenizer, "Bad-Hands-V2") == row(tokenizer, "bad-hands-v2")


def test_a_word_that_does_not_fit_is_cut_and_named(after: Path) -> None:
    tokenizer = Tokenizer.from_dir(after)
    with pytest.warns(TruncationWarning, match=r"dropped: bad-hands-v2, more"):
        tokens = tokenizer.encode("! " * 70 + "bad-hands-v2, more")
    whole = [i for i, _ in row(tokenizer, "bad-hands-v2")]
    assert tokens.ids[0, 0, 71:76].tolist() == whole[:5] and tokens.ids[0, 0, 76] == tokenizer.end
    chunks = tokenizer.encode("! " * 70 + "bad-hands-v2, more", long_prompt="chunk").ids[0]
    assert [*chunks[0, 71:76], *chunks[1, 1:8]] == whole


# --- On a running pipeline ---


def test_no_text_gives_a_spare_token() -> None:
    tokenizer = Tokenizer.from_dir(SOURCE)
    spare = set(tokenizer.spare())
    assert len(spare) == 78
    every = [chr(i) for i in range(0x11000) if not 0xD800 <= i < 0xE000]
    texts = [between.join(every[i : i + 500]) for i in range(0, len(every), 500) for between in ("", " ")]
    for text in [*texts, "ABC XYZ É \u212a"]:
        assert not spare & set(tokenizer.encode(text, syntax="plain", long_prompt="chunk").ids.ravel().tolist())


@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_a_word_on_a_running_pipeline_draws_what_stock_diffusers_draws(engine: str, stock: Any, tmp_path: Path) -> None:
    import hotloop

    width = stock.txt2img.text_encoder.config.hidden_size
    scale = stock.txt2img.text_encoder.get_input_embeddings().weight.std()
    file = saved(tmp_path / "a.safetensors", {"mystyle": vectors(3, width=width) * scale})
    prompts, options = ["a mystyle girl with blue hair", "no trigger, mystyle_1"], dict(num_inference_steps=2)
    pipe = hotloop.load(engine=engine)
    before = pipe.txt2img(prompts, seed=1, prompt_syntax="plain", **options).latents
    assert pipe.load_embedding(file) == "mystyle"
    ours = pipe.txt2img(prompts, seed=1, prompt_syntax="plain", **options)
    import copy

    # A tokenizer and a token table of its own: the fixture is others' too.
    theirs = type(stock.txt2img)(**stock.txt2img.components | {
        "tokenizer": CLIP.from_pretrained(SOURCE), "text_encoder": copy.deepcopy(stock.txt2img.text_encoder),
    }, requires_safety_checker=False)  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    theirs.load_textual_inversion(str(file))
    stock.use(pipe.bundle.defaults["sampler"], theirs)
    want = theirs(prompts, generator=stock.generators([1, 2]), output_type="latent",
                  guidance_scale=pipe.bundle.defaults["guidance_scale"], **options).images.numpy()  # fmt: skip
    assert np.abs(ours.latents - want).max() < 1e-3 < np.abs(before - want).max(axis=(1, 2, 3)).min()
    # A prompt without it is untouched, bit for bit.
    again = hotloop.load(engine=engine).txt2img("a girl", seed=1, **options).latents
    assert np.array_equal(again, pipe.txt2img("a girl", seed=1, **options).latents)


def test_a_word_that_a_running_pipeline_cannot_learn_is_refused_and_changes_nothing(pipe: Any, tmp_path: Path) -> None:
    width = pipe.family.context_dim
    refused = {
        "must be for this model": ({"new": vectors(1, width=width + 1)}, None),
        "must be new to the tokenizer": ({"girl": vectors(1, width=width)}, "!"),
        "a token as one": ({"new": vectors(1, width=width)}, "a <|endoftext|>"),
    }
    networks = pipe.networks
    for message, (tensors, token) in refused.items():
        with pytest.raises(InputError, match=message):
            pipe.load_embedding(saved(tmp_path / "a.safetensors", tensors), token=token)
    assert pipe.networks is networks


# --- Files ---


def test_a_diffusers_file_is_named_by_its_tensor_and_an_a1111_file_by_itself(tmp_path: Path) -> None:
    one = saved(tmp_path / "a.safetensors", {"<cat-toy>": vectors(1)[0]})
    found = open_embedding(one)
    assert found.token == "<cat-toy>" and found.vectors.shape == (1, WIDTH) and found.tokens == ["<cat-toy>"]
    assert found.sha256 == hashlib.sha256(one.read_bytes()).hexdigest()
    two = saved(tmp_path / "easy negative.safetensors", {"emb_params": vectors(3).half()})
    found = open_embedding(two)
    assert found.tokens == ["easy negative", "easy negative_1", "easy negative_2"]
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, vectors(3).half().float())
    assert open_embedding(two, token="bad").tokens[1] == "bad_1"


BROKEN: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "sdxl": ({"clip_l": vectors(1), "clip_g": vectors(1)}, "this one is for SDXL"),
    "several": ({"a": vectors(1), "b": vectors(1)}, "must hold one tensor"),
    "nothing": ({}, "must hold one tensor"),
    "more": ({"emb_params": vectors(1), "step": torch.ones(1)}, "must hold emb_params alone"),
    "integers": ({"a": torch.ones(1, 4, dtype=torch.int32)}, "floating point, got 'int32"),
    "axes": ({"a": torch.ones(1, 1, 4)}, "vectors.*in floating point"),
    "none": ({"a": torch.ones(0, 4)}, "1 to 75 vectors"),
    "no width": ({"a": torch.ones(2, 0)}, "1 to 75 vectors"),
    "many": ({"a": torch.ones(MAX_VECTORS + 1, 4)}, "1 to 75 vectors"),
    "space": ({" a": vectors(1)}, "not empty and without space"),
    "bracket": ({"a(b)": vectors(1)}, r"without \( \)"),
    "long": ({"a" * 129: vectors(1)}, "at most 128"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_file_that_is_no_embedding_is_refused(case: str, tmp_path: Path) -> None:
    tensors, message = BROKEN[case]
    with pytest.raises(InputError, match=message) as error:
        open_embedding(saved(tmp_path / "a.safetensors", tensors))
    assert "\n" not in str(error.value)


def test_pickles_and_infinities_are_refused(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": vectors(1)}, "name": "a"}, tmp_path / "a.pt")
    with pytest.raises(BundleError, match=r"pickle.*convert it"):
        open_embedding(tmp_path / "a.pt")
    with pytest.raises(BundleError, match="finite"):
        open_embedding(saved(tmp_path / "b.safetensors", {"a": torch.full((1, 4), torch.inf)}))


@pytest.mark.parametrize("token", ["", " ", "a\nb"])
def test_a_name_must_be_a_word(token: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {"x": vectors(1)})
    with pytest.raises(InputError, match="the token must be"):
        open_embedding(path, token=token)


CLASHES: dict[str, tuple[list[Embedding], str]] = {
    "width": ([learned("new", width=WIDTH + 1)], "new must be for this model, whose token vectors are 12 wide, got 13"),
    "a word of CLIP": ([learned("!")], "must be new to the tokenizer, whatever its capitals, got '!'"),
    "a special token": ([learned("<|endoftext|>")], "must be new to the tokenizer"),
    "a learned word": ([learned("mystyle")], "must be new to the tokenizer"),
    "in other letters": ([learned("MyStyle")], "must be new to the tokenizer"),
    "twice": ([learned("new"), learned("New")], "must be new to the tokenizer"),
    "a part of a learned word": ([learned("mystyle_1")], "must be new to the tokenizer"),
    "the next part of a learned word": ([learned("mystyle_3")], "numbered parts of one another: mystyle would be"),
    "a part of a new word": ([learned("new", 2), learned("new_2")], "numbered parts of one another: new would be"),
    "before its part": ([learned("new_1"), learned("new")], "numbered parts of one another: new would be"),
    "parts that meet": ([learned("new_1"), learned("new", 2)], "must be new to the tokenizer.*new_1"),
    "too large": ([Embedding("new", np.full((1, WIDTH), 1e6, np.float32), "")], "new must be finite as float16"),
    "unreadable": ([learned("a <|endoftext|>")], "read a token as one"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CLASHES))
def test_a_word_that_cannot_be_added_is_refused(after: Path, case: str, tmp_path: Path) -> None:
    embeddings, message = CLASHES[case]
    table = np.zeros((len(CLIP.from_pretrained(after)), WIDTH), np.float16)
    with pytest.raises(InputError, match=message) as error:
        add_embeddings(after, table, embeddings, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_the_table_must_be_the_tokenizer_s(after: Path, tmp_path: Path) -> None:
    rows = len(CLIP.from_pretrained(after))
    with pytest.raises(InputError, match=f"a row for each of the tokenizer's {rows} tokens"):
        add_embeddings(after, np.zeros((rows + 1, WIDTH), np.float32), [learned("new")], tmp_path / "out")
    with pytest.raises(InputError, match="another folder"):
        add_embeddings(after, np.zeros((rows, WIDTH), np.float32), [learned("new")], after)
