"""Two fingerprints side by side: the same base, another one, or cannot tell.

Weights are matched by value, whatever they are called. What only one side has is no evidence: exporters drop what
nothing reads, merge and split, optimisers make new constants. Evidence against is a weight that has no match while
the other side has one of its shape without a match, too; or two matched weights of one shape in the other order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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
_STEPS = 1.5
"""What quantising does to a profile, in steps over the largest magnitude."""
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
    matching = _Matching(expected.weights, found.weights)
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
    if not matching.hits:
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
        hits: place of an expected weight to the places of found ones that are it.
        folded: some match is by profile alone: factors went into weights, so vectors may be changed as well.
    """

    def __init__(self, expected: Sequence[Sketch], found: Sequence[Sketch]) -> None:
        self.expected, self.found = expected, found
        self.hits: dict[int, list[int]] = {}
        self.taken: set[int] = set()
        self.folded = False

    def exactly(self) -> None:
        """Matches weights that are equal after rounding both to the coarser of the two types."""
        tables: dict[tuple[str, str], dict[Any, list[int]]] = {}
        kinds = {weight.dtype for weight in self.found} - {QUANTISED}
        for place, weight in enumerate(self.expected):
            if weight.dtype == QUANTISED:
                continue
            for kind in sorted(kinds):
                coarse = max(kind, weight.dtype, key=DTYPES.index)
                if (kind, coarse) not in tables:
                    table = tables[kind, coarse] = defaultdict(list)
                    for other, candidate in enumerate(self.found):
                        if candidate.dtype == kind:
                            table[_rounded(candidate, coarse)].append(other)
                self._hit(place, tables[kind, coarse].get(_rounded(weight, coarse), ()))

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
            near = _near(weight, [self.found[i] for i in left[weight.key]], features[weight.key])
            hits = [other for other, is_near in zip(left[weight.key], near, strict=True) if is_near]
            self._hit(place, hits)
            floats = any(self.found[i].dtype != QUANTISED for i in hits) and weight.dtype != QUANTISED
            self.folded |= floats or (bool(hits) and not _same_range(weight, [self.found[i] for i in hits]))

    def _hit(self, place: int, others: Sequence[int]) -> None:
        if others:
            self.hits.setdefault(place, []).extend(others)
            self.taken.update(others)

    def contradictions(self) -> list[tuple[Sketch, Sketch]]:
        """Pairs of one shape without a match on either side."""
        mine = [self.expected[i] for i in range(len(self.expected)) if i not in self.hits]
        alone: dict[tuple[int, ...], list[Sketch]] = defaultdict(list)
        for other, candidate in enumerate(self.found):
            if other not in self.taken:
                alone[candidate.key].append(candidate)
        for places, others in self._equals():
            # One of many may have changed; exporters merge equal weights, but then all of them into one.
            if len(others) > 1:
                mine += [self.expected[i] for i in places[len(others) :]]
            if len(places) > 1:
                alone[self.found[others[0]].key] += [self.found[i] for i in others[len(places) :]]
        return [
            (weight, alone[weight.key].pop(0))
            for weight in mine
            if alone.get(weight.key) and not (self.folded and weight.profile is None)
        ]

    def _equals(self) -> Iterator[tuple[list[int], list[int]]]:
        """Expected weights that are equal to each other, and the found ones that they are."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, others in self.hits.items():
            groups[tuple(others)].append(place)
        for others, places in groups.items():
            yield places, list(others)

    def swapped(self) -> Sketch | None:
        """A found weight that comes before another of its shape which it should come behind, or ``None``."""
        uses = Counter(other for others in self.hits.values() for other in others)
        groups: dict[tuple[int, ...], list[tuple[int, int, int]]] = defaultdict(list)
        for place, others in self.hits.items():
            weight = self.expected[place]
            if len(others) == 1 and uses[others[0]] == 1 and min(weight.depth, self.found[others[0]].depth) > 0:
                groups[weight.key].append((weight.depth, self.found[others[0]].depth, others[0]))
        for rows in groups.values():
            deepest = reached = 0
            before = None
            for depth, other_depth, other in sorted(rows):
                if depth != before:
                    before, deepest = depth, reached
                if other_depth < deepest:
                    return self.found[other]
                reached = max(reached, other_depth)
        return None

    def share(self) -> float:
        """The larger of both sides' shares of matched elements."""
        matched = sum(self.expected[i].size for i in self.hits) / sum(w.size for w in self.expected)
        return max(matched, sum(self.found[i].size for i in self.taken) / sum(w.size for w in self.found))

    def has_matrix(self) -> bool:
        """Whether a matrix is matched, or there is none to match."""
        return any(self.expected[i].profile is not None for i in self.hits) or all(
            weight.profile is None for weight in self.expected
        )


def _rounded(weight: Sketch, dtype: str) -> tuple[Any, ...]:
    """The sorted values in a type, as something to look up."""
    values = weight.order
    if dtype == "float16":
        values = np.where(np.abs(values) <= _FLUSHED, 0, np.clip(values, -_FLOAT16, _FLOAT16)).astype(np.float16)
    elif dtype == "bfloat16":
        from ..onnx_tensors import round_to_bfloat16

        values = round_to_bfloat16(values)
    return weight.key, (values + 0.0).tobytes()  # -0.0 becomes 0.0


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
            gap = np.abs(features[:, theirs] - own).mean(1) / max(float(own.mean()), 1e-9)
            best = np.where(same, np.minimum(best, gap), best)
    near = best <= allowed
    return near


def _tolerance(weight: Sketch) -> float:
    """How far the profile, or the curve of a vector, may be from that of the same weight."""
    largest = float(np.abs(weight.order).max()) or 1.0
    if weight.profile is not None:
        return _STEPS * weight.step / largest if weight.dtype == QUANTISED else _NOISE[weight.dtype]
    error = weight.step if weight.dtype == QUANTISED else _ROUNDING[weight.dtype] * largest
    return 1e-5 + error / (float(weight.order.std(dtype=np.float64)) or 1.0)


def _same_range(weight: Sketch, others: Sequence[Sketch]) -> bool:
    """Whether the values reach as far as a quantiser explains, so that nothing was folded in."""
    ends = weight.order[[0, -1]]
    return any((np.abs(other.order[[0, -1]] - ends) <= max(other.step, weight.step)).all() for other in others)
