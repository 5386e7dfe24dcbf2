"""One residual connection of the view, and which of them are copies of one: in the bodies of an If."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from laurel_graph.graph_view import GraphView

from .paths import last_weight

LONGEST_WALK = 32
"""How many vertices a walk up from an operand passes at most."""


@dataclass(frozen=True, slots=True)
class Found:
    """A residual connection in terms of the view's vertices.

    Attributes:
        kind: ``identity``, ``projection`` or ``laurel``.
        fork: where skip and branches come from.
        skip: the operand that is the skip.
        branches: the operands that are branches, inner to outer.
        adds: the adds, inner to outer.
        rank: of a LAuReL block that is already there.
        note: why it cannot be rewritten, or "".
    """

    kind: str
    fork: int
    skip: int
    branches: tuple[int, ...]
    adds: tuple[int, ...]
    rank: int = 0
    note: str = ""


def firsts_of(view: GraphView, found: Sequence[Found], axes: Sequence[tuple[int, int | None]]) -> list[int]:
    """Returns for each residual connection the first one that it is a copy of, which is itself for most.

    The bodies of an If may hold one network each: a decoder that starts, and the same one with what it remembers. Then
    the branches of two joins end in the same weights, of the graph around both, and the joins count in the same order.
    """
    firsts = list(range(len(found)))
    waiting: dict[tuple[object, ...], list[int]] = defaultdict(list)
    count: Counter[tuple[object, ...]] = Counter()
    for place, item in enumerate(found):
        join = view.vertices[item.adds[0]]
        weight = branch_weight(view, item)
        if join.body not in view.choices or not (join.site or weight):
            continue
        choice, number = view.choices[join.body]
        rank = len(join.shape) if join.shape is not None else None
        alike = choice, join.site, weight, item.kind, len(item.adds), len(item.branches), axes[place], join.dtype, rank
        earlier = waiting[alike]
        if number == 0:
            earlier.append(place)
        elif (nth := count[alike, number]) < len(earlier):
            firsts[place] = earlier[nth]
            count[alike, number] += 1
    return firsts


def branch_weight(view: GraphView, item: Found) -> str:
    """Returns the weights that the first branch of a connection ends in, "" where those have no name."""
    return last_weight(view, item.branches[0], LONGEST_WALK) if item.branches else ""
