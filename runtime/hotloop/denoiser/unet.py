"""The denoiser of an engine's UNet, plain or split: both halves of guidance in one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from types import TracebackType

import numpy as np

from ..engines import Context, Engine
from ..errors import InputError
from ..samplers import StepTable
from ..spec import WEIGHTED, Network, Tensor, cells
from .lru_cache import LRUCache

__all__ = ["UNetDenoiser"]


class UNetDenoiser:
    """A UNet engine as a Denoiser: what it is told follows from the inputs of its network.

    prompt, time   the engines of the networks of these names, where the UNet was split from them (`Family.split`)
    prompts, times what they gave, kept from run to run: keys and values are computed once per context, the time table
                   once per schedule

    cond: `context` [N, T, C]; `negative_context` [N, T, C] turns guidance on (B = 2 N, the unconditional half first);
    `extra` [N, 5, h, w] is the mask and masked image of a 9-channel inpainting network. Optional inputs that the
    networks declare go by their names in the spec, a row per image, or per row of the batch where the spec says B;
    those left out are zero, which is without effect; `timestep_cond`, which the UNet has weights for, must be given.

    Use it in a `with` block: it returns its buffers to the engines at the end. Raises InputError when an engine is
    missing; begin() when `extra` does not fit the network, or cond holds what no network takes.
    """

    def __init__(
        self, unet: Engine, *, prompt: Engine | None = None, time: Engine | None = None,
        prompts: LRUCache | None = None, times: LRUCache | None = None,
    ) -> None:  # fmt: skip
        self._unet, self._prompt, self._time = unet, prompt, time
        self._kept_prompts, self._kept_times = prompts or LRUCache(), times or LRUCache()
        takes = {tensor.name for tensor in unet.network.inputs}
        for name, engine, needed in (("prompt", prompt, "context_kv"), ("time", time, "time_rows")):
            if (needed in takes) != (engine is not None):
                rule = f"the engine {name} must be given when the UNet takes {needed}, and only then"
                raise InputError("denoiser", rule, sorted(takes))
        # With a shared prefix there is one sample and one time per image, whatever the halves.
        self._shared = unet.network.inputs[0].shape[0] == "N"
        self._context: Context | None = None
        self._dims: dict[str, int] = {}
        self.seconds = 0.0  # spent inside the engines

    @property
    def small(self) -> bool:
        """Whether rows gain nothing from one call of the network: each may as well have a context of its own."""
        return getattr(self._unet, "small", False)

    def __enter__(self) -> UNetDenoiser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._release()

    def begin(self, cond: Mapping[str, np.ndarray], table: StepTable, shape: tuple[int, ...]) -> None:
        self._release()
        self._check(cond, shape)
        context, negative = cond["context"], cond.get("negative_context")
        n, self._channels, h, w = shape
        self._n, self._halves = n, 1 if negative is None else 2
        self._dims = self._unet.network.pick({
            "N": n, "B": n * self._halves, "T": context.shape[1], **cells(h, w),
            "Ti": cond["identity_kv"].shape[1] if "identity_kv" in cond else 1,
        })  # fmt: skip
        self._context = self._unet.contexts.acquire(**self._dims)
        self._c_in = table.c_in
        inputs = self._context.inputs
        rows = context if negative is None else np.concatenate([negative, context])
        if self._prompt is None:
            inputs["context"][:] = rows
        else:
            self._fill_keys(self._prompt, rows, inputs["context_kv"])
        # [1 or N, E, ...]: what the UNet takes as time in row e, of every image when a condition tells them apart.
        if self._time is None:
            self._when, self._times = inputs["timestep"], table.timesteps[None]
        else:
            self._when = inputs["time_rows"]
            # Each table that stands in this one has been, or will be, one of its own.
            each = np.split(table.timesteps, np.cumsum(table.lengths)[:-1]) if table.lengths else [table.timesteps]
            told = cond.get("timestep_cond")
            self._times = np.concatenate([self._time_table(self._time, one, told) for one in each], axis=1)
        for tensor in _optional(self._unet.network):
            inputs[tensor.name][:] = self._batched(tensor, cond[tensor.name]) if tensor.name in cond else 0
        sample = inputs["sample"]
        if "extra" in cond:
            for first in range(0, len(sample), n):
                sample[first : first + n, self._channels :] = cond["extra"]

    def step(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        assert self._context is not None, "begin() comes first"
        n, sample, when = self._n, self._context.inputs["sample"], self._when
        np.multiply(x, self._c_in[rows][:, None, None, None], out=sample[:n, : self._channels])
        when[:n] = self._times[np.arange(n) % len(self._times), rows]
        if len(sample) > n:
            sample[n:, : self._channels] = sample[:n, : self._channels]
            when[n:] = when[:n]
        self._run(self._context)
        out = self._context.outputs["out"]
        return (out, None) if self._halves == 1 else (out[n:], out[:n])

    def _check(self, cond: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
        network = self._unet.network
        given = shape[1] + (cond["extra"].shape[1] if "extra" in cond else 0)
        takes = network.inputs[0].shape[1]
        if given != takes:
            raise InputError("denoiser", f"latents and extra channels together must be {takes}", given)
        known = {"context", "negative_context", "extra", *(tensor.name for tensor in _optional(network))}
        if self._time is not None:
            known |= {tensor.name for tensor in _optional(self._time.network)}
        if missing := sorted(set(WEIGHTED) & known - set(cond)):
            raise InputError("denoiser", "conditions that the UNet has weights for must be given", missing)
        if unknown := sorted(set(cond) - known):
            raise InputError("denoiser", f"conditions must be among {sorted(known)}, as declared at export", unknown)

    def _batched(self, tensor: Tensor, value: np.ndarray) -> np.ndarray:
        """A row per image or per row of the batch -> what the input takes."""
        rows = self._n if tensor.shape[0] == "N" else self._n * self._halves
        if len(value) not in (self._n, rows):
            raise InputError("denoiser", f"{tensor.name} must have {self._n} or {rows} rows", value.shape)
        return np.concatenate([value] * (rows // len(value)))

    def _fill_keys(self, engine: Engine, rows: np.ndarray, packed: np.ndarray) -> None:
        """Contexts [B, T, C] -> packed [B, T, kv_width], each context once and alone: a run's other images must not
        reach its last bits."""

        def keys_of(row: np.ndarray) -> np.ndarray:
            with engine.contexts.lease(B=1, T=rows.shape[1]) as context:
                context.inputs["context"][0] = row
                self._run(context)
                return context.outputs["context_kv"][0].copy()

        for i, row in enumerate(rows):
            packed[i] = self._kept_prompts.get(row.tobytes(), partial(keys_of, row))

    def _time_table(self, engine: Engine, timesteps: np.ndarray, cond: np.ndarray | None) -> np.ndarray:
        """Timesteps [E] and an image's condition [N, D], if any -> [1 or N, E, time_width]."""

        def table_of(image: np.ndarray | None) -> np.ndarray:
            with engine.contexts.lease(B=len(timesteps)) as context:
                context.inputs["timestep"][:] = timesteps
                for tensor in _optional(engine.network):
                    context.inputs[tensor.name][:] = 0 if image is None else image
                self._run(context)
                return context.outputs["time_rows"].copy()

        images = [None] if cond is None else list(cond)
        keys = [timesteps.tobytes() + (b"" if image is None else b"|" + image.tobytes()) for image in images]
        return np.stack([
            self._kept_times.get(key, partial(table_of, image)) for key, image in zip(keys, images, strict=True)
        ])  # fmt: skip

    def _run(self, context: Context) -> None:
        began = time.perf_counter()
        context.run()
        self.seconds += time.perf_counter() - began

    def _release(self) -> None:
        if self._context is not None:
            self._unet.contexts.release(self._context, **self._dims)
            self._context = None


def _optional(network: Network) -> list[Tensor]:
    return [tensor for group in network.groups.values() for tensor in group]
