"""Two models side by side: what is compared, how copies of both are made comparable, what they may differ by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from laurel_graph.errors import ModelError
from laurel_graph.onnx_model.walk import copy_of

from .compare import EPSILON, Comparison, Verdict, is_float
from .precision import fits_float32, half_type, in_float32
from .probe import Sample, constant_sums, seed_draws
from .probe import nudged as moved
from .quantisers import rounds_activations, unrounded

Array = NDArray[Any]

NUDGE = 2.0
"""By how many units in the last place numbers are moved to measure a model's noise.

What is computed in 16 bits is moved by half a unit: those types round every result by as much.
"""

DRAWS = 4
"""How often that is done for each sample; less often where so many numbers are compared that each channel has many."""

LAST_DRAWS = 16
"""How often before a model is refused that is barely too far apart.

Where one number moves all that follow it (a sum that cancels, the one large feature of a language model), each draw
moves every channel by as much or as little together: the largest of four draws is half of what it is of many by chance.
"""

_MANY = 1 << 21
"""Numbers on one sample from which on fewer draws are enough: one of a float32 model, two of one that rounds."""

_HALF_TYPES = ("float16", "bfloat16")


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

    def restored(self, array: Array, like: Array) -> Array:
        """The second model's value as the first one has it."""
        if not is_float(array) or array.shape != like.shape or bool(np.all(self.scale == 1)):
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(array.astype(np.float64) * self.scale).astype(array.dtype)

    def stored(self, array: Array) -> Array:
        """The first model's value as the second one stores it."""
        if bool(np.all(self.scale == 1)):
            return array
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(array.astype(np.float64) / self.scale).astype(array.dtype)


@dataclass(frozen=True)
class Subject:
    """One of the two models: its file, and what the file holds; or a *part* of that, which is run from memory."""

    path: Path
    model: ModelProto
    part: bool = False


class Pair:
    """The two models of one comparison.

    Args:
        first: the reference.
        second: the other one, with the same inputs and outputs.
        watched: what is compared besides the outputs.
        tolerance: the largest difference over a channel's scale that a person gave, which is meant as it is: noise adds
            nothing to it. ``None`` takes that of *usual*.
        usual: element type to the usual tolerance; 0 for types that are not there.
        optimize: whether each is served with ONNX Runtime's optimisation.

    Attributes:
        outputs: output of the first model to what it is called in the second one.
        exact: a person gave the tolerance.
        rounds: one of them rounds activations to integers.
        half: the 16-bit type that one of them computes in, or "".
        wide: copies in float32 are compared in place of 16-bit models.
        hurried: the noise was measured less often somewhere, because so many numbers are compared.
        least_draws: how often it is to be measured at least, however many numbers are compared.
        constant: sums of the first model that no sample moves, because all weights of theirs are zero.
    """

    def __init__(
        self,
        first: Subject,
        second: Subject,
        watched: Sequence[Watched] = (),
        *,
        tolerance: float | None,
        usual: Mapping[str, float],
        optimize: tuple[bool, bool] = (True, True),
    ) -> None:
        self.first, self.second, self.watched = first, second, tuple(watched)
        self.given, self.usual, self.exact, self.optimize = tolerance, usual, tolerance is not None, optimize
        self.rounds = rounds_activations(first.model) or rounds_activations(second.model)
        self.rng = np.random.default_rng(0)
        self.hurried, self.least_draws = False, 0
        self.constant = constant_sums(first.model, first.path.parent)
        self.outputs = self._matched_outputs()
        self.half = half_type(first.model) or half_type(second.model)
        self.wide = bool(self.half) and fits_float32(first.model) and fits_float32(second.model)

    def tolerance(self, dtype: str) -> float:
        """The largest difference over a channel's scale that counts as equal in an element type."""
        return self.usual.get(dtype, 0.0) if self.given is None else self.given

    def prepared(self, subject: Subject, rounded: bool = False) -> ModelProto:
        """A copy that computes the algebra: float32 at least, no rounding to integers, the same random numbers.

        *rounded* moves its 16-bit weights as rounding them once more does.
        """
        model = unrounded(subject.model) if self.rounds else copy_of(subject.model)
        if self.wide:
            model = in_float32(model, subject.path.parent, self.rng if rounded else None)
        seed_draws(model)
        return model

    def widened(self, sample: Sample) -> Sample:
        """The sample as the copies take it."""
        if not self.wide:
            return sample
        return {k: v.astype(np.float32) if v.dtype.name in _HALF_TYPES else v for k, v in sample.items()}

    def _matched_outputs(self) -> dict[str, str]:
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
        return dict(zip(names, order, strict=True))

    def draws(self, result: Mapping[str, Array]) -> int:
        """How often the noise is measured on one sample."""
        many = sum(array.size for array in result.values()) >= _MANY
        few = DRAWS if not many else 2 if self.half or self.rounds else 1
        self.hurried = self.hurried or few < DRAWS
        return max(few, self.least_draws)

    def nudged(self, feeds: Sample, ulps: float = NUDGE, *, whole: bool = False) -> dict[str, Array]:
        """Moves what is fed. A *whole* 16-bit model adds up, site after site, that its weights are rounded."""
        coarse = EPSILON[self.half] / (2 * ulps) if self.half and (whole or not self.wide) else 0.0
        return moved(feeds, ulps, self.rng, coarse)

    def verdict(self, comparison: Comparison, served: bool = False, part: bool = False) -> Verdict:
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
