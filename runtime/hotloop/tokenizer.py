"""CLIP's byte-level byte-pair encoding: prompts to token ids and per-token weights.

Ids are those of transformers 5's CLIPTokenizer. (Its 4.x Python form first repaired text with ftfy where installed,
which also changes curly quotes, full-width letters and HTML entities, and else put spaces around CJK characters and
dropped control characters; such prompts had other ids there.)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import BundleError, InputError, TruncationWarning, printable
from .files import MOST_TEXT, read_file, read_json

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "LONG_PROMPTS", "MAX_CHARACTERS", "SYNTAXES", "Tokenizer", "Tokens", "apply_weights", "parse_weights", "series",
]  # fmt: skip

MAX_CHARACTERS = 100_000
MAX_DEPTH = 100
MAX_WEIGHT = 100.0
MAX_WINDOWS = 32  # memory and time of every step grow with them
LONG_PROMPTS = ("truncate", "chunk")
SYNTAXES = ("a1111", "plain")

_LENGTH = 77  # where tokenizer_config.json states none
_EMPHASIS = 1.1

# How CLIP cuts text into words, before bytes and merges: its own special tokens, English endings, letters,
# single digits, runs of anything else.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NAMED = {
    "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    "sep_token": None, "pad_token": "<|endoftext|>", "cls_token": None, "mask_token": None,
}  # fmt: skip

F32 = npt.NDArray[np.float32]
_Window = tuple[list[int], list[float]]  # ids and weights, without begin and end


@dataclass(frozen=True)
class Tokens:
    """Encoded prompts: ids int32 [B, chunks, 77] (begin, up to 75 tokens, end, padding) and weights f32, alike."""

    ids: npt.NDArray[np.int32]
    weights: F32


class Tokenizer:
    """CLIP's tokenizer over the files of a diffusers `tokenizer` folder; make one with `from_dir`.

    Added tokens (textual inversion) are found anywhere in a prompt, in any case of letters. Where `word`, `word_1`,
    `word_2` are added tokens, `word` in a prompt stands for all of them, as in diffusers. (Over transformers 5
    diffusers misses the others of a word that is not in lower case, in the prompt or in its name; here it has all.)
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, begin: int, end: int, pad: int, *, length: int = _LENGTH,
        series: Mapping[int, Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        """series: the id of an added token -> those of all its vectors."""
        self._backend = backend
        self._series = dict(series or {})
        self.begin, self.end, self.pad, self.length = begin, end, pad, length

    @classmethod
    def from_dir(cls, path: Path) -> Tokenizer:
        """Open vocab.json and merges.txt, or the tokenizer.json that transformers 5 saves, with the settings beside.

        Where both are there, tokenizer.json counts, as in transformers. Raises BundleError, naming the folder, if files
        are missing or malformed.
        """
        path = Path(path)
        try:
            return cls._from_dir(path)
        except BundleError:
            raise
        except Exception as error:  # the backend raises plain Exception for merges that name no token
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BundleError("tokenizer", f"files must be whole and fit together ({reason})", str(path)) from error

    @classmethod
    def _from_dir(cls, path: Path) -> Tokenizer:
        vocab, merges = _read_model(path)
        named, added = _read_special_tokens(path)
        backend = _clip_backend(vocab, merges, str(named["unk_token"]))
        backend.add_tokens(added)
        ids = []
        for key in ("bos_token", "eos_token", "pad_token"):
            index = backend.token_to_id(str(named[key]))
            if index is None:
                raise BundleError("tokenizer", f"{key} must be in the vocabulary", str(named[key]))
            ids.append(index)
        config = read_json(path / "tokenizer_config.json", place="tokenizer", optional=True)
        stated = config.get("model_max_length", _LENGTH)
        length = int(stated) if 3 <= stated <= 10_000 else _LENGTH  # transformers writes 1e30 for "not known"
        known = backend.get_vocab(with_added_tokens=True)
        words = series([token.content for token in added])
        parts = {known[word]: [known[part] for part in its] for word, its in words.items()}
        return cls(backend, *ids, length=length, series=parts)

    def vocabulary(self, *, added: bool = True) -> dict[str, int]:
        """Every token's id; without those that were added to the model's own, if told so."""
        return self._backend.get_vocab(with_added_tokens=added)

    def spare(self) -> list[int]:
        """The ids of tokens that no text can give: of capitals, which are lowered first, and of bytes that UTF-8 never
        has (C0, C1, F5 .. FF), alone and at a word's end; 78 in a whole vocabulary."""
        known = self.vocabulary(added=False)
        bytes_ = [*range(ord("A"), ord("Z") + 1), 0xC0, 0xC1, *range(0xF5, 0x100)]
        return [known[name] for byte in bytes_ for name in (chr(byte), chr(byte) + "</w>") if name in known]

    def with_words(self, words: Mapping[str, Sequence[int]]) -> Tokenizer:
        """Another tokenizer that also reads these words, in any case of letters, each as the tokens of these ids."""
        from tokenizers import AddedToken

        backend = type(self._backend).from_str(self._backend.to_str())
        backend.add_tokens([AddedToken(word, normalized=True) for word in words])
        known = backend.get_vocab(with_added_tokens=True)
        parts = self._series | {known[word]: ids for word, ids in words.items()}
        return Tokenizer(backend, self.begin, self.end, self.pad, length=self.length, series=parts)

    def encode(self, text: str | Sequence[str], *, syntax: str = "a1111", long_prompt: str = "truncate") -> Tokens:
        """Prompts -> Tokens; ids and weights [B, chunks, 77].

        syntax: "a1111" reads weights, `(word:1.3)`, `((word))`, `[word]` (see parse_weights), and BREAK, behind which a
        window of 75 tokens begins; "plain" takes the text as it is. long_prompt: "truncate" keeps the first 75 tokens
        (of what stands between BREAKs) and warns (TruncationWarning) with the words that were dropped; "chunk" makes as
        many windows as it needs. Every prompt gets as many as the longest, at most MAX_WINDOWS.
        Raises InputError for what is no text, is longer than that or than MAX_CHARACTERS, or breaks a rule of
        parse_weights.
        """
        for name, value, known in (("prompt_syntax", syntax, SYNTAXES), ("long_prompt", long_prompt, LONG_PROMPTS)):
            if value not in known:
                raise InputError("prompt", f"{name} must be one of " + ", ".join(known), value)
        texts = [text] if isinstance(text, str) else list(text)
        window = self.length - 2
        rows = [self._windows(one, syntax, window if long_prompt == "truncate" else None) for one in texts]
        chunks = max(map(len, rows), default=1)
        if chunks > MAX_WINDOWS:
            rule = f"long_prompt='chunk' and BREAK read at most {MAX_WINDOWS} windows of {window} tokens"
            raise InputError("prompt", rule, f"{chunks} windows")
        ids = np.full((len(rows), chunks, self.length), self.pad, np.int32)
        weights = np.ones(ids.shape, np.float32)
        ids[:, :, 0], ids[:, :, 1] = self.begin, self.end
        for b, row in enumerate(rows):
            for c, (part, part_weights) in enumerate(row):
                ids[b, c, 1 : len(part) + 1] = part
                ids[b, c, len(part) + 1] = self.end
                weights[b, c, 1 : len(part) + 1] = part_weights
        return Tokens(ids, weights)

    def _windows(self, text: str, syntax: str, keep: int | None) -> list[_Window]:
        """One prompt's windows, at least one; keep: of each part between BREAKs at most so many tokens."""
        _check(text)
        window, found = self.length - 2, []
        for part in [[(text, 1.0)]] if syntax == "plain" else _between_breaks(parse_weights(text)):
            ids, weights = self._tokens(part, keep)
            for first in range(0, max(len(ids), 1), window):
                found.append((ids[first : first + window], weights[first : first + window]))
        return found

    def _tokens(self, segments: Sequence[tuple[str, float]], keep: int | None) -> _Window:
        """At most `keep` tokens of the segments."""
        ids: list[int] = []
        weights: list[float] = []
        dropped = ""
        for segment, weight in segments:
            if keep is not None and len(ids) == keep:
                dropped += segment
                continue
            found, offsets = self._encode(segment)
            room = len(found) if keep is None else keep - len(ids)
            if len(found) > room:
                dropped = segment[offsets[room] :]
            ids += found[:room]
            weights += [weight] * min(len(found), room)
        if dropped.strip():
            shown = printable(" ".join(dropped.split()), 300)
            warnings.warn(
                f"[prompt] only the first {keep} tokens are used; dropped: {shown} (long_prompt='chunk' keeps them)",
                TruncationWarning,
                stacklevel=4,
            )
        return ids, weights

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and where in the text each begins."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids: list[int] = []
        offsets: list[int] = []
        for i, (begin, _) in zip(encoding.ids, encoding.offsets, strict=True):
            parts = self._series.get(i, (i,))
            ids += parts
            offsets += [begin] * len(parts)
        return ids, offsets


def _check(text: str) -> None:
    if not isinstance(text, str):
        raise InputError("prompt", "prompt must be text", text)
    if len(text) > MAX_CHARACTERS:
        raise InputError("prompt", f"prompt must have at most {MAX_CHARACTERS} characters", len(text))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("prompt", "prompt must be valid Unicode, without lone surrogates", text) from None


# --- Files ---


def _read_model(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, from tokenizer.json or from vocab.json and merges.txt."""
    if (path / "tokenizer.json").is_file():
        model = read_json(path / "tokenizer.json", place="tokenizer", optional=True)["model"]
        vocab, lines = model["vocab"], model["merges"]
    else:
        for name in ("vocab.json", "merges.txt"):
            if not (path / name).is_file():
                raise BundleError("tokenizer", f"folder must hold tokenizer.json, or {name}", str(path))
        vocab = read_json(path / "vocab.json", place="tokenizer", optional=True)
        # Not splitlines(): some of the characters that stand for bytes would count as line ends.
        lines = read_file(path / "merges.txt", most=MOST_TEXT).decode("utf-8").split("\n")
        lines = [line for line in lines if line.strip() and not line.startswith("#version")]
    pairs = [line.split(" ") if isinstance(line, str) else line for line in lines]
    return vocab, [(first, second) for first, second in pairs]


def _read_special_tokens(path: Path) -> tuple[dict[str, Any], list[tokenizers.AddedToken]]:
    """The named special tokens, and every token that is found in raw text before words are, in the order to add them.

    Which file has the last word differs with the age of the folder; this is the order of transformers 5.
    """
    from tokenizers import AddedToken

    config = read_json(path / "tokenizer_config.json", place="tokenizer", optional=True)
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        added = {int(i): _added_token(token) for i, token in config["added_tokens_decoder"].items()}
    else:
        for key, value in read_json(path / "special_tokens_map.json", place="tokenizer", optional=True).items():
            config[key] = {**value, "special": True} if isinstance(value, dict) else value
        specials = {_content(config[key]) for key in _NAMED if config.get(key)}
        for content, i in read_json(path / "added_tokens.json", place="tokenizer", optional=True).items():
            special = content in specials
            added[i] = AddedToken(content, normalized=not special, special=special)
        for token in read_json(path / "tokenizer.json", place="tokenizer", optional=True).get("added_tokens", []):
            added[token["id"]] = _added_token(token)
    known = {token.content for token in added.values()}
    named: dict[str, Any] = {}
    values: list[str | Mapping[str, Any]] = []
    for key, default in _NAMED.items():
        if value := config.get(key) or default:
            named[key] = _content(value)
            values.append(value)
    values += config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    # A token that is named both as an object and as plain text is added twice: the later one's flags hold.
    once: dict[tuple[bool, str], str | Mapping[str, Any]] = {}
    for value in values:
        if _content(value) not in known:
            once.setdefault((isinstance(value, str), _content(value)), value)
    return named, [*(added[i] for i in sorted(added)), *map(_added_token, once.values())]


def series(added: Sequence[str]) -> dict[str, list[str]]:
    """Added tokens with numbered ones after them -> all of them: cat -> [cat, cat_1, cat_2]."""
    known = set(added)
    found: dict[str, list[str]] = {}
    for token in added:
        parts = [token]
        while (part := f"{token}_{len(parts)}") in known:
            parts.append(part)
        if len(parts) > 1:
            found[token] = parts
    return found


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _added_token(token: str | Mapping[str, Any]) -> tokenizers.AddedToken:
    """A special token as the files write it: its text alone, or an object with flags."""
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    flags = {key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized", "special") if key in token}
    return AddedToken(token["content"], **flags)


def _clip_backend(vocab: dict[str, int], merges: list[tuple[str, str]], unk_token: str) -> tokenizers.Tokenizer:
    """CLIP's pipeline: NFC, one space for any white space, lower case; words; bytes; merges up to the word's end."""
    # Here, not above: `import hotloop` stays light.
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=unk_token))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return backend


# --- Weights ---

_BREAK = re.compile(r"\bBREAK\b")
# An escaped bracket or backslash; a bracket; ": number )"; text; a lone colon.
_PIECE = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:")


def _between_breaks(segments: Sequence[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """What stands between BREAKs, which need not be there; behind a last one nothing begins."""
    parts: list[list[tuple[str, float]]] = [[]]
    for text, weight in segments:
        first, *others = _BREAK.split(text)
        parts[-1].append((first.rstrip() if others else first, weight))
        for i, piece in enumerate(others, 1):
            parts.append([(piece.strip() if i < len(others) else piece.lstrip(), weight)])
    return parts if len(parts) == 1 or any(text for text, _ in parts[-1]) else parts[:-1]


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""A prompt in A1111's syntax -> (text, weight) segments; neighbours differ in weight, [("", 1.0)] for no text.

    `(a)` multiplies by 1.1, `[a]` divides by 1.1, `(a:1.3)` multiplies by 1.3; brackets nest; `\(`, `\)`, `\[`, `\]`
    and `\\` are the character itself. As in A1111, a bracket that never closes counts to the end of the prompt, one
    that closes nothing is text, and each segment is tokenized for itself.
    Raises InputError for brackets more than 100 deep and for weights outside -100 .. 100.
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for i in range(opened[bracket].pop(), len(weights)):
            weights[i] *= factor

    for match in _PIECE.finditer(text):
        piece, number = match.group(), _number(match.group(1))
        if piece in opened:
            if len(opened[piece]) == MAX_DEPTH:
                raise InputError("prompt", f"brackets must nest at most {MAX_DEPTH} deep", text)
            opened[piece].append(len(texts))
        elif number is not None and opened["("]:
            close("(", number)
        elif piece == ")" and opened["("]:
            close("(", _EMPHASIS)
        elif piece == "]" and opened["["]:
            close("[", 1 / _EMPHASIS)
        else:
            texts.append(piece.removeprefix("\\"))
            weights.append(1.0)
    for bracket, factor in (("(", _EMPHASIS), ("[", 1 / _EMPHASIS)):
        while opened[bracket]:
            close(bracket, factor)

    segments: list[tuple[list[str], float]] = []
    for part, weight in zip(texts, weights, strict=True):
        if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
            raise InputError("prompt", f"weights must be from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}", f"{part}:{weight:g}")
        if segments and segments[-1][1] == weight:
            segments[-1][0].append(part)
        else:
            segments.append(([part], weight))
    return [("".join(parts), weight) for parts, weight in segments] or [("", 1.0)]


def _number(text: str | None) -> float | None:
    """The number, or None for "1.2.3", which is text."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def apply_weights(hidden: F32, weights: F32) -> F32:
    """Hidden states f32 [B, T, C] times weights [B, T], each row brought back to its own mean; f32 [B, T, C].

    A1111's original emphasis, row by row: a row does not depend on what stands beside it in the batch. Rows whose
    weights are all 1 come back unchanged.
    """
    out = hidden * weights[:, :, None]
    before = hidden.mean(axis=(1, 2), dtype=np.float64)
    after = out.mean(axis=(1, 2), dtype=np.float64)
    scale = np.divide(before, after, out=np.ones_like(before), where=after != 0)
    return (out * scale[:, None, None]).astype(np.float32)
