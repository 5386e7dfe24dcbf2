"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node
from ..registry import Registry

_CONV: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSE: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def flat_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Returns pads in the order of ``torch.nn.functional.pad``: last axis first."""
    return [pad for pair in zip(reversed(begin), reversed(end), strict=True) for pad in pair]


def same_pads(size: int, window: int, stride: int, lower: bool) -> tuple[int, int]:
    """Returns the pads that give ceil(size / stride) outputs; the odd one goes first if *lower*."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def resolve_pads(
    auto: str, pads: Sequence[int], spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Returns the pads before and after each spatial axis."""
    rank = len(spatial)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        both = [same_pads(s, w, t, auto == "SAME_LOWER") for s, w, t in zip(spatial, windows, strides, strict=True)]
        return [b for b, _ in both], [e for _, e in both]
    if auto == "VALID" or not pads:
        return [0] * rank, [0] * rank
    return list(pads[:rank]), list(pads[rank:])


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, auto: str, pads: Sequence[int], strides: Sequence[int] | None,
    dilations: Sequence[int] | None, groups: int,
) -> Tensor:  # fmt: skip
    """Convolution with pads that torch's own does not have."""
    rank = weight.dim() - 2
    stride, dilation = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    begin, end = resolve_pads(auto, pads, x.shape[2:], weight.shape[2:], stride, dilation)
    if begin != end:
        x = F.pad(x, flat_pads(begin, end))
        begin = [0] * rank
    return torch.as_tensor(_CONV[rank - 1](x, weight, bias, stride, tuple(begin), dilation, groups))


def _conv(node: Node) -> Value:
    weight, auto, groups = node[1], node.attr("auto_pad", "NOTSET"), node.attr("group", 1)
    pads, strides, dilations = node.attr("pads", []), node.attr("strides"), node.attr("dilations")
    shape = weight.shape
    if shape is not None:
        node.require(3 <= len(shape) <= 5, f"a convolution over {len(shape) - 2} spatial axes")
        rank = len(shape) - 2
        if auto in ("NOTSET", "VALID") and (auto == "VALID" or not pads or pads[:rank] == pads[rank:]):
            begin = (0,) * rank if auto == "VALID" or not pads else tuple(pads[:rank])
            return node.emit(_CONV[rank - 1], node[0], weight, node.get(2), tuple(strides or (1,) * rank), begin,
                             tuple(dilations or (1,) * rank), groups)  # fmt: skip
    return node.emit(conv, node[0], weight, node.get(2), auto, pads, strides, dilations, groups)


def conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, auto: str, pads: Sequence[int], strides: Sequence[int] | None,
    dilations: Sequence[int] | None, groups: int, extra: Sequence[int] | None, shape: Sequence[int] | None,
) -> Tensor:  # fmt: skip
    """Transposed convolution; the whole is computed and its borders are cut off."""
    rank = weight.dim() - 2
    stride, dilation = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    extra = list(extra or (0,) * rank)
    full = [
        t * (s - 1) + e + (k - 1) * d + 1
        for t, s, e, k, d in zip(stride, x.shape[2:], extra, weight.shape[2:], dilation, strict=True)
    ]
    if shape or auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = list(shape)[-rank:] if shape else [s * t for s, t in zip(x.shape[2:], stride, strict=True)]
        total = [f - w for f, w in zip(full, wanted, strict=True)]
        small = [t // 2 for t in total]
        large = [t - t // 2 for t in total]
        begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
        if auto == "NOTSET":
            begin, end = (large, small)
    else:
        begin, end = resolve_pads(auto, pads, x.shape[2:], weight.shape[2:], stride, dilation)
    y = _TRANSPOSE[rank - 1](x, weight, None, stride, 0, 0, groups, dilation)
    y = F.pad(y, flat_pads([-b for b in begin], [e - cut for e, cut in zip(extra, end, strict=True)]))
    return y if bias is None else y + bias.reshape(-1, *(1,) * rank)


def _conv_transpose(node: Node) -> Value:
    options = [node.attr("auto_pad", "NOTSET"), node.attr("pads", []), node.attr("strides"), node.attr("dilations")]
    options += [node.attr("group", 1), node.attr("output_padding"), node.attr("output_shape")]
    return node.emit(conv_transpose, node[0], node[1], node.get(2), *options)


def deform_conv(
    x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, mask: Tensor | None, pads: Sequence[int],
    strides: Sequence[int], dilations: Sequence[int], groups: int, offset_groups: int,
) -> Tensor:  # fmt: skip
    """Deformable 2-D convolution (Zhu et al. 2018): bilinear samples at shifted places, then a product.

    ``x (N, C, H, W)``, ``weight (O, C/groups, kh, kw)``, ``offset (N, 2·og·kh·kw, oh, ow)``,
    ``mask (N, og·kh·kw, oh, ow)``.
    """
    n, c, height, width = x.shape
    out, _, kh, kw = weight.shape
    oh, ow = offset.shape[2:]
    taps = kh * kw
    offset = offset.reshape(n, offset_groups, taps, 2, oh, ow)
    ky, kx = torch.meshgrid(torch.arange(kh), torch.arange(kw), indexing="ij")
    base_y = ky.reshape(taps, 1, 1) * dilations[0] + (torch.arange(oh) * strides[0] - pads[0]).reshape(1, oh, 1)
    base_x = kx.reshape(taps, 1, 1) * dilations[1] + (torch.arange(ow) * strides[1] - pads[1]).reshape(1, 1, ow)
    y = base_y.to(x) + offset[:, :, :, 0]
    z = base_x.to(x) + offset[:, :, :, 1]
    planes = x.reshape(n, offset_groups, c // offset_groups, height * width)
    total = torch.zeros(n, offset_groups, c // offset_groups, taps, oh, ow, dtype=x.dtype, device=x.device)
    y0, z0 = y.floor(), z.floor()
    for dy in (0, 1):
        for dz in (0, 1):
            cy, cz = y0 + dy, z0 + dz
            share = (1 - (y - cy).abs()) * (1 - (z - cz).abs())
            inside = (cy >= 0) & (cy < height) & (cz >= 0) & (cz < width)
            place = (cy.clamp(0, height - 1) * width + cz.clamp(0, width - 1)).to(torch.int64)
            index = place.reshape(n, offset_groups, 1, -1).expand(-1, -1, c // offset_groups, -1)
            picked = torch.gather(planes, 3, index).reshape(total.shape)
            total = total + picked * (share * inside).unsqueeze(2)
    if mask is not None:
        total = total * mask.reshape(n, offset_groups, 1, taps, oh, ow)
    columns = total.reshape(n, groups, c // groups * taps, oh * ow)
    kernels = weight.reshape(groups, out // groups, -1)
    result = torch.einsum("gok,ngkp->ngop", kernels, columns).reshape(n, out, oh, ow)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def _deform_conv(node: Node) -> Value:
    shape = node[1].shape
    node.require(shape is not None and len(shape) == 4, "a deformable convolution that is not over two spatial axes")
    inputs = [node[0], node[1], node[2], node.get(3), node.get(4)]
    return node.emit(
        deform_conv, *inputs, node.attr("pads", [0] * 4), node.attr("strides", [1, 1]), node.attr("dilations", [1, 1]),
        node.attr("group", 1), node.attr("offset_group", 1),
    )  # fmt: skip


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("Conv", _conv)
    registry.add("ConvTranspose", _conv_transpose)
    registry.add("DeformConv", _deform_conv, 19)
