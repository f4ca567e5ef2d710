"""hotloop's fused operators inside OpenVINO's graphs, for the attention and group normalisation of a UNet on the CPU.

OpenVINO 2026.4 runs attention of 4,096 tokens and heads 40 wide at less than half our operator's speed. Around every
group normalisation it turns a map from the convolutions' channels-last layout to planar and back; ours normalises and
activates channels-last, and between maps and tokens nothing moves either. At SD 1.5's size a fused gate (GEGLU), one
product per half of the gate, and a fused layer normalisation gained nothing, so those stay OpenVINO's.

OpenVINO calls an operator in Python, under the GIL until the work has begun: while another Python thread computes
without pause, each of a UNet's 93 may wait for it as long as `sys.getswitchinterval` says.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import proxy

import numpy as np
from openvino import DiscreteTypeInfo, Op, Type, opset13

import hotloop_kernels as kernels

__all__ = ["OPERATORS", "Holder", "at_hand", "failures", "fuse", "holding", "threads"]

OPERATORS = ("attention", "group_norm")
# Why operators stopped, of all graphs: OpenVINO ends a run whose operator raises without a word, outputs unwritten.
failures: list[str] = []

Holder = list[Any]
_COUNTED = re.compile(r"([A-Z]\w*)_\d+")
_DLPACK_BFLOAT, _DLPACK_CODE = 4, 20  # the code of the type, and its place in DLPack's DLTensor


def at_hand() -> tuple[str, ...]:
    """The operators that are faster than OpenVINO's own here: all with AVX-512; others were not measured."""
    return OPERATORS if kernels.compiled() and kernels.build_info()["isa"] == "avx512" else ()


# The operators. Python's halves of them must live as long as anything may run them, and OpenVINO, which clones them
# while it compiles, keeps only its own: whoever compiles keeps the others, in a holder.

_compiling = threading.Lock()
_passing: deque[Any] = deque(maxlen=1024)  # made while nothing is compiled: to ask a shape of, and forgotten
_holder: Holder | deque[Any] = _passing
# What OpenVINO's half of an operator calls Python's half by. It lets go of it without the GIL, when a model is freed:
# safe only while another reference stands, so these stay, some hundred bytes for each.
_handles: list[Any] = []


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """The operators' threads are the process's: they are set for a run and set back."""
    before = kernels.threads()
    if count in (None, before):
        yield
        return
    kernels.set_threads(count)
    try:
        yield
    finally:
        kernels.set_threads(before)


@contextmanager
def holding(holder: Holder) -> Iterator[None]:
    """Operators that are made inside, by us or by OpenVINO, are kept in `holder`; empty it to let them go."""
    global _holder
    with _compiling:
        _holder = holder
        try:
            yield
        finally:
            _holder = _passing


class _Operator(Op):
    """An operator on its first input, whose type and shape are the output's too."""

    class_type_info: ClassVar[DiscreteTypeInfo]

    def __init__(self, inputs: Sequence[Any] | None = None, **attributes: Any) -> None:
        self.attributes = attributes
        _holder.append(self)
        # A proxy, or the operator, and all before it in its graph, would never be freed.
        _handles.append(proxy(self))
        super().__init__(_handles[-1], inputs)

    def get_type_info(self) -> DiscreteTypeInfo:
        return self.class_type_info

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, new_inputs: Sequence[Any]) -> _Operator:
        return type(self)(new_inputs, **self.attributes)

    def visit_attributes(self, visitor: Any) -> bool:
        visitor.on_attributes(self.attributes)
        return True

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: Sequence[Any], inputs: Sequence[Any]) -> bool:
        try:
            self.work([tensor.data for tensor in inputs], outputs[0].data, half=outputs[0].element_type == Type.bf16)
        except Exception as error:
            failures.append(f"{self.class_type_info.name}: {error}")
            raise
        return True

    def work(self, inputs: list[np.ndarray], out: np.ndarray, *, half: bool) -> None:
        """half: the arrays hold bfloat16."""
        raise NotImplementedError


class Attention(_Operator):
    """Queries, keys and values [B, T, H D] -> [B, T, H D]."""

    class_type_info = DiscreteTypeInfo("Attention", "hotloop")

    def __init__(self, inputs: Sequence[Any] | None = None, *, heads: int = 1) -> None:
        super().__init__(inputs, heads=heads)

    def work(self, inputs: list[np.ndarray], out: np.ndarray, *, half: bool) -> None:
        q, k, v, o = (_typed(x.reshape(*x.shape[:2], self.attributes["heads"], -1), half) for x in (*inputs, out))
        kernels.attention(q, k, v, out=o)


class GroupNorm(_Operator):
    """A map [N, h, w, C], scales [C] and biases [C] -> the normalised map, activated by SiLU or not."""

    class_type_info = DiscreteTypeInfo("GroupNorm", "hotloop")

    def __init__(
        self, inputs: Sequence[Any] | None = None, *, groups: int = 1, eps: float = 1e-5, silu: bool = False
    ) -> None:
        super().__init__(inputs, groups=groups, eps=eps, silu=silu)

    def work(self, inputs: list[np.ndarray], out: np.ndarray, *, half: bool) -> None:
        x, *affine = inputs
        affine = [array.copy() for array in affine]  # in a compiled model's file they may stand at an odd address
        x, weight, bias, o = (_typed(array, half) for array in (x, *affine, out))
        groups, eps, silu = (self.attributes[name] for name in ("groups", "eps", "silu"))
        kernels.group_norm_silu(x, weight, bias, groups, eps, silu=silu, channels_last=True, out=o)


class _Bfloat16:
    """An array of bfloat16, which numpy does not have, over one of any type of two bytes."""

    dtype = "bfloat16"

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape = array, array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._array.__dlpack__()
        tensor = _capsule_pointer(capsule, b"dltensor")
        ctypes.c_uint8.from_address(tensor + _DLPACK_CODE).value = _DLPACK_BFLOAT
        return capsule


_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _typed(array: np.ndarray, half: bool) -> Any:
    return _Bfloat16(array) if half else array


# Putting them in a graph's place of what they stand for, as our exporter writes it and NNCF quantises it.


def fuse(model: Any, operators: Collection[str], *, half: bool) -> int:
    """Put the operators into a model that was read from one of our graphs; returns how many. half: in bfloat16.

    Group norms only where all shapes are fixed: else OpenVINO moves the maps' values at every exchange of axes.
    """
    made = 0
    if "attention" in operators:
        made += sum(_fuse_attention(softmax, half) for softmax in _of_type(model, "Softmax"))
    if "group_norm" in operators and not model.is_dynamic():
        norms = sum(_fuse_group_norm(mvn, half) for mvn in _of_type(model, "MVN"))
        if norms:  # else nothing else is channels-last in the graph's own words
            for transpose in _of_type(model, "Transpose"):
                _lay_out_tokens(transpose)
        made += norms
    if made:
        model.validate_nodes_and_infer_types()
        _number(model)
    return made


def _of_type(model: Any, kind: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def _fuse_attention(softmax: Any, half: bool) -> bool:
    """softmax(q s (k s)^T) v of heads. Quantisers inside fall away: the operator works in floating point."""
    weights = _only_user(softmax)
    scores = softmax.input_value(0).get_node()
    if weights is None or [weights.get_type_name(), scores.get_type_name()] != ["MatMul", "MatMul"]:
        return False
    q = _chain(scores.input_value(0), "Multiply", "Transpose", "Reshape")
    k = _chain(scores.input_value(1), "Multiply", "Reshape", "Transpose", "Reshape", "Transpose", "Reshape")
    v = _chain(weights.input_value(1), "Transpose", "Reshape")
    if not (q and k and v):
        return False
    heads, size = _last(q[-1].output(0), 2)
    scale_q, scale_k = (_number_of(chain[0].input_value(1)) for chain in (q, k))
    if not heads or not size or size % 8 or size > 256 or scale_q is None or scale_k is None:
        return False
    if not math.isclose(scale_q * scale_k, size**-0.5, rel_tol=1e-4):
        return False
    quantisers: list[Any] = []
    end = weights
    for kind in ("Transpose", "Reshape"):
        end = _only_user(end, through=quantisers)
        if end is None or end.get_type_name() != kind:
            return False
    fused = Attention([_cast(_unquantised(chain[-1].input_value(0)), half) for chain in (q, k, v)], heads=heads)
    out = _widened(fused, half)
    for quantiser in quantisers:  # of the layer that follows
        ranges = [opset13.constant(np.float32(_number_of(quantiser.input_value(i)))) for i in range(1, 5)]
        out = opset13.fake_quantize(out, *ranges, quantiser.get_attributes()["levels"]).output(0)
    _replace(end.output(0), out)
    return True


def _fuse_group_norm(mvn: Any, half: bool) -> bool:
    """Reshape to groups, MVN, the affine of groups (1 and 0), Reshape back, the affine of channels, maybe SiLU."""
    flat, steps = mvn.input_value(0).get_node(), [mvn]
    for kind in ("Multiply", "Add", "Reshape", "Multiply", "Add"):
        after = _only_user(steps[-1])
        if after is None or after.get_type_name() != kind:
            return False
        steps.append(after)
    (channels,) = _last(steps[3].output(0), 3)[:1]
    groups = _last(flat.output(0), 2)[0]
    if flat.get_type_name() != "Reshape" or len(flat.input_value(0).get_partial_shape()) != 4 or not channels:
        return False
    if not groups or [_number_of(steps[i].input_value(1)) for i in (1, 2)] != [1, 0]:
        return False
    end, silu = steps[-1], False
    users = {user.get_type_name(): user for user in _users(end)}
    if len(_users(end)) == 2 and set(users) == {"Sigmoid", "Multiply"}:
        product = _only_user(users["Sigmoid"])  # nodes have no equality, their names have
        if product is not None and product.get_friendly_name() == users["Multiply"].get_friendly_name():
            end, silu = product, True
    affine = [opset13.reshape(step.input_value(1), np.array([-1]), False).output(0) for step in steps[4:6]]
    given = [_transpose(flat.input_value(0), 0, 2, 3, 1), *affine]
    eps = float(mvn.get_attributes()["eps"])
    fused = GroupNorm([_cast(value, half) for value in given], groups=groups, eps=eps, silu=silu)
    _replace(end.output(0), _transpose(_widened(fused, half), 0, 3, 1, 2))
    return True


def _lay_out_tokens(transpose: Any) -> None:
    """Maps to tokens and back by an exchange of axes that, channels-last, moves nothing."""
    if transpose.get_type_name() != "Transpose" or _order(transpose) != [0, 2, 1]:
        return
    flat, after = transpose.input_value(0).get_node(), _only_user(transpose)
    if flat.get_type_name() == "Reshape" and len(flat.input_value(0).get_partial_shape()) == 4:
        (channels,) = _last(transpose.output(0), 1)
        (width,) = _last(flat.input_value(0), 1)
        # The keys of an attention of another make are also flattened and turned, with their last axis as it was.
        if channels and _last(flat.input_value(0), 3)[0] == channels and width != (_last(flat.output(0), 1)[0] or -1):
            cells = _transpose(flat.input_value(0), 0, 2, 3, 1)
            _replace(transpose.output(0), opset13.reshape(cells, np.array([0, -1, channels]), True).output(0))
        return
    if after is None or after.get_type_name() != "Reshape" or len(after.output(0).get_partial_shape()) != 4:
        return
    if _last(transpose.input_value(0), 1) == _last(after.output(0), 3)[:1] != [0]:
        shape = opset13.gather(after.input_value(1), np.array([0, 2, 3, 1]), np.int64(0))
        cells = opset13.reshape(transpose.input_value(0), shape, False)
        _replace(after.output(0), _transpose(cells.output(0), 0, 3, 1, 2))


def _chain(value: Any, *kinds: str) -> list[Any]:
    """The nodes of these types that lead to a value, the last first; empty if they are others."""
    nodes = []
    for kind in kinds:
        node = _unquantised(value).get_node()
        if node.get_type_name() != kind:
            return []
        nodes.append(node)
        value = node.input_value(0)
    return nodes


def _unquantised(value: Any) -> Any:
    while value.get_node().get_type_name() == "FakeQuantize":
        value = value.get_node().input_value(0)
    return value


def _users(node: Any) -> list[Any]:
    """Those that take its values, not its shape alone."""
    users = [target.get_node() for target in node.output(0).get_target_inputs()]
    return [user for user in users if user.get_type_name() != "ShapeOf"]


def _only_user(node: Any, *, through: list[Any] | None = None) -> Any | None:
    """The one user of a node; `through` takes the quantisers on the way."""
    users = _users(node)
    while through is not None and len(users) == 1 and users[0].get_type_name() == "FakeQuantize":
        through.append(users[0])
        users = _users(users[0])
    return users[0] if len(users) == 1 else None


def _last(value: Any, axes: int) -> list[int]:
    """The sizes of the last axes; 0 for one that is not fixed."""
    shape = value.get_partial_shape()
    return [d.get_length() if d.is_static else 0 for d in list(shape)[-axes:]]


def _number_of(value: Any) -> float | None:
    """What a constant holds everywhere."""
    node = value.get_node()
    while node.get_type_name() in ("Reshape", "Convert", "Unsqueeze"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or not node.data.size:
        return None
    values = np.unique(node.data)
    return float(values[0]) if values.size == 1 else None


def _order(transpose: Any) -> list[int]:
    node = transpose.input_value(1).get_node()
    return node.data.tolist() if node.get_type_name() == "Constant" else []


def _transpose(value: Any, *order: int) -> Any:
    return opset13.transpose(value, np.array(order)).output(0)


def _cast(value: Any, half: bool) -> Any:
    return opset13.convert(value, "bf16").output(0) if half else value


def _widened(node: Any, half: bool) -> Any:
    return opset13.convert(node, "f32").output(0) if half else node.output(0)


def _replace(old: Any, new: Any) -> None:
    for target in old.get_target_inputs():
        target.replace_source_output(new)


def _number(model: Any) -> None:
    """New nodes are named after a count of all the process has made: count anew, so that caches know the model."""
    for i, node in enumerate(model.get_ordered_ops()):
        if found := _COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{found[1]}_{i}")
