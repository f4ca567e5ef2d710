"""What the denoiser is told of a request, as named tensors with a batch row per image: `cond`.

A condition is one row of `Conditioning.parts`: a function from a call's engines and request to its tensors. Words are
one; what a request says beside them (an identity, a control image, sizes) is another row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .bundle import Bundle
from .checks import check_finite
from .denoiser import Composition, Words, guidance_embedding
from .errors import InputError, TruncationWarning
from .networks import Networks
from .prompts import Prompt, composes, parts
from .request import Request
from .samplers import StepTable
from .tokenizer import Tokenizer, apply_weights

__all__ = ["MAX_TEXTS", "Cond", "Conditioning", "TextEncoder", "composed"]

Cond = dict[str, np.ndarray]

# Texts that a call may come to over all of its steps: each is encoded, and its keys are kept.
MAX_TEXTS = 256

# clip_skip -> the output of the text encoder that the UNet is given
_OUTPUTS = ("last_hidden_state", "penultimate_hidden_state")


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a family: its network, and the tokenizer that it reads."""

    network: str
    tokenizer: Tokenizer

    @classmethod
    def open(cls, bundle: Bundle, network: str = "text_encoder", folder: str = "tokenizer") -> TextEncoder:
        return cls(network, Tokenizer.from_dir(bundle.path / folder))

    def encode(self, networks: Networks, request: Request, texts: list[str]) -> np.ndarray:
        """Texts [B] -> hidden states f32 [B, chunks * T, C], of the layer that clip_skip names, weighted."""
        engine = networks[self.network]
        tokens = self.reads(networks).encode(texts, syntax=request["prompt_syntax"], long_prompt=request["long_prompt"])
        b, chunks, length = tokens.ids.shape
        output = _OUTPUTS[request["clip_skip"]]
        each = []
        with engine.contexts.lease(B=chunks, T=length) as context:
            # One text at a time: what stands beside a prompt must not reach its last bits.
            for ids in tokens.ids:
                context.inputs["input_ids"][:] = ids
                context.run()
                each.append(np.array(context.outputs[output], np.float32))  # [chunks, T, C]
        hidden = np.stack(each)
        if np.any(tokens.weights != 1):
            flat = hidden.reshape(b * chunks, length, -1)
            hidden = apply_weights(flat, tokens.weights.reshape(b * chunks, length)).reshape(hidden.shape)
        states = hidden.reshape(b, chunks * length, -1)
        check_finite(self.network, "hidden states", states)
        return states

    def reads(self, networks: Networks) -> Tokenizer:
        """The tokenizer of these engines: with the words that were added to theirs."""
        return networks.tokenizers.get(self.network, self.tokenizer)

    def refuse_mixed_chunks(self, networks: Networks, request: Request, images: Sequence[Sequence[str]]) -> None:
        """Of each image all of its texts. A batch shares one number of windows; a shorter prompt padded to it would not
        be its single run."""
        different = dict.fromkeys(map(tuple, images))
        if len(different) < 2:
            return
        syntax, long = request["prompt_syntax"], request["long_prompt"]
        encode = self.reads(networks).encode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # it is said when they are encoded
            counts = {encode(list(texts), syntax=syntax, long_prompt=long).ids.shape[1] for texts in different}
        if len(counts) > 1:
            rule = "long_prompt='chunk' and BREAK need prompts of one number of 75-token windows per call"
            raise InputError(request.place, rule, sorted(counts))


class Conditioning:
    """The conditions of a bundle's requests. encoders: one, or two whose hidden states stand side by side."""

    def __init__(self, encoders: list[TextEncoder]) -> None:
        self.encoders = encoders
        self.parts: list[Callable[[Networks, Request], Cond]] = [partial(_words, encoders), _guidance]

    def encode(self, networks: Networks, request: Request) -> Cond:
        """Name -> f32 [N, ...], as the denoiser takes them. Raises InputError for prompts that `compose` is for."""
        if composed(request):
            rule = "prompt editing, alternating words and AND are for calls, not for streams"
            raise InputError(request.place, rule, request.prompts[0])
        cond: Cond = {}
        for part in self.parts:
            cond |= part(networks, request)
        return cond

    def compose(
        self, networks: Networks, request: Request, tables: Sequence[StepTable]
    ) -> tuple[Cond, list[Composition]]:
        """What is beside the words, and the words of every row of every pass. Raises InputError for prompts that come
        to more than MAX_TEXTS texts."""
        cond: Cond = {}
        for part in self.parts[1:]:  # the first is the words
            cond |= part(networks, request)
        told = _Told(request)
        rows = [told.rows(table, tables[:i]) for i, table in enumerate(tables)]
        texts = list(told.numbers)
        states = _encoded(self.encoders, networks, request, texts, [[texts[u] for u in seen] for seen in told.images])
        return cond, [Composition(states, one) for one in rows]


def composed(request: Request) -> bool:
    """Whether the words of a request change from step to step, or are several prompts at once."""
    if request["prompt_syntax"] == "plain":
        return False
    negatives = request.negatives or []
    return any(map(composes, dict.fromkeys(request.prompts))) or any(Prompt(one).changes for one in set(negatives))


class _Told:
    """The texts of a request's images at every step, each with a number."""

    def __init__(self, request: Request) -> None:
        self._prompts = [[(Prompt(part.text), part.weight) for part in parts(text)] for text in request.prompts]
        self._negatives = None if request.negatives is None else [Prompt(text) for text in request.negatives]
        self._place = request.place
        self.numbers: dict[str, int] = {"": 0} if request.negatives is None else {}
        self.images: list[set[int]] = [set(self.numbers.values()) for _ in request.prompts]

    def rows(self, table: StepTable, before: Sequence[StepTable]) -> tuple[Words, ...]:
        """What each row of a pass is told; before: the tables of the passes before it."""
        done = int(before[0].steps[-1]) + 1 if before else None
        steps = int(table.steps[-1]) + 1
        each = [self._words(step, steps, done) for step in range(1, steps + 1)]
        return tuple(each[step] for step in table.steps)

    def _words(self, *at: Any) -> Words:
        prompts = tuple(
            tuple((self._number(i, one.at(*at)), weight) for one, weight in prompt)
            for i, prompt in enumerate(self._prompts)
        )
        if self._negatives is None:
            return Words(prompts, None)
        return Words(prompts, tuple(self._number(i, one.at(*at)) for i, one in enumerate(self._negatives)))

    def _number(self, image: int, text: str) -> int:
        number = self.numbers.setdefault(text, len(self.numbers))
        if len(self.numbers) > MAX_TEXTS:
            raise InputError(self._place, f"prompts must come to at most {MAX_TEXTS} texts over all steps", text)
        self.images[image].add(number)
        return number


def _guidance(networks: Networks, request: Request) -> Cond:
    """`timestep_cond` [N, cond_width] of a distilled UNet that is told its guidance, else nothing."""
    if not networks.told_guidance:
        return {}
    scales = np.full(len(request.prompts), request["guidance_scale"])
    return {"timestep_cond": guidance_embedding(scales, networks.bundle.family.cond_width)}


def _words(encoders: list[TextEncoder], networks: Networks, request: Request) -> Cond:
    """Hidden states [N, chunks * T, C] of every prompt and, with guidance, of every negative prompt."""
    texts = request.prompts if request.negatives is None else request.negatives + request.prompts
    # Each text is encoded once, however many images share it.
    unique = list(dict.fromkeys(texts))
    images = list(zip(request.prompts, request.negatives or request.prompts, strict=True))
    states = _encoded(encoders, networks, request, unique, images)
    rows = states[[unique.index(text) for text in texts]]
    n = len(request.prompts)
    return {"context": rows} if request.negatives is None else {"negative_context": rows[:n], "context": rows[n:]}


def _encoded(
    encoders: list[TextEncoder], networks: Networks, request: Request, texts: list[str], images: Sequence[Sequence[str]]
) -> np.ndarray:
    """Texts [U] -> hidden states [U, chunks * T, C]; images: of each image all of its texts."""
    for encoder in encoders:
        encoder.refuse_mixed_chunks(networks, request, images)
    each = [encoder.encode(networks, request, texts) for encoder in encoders]
    return each[0] if len(each) == 1 else np.concatenate(each, axis=-1)
