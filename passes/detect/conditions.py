"""Whether what leads straight to an add is no skip but a condition or a gate's input.

A stream is handed on: what a residual connection makes is where the next one starts. Edge features, time embeddings and
the inputs of recurrent cells are handed to many adds, each time by a map of their own, and changed by none.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from laurel_graph.graph_view import GraphView, Role

from .paths import HOME, JOINED, LAYOUT, LONGEST_CHAIN, Chain

MOST_ADDS = 2
"""Of more adds than this a value is no skip: it is added in every layer."""

_BESIDE_GATES = frozenset({*LAYOUT, Role.SLICE, Role.ADD, Role.SUB})


@dataclass(slots=True)
class Entries:
    """The adds that each value enters without an activation on the way: what it is added to there, and the first such.

    Attributes:
        mapped: by a convolution or a linear map.
        plain: without one.
    """

    mapped: dict[int, dict[tuple[int, ...], int]] = field(default_factory=lambda: defaultdict(dict))
    plain: dict[int, dict[tuple[int, ...], int]] = field(default_factory=lambda: defaultdict(dict))

    def note(self, inputs: tuple[int, ...], place: int, chain: list[tuple[int, Chain]], index: int) -> None:
        """Notes that the forks on *chain* enter the add *index* of *inputs* by its operand number *place*."""
        others = inputs[:place] + inputs[place + 1 :]
        for fork, above in chain:
            if not above.active:
                (self.mapped if above.maps else self.plain)[fork].setdefault(others, index)

    def is_condition(self, fork: int, chain: Chain, facts: int, index: int) -> bool:
        """Tells whether *fork*, at the other end of *chain*, is a condition of many adds, of which *index* is one.

        *facts* are those about the paths from it to the branch. A condition is added by a map to more than
        :data:`MOST_ADDS` values, or it is added once more to what such an add has made of it; or it comes back by way
        of another stream, to which it was added before. To be added to one position embedding again and again is no
        such thing.
        """
        entered = self.mapped[fork] if chain.maps else self.plain[fork]
        if len(entered) > MOST_ADDS and (chain.maps or facts & JOINED):
            return True
        return not facts & HOME and any(add < index for add in entered.values())


def feeds_gates(view: GraphView, index: int) -> bool:
    """Tells whether all that is made of a sum are gates: activations of it, or of its parts, that multiply data.

    The gates of recurrent cells (GRU, LSTM) and of gated convolutions with a condition.
    """
    if index in view.outputs:
        return False
    activations = _through(view, index)
    return bool(activations) and all(
        view.vertices[one].role is Role.ACTIVATION and _multiplies(view, one) for one in activations
    )


def _multiplies(view: GraphView, index: int) -> bool:
    products = [view.vertices[one] for one in _through(view, index)]
    return bool(products) and all(vertex.role is Role.MUL and not vertex.scale for vertex in products)


def _through(view: GraphView, index: int) -> list[int]:
    """What reads a value, looking through layouts, slices, constant scales and biases; nothing where that is much."""
    found: list[int] = []
    stack = [index]
    for _ in range(LONGEST_CHAIN):
        if not stack:
            return found
        for reader in view.consumers[stack.pop()]:
            vertex = view.vertices[reader]
            alone = sum(1 for u in vertex.inputs if view.vertices[u].data) == 1
            if vertex.role is Role.META:
                continue
            if alone and (vertex.role in _BESIDE_GATES or (vertex.role is Role.MUL and vertex.scale)):
                stack.append(reader)
            else:
                found.append(reader)
    return []
