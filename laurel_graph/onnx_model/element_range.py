"""Which numbers an element type can hold without losing their digits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BFLOAT16_STEP = 2.0**-7


class UnfitError(Exception):
    """A constant that was asked for has no place in its element type: it overflows, or loses its digits."""


def fits(made: Array, dtype: np.dtype[Any]) -> bool:
    """Whether float64 values keep their digits in *dtype*.

    No finite value may overflow, and what subnormal numbers round away must be small beside its row and its column
    (the first and the last axis), so that no channel loses more than its elements do by rounding anyway.
    """
    if not made.size or dtype.kind not in "fV":
        return True
    finite = np.isfinite(made)
    sizes = np.where(finite, np.abs(made), 0.0)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = made.astype(dtype).astype(np.float64)
        if not np.isfinite(stored[finite]).all():
            return False
        lost = np.where(finite, np.abs(stored - made), 0.0)
    step = float(np.finfo(dtype).eps) if dtype.kind == "f" else _BFLOAT16_STEP
    if not np.any(lost > step * sizes):
        return True
    for axis in {0, made.ndim - 1} if made.ndim > 1 else {-1}:
        rest = tuple(i for i in range(made.ndim) if i != axis)
        if np.any(lost.max(axis=rest) > step * sizes.max(axis=rest)):
            return False
    return True
