"""Holds two models against each other at their outputs and at every site, beside the noise of the first one.

Three comparisons, each of which the second model has to pass:

*algebra*    ONNX Runtime's optimisation and rounding to integers are off in both; every sum that a residual makes,
             every value that is stored at another scale and every output is compared.
*segments*   the same, but both graphs are cut at their residuals and each part is fed what the first model computed
             there: errors of earlier parts neither hide nor excuse those of later ones.
*served*     both files as they are served; their outputs are compared.

Bodies of If, Loop and Scan in which residuals stand are compared in the same way, as models of their own.

What may differ is the tolerance, or what the first model itself does where its numbers are moved by their last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from laurel_graph.steps import tell

from . import algebra
from .compare import MARGIN, Verdict
from .drawing import Exercise, drawn, given
from .pair import DRAWS, LAST_DRAWS, Pair, Watched
from .probe import Sample
from .segments import segments
from .served import served

_STAGES = 4
_CLEAR = 3.0
"""A difference of so many times what noise allows is refused at once: noise that is measured again hardly doubles."""


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        outputs: output of the first model to verdict, as served.
        algebra: the same with optimisation and rounding to integers off.
        values: watched value (as it is called in the first model, and its site) to the worse of its verdicts.
        samples: how many samples were run.
        style: how they were drawn, "" for given data.
        situations: the situations that were compared; empty for given data.
        refused: situation to the reason why the first model does not run in it.
    """

    outputs: Mapping[str, Verdict]
    algebra: Mapping[str, Verdict]
    values: Mapping[Watched, Verdict]
    samples: int
    style: str
    situations: tuple[str, ...]
    refused: Mapping[str, str]

    @property
    def unequal(self) -> list[Verdict]:
        """The verdicts that say that the models are not equal."""
        verdicts = (*self.outputs.values(), *self.algebra.values(), *self.values.values())
        return [verdict for verdict in verdicts if verdict.excess > 1]


@dataclass(frozen=True)
class Check:
    """One comparison of two models.

    Attributes:
        pair: the models, and what is compared.
    """

    pair: Pair

    def on_data(self, samples: Sequence[Sample]) -> Findings:
        """Compares on samples that a person gave; see :func:`~laurel_graph.passes.verify.drawing.given`."""
        return self._run(lambda run, outputs, sites: given(samples, run, outputs, sites))

    def on_drawn(self, batches: Sequence[int], seed: int, sizes: Mapping[str, int] | None) -> Findings:
        """Compares on drawn samples; see :func:`~laurel_graph.passes.verify.drawing.drawn`."""
        return self._run(
            lambda run, outputs, sites: drawn(
                self.pair.first.model, run, outputs, sites, batches=batches, seed=seed, sizes=sizes
            )
        )

    def _run(self, choose: Callable[..., Exercise]) -> Findings:
        found = self._once(choose)
        if found.unequal and self.pair.hurried:
            # numbers that are large at few places alone have more noise than one draw shows
            self.pair.least_draws = DRAWS
            found = self._once(choose)
        if found.unequal and not self.pair.exact and all(_is_near(verdict) for verdict in found.unequal):
            self.pair.least_draws = LAST_DRAWS
            found = self._once(choose)
        return found

    def _once(self, choose: Callable[..., Exercise]) -> Findings:
        from laurel_graph.passes.bodies.compare import insides  # which compares by what stands here

        pair = self.pair
        tell("running the first model", 0, _STAGES)
        exercise, values, outputs = algebra.reference(pair, choose)
        tell("running the second model", 1, _STAGES)
        algebra.compare(pair, exercise, values, outputs)
        tell("comparing part by part", 2, _STAGES)
        parts = segments(pair, exercise)
        tell("comparing both as they are served", 3, _STAGES)
        as_served = served(pair, exercise)
        verdicts = {item: pair.verdict(comparison) for item, comparison in values.items()}
        heads = {name: pair.verdict(comparison) for name, comparison in outputs.items()}
        for item, comparison in parts.items():
            verdict = pair.verdict(comparison, part=True)
            if item in verdicts:
                verdicts[item] = _worse(verdicts[item], verdict)
            else:
                heads[item.name] = _worse(heads[item.name], verdict)
        shown = {name: pair.verdict(comparison, served=True) for name, comparison in as_served.items()}
        verdicts |= insides(pair, exercise.samples, lambda child, inner: Check(child)._run(inner))
        situations = tuple(dict.fromkeys(exercise.situations))
        count = len(exercise.samples)
        return Findings(shown, heads, verdicts, count, exercise.style, situations, exercise.refused)


def _is_near(verdict: Verdict) -> bool:
    """Whether more noise than was measured could make a difference a right one."""
    return verdict.max_rel < _CLEAR * MARGIN * verdict.noise


def _worse(a: Verdict, b: Verdict) -> Verdict:
    return replace(max(a, b, key=lambda verdict: verdict.excess), idle=a.idle and b.idle)
