"""The loop of the native engine: the state stays on torch's device, and on CUDA a run is one graph.

    with ResidentLoop(unet, prompt=prompt, time=time, decoder=decoder, scaling=0.18215) as denoiser:
        denoiser.begin(cond, table, shape)
        denoiser.start(x, guidance=guidance, noise=noise, inpaint=inpaint)   # every upload of the run
        latents = denoiser.run()                                             # rows and decoder, nothing between them
        denoiser.pixels                                                      # uint8 [N, H, W, 3]

A row reads its number, its coefficients, its time and its noise from the device, so all rows are the same work: one
captured graph serves every row of every table, and the graph of a whole run repeats it. A new prompt, seed, guidance
scale, mask or table is an upload. What needs another capture is another shape or number of rows, guidance, noise or
inpainting switched on or off, and other optional inputs. On the CPU the same work runs uncaptured.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hotloop_kernels import cfg_step, rgb

from ..engines import Engine
from ..engines.native import NativeEngine, runs, settings
from ..errors import DeviceMemoryError, InputError, NonFiniteError
from ..nets.cuda_stream import stream_of
from ..nets.tunings import operators_at_hand
from ..samplers.table import K, StepTable
from ..spec import resolve
from .lru_cache import LRUCache
from .protocols import Inpaint
from .unet import UNetDenoiser

__all__ = ["CapturedRuns", "ResidentLoop", "captured_runs", "fused_pack", "fused_step", "pack", "update_step"]

F32 = np.ndarray


@dataclass(frozen=True)
class _Run:
    """What the next run is told: host arrays, uploaded as they are."""

    x: F32
    guidance: F32
    noise: F32 | None
    inpaint: Inpaint | None


class ResidentLoop(UNetDenoiser):
    """A UNetDenoiser over native engines that also keeps the state (`denoiser.DeviceDenoiser`).

    decoder  the VAE decoder's engine: its work becomes part of a run; scaling: latents / scaling are what it takes
    graphs   whether CUDA runs are captured; on the CPU there is nothing to capture

    Raises InputError for an engine that is not native, or on another device than the UNet's.
    """

    def __init__(
        self, unet: Engine, *, prompt: Engine | None = None, time: Engine | None = None, decoder: Engine | None = None,
        scaling: float = 1.0, graphs: bool = True, prompts: LRUCache | None = None, times: LRUCache | None = None,
    ) -> None:  # fmt: skip
        super().__init__(unet, prompt=prompt, time=time, prompts=prompts, times=times)
        for engine in (unet, decoder):
            if engine is not None and not isinstance(engine, NativeEngine):
                raise InputError("denoiser", "a resident loop takes native engines", engine.kind)
            if engine is not None and engine.device != unet.device:
                raise InputError("denoiser", f"all engines must be on {unet.device}", engine.device)
        assert isinstance(unet, NativeEngine)
        self._engine: NativeEngine = unet
        self._decoder: Engine | None = decoder
        self._scaling: float = scaling
        self._graphs: bool = graphs and unet.device == "cuda"
        self._runs: CapturedRuns = captured_runs(unet)
        self._captured_run: _CapturedRun | None = None
        self._key: dict[str, Any] = {}
        self.pixels: np.ndarray | None = None

    def begin(self, cond: Mapping[str, np.ndarray], table: StepTable, shape: tuple[int, ...]) -> None:
        super().begin(cond, table, shape)
        self._table, self._shape = table, shape
        self._extra = cond.get("extra")

    def start(self, x: F32, *, guidance: F32, noise: F32 | None, inpaint: Inpaint | None) -> None:
        """Upload everything the run needs; the loop has checked the shapes."""
        assert self._context is not None, "begin() comes first"
        self._return()
        self.pixels = None
        self._run_of = _Run(x, guidance, noise, inpaint)
        key = dict(
            rows=len(self._table), images=len(x), noise=noise is not None, inpaint=inpaint is not None,
            residual=self._table.residual is not None, times=len(self._times),
            extra=0 if self._extra is None else self._extra.shape[1],
            graphs=self._graphs, decoder=self._decoder, scaling=self._scaling,
            shape=self._shape, dims=tuple(sorted(self._dims.items())),
        )  # fmt: skip
        with _memory(self._runs):
            self._captured_run, self._key = self._runs.acquire(**key), key
            self._upload()

    def advance(self) -> F32:
        """The next row; the latents after it."""
        return self._work("row")

    def run(self) -> F32:
        """All rows, and the decoder where there is one; the latents. Raises NonFiniteError for a broken image."""
        latents = self._work("run")
        if self._decoder is not None:
            assert self._captured_run is not None
            if not bool(self._captured_run.finite):
                what = "image" if np.isfinite(latents).all() else "latents"
                raise NonFiniteError("native", f"{what} must be finite")
            self.pixels = self._captured_run.pixels.cpu().numpy()
        return latents

    def _work(self, name: str) -> F32:
        """Do the captured run's "row" or "run", captured where graphs are on; the latents after it."""
        assert self._captured_run is not None, "start() comes first"
        with self._timed(), _memory(self._runs):
            work = getattr(self._captured_run, name)
            if not self._graphs:
                work()
            else:
                if name not in self._captured_run.graphs:
                    # Warming up before the capture runs the work.
                    kept = self._captured_run.state.clone(), self._captured_run.rows.clone()
                    self._captured_run.graphs[name] = _captured(work)
                    self._captured_run.state.copy_(kept[0])
                    self._captured_run.rows.copy_(kept[1])
                self._captured_run.graphs[name].replay()
            return self._captured_run.state[0].cpu().numpy().copy()

    def _upload(self) -> None:
        assert self._captured_run is not None and self._context is not None
        inputs = self._context.inputs
        self._captured_run.upload(self._table, self._run_of, self._times, inputs, self._extra)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        with torch.inference_mode(), settings(self._engine.threads), runs(self._engine.network.name):
            yield
        self.seconds += time.perf_counter() - began

    def _return(self) -> None:
        if self._captured_run is not None:
            self._runs.release(self._captured_run, **self._key)
            self._captured_run = None

    def _release(self) -> None:
        self._return()
        super()._release()


class _CapturedRun:
    """The tensors of one shape on the device, at fixed addresses, and the work on them."""

    def __init__(
        self, unet: NativeEngine, *, decoder: NativeEngine | None, scaling: float, rows: int, images: int,
        shape: tuple[int, ...], dims: tuple[tuple[str, int], ...], noise: bool, inpaint: bool, residual: bool,
        extra: int, times: int, graphs: bool,
    ) -> None:  # fmt: skip
        self._unet, self._decoder, self._scaling, self._count = unet, decoder, scaling, rows
        device, self.graphs = unet.device, {}  # type: ignore[var-annotated]
        sizes, network = dict(dims), unet.network

        def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.columns = empty(K + 3, *shape)  # x, the saved states, d and z
        self.state = self.columns[: K + 1]
        self.rows = empty(images, dtype=torch.int32)
        self.guidance = empty(images)
        self.update, self.p_x, self.p_m = empty(rows, K + 1, K + 3), empty(rows), empty(rows)
        self.c_in, self.k_img, self.k_eps = empty(rows), empty(rows), empty(rows)
        self.residual = empty(rows, K + 1) if residual else None
        self.noise = empty(rows * images, *shape[1:]) if noise else None
        self.mask = empty(images, 1, *shape[2:]) if inpaint else None
        self.known = empty(*shape) if inpaint else None
        self.eps = empty(*shape) if inpaint else None
        sample, when, *conds = network.inputs
        self.extra = empty(images, extra, *shape[2:]) if extra else None
        self.times = empty(times * rows, *resolve(when.shape[1:], sizes))
        self.conds = [
            empty(*resolve(tensor.shape, sizes), dtype=unet.call.dtype if tensor.dtype == "float32" else torch.int64)
            for tensor in conds
        ]
        self._names = [tensor.name for tensor in conds]
        self._on_device: dict[int, np.ndarray] = {}  # what was uploaded last, for `conds`
        self._batch = sizes.get("B", images)
        self._doubled = sample.shape[0] != "N" and self._batch > images
        # Where an image's rows begin in the tables that hold a row of every image.
        self._of_times = torch.arange(images, device=device) * (rows if times > 1 else 0)
        self._of_noise = torch.arange(images, device=device)
        fused = operators_at_hand(device)
        self._step = fused_step if "cfg_step" in fused else update_step
        self._pack = fused_pack if "rgb.pack" in fused else pack

    def upload(
        self, table: StepTable, run: _Run, times: np.ndarray, inputs: Mapping[str, np.ndarray], extra: F32 | None
    ) -> None:
        """Everything that a run is told; the rows begin at the first."""
        pairs: list[tuple[Tensor | None, np.ndarray | None]] = [
            (self.state[0], run.x), (self.guidance, run.guidance), (self.update, table.update),
            (self.p_x, table.p_x), (self.p_m, table.p_m), (self.c_in, table.c_in), (self.k_img, table.k_img),
            (self.k_eps, table.k_eps), (self.residual, table.residual), (self.extra, extra),
            (self.times, times.reshape(self.times.shape)),
            *zip(self.conds, (inputs[name] for name in self._names), strict=True),
        ]  # fmt: skip
        if run.inpaint is not None:
            pairs += [(self.mask, run.inpaint.mask), (self.known, run.inpaint.known), (self.eps, run.inpaint.eps)]
        if run.noise is not None and self.noise is not None:
            # Every row's noise at its own place: which rows draw is the table's affair.
            placed = np.zeros((self._count, *run.x.shape), np.float32)
            placed[table.draws] = run.noise
            pairs.append((self.noise, placed.reshape(self.noise.shape)))
        self.columns[1:].zero_()
        self.rows.zero_()
        for device, host in pairs:
            if device is not None and host is not None:
                self._copy(device, host)

    def _copy(self, device: Tensor, host: np.ndarray) -> None:
        """Conditions stay from run to run: to compare a prompt's keys and values (15 MB in SD 1.5) is quicker."""
        before = self._on_device.get(id(device))
        if before is not None and np.array_equal(before, host):
            return
        host = np.require(host, requirements=["C", "W"])
        device.copy_(torch.from_numpy(host))
        if any(device is cond for cond in self.conds):
            self._on_device[id(device)] = host.copy()

    def run(self) -> None:
        for _ in range(self._count):
            self.row()
        if self._decoder is not None:
            self._decode(self._decoder)

    def row(self) -> None:
        images, x = len(self.rows), self.state[0]
        sample = x * self.c_in.index_select(0, self.rows)[:, None, None, None]
        if self.extra is not None:
            sample = torch.cat([sample, self.extra], dim=1)
        when = self.times.index_select(0, self._of_times + self.rows)
        if self._doubled:
            sample, when = torch.cat([sample, sample]), torch.cat([when, when])
        (out,) = self._unet.call(sample, when, *self.conds)
        m_c, m_u = (out, None) if self._batch == images else (out[images:], out[:images])
        if self.noise is not None:
            self.columns[-1] = self.noise.index_select(0, images * self.rows + self._of_noise)
        self._step(self, m_c, m_u)
        self.rows += 1

    def _decode(self, decoder: NativeEngine) -> None:
        (image,) = decoder.call(self.state[0] / self._scaling)
        self.pixels, self.finite = self._pack(image)


def update_step(run: _CapturedRun, m_c: Tensor, m_u: Tensor | None) -> None:
    """`cfg_step` in torch, for all images in one product: columns [K + 3, N, ...] times the rows' matrices."""
    rows, x = run.rows, run.state[0]

    def of_row(table: Tensor) -> Tensor:
        return table.index_select(0, rows)[:, None, None, None]

    columns = run.columns.flatten(2).transpose(0, 1)  # [N, K + 3, C h w]
    if run.residual is not None:
        weights = run.residual.index_select(0, rows)[:, None]  # [N, 1, K + 1]
        m_u = torch.bmm(weights, columns[:, : K + 1]).view_as(x)
    m = m_c if m_u is None else m_u + run.guidance[:, None, None, None] * (m_c - m_u)
    run.columns[K + 1] = of_row(run.p_x) * x + of_row(run.p_m) * m
    new = torch.bmm(run.update.index_select(0, rows), columns)  # [N, K + 1, C h w]
    run.state.copy_(new.transpose(0, 1).view_as(run.state))
    if run.mask is not None and run.known is not None and run.eps is not None:
        again = of_row(run.k_img) * run.known + of_row(run.k_eps) * run.eps
        run.state[0] = run.mask * x + (1 - run.mask) * again


def fused_step(run: _CapturedRun, m_c: Tensor, m_u: Tensor | None) -> None:
    """`cfg_step` as one operator."""
    blend: dict[str, Any] = {} if run.mask is None else {
        "mask": run.mask, "known": run.known, "eps": run.eps, "k_img": run.k_img, "k_eps": run.k_eps,
    }  # fmt: skip
    cfg_step(
        run.state, m_c.contiguous(), None if m_u is None else m_u.contiguous(), run.rows, run.guidance,
        run.update, run.p_x, run.p_m, z=run.columns[-1], residual=run.residual, stream=stream_of(run.state),
        **blend,
    )  # fmt: skip


def pack(image: Tensor) -> tuple[Tensor, Tensor]:
    """`rgb.pack` in torch: pixels f32 [N, C, H, W] in [-1, 1] -> (uint8 [N, H, W, C], whether all were finite)."""
    scaled = ((image * 0.5 + 0.5).nan_to_num().clamp(0, 1) * 255).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).contiguous(), torch.isfinite(image).all()


def fused_pack(image: Tensor) -> tuple[Tensor, Tensor]:
    """The same as one operator."""
    if not image.is_cuda:
        finite = torch.isfinite(image).all()
        return rgb.pack(image if finite else torch.zeros_like(image)), finite
    bad = torch.zeros(1, dtype=torch.int32, device=image.device)
    return rgb.pack(image, bad=bad, stream=stream_of(image)), bad[0] == 0


class CapturedRuns:
    """Idle captured runs of one engine by what they were made for, the last few used. Safe across threads."""

    def __init__(self, engine: NativeEngine, *, kept: int = 4) -> None:
        self._engine, self._kept = weakref.proxy(engine), kept  # what an engine's death ends must not keep it alive
        self._idle: OrderedDict[frozenset[Any], list[_CapturedRun]] = OrderedDict()
        self._lock = threading.Lock()

    def acquire(self, **key: Any) -> _CapturedRun:
        with self._lock:
            if idle := self._idle.get(frozenset(key.items())):
                return idle.pop()
        return _CapturedRun(self._engine, **key)

    def release(self, run: _CapturedRun, **key: Any) -> None:
        with self._lock:
            self._idle.setdefault(frozenset(key.items()), []).append(run)
            self._idle.move_to_end(frozenset(key.items()))
            while len(self._idle) > self._kept:
                self._idle.popitem(last=False)

    def clear(self) -> None:
        """Forget the idle ones and their memory."""
        with self._lock:
            self._idle.clear()


_RUNS: weakref.WeakKeyDictionary[NativeEngine, CapturedRuns] = weakref.WeakKeyDictionary()
_RUNS_LOCK = threading.Lock()


def captured_runs(engine: NativeEngine) -> CapturedRuns:
    """Those of an engine, as long as it lives."""
    with _RUNS_LOCK:
        return _RUNS.setdefault(engine, CapturedRuns(engine))


def _captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """The work as a CUDA graph. It is done once before on a stream of its own: libraries choose and allocate then."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on with their own streams while this one is captured.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph


@contextmanager
def _memory(runs: CapturedRuns) -> Iterator[None]:
    """Out of device memory: idle runs are given up, and one line says what to do. The pipeline stays usable."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        runs.clear()
        torch.cuda.empty_cache()
        rule = "the device must have memory for this run: draw fewer or smaller images"
        raise DeviceMemoryError("native", rule, str(error).splitlines()[0]) from error
