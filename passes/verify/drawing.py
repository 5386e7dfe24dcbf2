"""Samples that exercise a model: drawn in the style that makes it answer with ordinary numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from laurel_graph.errors import ModelError, VerificationError
from laurel_graph.samples import STYLES, Sampler, Situation

from .compare import is_alive, is_float

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]
Ready = tuple[Situation, dict[str, Array]]
"""A situation, and what the model computes there on numbers of the first style."""

POSITIONS = 24
"""At how many places (rows, tokens, pixels) a model is run at least: a hidden feature that is silent at a few of them,
behind a ReLU for one, would otherwise hide what reads it."""

PROBED = next(iter(STYLES))
"""How floats are drawn to find out whether a model runs at all."""

SHORTER = (8, 4, 2, 1)
"""Lengths that are tried where a model runs on none of the usual one: its table of positions may be short."""


@dataclass
class Exercise:
    """Samples, and what the reference model computes on them.

    Attributes:
        samples: the inputs.
        results: value name to array, one mapping per sample.
        style: how the floats were drawn, "" for data that was given.
        refused: situations in which the model does not run, each with the reason; they are left out, and reported.
        situations: which situation each sample is; empty for data that was given.
    """

    samples: list[Mapping[str, Array]] = field(default_factory=list)
    results: list[dict[str, Array]] = field(default_factory=list)
    style: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    situations: list[str] = field(default_factory=list)

    def add(self, sample: Mapping[str, Array], run: Run) -> None:
        """Runs the reference on one more sample."""
        result = run(sample)
        self.samples.append(sample)
        self.results.append(result)

    def refuse(self, situation: str, error: ModelError) -> None:
        """Notes that the model itself does not run in a situation."""
        self.refused.setdefault(situation, str(error.__cause__ or error).strip())

    def idle(self, names: Sequence[str], finite: float = 1.0) -> list[str]:
        """Returns which of *names* no sample exercises; *finite* is the share of its numbers that must be finite."""
        return [name for name in names if not any(is_alive(r[name], finite) for r in self.results if name in r)]


def given(
    samples: Sequence[Mapping[str, Array]], run: Run, outputs: Sequence[str], sites: Sequence[str] = ()
) -> Exercise:
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
    if all(len(exercise.idle(names, finite=0.0)) == len(names) for names in (outputs, sites)):
        raise VerificationError(
            "the data does not exercise the model: on every sample all of its outputs are not finite, or the same "
            "everywhere, so that nothing can be compared. Give other data, or none to have samples drawn."
        )
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
    sampler = Sampler(model, sizes)
    situations, ready = _runnable_situations(sampler, run, batches, seed)
    best, fewest, refused = None, len(sites) + 1, None
    for style in STYLES:
        exercise = _draw(sampler, situations, run, batches, seed, style, ready)
        if not exercise.samples:
            refused = refused or exercise.refused
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
        if refused is not None and best is None:
            raise _unfit(refused)
        raise VerificationError(
            "no drawn sample exercises the model: on each of "
            f"{', '.join(STYLES)} numbers its values are not finite, or the same everywhere. Give it data of its own "
            "(--data, an .npz with one array per input)."
        )
    return best


def runnable(
    model: ModelProto, run: Run, *, batch: int, seed: int, sizes: Mapping[str, int] | None
) -> Mapping[str, Array]:
    """Returns the first drawn sample on which a model runs.

    Raises:
        ModelError: there is none.
    """
    sampler, exercise = Sampler(model, sizes), Exercise(style="normal")
    for at in sampler.situations((batch,)):
        tried(exercise, sampler.draw(at, seed=seed), run, at)
        if exercise.samples:
            return exercise.samples[0]
    raise _unfit(exercise.refused)


def _has_floats(exercise: Exercise) -> bool:
    return any(is_float(array) for sample in exercise.samples for array in sample.values())


def _has_nan(exercise: Exercise, outputs: Sequence[str]) -> bool:
    arrays = (result[name] for result in exercise.results for name in outputs if name in result)
    return any(bool(np.isnan(array.astype(np.float64)).any()) for array in arrays if is_float(array))


def _runnable_situations(
    sampler: Sampler, run: Run, batches: Sequence[int], seed: int
) -> tuple[list[Situation], Ready | None]:
    """Every situation at the usual length, or at the longest shorter one at which the model runs in any.

    The second item is what the model computes in the situation that showed it, on the first of the styles.
    """
    usual = sampler.situations(batches)
    probe = Exercise()

    def found(at: Situation) -> bool:
        tried(probe, sampler.draw(at, seed=seed, style=PROBED), run, at)
        return bool(probe.samples)

    for at in usual:
        if found(at):
            return usual, (at, probe.results[0])
    for length in SHORTER:
        shorter = sampler.situations(batches, length=length)
        for at in shorter:
            if found(at):
                return shorter, (at, probe.results[0])
    return usual, None


def _draw(
    sampler: Sampler,
    situations: Sequence[Situation],
    run: Run,
    batches: Sequence[int],
    seed: int,
    style: str,
    ready: Ready | None,
) -> Exercise:
    """Runs the reference in each situation, and on further rows until there are :data:`POSITIONS` places."""
    exercise = Exercise(style=style)
    for at in situations:
        sample = sampler.draw(at, seed=seed, style=style)
        if ready is not None and style == PROBED and at is ready[0]:
            exercise.samples.append(sample)
            exercise.results.append(ready[1])
            exercise.situations.append(str(at))
        else:
            tried(exercise, sample, run, at)
    if not exercise.samples:
        return exercise
    places = sum(map(_positions, exercise.samples))
    if places < POSITIONS:
        larger = sampler.situation(sampler.kinds[0], max(POSITIONS, *batches))
        for extra in range(1, POSITIONS):
            before = len(exercise.samples)
            tried(exercise, sampler.draw(larger, seed=seed + 2000 * extra, style=style), run, larger)
            if len(exercise.samples) == before:  # it says that its batch is free, and runs on few sizes
                break
            places += _positions(exercise.samples[-1])
            if places >= POSITIONS:
                break
    return exercise


def _positions(sample: Mapping[str, Array]) -> int:
    """At how many places a sample has features: rows of a matrix, tokens, pixels; every id is one."""
    found = 1
    for array in sample.values():
        if not is_float(array):
            found = max(found, array.size)
        elif array.ndim > 1 and array.size:
            found = max(found, array.shape[0], array.size // max(array.shape[1:]))
    return found


def tried(exercise: Exercise, sample: Mapping[str, Array], run: Run, at: object) -> None:
    """Adds a sample; one on which the model itself does not run is left out, with the reason."""
    try:
        exercise.add(sample, run)
    except ModelError as error:
        exercise.refuse(str(at), error)
    else:
        exercise.situations.append(str(at))


def _unfit(refused: Mapping[str, str]) -> ModelError:
    """The error for a model that runs on nothing that was drawn."""
    tried = "".join(f"\n  {at}: {reason.splitlines()[0]}" for at, reason in refused.items())
    return ModelError(
        "the model runs on no drawn sample. Give the sizes that it wants (--size NAME=N, may be repeated), or data of "
        f"its own (--data, an .npz with one array per input). Tried:{tried}"
    )
