"""Two fingerprints side by side: the same base, another one, or cannot tell.

Weights are matched by value, whatever they are called. What only one side has is no evidence: exporters drop what
nothing reads, merge and split, optimisers make new constants. Evidence against is a weight that has no match while
the other side has one of its shape without a match, too; or two matched weights of one shape in the other order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .sketch import DTYPES, QUANTISED, Array, Fingerprint, Sketch

Answer = Literal["same", "other", "unknown"]

ENOUGH = 0.5
"""The share of one side's elements that must be found on the other."""

_NOISE = {"float64": 2e-5, "float32": 2e-5, "float16": 4e-4, "bfloat16": 3e-3}
"""How far profiles may be apart on average: what folding and rounding in that type do, at most."""
_ROUNDING = {"float64": 1e-7, "float32": 1e-7, "float16": 5e-4, "bfloat16": 4e-3}
"""Half a unit in the last place, over the value."""
_QUANTISING = 0.6
"""What quantising does to a profile, over its noise: 0.23 on average over slices."""
_APART = 0.3
"""Profiles of unrelated weights are 0.7 apart on average over slices, with a spread of 0.17."""
_FLIPS = {"float16": 2, "bfloat16": 1}
"""So many of 12 rounded values may differ when a weight was scaled by almost 1 and cast; more when it was tuned."""
_FLUSHED = 1.2e-7
"""Smaller magnitudes become zero, or the smallest number, in float16."""
_FLOAT16 = 65504.0
_FILL = 1e6
"""Sets the curves of fills apart from others."""


@dataclass(frozen=True)
class Verdict:
    """The answer and, unless it is "same", what was expected and found, as the middle of a sentence."""

    answer: Answer
    reason: str = ""


def compare(expected: Fingerprint, found: Fingerprint) -> Verdict:
    """Tells whether two models have the same base.

    Args:
        expected: what an adapter was trained on.
        found: what it is to be put into.
    """
    if not expected.weights or not found.weights:
        if not expected.weights and not found.weights:
            return Verdict("same")
        side = "the adapter's" if not expected.weights else "the model's"
        return Verdict("unknown", f"{side} base has no weights that can be compared")
    matching = _Matching(expected, found)
    matching.exactly()
    matching.by_profile()
    against = matching.contradictions()
    if against:
        one, other = against[0]
        name = f" ({other.name!r})" if other.name else ""
        shape, values = tuple(one.dims), ", ".join(f"{v:.6g}" for v in (one.order[0], one.order[-1]))
        instead = ", ".join(f"{v:.6g}" for v in (other.order[0], other.order[-1]))
        return Verdict(
            "other",
            f"{len(against)} of its {len(expected.weights)} weights differ: expected one of shape {shape} with values "
            f"from {values.replace(', ', ' to ')}, found {instead.replace(', ', ' to ')}{name}",
        )
    swapped = matching.swapped()
    if swapped is not None:
        return Verdict("other", f"weights of shape {swapped.dims} have changed places, as {swapped.name or 'one'!r}")
    share = matching.share()
    if not matching.hits and not (expected.unread or found.unread):
        return Verdict("other", f"none of its {len(expected.weights)} weights is among the {len(found.weights)} found")
    if share < ENOUGH or not matching.has_matrix():
        return Verdict(
            "unknown",
            f"{len(matching.hits)} of its {len(expected.weights)} weights are among the {len(found.weights)} found, "
            f"{100 * share:.0f} % of the elements; expected {100 * ENOUGH:.0f} %",
        )
    return Verdict("same")


class _Matching:
    """Which weights of one side are which of the other.

    Attributes:
        groups: places of expected weights that are equal, and of the found ones that they are.
        hits: the places of all expected weights in the groups.
        taken: those of all found ones.
        folded: factors may have gone into weights, so that vectors are changed as well: some match is by profile
            alone, or some weights are not known.
    """

    def __init__(self, expected: Fingerprint, found: Fingerprint) -> None:
        self.expected, self.found = expected.weights, found.weights
        self.unread = expected.unread, found.unread
        self.groups: list[tuple[list[int], list[int]]] = []
        self.hits: set[int] = set()
        self.taken: set[int] = set()
        self.folded = any(self.unread)

    def exactly(self) -> None:
        """Matches weights that are equal after rounding both to the coarser of the two types."""
        kinds = sorted({weight.dtype for weight in self.found} - {QUANTISED})
        equal: dict[Any, list[int]] = defaultdict(list)
        for place, weight in enumerate(self.expected):
            if weight.dtype != QUANTISED:
                equal[weight.dtype, _entry(weight, weight.dtype)].append(place)
        tables: dict[tuple[str, str], dict[Any, list[int]]] = {}
        for (dtype, _), places in equal.items():
            others: list[int] = []
            for kind in kinds:
                coarse = max(kind, dtype, key=DTYPES.index)
                if (kind, coarse) not in tables:
                    tables[kind, coarse] = self._table(kind, coarse)
                others += tables[kind, coarse].get(_entry(self.expected[places[0]], coarse), ())
            self._match(places, others)

    def _table(self, kind: str, coarse: str) -> dict[Any, list[int]]:
        """The found weights of one type by their values in another."""
        table: dict[Any, list[int]] = defaultdict(list)
        for other, candidate in enumerate(self.found):
            if candidate.dtype == kind:
                table[_entry(candidate, coarse)].append(other)
        return table

    def by_profile(self) -> None:
        """Matches what is left as far as a factor per slice, an offset of a vector, or a quantiser explains it."""
        left: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for other, candidate in enumerate(self.found):
            if other not in self.taken:
                left[candidate.key].append(other)
        features = {key: _features([self.found[i] for i in places]) for key, places in left.items()}
        for place, weight in enumerate(self.expected):
            if place in self.hits or weight.key not in left:
                continue
            candidates = [self.found[i] for i in left[weight.key]]
            near = np.flatnonzero(_near(weight, candidates, features[weight.key]))
            self._match([place], [left[weight.key][i] for i in near])
            matched = [candidates[i] for i in near]
            self.folded |= any(QUANTISED not in (weight.dtype, other.dtype) for other in matched)
            self.folded |= bool(matched) and not any(_same_range(weight, other) for other in matched)

    def _match(self, places: list[int], others: list[int]) -> None:
        if others:
            self.groups.append((places, others))
            self.hits.update(places)
            self.taken.update(others)

    def contradictions(self) -> list[tuple[Sketch, Sketch]]:
        """Pairs of one shape without a match on either side."""
        mine = [weight for place, weight in enumerate(self.expected) if place not in self.hits]
        alone: dict[tuple[int, ...], list[Sketch]] = defaultdict(list)
        for other, candidate in enumerate(self.found):
            if other not in self.taken:
                alone[candidate.key].append(candidate)
        for places, others in self.groups:
            # One of many may have changed; exporters merge equal weights, but then all of them into one.
            if len(others) > 1:
                mine += [self.expected[i] for i in places[len(others) :]]
            if len(places) > 1:
                alone[self.found[others[0]].key] += [self.found[i] for i in others[len(places) :]]
        return [
            (weight, alone[weight.key].pop())
            for weight in mine
            if alone.get(weight.key) and not (self.folded and weight.profile is None)
        ]

    def swapped(self) -> Sketch | None:
        """A found weight that comes before another of its shape which it should come behind, or ``None``."""
        uses = Counter(other for _, others in self.groups for other in others)
        rows: dict[tuple[int, ...], list[tuple[int, int, int]]] = defaultdict(list)
        for places, others in self.groups:
            weight, other = self.expected[places[0]], self.found[others[0]]
            if len(places) == len(others) == uses[others[0]] == 1 and min(weight.depth, other.depth) > 0:
                rows[weight.key].append((weight.depth, other.depth, others[0]))
        for same in rows.values():
            above = reached = 0  # the deepest of those that come before this depth, and of those up to here
            before = None
            for depth, other_depth, place in sorted(same):
                if depth != before:
                    before, above = depth, reached
                if other_depth < above:
                    return self.found[place]
                reached = max(reached, other_depth)
        return None

    def share(self) -> float:
        """The larger of both sides' shares of matched elements."""
        sides = ((self.expected, self.hits, self.unread[0]), (self.found, self.taken, self.unread[1]))
        return max(
            sum(weights[i].size for i in matched) / (sum(weight.size for weight in weights) + unread)
            for weights, matched, unread in sides
        )

    def has_matrix(self) -> bool:
        """Whether a matrix is matched, or there is none to match."""
        return any(self.expected[i].profile is not None for i in self.hits) or all(
            weight.profile is None for weight in self.expected
        )


def _rounded(values: Array, dtype: str) -> Array:
    """Values as they are in a type; what float16 flushes or clips at its ends alike."""
    if dtype == "float16":
        return np.where(np.abs(values) <= _FLUSHED, 0, np.clip(values, -_FLOAT16, _FLOAT16)).astype(np.float16)
    if dtype == "bfloat16":
        from ..onnx_model.tensors import round_to_bfloat16

        return round_to_bfloat16(values)
    return values


def _entry(weight: Sketch, dtype: str) -> tuple[Any, ...]:
    """The sorted values in a type, as something to look up."""
    return weight.key, (_rounded(weight.order, dtype) + 0.0).tobytes()  # -0.0 becomes 0.0


def _features(weights: Sequence[Sketch]) -> Array:
    """The profiles ``(n, 2, 8)`` of matrices, or the shapes ``(n, 12)`` of the value curves of vectors."""
    if weights[0].profile is None:
        return np.stack([_curve(weight.order) for weight in weights])
    return np.stack([weight.profile for weight in weights if weight.profile is not None]).astype(np.float64)


def _curve(order: Array) -> Array:
    """Sorted values without their mean and spread; what has no spread as it is, far from all that has."""
    values = order.astype(np.float64)
    spread = float(values.std())
    curve: Array = (values - values.mean()) / spread if spread else values + _FILL
    return curve


def _near(weight: Sketch, others: Sequence[Sketch], features: Array) -> Array:
    """Which of *others* are *weight* with a factor per slice (matrices) or a factor and an offset (vectors)."""
    allowed = np.array([max(_tolerance(weight), _tolerance(other)) for other in others])
    if weight.profile is None:
        near: Array = np.abs(features - _curve(weight.order)).mean(1) <= allowed
        return near
    best = np.full(len(others), np.inf)
    for mine in (0, 1):
        own = weight.profile[mine].astype(np.float64)
        for theirs in (0, 1):
            same = np.array([weight.dims[mine] == other.dims[theirs] for other in others])
            gap = np.abs(features[:, theirs] - own).mean(1)
            best = np.where(same, np.minimum(best, gap), best)
    near = best <= allowed
    return np.array([ok and not _tuned(weight, other) for ok, other in zip(near, others, strict=True)])


def _tuned(weight: Sketch, other: Sketch) -> bool:
    """Whether two weights of 16 bits are almost, but not, equal value by value: no factor does that, training does."""
    coarse = max(weight.dtype, other.dtype, key=DTYPES.index)
    if coarse not in _FLIPS or {weight.dtype, other.dtype} == set(_FLIPS):
        return False
    one, two = (_rounded(w.order, coarse).astype(np.float64) for w in (weight, other))
    close = np.abs(one - two) <= 2.1 * _ROUNDING[coarse] * np.abs(one) + _FLUSHED
    return bool(close.all()) and int((one != two).sum()) > _FLIPS[coarse]


def _tolerance(weight: Sketch) -> float:
    """How far the profile, or the curve of a vector, may be from that of the same weight."""
    largest = float(np.abs(weight.order).max()) or 1.0
    if weight.profile is not None:
        return min(_QUANTISING * weight.noise, _APART) + 2e-5 if weight.dtype == QUANTISED else _NOISE[weight.dtype]
    error = weight.step if weight.dtype == QUANTISED else _ROUNDING[weight.dtype] * largest
    return 1e-5 + error / (float(weight.order.std(dtype=np.float64)) or 1.0)


def _same_range(weight: Sketch, other: Sketch) -> bool:
    """Whether the values reach as far as a quantiser explains, so that nothing was folded in."""
    gap = np.abs(other.order[[0, -1]] - weight.order[[0, -1]])
    return bool((gap <= max(other.step, weight.step)).all())
