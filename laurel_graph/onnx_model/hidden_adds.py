"""Operators of ONNX Runtime and ONNX that add two activations beside other work: one table for all who take them apart.

The graph view shows the add, insertion writes it out, the importer computes it; all three read here which inputs are
added, where the bias, the norm and the sum stand, and what epsilon is where a node states none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MICROSOFT = "com.microsoft"
SKIP_NORM_EPSILON = 1e-12
"""Epsilon of ONNX Runtime's skip norms that state none; that of its other norms is 1e-5."""


@dataclass(frozen=True, slots=True)
class HiddenAdd:
    """Where an operator adds: ``norm(addends + (product or convolution of factors) + bias)``.

    Attributes:
        addends: places of the inputs that are added as they are; the operator adds nothing where the last is missing.
        factors: places of the inputs whose product or convolution is added, too.
        domain: where the operator stands.
        bias: place of an input that is added last, or ``None``.
        norm: ``layer``, ``rms`` or ``group``: what reads the sum; "" for none.
        scale: place of the norm's scale.
        offset: place of the norm's offset, or ``None``.
        total: place of the output that is the sum, bias included; ``None`` if only what is made of it comes out.
        statistics: places of the outputs that only training reads.
        epsilon: of the norm, where the node states none.
        comes_apart: whether insertion can write the operator out around its add.
    """

    addends: tuple[int, ...]
    factors: tuple[int, ...] = ()
    domain: str = MICROSOFT
    bias: int | None = None
    norm: str = ""
    scale: int = 2
    offset: int | None = None
    total: int | None = None
    statistics: tuple[int, ...] = ()
    epsilon: float = SKIP_NORM_EPSILON
    comes_apart: bool = True


HIDDEN_ADDS: dict[str, HiddenAdd] = {
    "SkipLayerNormalization": HiddenAdd((0, 1), bias=4, norm="layer", scale=2, offset=3, total=3, statistics=(1, 2)),
    "SkipSimplifiedLayerNormalization": HiddenAdd((0, 1), bias=3, norm="rms", scale=2, total=3, statistics=(1, 2)),
    "SkipGroupNorm": HiddenAdd(
        (0, 3), bias=4, norm="group", scale=1, offset=2, total=1, epsilon=1e-5, comes_apart=False
    ),
    "FusedConv": HiddenAdd((3,), factors=(0, 1, 2)),
    "NhwcFusedConv": HiddenAdd((3,), factors=(0, 1, 2), comes_apart=False),
    "Gemm": HiddenAdd((2,), factors=(0, 1), domain=""),
    "FusedGemm": HiddenAdd((2,), factors=(0, 1), comes_apart=False),
}
"""Operator to where it adds."""


def at(names: Sequence[str], place: int | None) -> str:
    """Returns the name at *place* of a node's inputs or outputs, "" where there is none."""
    return names[place] if place is not None and place < len(names) else ""
