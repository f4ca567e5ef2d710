"""Structured pruning: channels that matter least are taken out, and what is left learns to draw as before.

A channel can go where nothing but its maker and its reader knows it: the hidden layers of a generator, and in a UNet
the insides of residual blocks (whole groups of the norm there, so that the others' statistics stay) and of
feed-forwards. Its importance is the first-order Taylor estimate of Molchanov et al. 2019 ("Importance Estimation for
Neural Network Pruning", eq. 8, with a gate at the reader's input): (d loss / d gate)^2. There is no loss here but
the distance to the network's own output, whose slope is zero; so the slopes of the outputs themselves are taken, along
random signs r: the mean of (d <r, y> / d gate)^2 is the squared change of y to first order. A channel that is exactly
zero has importance zero and goes first.

Then the pruned network is distilled: it follows the unpruned one's outputs on seeded inputs (Hinton et al. 2015).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotloop.errors import InputError
from hotloop.nets.base import Net
from hotloop.nets.generators import CVAE, DCGAN, MLPGenerator
from hotloop.nets.unet import UNet

__all__ = ["Batch", "Place", "Run", "distil", "importance", "likeness", "parameters", "places", "prune", "taken",
           "without"]  # fmt: skip

N = TypeVar("N", bound=Net)
Batch = tuple[Tensor, ...]
Run = Callable[[Net, Batch], Tensor]

_PLACE = "prune"
_LEAST = 8  # no place keeps fewer than an eighth of its units
_CLIP, _WARM = 1.0, 0.1  # of the gradient's norm; share of the steps in which the rate rises
_SECONDS = 240.0  # of distillation at most


@dataclass(frozen=True)
class Slice:
    """Where a channel stands in a tensor: `each` neighbours along an axis, in `copies` blocks of all channels."""

    tensor: str
    axis: int = 0
    each: int = 1
    copies: int = 1

    def index(self, channels: Tensor, width: int) -> Tensor:
        """The places of these channels, of a tensor that has `width` of them."""
        blocks = torch.arange(self.copies)[:, None, None] * width * self.each
        return (blocks + channels[None, :, None] * self.each + torch.arange(self.each)).flatten()


@dataclass(frozen=True)
class Place:
    """Channels that can be taken out.

    name    what the config knows their number by
    width   how many there are; group: how many go together, a unit
    slices  where they stand; reader: the module that takes them as its input
    """

    name: str
    width: int
    slices: tuple[Slice, ...]
    reader: str
    group: int = 1

    @property
    def units(self) -> int:
        return self.width // self.group


# Where channels can go.


def places(net: Net) -> list[Place]:
    """Of a network. Raises InputError for a class that none are known of."""
    if isinstance(net, MLPGenerator):
        return [
            Place(str(i), width, (*_layer(f"body.{2 * i}"), Slice(f"body.{2 * i + 2}.weight", 1)), f"body.{2 * i + 2}")
            for i, width in enumerate(net.widths)
        ]
    if isinstance(net, DCGAN):
        return list(_dcgan(net, ""))
    if isinstance(net, CVAE):
        return list(_dcgan(net.decoder, "decoder."))
    if isinstance(net, UNet):
        return list(_unet(net))
    raise InputError(_PLACE, "network must be an MLPGenerator, a DCGAN, a CVAE or a UNet", type(net).__name__)


def _layer(path: str, **at: int) -> tuple[Slice, Slice]:
    """What a layer or a norm has of its outputs."""
    return Slice(f"{path}.weight", **at), Slice(f"{path}.bias", each=at.get("each", 1), copies=at.get("copies", 1))


def _dcgan(net: DCGAN, prefix: str) -> Iterator[Place]:
    body = f"{prefix}body."
    for i, width in enumerate(net.widths):
        # The dense layer, then convolutions at 1, 4, 7.. with a norm and an activation between; their weights are
        # [in, out, 4, 4].
        made = _layer(f"{prefix}dense.0", each=net.start**2) if i == 0 else (
            Slice(f"{body}{3 * i - 2}.weight", 1), Slice(f"{body}{3 * i - 2}.bias"))  # fmt: skip
        norm = f"{body}{3 * i - 1 if i else 0}"
        statistics = (Slice(f"{norm}.running_mean"), Slice(f"{norm}.running_var"))
        reader = f"{body}{3 * i + 1}"
        yield Place(str(i), width, (*made, *_layer(norm), *statistics, Slice(f"{reader}.weight", 0)), reader)


def _unet(net: UNet) -> Iterator[Place]:
    for path, block in net.res_blocks().items():
        timed = _layer(f"{path}.time_emb_proj") if block.time_emb_proj is not None else ()
        slices = (*_layer(f"{path}.conv1"), *timed, *_layer(f"{path}.norm2"), Slice(f"{path}.conv2.weight", 1))
        yield Place(path, block.conv1.out_channels, slices, f"{path}.conv2", block.group)
    for path, inside in net.feed_forwards().items():
        reader = inside.net[2]
        assert isinstance(reader, nn.Linear)
        slices = (*_layer(f"{path}.net.0.proj", copies=2), Slice(f"{path}.net.2.weight", 1))  # value, then gate
        yield Place(path, reader.in_features, slices, f"{path}.net.2")


# What they matter.


def importance(net: N, where: Sequence[Place], batches: Sequence[Batch], run: Run, *, seed: int = 0) -> list[Tensor]:
    """Of every unit of every place, float64 [units]: the squared change of the outputs, to first order, that taking it
    out would make; the mean over all rows of the batches."""
    generator = torch.Generator().manual_seed(seed)
    totals = [torch.zeros(place.units, dtype=torch.float64) for place in where]
    rows = 0
    net.requires_grad_(False)
    for batch in batches:
        size = len(batch[0])
        gates = [torch.ones(size, place.width, requires_grad=True) for place in where]
        hooks = [
            net.get_submodule(place.reader).register_forward_pre_hook(_gate(gate))
            for place, gate in zip(where, gates, strict=True)
        ]
        try:
            y = run(net, batch)
            signs = torch.randint(0, 2, y.shape, generator=generator) * 2.0 - 1
            slopes = torch.autograd.grad((signs * y).sum(), gates)
        finally:
            for hook in hooks:
                hook.remove()
        rows += size
        for total, slope, place in zip(totals, slopes, where, strict=True):
            total += slope.double().view(size, place.units, place.group).sum(2).square().sum(0)
    return [total / rows for total in totals]


def _gate(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """gate [B, C] times what a module sees: [B, C], [B, T, C] or [B, C, h, w]."""

    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, (rows, width) = given[0], gate.shape
        shape = [rows, *[1] * (x.dim() - 2), width] if isinstance(module, nn.Linear) else [rows, width, 1, 1]
        return (x * gate.view(shape), *given[1:])

    return hook


# Taking them out.


def parameters(net: Net) -> int:
    """Of what draws: a CVAE's encoder is not counted."""
    return sum(p.numel() for name, p in net.named_parameters() if not name.startswith("encoder."))


def without(net: N, where: Sequence[Place], units: Sequence[Tensor]) -> N:
    """The network with only these units of every place, in float32 and eval mode; what is left is as it was."""
    arrays = {name: value.detach() for name, value in net.state_dict().items()}
    for place, kept in zip(where, units, strict=True):
        channels = (kept.sort().values[:, None] * place.group + torch.arange(place.group)).flatten()
        for one in place.slices:
            arrays[one.tensor] = arrays[one.tensor].index_select(one.axis, one.index(channels, place.width))
    widths = [len(kept) * place.group for place, kept in zip(where, units, strict=True)]
    return type(net).from_tensors(_config(net, where, widths), {name: a.numpy() for name, a in arrays.items()})


def _config(net: Net, where: Sequence[Place], widths: Sequence[int]) -> dict[str, Any]:
    if not isinstance(net, UNet):
        return net.config | {"widths": list(widths)}
    changed = {p.name: width for p, width in zip(where, widths, strict=True) if width != p.width}
    inner = (net.config.get("inner_widths") or {}) | changed
    return net.config | ({"inner_widths": inner} if inner else {})


def taken(net: Net, where: Sequence[Place], weights: Sequence[Tensor], keep: float) -> list[Tensor]:
    """The units of every place that are kept so that at most `keep` of the parameters are: those go first that matter
    least for what they cost. Raises InputError where the places do not hold so many.
    """
    costs = [_cost(net, place) for place in where]
    order = sorted(
        (float(weights[i][unit]) / costs[i], i, unit) for i, place in enumerate(where) for unit in range(place.units)
    )
    left = [place.units for place in where]
    going: list[tuple[int, int]] = []  # (place, unit), in the order in which they go
    for _, i, unit in order:
        if left[i] > -(-where[i].units // _LEAST):
            left[i] -= 1
            going.append((i, unit))
    whole = parameters(net)
    most = math.floor(keep * whole + 1e-6)

    def count(n: int) -> int:
        gone = [sum(1 for i, _ in going[:n] if i == j) for j in range(len(where))]
        widths = [(place.units - g) * place.group for place, g in zip(where, gone, strict=True)]
        with torch.device("meta"):
            return parameters(type(net)(_config(net, where, widths)))

    if (least := count(len(going))) > most:
        rule = f"keep must be at least {math.ceil(least / whole * 1000) / 1000:g} for this network"
        raise InputError(_PLACE, rule, keep)
    low, high = 0, len(going)  # the fewest that suffice
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) <= most else (middle + 1, high)
    gone = set(going[:low])
    return [torch.tensor([u for u in range(place.units) if (i, u) not in gone]) for i, place in enumerate(where)]


def _cost(net: Net, place: Place) -> int:
    """Parameters that go with a unit."""
    own = dict(net.named_parameters())
    numbers = (own[s.tensor].numel() // place.width for s in place.slices if s.tensor in own)
    return place.group * sum(numbers)


def prune(net: N, keep: float, batches: Sequence[Batch], run: Run) -> N:
    """A network of at most `keep` of the parameters, by measured importance. Raises InputError as `taken` does."""
    where = places(net)
    return without(net, where, taken(net, where, importance(net, where, batches, run), keep))


# Learning again.


def distil(
    teacher: Net, student: Net, batch: Callable[[int], Batch], run: Run, *, steps: int, rate: float = 2e-3,
    seconds: float = _SECONDS,
) -> int:  # fmt: skip
    """Let the student follow the teacher's outputs on batch(0), batch(1)...: L1 + mean square, Adam, a rate that rises
    to `rate` and falls on a cosine. The statistics of its batch norms stay. Returns the steps done, fewer than asked
    where the time was over."""
    teacher.requires_grad_(False)
    learned = [p.requires_grad_(True) for p in student.parameters()]
    adam = torch.optim.Adam(learned, lr=rate, betas=(0.9, 0.99))
    began, done = time.monotonic(), 0
    while done < steps and time.monotonic() - began < seconds:
        part = max(done / steps, (time.monotonic() - began) / seconds)
        for group in adam.param_groups:
            group["lr"] = rate * min(1, part / _WARM + 0.02) * (0.02 + 0.49 * (1 + math.cos(math.pi * part)))
        given = batch(done)
        with torch.no_grad():
            wanted = run(teacher, given)
        got = run(student, given)
        loss = F.l1_loss(got, wanted) + F.mse_loss(got, wanted)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in learned if p.grad is not None], _CLIP)
        adam.step()
        done += 1
    student.requires_grad_(False)
    return done


def likeness(teacher: Net, student: Net, batches: Sequence[Batch], run: Run, *, peak: float | None = None) -> float:
    """Peak signal to noise of the student's outputs in dB, over all batches. peak: by default their own rms."""
    with torch.no_grad():
        pairs = [(run(teacher, batch), run(student, batch)) for batch in batches]
    power = peak**2 if peak else float(np.mean([float(y.square().mean()) for y, _ in pairs]))
    error = float(np.mean([float((y - own).square().mean()) for y, own in pairs]))
    return 10 * math.log10(power / error) if error else math.inf
