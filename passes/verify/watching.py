"""Which values inside two models are to be the same, and at which scale the deployed one stores them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto

from laurel_graph.errors import VerificationError
from laurel_graph.onnx_model.walk import captured_names
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.plain import shown_nodes
from laurel_graph.opset.schema import DOMAIN, laurel_nodes

from .pair import Watched
from .probe import made_in

if TYPE_CHECKING:
    from laurel_graph.passes.fold.fold import FoldReport


def site_values(first: ModelProto, second: ModelProto, renamed: Mapping[str, str] | None = None) -> list[Watched]:
    """Returns what the ``ai.laurel`` nodes of either model make and both show, in the first one's order.

    Args:
        first: the trained model.
        second: the other one.
        renamed: value to what its stored form is called in the second model, where it has another scale there.
    """
    there = renamed or {}
    original = {other: name for name, other in there.items()}
    known, shown = made_in(first), made_in(second)
    ours: dict[str, tuple[str, tuple[int, ...]]] = {}
    for model in (first, second):
        for node in shown_nodes(model):
            known_node = LaurelNode.of(node)
            if known_node is None or len(node.input) < len(known_node.operator.inputs):
                continue
            for made in filter(None, node.output):
                name: str = original.get(made, made)
                axes: tuple[int, ...] = (known_node.operator.axis,)
                if name not in known:
                    name, axes = _transposed_back(made, model, known), (1, -1)
                if name not in ours:
                    ours[name] = known_node.site, axes
    return [
        Watched(name, other, ours[name][0], axes=ours[name][1], is_site=True)
        for name in known
        if name in ours
        for other in dict.fromkeys((there.get(name, name), name))
        if other in shown
    ]


def _transposed_back(name: str, model: ModelProto, known: Collection[str]) -> str:
    """Returns the known value that *name* becomes in another layout (kernels on bytes want channels last), or ""."""
    for node in model.graph.node:
        if node.op_type == "Transpose" and not node.domain and node.input[0] == name and node.output[0] in known:
            return str(node.output[0])
    return ""


def with_scales(
    sites: Sequence[Watched], folded: FoldReport, first: ModelProto, second: ModelProto, altered: Collection[str] = ()
) -> list[Watched]:
    """Returns *sites* with the scales at which folding stores them, and the other values that it stores at a scale.

    Args:
        sites: the sites that both models show.
        folded: what folding says.
        first: the trained model.
        second: the deployed one.
        altered: values that mean something else in the deployed model.
    """
    made, shown = made_in(first), made_in(second)
    original = {stored: name for name, stored in folded.renamed.items()}
    scales = {name: np.asarray(scale, np.float64) for name, scale in folded.scales.items() if name in shown}
    found = [replace(item, scale=scales[item.other]) if item.other in scales else item for item in sites]
    known = {item.other for item in found}
    found += [
        Watched(original.get(other, other), other, scale=scale)
        for other, scale in scales.items()
        if other not in known and other not in altered and original.get(other, other) in made
    ]
    place = {name: i for i, name in enumerate(made)}
    return sorted(found, key=lambda item: place[item.name])


def check_coverage(first: ModelProto, second: ModelProto, sites: Sequence[Watched]) -> None:
    """Makes sure that every living residual connection of the trained model is compared somewhere.

    Raises:
        VerificationError: one is not.
    """
    compared, names = {item.site for item in sites}, {item.name for item in sites}
    living = _living(first)
    for node in laurel_nodes(first.graph):
        ours = LaurelNode.of(node)
        if ours is None or ours.output in names or ours.output not in living:
            continue
        if ours.site not in compared:
            raise VerificationError(
                f"the residual connection {ours.site!r} ({ours.output!r}) is not to be seen in the "
                f"deployed model, which cannot be verified there; it has {len(laurel_nodes(second.graph))} nodes of "
                f"{DOMAIN}."
            )


def _living(model: ModelProto) -> set[str]:
    """Names that some output of the model needs."""
    made = made_in(model)
    wanted = [value.name for value in model.graph.output]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        if name in made:
            wanted += [*made[name].input, *captured_names(made[name])]
    return found
