"""What the denoiser is told of a request, as named tensors with a batch row per image: `cond`.

A condition is one row of `Conditioning.parts`: a function from a call's engines and request to its tensors. Words are
one; what a request says beside them (an identity, a control image, sizes) is another row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .bundle import Bundle
from .checks import check_finite
from .denoiser import guidance_embedding
from .errors import InputError
from .networks import Networks
from .request import Request
from .tokenizer import Tokenizer, apply_weights

__all__ = ["Cond", "Conditioning", "TextEncoder"]

Cond = dict[str, np.ndarray]

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

    def refuse_mixed_chunks(self, networks: Networks, request: Request) -> None:
        """A batch shares one number of windows; a shorter prompt padded to it would not be its single run."""
        pairs = set(zip(request.prompts, request.negatives or request.prompts, strict=True))
        encode = partial(self.reads(networks).encode, syntax=request["prompt_syntax"], long_prompt="chunk")
        if len(counts := {encode(list(pair)).ids.shape[1] for pair in pairs}) > 1:
            rule = "long_prompt='chunk' needs prompts of one number of 75-token windows per call"
            raise InputError(request.place, rule, sorted(counts))


class Conditioning:
    """The conditions of a bundle's requests. encoders: one, or two whose hidden states stand side by side."""

    def __init__(self, encoders: list[TextEncoder]) -> None:
        self.encoders = encoders
        self.parts: list[Callable[[Networks, Request], Cond]] = [partial(_words, encoders), _guidance]

    def encode(self, networks: Networks, request: Request) -> Cond:
        """Name -> f32 [N, ...], as the denoiser takes them."""
        cond: Cond = {}
        for part in self.parts:
            cond |= part(networks, request)
        return cond


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
    if request["long_prompt"] == "chunk":
        for encoder in encoders:
            encoder.refuse_mixed_chunks(networks, request)
    each = [encoder.encode(networks, request, unique) for encoder in encoders]
    states = each[0] if len(each) == 1 else np.concatenate(each, axis=-1)
    rows = states[[unique.index(text) for text in texts]]
    n = len(request.prompts)
    return {"context": rows} if request.negatives is None else {"negative_context": rows[:n], "context": rows[n:]}
