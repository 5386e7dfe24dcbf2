"""Which positive factor each value of a graph may be stored at: a union-find whose links carry factors and powers.

A value v is stored as v / s(v). Operators link the scales of what they read and make: ReLU gives ``s(out) = s(in)``, a
square ``s(out) = s(in)²``, a residual ``s(out) = β·s(x) = α·s(f)``; a linear map with weights links nothing, because
its weights take any factor. Linked values form a *component*; within it every scale is ``c(v)·g^e(v)`` of one unknown
g, which stays free until something fixes it. Factors are float64 scalars or one number per channel.

Values of 16-bit types may be stored smaller than they are, never larger, so that nothing overflows that did not: their
scales are at least 1, at most a few bits apart, and squares and quotients of them stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SAME = 1e-9
WIDE = 2.0**40
"""The largest ratio of two scales in one component in float32 and float64."""


def _uniform(a: Array) -> bool:
    return a.ndim == 0 or bool(np.all(np.abs(a / a.flat[0] - 1) < _SAME))


def _flat(a: Array) -> Array:
    """Returns a scalar for a factor that is the same in every channel."""
    return np.asarray(a.flat[0]) if a.ndim and _uniform(a) else a


def same(a: Array, b: Array | float) -> bool:
    """Whether two factors agree to nine digits."""
    return bool(np.all(np.abs(np.asarray(a) / np.asarray(b) - 1) < _SAME))


@dataclass(frozen=True)
class _Span:
    """Between which sizes some scales lie, those of 16-bit values once more, and how far apart the latter may be."""

    low: float
    high: float
    least: float = np.inf
    most: float = 0.0
    limit: float = np.inf

    def joined(self, other: _Span) -> _Span:
        """Returns the span of both."""
        return _Span(
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.least, other.least),
            max(self.most, other.most),
            min(self.limit, other.limit),
        )

    def is_safe(self, fixed: bool) -> bool:
        """Whether the range of the stored types is; scales that are not *fixed* may still grow together."""
        if not np.isfinite(self.high) or self.low <= 0 or self.high / self.low > WIDE:
            return False
        if not self.most:
            return True
        least = 1.0 if fixed else self.least
        return self.most / least <= self.limit * (1 + _SAME) and not (fixed and self.least < 1 - _SAME)


@dataclass
class _Component:
    """Values whose scales hang together: ``scale(v) = factor[v] · g ** power[v]``.

    Attributes:
        span: of all factors.
        factor: c of each value.
        power: e of each value.
        fixed: g is known to be 1.
        uniform: some value here must have the same scale in every channel.
        positive: some value here must have a positive scale.
    """

    span: _Span
    factor: dict[str, Array] = field(default_factory=dict)
    power: dict[str, float] = field(default_factory=dict)
    fixed: bool = False
    uniform: bool = False
    positive: bool = False


class ScaleSystem:
    """Collects links and demands; every method that adds one says whether it could be kept, and changes nothing if not.

    Args:
        limit: for a value of a 16-bit type, the largest scale it may have; ``None`` for any other.
    """

    def __init__(self, limit: Callable[[str], float | None] = lambda _: None) -> None:
        self.limit = limit
        self._component: dict[str, _Component] = {}

    def _of(self, value: str) -> _Component:
        if value not in self._component:
            one = np.asarray(1.0)
            self._component[value] = _Component(self._span({value: one}), {value: one}, {value: 1.0})
        return self._component[value]

    def is_fixed(self, value: str) -> bool:
        """Whether the scale of *value* is known already."""
        return self._of(value).fixed

    def together(self, a: str, b: str) -> bool:
        """Whether the scales of two values hang together already."""
        return self._of(a) is self._of(b)

    def members(self, value: str) -> set[str]:
        """Returns the values whose scales hang together with that of *value*."""
        return set(self._of(value).factor)

    def demand_positive(self, value: str) -> bool:
        """Asks that the scale of *value* be positive."""
        component = self._of(value)
        if np.any(component.factor[value] <= 0):
            return False
        component.positive = True
        return True

    def demand_uniform(self, value: str) -> bool:
        """Asks that the scale of *value* be one number for all channels."""
        component = self._of(value)
        if not _uniform(component.factor[value]):
            return False
        component.uniform = True
        return True

    def fix(self, value: str) -> bool:
        """Asks that *value* be stored as it is (scale 1)."""
        component = self._of(value)
        factor, power = component.factor[value], component.power[value]
        if component.fixed or power == 0:
            return same(factor, 1.0)
        return self._solve(component, np.asarray(1.0) / factor, 1 / power)

    def _solve(self, component: _Component, base: Array, power: float) -> bool:
        """Sets g = base ** power and folds it into the factors."""
        base = _flat(base)
        if (np.any(base <= 0) and (power != 1 or component.positive)) or (component.uniform and base.ndim):
            return False
        g = base if power == 1 else base**power
        scaled = {
            v: _flat(c * (g if component.power[v] == 1 else g ** component.power[v]))
            for v, c in component.factor.items()
        }
        span = self._span(scaled)
        if not span.is_safe(fixed=True):
            return False
        component.factor, component.span = scaled, span
        component.fixed = True
        return True

    def _span(self, factors: dict[str, Array]) -> _Span:
        sizes = {v: np.abs(c) for v, c in factors.items()}
        ends = {v: (float(c.min()), float(c.max())) for v, c in sizes.items()}
        low, high = min(low for low, _ in ends.values()), max(high for _, high in ends.values())
        narrow = {v: limit for v in factors if (limit := self.limit(v)) is not None}
        if not narrow:
            return _Span(low, high)
        least, most = min(ends[v][0] for v in narrow), max(ends[v][1] for v in narrow)
        return _Span(low, high, least, most, min(narrow.values()))

    def is_plain(self, a: str, b: str, sign: int) -> bool:
        """Whether ``s(a) · s(b) ** sign`` hangs on the unknown factor as the scale of one value does, or not at all."""
        powers = [0.0 if self._of(v).fixed else self._of(v).power[v] for v in (a, b)]
        return powers[0] + sign * powers[1] in (0.0, 1.0)

    def define(self, value: str, a: str, b: str, sign: int) -> bool:
        """Links a new *value* to ``s(a) · s(b) ** sign``, for values that hang together or of which one is fixed."""
        first, second = self._of(a), self._of(b)
        factor = first.factor[a] * second.factor[b] ** sign
        if first is second:
            power = first.power[a] + sign * first.power[b]
            home = first
        elif second.fixed:
            home, power = first, first.power[a]
        elif first.fixed:
            home, power = second, sign * second.power[b]
        else:
            return False
        if power == 0 or home.fixed:
            alone = {value: _flat(factor)}
            self._component[value] = _Component(self._span(alone), alone, {value: 1.0}, fixed=True)
            return True
        home.factor[value], home.power[value] = _flat(factor), power
        home.span = home.span.joined(self._span({value: factor}))
        self._component[value] = home
        return True

    def link(self, a: str, b: str, factor: Array | float = 1.0, power: float = 1.0) -> bool:
        """Asks for ``s(a) = factor · s(b) ** power``."""
        k = np.asarray(factor, np.float64)
        if not np.all(np.isfinite(k)) or np.any(k == 0):
            return False
        first, second = self._of(a), self._of(b)
        left, right = first.factor[a], k * second.factor[b] ** power
        p, q = first.power[a], second.power[b] * power
        if first is second:
            if first.fixed or p == q:
                return same(left, right)
            return self._solve(first, right / left, 1 / (p - q))
        if first.fixed and second.fixed:
            return same(left, right)
        if q and not second.fixed and self._absorb(first, second, left / right, 1 / q, p / q):
            return True
        return bool(p) and not first.fixed and self._absorb(second, first, right / left, 1 / p, q / p)

    def _absorb(self, home: _Component, guest: _Component, base: Array, root: float, power: float) -> bool:
        """Moves *guest* into *home* by g_guest = base ** root · g_home ** power."""
        base = _flat(base)
        if (np.any(base <= 0) and (root != 1 or guest.positive)) or (guest.uniform and base.ndim):
            return False
        g = base if root == 1 else base**root
        moved = {v: _flat(c * (g if guest.power[v] == 1 else g ** guest.power[v])) for v, c in guest.factor.items()}
        span = home.span.joined(self._span(moved))
        if not span.is_safe(home.fixed):
            return False
        home.factor.update(moved)
        home.span = span
        for value, old in guest.power.items():
            home.power[value] = 0.0 if home.fixed else old * power
            self._component[value] = home
        home.uniform |= guest.uniform
        home.positive |= guest.positive
        return True

    def solve(self, order: list[str]) -> dict[str, Array]:
        """Fixes what is still free and returns the scale of every value that is not stored as it is.

        The first value in *order* of each component keeps its scale; where there are values of 16-bit types, the one
        of them that would be stored largest does.
        """
        for value in order:
            component = self._component.get(value)
            if component is None or component.fixed or component.power[value] == 0:
                continue
            factor, power = component.factor[value], component.power[value]
            if component.span.most:
                factor, power = np.asarray(component.span.least), 1.0
            elif component.uniform and factor.ndim:
                factor = np.exp(np.mean(np.log(np.abs(factor))))
            if not self._solve(component, np.asarray(1.0) / factor, 1 / power):
                self._solve(component, np.asarray(1.0), 1.0)
        return {v: _flat(c.factor[v]) for v, c in self._component.items() if not same(c.factor[v], 1.0)}
