"""What the arguments and the recorded values of an fx node say: shapes, windows of slices, axes of transposes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from laurel_graph.graph_view import Shape

from .roles import operator_name


def _value(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return value if value is not None else node.meta.get("tensor_meta")


def is_tensor(node: fx.Node) -> bool:
    """Tells whether *node* makes a tensor, as far as is known."""
    value = _value(node)
    return value is None or hasattr(value, "shape")


def dims_of(value: Any) -> Shape:
    """Returns the shape of a tensor; a symbolic size by its name."""
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)


def type_of(value: Any) -> str | None:
    """Returns the element type of a tensor, ``None`` for anything else."""
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else None


def shape_of(node: fx.Node) -> Shape | None:
    """Returns the recorded shape of *node*."""
    value = _value(node)
    return dims_of(value) if hasattr(value, "shape") else None


def dtype_of(node: fx.Node) -> str | None:
    """Returns the recorded element type of *node*."""
    return type_of(_value(node))


def scope_of(node: fx.Node) -> str:
    """Returns the dotted path of the module that *node* was written in."""
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    if node.op == "call_module" and entries and str(entries[-1][0]) == str(node.target):
        entries.pop()
    path = str(entries[-1][0]) if entries else ""
    return re.sub(r"^(L\['self'\]|L__self__)\.?|@\d+", "", path)


def argument(node: fx.Node, place: int, names: Sequence[str], default: Any) -> Any:
    """Returns an argument by its place or by one of its names."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def mixes(kernel: Any, stride: Any) -> bool:
    """Tells whether a pool has a window of more than one element and a stride of one."""
    kernels = kernel if isinstance(kernel, (tuple, list)) else (kernel,)
    strides = stride if isinstance(stride, (tuple, list)) else (stride,)
    return any(isinstance(k, int) and k > 1 for k in kernels) and all(s == 1 for s in strides)


def is_enlarged(node: fx.Node) -> bool:
    """Tells whether a lookup gives a tensor of the same rank that is longer along an axis: upsampling, decomposed."""
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if before is None or after is None or len(before) != len(after) or len(after) < 3:
        return False
    pairs = list(zip(before, after, strict=True))
    return all(a == b or (isinstance(a, int) and isinstance(b, int) and a < b) for a, b in pairs) and before != after


def is_strided(stride: Any) -> bool:
    """Tells whether a convolution's or pool's stride is more than one along some axis."""
    return any(isinstance(s, int) and s > 1 for s in (stride if isinstance(stride, (tuple, list)) else (stride,)))


def is_transposed(node: fx.Node) -> bool:
    """Tells whether an ATen convolution is a transposed one."""
    return operator_name(node.target) in ("convolution", "_convolution") and len(node.args) > 6 and node.args[6] is True


def permutation_of(node: fx.Node, op: str) -> tuple[int, ...] | None:
    """Returns the axes of a transpose, ``None`` where they are unknown."""
    shape = shape_of(node)
    if shape is None:
        return None
    axes: list[Any] = list(range(len(shape)))
    given = node.args[1:] if len(node.args) != 2 or isinstance(node.args[1], int) else node.args[1]
    if op == "permute":
        dims = list(given) if isinstance(given, (list, tuple)) else []  # type: ignore[unreachable]
        return tuple(dim % len(shape) for dim in dims) if len(dims) == len(shape) else None
    first, second = (
        (given[0], given[1]) if op != "t" and isinstance(given, (list, tuple)) and len(given) == 2 else (0, -1)
    )
    if not isinstance(first, int) or not isinstance(second, int) or not shape:
        return None
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def window_of(node: fx.Node, axis: Any, start: Any, end: Any) -> tuple[int, int] | None:
    """Returns ``(start, stop)`` of a slice counted from the front, ``None`` where it is unknown."""
    shape = shape_of(node.all_input_nodes[0]) if node.all_input_nodes else None
    size = shape[axis] if shape is not None and isinstance(axis, int) and -len(shape) <= axis < len(shape) else None
    start = 0 if start is None else start
    end = 2**62 if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    if not isinstance(size, int):
        return (start, end) if start >= 0 and 0 <= end < 2**31 else None
    start, end = (v + size if v < 0 else v for v in (start, end))
    return max(0, min(start, size)), max(0, min(end, size))


def element_of(node: fx.Node, axis: Any, index: Any) -> tuple[int, int] | None:
    """Returns the window of one element, ``None`` where it is unknown."""
    if not isinstance(index, int):
        return None
    return window_of(node, axis, index, index + 1 if index != -1 else None)


def indexed(node: fx.Node) -> tuple[int, tuple[int, int] | None]:
    """Axis and window of ``x[:, a:b]`` and ``x[:, i]``; an unknown window where more than one axis is cut."""
    index = node.args[1]
    items = list(index) if isinstance(index, (tuple, list)) else [index]
    if Ellipsis in items:
        place = items.index(Ellipsis)
        tail = len(items) - place - 1
        cuts = [(i, v) for i, v in enumerate(items[:place])]
        cuts += [(i - tail, v) for i, v in enumerate(items[place + 1 :])]
    else:
        cuts = list(enumerate(items))
    cuts = [(axis, item) for axis, item in cuts if item != slice(None)]
    if len(cuts) != 1:
        return 0, None
    axis, item = cuts[0]
    if type(item) is int:
        return axis, element_of(node, axis, item)
    if not isinstance(item, slice) or item.step not in (None, 1):
        return axis, None
    return axis, window_of(node, axis, item.start, item.stop)


def part_sizes(node: fx.Node, op: str) -> tuple[int, list[int] | None]:
    """Returns the axis that a split, chunk or unbind cuts, and the sizes of its parts, ``None`` if unknown."""
    whole = shape_of(node.all_input_nodes[0])
    axis = argument(node, 2 if op not in ("unbind", "unbind_copy") else 1, ("dim",), 0)
    size = whole[axis] if whole is not None and isinstance(axis, int) and -len(whole) <= axis < len(whole) else None
    given = argument(node, 1, ("split_size_or_sections", "split_size", "split_sizes", "chunks"), None)
    if isinstance(given, (list, tuple)):
        return axis, [v for v in given if isinstance(v, int)] if all(isinstance(v, int) for v in given) else None
    if not isinstance(size, int) or not isinstance(given, int) or given <= 0:
        return axis, None
    step = -(-size // given) if "chunk" in op else given
    return axis, [min(step, size - start) for start in range(0, size, step)]
