"""Quantised weights of an ONNX graph: which tensors hold scale and zero point, and the values they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from .sketch import Array, grid, squeezed

INPUTS = {
    "DequantizeLinear": (0, 1, 2),
    "QLinearConv": (3, 4, 5),
    "QLinearMatMul": (3, 4, 5),
    "QGemm": (3, 4, 5),
    "DynamicQuantizeMatMul": (1, 2, 3),
    "MatMulIntegerToFloat": (1, 3, 5),
    "QAttention": (1, 4, 7),
}
"""Operator to the places of a quantised weight, its scale and its zero point."""
BLOCKED = "MatMulNBits"
"""Inputs: activations, packed weights (N, blocks, bytes), scales, zero points, order of the groups."""
_FIRST_AXIS = ("QLinearConv", "ConvInteger")


@dataclass(frozen=True)
class Recipe:
    """How a quantised weight becomes numbers.

    Attributes:
        scale: name of its scale.
        zero: name of its zero point, or "".
        axis: axis of a scale per channel or block.
        block: elements of that axis that share a scale, 0 for all of a channel.
        packed: ``(N, K, bits)`` of a MatMulNBits weight, else ``None``.
    """

    scale: str
    zero: str
    axis: int = 0
    block: int = 0
    packed: tuple[int, int, int] | None = None


def recipes(nodes: Sequence[NodeProto], names: set[str]) -> dict[str, Recipe]:
    """Returns weight name to recipe, as far as the nodes that read it or its name (of ORT's quantiser) tell.

    Args:
        nodes: the nodes of all graphs.
        names: the names of all tensors.
    """
    found: dict[str, Recipe] = {}
    for node in nodes:
        for weight, recipe in _of_node(node, names):
            if recipe.scale in names and (not recipe.zero or recipe.zero in names):
                found.setdefault(weight, recipe)
    return found


def _of_node(node: NodeProto, names: set[str]) -> Iterator[tuple[str, Recipe]]:
    inputs = [*node.input, *[""] * 8]
    options = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == BLOCKED:
        n, k, block = (options[key].i if key in options else 0 for key in ("N", "K", "block_size"))
        bits = options["bits"].i if "bits" in options else 4
        if not inputs[4] and n > 0 and k > 0 and block > 0 and bits in (2, 4, 8):
            yield inputs[1], Recipe(inputs[2], inputs[3], 1, block, (n, k, bits))
        return
    if node.op_type in INPUTS:
        weight, scale, zero = (inputs[place] for place in INPUTS[node.op_type])
        axis = 0 if node.op_type in _FIRST_AXIS else -1
        if node.op_type == "DequantizeLinear":
            axis = options["axis"].i if "axis" in options else 1
        block = options["block_size"].i if "block_size" in options else 0
        yield weight, Recipe(scale, zero, axis, max(block, 0))
    axis = 0 if node.op_type in _FIRST_AXIS else -1
    for weight in node.input:
        stem = weight.removesuffix("_quantized")
        if stem != weight and f"{stem}_scale" in names:
            zero = f"{stem}_zero_point"
            yield weight, Recipe(f"{stem}_scale", zero if zero in names else "", axis)


def sample(
    values: Array, recipe: Recipe, small: Callable[[str], Array | None]
) -> tuple[Array, Array, tuple[int, ...]] | None:
    """Returns the sample of a quantised weight, its quantiser's steps there and its whole shape.

    Args:
        values: its integers, whole (they may lie in a mapped file).
        recipe: how to read them.
        small: gives the value of a scale or zero point.

    Returns:
        Sample and steps of the squeezed shape, and the shape; ``None`` where weight and scale do not fit.
    """
    scale, zero = small(recipe.scale), small(recipe.zero) if recipe.zero else None
    if scale is None or not np.issubdtype(scale.dtype, np.floating) or not scale.size:
        return None
    read = _plain if recipe.packed is None else _packed
    try:
        return read(values, recipe, scale.astype(np.float64), zero)
    except (ValueError, IndexError):
        return None


def _plain(values: Array, recipe: Recipe, scale: Array, zero: Array | None) -> tuple[Array, Array, tuple[int, ...]]:
    shape = values.shape
    places = iter(grid(squeezed(shape)))
    at = [next(places) if size != 1 else np.zeros(1, np.int64) for size in shape]
    numbers = values[np.ix_(*at)].astype(np.float64)
    if zero is not None and zero.size:
        numbers = numbers - _along(zero.astype(np.float64), shape, recipe, at)
    steps = np.broadcast_to(_along(scale, shape, recipe, at), numbers.shape)
    dims = [len(index) for index, size in zip(at, shape, strict=True) if size != 1]
    return (numbers * steps).reshape(dims), steps.reshape(dims), shape


def _along(scale: Array, shape: Sequence[int], recipe: Recipe, at: Sequence[Array]) -> Array:
    """A scale (one, one per channel or per block) at the positions *at* of every axis of *shape*."""
    if scale.size == 1:
        return scale.reshape(())
    axis = recipe.axis % len(shape)
    if scale.ndim == len(shape) and recipe.block:
        blocks: Array = scale[np.ix_(*(index // recipe.block if i == axis else index for i, index in enumerate(at)))]
        return blocks
    flat = scale.reshape(-1)
    if flat.size != shape[axis]:
        raise ValueError("the scale fits no axis")
    return flat[at[axis]].reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _packed(values: Array, recipe: Recipe, scale: Array, zero: Array | None) -> tuple[Array, Array, tuple[int, ...]]:
    assert recipe.packed is not None
    n, k, bits = recipe.packed
    blocks, shape = -(-k // recipe.block), (n, k)
    places = iter(grid(squeezed(shape)))
    rows, columns = (next(places) if size != 1 else np.zeros(1, np.int64) for size in shape)
    weights = _unpacked(values.reshape(n, -1)[rows], bits)[:, columns]
    steps = scale.reshape(n, blocks)[rows][:, columns // recipe.block]
    zeros: Any = 2.0 ** (bits - 1)
    if zero is not None and zero.size:
        whole = zero.reshape(n, -1)[rows]
        whole = whole if np.issubdtype(whole.dtype, np.floating) else _unpacked(whole, bits)
        zeros = whole[:, columns // recipe.block]
    dims = [size for size in steps.shape if size != 1]
    return ((weights - zeros) * steps).reshape(dims), steps.reshape(dims), shape


def _unpacked(data: Array, bits: int) -> Array:
    """The *bits*-bit numbers of each row of bytes, low ones first."""
    parts = [(data >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(len(data), -1).astype(np.float64)
