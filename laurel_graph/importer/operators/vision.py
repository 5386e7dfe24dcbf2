"""Sampling, regions and boxes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node, integers
from ..registry import Registry


def _grid_sample(node: Node) -> Value:
    mode = node.attr("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    shape = node[0].shape
    node.require(mode != "bicubic" or (shape is not None and len(shape) == 4), "cubic sampling of a volume")
    align = bool(node.attr("align_corners", 0))
    return node.emit(F.grid_sample, node[0], node[1], mode, node.attr("padding_mode", "zeros"), align)


def _corners(y: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the lower and upper neighbour of each coordinate, the upper one's weight, and whether it counts."""
    counts = (y >= -1) & (y <= size)
    y = y.clamp(min=0)
    low = y.floor().to(torch.int64)
    top = low >= size - 1
    low = low.clamp(max=size - 1)
    high = torch.where(top, low, low + 1)
    return low, high, torch.where(top, 0.0, y - low), counts


def roi_align(x: Tensor, rois: Tensor, batch: Tensor, size: tuple[int, int], ratio: int, scale: float, half: bool,
              largest: bool) -> Tensor:  # fmt: skip
    """The mean (or largest term) of bilinear samples in the cells of each region: ``(regions, C, *size)``."""
    out = []
    for roi, index in zip(rois, batch.to(torch.int64), strict=True):
        x1, y1, x2, y2 = (roi * scale - (0.5 if half else 0.0)).unbind()
        width, height = x2 - x1, y2 - y1
        if not half:
            width, height = width.clamp(min=1), height.clamp(min=1)
        cell_h, cell_w = height / size[0], width / size[1]
        rows = ratio if ratio > 0 else math.ceil(float(cell_h))
        columns = ratio if ratio > 0 else math.ceil(float(cell_w))
        cy = torch.arange(size[0] * rows, device=x.device)
        cx = torch.arange(size[1] * columns, device=x.device)
        ys = y1 + (cy // rows) * cell_h + ((cy % rows) + 0.5) * cell_h / rows
        xs = x1 + (cx // columns) * cell_w + ((cx % columns) + 0.5) * cell_w / columns
        plane = x[index]
        ly, hy, wy, fits_y = _corners(ys, plane.shape[1])
        lx, hx, wx, fits_x = _corners(xs, plane.shape[2])
        terms = []
        for iy, share_y in ((ly, 1 - wy), (hy, wy)):
            for ix, share_x in ((lx, 1 - wx), (hx, wx)):
                weight = share_y.unsqueeze(1) * share_x * (fits_y.unsqueeze(1) & fits_x)
                terms.append(plane[:, iy][:, :, ix] * weight)
        shape = (plane.shape[0], size[0], rows, size[1], columns)
        if largest:
            out.append(torch.stack(terms).amax(0).reshape(shape).amax((2, 4)))
        else:
            out.append(torch.stack(terms).sum(0).reshape(shape).mean((2, 4)))
    return torch.stack(out) if out else x.new_zeros(0, x.shape[1], *size)


def _roi_align(node: Node) -> Value:
    half = node.version >= 16 and node.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    size = (node.attr("output_height", 1), node.attr("output_width", 1))
    options = [size, node.attr("sampling_ratio", 0), node.attr("spatial_scale", 1.0), half]
    return node.emit(roi_align, node[0], node[1], node[2], *options, node.attr("mode", "avg") == "max")


def _overlap(a: Tensor, boxes: Tensor, centred: bool) -> Tensor:
    def edges(box: Tensor) -> tuple[Tensor, ...]:
        p, q, r, s = box.unbind(-1)
        if centred:
            return p - r / 2, q - s / 2, p + r / 2, q + s / 2
        return torch.minimum(p, r), torch.minimum(q, s), torch.maximum(p, r), torch.maximum(q, s)

    a0, a1, a2, a3 = edges(a)
    b0, b1, b2, b3 = edges(boxes)
    shared = (torch.minimum(a2, b2) - torch.maximum(a0, b0)).clamp(min=0)
    shared = shared * (torch.minimum(a3, b3) - torch.maximum(a1, b1)).clamp(min=0)
    union = (a2 - a0) * (a3 - a1) + (b2 - b0) * (b3 - b1) - shared
    return torch.where(union > 0, shared / union, torch.zeros_like(union))


def non_max_suppression(
    boxes: Tensor, scores: Tensor, limit: Any, overlap: Tensor | None, least: Tensor | None, centred: bool
) -> Tensor:
    """The (batch, class, box) triples of the best boxes of each class that do not overlap better ones."""
    count = 0 if limit is None else integers(limit)[0]
    threshold = 0.0 if overlap is None else float(overlap)
    chosen: list[list[int]] = []
    for b, c in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
        row = scores[b, c].detach()
        order = row.argsort(descending=True, stable=True)
        if least is not None:
            order = order[row[order] > float(least)]
        kept = 0
        while len(order) and kept < count:
            best = order[0]
            chosen.append([b, c, int(best)])
            kept += 1
            order = order[1:]
            order = order[_overlap(boxes[b, best], boxes[b, order], centred) <= threshold]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _non_max_suppression(node: Node) -> Value:
    centred = bool(node.attr("center_point_box", 0))
    return node.emit(non_max_suppression, node[0], node[1], node.shape_argument(2), node.get(3), node.get(4), centred)


def col2im(x: Tensor, image: Any, block: Any, dilations: Any, pads: Any, strides: Any) -> Tensor:
    """Sums sliding blocks ``(N, C·∏block, L)`` back into an image ``(N, C, *image)``."""
    image, block = integers(image), integers(block)
    rank = len(image)
    dilations, strides, pads = dilations or [1] * rank, strides or [1] * rank, pads or [0] * 2 * rank
    padded = [s + pads[i] + pads[i + rank] for i, s in enumerate(image)]
    counts = [(p - d * (k - 1) - 1) // s + 1 for p, d, k, s in zip(padded, dilations, block, strides, strict=True)]
    flat = torch.zeros((), dtype=torch.int64)
    for i in range(rank):
        inner = torch.arange(block[i]) * dilations[i]
        outer = torch.arange(counts[i]) * strides[i]
        place = inner.unsqueeze(1) + outer
        shape = [1] * 2 * rank
        shape[i], shape[rank + i] = block[i], counts[i]
        flat = flat * padded[i] + place.reshape(shape)
    n, channels = x.shape[0], x.shape[1] // math.prod(block)
    values = x.reshape(n, channels, -1)
    out = x.new_zeros(n, channels, math.prod(padded))
    out = out.index_add(2, flat.reshape(-1).to(x.device), values).reshape(n, channels, *padded)
    for i, size in enumerate(image):
        out = out.narrow(2 + i, pads[i], size)
    return out


def _col2im(node: Node) -> Value:
    options = [node.attr("dilations"), node.attr("pads"), node.attr("strides")]
    return node.emit(col2im, node[0], node.shape_argument(1), node.shape_argument(2), *options)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("GridSample", _grid_sample, 16)
    registry.add("RoiAlign", _roi_align, 10)
    registry.add("NonMaxSuppression", _non_max_suppression, 10)
    registry.add("Col2Im", _col2im, 18)
