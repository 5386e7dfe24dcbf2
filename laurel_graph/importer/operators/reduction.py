"""Reductions along axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..builder import Value
from ..node import Node, integers
from ..registry import Registry
from .arithmetic import order

Axes = tuple[int, ...]


def _sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.sum(x, axes, keep) if x.dtype.is_floating_point else torch.sum(x, axes, keep).to(x.dtype)


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.mean(x, axes, keep)
    return torch.mean(x.double(), axes, keep).to(x.dtype)


def _prod(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep).to(x.dtype)
    return x


def _extreme(fn: Callable[..., Tensor], empty_is_low: bool) -> Callable[[Tensor, Axes, bool], Tensor]:
    def call(x: Tensor, axes: Axes, keep: bool) -> Tensor:
        if any(x.shape[axis] == 0 for axis in axes):
            shape = [1 if i in axes else s for i, s in enumerate(x.shape) if keep or i not in axes]
            if x.dtype.is_floating_point:
                fill: Any = -torch.inf if empty_is_low else torch.inf
            elif x.dtype == torch.bool:
                fill = not empty_is_low
            else:
                fill = torch.iinfo(x.dtype).min if empty_is_low else torch.iinfo(x.dtype).max
            return torch.full(shape, fill, dtype=x.dtype, device=x.device)
        return fn(x, axes, keep) if axes else x

    return call


def _l1(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if not x.dtype.is_floating_point:
        return _l2(x.double(), axes, keep).to(x.dtype)
    return torch.sqrt(torch.sum(x * x, axes, keep))


def _sum_square(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.log(_sum(x, axes, keep))


def _log_sum_exp(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep) if axes else x


_REDUCERS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceMax": _extreme(torch.amax, True),
    "ReduceMin": _extreme(torch.amin, False),
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def reduce(x: Tensor, op: str, axes: Any, keep: bool, noop: bool) -> Tensor:
    """Reduces along *axes*; without axes along all of them, or along none if *noop*."""
    axes = [] if axes is None else integers(axes)
    if axes:
        chosen = tuple(axis % x.dim() if x.dim() else 0 for axis in axes) if x.dim() else ()
    else:
        chosen = () if noop else tuple(range(x.dim()))
    if not chosen:
        lifted = _REDUCERS[op](x.unsqueeze(0), (0,), False)
        return lifted
    return _REDUCERS[op](x, chosen, keep)


def _reduce(node: Node) -> Value:
    axes = node.shape_argument(1, "axes") if len(node) > 1 or "axes" in node.attributes else None
    keep, noop = bool(node.attr("keepdims", 1)), bool(node.attr("noop_with_empty_axes", 0))
    if (
        isinstance(axes, list)
        and axes
        and node.op in ("ReduceMean", "ReduceSum")
        and node[0].elem_type in (1, 10, 11, 16)
    ):
        fn = torch.mean if node.op == "ReduceMean" else torch.sum
        return node.emit(fn, node[0], tuple(axes), keep)
    return node.emit(reduce, node[0], node.op, axes, keep, noop)


def arg_extreme(x: Tensor, axis: int, keep: bool, last: bool, largest: bool) -> Tensor:
    """Where the extreme value is along *axis*: the first or the last of equal ones."""
    x = order(x.detach())
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    size = x.shape[axis]
    extreme = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
    shape = [1] * x.dim()
    shape[axis] = size
    places = torch.arange(size, device=x.device).reshape(shape)
    hit = (x == extreme) | (x != x)
    places = torch.where(hit, places, -1 if last else size)
    return places.amax(axis, keepdim=keep) if last else places.amin(axis, keepdim=keep)


def _arg(node: Node) -> Value:
    keep, last = bool(node.attr("keepdims", 1)), bool(node.attr("select_last_index", 0))
    return node.emit(arg_extreme, node[0], node.attr("axis", 0), keep, last, node.op == "ArgMax")


def running(x: Tensor, axis: Any, exclusive: bool, reverse: bool, product: bool) -> Tensor:
    """Running sum or product along *axis*, without the element itself if *exclusive*, from the end if *reverse*."""
    axis = integers(axis)[0] % x.dim()
    x = x.flip(axis) if reverse else x
    out = (torch.cumprod(x, axis) if product else torch.cumsum(x, axis)).to(x.dtype)
    if exclusive:
        start = torch.full_like(x.narrow(axis, 0, 1), 1 if product else 0)
        out = torch.cat([start, out.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return out.flip(axis) if reverse else out


def _running(node: Node) -> Value:
    exclusive, reverse = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))
    return node.emit(running, node[0], node.shape_argument(1), exclusive, reverse, node.op == "CumProd")


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add(" ".join(_REDUCERS), _reduce)
    registry.add("ArgMax ArgMin", _arg)
    registry.add("CumSum", _running, 11)
    registry.add("CumProd", _running, 26)
