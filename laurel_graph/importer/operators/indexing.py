"""Reading and writing by index: gathers, scatters, selections, sorting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..elements import FLOATS
from ..node import Node, integers
from ..registry import Registry
from .arithmetic import order


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """The slices of x at *index* along *axis*; negative ones count from the end."""
    axis = axis % x.dim()
    if index.dtype == torch.uint8:
        index = index.to(torch.int64)
    return x[(slice(None),) * axis + (index.to(torch.int64) if index.dtype != torch.int64 else index,)]


def embedding(weight: Tensor, index: Tensor) -> Tensor:
    """The rows of a matrix at *index*; negative ones count from the end."""
    if index.device.type != "cpu" or (index.numel() and int(index.min()) < 0):
        index = torch.where(index < 0, index + weight.shape[0], index)
    return F.embedding(index, weight)


def _gather(node: Node) -> Value:
    axis, known = node.attr("axis", 0), node.const(1)
    if known is not None and known.dim() == 0:
        return node.emit(torch.select, node[0], axis, int(known))
    shape = node[0].shape
    if axis == 0 and shape is not None and len(shape) == 2 and node[0].elem_type in FLOATS and not node[1].host:
        return node.emit(embedding, node[0], node[1])
    return node.emit(gather, node[0], node[1], axis)


def _positive(index: Tensor, size: int) -> Tensor:
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def gather_elements(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """``out[i][j] = x[index[i][j]][j]`` (for axis 0)."""
    return torch.gather(x, axis, _positive(index, x.shape[axis]))


def _flat_index(index: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Returns tuples of coordinates (..., k) into axes of these sizes as one number each."""
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for i, size in enumerate(sizes):
        flat = flat * size + _positive(index[..., i], size)
    return flat


def gather_nd(x: Tensor, index: Tensor, batch_dims: int) -> Tensor:
    """The slices of x that the last axis of *index* points at, batch by batch."""
    depth = index.shape[-1]
    batch, indexed, rest = x.shape[:batch_dims], x.shape[batch_dims : batch_dims + depth], x.shape[batch_dims + depth :]
    count = int(torch.tensor(batch).prod()) if batch else 1
    flat = _flat_index(index, tuple(indexed)).reshape(count, -1)
    cells = x.reshape(count, -1, *rest)
    picked = cells[torch.arange(count, device=x.device).unsqueeze(1), flat]
    return picked.reshape(*index.shape[:-1], *rest)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(x: Tensor, index: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """x with *updates* written (or reduced into) where *index* says along *axis*."""
    index = _positive(index, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction], include_self=True)


def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """x with the slices that *index* points at replaced by, or reduced with, *updates*."""
    depth = index.shape[-1]
    rest = x.shape[depth:]
    flat = _flat_index(index, tuple(x.shape[:depth])).reshape(-1)
    cells = x.reshape(-1, *rest) if depth else x.reshape(1, *rest)
    updates = updates.reshape(-1, *rest)
    if reduction == "none":
        return cells.index_put((flat,), updates).reshape(x.shape)
    where = flat.reshape(-1, *(1,) * len(rest)).expand(updates.shape)
    return cells.scatter_reduce(0, where, updates, _REDUCTIONS[reduction], include_self=True).reshape(x.shape)


def tensor_scatter(past: Tensor, update: Tensor, start: Tensor | None, axis: int, circular: bool) -> Tensor:
    """A cache with *update* written from ``start[b]`` on along *axis*."""
    axis = axis % past.dim()
    length, size = update.shape[axis], past.shape[axis]
    batch = past.shape[0]
    begin = torch.zeros(batch, dtype=torch.int64, device=past.device) if start is None else start.to(torch.int64)
    steps = begin.unsqueeze(1) + torch.arange(length, device=past.device)
    steps = steps % size if circular else steps
    view = (batch,) + (1,) * (axis - 1) + (length,) + (1,) * (past.dim() - axis - 1)
    return past.scatter(axis, steps.reshape(view).expand(update.shape), update)


def _tensor_scatter(node: Node) -> Value:
    circular = node.attr("mode", "linear") == "circular"
    return node.emit(tensor_scatter, node[0], node[1], node.get(2), node.attr("axis", -2), circular)


def compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """The slices where *condition* holds."""
    kept = condition.nonzero().squeeze(1)
    return (x.reshape(-1) if axis is None else x).index_select(axis or 0, kept)


def non_zero(x: Tensor) -> Tensor:
    """The coordinates of what is not zero, one column each."""
    return x.nonzero().t()


def unique(x: Tensor, axis: int | None, ordered: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct slices, where each occurs first, which one each element is, and how often each occurs."""
    values, inverse, counts = torch.unique(
        x.reshape(-1) if axis is None else x, return_inverse=True, return_counts=True, dim=axis or 0
    )
    inverse = inverse.reshape(-1)
    positions = torch.arange(len(inverse), device=x.device)
    first = torch.full((len(counts),), len(inverse), device=x.device)
    first = first.scatter_reduce(0, inverse, positions, "amin", include_self=True)
    if not ordered:
        by_place = first.argsort()
        values = values.index_select(axis or 0, by_place)
        rank = torch.empty_like(by_place).scatter(0, by_place, torch.arange(len(by_place), device=x.device))
        inverse, counts, first = rank[inverse], counts[by_place], first[by_place]
    return values, first, inverse, counts


def _unique(node: Node) -> list[Value]:
    return node.unpack(node.emit(unique, node[0], node.attr("axis"), bool(node.attr("sorted", 1))))


def top_k(x: Tensor, k: Any, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) along *axis* and their places; of equal ones the first comes first."""
    k = integers(k)[0]
    places = order(x.detach()).sort(dim=axis, descending=largest, stable=True)[1].narrow(axis, 0, k)
    if x.dtype == torch.uint64:
        return torch.gather(x.view(torch.int64), axis, places).view(torch.uint64), places
    return torch.gather(x, axis, places), places


def _top_k(node: Node) -> list[Value]:
    k = [node.attr("k")] if node.version < 10 else node.shape_argument(1)
    return node.unpack(node.emit(top_k, node[0], k, node.attr("axis", -1), bool(node.attr("largest", 1))))


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("Gather", _gather)
    add("GatherElements", lambda node: node.emit(gather_elements, node[0], node[1], node.attr("axis", 0)), 11)
    add("GatherND", lambda node: node.emit(gather_nd, node[0], node[1], node.attr("batch_dims", 0)), 11)
    add(
        "Scatter ScatterElements",
        lambda node: node.emit(
            scatter_elements, *node.inputs[:3], node.attr("axis", 0), node.attr("reduction", "none")
        ),
        9,
    )
    add("ScatterND", lambda node: node.emit(scatter_nd, *node.inputs[:3], node.attr("reduction", "none")), 11)
    add("TensorScatter", _tensor_scatter, 24)
    add("Compress", lambda node: node.emit(compress, node[0], node[1], node.attr("axis")), 9)
    add("NonZero", lambda node: node.emit(non_zero, node[0]), 9)
    add("Unique", _unique, 11)
    add("TopK", _top_k)
