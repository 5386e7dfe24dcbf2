"""Both files as they are served: what ONNX Runtime gives a user, beside what the first file gives against itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import ModelError
from laurel_graph.onnx_model.walk import copy_of

from .algebra import add_noise
from .compare import MARGIN, Comparison, is_float
from .drawing import Exercise
from .pair import NUDGE, Pair, Subject
from .probe import Runner, open_vectors, seed_draws

Array = NDArray[Any]

_QUANTISED_NUDGE = 32.0
"""NUDGE in a model that rounds activations: rare flips of integers must have a chance to happen."""


def served(pair: Pair, exercise: Exercise) -> dict[str, Comparison]:
    """Compares what both files answer, each with the optimisation that it is served with."""
    comparisons = {name: Comparison() for name in pair.outputs}
    server = _server(pair.first, pair.optimize[0])
    exercise, expected = _runnable(exercise, server)
    del server
    _add_served_noise(pair, comparisons, exercise, expected)
    server = _server(pair.second, pair.optimize[1])
    for sample, result in zip(exercise.samples, expected, strict=True):
        actual = server.run(sample)
        for name, comparison in comparisons.items():
            comparison.add(result[name], actual[pair.outputs[name]])
    return comparisons


def _add_served_noise(
    pair: Pair, comparisons: Mapping[str, Comparison], exercise: Exercise, expected: Sequence[Mapping[str, Array]]
) -> None:
    """Adds what the first file's outputs move by: optimised or not, its numbers moved by their last bits."""
    if pair.optimize[0] and not pair.rounds and not pair.wide:  # the reference ran just this
        for plain, result in zip(exercise.results, expected, strict=True):
            add_noise(comparisons, result, plain)
    else:
        runner = _server(pair.first, not pair.optimize[0])
        for sample, result in zip(exercise.samples, expected, strict=True):
            with suppress(ModelError):  # a file that runs one way only has the other noise alone
                add_noise(comparisons, result, runner.run(sample))
        del runner
    if pair.rounds:
        for plain, result in zip(exercise.results, expected, strict=True):
            add_noise(comparisons, result, _towards(result, plain, 2 / MARGIN))
    model = copy_of(pair.first.model)
    seed_draws(model)
    vectors = open_vectors(model, pair.first.path.parent)
    moving = Runner(pair.first.path, model, pair.optimize[0])
    for sample, result, inside in zip(exercise.samples, expected, exercise.results, strict=True):
        nudges = [NUDGE] * pair.draws(inside) + [_QUANTISED_NUDGE] * pair.rounds
        for ulps in nudges:
            add_noise(comparisons, result, moving.run(pair.nudged({**vectors, **sample}, ulps, whole=True)))


def _server(subject: Subject, optimize: bool) -> Runner:
    """The file as a user opens it; a copy in memory only of a part of it, and where random numbers need a seed."""
    copy = copy_of(subject.model)
    return Runner(subject.path, copy if seed_draws(copy) or subject.part else None, optimize)


def _runnable(exercise: Exercise, server: Runner) -> tuple[Exercise, list[dict[str, Array]]]:
    """Returns the samples on which a file runs as it is served, and its outputs.

    ONNX Runtime's optimisation relies on shapes that a file states, and refuses drawn samples where those are wrong;
    *exercise* is told which.

    Raises:
        ModelError: there are none, or a sample is given data.
    """
    kept, outputs, refused = Exercise(style=exercise.style), [], None
    for i, (sample, result) in enumerate(zip(exercise.samples, exercise.results, strict=True)):
        try:
            outputs.append(server.run(sample))
        except ModelError as error:
            if not exercise.style:
                raise
            refused = error
            exercise.refuse(f"{exercise.situations[i]}, as it is served", error)
            continue
        kept.samples.append(sample)
        kept.results.append(result)
    if refused is not None and not outputs:
        raise refused
    return kept, outputs


def _towards(result: Mapping[str, Array], plain: Mapping[str, Array], share: float) -> dict[str, Array]:
    """Floats moved by *share* towards what they are without rounding to integers.

    An integer that flips moves what follows by at most twice what rounding it did; whether one flips while noise is
    measured is chance where few numbers are computed, so that what rounding does has to stand for it.
    """
    moved = {name: array for name, array in result.items() if is_float(array) and array.shape == plain[name].shape}
    return {
        name: array
        if name not in moved
        else array.astype(np.float32) + share * (plain[name] - array.astype(np.float32))
        for name, array in result.items()
    }
