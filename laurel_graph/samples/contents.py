"""What a sample holds: floats in a style, masks, positions, lengths, and integers that index something."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import ModelError
from .graph import Input, Walk
from .situations import Situation, is_length, is_mask, is_position, new_symbols
from .sizes import symbol

Array = NDArray[Any]

INDEX_BOUND = 2
"""The bound of integers that index nothing known."""

LARGEST = 2**26
"""The elements of a drawn input."""

STYLES: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: np.abs(rng.standard_normal(shape)) + 0.1,
    "unit": lambda rng, shape: rng.uniform(0.01, 0.99, shape),
    "small": lambda rng, shape: 0.01 * rng.standard_normal(shape),
    "pixels": lambda rng, shape: rng.uniform(0, 255, shape),
    "large": lambda rng, shape: 100 * rng.standard_normal(shape),
}
"""How the floats of a sample may be drawn, by name; what a model takes at its input decides which one exercises it."""


def filled(walk: Walk, at: Situation, *, seed: int, style: str) -> dict[str, Array]:
    """Returns one array for each input of a model in a situation."""
    rng = np.random.default_rng(seed)
    return {value.name: _array(walk, at, value, rng, style) for value in walk.inputs.values()}


def _array(walk: Walk, at: Situation, value: Input, rng: np.random.Generator, style: str) -> Array:
    shape = at.shapes[value.name]
    if math.prod(shape) > LARGEST:
        raise ModelError(
            f"input {value.name!r} of shape {shape} is too large to draw a sample for (more than {LARGEST} elements); "
            "pass the data to run on, or smaller sizes, instead."
        )
    if value.dtype == onnx.TensorProto.STRING:
        return np.full(shape, "", dtype=object)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.dtype))
    if value.uses & {"condition"} or (dtype == np.bool_ and len(shape) < 2 and "cache" in value.name.lower()):
        return np.full(shape, at.name not in ("prompt", "plain"), dtype)
    if is_mask(value):
        return _mask(shape, dtype, at.ragged)
    if np.issubdtype(dtype, np.integer):
        return _integers(walk, at, value, rng).astype(dtype)
    return STYLES[style](rng, shape).astype(dtype)


def _mask(shape: tuple[int, ...], dtype: np.dtype[Any], ragged: bool) -> Array:
    """Ones; where *ragged*, zeros behind a position that differs from row to row, the first one always in."""
    mask = np.ones(shape, dtype)
    if ragged and len(shape) > 0 and shape[-1] > 1:
        rows = mask.reshape(-1, shape[-1])
        for i, row in enumerate(rows):
            row[max(1, shape[-1] - 1 - (i * 3) % shape[-1]) :] = 0
    return mask


def _integers(walk: Walk, at: Situation, value: Input, rng: np.random.Generator) -> Array:
    shape = at.shapes[value.name]
    known = [at.sizes.value(symbol(f"{value.name}[{i}]")) for i in range(int(np.prod(shape)))] if len(shape) < 2 else []
    if known and all(number is not None for number in known):
        return np.array(known, np.int64).reshape(shape)
    past, new = _held(walk, at), _added(walk, at)
    bounds = [bound for bound in (at.sizes.value(dim) for dim in value.bounds) if bound is not None and bound > 0]
    bound = min(bounds, default=INDEX_BOUND)
    if is_position(value):
        start = np.arange(shape[-1] if shape else 1) + (past if shape and shape[-1] == new else 0)
        return np.broadcast_to(np.minimum(start, min(bounds)) if bounds else start, shape).reshape(shape)
    if "seqlens" in value.uses:
        return np.full(shape, past + new - 1)
    if is_length(value) and not bounds:
        return _lengths(walk, at, value)
    return rng.integers(0, bound, shape)


def _lengths(walk: Walk, at: Situation, value: Input) -> Array:
    """How long each row is: all of it; where *ragged*, less from the second row on."""
    known = [top for top in map(at.sizes.value, value.tops) if top is not None and top > 0]
    if known:
        whole = min(known)
    elif "lengths" in value.uses:  # of a recurrent layer, whose first axis is time
        whole = next((s[0] for s in at.shapes.values() if len(s) == 3), 1)
    else:  # rows run along the second axis of ids or of features
        whole = next((s[1] for n, s in at.shapes.items() if len(s) > 1 and not is_length(walk.inputs[n])), 1)
    lengths = np.full(at.shapes[value.name], whole)
    if at.ragged and lengths.ndim:
        rows = np.arange(lengths.shape[0]).reshape(-1, *[1] * (lengths.ndim - 1))
        lengths = np.maximum(1, lengths - rows * 3 % whole)
    return lengths


def _held(walk: Walk, at: Situation) -> int:
    """How much the caches hold."""
    return next((at.values[name] for name in walk.sizes.order if name in walk.sizes.past), _fixed_cache(walk, at))


def _fixed_cache(walk: Walk, at: Situation) -> int:
    shapes = (at.shapes[value.name] for value in walk.inputs.values() if "past" in value.uses)
    return next((shape[-2] for shape in shapes if len(shape) > 3), 0)


def _added(walk: Walk, at: Situation) -> int:
    """How many tokens a sample brings."""
    for value in walk.inputs.values():
        if "past" not in value.uses and len(value.shape) == 2 and not is_mask(value) and not is_length(value):
            return at.shapes[value.name][1]
    return next((at.values[name] for name in new_symbols(walk) if name in at.values), 1)
