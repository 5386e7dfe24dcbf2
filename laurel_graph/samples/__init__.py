"""Seeded inputs for an ONNX model that nobody gave data for: what verify, deploy and bench run on by default.

The model's graph is walked once. What weights, attributes, tables of positions, requested shapes and caches demand of
the inputs' sizes is computed; a size that stays open gets a value by what it counts: rows of a batch, tokens, sides of
an image. A decoder with a cache is met in several situations: a prompt, a step behind a filled cache, a padded batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from ..errors import ModelError, near
from .contents import INDEX_BOUND, STYLES, filled
from .graph import Walk
from .situations import (
    BATCH,
    IMAGE,
    SEQUENCE,
    SIGNAL,
    Situation,
    distinct,
    is_length,
    is_mask,
    kinds,
    read_meanings,
    situation,
)

__all__ = [
    "BATCH",
    "IMAGE",
    "INDEX_BOUND",
    "SEQUENCE",
    "SIGNAL",
    "STYLES",
    "Sampler",
    "Situation",
    "has_masks",
    "sample_inputs",
]


class Sampler:
    """Draws samples for one model, which is walked once.

    Args:
        model: the model; its weights may be external.
        sizes: sizes of symbolic dims by name, 0 included; a dim without a name is called ``input:axis``.

    Raises:
        ModelError: an input is no tensor, its shape is unknown, or *sizes* names a dim that the model does not have.
    """

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> None:
        self._walk = Walk(model, dict(sizes or {}))
        names = self._walk.sizes.order
        if unknown := sorted(set(sizes or {}) - set(names)):
            raise ModelError(
                f"no input has a dim named {unknown[0]!r}; its symbolic dims are {sorted(names) or 'none'}."
                f"{near(unknown[0], names)}"
            )
        read_meanings(self._walk)

    @property
    def has_masks(self) -> bool:
        """Whether some input is taken for a mask, or for the lengths that one is made of."""
        return any(is_mask(value) or is_length(value) for value in self._walk.inputs.values())

    @property
    def kinds(self) -> list[str]:
        """The situations that the model knows: ``plain``, or those of a decoder."""
        return kinds(self._walk)

    def situation(self, kind: str, batch: int = BATCH, *, ragged: bool = False, length: int = SEQUENCE) -> Situation:
        """Returns the sizes of one situation; *length* is what sequences and caches get that are free to choose."""
        if kind == "step" and length != SEQUENCE:
            return situation(self._walk, kind, batch, ragged=ragged, past=length)
        return situation(self._walk, kind, batch, ragged=ragged, length=length)

    def situations(self, batches: Sequence[int], *, length: int = SEQUENCE) -> list[Situation]:
        """Returns every situation at every batch size, padded ones for the largest one, without repetitions."""
        found = [self.situation(kind, batch, length=length) for kind in self.kinds for batch in batches]
        if self.has_masks and not self._walk.rolling:
            found += [self.situation(kind, max(batches), ragged=True, length=length) for kind in self.kinds]
        return distinct(found)

    def draw(self, at: Situation, *, seed: int = 0, style: str = "normal") -> dict[str, NDArray[Any]]:
        """Returns one array for each required input.

        Floats are drawn as *style* says (one of :data:`STYLES`), masks are ones, positions go on behind what the cache
        holds, other integers stay below whatever they index.
        """
        return filled(self._walk, at, seed=seed, style=style)


def sample_inputs(
    model: onnx.ModelProto,
    *,
    batch: int = BATCH,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    style: str = "normal",
    ragged: bool = False,
    length: int = SEQUENCE,
) -> dict[str, NDArray[Any]]:
    """Returns one array for each required input of *model*, in the first situation that it knows.

    Args:
        model: the model; its weights may be external.
        batch: size of the batch, where the model leaves it open.
        seed: seed of the draw.
        sizes: sizes of symbolic dims by name; one that the graph leaves open is otherwise *length*, or 512 in a float
            signal ``(N, T)``, or 224 in an image ``(N, C, H, W)``.
        style: one of :data:`STYLES`.
        ragged: masks end in zeros, in each row from another place on.
        length: how long a sequence is, where the model leaves it open.

    Raises:
        ModelError: an input is no tensor, its shape is unknown, or *sizes* names a dim that the model does not have.
    """
    sampler = Sampler(model, sizes)
    at = sampler.situation(sampler.kinds[0], batch, ragged=ragged, length=length)
    return sampler.draw(at, seed=seed, style=style)


def has_masks(model: onnx.ModelProto) -> bool:
    """Whether :func:`sample_inputs` takes some input for a mask."""
    return Sampler(model).has_masks
