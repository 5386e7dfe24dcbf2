"""Both models part by part: cut at their residuals, each part fed what the first model computes there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from laurel_graph.errors import VerificationError

from .compare import Comparison, is_alive, is_float
from .drawing import Exercise
from .pair import Pair, Subject, Watched
from .probe import COMPUTED, Runner, bring_out, cut, made_in

Array = NDArray[Any]

ALIVE = 0.5
"""The share of a site's numbers that must be finite for a sample to exercise it."""


def segments(pair: Pair, exercise: Exercise) -> dict[Watched, Comparison]:
    """Compares part by part; parts whose sites no sample exercises are fed normal numbers.

    Raises:
        VerificationError: a site stays idle all the same.
    """
    made = made_in(pair.first.model), made_in(pair.second.model)
    cuts = [item for item in pair.watched if item.is_site and item.name in made[0] and item.other in made[1]]
    cuts = [item for item in cuts if all(is_float(result[item.name]) for result in exercise.results)]
    if not cuts:
        return {}
    heads = [Watched(name, other) for name, other in pair.outputs.items() if name not in {c.name for c in cuts}]
    idle = set(exercise.idle([item.name for item in cuts], ALIVE))
    comparisons = {item: Comparison(item.axes, item not in heads) for item in (*pair.watched, *heads)}
    fed = [_fed(pair, cuts, result, idle) for result in exercise.results]
    reference = _cut_runner(pair, pair.first, {item.name: item for item in cuts}, fed[0], scaled=False)
    expected = []
    for sample, values in zip(exercise.samples, fed, strict=True):
        feeds = {**pair.widened(sample), **values}
        result = _restored(reference.run(feeds))
        expected.append(result)
        for _ in range(pair.draws(result)):
            moved = _restored(reference.run(pair.nudged(feeds)))
            for item, comparison in comparisons.items():
                comparison.add_noise(result[item.name], moved[item.name])
    living = [item for item in cuts if item.name not in pair.constant]
    if still := [item for item in living if not any(is_alive(result[item.name], ALIVE) for result in expected)]:
        raise VerificationError(
            f"no sample exercises the residual connection {still[0].site or still[0].name!r}: the sum "
            f"{still[0].name!r} is not finite, or the same everywhere. Give data that does (--data, an .npz with "
            "one array per input)."
        )
    del reference
    if pair.wide:  # folding stores products of 16-bit weights in 16 bits again
        first = {item.name: item for item in cuts}
        rounded = _cut_runner(pair, pair.first, first, fed[0], scaled=False, rounded=True)
        for sample, values, result in zip(exercise.samples, fed, expected, strict=True):
            moved = _restored(rounded.run({**pair.widened(sample), **values}))
            for item, comparison in comparisons.items():
                comparison.add_noise(result[item.name], moved[item.name])
        del rounded
    other = _cut_runner(pair, pair.second, {item.other: item for item in cuts}, fed[0], scaled=True)
    for sample, values, result in zip(exercise.samples, fed, expected, strict=True):
        stored = {item.other: item.stored(values[item.name]) for item in cuts}
        actual = _restored(other.run({**pair.widened(sample), **stored}))
        for item, comparison in comparisons.items():
            comparison.add(result[item.name], item.restored(actual[item.other], result[item.name]))
    return comparisons


def _fed(pair: Pair, cuts: Sequence[Watched], result: Mapping[str, Array], idle: set[str]) -> dict[str, Array]:
    """What the parts behind the cuts are fed: what the first model computes there, or numbers of our own."""
    fed = {}
    for item in cuts:
        array = result[item.name]
        if item.name in idle:
            array = pair.rng.standard_normal(array.shape).astype(array.dtype)
        fed[item.name] = array
    return fed


def _cut_runner(
    pair: Pair,
    subject: Subject,
    cuts: Mapping[str, Watched],
    fed: Mapping[str, Array],
    *,
    scaled: bool,
    rounded: bool = False,
) -> Runner:
    model = pair.prepared(subject, rounded)
    cut(model, {name: fed[item.name] for name, item in cuts.items()})
    names = [item.other if scaled else item.name for item in pair.watched]
    bring_out(model, [name for name in names if name not in cuts])
    return Runner(subject.path, model, False)


def _restored(results: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removesuffix(COMPUTED): array for name, array in results.items()}
