"""Scaled dot-product attention and rotary embeddings of the standard operator set."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node
from ..registry import Registry


class Options(NamedTuple):
    """Attributes of Attention."""

    q_heads: int | None
    kv_heads: int | None
    scale: float | None
    causal: bool
    softcap: float
    scores: int | None
    left: int
    right: int
    ordered: bool


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, N·H) to (B, N, S, H)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, N, S, H) to (B, S, N·H)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add: -inf where a boolean one forbids."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.to(dtype)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, past_k: Tensor | None, past_v: Tensor | None,
    lengths: Tensor | None, options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """softmax(scale·QKᵀ + mask)V with grouped heads, causal and sliding masks; a row that sees nothing gives 0.

    Returns the result, the keys and values with the past in front, and the scores if they are asked for.
    """
    flat = q.dim() == 3
    if flat:
        q, k, v = (
            split_heads(q, options.q_heads or 1),
            split_heads(k, options.kv_heads or 1),
            split_heads(v, options.kv_heads or 1),
        )
    offset: Tensor | int = 0
    if past_k is not None and past_v is not None:
        offset = past_k.shape[2]
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    elif lengths is not None:
        offset = (lengths.reshape(-1, 1, 1, 1) - q.shape[2]).to(q.device)
    present_k, present_v = k, v
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if options.scale is None else options.scale
    bias = _bias(q, k, mask, lengths, offset, options)
    if options.scores is None and not options.softcap:
        y = _fused(q, k, v, bias, scale)
        return merge_heads(y) if flat else y, present_k, present_v, None
    scores = q @ k.transpose(-1, -2) * scale
    capped = options.softcap * torch.tanh(scores / options.softcap) if options.softcap else scores
    biased = capped if bias is None else capped + bias
    weights = torch.softmax(biased, -1)
    if bias is not None:
        weights = torch.where(bias.amax(-1, keepdim=True) == -torch.inf, 0.0, weights)
    y = weights @ v
    after, before = (biased, capped) if options.ordered else (capped, biased)
    shown = {None: None, 0: scores, 1: before, 2: after, 3: weights}[options.scores]
    return merge_heads(y) if flat else y, present_k, present_v, shown


def _bias(q: Tensor, k: Tensor, mask: Tensor | None, lengths: Tensor | None, offset: Tensor | int,
          options: Options) -> Tensor | None:  # fmt: skip
    bias = None
    if mask is not None:
        bias = additive(mask, q.dtype)
        missing = k.shape[2] - bias.shape[-1]
        bias = F.pad(bias, (0, missing), value=-torch.inf) if missing > 0 else bias
    row = torch.arange(q.shape[2], device=q.device).reshape(-1, 1)
    column = torch.arange(k.shape[2], device=q.device)
    allowed = None
    if options.causal:
        allowed = column <= row + offset
    if options.left >= 0:
        inside = row + offset - column <= options.left
        allowed = inside if allowed is None else allowed & inside
    if options.right >= 0:
        inside = column - row - offset <= options.right
        allowed = inside if allowed is None else allowed & inside
    if lengths is not None:
        real = column < lengths.reshape(-1, 1, 1, 1).to(q.device)
        allowed = real if allowed is None else allowed & real
    if allowed is not None:
        hidden = additive(allowed, q.dtype)
        bias = hidden if bias is None else bias + hidden
    return bias


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    blind = bias.amax(-1, keepdim=True) == -torch.inf
    if bool(blind.any()):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(blind, 0.0), scale=scale)
        return torch.where(blind, 0.0, y)
    while bias.dim() < 4:
        bias = bias.unsqueeze(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def _attention(node: Node) -> list[Value]:
    node.require(node.attr("softmax_precision") in (None, *_PRECISIONS), "this softmax precision")
    mode = node.attr("qk_matmul_output_mode", 0)
    options = Options(
        node.attr("q_num_heads"), node.attr("kv_num_heads"), node.attr("scale"), bool(node.attr("is_causal", 0)),
        node.attr("softcap", 0.0), mode if node.output_count > 3 else None, node.attr("left_window_size", -1),
        node.attr("right_window_size", -1), True,
    )  # fmt: skip
    inputs = [node.get(i) for i in range(3, 7)]
    return node.unpack(node.emit(attention, node[0], node[1], node[2], *inputs, options), max(node.output_count, 1))


_PRECISIONS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotates pairs of features; ``x (B, S, N, R)``, ``cos`` and ``sin`` ``(B or 1, S, 1, R/2)``."""
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([cos * a - sin * b, sin * a + cos * b], -1).reshape(x.shape)
    a, b = x.chunk(2, -1)
    return torch.cat([cos * a - sin * b, sin * a + cos * b], -1)


def rotary(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, heads: int, size: int, interleaved: bool
) -> Tensor:
    """Rotary position embedding of ``(B, S, N·H)`` or ``(B, N, S, H)`` over the first *size* features of each head."""
    shape, flat = x.shape, x.dim() == 3
    x = x.reshape(shape[0], shape[1], heads, -1) if flat else x.transpose(1, 2)
    if positions is not None:
        cos, sin = cos[positions.to(torch.int64)], sin[positions.to(torch.int64)]
    elif cos.dim() == 2:
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    size = size or x.shape[-1]
    turned = rotate(x[..., :size], cos.unsqueeze(2), sin.unsqueeze(2), interleaved)
    y = turned if size == x.shape[-1] else torch.cat([turned, x[..., size:]], -1)
    return y.reshape(shape) if flat else y.transpose(1, 2)


def _rotary(node: Node) -> Value:
    options = [node.attr("num_heads", 0), node.attr("rotary_embedding_dim", 0), bool(node.attr("interleaved", 0))]
    return node.emit(rotary, node[0], node[1], node[2], node.get(3), *options)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    registry.add("Attention", _attention, 23)
    registry.add("RotaryEmbedding", _rotary, 23)
