"""How far one value of two models is apart, channel by channel, each channel at its own scale.

One scale for a whole array hides what is small in it: scores beside pixels, logits beside a fill of -1e9. So every
channel along the feature axis is held against its own largest ordinary magnitude, and elements a thousand times the
typical one (fills) against themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MARGIN = 8.0
"""How many times a model's own noise two right models may be apart."""

ULPS = 8.0
"""Differences below this many units in the last place of the typical magnitude are rounding."""

_FILL = 1e3
"""Elements this many times the typical magnitude of their channel are held against themselves."""

_SAMPLED = 1 << 16
"""How many elements of a large array say what is typical."""

_SAYS_LITTLE = 0.1
"""A share of integers that may differ from which on it says little, so that how far they are apart counts, too."""

_UNLIKE = 0.5
"""The largest share of booleans or texts that may differ: two models that know nothing of each other differ in as many
booleans."""

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""One unit in the last place of numbers between 1 and 2, by element type."""


def is_float(array: Array) -> bool:
    """Whether *array* holds floating-point numbers, bfloat16 among them."""
    return array.dtype.name in EPSILON


def is_alive(array: Array, finite: float = 1.0) -> bool:
    """Whether an array of floats is evidence: finite (a share of it), not all zero, not the same number everywhere."""
    if not is_float(array) or array.size == 0:
        return array.size > 0
    values = array.astype(np.float64)
    ordinary = values[np.isfinite(values)]
    if not ordinary.any() or ordinary.size < finite * values.size:
        return False
    return values.size == 1 or bool(np.ptp(ordinary) > 0)


class Listed(np.ndarray[Any, np.dtype[Any]]):
    """The numbers of a sequence or a map in a row.

    Attributes:
        parts: the shapes of the parts, or the keys.
    """

    parts: tuple[Any, ...] = ()

    def __array_finalize__(self, of: Any) -> None:
        self.parts = getattr(of, "parts", ())


def as_array(value: Any) -> Array:
    """Returns what an output holds as an array; of a sequence or a map all numbers in a row, which know their parts."""
    if value is None:  # an optional that is empty
        return _listed(np.zeros(0, np.float32), (None,))
    if isinstance(value, dict):
        return _listed(np.asarray([*value.values()], None if _texts(value) else np.float32), tuple(value))
    if not isinstance(value, (list, tuple)):
        return np.asarray(value)
    items = [as_array(item) for item in value]
    row = np.concatenate([item.ravel() for item in items]) if items else np.zeros(0, np.float32)
    return _listed(row, tuple((item.shape, getattr(item, "parts", ())) for item in items))


def _texts(value: dict[Any, Any]) -> bool:
    return any(not isinstance(item, float) for item in value.values())


def _listed(row: Array, parts: tuple[Any, ...]) -> Listed:
    found = row.view(Listed)
    found.parts = parts
    return found


@dataclass(frozen=True)
class Verdict:
    """What a comparison found, at the channel that is furthest from what is allowed.

    Attributes:
        max_abs: largest absolute difference of all; infinite where only one of the two is NaN or shapes differ.
        max_rel: the difference over the scale, there.
        allowed: what ``max_rel`` may be, there.
        noise: the model's own noise over the scale, there.
        same_bits: every element has the same bits.
        shape: of the last sample.
        dtype: element type.
        idle: on every sample it was empty, not finite or the same everywhere, so that being equal says nothing.
    """

    max_abs: float
    max_rel: float
    allowed: float
    noise: float
    same_bits: bool
    shape: tuple[int, ...]
    dtype: str
    idle: bool = False

    @property
    def equal(self) -> bool:
        """Whether the difference is within what is allowed."""
        return self.max_rel <= self.allowed

    @property
    def excess(self) -> float:
        """The difference over what is allowed: above 1 where it is not equal."""
        return _excess((self.max_rel, self.allowed, self.noise))


@dataclass
class _Grouping:
    """Channels along one axis (``None``: the whole array is one): the largest of each number over all samples."""

    axis: int | None
    scale: Array = field(default_factory=lambda: np.zeros(0))
    gap: Array = field(default_factory=lambda: np.zeros(0))
    noise: Array = field(default_factory=lambda: np.zeros(0))
    open: bool = True

    def channels(self, array: Array) -> int:
        """How many channels *array* has."""
        return 1 if self.axis is None or array.ndim == 0 else int(array.shape[self.axis])

    def largest(self, array: Array) -> Array:
        """Returns the largest element of each channel."""
        if self.axis is None or array.ndim == 0:
            return np.asarray(array.max(keepdims=True).reshape(1))
        others = tuple(axis for axis in range(array.ndim) if axis != self.axis)
        return np.asarray(array.max(axis=others))

    def expected_noise(self, alike: bool) -> Array:
        """Noise by channel: what was measured, but nowhere less than what other channels have.

        A channel of few numbers may happen to be still while its noise is measured. Channels of outputs may be of
        different kinds, so there the noise over the scale is taken from others; where channels are *alike* (features
        inside a network, whose sums have terms of one size) the noise itself.
        """
        living = self.scale > 0
        if not living.any():
            return self.noise
        relative = float(np.quantile(self.noise[living] / self.scale[living], 0.5, method="lower"))
        common = float(np.quantile(self.noise[living], 0.5, method="lower")) if alike else 0.0
        return np.asarray(np.maximum(np.maximum(self.noise, relative * self.scale), common))

    def fits(self, channels: int) -> bool:
        """Takes note of the number of channels; a grouping in which it varies is no feature axis and is closed."""
        if not len(self.scale):
            self.scale, self.gap, self.noise = np.zeros(channels), np.zeros(channels), np.zeros(channels)
        self.open = self.open and len(self.scale) == channels
        return self.open


class Comparison:
    """Collects the differences of one value over several samples.

    Args:
        axes: the axes along which channels run, for arrays of that many axes.
        alike: the channels are features of one kind.
    """

    def __init__(self, axes: Sequence[int] | None = None, alike: bool = False) -> None:
        self._axes, self._alike = axes, alike
        self._groups: list[_Grouping] = []
        self._whole = _Grouping(None)
        self._fills = self._fill_noise = 0.0
        self._typical: list[float] = []
        self.max_abs, self.mismatch, self.same_bits = 0.0, False, True
        self.counts = [0, 0, 0]
        self._apart = self._noise_apart = 0.0
        self._first: Any = None
        self._alive = False
        self.shape: tuple[int, ...] = ()
        self.dtype = ""

    def _groupings(self, array: Array) -> list[_Grouping]:
        if not self._groups:
            axes = self._axes if self._axes is not None else feature_axes(array.ndim)
            self._groups = [_Grouping(axis % array.ndim) for axis in axes if array.ndim] or [self._whole]
        fitting = [group for group in self._groups if group.open and group.fits(group.channels(array))]
        self._whole.fits(1)
        return [*fitting, self._whole] if self._whole not in fitting else fitting

    def add(self, expected: Array, actual: Array) -> None:
        """Takes in one sample; shapes or types that differ are an infinite difference."""
        self.shape, self.dtype = tuple(expected.shape), expected.dtype.name
        parts = [getattr(array, "parts", ()) for array in (expected, actual)]
        if expected.shape != actual.shape or expected.dtype != actual.dtype or parts[0] != parts[1]:
            self.mismatch, self.same_bits, self.max_abs = True, False, float("inf")
            return
        if expected.size == 0:
            return
        if not is_float(expected):
            self._first = expected.flat[0] if self._first is None else self._first
            self._alive = self._alive or expected.size == 1 or bool(np.any(expected != self._first))
            self.same_bits = self.same_bits and np.array_equal(expected, actual)
            self._add_exact(expected, actual)
            return
        self._alive = self._alive or is_alive(expected, finite=0.0)
        sizes, gap = _sizes(expected), _gap(expected, actual)
        largest = float(gap.max())
        self.max_abs = max(self.max_abs, largest)
        self.same_bits = self.same_bits and largest == 0 and expected.tobytes() == actual.tobytes()
        typical = _typical(sizes)
        self._typical.append(typical)
        if (fill := _fills(sizes, typical)) is not None:
            self._fills = max(self._fills, float((gap[fill] / sizes[fill]).max()))
            sizes, gap = np.where(fill, 0, sizes), np.where(fill, 0, gap)
        for group in self._groupings(gap):
            group.scale = np.maximum(group.scale, group.largest(sizes))
            group.gap = np.maximum(group.gap, group.largest(gap))

    def _add_exact(self, expected: Array, actual: Array) -> None:
        self.counts[0] += expected.size
        self.counts[1] += int(np.sum(expected != actual))
        if np.issubdtype(expected.dtype, np.number):
            apart = _apart(expected, actual)
            self.max_abs = max(self.max_abs, float(apart.max()))
            self._apart += float(apart.sum())
        elif not np.array_equal(expected, actual):
            self.max_abs = float("inf")

    def add_noise(self, expected: Array, nudged: Array) -> None:
        """Takes in what the same model computes where its numbers are moved by their last bits."""
        if expected.shape != nudged.shape or expected.size == 0:
            return
        if not is_float(expected):
            self.counts[2] += int(np.sum(expected != nudged))
            if np.issubdtype(expected.dtype, np.number):
                self._noise_apart += float(_apart(expected, nudged).sum())
            return
        sizes, gap = _sizes(expected), _gap(expected, nudged)
        gap[~np.isfinite(gap)] = 0
        if (fill := _fills(sizes, _typical(sizes))) is not None:
            self._fill_noise = max(self._fill_noise, float((gap[fill] / sizes[fill]).max()))
            gap = np.where(fill, 0, gap)
        for group in self._groupings(gap):
            group.noise = np.maximum(group.noise, group.largest(gap))

    def verdict(self, tolerance: float, *, exact: bool = False, quantum: float = 0.0) -> Verdict:
        """Returns what was found.

        Args:
            tolerance: largest difference over a channel's scale.
            exact: the tolerance is meant as it is: noise and rounding add nothing to it.
            quantum: how far apart integers may be.
        """
        if self.mismatch:
            return self._result(float("inf"), tolerance, 0.0)
        if self.dtype not in EPSILON:
            return self._exact_verdict(quantum)
        floor = 0.0 if exact else ULPS * EPSILON[self.dtype] * (max(self._typical) if self._typical else 0.0)
        worst = (self._fills, self._allowed(tolerance, self._fill_noise, exact), self._fill_noise)
        groups = [group for group in self._groups if group.open] or [self._whole]
        for group in groups:
            if not len(group.scale):
                continue
            allowed = tolerance * group.scale
            if not exact:
                allowed = np.maximum(np.maximum(allowed, MARGIN * group.expected_noise(self._alike)), floor)
            with np.errstate(divide="ignore", invalid="ignore"):
                excess = np.where(group.gap == 0, 0.0, group.gap / allowed)
            i = int(np.argmax(np.nan_to_num(excess, nan=np.inf)))
            scale = group.scale[i] or 1.0
            found = (group.gap[i] / scale, allowed[i] / scale, group.noise[i] / scale)
            worst = max(worst, found, key=_excess)
        return self._result(*map(float, worst))

    @staticmethod
    def _allowed(tolerance: float, noise: float, exact: bool) -> float:
        return tolerance if exact else max(tolerance, MARGIN * noise)

    def _exact_verdict(self, quantum: float) -> Verdict:
        """Integers, booleans and text are equal, or as many differ as the model's own noise changes.

        Where noise changes many integers, they may be no further apart, all in all, than it moves them.
        """
        total, wrong, noisy = self.counts
        if not wrong or self.max_abs <= quantum:
            return self._result(0.0 if not wrong else quantum, quantum, noisy / max(total, 1))
        allowed = MARGIN * noisy / total
        if not np.issubdtype(np.dtype(self.dtype), np.number):
            allowed = min(allowed, _UNLIKE)
        elif allowed > _SAYS_LITTLE and self._apart > MARGIN * self._noise_apart:
            allowed = 0.0
        return self._result(wrong / total, allowed, noisy / total)

    def _result(self, found: float, allowed: float, noise: float) -> Verdict:
        idle = not self._alive and not self.mismatch
        return Verdict(self.max_abs, found, allowed, noise, self.same_bits, self.shape, self.dtype, idle)


def _excess(found: tuple[float, float, float]) -> float:
    gap, allowed, _ = found
    return 0.0 if gap == 0 else gap / allowed if allowed else float("inf")


def feature_axes(ndim: int) -> tuple[int, ...]:
    """The axes that may hold channels when nothing else is known: the last one, and axis 1 of three or more."""
    return (1, -1) if ndim > 2 else (-1,)


def _apart(a: Array, b: Array) -> Array:
    """Absolute differences of integers."""
    return np.asarray(np.abs(a.astype(np.float64) - b.astype(np.float64)))


def _wide(array: Array) -> Array:
    """Returns the array in a type that holds its differences: float32 for 16 bits."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _gap(expected: Array, actual: Array) -> Array:
    """Absolute difference; 0 where both are NaN or the same infinity, infinite where only one is."""
    a, b = _wide(expected), _wide(actual)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.asarray(np.abs(a - b))
    if not np.isfinite(gap.max()):
        gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
        gap[np.isnan(gap)] = np.inf
    return np.asarray(gap)


def _sizes(array: Array) -> Array:
    """Magnitudes, 0 for what is not finite."""
    sizes = np.asarray(np.abs(_wide(array)))
    if not np.isfinite(sizes.max()):
        sizes[~np.isfinite(sizes)] = 0
    return np.asarray(sizes)


def _typical(sizes: Array) -> float:
    """The typical magnitude of what is not zero: the median, over a part of a large array."""
    some = sizes.reshape(-1)[:: max(1, sizes.size // _SAMPLED)]
    positive = some[some > 0]
    return float(np.median(positive)) if positive.size else 0.0


def _fills(sizes: Array, typical: float) -> Array | None:
    """Elements far above the typical magnitude, ``None`` if there are none."""
    if typical == 0 or sizes.max() <= _FILL * typical:
        return None
    return np.asarray(sizes > _FILL * typical)
