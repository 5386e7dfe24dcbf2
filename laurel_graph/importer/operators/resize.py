"""Resize and Upsample by one matrix (or index) per axis: exact in every mode, and its own gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..builder import Host, Value
from ..node import Node
from ..registry import Registry


class Options(NamedTuple):
    """How Resize maps coordinates and weighs neighbours."""

    mode: str
    transform: str
    nearest: str
    cubic: float
    exclude: bool
    extrapolation: float
    antialias: bool
    policy: str
    axes: tuple[int, ...] | None


def _coordinates(options: Options, size: int, out: int, scale: float, roi: tuple[float, float]) -> Tensor:
    """Returns where each output position lies in the input, float64 ``(out,)``."""
    x = torch.arange(out, dtype=torch.float64)
    length = scale * size
    transform = options.transform
    if transform == "align_corners":
        return x * 0 if length == 1 else x * (size - 1) / (length - 1)
    if transform == "asymmetric":
        return x / scale
    if transform == "tf_crop_and_resize":
        start, end = roi
        if length == 1:
            return x * 0 + 0.5 * (start + end) * (size - 1)
        return x * (end - start) * (size - 1) / (length - 1) + start * (size - 1)
    if transform == "pytorch_half_pixel" and length == 1:
        return x * 0 - 0.5
    offset = size / 2 * (1 - out / length) if transform == "half_pixel_symmetric" else 0.0
    return offset + (x + 0.5) / scale - 0.5


def _nearest(options: Options, x: Tensor, scale: float) -> Tensor:
    kind = options.nearest
    if kind == "simple":
        kind = "ceil" if scale < 1 else "floor"
    if kind == "floor":
        return x.floor()
    if kind == "ceil":
        return x.ceil()
    return (x - 0.5).ceil() if kind == "round_prefer_floor" else (x + 0.5).floor()


def _weights(options: Options, distance: Tensor) -> Tensor:
    """Returns the weight of a neighbour at that distance."""
    d = distance.abs()
    if options.mode == "linear":
        return (1 - d).clamp(min=0)
    a = options.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


@lru_cache(maxsize=256)
def axis_map(options: Options, size: int, out: int, scale: float, roi: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Returns what one axis needs: indices ``(out,)`` (nearest) or a matrix ``(out, size)``, and what lies outside."""
    x = _coordinates(options, size, out, scale, roi)
    outside = (
        (x < 0) | (x > size - 1) if options.transform == "tf_crop_and_resize" else torch.zeros(out, dtype=torch.bool)
    )
    if options.mode == "nearest":
        return _nearest(options, x, scale).clamp(0, size - 1).to(torch.int64), outside
    stretch = min(scale, 1.0) if options.antialias else 1.0
    radius = 1 if options.mode == "linear" else 2
    first = math.floor(-radius / stretch) + 1
    base = x.floor()
    whole = base == x
    base = torch.where(whole, base - 1, base)
    taps = base.unsqueeze(1) + torch.arange(first, 2 - first)
    weights = _weights(options, (taps - x.unsqueeze(1)) * stretch)
    inside = (taps >= 0) & (taps <= size - 1)
    if options.exclude:
        weights = weights * inside
    if options.exclude or options.antialias:
        weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(out, size, dtype=torch.float64)
    return matrix.scatter_add(1, taps.clamp(0, size - 1).to(torch.int64), weights), outside


def resize(x: Tensor, roi: Any, scales: Any, sizes: Any, options: Options) -> Tensor:
    """x resized along its axes by *scales* or to *sizes*."""
    axes = [axis % x.dim() for axis in options.axes] if options.axes is not None else list(range(x.dim()))
    factors, outs = _targets([x.shape[axis] for axis in axes], _numbers(scales), _numbers(sizes), options.policy)
    corners = _numbers(roi) or []
    dtype = x.dtype
    outside_any = None
    work = x if dtype.is_floating_point or options.mode == "nearest" else x.double()
    for i, axis in enumerate(axes):
        size = x.shape[axis]
        crop = options.transform == "tf_crop_and_resize"
        window = (float(corners[i]), float(corners[i + len(axes)])) if crop else (0.0, 1.0)
        if outs[i] == size and factors[i] == 1 and not crop:
            continue
        table, outside = axis_map(options, size, outs[i], factors[i], window)
        table = table.to(x.device)
        if options.mode == "nearest":
            work = work.index_select(axis, table)
        else:
            work = torch.tensordot(work, table.to(work.dtype), ([axis], [1])).movedim(-1, axis)
        if crop:
            shape = [1] * x.dim()
            shape[axis] = -1
            outside = outside.to(x.device).reshape(shape)
            outside_any = outside if outside_any is None else outside_any | outside
    if outside_any is not None:
        work = torch.where(outside_any, torch.full((), options.extrapolation, dtype=work.dtype), work)
    if dtype.is_floating_point or options.mode == "nearest":
        return work
    return work.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)


def _numbers(values: Any) -> list[float] | None:
    if values is None:
        return None
    numbers = values.reshape(-1).tolist() if isinstance(values, Tensor) else list(values)
    return numbers or None


def _targets(sizes: Sequence[int], scales: list[float] | None, wanted: list[float] | None, policy: str
             ) -> tuple[list[float], list[int]]:  # fmt: skip
    if wanted is None:
        factors = list(scales or [1.0] * len(sizes))
        return factors, [math.floor(s * f) for s, f in zip(sizes, factors, strict=True)]
    outs = [int(w) for w in wanted]
    factors = [o / s for o, s in zip(outs, sizes, strict=True)]
    if policy != "stretch":
        factor = min(factors) if policy == "not_larger" else max(factors)
        factors = [factor] * len(sizes)
        outs = [math.floor(factor * s + 0.5) for s in sizes]
    return factors, outs


def _known(node: Node, index: int) -> Any:
    tensor = node.const(index)
    if tensor is not None:
        return tuple(tensor.reshape(-1).tolist())
    return Host(node[index]) if node.has(index) else None


def _resize(node: Node) -> Value:
    mode = node.attr("mode", "nearest")
    node.require(mode in ("nearest", "linear", "bilinear", "cubic"), f"mode {mode!r}, which no operator set knows")
    simple = node.version < 11
    axes = node.attr("axes")
    options = Options(
        {"bilinear": "linear"}.get(mode, mode),
        "asymmetric" if simple else node.attr("coordinate_transformation_mode", "half_pixel"),
        "simple" if simple else node.attr("nearest_mode", "round_prefer_floor"),
        node.attr("cubic_coeff_a", -0.75),
        bool(node.attr("exclude_outside", 0)),
        node.attr("extrapolation_value", 0.0),
        bool(node.attr("antialias", 0)),
        node.attr("keep_aspect_ratio_policy", "stretch"),
        tuple(axes) if axes is not None else None,
    )
    if simple:
        scales = tuple(node.attr("scales")) if "scales" in node.attributes else _known(node, 1)
        return node.emit(resize, node[0], None, scales, None, options)
    return node.emit(resize, node[0], _known(node, 1), _known(node, 2), _known(node, 3), options)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("Resize", _resize, 10)
    registry.add("Upsample", _resize, 7, 9)
