"""Samples that exercise a model: drawn in the style that makes it answer with ordinary numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from laurel_graph.errors import ModelError, VerificationError
from laurel_graph.samples import STYLES, has_masks, open_dims, sample_inputs

from .compare import is_float

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]

ROWS = 4
"""A model whose batch is fixed is run on as many samples as give this many rows."""

POSITIONS = 24
"""A model that computes each feature at fewer places than this gets further rows.

A hidden feature is silent behind a ReLU in half of all places; what is wrong in it must show in some.
"""

SHORTER = (8, 4, 2, 1)
"""Sizes of symbolic dims, tried in turn where a model runs at no usual size: its table of positions may be short."""


@dataclass
class Exercise:
    """Samples, and what the reference model computes on them.

    Attributes:
        samples: the inputs.
        results: value name to array, one mapping per sample.
        style: how the floats were drawn, "" for data that was given.
    """

    samples: list[Mapping[str, Array]] = field(default_factory=list)
    results: list[dict[str, Array]] = field(default_factory=list)
    style: str = ""

    def add(self, sample: Mapping[str, Array], run: Run) -> None:
        """Runs the reference on one more sample."""
        self.samples.append(sample)
        self.results.append(run(sample))

    def idle(self, names: Sequence[str], finite: float = 1.0) -> list[str]:
        """Returns which of *names* no sample exercises; *finite* is the share of its numbers that must be finite."""
        return [name for name in names if not any(is_alive(r[name], finite) for r in self.results if name in r)]


def is_alive(array: Array, finite: float = 1.0) -> bool:
    """Whether an array of floats is evidence: finite (a share of it), not all zero, not the same number everywhere."""
    if not is_float(array) or array.size == 0:
        return array.size > 0
    values = array.astype(np.float64)
    ordinary = values[np.isfinite(values)]
    if not ordinary.any() or ordinary.size < finite * values.size:
        return False
    return values.size == 1 or bool(np.ptp(ordinary) > 0)


def given(samples: Sequence[Mapping[str, Array]], run: Run, outputs: Sequence[str]) -> Exercise:
    """Runs the reference on samples that a person gave.

    Raises:
        ModelError: there are none, or they hold no rows.
    """
    if not samples:
        raise ModelError("there are no samples to compare on: the data is empty.")
    exercise = Exercise()
    for sample in samples:
        exercise.add({name: np.asarray(array) for name, array in sample.items()}, run)
        if outputs and all(exercise.results[-1][name].size == 0 for name in outputs if name in exercise.results[-1]):
            shapes = {name: np.shape(array) for name, array in sample.items()}
            raise ModelError(f"nothing can be compared: the data holds no rows ({shapes}); expected at least one.")
    return exercise


def drawn(
    model: ModelProto,
    run: Run,
    outputs: Sequence[str],
    sites: Sequence[str],
    *,
    batches: Sequence[int],
    seed: int,
    sizes: Mapping[str, int] | None,
) -> Exercise:
    """Draws samples in the first style that exercises all *sites* and some output, else in the one that does most.

    Raises:
        ModelError: the model runs on no drawn sample, or a batch size is below 1.
        VerificationError: it runs, but answers nothing that could be compared.
    """
    if not batches or min(batches) < 1:
        raise ModelError(f"batch sizes must be at least 1, found {list(batches)}.")
    try:
        return _in_some_style(model, run, outputs, sites, batches, seed, sizes)
    except ModelError:
        for size in SHORTER if (names := open_dims(model)) else ():
            with suppress(ModelError):
                chosen = {**dict.fromkeys(names, size), **(sizes or {})}
                return _in_some_style(model, run, outputs, sites, batches, seed, chosen)
        raise


def _in_some_style(
    model: ModelProto,
    run: Run,
    outputs: Sequence[str],
    sites: Sequence[str],
    batches: Sequence[int],
    seed: int,
    sizes: Mapping[str, int] | None,
) -> Exercise:
    """See :func:`drawn`."""
    best, fewest, failure = None, len(sites) + 1, None
    for style in STYLES:
        try:
            exercise = _draw(model, run, batches, seed, sizes, style)
        except ModelError as error:
            failure = failure or error
            continue
        idle = len(exercise.idle(sites))
        answers = len(exercise.idle(outputs)) < len(outputs) and not _has_nan(exercise, outputs)
        if answers and idle == 0:
            return exercise
        if idle < fewest and (sites or answers):
            best, fewest = exercise, idle
        if not _has_floats(exercise):
            break
    if best is None or fewest == len(sites) > 0:
        if failure is not None and best is None:
            raise failure
        raise VerificationError(
            "no drawn sample exercises the model: on each of "
            f"{', '.join(STYLES)} numbers its values are not finite, or the same everywhere. Give it data of its own "
            "(--data, an .npz with one array per input)."
        )
    return best


def _has_floats(exercise: Exercise) -> bool:
    return any(is_float(array) for sample in exercise.samples for array in sample.values())


def _has_nan(exercise: Exercise, outputs: Sequence[str]) -> bool:
    arrays = (result[name] for result in exercise.results for name in outputs if name in result)
    return any(bool(np.isnan(array.astype(np.float64)).any()) for array in arrays if is_float(array))


def _draw(
    model: ModelProto,
    run: Run,
    batches: Sequence[int],
    seed: int,
    sizes: Mapping[str, int] | None,
    style: str,
) -> Exercise:
    exercise = Exercise(style=style)
    for sample in _samples(model, batches, seed, sizes, style):
        exercise.add(sample, run)
    _add_rows(exercise, run, model, batches, seed, sizes, style)
    if has_masks(model):
        ragged = sample_inputs(model, batch=max(batches), seed=seed, sizes=sizes, style=style, ragged=True)
        try:
            result = run(ragged)
        except ModelError:  # this model takes no such masks; the others exercise it
            return exercise
        exercise.samples.append(ragged)
        exercise.results.append(result)
    return exercise


def _add_rows(
    exercise: Exercise,
    run: Run,
    model: ModelProto,
    batches: Sequence[int],
    seed: int,
    sizes: Mapping[str, int] | None,
    style: str,
) -> None:
    """Adds rows until there are :data:`POSITIONS`: one larger batch, or more samples where the batch is fixed."""
    places = sum(map(_positions, exercise.samples))
    for extra in range(1, POSITIONS):
        if places >= POSITIONS:
            return
        further = sample_inputs(
            model, batch=max(POSITIONS, *batches), seed=seed + 2000 * extra, sizes=sizes, style=style
        )
        try:
            exercise.add(further, run)
        except ModelError:  # it says that its batch is free, and runs on none but those that were asked for
            exercise.samples.pop()
            return
        places += _positions(further)


def _positions(sample: Mapping[str, Array]) -> int:
    """At how many places a sample has features: rows of a matrix, tokens, pixels; every id is one."""
    found = 1
    for array in sample.values():
        if not is_float(array):
            found = max(found, array.size)
        elif array.ndim > 1 and array.size:
            found = max(found, array.shape[0], array.size // max(array.shape[1:]))
    return found


def _samples(
    model: ModelProto, batches: Sequence[int], seed: int, sizes: Mapping[str, int] | None, style: str
) -> Iterator[dict[str, Array]]:
    """One sample for each batch size; where the model fixes its batch, others of that size up to :data:`ROWS` rows."""
    shapes: list[tuple[tuple[int, ...], ...]] = []
    for batch in batches:
        sample = sample_inputs(model, batch=batch, seed=seed, sizes=sizes, style=style)
        shape = tuple(array.shape for array in sample.values())
        if shape not in shapes:
            shapes.append(shape)
            yield sample
    rows = sum(shape[0][0] if shape and shape[0] else 1 for shape in shapes)
    for extra in range(1, ROWS + 1 - rows if len(shapes) == 1 else 1):
        yield sample_inputs(model, batch=batches[0], seed=seed + 1000 * extra, sizes=sizes, style=style)
