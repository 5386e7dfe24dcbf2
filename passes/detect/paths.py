"""The paths between a value and an add: what stands on them upwards, and what is known of them downwards.

Upwards, a *chain* leads from an operand of an add through operators of one input to the values with several readers
above it, the *forks*. Downwards, *facts* about the paths from each fork travel in one sweep in topological order, and
only as long as the fork *lives*, that is until the last add that has it on a chain, and of the :data:`MOST_FORKS`
nearest forks: O(edges · forks alive at a time), 2 for transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from laurel_graph.graph_view import GraphView, Role, Vertex

LAYOUT = (Role.PASS, Role.RESHAPE)
"""What rearranges a value and computes nothing."""
LONGEST_CHAIN = 64
_LONGEST_CONCAT = 8
MOST_FORKS = 32
"""Of how many forks, the last ones, a value knows the paths from them."""

# Upwards --------------------------------------------------------------------------------------------------------------


class Chain(NamedTuple):
    """What stands between a value and the add below it.

    Attributes:
        scaled: a scale of more than one element.
        changed: a norm, a pool, a bias.
        convs: convolutions.
        linears: linear maps.
        active: an activation in front of the maps.
        upsampled: it was brought to a higher resolution, in front of the maps.
        weight: name of the last weights.
    """

    scaled: bool = False
    changed: bool = False
    convs: int = 0
    linears: int = 0
    active: bool = False
    upsampled: bool = False
    weight: str = ""

    @property
    def maps(self) -> int:
        """How many convolutions and linear maps stand on it."""
        return self.convs + self.linears

    @property
    def projection(self) -> bool:
        """Whether it makes the skip a projection."""
        return self.changed or bool(self.maps)


_NOTHING = Chain()
_ONE_SOURCE = frozenset({Role.PASS, Role.RESHAPE, Role.SLICE})

Lengthen = Callable[[GraphView, Vertex, Chain], Chain | None]
"""Returns the chain with one more vertex on it, ``None`` if that may not stand on one."""


def forks(view: GraphView, operand: int, lengthen: Lengthen) -> Iterator[tuple[int, Chain]]:
    """Yields the values with several readers on the chain above *operand*, nearest first."""
    vertices, consumers = view.vertices, view.consumers
    stack = [(operand, _NOTHING)]
    for _ in range(LONGEST_CHAIN):
        if not stack:
            return
        index, chain = stack.pop()
        several = len(consumers[index]) > 1
        if several:
            yield index, chain
        vertex = vertices[index]
        role, inputs = vertex.role, vertex.inputs
        if role is Role.LAUREL:
            if inputs and not several:  # a further branch is added to a rewritten join
                stack.append((inputs[0], chain))
            continue
        above = lengthen(view, vertex, chain) if inputs else None
        if above is None:
            continue
        if role in _ONE_SOURCE:
            stack.append((inputs[0], above))
        elif role is Role.CONCAT:
            stack.extend((part, above) for part in reversed(inputs[:_LONGEST_CONCAT]))
        else:
            stack.extend((u, above) for u in inputs if vertices[u].data)


def only_reader(view: GraphView, index: int) -> int | None:
    """Returns the one vertex that reads *index*, looking through casts and dropout; ``None`` if there are more."""
    for _ in range(LONGEST_CHAIN):
        readers = view.consumers[index]
        if len(readers) != 1:
            return None
        index = readers[0]
        if view.vertices[index].role is not Role.PASS:
            return index
    return None


def outermost(view: GraphView, index: int) -> int:
    """Follows single-consumer adds downwards: (x + a) + b ends at the outer one."""
    for _ in range(LONGEST_CHAIN):
        below = only_reader(view, index)
        if below is None or view.vertices[below].role is not Role.ADD:
            break
        index = below
    return index


def readers(view: GraphView, index: int) -> Iterator[int]:
    """Yields what reads a value, looking through casts and dropout."""
    for reader in view.consumers[index]:
        if view.vertices[reader].role is Role.PASS:
            yield from readers(view, reader)
        else:
            yield reader


def unscaled(view: GraphView, index: int) -> int:
    """Follows casts, reshapes and constant scales upwards."""
    for _ in range(LONGEST_CHAIN):
        vertex = view.vertices[index]
        if not vertex.inputs or not (vertex.role in LAYOUT or (vertex.role is Role.MUL and vertex.scale)):
            break
        index = vertex.inputs[0]
    return index


def last_weight(view: GraphView, branch: int, longest: int = LONGEST_CHAIN) -> str:
    """Name of the weights that the branch passes last, looking through at most *longest* vertices; "" for none."""
    for _ in range(longest):
        vertex = view.vertices[branch]
        if vertex.weighted or not vertex.inputs:
            return vertex.weight
        branch = next((u for u in vertex.inputs if view.vertices[u].data), vertex.inputs[0])
    return ""


# Downwards ------------------------------------------------------------------------------------------------------------

# What is known about the paths from a fork to a value, as bits; over several paths they are united.
WEIGHTED, MIXED, PARAMETER, NONLINEAR, UPSAMPLED, JOINED, WHOLE, LEVEL = 1, 2, 4, 8, 16, 32, 64, 128
HOME, COARSE = 0x1000, 0x2000
_ONE_DEEPER, _DEPTH_MASK = 0x100, 0xF00  # weighted operators in a row, up to four, one bit each: union is maximum

# WHOLE: some path starts with the fork as it is, not with a slice of it. LEVEL: some path is nowhere upsampled.
# HOME: no residual connection on the way has a skip that comes from elsewhere. COARSE: some path has a stride on it.
_ROLE_BITS = {
    Role.MIX: MIXED | NONLINEAR,
    Role.ACTIVATION: NONLINEAR,
    Role.SOFTMAX: NONLINEAR,
    Role.WEIGHTED: NONLINEAR,
    Role.NORM: PARAMETER,
    Role.UPSAMPLE: UPSAMPLED,
    Role.LAUREL: JOINED,
}
_CLEARS = frozenset({Role.SLICE, Role.UPSAMPLE})


def depth(facts: int) -> int:
    """Returns how many weighted operators follow one another, four at most."""
    return (facts & _DEPTH_MASK).bit_count()


def _bits(vertex: Vertex) -> int:
    """What a vertex adds to the facts of every path through it."""
    role = vertex.role
    bits = _ROLE_BITS.get(role, 0)
    if vertex.strided:
        bits |= COARSE
    if vertex.quantised:  # rounding clips: quantisers drop a ReLU in front of it
        bits |= NONLINEAR
    if vertex.weighted:
        return bits | WEIGHTED | _ONE_DEEPER
    if role is Role.LINEAR:
        return bits | MIXED | NONLINEAR
    if role is Role.MUL:
        return bits | (PARAMETER if vertex.scale not in (0, 1) else 0)
    return bits | MIXED if vertex.mixes else bits


class Facts:
    """What is known of the paths from each fork alive to each value."""

    def __init__(self, view: GraphView, last: dict[int, int]) -> None:
        """*last* tells for each fork the last add that asks about it."""
        self._view, self._last = view, last
        self._known: list[dict[int, int] | None] = [None] * len(view.vertices)

    def between(self, fork: int, value: int) -> int | None:
        """Returns the facts about the paths from *fork* to *value*, ``None`` where none leads there."""
        known = self._known[value]
        return known.get(fork) if known else None

    def sweep(self, adds: Collection[int], judge: Callable[[int], int | None]) -> None:
        """Carries the facts down the graph; *judge* is called for each of *adds* as it comes and tells a join's skip.

        Facts of the operands of *adds* are kept, those of every other value only until its last reader was there.
        """
        known, last = self._known, self._last
        waiting = [len(readers) for readers in self._view.consumers]
        for index, vertex in enumerate(self._view.vertices):
            if not vertex.live:
                continue
            merged = self._merged(index, vertex)
            if index in adds:
                if (skip := judge(index)) is not None and merged:
                    home = known[skip] or {}
                    merged = {fork: (facts | JOINED) & (home.get(fork, 0) | ~HOME) for fork, facts in merged.items()}
            else:
                for u in dict.fromkeys(vertex.inputs) if len(vertex.inputs) > 1 else vertex.inputs:
                    waiting[u] -= 1
                    if not waiting[u]:
                        known[u] = None
            if index in last and last[index] > index:
                merged = _nearest({**(merged or {}), index: WHOLE | LEVEL | HOME})
            known[index] = merged

    def _merged(self, index: int, vertex: Vertex) -> dict[int, int] | None:
        """Unites the facts of what *vertex* reads, about forks that are still alive, and adds its own."""
        known, last, role = self._known, self._last, vertex.role
        above = [facts for u in vertex.inputs if (facts := known[u])]
        if not above or role is Role.META:
            return None
        bits = _bits(vertex)
        first = above[0]
        if len(above) > 1:
            first = dict(first)
            both = NONLINEAR if role is Role.MUL else 0  # a product is linear in what reaches one of its factors alone
            for facts in above[1:]:
                for fork, fact in facts.items():
                    first[fork] = first[fork] | fact | both if fork in first else fact
            first = _nearest(first)
        elif role in _CLEARS:
            first = self._cleared(vertex, first)
        elif not bits:
            return first
        if bits & _ONE_DEEPER:
            return {
                fork: fact | bits | (fact & _DEPTH_MASK) << 1 & _DEPTH_MASK
                for fork, fact in first.items()
                if last[fork] >= index
            } or None
        return {fork: fact | bits for fork, fact in first.items() if last[fork] >= index} or None

    def _cleared(self, vertex: Vertex, facts: dict[int, int]) -> dict[int, int]:
        """What no longer holds behind a slice or an upsampling."""
        if vertex.role is Role.UPSAMPLE:
            return {fork: fact & ~LEVEL for fork, fact in facts.items()}
        top = self._view.up(vertex.inputs[0])
        return {**facts, top: facts[top] & ~WHOLE} if vertex.window is not None and top in facts else facts


def _nearest(facts: dict[int, int]) -> dict[int, int]:
    """Returns what is known of the last forks alone."""
    if len(facts) <= MOST_FORKS:
        return facts
    return {fork: facts[fork] for fork in sorted(facts)[-MOST_FORKS:]}
