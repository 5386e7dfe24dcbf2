"""Pooling over spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node, integers
from ..registry import Registry
from .convolution import flat_pads, resolve_pads

_MAX: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_CONV: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)


class Window(NamedTuple):
    """The geometry of a pooling operator."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    auto: str
    pads: tuple[int, ...]
    ceil: bool

    def extents(self, spatial: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Returns the pads before each axis, those after it, and what ceil mode adds after those."""
        begin, end = resolve_pads(self.auto, self.pads, spatial, self.kernel, self.strides, self.dilations)
        extra = []
        for i, size in enumerate(spatial):
            window = (self.kernel[i] - 1) * self.dilations[i] + 1
            padded = size + begin[i] + end[i]
            steps = (padded - window) / self.strides[i]
            count = (math.ceil(steps) if self.ceil else math.floor(steps)) + 1
            if self.ceil and (count - 1) * self.strides[i] >= size + begin[i]:
                count -= 1
            extra.append(max(0, (count - 1) * self.strides[i] + window - padded))
        return begin, end, extra


def _window(node: Node) -> Window:
    kernel = tuple(node.attr("kernel_shape"))
    rank = len(kernel)
    node.require(rank <= 3, f"pooling over {rank} spatial axes")
    ones = [1] * rank
    return Window(
        kernel, tuple(node.attr("strides") or ones), tuple(node.attr("dilations") or ones),
        node.attr("auto_pad", "NOTSET"), tuple(node.attr("pads") or [0] * 2 * rank), bool(node.attr("ceil_mode", 0)),
    )  # fmt: skip


def _simple(window: Window) -> tuple[int, ...] | None:
    """Returns symmetric pads that torch's own pooling takes, or ``None``."""
    rank = len(window.kernel)
    if window.auto == "VALID":
        return (0,) * rank if not window.ceil else None
    begin, end = window.pads[:rank], window.pads[rank:]
    fits = begin == end and all(2 * p <= k for p, k in zip(begin, window.kernel, strict=True))
    return tuple(begin) if window.auto == "NOTSET" and fits and not window.ceil else None


def max_pool(x: Tensor, window: Window) -> Tensor:
    """The maximum of each window; pads do not count."""
    return max_pool_indices(x, window, 0, False)[0]


def max_pool_indices(x: Tensor, window: Window, storage_order: int, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The maximum of each window and, if *wanted*, its place in the flattened input."""
    rank, dtype = len(window.kernel), x.dtype
    spatial = x.shape[2:]
    begin, end, extra = window.extents(spatial)
    if not dtype.is_floating_point:
        x = x.double()
    padded = F.pad(x, flat_pads(begin, [e + c for e, c in zip(end, extra, strict=True)]), value=-torch.inf)
    y, places = _MAX[rank - 1](padded, window.kernel, window.strides, 0, window.dilations, return_indices=True)
    if not wanted:
        return y.to(dtype), None
    coordinates = []
    for size in reversed(padded.shape[2:]):
        coordinates.append(places % size)
        places = places // size
    axes = [c - b for c, b in zip(reversed(coordinates), begin, strict=True)]
    flat = torch.zeros_like(axes[0])
    strides = [math.prod(spatial[i + 1 :]) for i in range(rank)]
    if storage_order == 1:
        strides = [math.prod(spatial[:i]) for i in range(rank)]
    for axis, stride in zip(axes, strides, strict=True):
        flat = flat + axis * stride
    plane = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *(1,) * rank)
    return y.to(dtype), flat + plane * math.prod(spatial)


def _max_pool(node: Node) -> Value | list[Value]:
    window = _window(node)
    if node.output_count > 1:
        return node.unpack(node.emit(max_pool_indices, node[0], window, node.attr("storage_order", 0), True), 2)
    pads = _simple(window)
    if pads is not None and node[0].elem_type in (1, 10, 11, 16):
        fn = _MAX[len(pads) - 1]
        return node.emit(fn, node[0], window.kernel, window.strides, pads, window.dilations)
    return node.emit(max_pool, node[0], window)


def window_sum(x: Tensor, window: Window) -> Tensor:
    """The sum over each window of an input without pads, every channel for itself."""
    rank = len(window.kernel)
    if all(d == 1 for d in window.dilations):
        return torch.as_tensor(_AVERAGE[rank - 1](x, window.kernel, window.strides)) * math.prod(window.kernel)
    ones = torch.ones(1, 1, *window.kernel, dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    y = _CONV[rank - 1](flat, ones, None, window.strides, 0, window.dilations)
    return torch.as_tensor(y).reshape(*x.shape[:2], *y.shape[2:])


def average_pool(x: Tensor, window: Window, include_pads: bool) -> Tensor:
    """The mean of each window over the input's elements, and over its pads if *include_pads*."""
    begin, end, extra = window.extents(x.shape[2:])
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    counted = F.pad(counted, flat_pads(begin, end), value=float(include_pads))
    counted = F.pad(counted, flat_pads([0] * len(extra), extra))
    padded = F.pad(x, flat_pads(begin, [e + c for e, c in zip(end, extra, strict=True)]))
    return window_sum(padded, window) / window_sum(counted, window)


def _average_pool(node: Node) -> Value:
    window, include = _window(node), bool(node.attr("count_include_pad", 0))
    pads = _simple(window)
    refused = pads is not None and len(pads) == 3 and any(pads)  # torch wants the input alone as large as the window
    if pads is not None and set(window.dilations) == {1} and not refused:
        fn = _AVERAGE[len(pads) - 1]
        return node.emit(fn, node[0], window.kernel, window.strides, pads, False, include)
    return node.emit(average_pool, node[0], window, include)


def lp_pool(x: Tensor, window: Window, p: int) -> Tensor:
    """The p-norm of each window."""
    begin, end, extra = window.extents(x.shape[2:])
    padded = F.pad(x.abs() ** p, flat_pads(begin, [e + c for e, c in zip(end, extra, strict=True)]))
    return window_sum(padded, window) ** (1 / p)


def global_pool(x: Tensor, kind: str, p: int) -> Tensor:
    """The mean, maximum or p-norm of each channel."""
    axes = tuple(range(2, x.dim()))
    if kind == "GlobalAveragePool":
        return x.mean(axes, keepdim=True)
    if kind == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    return (x.abs() ** p).sum(axes, keepdim=True) ** (1 / p)


def max_unpool(x: Tensor, indices: Tensor, window: Window, shape: Any) -> Tensor:
    """Puts each value where max-pooling took it from, zeros elsewhere."""
    sizes = [
        (s - 1) * t - window.pads[i] - window.pads[i + len(window.kernel)] + k
        for i, (s, t, k) in enumerate(zip(x.shape[2:], window.strides, window.kernel, strict=True))
    ]
    inner = [*x.shape[:2], *sizes]
    wanted = inner if shape is None else integers(shape)
    places = indices.reshape(-1)
    if wanted != inner:
        rest, coordinates = places, []
        for size in reversed(inner):
            coordinates.append(rest % size)
            rest = rest // size
        places = torch.zeros_like(places)
        for coordinate, size in zip(reversed(coordinates), wanted, strict=True):
            places = places * size + coordinate
    flat = torch.zeros(math.prod(wanted), dtype=x.dtype, device=x.device)
    return flat.scatter(0, places, x.reshape(-1)).reshape(wanted)


def _max_unpool(node: Node) -> Value:
    return node.emit(max_unpool, node[0], node[1], _window(node), node.shape_argument(2))


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("MaxPool", _max_pool)
    add("AveragePool", _average_pool, 7)
    add("LpPool", lambda node: node.emit(lp_pool, node[0], _window(node), node.attr("p", 2)), 2)
    add(
        "GlobalAveragePool GlobalMaxPool GlobalLpPool",
        lambda node: node.emit(global_pool, node[0], node.op, node.attr("p", 2)),
        1,
    )
    add("MaxUnpool", _max_unpool, 9)
