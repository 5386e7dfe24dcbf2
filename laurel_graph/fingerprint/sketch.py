"""What a fingerprint keeps of one weight, so that it is known again after an export, a cast, a fold, a quantiser.

=====================  ==============================================================================================
what happens to it     what stays
=====================  ==============================================================================================
transposed, reshaped   the sample: a grid of positions that treats all axes alike, axes of size 1 left out
by axes of size 1
cast to 16 bits        the sorted values of the sample: rounding keeps their order, so both sides round to the same
BatchNorm folded in,   the *profile*: for slices along one axis, the magnitude of their sum over their norm, which no
scaled                 factor of a slice changes
quantised              the same profile: what is rounded up and down cancels in the sum
merged with an equal   all: equal weights have equal sketches
=====================  ==============================================================================================

A sketch costs at most :data:`BUDGET` elements of a weight to make, and about 100 bytes to keep.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

VERSION = 1
"""Version of the text form."""
BUDGET = 2**14
"""At most this many elements of a weight are read."""
SMALLEST = 8
"""Weights of fewer elements tell nothing."""

_ENDS = 4
"""So many of the smallest and of the largest values are kept, and as many between."""
_SLICES = 8
"""Slices of an axis whose profile is kept."""
_DISTINCT = 4
"""Matrices with fewer distinct values among the kept ones are masks and fills, which tell nothing."""

QUANTISED = "quantised"
DTYPES = ("float64", "float32", "float16", "bfloat16", QUANTISED)
"""Element types that a sketch can have, finest first."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """One weight.

    Attributes:
        dims: its shape without axes of size 1.
        dtype: its element type, one of :data:`DTYPES`.
        depth: how many matrices lie on the longest way from an input to it, itself included; -1 if not known.
        step: the largest step of its quantiser, 0 for floats.
        noise: the steps of its quantiser over its values, root mean squares, 0 for floats.
        order: 12 of its sorted values, float32: both ends and between.
        profile: ``(2, 8)`` for the first two axes, float32; ``None`` for vectors.
        name: what its model calls it; not kept in files.
    """

    dims: tuple[int, ...]
    dtype: str
    depth: int
    step: float
    noise: float
    order: Array
    profile: Array | None
    name: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def key(self) -> tuple[int, ...]:
        """What weights of one shape share, transposed or not."""
        return tuple(sorted(self.dims))


@dataclass(frozen=True)
class Fingerprint:
    """The sketches of a model's weights, in no order.

    Attributes:
        weights: the sketches.
        unread: number of elements whose order or packing is not known, so that they have no sketch.
    """

    weights: tuple[Sketch, ...] = ()
    unread: int = 0

    def without(self, names: Collection[str]) -> Fingerprint:
        """Returns the fingerprint without the weights of those names."""
        return Fingerprint(tuple(weight for weight in self.weights if weight.name not in names), self.unread)

    def to_text(self) -> str:
        """Returns the form that files keep."""
        rows = [[list(w.dims), w.dtype, w.depth, w.step, w.noise, _packed(w)] for w in self.weights]
        return json.dumps({"version": VERSION, "unread": self.unread, "weights": rows}, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Fingerprint:
        """Reads what :meth:`to_text` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            data = json.loads(text)
            version, unread = data["version"], data["unread"]
            if version == VERSION and type(unread) is int and unread >= 0:
                return cls(tuple(_unpacked(row) for row in data["weights"]), unread)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"the fingerprint is damaged ({type(error).__name__}: {error})") from None
        raise ValueError(f"the fingerprint has version {version!r:.20}; this version reads {VERSION}")


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a shape without its axes of size 1."""
    return tuple(int(size) for size in shape if size != 1)


def grid(dims: Sequence[int]) -> tuple[Array, ...]:
    """Returns, per axis, the positions that are read: evenly spread, all alike, at most :data:`BUDGET` elements."""
    side = max(dims, default=1)
    while math.prod(min(size, side) for size in dims) > BUDGET:
        side = side * 3 // 4
    return tuple(_spread(size, min(size, side)) for size in dims)


def sketch(
    sample: Array, shape: Sequence[int], dtype: str, *, steps: Array | None = None, name: str = ""
) -> Sketch | None:
    """Returns the sketch of a weight; ``None`` for one that tells nothing: tiny, not finite, or a mask or fill matrix.

    Args:
        sample: its values at the positions of :func:`grid`, of the squeezed shape.
        shape: the shape of the whole weight.
        dtype: its element type.
        steps: for a quantised weight, the steps of its quantiser, of a shape that broadcasts to the sample's.
        name: what its model calls it.
    """
    dims = squeezed(shape)
    if math.prod(dims) < SMALLEST:
        return None
    values = np.asarray(sample, np.float64)
    flat = np.sort(values, axis=None)
    with np.errstate(over="ignore"):
        order = flat[_ranks(flat.size)].astype(np.float32)
    if not np.isfinite(flat[[0, -1]]).all() or not np.isfinite(order).all():
        return None
    if len(dims) > 1 and len(np.unique(order)) < _DISTINCT:
        return None
    step = noise = 0.0
    if steps is not None:
        step = float(np.abs(steps).max())
        noise = _rms(np.broadcast_to(steps, values.shape)) / (_rms(values) or 1.0)
    profile = np.stack([_profile(values, axis) for axis in (0, 1)]) if len(dims) > 1 else None
    return Sketch(dims, dtype, -1, step, noise, order, profile, name)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _spread(size: int, count: int) -> Array:
    """*count* of the positions 0 ... size - 1, evenly."""
    return (2 * np.arange(count, dtype=np.int64) + 1) * size // (2 * count)


def _ranks(size: int) -> list[int]:
    ends = range(_ENDS)
    low = [*(min(i, size - 1) for i in ends), size // 5, 2 * size // 5]
    return [*low, *(size - 1 - rank for rank in reversed(low))]


def _profile(values: Array, axis: int) -> Array:
    """The magnitude of the sum over the norm for some slices along *axis*; 0 where all is zero."""
    slices = np.moveaxis(values, axis, 0)
    slices = slices[_spread(len(slices), _SLICES)].reshape(_SLICES, -1)
    largest = np.abs(slices).max(1, keepdims=True)
    slices = slices / np.where(largest > 0, largest, 1)
    norm = np.sqrt(np.square(slices).sum(1))
    profile: Array = np.abs(slices.sum(1)) / np.where(norm > 0, norm, 1)
    return profile.astype(np.float32)


_ORDER = 3 * _ENDS
"""How many sorted values are kept."""


def _packed(weight: Sketch) -> str:
    parts = [weight.order.ravel()] if weight.profile is None else [weight.order.ravel(), weight.profile.ravel()]
    return base64.b64encode(np.concatenate(parts).astype("<f4").tobytes()).decode()


def _unpacked(row: Any) -> Sketch:
    dims, dtype, depth, step, noise, text = row
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    whole = [*dims, depth]
    vector = len(dims) < 2
    if (
        dtype not in DTYPES
        or not all(type(number) is int for number in whole)
        or not all(number > 0 for number in dims)
        or not all(type(number) in (int, float) for number in (step, noise))
        or values.size != _ORDER + (0 if vector else 2 * _SLICES)
        or not np.isfinite([*values, step, noise]).all()
    ):
        raise ValueError("a weight of the fingerprint is damaged")
    profile = None if vector else values[_ORDER:].reshape(2, _SLICES)
    return Sketch(tuple(dims), dtype, depth, float(step), float(noise), values[:_ORDER], profile)
