"""The text encoder alone learns to say what captions claim: which colour belongs to which noun needs no pictures."""

from __future__ import annotations

import numpy as np
import torch
from data import seeds
from model import make_text_encoder
from texts import Reader, write
from torch import nn
from training import Options, Run, Stage, load_weights

__all__ = ["changes", "load", "stage"]


def load(options: Options) -> nn.Module:
    """The text encoder of this stage, where it has been trained."""
    text = _make(options)
    path = options.weights / "text.safetensors"
    if path.exists():
        load_weights(path, {"text": text})
    return text


def changes(options: Options) -> dict[str, int]:
    """What a small run's configuration has otherwise."""
    return {"num_hidden_layers": 1} if options.small else {}


def _make(options: Options) -> nn.Module:
    text = make_text_encoder(**changes(options))
    if options.device == "cpu":
        text.set_attn_implementation("eager")  # the fused attention's backward is slow on CPUs
    return text


def stage(stage: Stage, options: Options, needs: dict[str, str]) -> bool:
    """One segment; captions are written anew every 4,000 people. True when it is complete."""
    torch.manual_seed(4)
    text, reader = _make(options).to(options.device), Reader().to(options.device)
    run = Run(stage, {"text": text}, options, needs=needs, scratch={"reader": reader})
    stream = seeds("faces", held=False)
    pool, batch = (64, 16) if options.small else (4000, 96)
    while run.going():
        captions = write(np.array([next(stream) for _ in range(pool)]), forms=6, empty=0.02)
        for _ in range(6 * pool // batch):
            if not run.going():
                break
            ids, claims = (v.to(options.device) for v in captions.batch(np.random.randint(0, pool, batch)))
            # Tokens see only those before them: what comes after the last end token changes nothing here.
            ids = ids[:, : int((ids == ids[:, -1:]).int().argmax(1).max()) + 4]
            with torch.autocast(options.device, torch.bfloat16):
                hidden = text(ids).last_hidden_state
            loss, right = reader(hidden, ids, claims)
            run.descend(loss, hair=right[0], eyes=right[2], expression=right[4])
    return run.close()
