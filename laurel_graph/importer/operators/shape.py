"""Shapes: reading them, changing them, cutting and joining along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node, direct, integers
from ..registry import Registry


def shape_of(x: Tensor, start: int, end: int | None) -> Tensor:
    """The shape of *x* from axis *start* to *end* as int64 on the CPU."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def size_of(x: Tensor) -> Tensor:
    """The number of elements as int64 on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def _shape(node: Node) -> Value:
    start, end = node.attr("start", 0), node.attr("end")
    known = node[0].shape
    if known is not None and all(isinstance(d, int) for d in known[start:end]):
        return node.constant(torch.tensor(known[start:end], dtype=torch.int64))
    value = node.emit(shape_of, node[0], start, end)
    value.host = True
    return value


def _size(node: Node) -> Value:
    value = node.emit(size_of, node[0])
    value.host = True
    return value


def reshape(x: Tensor, shape: Any, keep_zero: bool) -> Tensor:
    """Reshape; unless *keep_zero*, a 0 copies the axis of x."""
    sizes = integers(shape)
    if not keep_zero:
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    if x.numel() == 0 and -1 in sizes:
        rest = math.prod(s for s in sizes if s != -1)
        sizes = [(0 if rest == 0 else x.numel() // rest) if s == -1 else s for s in sizes]
    return x.reshape(sizes)


def _reshape(node: Node) -> Value:
    shape = node.shape_argument(1, "shape")
    if isinstance(shape, list) and 0 not in shape:
        return node.emit(torch.reshape, node[0], tuple(shape))
    return node.emit(reshape, node[0], shape, bool(node.attr("allowzero", 0)))


def flatten(x: Tensor, axis: int) -> Tensor:
    """x as a matrix: the axes before *axis*, and the rest."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Tensor, axes: Any) -> Tensor:
    """x without the axes named, or without every axis of size 1."""
    return x.squeeze() if axes is None else x.squeeze(tuple(integers(axes)))


def unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """x with new axes of size 1 where the result has them."""
    axes = integers(axes)
    total = x.dim() + len(axes)
    for axis in sorted(axis % total for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: Node) -> Value:
    return node.emit(squeeze, node[0], node.shape_argument(1, "axes"))


def _unsqueeze(node: Node) -> Value:
    axes = node.shape_argument(1, "axes")
    if isinstance(axes, list) and len(axes) == 1:
        return node.emit(torch.unsqueeze, node[0], axes[0])
    return node.emit(unsqueeze, node[0], axes)


def transpose(x: Tensor, perm: Sequence[int] | None) -> Tensor:
    """x with its axes in another order; reversed without one."""
    return x.permute(tuple(perm) if perm else tuple(range(x.dim() - 1, -1, -1)))


def _transpose(node: Node) -> Value:
    perm = node.attr("perm")
    return node.emit(torch.permute, node[0], tuple(perm)) if perm else node.emit(transpose, node[0], None)


def expand(x: Tensor, shape: Any) -> Tensor:
    """x broadcast against *shape*, both ways."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))  # type: ignore[no-untyped-call]


def _expand(node: Node) -> Value:
    return node.emit(expand, node[0], node.shape_argument(1))


def tile(x: Tensor, repeats: Any) -> Tensor:
    """x repeated along each axis."""
    return x.repeat(tuple(integers(repeats))) if x.dim() else x.clone()


def _tile(node: Node) -> Value:
    return node.emit(tile, node[0], node.shape_argument(1))


def concat(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """The tensors one after the other along *axis*."""
    return torch.cat(list(tensors), axis)


def _concat(node: Node) -> Value:
    return node.emit(torch.cat, list(node.inputs), node.attr("axis", 1))


def slice_axes(x: Tensor, starts: Any, ends: Any, axes: Any, steps: Any) -> Tensor:
    """x[start:end:step] along each of the axes, with NumPy's rules for negative and out-of-range values."""
    starts, ends = integers(starts), integers(ends)
    axes = range(len(starts)) if axes is None else integers(axes)
    steps = [1] * len(starts) if steps is None else integers(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        first, last, step = slice(start, end if end > -(2**62) else None, step).indices(size)
        if step > 0:
            if (first, last, step) != (0, size, 1):
                index = (slice(None),) * (axis % x.dim()) + (slice(first, max(first, last), step),)
                x = x[index]
        else:
            x = x.index_select(axis, torch.arange(first, last, step, device=x.device))
    return x


def _slice(node: Node) -> Value:
    if node.version < 10:
        axes = node.attr("axes") or list(range(len(node.attr("starts"))))
        return node.emit(slice_axes, node[0], node.attr("starts"), node.attr("ends"), axes, None)
    return node.emit(slice_axes, node[0], *(node.shape_argument(i) for i in range(1, 5)))


def split(x: Tensor, sizes: Any, axis: int) -> tuple[Tensor, ...]:
    """x in parts of these sizes along *axis*."""
    return torch.split(x, integers(sizes), axis)


def split_evenly(x: Tensor, count: int, axis: int) -> tuple[Tensor, ...]:
    """x in *count* parts along *axis*, the last one smaller if it does not come out even."""
    size = -(-x.shape[axis] // count)
    sizes = [max(0, min(size, x.shape[axis] - i * size)) for i in range(count)]
    return torch.split(x, sizes, axis)


def _split(node: Node) -> list[Value]:
    axis = node.attr("axis", 0)
    sizes = node.shape_argument(1, "split")
    if sizes is None:
        count = node.attr("num_outputs", len(node.proto.output))
        return node.unpack(node.emit(split_evenly, node[0], count, axis), len(node.proto.output))
    return node.unpack(node.emit(split, node[0], sizes, axis), len(node.proto.output))


PAD_MODES = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def pad(x: Tensor, pads: Any, value: Tensor | float | None, axes: Any, mode: str) -> Tensor:
    """x with (begin..., end...) elements added per axis; negative ones are cut off."""
    pads = integers(pads)
    count = len(pads) // 2
    axes = range(count) if axes is None else [axis % x.dim() for axis in integers(axes)]
    widths = {axis: (pads[i], pads[i + count]) for i, axis in enumerate(axes)}
    if mode == "constant":
        flat: list[int] = []
        for axis in range(x.dim() - 1, -1, -1):
            flat += widths.get(axis, (0, 0))
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=float(value or 0)).bool()
        fill = 0 if value is None else (value.item() if isinstance(value, Tensor) else value)
        return F.pad(x, flat, value=fill)
    for axis, (before, after) in widths.items():
        x = _pad_axis(x, axis, before, after, mode)
    return x


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Pads one axis by index: any rank, any element type, any width."""
    if before < 0:
        x, before = x.narrow(axis, -before, x.shape[axis] + before), 0
    if after < 0:
        x, after = x.narrow(axis, 0, x.shape[axis] + after), 0
    if before == after == 0:
        return x
    size = x.shape[axis]
    index = torch.arange(-before, size + after, device=x.device)
    if mode == "edge":
        index = index.clamp(0, size - 1)
    elif mode == "wrap":
        index = index % size
    elif size == 1:
        index = torch.zeros_like(index)
    else:
        index = (index % (2 * size - 2)).sub(size - 1).abs().sub(size - 1).abs()
    return x.index_select(axis, index)


def _pad(node: Node) -> Value:
    mode = node.attr("mode", "constant")
    if node.version < 11:
        pads = node.attr("pads", node.attr("paddings"))
        return node.emit(pad, node[0], pads, node.attr("value", 0.0), None, mode)
    known = node.const(2)
    value = known.item() if known is not None and known.numel() else node.get(2)
    return node.emit(pad, node[0], node.shape_argument(1), value, node.shape_argument(3), mode)


def space_to_depth(x: Tensor, block: int, depth_first: bool) -> Tensor:
    """(N, C, H·b, W·b) to (N, b·b·C, H, W); blocks come before channels unless *depth_first*."""
    n, c, *spatial = x.shape
    split_sizes = [size for s in spatial for size in (s // block, block)]
    x = x.reshape(n, c, *split_sizes)
    rank = len(spatial)
    blocks, grid = [3 + 2 * i for i in range(rank)], [2 + 2 * i for i in range(rank)]
    x = x.permute(0, *([1, *blocks] if depth_first else [*blocks, 1]), *grid)
    return x.reshape(n, c * block**rank, *(s // block for s in spatial))


def depth_to_space(x: Tensor, block: int, column_first: bool) -> Tensor:
    """(N, C·b·b, H, W) to (N, C, H·b, W·b); in CRD order the channels come before the blocks."""
    n, c, *spatial = x.shape
    rank = len(spatial)
    kept = c // block**rank
    if column_first:
        x = x.reshape(n, kept, *([block] * rank), *spatial)
        blocks, channel = [2 + i for i in range(rank)], 1
    else:
        x = x.reshape(n, *([block] * rank), kept, *spatial)
        blocks, channel = [1 + i for i in range(rank)], 1 + rank
    order = [0, channel] + [axis for i in range(rank) for axis in (2 + rank + i, blocks[i])]
    return x.permute(order).reshape(n, kept, *(s * block for s in spatial))


def _space_to_depth(node: Node) -> Value:
    mode = node.attr("mode", "DCR")
    return node.emit(space_to_depth, node[0], node.attr("blocksize"), mode == "CRD")


def _depth_to_space(node: Node) -> Value:
    return node.emit(depth_to_space, node[0], node.attr("blocksize"), node.attr("mode", "DCR") == "CRD")


def trilu(x: Tensor, k: Any, upper: bool) -> Tensor:
    """The upper or lower triangle from diagonal *k* on."""
    k = integers(k)[0] if k is not None else 0
    k = max(-(2**31), min(k, 2**31))
    kept = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    kept = kept.triu(k) if upper else kept.tril(k)
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype, device=x.device))


def _trilu(node: Node) -> Value:
    return node.emit(trilu, node[0], node.shape_argument(1), bool(node.attr("upper", 1)))


def center_crop_pad(x: Tensor, shape: Any, axes: Any) -> Tensor:
    """x cropped or zero-padded about its centre to *shape* along *axes*."""
    sizes = integers(shape)
    axes = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    for axis, size in zip(axes, sizes, strict=True):
        have = x.shape[axis]
        if have > size:
            x = x.narrow(axis, (have - size) // 2, size)
        elif have < size:
            before = (size - have) // 2
            x = pad(x, [before, size - have - before], None, [axis], "constant")
    return x


def _center_crop_pad(node: Node) -> Value:
    return node.emit(center_crop_pad, node[0], node.shape_argument(1), node.attr("axes"))


def reverse_sequence(x: Tensor, lengths: Tensor, time_axis: int, batch_axis: int) -> Tensor:
    """The first ``lengths[b]`` steps of each sequence in reverse order, the rest as it is."""
    moved = x.movedim((time_axis, batch_axis), (0, 1))
    steps = torch.arange(moved.shape[0], device=x.device).unsqueeze(1)
    lengths = lengths.to(torch.int64).unsqueeze(0)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    batch = torch.arange(moved.shape[1], device=x.device).unsqueeze(0)
    return moved[source, batch].movedim((0, 1), (time_axis, batch_axis))


def _reverse_sequence(node: Node) -> Value:
    return node.emit(reverse_sequence, node[0], node[1], node.attr("time_axis", 0), node.attr("batch_axis", 1))


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("Shape", _shape)
    add("Size", _size)
    add("Reshape", _reshape)
    add("Flatten", lambda node: node.emit(flatten, node[0], node.attr("axis", 1)))
    add("Squeeze", _squeeze)
    add("Unsqueeze", _unsqueeze)
    add("Transpose", _transpose)
    add("Expand", _expand, 8)
    add("Tile", _tile, 6)
    add("Concat", _concat)
    add("Slice", _slice)
    add("Split", _split)
    add("Pad", _pad, 2)
    add("SpaceToDepth", _space_to_depth)
    add("DepthToSpace", _depth_to_space)
    add("Trilu", _trilu, 14)
    add("CenterCropPad", _center_crop_pad, 18)
    add("ReverseSequence", _reverse_sequence, 10)
    add("Where", direct(torch.where), 9)
