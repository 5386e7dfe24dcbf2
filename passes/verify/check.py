"""Holds two models against each other at their outputs and at every site, beside the noise of the first one.

Three comparisons, each of which the second model has to pass:

*algebra*    ONNX Runtime's optimisation and rounding to integers are off in both; every sum that a residual makes,
             every value that is stored at another scale and every output is compared.
*segments*   the same, but both graphs are cut at their residuals and each part is fed what the first model computed
             there: errors of earlier parts neither hide nor excuse those of later ones.
*served*     both files as they are served; their outputs are compared.

What may differ is the tolerance, or what the first model itself does where its numbers are moved by their last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from laurel_graph.errors import ModelError, VerificationError

from .compare import EPSILON, MARGIN, Comparison, Verdict, is_float
from .drawing import Exercise, drawn, given, is_alive
from .precision import fits_float32, half_type, in_float32
from .probe import COMPUTED, Runner, Sample, bring_out, copy_of, cut, made_in, nudged, open_vectors, seed_draws
from .quantisers import rounds_activations, unrounded

Array = NDArray[Any]

NUDGE = 2.0
"""By how many units in the last place numbers are moved to measure a model's noise.

What is computed in 16 bits is moved by half a unit: those types round every result by as much.
"""

_DRAWS = 4
"""How often that is done for each sample; less often where so many numbers are compared that each channel has many."""

_MANY = 1 << 21
"""Numbers on one sample from which on fewer draws are enough: one of a float32 model, two of one that rounds."""

_QUANTISED_NUDGE = 32.0
"""The same in a model that rounds activations: rare flips of integers must have a chance to happen."""

_HALF_TYPES = ("float16", "bfloat16")

ALIVE = 0.5
"""The share of a site's numbers that must be finite for a sample to exercise it."""


@dataclass(frozen=True, eq=False)
class Watched:
    """One value that is compared.

    Attributes:
        name: its name in the first model.
        other: its name in the second one.
        site: the residual connection it belongs to, or "".
        scale: the second model's value times this is the first one's; it broadcasts against the value.
        axes: the feature axes, or ``None`` where they are unknown.
        is_site: it is the sum that a residual makes.
    """

    name: str
    other: str
    site: str = ""
    scale: Array = field(default_factory=lambda: np.asarray(1.0))
    axes: tuple[int, ...] | None = None
    is_site: bool = False


@dataclass(frozen=True)
class Subject:
    """One of the two models: its file, and what the file holds."""

    path: Path
    model: ModelProto


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        outputs: output of the first model to verdict, as served.
        algebra: the same with optimisation and rounding to integers off.
        values: watched value (as it is called in the first model, and its site) to the worse of its verdicts.
        samples: how many samples were run.
        style: how they were drawn, "" for given data.
    """

    outputs: Mapping[str, Verdict]
    algebra: Mapping[str, Verdict]
    values: Mapping[Watched, Verdict]
    samples: int
    style: str


class Check:
    """One comparison of two models.

    Args:
        first: the reference.
        second: the other one, with the same inputs and outputs.
        watched: what is compared besides the outputs.
        tolerance: element type to the largest difference over a channel's scale.
        exact: the tolerance is meant as it is; noise adds nothing to it.
    """

    def __init__(
        self,
        first: Subject,
        second: Subject,
        watched: Sequence[Watched] = (),
        *,
        tolerance: Callable[[str], float],
        exact: bool = False,
        optimize: tuple[bool, bool] = (True, True),
    ) -> None:
        self.first, self.second, self.watched = first, second, tuple(watched)
        self.tolerance, self.exact, self.optimize = tolerance, exact, optimize
        self.rounds = rounds_activations(first.model) or rounds_activations(second.model)
        self.rng = np.random.default_rng(0)
        self.outputs: dict[str, str] = {}
        self.half = half_type(first.model) or half_type(second.model)
        self.wide = bool(self.half) and fits_float32(first.model) and fits_float32(second.model)

    # ---- the whole ----------------------------------------------------------------------------------------------

    def on_data(self, samples: Sequence[Sample]) -> Findings:
        """Compares on samples that a person gave; see :func:`~laurel_graph.passes.verify.drawing.given`."""
        return self._run(lambda run, outputs, sites: given(samples, run, outputs))

    def on_drawn(self, batches: Sequence[int], seed: int, sizes: Mapping[str, int] | None) -> Findings:
        """Compares on drawn samples; see :func:`~laurel_graph.passes.verify.drawing.drawn`."""
        return self._run(
            lambda run, outputs, sites: drawn(
                self.first.model, run, outputs, sites, batches=batches, seed=seed, sizes=sizes
            )
        )

    def _run(self, choose: Callable[..., Exercise]) -> Findings:
        self._match_outputs()
        exercise, values, algebra = self._reference(choose)
        self._compare(exercise, values, algebra)
        segments = self._segments(exercise)
        served = self._served(exercise)
        verdicts = {item: self._verdict(comparison) for item, comparison in values.items()}
        heads = {name: self._verdict(comparison) for name, comparison in algebra.items()}
        for item, comparison in segments.items():
            verdict = self._verdict(comparison, part=True)
            if item in verdicts:
                verdicts[item] = _worse(verdicts[item], verdict)
            else:
                heads[item.name] = _worse(heads[item.name], verdict)
        outputs = {name: self._verdict(comparison, served=True) for name, comparison in served.items()}
        return Findings(outputs, heads, verdicts, len(exercise.samples), exercise.style)

    def _reference(
        self, choose: Callable[..., Exercise]
    ) -> tuple[Exercise, dict[Watched, Comparison], dict[str, Comparison]]:
        """Runs the first model: returns the samples with its values, and the comparisons with its noise in them."""
        runner, vectors = self._reference_runner()

        def run(sample: Sample) -> dict[str, Array]:
            return runner.run({**vectors, **self._widened(sample)})

        sites = [item.name for item in self.watched if item.is_site]
        exercise = choose(run, list(self.outputs), sites)
        values = {item: Comparison(item.axes, alike=True) for item in self.watched}
        algebra = {name: Comparison() for name in self.outputs}
        for sample, result in zip(exercise.samples, exercise.results, strict=True):
            for _ in range(self._draws(result)):
                moved = runner.run(self._nudged({**vectors, **self._widened(sample)}, whole=True))
                _add_noise(algebra, result, moved)
                for item, comparison in values.items():
                    comparison.add_noise(result[item.name], moved[item.name])
        return exercise, values, algebra

    def _reference_runner(self) -> tuple[Runner, dict[str, Array]]:
        """Returns what runs the first model's algebra, and the vectors that it takes as inputs.

        Not every operator of a 16-bit model may know float32: where a copy in it does not load, both models stay.
        """
        try:
            return self._opened_runner()
        except ModelError:
            if not self.wide:
                raise
            self.wide = False
            return self._opened_runner()

    def _opened_runner(self) -> tuple[Runner, dict[str, Array]]:
        model = self._prepared(self.first)
        vectors = open_vectors(model, self.first.path.parent)
        bring_out(model, [item.name for item in self.watched])
        return Runner(self.first.path, model, False), vectors

    def _prepared(self, subject: Subject, rounded: bool = False) -> ModelProto:
        """A copy that computes the algebra: float32 at least, no rounding to integers, the same random numbers.

        *rounded* moves its 16-bit weights as rounding them once more does.
        """
        model = unrounded(subject.model) if self.rounds else copy_of(subject.model)
        if self.wide:
            model = in_float32(model, subject.path.parent, self.rng if rounded else None)
        seed_draws(model)
        return model

    def _widened(self, sample: Sample) -> Sample:
        if not self.wide:
            return sample
        return {k: v.astype(np.float32) if v.dtype.name in _HALF_TYPES else v for k, v in sample.items()}

    def _match_outputs(self) -> None:
        """Pairs the outputs of both models, by name where the names are the same, else by place.

        Raises:
            ModelError: one model has more outputs than the other.
        """
        names = [value.name for value in self.first.model.graph.output]
        others = [value.name for value in self.second.model.graph.output]
        if len(names) != len(others):
            raise ModelError(
                f"{self.first.path} has the outputs {names} and {self.second.path} has {others}: expected the same "
                "number."
            )
        order = names if set(names) == set(others) else others
        self.outputs = dict(zip(names, order, strict=True))

    # ---- algebra ------------------------------------------------------------------------------------------------

    def _compare(
        self, exercise: Exercise, values: Mapping[Watched, Comparison], algebra: Mapping[str, Comparison]
    ) -> None:
        model = self._prepared(self.second)
        bring_out(model, [item.other for item in values])
        runner = Runner(self.second.path, model, False)
        for sample, expected in zip(exercise.samples, exercise.results, strict=True):
            actual = runner.run(self._widened(sample))
            for name, comparison in algebra.items():
                comparison.add(expected[name], actual[self.outputs[name]])
            for item, comparison in values.items():
                comparison.add(expected[item.name], _scaled(actual[item.other], item, expected[item.name]))

    # ---- segments -----------------------------------------------------------------------------------------------

    def _segments(self, exercise: Exercise) -> dict[Watched, Comparison]:
        """Compares part by part; parts whose sites no sample exercises are fed normal numbers.

        Raises:
            VerificationError: a site stays idle all the same.
        """
        made = made_in(self.first.model), made_in(self.second.model)
        cuts = [item for item in self.watched if item.is_site and item.name in made[0] and item.other in made[1]]
        cuts = [item for item in cuts if all(is_float(result[item.name]) for result in exercise.results)]
        if not cuts:
            return {}
        heads = [Watched(name, other) for name, other in self.outputs.items() if name not in {c.name for c in cuts}]
        idle = set(exercise.idle([item.name for item in cuts], ALIVE))
        comparisons = {item: Comparison(item.axes, item not in heads) for item in (*self.watched, *heads)}
        fed = [self._fed(cuts, result, idle) for result in exercise.results]
        reference = self._cut_runner(self.first, {item.name: item for item in cuts}, fed[0], scaled=False)
        expected = []
        for sample, values in zip(exercise.samples, fed, strict=True):
            feeds = {**self._widened(sample), **values}
            result = _restored(reference.run(feeds))
            expected.append(result)
            for _ in range(self._draws(result)):
                moved = _restored(reference.run(self._nudged(feeds)))
                for item, comparison in comparisons.items():
                    comparison.add_noise(result[item.name], moved[item.name])
        if still := [item for item in cuts if not any(is_alive(result[item.name], ALIVE) for result in expected)]:
            raise VerificationError(
                f"no sample exercises the residual connection {still[0].site or still[0].name!r}: the sum "
                f"{still[0].name!r} is not finite, or the same everywhere. Give data that does (--data, an .npz with "
                "one array per input)."
            )
        del reference
        if self.wide:  # folding stores products of 16-bit weights in 16 bits again
            first = {item.name: item for item in cuts}
            rounded = self._cut_runner(self.first, first, fed[0], scaled=False, rounded=True)
            for sample, values, result in zip(exercise.samples, fed, expected, strict=True):
                moved = _restored(rounded.run({**self._widened(sample), **values}))
                for item, comparison in comparisons.items():
                    comparison.add_noise(result[item.name], moved[item.name])
            del rounded
        other = self._cut_runner(self.second, {item.other: item for item in cuts}, fed[0], scaled=True)
        for sample, values, result in zip(exercise.samples, fed, expected, strict=True):
            stored = {item.other: _stored(values[item.name], item) for item in cuts}
            actual = _restored(other.run({**self._widened(sample), **stored}))
            for item, comparison in comparisons.items():
                comparison.add(result[item.name], _scaled(actual[item.other], item, result[item.name]))
        return comparisons

    def _fed(self, cuts: Sequence[Watched], result: Mapping[str, Array], idle: set[str]) -> dict[str, Array]:
        """What the parts behind the cuts are fed: what the first model computes there, or numbers of our own."""
        fed = {}
        for item in cuts:
            array = result[item.name]
            if item.name in idle:
                array = self.rng.standard_normal(array.shape).astype(array.dtype)
            fed[item.name] = array
        return fed

    def _cut_runner(
        self,
        subject: Subject,
        cuts: Mapping[str, Watched],
        fed: Mapping[str, Array],
        *,
        scaled: bool,
        rounded: bool = False,
    ) -> Runner:
        model = self._prepared(subject, rounded)
        cut(model, {name: fed[item.name] for name, item in cuts.items()})
        names = [item.other if scaled else item.name for item in self.watched]
        bring_out(model, [name for name in names if name not in cuts])
        return Runner(subject.path, model, False)

    # ---- served -------------------------------------------------------------------------------------------------

    def _served(self, exercise: Exercise) -> dict[str, Comparison]:
        comparisons = {name: Comparison() for name in self.outputs}
        server = self._server(self.first, self.optimize[0])
        exercise, expected = _runnable(exercise, server)
        del server
        self._add_served_noise(comparisons, exercise, expected)
        server = self._server(self.second, self.optimize[1])
        for sample, result in zip(exercise.samples, expected, strict=True):
            actual = server.run(sample)
            for name, comparison in comparisons.items():
                comparison.add(result[name], actual[self.outputs[name]])
        return comparisons

    def _add_served_noise(
        self, comparisons: Mapping[str, Comparison], exercise: Exercise, expected: Sequence[Mapping[str, Array]]
    ) -> None:
        """Adds what the first file's outputs move by: optimised or not, its numbers moved by their last bits."""
        if self.optimize[0] and not self.rounds and not self.wide:  # the reference ran just this
            for plain, result in zip(exercise.results, expected, strict=True):
                _add_noise(comparisons, result, plain)
        else:
            runner = self._server(self.first, not self.optimize[0])
            for sample, result in zip(exercise.samples, expected, strict=True):
                with suppress(ModelError):  # a file that runs one way only has the other noise alone
                    _add_noise(comparisons, result, runner.run(sample))
            del runner
        if self.rounds:
            for plain, result in zip(exercise.results, expected, strict=True):
                _add_noise(comparisons, result, _towards(result, plain, 2 / MARGIN))
        model = copy_of(self.first.model)
        seed_draws(model)
        vectors = open_vectors(model, self.first.path.parent)
        moving = Runner(self.first.path, model, self.optimize[0])
        for sample, result, inside in zip(exercise.samples, expected, exercise.results, strict=True):
            nudges = [NUDGE] * self._draws(inside) + [_QUANTISED_NUDGE] * self.rounds
            for ulps in nudges:
                _add_noise(comparisons, result, moving.run(self._nudged({**vectors, **sample}, ulps, whole=True)))

    def _server(self, subject: Subject, optimize: bool) -> Runner:
        """The file as a user opens it; a copy in memory only where random numbers need a seed."""
        copy = copy_of(subject.model)
        return Runner(subject.path, copy if seed_draws(copy) else None, optimize)

    # ---- verdicts -----------------------------------------------------------------------------------------------

    def _draws(self, result: Mapping[str, Array]) -> int:
        if sum(array.size for array in result.values()) < _MANY:
            return _DRAWS
        return 2 if self.half or self.rounds else 1

    def _nudged(self, feeds: Sample, ulps: float = NUDGE, *, whole: bool = False) -> dict[str, Array]:
        """Moves what is fed. A *whole* 16-bit model adds up, site after site, that its weights are rounded."""
        coarse = EPSILON[self.half] / (2 * ulps) if self.half and (whole or not self.wide) else 0.0
        return nudged(feeds, ulps, self.rng, coarse)

    def _verdict(self, comparison: Comparison, served: bool = False, part: bool = False) -> Verdict:
        """What a comparison found, held against the tolerance of the coarsest type that the model computes in.

        Args:
            comparison: the comparison.
            served: of the files as they are served, where integers may be a quantum apart.
            part: of one part alone: 16-bit weights are rounded there, but what is computed in float32 is not.
        """
        quantum = 1.0 if served and self.rounds and not self.exact else 0.0
        tolerance = self.tolerance(comparison.dtype)
        if self.half and comparison.dtype in EPSILON:
            tolerance = max(tolerance, self.tolerance(self.half))
            if part and self.wide and not self.exact:
                tolerance = min(tolerance, 2 * EPSILON[self.half])
        return comparison.verdict(tolerance, exact=self.exact, quantum=quantum)


def _runnable(exercise: Exercise, server: Runner) -> tuple[Exercise, list[dict[str, Array]]]:
    """Returns the samples on which a file runs as it is served, and its outputs.

    ONNX Runtime's optimisation relies on shapes that a file states, and refuses drawn samples where those are wrong.

    Raises:
        ModelError: there are none, or a sample is given data.
    """
    kept, outputs, refused = Exercise(style=exercise.style), [], None
    for sample, result in zip(exercise.samples, exercise.results, strict=True):
        try:
            outputs.append(server.run(sample))
        except ModelError as error:
            if not exercise.style:
                raise
            refused = error
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


def _add_noise(comparisons: Mapping[str, Comparison], result: Mapping[str, Array], moved: Mapping[str, Array]) -> None:
    for name, comparison in comparisons.items():
        comparison.add_noise(result[name], moved[name])


def _scaled(array: Array, item: Watched, like: Array) -> Array:
    """The second model's value as the first one has it."""
    if not is_float(array) or array.shape != like.shape or bool(np.all(item.scale == 1)):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array.astype(np.float64) * item.scale).astype(array.dtype)


def _stored(array: Array, item: Watched) -> Array:
    """The first model's value as the second one stores it."""
    if bool(np.all(item.scale == 1)):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array.astype(np.float64) / item.scale).astype(array.dtype)


def _restored(results: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removesuffix(COMPUTED): array for name, array in results.items()}


def _worse(a: Verdict, b: Verdict) -> Verdict:
    def excess(verdict: Verdict) -> float:
        return verdict.max_rel / verdict.allowed if verdict.allowed else float("inf") if verdict.max_rel else 0.0

    return max(a, b, key=excess)
