"""The attention operators of ``com.microsoft``."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..builder import Value
from ..node import Node, integers
from ..registry import Registry
from .attention import merge_heads, rotary, split_heads
from .contrib import DOMAIN


class Options(NamedTuple):
    """Attributes that the attention operators share."""

    heads: int
    scale: float | None
    causal: bool
    filter: float


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """softmax(scale·QKᵀ + bias)V of ``(B, N, S, H)``."""
    scale = options.scale or 1 / math.sqrt(q.shape[-1])
    if options.causal:
        past = k.shape[2] - q.shape[2]
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(past)
        hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, torch.finfo(q.dtype).min)
        bias = hidden if bias is None else (bias + hidden).clamp(min=torch.finfo(q.dtype).min)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def padding_bias(mask: Tensor | None, batch: int, keys: int, options: Options, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores for a mask of ONNX Runtime's forms.

    Lengths ``(B,)``; ends and starts ``(2B,)``; 1 for real keys ``(B, T)``, ``(B, S, T)``, ``(B, 1, S, T)``.
    """
    if mask is None:
        return None
    columns = torch.arange(keys, device=mask.device)
    if mask.dim() == 1 and mask.shape[0] in (batch, 2 * batch):
        seen = columns < mask[:batch].unsqueeze(1)
        if mask.shape[0] == 2 * batch and batch != 2 * batch:
            seen = seen & (columns >= mask[batch:].unsqueeze(1))
        seen = seen.reshape(batch, 1, 1, keys)
    elif mask.dim() == 2:
        seen = (mask > 0).reshape(mask.shape[0], 1, 1, -1)
    elif mask.dim() == 3:
        seen = (mask > 0).unsqueeze(1)
    elif mask.dim() == 4:
        seen = mask > 0
    else:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} for {batch} sequences of {keys} keys")
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, options.filter)


def packed_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, past: Tensor | None, extra: Tensor | None,
    sizes: tuple[int, ...] | None, options: Options,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Self-attention of ``x (B, S, I)`` with one weight ``(I, Q + K + V)``; returns it and the keys and values."""
    projected = x @ weight
    projected = projected if bias is None else projected + bias
    parts = torch.split(projected, list(sizes), -1) if sizes else projected.chunk(3, -1)
    q, k, v = (split_heads(part, options.heads) for part in parts)
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    added = padding_bias(mask, x.shape[0], k.shape[2], options, x.dtype)
    added = extra if added is None else added if extra is None else added + extra
    present = torch.stack([k, v]) if k.shape == v.shape else k
    return merge_heads(_attend(q, k, v, added, options)), present


def _options(node: Node, default: float = -10000.0) -> Options:
    scale, causal = node.attr("scale", 0.0), bool(node.attr("unidirectional", 0))
    return Options(node.attr("num_heads"), scale or None, causal, node.attr("mask_filter_value", default))


def _attention(node: Node) -> list[Value]:
    node.require(not node.attr("do_rotary", 0), "rotary embeddings inside Attention")
    node.require(not node.attr("past_present_share_buffer", 0) and not node.has(6), "a shared cache")
    sizes = node.attr("qkv_hidden_sizes")
    inputs = [node.get(i) for i in range(6)]
    options = _options(node)
    return node.unpack(node.emit(packed_attention, *inputs, tuple(sizes) if sizes else None, options))


def multi_head(
    q: Tensor, k: Tensor | None, v: Tensor | None, bias: Tensor | None, mask: Tensor | None, extra: Tensor | None,
    past_k: Tensor | None, past_v: Tensor | None, options: Options,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Attention of projected queries, keys and values, ``(B, S, N·H)`` or already split or packed."""
    if q.dim() == 5:
        q, k, v = q.permute(2, 0, 3, 1, 4).unbind()
    elif k is not None and k.dim() == 5:
        q = split_heads(q, options.heads)
        k, v = k.permute(2, 0, 3, 1, 4).unbind()
    elif k is not None and v is not None:
        if bias is not None:
            bq, bk, bv = torch.split(bias, [q.shape[-1], q.shape[-1], bias.shape[0] - 2 * q.shape[-1]])
            q = q + bq
            if k.dim() == 3:
                k, v = k + bk, v + bv
        q = split_heads(q, options.heads)
        k, v = (split_heads(t, options.heads) if t.dim() == 3 else t for t in (k, v))
    if k is None or v is None:
        raise ValueError("keys and values are needed")
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    added = padding_bias(mask, q.shape[0], k.shape[2], options, q.dtype)
    added = extra if added is None else added if extra is None else added + extra
    return merge_heads(_attend(q, k, v, added, options)), k, v


def _multi_head(node: Node) -> list[Value]:
    node.require(len(node) <= 8, "a shared cache")
    packed = not node.has(1) or not node.has(2)
    node.require(not (packed and node.has(3)), "packed queries, keys and values with a bias")
    inputs = [node.get(i) for i in range(8)]
    return node.unpack(node.emit(multi_head, *inputs, _options(node)))


class Grouped(NamedTuple):
    """Attributes of GroupQueryAttention."""

    heads: int
    kv_heads: int
    scale: float | None
    softcap: float
    window: int
    rotary: bool
    interleaved: bool
    smooth: bool
    rolling: bool


def grouped_query(
    q: Tensor, k: Tensor | None, v: Tensor | None, past_k: Tensor | None, past_v: Tensor | None, lengths: Tensor,
    total: Tensor | list[int], cos: Tensor | None, sin: Tensor | None, positions: Tensor | None, bias: Tensor | None,
    sink: Tensor | None, options: Grouped,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Causal attention whose key heads serve several query heads, behind a cache.

    Args:
        q: ``(B, S, N·H)``, or queries, keys and values packed.
        k: ``(B, S, K·H)``.
        v: as *k*.
        past_k: ``(B, K, P, H)`` or nothing; of each row the first ``lengths + 1 - S`` places count, in a prompt none.
            A rolling cache holds the last P places.
        past_v: as *past_k*.
        lengths: ``(B,)``, the last real place of each row.
        total: places of the longest row; it is S in a prompt.
        cos: the rotary table ``(places, H/2)``.
        sin: as *cos*.
        positions: ``(B, S)``, to read the table at, if they are not those behind the cache.
        bias: ``(B or 1, N or 1, S, T)``, added to the scores.
        sink: ``(N,)``, one more score of each row, which takes weight and gives nothing.
        options: the attributes.
    """
    if k is None or v is None:
        size = q.shape[-1] // (options.heads + 2 * options.kv_heads)
        q, k, v = torch.split(q, [options.heads * size, options.kv_heads * size, options.kv_heads * size], -1)
    rows, steps, end = q.shape[0], q.shape[1], integers(total)[0]
    passed = lengths.reshape(-1, 1).to(torch.int64) + 1 - steps
    if end == steps:
        passed = torch.zeros_like(passed)
    places = passed + torch.arange(steps, device=q.device)
    if options.rotary and cos is not None and sin is not None:
        at = places if positions is None else positions
        q = rotary(q, cos, sin, at, options.heads, 2 * cos.shape[-1], options.interleaved)
        k = rotary(k, cos, sin, at, options.kv_heads, 2 * cos.shape[-1], options.interleaved)
    q, k, v = split_heads(q, options.heads), split_heads(k, options.kv_heads), split_heads(v, options.kv_heads)
    room = 0 if past_k is None else past_k.shape[2]
    if options.rolling:
        places = places - (passed - room).clamp(min=0)
        end = min(end, room + steps)
    if past_k is not None and past_v is not None and (room or end != steps):
        k, v = _behind(past_k, k, places, end), _behind(past_v, v, places, end)
    present = (k[:, :, -room:], v[:, :, -room:]) if options.rolling and room else (k, v)
    k, v = (t.repeat_interleave(options.heads // options.kv_heads, 1) for t in (k, v))
    column = torch.arange(k.shape[2], device=q.device)
    seen = column <= places.unsqueeze(-1)
    if options.window > 0:
        seen = seen & (column > places.unsqueeze(-1) - options.window)
    seen = seen.reshape(rows, 1, steps, -1)
    scale = options.scale or 1 / math.sqrt(q.shape[-1])
    if options.softcap or sink is not None or options.smooth:
        y = _scored(q, k, v, seen, bias, sink, scale, options)
    else:
        hidden = seen if bias is None else bias[..., : k.shape[2]].masked_fill(~seen, -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden, scale=scale)
    return merge_heads(y), *present


def _behind(past: Tensor, new: Tensor, places: Tensor, end: int) -> Tensor:
    """Returns a cache with *new* ``(B, K, S, H)`` put at *places* ``(B, S)``, and nothing behind it."""
    room = max(end - past.shape[2], 0)
    held = F.pad(past, (0, 0, 0, room))
    unused = torch.arange(held.shape[2], device=held.device) >= places[:, :1]
    held = held.masked_fill(unused.reshape(len(new), 1, -1, 1), 0)
    return held.scatter(2, places.reshape(len(new), 1, -1, 1).expand(new.shape), new)


def _scored(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | None, sink: Tensor | None, scale: float,
            options: Grouped) -> Tensor:  # fmt: skip
    """Attention whose scores are capped, or whose weights a sink shares."""
    scores = q @ k.transpose(-1, -2) * scale
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if bias is not None:
        scores = scores + bias[..., : k.shape[2]]
    scores = scores.masked_fill(~seen, -torch.inf)
    if sink is None and not options.smooth:
        return torch.softmax(scores, -1) @ v
    more = torch.zeros(options.heads, device=q.device) if sink is None else sink
    more = more.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, more], -1), -1)[..., :-1] @ v


def _grouped_query(node: Node) -> list[Value]:
    cached = [kind for kind in ("k_quant_type", "v_quant_type") if node.attr(kind, "NONE") != "NONE"]
    node.require(not cached and len(node) <= 12, "a quantised key/value cache")
    node.require(node.has(3) == node.has(4), "a cache of keys alone, or of values")
    options = Grouped(
        node.attr("num_heads"), node.attr("kv_num_heads"), node.attr("scale", 0.0) or None, node.attr("softcap", 0.0),
        node.attr("local_window_size", -1), bool(node.attr("do_rotary", 0)), bool(node.attr("rotary_interleaved", 0)),
        node.attr("smooth_softmax", 0) == 1, bool(node.attr("sliding_window_cache", 0)),
    )  # fmt: skip
    inputs = [node[0], *(node.get(i) for i in range(1, 6)), *(node.get(i) for i in range(7, 12))]
    return node.unpack(node.emit(grouped_query, *inputs[:6], node.shape_argument(6), *inputs[6:], options))


def _rotary(node: Node) -> Value:
    positions = node[1]
    node.require(not node.attr("is_packed_batching", 0), "packed batches")
    node.require(node.attr("scale", 1.0) == 1.0, "a scale inside RotaryEmbedding")
    options = [node.attr("num_heads", 0), node.attr("rotary_embedding_dim", 0), bool(node.attr("interleaved", 0))]
    return node.emit(rotary_at, node[0], positions, node[2], node[3], *options)


def rotary_at(
    x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, heads: int, size: int, interleaved: bool
) -> Tensor:
    """Rotary embedding at ``positions (B, S)``, or from one offset ``(1,)`` on."""
    if positions.dim() == 1:
        steps = x.shape[1] if x.dim() == 3 else x.shape[2]
        positions = (positions + torch.arange(steps, device=x.device)).expand(x.shape[0], -1)
    if x.dim() == 3 and not heads:
        heads = x.shape[-1] // (size or 2 * cos.shape[-1])
    return rotary(x, cos, sin, positions, heads, size or 2 * cos.shape[-1], interleaved)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    for op, handler in {
        "Attention": _attention,
        "MultiHeadAttention": _multi_head,
        "GroupQueryAttention": _grouped_query,
        "RotaryEmbedding": _rotary,
    }.items():
        registry.add(op, handler, 1, 1, DOMAIN)
