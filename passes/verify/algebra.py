"""The algebra of both models: optimisation and rounding to integers off, every watched value and every output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from laurel_graph.errors import ModelError

from .compare import Comparison
from .drawing import Exercise
from .pair import Pair, Watched
from .probe import Runner, Sample, bring_out, open_vectors

Array = NDArray[Any]


def reference(
    pair: Pair, choose: Callable[..., Exercise]
) -> tuple[Exercise, dict[Watched, Comparison], dict[str, Comparison]]:
    """Runs the first model: returns the samples with its values, and the comparisons with its noise in them."""
    runner, vectors = _reference_runner(pair)

    def run(sample: Sample) -> dict[str, Array]:
        return runner.run({**vectors, **pair.widened(sample)})

    sites = [item.name for item in pair.watched if item.is_site and item.name not in pair.constant]
    exercise = choose(run, list(pair.outputs), sites)
    values = {item: Comparison(item.axes, alike=True) for item in pair.watched}
    algebra = {name: Comparison() for name in pair.outputs}
    for sample, result in zip(exercise.samples, exercise.results, strict=True):
        for _ in range(pair.draws(result)):
            moved = runner.run(pair.nudged({**vectors, **pair.widened(sample)}, whole=True))
            add_noise(algebra, result, moved)
            for item, comparison in values.items():
                comparison.add_noise(result[item.name], moved[item.name])
    return exercise, values, algebra


def _reference_runner(pair: Pair) -> tuple[Runner, dict[str, Array]]:
    """Returns what runs the first model's algebra, and the vectors that it takes as inputs.

    Not every operator of a 16-bit model may know float32: where a copy in it does not load, both models stay.
    """
    try:
        return _opened_runner(pair)
    except ModelError:
        if not pair.wide:
            raise
        pair.wide = False
        return _opened_runner(pair)


def _opened_runner(pair: Pair) -> tuple[Runner, dict[str, Array]]:
    model = pair.prepared(pair.first)
    vectors = open_vectors(model, pair.first.path.parent)
    bring_out(model, [item.name for item in pair.watched])
    return Runner(pair.first.path, model, False), vectors


def compare(
    pair: Pair, exercise: Exercise, values: Mapping[Watched, Comparison], algebra: Mapping[str, Comparison]
) -> None:
    """Runs the second model and adds its differences to the comparisons."""
    model = pair.prepared(pair.second)
    bring_out(model, [item.other for item in values])
    runner = Runner(pair.second.path, model, False)
    for sample, expected in zip(exercise.samples, exercise.results, strict=True):
        actual = runner.run(pair.widened(sample))
        for name, comparison in algebra.items():
            comparison.add(expected[name], actual[pair.outputs[name]])
        for item, comparison in values.items():
            comparison.add(expected[item.name], item.restored(actual[item.other], expected[item.name]))


def add_noise(comparisons: Mapping[str, Comparison], result: Mapping[str, Array], moved: Mapping[str, Array]) -> None:
    """Adds to each comparison, by name, what its value moved by."""
    for name, comparison in comparisons.items():
        comparison.add_noise(result[name], moved[name])
