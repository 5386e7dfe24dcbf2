"""Sequences and optional values: Python lists and ``None``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..builder import Value
from ..elements import FLOATS
from ..node import Node, integers
from ..registry import Registry


def construct(items: Sequence[Tensor]) -> list[Tensor]:
    """A sequence of these tensors."""
    return list(items)


def empty() -> list[Tensor]:
    """A sequence of nothing."""
    return []


def insert(items: Sequence[Tensor], item: Tensor, position: Any) -> list[Tensor]:
    """The sequence with one more tensor, at the end without a position."""
    out = list(items)
    at = len(out) if position is None else integers(position)[0]
    out.insert(at if at >= 0 else len(items) + at, item)
    return out


def erase(items: Sequence[Tensor], position: Any) -> list[Tensor]:
    """The sequence without one of its tensors, the last without a position."""
    out = list(items)
    del out[-1 if position is None else integers(position)[0]]
    return out


def element(items: Sequence[Tensor], position: Any) -> Tensor:
    """One tensor of the sequence."""
    return items[integers(position)[0]]


def length(items: Sequence[Tensor]) -> Tensor:
    """How many tensors the sequence has."""
    return torch.tensor(len(items), dtype=torch.int64)


def join(items: Sequence[Tensor], axis: int, new_axis: bool) -> Tensor:
    """The tensors of the sequence as one."""
    return torch.stack(list(items), axis) if new_axis else torch.cat(list(items), axis)


def split_to_sequence(x: Tensor, sizes: Any, scalar: bool, axis: int, keep: bool) -> list[Tensor]:
    """The parts of x along *axis*."""
    if sizes is None:
        parts = torch.split(x, 1, axis)
        return list(parts) if keep else [part.squeeze(axis) for part in parts]
    sizes = integers(sizes)
    return list(torch.split(x, sizes[0] if scalar else sizes, axis))


def _split_to_sequence(node: Node) -> Value:
    shape = node[1].shape if node.has(1) else None
    node.require(not node.has(1) or shape is not None, "parts whose number is not known before running")
    keep = bool(node.attr("keepdims", 1))
    return node.emit(split_to_sequence, node[0], node.shape_argument(1), shape == (), node.attr("axis", 0), keep)


def has_element(value: Any) -> Tensor:
    """Whether an optional value is there."""
    return torch.tensor(value is not None)


def get_element(value: Any) -> Any:
    """The optional value."""
    if value is None:
        raise ValueError("an optional value is taken that is not there")
    return value


def _has_element(node: Node) -> Value:
    if not node.has(0):
        return node.constant(torch.tensor(False))
    return node.emit(has_element, node[0])


def _optional(node: Node) -> Value:
    return node[0] if node.has(0) else node.constant(None)


def _sequence_empty(node: Node) -> Value:
    node.require(node.attr("dtype", 1) in (*FLOATS, 6, 7, 9, 11), "a sequence of this element type")
    return node.emit(empty, fold=False)


def register(registry: Registry) -> None:
    """Adds the family to *registry*."""
    add = registry.add
    add("SequenceConstruct", lambda node: node.emit(construct, list(node.inputs)), 11)
    add("SequenceEmpty", _sequence_empty, 11)
    add("SequenceInsert", lambda node: node.emit(insert, node[0], node[1], node.shape_argument(2)), 11)
    add("SequenceErase", lambda node: node.emit(erase, node[0], node.shape_argument(1)), 11)
    add("SequenceAt", lambda node: node.emit(element, node[0], node.shape_argument(1)), 11)
    add("SequenceLength", lambda node: node.emit(length, node[0]), 11)
    add(
        "ConcatFromSequence",
        lambda node: node.emit(join, node[0], node.attr("axis"), bool(node.attr("new_axis", 0))),
        11,
    )
    add("SplitToSequence", _split_to_sequence, 11)
    add("Optional", _optional, 15)
    add("OptionalHasElement", _has_element, 15)
    add("OptionalGetElement", lambda node: node.emit(get_element, node[0]), 15)
