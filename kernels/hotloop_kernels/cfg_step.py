"""cfg_step: classifier-free guidance and one sampler row, fused.

For image n with row e = rows[n] of a StepTable and state S = [x, s_1, .., s_K]:

    m  = m_u + g (m_c - m_u)            guidance (Ho & Salimans 2022, eq. 6); m_c alone without m_u
    d  = p_x[e] x + p_m[e] m            what the sampler keeps: eps, x0 or a derivative
    S' = M[e] [S, d, z]                 update and history in one; z is unit noise
    x' = mask x' + (1 - mask) (k_img[e] known + k_eps[e] eps)      inpainting

Zero coefficients are skipped, so what they would multiply is never read. Terms add up from the first column to the
last in float32; an image's result does not depend on the batch around it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import arrays, backend
from .checks import KernelError, tensor

__all__ = ["MAX_STATES", "cfg_step", "reference"]

_OP = "cfg_step"
MAX_STATES = 8  # x and the history; as in ops.h

Array = np.ndarray


def cfg_step(
    state: Any,
    m_c: Any,
    m_u: Any | None,
    rows: Any,
    guidance: Any,
    update: Any,
    p_x: Any,
    p_m: Any,
    *,
    z: Any | None = None,
    mask: Any | None = None,
    known: Any | None = None,
    eps: Any | None = None,
    k_img: Any | None = None,
    k_eps: Any | None = None,
    residual: Any | None = None,
    stream: int | None = None,
    unproved: bool = False,
) -> None:
    """Take one sampler row per image, in place.

    state     f32 [K+1, N, C, h, w], K <= 7; row 0 is x; overwritten
    m_c, m_u  f32 [N, C, h, w], the network with and without the condition; m_u None: no guidance
    rows      integer [N], the table row of every image
    guidance  [N], the guidance scale g of every image (unused without m_u and residual)
    update    [E, K+1, K+3], columns x, s_1 .. s_K, d, z
    p_x, p_m  [E]
    z         f32 [N, C, h, w], unit noise; needed when a row that is taken has a z column
    mask      f32 [N, 1, h, w], 1 = keep the new x, 0 = put back the known image; needs known and eps
              (f32 [N, C, h, w]) and k_img, k_eps ([E])
    residual  [E, K+1]: residual guidance (Kodaira et al. 2023), m_u = residual[e] . S; excludes m_u
    stream    CUDA stream (the pointer as a number); None: the default stream
    unproved  run on a GPU that no gpu-check has proved

    With a numpy state everything is a numpy array, or becomes one. Otherwise (torch, cupy) all are float32 arrays, rows
    int32, with contiguous images, on the state's device, and nothing is copied. The host reads nothing from a GPU, so a
    captured graph follows new rows, guidance and tables; a row outside the table, or noise without z, gives NaN.

    Raises KernelError.
    """
    if not isinstance(state, np.ndarray):
        _on_arrays(
            state, m_c, m_u, rows, guidance, update, p_x, p_m,
            z, mask, known, eps, k_img, k_eps, residual, stream, unproved,
        )  # fmt: skip
        return
    tensor(_OP, "state", state, ("K+1", "N", "C", "h", "w"))
    states, n, c, h, w = state.shape
    if not 1 <= states <= MAX_STATES:
        raise KernelError(_OP, f"state must hold 1 to {MAX_STATES} tensors", states)
    if not state.flags.writeable:
        raise KernelError(_OP, "state must be writable", "a read-only array")
    image = (n, c, h, w)

    rows = np.asarray(rows)
    if rows.shape != (n,) or rows.dtype.kind not in "iu":
        raise KernelError(_OP, f"rows must be integer [{n}]", f"{rows.dtype} {list(rows.shape)}")
    update = np.ascontiguousarray(update, np.float32)
    if update.ndim != 3 or update.shape[1:] != (states, states + 2):
        raise KernelError(_OP, f"update must be [E, {states}, {states + 2}]", list(update.shape))
    table = update.shape[0]
    if n and not (rows.min() >= 0 and rows.max() < table):
        raise KernelError(_OP, f"rows must lie in 0..{table - 1}", rows.tolist())
    rows = np.ascontiguousarray(rows, np.int32)

    guidance = _numbers("guidance", guidance, n)
    p_x, p_m = _numbers("p_x", p_x, table), _numbers("p_m", p_m, table)

    m_c = _image("m_c", m_c, image)
    if m_u is not None:
        if residual is not None:
            raise KernelError(_OP, "m_u and residual exclude each other", "both")
        m_u = _image("m_u", m_u, image)
    if residual is not None:
        residual = np.ascontiguousarray(residual, np.float32)
        if residual.shape != (table, states):
            raise KernelError(_OP, f"residual must be [{table}, {states}]", list(residual.shape))
    if z is not None:
        z = _image("z", z, image)
    elif update[rows, :, -1].any():
        raise KernelError(_OP, "z must be given for rows with a noise column", rows.tolist())
    if mask is not None:
        mask = _image("mask", mask, (n, 1, h, w))
        known, eps = _image("known", known, image), _image("eps", eps, image)
        k_img, k_eps = _numbers("k_img", k_img, table), _numbers("k_eps", k_eps, table)

    # The compiled operator takes any distance between states and between images, but contiguous images.
    in_place = backend.ops is None or state.strides[2:] == (4 * h * w, 4 * w, 4)
    target = state if in_place else np.ascontiguousarray(state)
    if backend.ops is None:
        reference(target, m_c, m_u, rows, guidance, update, p_x, p_m,
                  z=z, mask=mask, known=known, eps=eps, k_img=k_img, k_eps=k_eps, residual=residual)  # fmt: skip
    else:
        backend.ops.cfg_step(target, m_c, m_u, rows, guidance, update, p_x, p_m,
                             z, mask, known, eps, k_img, k_eps, residual, 0, False, False)  # fmt: skip
    if not in_place:
        state[...] = target


def _on_arrays(
    state: Any, m_c: Any, m_u: Any, rows: Any, guidance: Any, update: Any, p_x: Any, p_m: Any,
    z: Any, mask: Any, known: Any, eps: Any, k_img: Any, k_eps: Any, residual: Any, stream: int | None, unproved: bool,
) -> None:  # fmt: skip
    """cfg_step on arrays that are not numpy's, in place and without copies."""
    if backend.ops is None:
        arrays.numpy_only(_OP, state)
    if arrays.float_dtype(_OP, "state", state) != "float32" or len(state.shape) != 5:
        got = f"{arrays.dtype_of(state)} {list(state.shape)}"
        raise KernelError(_OP, "state must be float32 [K+1, N, C, h, w]", got)
    states, n, c, h, w = state.shape
    if not 1 <= states <= MAX_STATES:
        raise KernelError(_OP, f"state must hold 1 to {MAX_STATES} tensors", states)
    if m_u is not None and residual is not None:
        raise KernelError(_OP, "m_u and residual exclude each other", "both")
    image, table = (n, c, h, w), len(update)
    arrays.check(_OP, "rows", rows, "int32", (n,))
    needed = {
        "m_c": (m_c, image), "guidance": (guidance, (n,)), "update": (update, (table, states, states + 2)),
        "p_x": (p_x, (table,)), "p_m": (p_m, (table,)),
    }  # fmt: skip
    if mask is None:
        known = eps = k_img = k_eps = None
    else:
        needed |= {"mask": (mask, (n, 1, h, w)), "known": (known, image), "eps": (eps, image)}
        needed |= {"k_img": (k_img, (table,)), "k_eps": (k_eps, (table,))}
    optional = {"m_u": (m_u, image), "z": (z, image), "residual": (residual, (table, states))}
    needed |= {name: pair for name, pair in optional.items() if pair[0] is not None}
    for name, (array, shape) in needed.items():
        arrays.check(_OP, name, array, "float32", shape)
    backend.ops.cfg_step(state, m_c, m_u, rows, guidance, update, p_x, p_m,
                         z, mask, known, eps, k_img, k_eps, residual, stream or 0, unproved, False)  # fmt: skip


def reference(
    state: Array,
    m_c: Array,
    m_u: Array | None,
    rows: Array,
    guidance: Array,
    update: Array,
    p_x: Array,
    p_m: Array,
    *,
    z: Array | None = None,
    mask: Array | None = None,
    known: Array | None = None,
    eps: Array | None = None,
    k_img: Array | None = None,
    k_eps: Array | None = None,
    residual: Array | None = None,
) -> None:
    """cfg_step in NumPy, in the arrays' own precision and without checks."""
    states = state.shape[0]
    for n, e in enumerate(rows):
        S = [state[k, n].copy() for k in range(states)]
        m = m_c[n]
        baseline = _sum(residual[e], S) if residual is not None else None if m_u is None else m_u[n]
        if baseline is not None:
            m = baseline + guidance[n] * (m - baseline)
        d = p_x[e] * S[0] + p_m[e] * m
        columns = [*S, d, None if z is None else z[n]]
        for k in range(states):
            state[k, n] = _sum(update[e, k], columns)
        if mask is not None:
            assert known is not None and eps is not None and k_img is not None and k_eps is not None
            again = k_img[e] * known[n] + k_eps[e] * eps[n]
            state[0, n] = mask[n] * state[0, n] + (1 - mask[n]) * again


def _sum(weights: Array, columns: list) -> Array:
    terms = [weight * column for weight, column in zip(weights, columns, strict=True) if weight != 0]
    if not terms:
        return np.zeros_like(columns[0])
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _image(name: str, value: Array | None, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(tensor(_OP, name, value, shape))


def _numbers(name: str, value: object, count: int) -> Array:
    array = np.ascontiguousarray(value, np.float32) if value is not None else np.empty(0, np.float32)
    if array.shape != (count,):
        raise KernelError(_OP, f"{name} must be [{count}]", None if value is None else list(array.shape))
    return array
