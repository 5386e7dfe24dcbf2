"""What attention demands: heads of one size, caches that grow by what is new, tables that end."""

from __future__ import annotations

import re

from onnx import TensorProto

from .graph import Call, Rule
from .sizes import Dim, exact_quotient, plus, symbols_of

_CACHE = re.compile(r"past|cache|memory|\bkv\b|present|(^|[^a-z])(key|value)s?([^a-z]|$)", re.IGNORECASE)
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def concat(call: Call, axis: int) -> None:
    """Recognises a cache: an input that gets what is new put behind it."""
    flows = [call.walk.flows.get(call.name(i), frozenset()) for i in range(len(call.inputs))]
    if not flows[0] or all(flows):
        return
    for name, _ in flows[0]:
        value = call.walk.inputs[name]
        dim = call.dim(0, axis)
        if value.dtype in _FLOATS and len(value.shape) > 2 and _CACHE.search(f"{name} {' '.join(symbols_of(dim))}"):
            _is_past(call, 0, dim)


def _is_past(call: Call, index: int, dim: Dim) -> None:
    call.use(index, "past")
    names = symbols_of(dim)
    if len(names) == 1 and names[0] in call.sizes.order:
        call.sizes.past.add(names[0])


def _cache(call: Call, key: int, value: int, heads: Dim, head: Dim, batch: Dim) -> Dim:
    """Says what a cache (B, heads, past, head size) has to look like; returns how long it is."""
    past = call.dim(key, 2) if call.shape(key) is not None else 0
    for index in (key, value):
        if call.shape(index) is not None:
            for axis, dim in enumerate((batch, heads, past, head)):
                call.equal(call.dim(index, axis), dim)
            _is_past(call, index, call.dim(index, 2))
    return past


def _group_query(call: Call) -> None:
    shape, heads, groups = call.shape(), call.attribute("num_heads"), call.attribute("kv_num_heads")
    if shape is None or len(shape) != 3 or not heads or not groups:
        return
    batch, new, width = shape
    packed = not call.name(1)
    head = exact_quotient(call.sizes.now(width), heads + 2 * groups if packed else heads)
    if head is None:
        head = call.dim(3, 3)
    if not packed:
        for index in (1, 2):
            for axis, dim in enumerate((batch, new, call.sizes.product((head, groups)))):
                call.equal(call.dim(index, axis), dim)
    past = _cache(call, 3, 4, groups, head, batch)
    rolling = bool(call.attribute("sliding_window_cache", 0))
    whole = None if rolling else plus(past, new)
    met = (call.numbers(6) or (None,))[0]
    call.equal(met, whole)
    if rolling:  # a buffer of the window's size, however much has passed
        call.equal(past, call.attribute("local_window_size"))
        call.walk.rolling.add(call.attribute("local_window_size"))
        call.walk.spans.append((met, new))
    call.equal(call.dim(5, 0), batch)
    call.use(5, "seqlens")
    call.use(9, "position")
    for table in (7, 8):
        call.sizes.limit(whole, call.dim(table, 0))
        call.below(9, call.dim(table, 0))
    _bias(call, 10, new, whole)
    if (window := call.attribute("local_window_size", -1)) > 0:
        call.walk.windows.add(window)
    call.put((batch, new, call.sizes.product((head, heads))))
    for output in (1, 2):
        call.put((batch, groups, past if rolling else whole, head), output)


def _bias(call: Call, index: int, new: Dim, whole: Dim) -> None:
    """A bias or mask is broadcast against the scores (B, heads, new, past + new)."""
    for axis, dim in ((-1, whole), (-2, new)):
        found = call.dim(index, axis)
        if found != 1:
            call.equal(found, dim, firm=False)


def _multi_head(call: Call) -> None:
    shape, heads = call.shape(), call.attribute("num_heads")
    if shape is None or not heads:
        return
    batch, new = shape[0], shape[1]
    width = shape[2] if len(shape) == 3 else call.sizes.product((shape[2], shape[4])) if len(shape) == 5 else None
    head = exact_quotient(call.sizes.now(width), heads)
    key = call.shape(1)
    length = new if key is None else key[2] if len(key) == 4 else key[1]
    for axis, dim in enumerate((batch, heads, length, head) if key is not None and len(key) == 4 else (batch, length)):
        for index in (1, 2):
            call.equal(call.dim(index, axis), dim)
    whole = plus(_cache(call, 6, 7, heads, head, batch), length)
    mask = call.shape(4)
    if mask is not None and len(mask) > 1:
        call.equal(mask[-1], whole)
        call.equal(mask[0], batch)
    _bias(call, 5, new, whole)
    if (count := call.numbers(8)) and call.shape(6) is not None:
        call.equal(count[0], call.dim(6, 2))
    value = call.dim(2, 2) if call.shape(2) is not None and len(call.shape(2) or ()) == 3 else width
    call.put((batch, new, value))
    for output in (1, 2):
        call.put((batch, heads, whole, head), output)


def _fused(call: Call) -> None:
    """ONNX Runtime's Attention: one weight for queries, keys and values."""
    shape, weight, heads = call.shape(0), call.shape(1), call.attribute("num_heads")
    if shape is None or len(shape) != 3 or weight is None or not heads:
        return
    batch, new, inner = shape
    call.equal(inner, weight[0])
    sizes = call.attribute("qkv_hidden_sizes")
    width = sizes[2] if sizes else exact_quotient(weight[1], 3)
    head = exact_quotient(width, heads)
    past: Dim = 0
    if call.shape(4) is not None:
        past = call.dim(4, 3)
        for axis, dim in ((0, 2), (1, batch), (2, heads), (4, head)):
            call.equal(call.dim(4, axis), dim)
        _is_past(call, 4, past)
    whole = plus(past, new)
    mask = call.shape(3)
    if mask is not None and len(mask) > 1:
        call.equal(mask[-1], whole)
        call.equal(mask[0], batch)
    elif mask is not None:
        call.use(3, "seqlens")
    _bias(call, 5, new, whole)
    call.put((batch, new, width))
    call.put((2, batch, heads, whole, head), 1)


def _standard(call: Call) -> None:
    """Attention of the default domain (opset 23): (B, heads, S, size), or (B, S, heads · size) with the heads given."""
    query, key, value = call.shape(0), call.shape(1), call.shape(2)
    if query is None or key is None or value is None:
        return
    flat = len(query) == 3
    heads, groups = (call.attribute(n) for n in ("q_num_heads", "kv_num_heads")) if flat else (query[1], key[1])
    if not isinstance(heads, int) or not isinstance(groups, int):
        return
    batch, new = query[0], query[1 if flat else 2]
    head = exact_quotient(call.sizes.now(query[2]), heads) if flat else query[3]
    last = exact_quotient(call.sizes.now(value[2]), groups) if flat else value[3]
    past: Dim = 0
    for index, size in ((4, head), (5, last)):
        if call.shape(index) is not None:
            past = _cache(call, index, index, groups, size, batch)
    whole = plus(past, key[1 if flat else 2])
    for other in (key, value):
        call.equal(other[0], batch)
    _bias(call, 3, new, whole)
    call.put((batch, new, call.sizes.product((last, heads))) if flat else (batch, heads, new, last))
    call.put((batch, groups, whole, head), 1)
    call.put((batch, groups, whole, last), 2)


def _rotary(position: int, cos: int) -> Rule:
    def rule(call: Call) -> None:
        call.put(call.shape())
        call.use(position, "position")
        table, positions = call.dim(cos, 0), call.shape(position)
        if positions is not None or position == 1:
            call.below(position, table)
        if positions is not None and len(positions) == 2:
            call.equal(positions[0], call.dim(0, 0))

    return rule


RULES: dict[str, Rule] = {
    "GroupQueryAttention": _group_query,
    "MultiHeadAttention": _multi_head,
    "com.microsoft.Attention": _fused,
    ".Attention": _standard,
    "ai.onnx.Attention": _standard,
    "com.microsoft.RotaryEmbedding": _rotary(1, 2),
    ".RotaryEmbedding": _rotary(3, 1),
}
