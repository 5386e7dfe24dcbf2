"""Finds the residual connections of a graph: the rule, and every exception to it, in one place.

The rule
    A *join* is an add J of activations of J's own shape. Walk up from an operand s of J through operators of one
    input: the *chain*. The first value c on it from which another operand b descends makes ``(c, b)`` a candidate.
    It is a residual connection when **a weighted operator lies on the path from c to b**. What stands on the chain
    decides:

    - nothing, or pass-through, reshapes, slices, a scalar scale: *identity*;
    - a vector scale too: identity, where J is read twice or c is itself a join;
    - a norm, a pool, up to two convolutions or one linear map: *projection*, with the longer side holding the
      non-linearity; an activation may stand before the map (pre-activation nets) when the branch is longer still;
    - an upsampling in front of the map: projection, where the branch is upsampled likewise and nowhere strided.

    A branch without weights counts when it mixes positions (attention, FFT, pooling) and holds a norm or a scale.

What else the graph is asked is written at each exception in :func:`_judge`. No names, no templates: an architecture
that nobody has seen is as good as any other. What the paths are and what they cost: :mod:`.paths`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from laurel_graph.detection import Detection, Evidence, Rejected
from laurel_graph.graph_view import GraphView, Role, Shape, Vertex

from . import reasons as why
from .conditions import Entries, feeds_gates
from .joins import Candidate, Joins, read_elsewhere, residual_connections
from .paths import (
    COARSE,
    JOINED,
    LAYOUT,
    LEVEL,
    LONGEST_CHAIN,
    MIXED,
    NONLINEAR,
    PARAMETER,
    UPSAMPLED,
    WEIGHTED,
    WHOLE,
    Chain,
    Facts,
    depth,
    forks,
    last_weight,
    only_reader,
    outermost,
    readers,
    unscaled,
)  # fmt: skip
from .sites import residuals

MOST_OPERANDS = 16
"""Sums of more values than this are none of a skip and a branch."""

Chains = dict[int, list[list[tuple[int, Chain]]]]
"""Add to the forks above each of its operands."""


def detect(view: GraphView) -> Detection:
    """Returns a verdict on every add of *view*: a residual connection, or the reason why not."""
    early: dict[int, tuple[str, str]] = {}
    chains: Chains = {}
    last: dict[int, int] = {}
    entries = Entries()
    for index, vertex in enumerate(view.vertices):
        if not vertex.live or not vertex.data:
            continue
        if vertex.role is Role.LAUREL and len(vertex.inputs) > 1:
            chains[index] = [list(forks(view, vertex.inputs[0], on_chain))]
            for fork, _ in chains[index][0]:
                last[fork] = max(last.get(fork, -1), index)
        if vertex.role is not Role.ADD:
            continue
        if (verdict := _at_sight(view, vertex)) is not None:
            early[index] = verdict
            continue
        chains[index] = [list(forks(view, operand, on_chain)) for operand in vertex.inputs]
        end = outermost(view, index)
        for place, chain in enumerate(chains[index]):
            for fork, _ in chain:
                last[fork] = max(last.get(fork, -1), end)
            entries.note(vertex.inputs, place, chain, index)
    facts = Facts(view, last)
    joins = Joins(view, facts, entries, verdicts=early)
    facts.sweep(chains.keys(), lambda index: _skip_of(joins, chains[index], index))
    found = residual_connections(joins)
    sites = residuals(view, found)
    copies = {id(copy) for residual in sites for copy in residual.copies}
    used = [
        Evidence(verdict, item.adds, item.fork, item.skip, item.branches)
        for verdict, item in zip(sites, found, strict=True)
    ]
    refused = list(_rejected(joins, {add for item in found for add in item.adds}))
    return Detection(
        model=view.model,
        residuals=tuple(residual for residual in sites if id(residual) not in copies),
        rejected=tuple(item.verdict for item in refused if isinstance(item.verdict, Rejected)),
        nodes=view.nodes,
        notes=tuple(view.notes),
        view=view,
        evidence=(*used, *refused),
    )


def _at_sight(view: GraphView, vertex: Vertex) -> tuple[str, str] | None:
    """Returns the verdict on an add that is no join by its operands alone: biases, broadcasts, integers."""
    if len(vertex.inputs) < 2:
        return why.BIAS, "at most one operand depends on the input"
    if len(vertex.inputs) > MOST_OPERANDS:
        return why.NO_SKIP, f"it adds {len(vertex.inputs)} values; a skip is looked for among {MOST_OPERANDS} at most"
    if vertex.dtype is not None and vertex.dtype.startswith(("int", "uint", "bool")) and not vertex.quantised:
        return why.NOT_FLOAT, f"its elements are {vertex.dtype}"
    for u in vertex.inputs:
        operand = view.vertices[u]
        if not operand.data and (vertex.shape is None or operand.shape != vertex.shape):
            return why.BIAS, f"{operand.value} does not depend on the input"
        if not _same_shape(operand.shape, vertex.shape):
            return why.BROADCAST, f"{operand.value} has shape {operand.shape}, the sum {vertex.shape}"
    return None


def _same_shape(one: Shape | None, other: Shape | None) -> bool:
    """Compares two shapes; what is unknown or symbolic fits anything."""
    if one is None or other is None or one == other:
        return True
    return len(one) == len(other) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(one, other, strict=True)
    )


def on_chain(view: GraphView, vertex: Vertex, chain: Chain) -> Chain | None:
    """Returns the chain with *vertex* on it, ``None`` if it may not stand on the way of a skip."""
    role, inputs = vertex.role, vertex.inputs
    if role in _REARRANGES:
        return chain
    if not (view.vertices[inputs[0]].data if len(inputs) == 1 else _one_depends(view, inputs)):
        return None
    if role is Role.MUL:
        return chain if vertex.scale == 1 else chain._replace(scaled=True)
    if role in _CHANGES and not (role is Role.POOL and chain.upsampled):
        return chain._replace(changed=True)
    if chain.upsampled:
        return None
    if role is Role.UPSAMPLE and not vertex.weighted:
        return chain._replace(changed=True, upsampled=True)
    if role is Role.ACTIVATION and chain.maps and not chain.active:
        return chain._replace(active=True)
    if role in (Role.CONV, Role.UPSAMPLE) and vertex.weighted and chain.convs < 2 and not chain.linears:
        chain = chain._replace(convs=chain.convs + 1, weight=chain.weight or vertex.weight)
        return chain if role is Role.CONV else chain._replace(upsampled=True)
    if role is Role.LINEAR and vertex.weighted and not chain.maps:
        return chain._replace(linears=1, weight=vertex.weight)
    return None


def _one_depends(view: GraphView, operands: Sequence[int]) -> bool:
    """Whether exactly one of *operands* depends on the input."""
    return len(list(islice((u for u in operands if view.vertices[u].data), 2))) == 1


_REARRANGES = frozenset({Role.PASS, Role.RESHAPE, Role.SLICE, Role.CONCAT})
_CHANGES = frozenset({Role.NORM, Role.POOL, Role.ADD, Role.SUB})


def _skip_of(joins: Joins, chains: list[list[tuple[int, Chain]]], index: int) -> int | None:
    """Judges an add, returns the skip of a join; notes where the sides of a LAuReL residual already there come from."""
    vertex = joins.view.vertices[index]
    if vertex.role is not Role.LAUREL:
        return joins.found[index].skip if _is_residual(joins, chains, index) else None
    for fork, _ in chains[0]:
        if joins.facts.between(fork, vertex.inputs[1]) is not None:
            joins.origins[index] = fork
            break
    return vertex.inputs[0]


def _is_residual(joins: Joins, chains: list[list[tuple[int, Chain]]], index: int) -> bool:
    """Keeps the best reading of one add, or the reason of the one that came nearest."""
    view, vertex = joins.view, joins.view.vertices[index]
    passed: list[Candidate] = []
    refused: list[tuple[tuple[str, str], Candidate]] = []
    for place, chain in enumerate(chains):
        candidate = _candidate(joins.facts, vertex.inputs, place, chain)
        if candidate is not None:
            reason, detail = _judge(joins, index, candidate)
            if reason:
                refused.append(((reason, detail), candidate))
            else:
                passed.append(candidate)
    if passed:
        joins.found[index] = min(passed, key=lambda candidate: candidate.rank)
        return True
    if refused:
        verdict, joins.nearest[index] = max(refused, key=lambda item: why.NEAR.get(item[0][0], 0.0))
        joins.verdicts[index] = verdict
    elif len(set(vertex.inputs)) < len(vertex.inputs):
        joins.verdicts[index] = why.SAME_OPERAND, view.vertices[vertex.inputs[0]].value
    elif (bias := next((u for u in vertex.inputs if not view.vertices[u].data), None)) is not None:
        joins.verdicts[index] = why.BIAS, f"{view.vertices[bias].value} does not depend on the input"
    else:
        names = " nor ".join(view.vertices[u].value for u in vertex.inputs[:2])
        joins.verdicts[index] = why.NO_SKIP, f"neither {names} leads straight back to what the other is computed from"
    return False


def _candidate(facts: Facts, operands: tuple[int, ...], place: int, chain: list[tuple[int, Chain]]) -> Candidate | None:
    """Walks up from one operand to the first fork that another operand descends from."""
    for fork, above in chain:
        branches, known = [], 0
        for at, operand in enumerate(operands):
            if at != place and (between := facts.between(fork, operand)) is not None:
                branches.append(operand)
                known |= between
        if branches:
            return Candidate(operands[place], fork, above, branches, known)
    return None


def _judge(joins: Joins, index: int, candidate: Candidate) -> tuple[str, str]:
    """Applies the rule and its exceptions to one candidate; ("", "") when it is a residual connection."""
    view, facts, chain = joins.view, candidate.facts, candidate.chain
    vertices = view.vertices
    fork, branch = vertices[candidate.fork].value, vertices[candidate.branches[0]].value
    # The rule: weights on the way, or mixing between parameters.
    if not facts & WEIGHTED and not (
        facts & MIXED and (facts & PARAMETER or _next_to_norm(view, candidate.fork, index))
    ):
        return why.NO_WEIGHTED_OP, f"nothing between {fork} and {branch} has weights"
    # A tensor that is added to several values is no branch.
    used = next((b for b in candidate.branches if read_elsewhere(view, b, index)), None)
    if used is not None:
        return why.BRANCH_USED_ELSEWHERE, f"{vertices[used].value} has other readers than this add"
    # A position embedding that meets the stream again: exporters merge equal constants.
    if not vertices[candidate.fork].data and any(
        _is_join(joins, b) and not _joins_same_fork(joins, b, candidate.fork) for b in candidate.branches
    ):
        return why.BIAS, f"{fork} does not depend on the input and {branch} is a join of the stream already"
    # Only a softmax or a choice of the largest reads it.
    if _feeds_choice(view, index):
        return why.LOGITS_BIAS, "the sum goes into a softmax or decides which elements are chosen"
    # x + gate·x, x + z·(h - x).
    if any(_is_gate(view, b, candidate) for b in candidate.branches):
        return why.GATE, f"{branch} is a product with {fork} itself"
    # x[:, :a] + f(x[:, a:]).
    if not facts & WHOLE and _reads_other_parts(view, candidate):
        return why.OTHER_PART, f"{branch} is computed from other parts of {fork} than the skip"
    # Back from a lower resolution: upsampled last, over joins on the way, or on every way there is without attention.
    if chain.upsampled:
        if facts & COARSE:
            return why.LONG_SKIP, f"the path from {fork} to {branch} goes through a lower resolution"
    elif facts & UPSAMPLED and (
        facts & JOINED or not facts & (LEVEL | MIXED) or any(_upsampled_last(view, b) for b in candidate.branches)
    ):
        return why.LONG_SKIP, f"the path from {fork} to {branch} is upsampled"
    # W x + U h of a recurrent cell.
    if chain.maps and feeds_gates(view, index):
        return why.GATE, "the sum is made into gates alone, which multiply other values"
    # Added in every layer and changed by none.
    if joins.entries.is_condition(candidate.fork, chain, facts, index):
        return why.CONDITION, f"{fork} is added in other places, too, and is handed on by none of them"
    if chain.projection:
        if any(_joins_same_fork(joins, b, candidate.fork) for b in candidate.branches):
            return why.BRANCH_SUM, f"{branch} is a join of {fork} already"
        if chain.weight and any(chain.weight == last_weight(view, b) for b in candidate.branches):
            return why.SHARED_MAP, f"both sides pass {chain.weight}"
        if not facts & NONLINEAR or depth(facts) < chain.maps + chain.active:
            return why.PARALLEL_MAPS, f"between {fork} and {branch} is no more than on the other side"
    elif chain.scaled and not (len(view.consumers[index]) > 1 or _is_join(joins, candidate.fork)):
        return why.SCALED_SKIP, f"the skip from {fork} is scaled per channel"
    candidate.rank = (2 if chain.projection else 1 if chain.scaled else 0, chain.maps)
    return "", ""


# What the exceptions ask ----------------------------------------------------------------------------------------------


def _next_to_norm(view: GraphView, fork: int, index: int) -> bool:
    """Tells whether a norm makes the fork or reads the join: the post-norm form of a branch without weights."""
    below = only_reader(view, index)
    return view.vertices[view.up(fork)].role is Role.NORM or (
        below is not None and view.vertices[below].role is Role.NORM
    )


def _feeds_choice(view: GraphView, index: int) -> bool:
    """Tells whether all that is read below, through masks, scales and reshapes, is a softmax or the elements' order."""
    for _ in range(LONGEST_CHAIN):
        below = view.consumers[index]
        values = [reader for reader in below if view.vertices[reader].role is not Role.META]
        if not values:
            return bool(below) and index not in view.outputs
        roles = {view.vertices[reader].role for reader in values}
        if Role.SOFTMAX in roles:
            return True
        if len(values) != 1 or not roles <= {*LAYOUT, Role.ADD, Role.MUL, Role.SELECT}:
            return False
        index = values[0]
    return False


def _is_gate(view: GraphView, branch: int, candidate: Candidate) -> bool:
    """Tells whether a branch is x·g(x), a mix of x by factors computed from it, or z·(h - x)."""
    vertices = view.vertices
    product = vertices[unscaled(view, branch)]
    if len(product.inputs) < 2 or product.role not in (Role.MUL, Role.LINEAR) or product.scale or product.weighted:
        return False
    origins = {view.up(candidate.fork, LAYOUT), view.up(candidate.skip, LAYOUT)}
    for u in product.inputs:
        factor = vertices[top := view.up(u, LAYOUT)]
        if top in origins:
            return True
        if factor.role is Role.SUB and any(view.up(v, (*LAYOUT, Role.SLICE)) in origins for v in factor.inputs):
            return True
    return False


def _reads_other_parts(view: GraphView, candidate: Candidate) -> bool:
    """Tells whether the skip is made of a slice of the fork, and all other slices of the fork lie beside that one."""
    index, part = candidate.skip, -1
    for _ in range(LONGEST_CHAIN):
        vertex = view.vertices[index]
        if index == candidate.fork or not vertex.inputs:
            break
        if vertex.role not in LAYOUT:
            part = index
        index = next((u for u in vertex.inputs if view.vertices[u].data), vertex.inputs[0])
    own = view.vertices[part]
    if part < 0 or own.role is not Role.SLICE:
        return False
    others = [view.vertices[reader] for reader in readers(view, candidate.fork) if reader != part]
    return all(_is_beside(own, other) for other in others if other.role is Role.SLICE)


def _is_beside(one: Vertex, other: Vertex) -> bool:
    """Tells whether two slices of one value have no element in common."""
    if one.window is None or other.window is None or one.axis != other.axis:
        return False
    return one.window[1] <= other.window[0] or other.window[1] <= one.window[0]


def _upsampled_last(view: GraphView, branch: int) -> bool:
    roles = (Role.PASS, Role.RESHAPE, Role.NORM, Role.ACTIVATION, Role.SLICE)
    return view.vertices[view.up(branch, roles)].role is Role.UPSAMPLE


def _joins_same_fork(joins: Joins, branch: int, fork: int) -> bool:
    """Tells whether a branch is a join of the fork already, or such a join and further branches: (x + a) + b."""
    view, stack = joins.view, [branch]
    for _ in range(LONGEST_CHAIN):
        if not stack:
            break
        top = view.up(stack.pop())
        vertex = view.vertices[top]
        if vertex.role is Role.LAUREL:
            return any(fork == other for other, _ in forks(view, vertex.inputs[0], on_chain))
        if (join := joins.found.get(top)) is not None:
            if join.fork == fork:
                return True
        elif vertex.role is Role.ADD:
            stack.extend(reversed(vertex.inputs))
    return False


def _is_join(joins: Joins, index: int) -> bool:
    top = joins.view.up(index)
    return top in joins.found or joins.view.vertices[top].role is Role.LAUREL


def _rejected(joins: Joins, kept: set[int]) -> Iterator[Evidence]:
    for index, vertex in enumerate(joins.view.vertices):
        if vertex.role is not Role.ADD or index in kept or vertex.op == "bias":
            continue
        if vertex.live:
            reason, detail = joins.verdicts.get(index, (why.BIAS, "at most one operand depends on the input"))
        else:
            reason = why.INSIDE_NORM if vertex.folded else why.UNUSED
            detail = why.REASONS[reason]
        verdict = Rejected(vertex.name or vertex.key, reason, detail, why.NEAR.get(reason, 0.0))
        if (near := joins.nearest.get(index)) is None:
            yield Evidence(verdict, (index,))
        else:
            yield Evidence(verdict, (index,), near.fork, near.skip, tuple(near.branches))
