"""A network in half precision with islands of float32, from outside: layers are cast, norms and the kept ones are not.

Every layer (a module that holds parameters of its own) computes in one type. Those in float32 take what comes as
float32 and give it back in half: norms always, since their sums overflow or lose what they are there for; the time
embedding, since half a timestep is another timestep; and whatever `keep` names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

__all__ = ["DTYPES", "halve", "islands"]

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)
_TIME = "time_embedding"


def islands(net: nn.Module, keep: Collection[str] = ()) -> set[str]:
    """The paths of all layers that stay in float32; `keep` names modules, and all below them stay."""
    paths = set()
    for path, module in net.named_modules():
        kept = any(path == name or path.startswith(name + ".") for name in (*keep, _TIME))
        if dict(module.named_parameters(recurse=False)) and (kept or isinstance(module, _NORMS)):
            paths.add(path)
    return paths


def halve(net: nn.Module, dtype: torch.dtype, *, keep: Collection[str] = ()) -> nn.Module:
    """Turn `net` itself, whose inputs must then come in `dtype` (timesteps excepted), into half precision; returns it.

    keep: names of modules, as in `named_modules`, whose layers stay in float32. Names that are not there are ignored:
    one list serves every network that a model was split into.
    """
    wide = islands(net, keep)
    for path, module in net.named_modules():
        if path in wide:
            # The time embedding takes timesteps, which never were in half.
            module.register_forward_pre_hook(_widen, with_kwargs=True)
            module.register_forward_hook(lambda _, __, out: _cast(out, dtype))
        else:
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    return net


def _widen(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _cast(given, torch.float32), _cast(named, torch.float32)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, values)
