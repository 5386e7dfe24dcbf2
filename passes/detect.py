"""Finds the residual connections of a graph: the rule, and every exception to it, in one place.

The rule
    A *join* is an add J of activations of J's own shape. Walk up from an operand s of J through operators of one
    input: the *chain*. The first value c on it from which another operand b descends makes ``(c, b)`` a candidate.
    It is a residual connection when **a weighted operator lies on the path from c to b**. What stands on the chain
    decides:

    - nothing, or pass-through, reshapes, slices, a scalar scale: *identity*;
    - a vector scale too: identity, where J is read twice or c is itself a join;
    - a norm, a pool, up to two convolutions or one linear map: *projection*, with the longer side holding the
      non-linearity; an activation may stand before the map (pre-activation nets) when the branch is longer still.

    A branch without weights counts when it mixes positions (attention, FFT, pooling) and holds a norm or a scale.

What else the graph is asked is written at each exception in :func:`_judge`. No names, no templates: an architecture
that nobody has seen is as good as any other.

Cost
    One sweep in topological order. Facts about the paths from a fork travel only as long as the fork *lives*, that is
    until the last add that has it on a chain: O(edges · forks alive at a time), 2 for transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from laurel_graph.residual import Detection, Rejected
from laurel_graph.view import GraphView, Role, Shape, Vertex

from .streams import Found, residuals

BROADCAST = "broadcast"
BIAS = "bias"
NOT_FLOAT = "not-float"
UNUSED = "unused"
INSIDE_NORM = "inside-norm"
NO_SKIP = "no-skip"
NO_WEIGHTED_OP = "no-weighted-op"
BRANCH_USED_ELSEWHERE = "branch-used-elsewhere"
LONG_SKIP = "long-skip"
LOGITS_BIAS = "logits-bias"
GATE = "gate"
SCALED_SKIP = "scaled-skip"
PARALLEL_MAPS = "parallel-maps"
SHARED_MAP = "shared-map"
BRANCH_SUM = "branch-sum"
SAME_OPERAND = "same-operand"

REASONS = {
    BROADCAST: "the operands have different shapes",
    BIAS: "one operand does not depend on the input: a bias, a mask, a position embedding, an epsilon",
    NOT_FLOAT: "it adds integers: indices or sizes",
    UNUSED: "no output depends on it",
    INSIDE_NORM: "it belongs to a norm that is written out: an epsilon",
    NO_SKIP: "no operand leads straight back to a value that the other is computed from",
    NO_WEIGHTED_OP: "no weighted operator lies between the fork and the add: arithmetic inside a layer",
    BRANCH_USED_ELSEWHERE: "the branch is read elsewhere too: a position embedding or a mask is added again",
    LONG_SKIP: "the branch comes back from another resolution: a long skip (U-Net, FPN)",
    LOGITS_BIAS: "only a softmax reads the sum: a bias on attention logits",
    GATE: "the branch is the skip itself times a gate, or an interpolation with it (squeeze-excite, GRU)",
    SCALED_SKIP: "the skip is scaled per channel inside a layer (the D·x of Mamba)",
    PARALLEL_MAPS: "both operands are short linear maps of one value: a re-parameterised sum or a merge of experts",
    SHARED_MAP: "both operands pass the same weights: one head on two inputs",
    BRANCH_SUM: "it adds branches of one residual connection, or a branch to another",
    SAME_OPERAND: "it adds a value to itself",
}
"""Every reason a :class:`~laurel_graph.residual.Rejected` may carry, with what it means."""

_NEAR = {
    LONG_SKIP: 0.9,
    GATE: 0.8,
    PARALLEL_MAPS: 0.75,
    SCALED_SKIP: 0.7,
    SHARED_MAP: 0.65,
    BRANCH_USED_ELSEWHERE: 0.6,
    BRANCH_SUM: 0.6,
    LOGITS_BIAS: 0.5,
    NO_WEIGHTED_OP: 0.4,
    NO_SKIP: 0.2,
    BROADCAST: 0.15,
    SAME_OPERAND: 0.1,
}

# What is known about the paths from a fork to a value, as bits; over several paths they are united.
WEIGHTED, MIXED, PARAMETER, NONLINEAR, UPSAMPLED, JOINED = 1, 2, 4, 8, 16, 32
_DEPTH_SHIFT, _DEPTH_MASK = 8, 0xF00  # weighted operators in a row, up to four, one bit each: union is maximum

_LONGEST_CHAIN = 64
_LONGEST_CONCAT = 8


@dataclass(frozen=True, slots=True)
class Chain:
    """What stands between a value and the add below it."""

    scaled: bool = False
    changed: bool = False
    convs: int = 0
    linears: int = 0
    active: bool = False
    weight: str = ""

    @property
    def projection(self) -> bool:
        """Whether it makes the skip a projection."""
        return self.changed or bool(self.convs or self.linears)


@dataclass(slots=True)
class _Candidate:
    skip: int
    fork: int
    chain: Chain
    branches: list[int]
    facts: int
    reason: str = ""
    detail: str = ""
    rank: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _State:
    view: GraphView
    chains: dict[int, list[list[tuple[int, Chain]]]] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    facts: list[dict[int, int] | None] = field(default_factory=list)
    joins: dict[int, _Candidate] = field(default_factory=dict)
    verdicts: dict[int, tuple[str, str]] = field(default_factory=dict)


def detect(view: GraphView) -> Detection:
    """Returns a verdict on every add of *view*: a residual connection, or the reason why not."""
    state = _State(view)
    _find_chains(state)
    _sweep(state)
    found = _merge_branches(state)
    kept = {key for item in found for key in item.adds}
    return Detection(
        model=view.model,
        residuals=residuals(view, found),
        rejected=tuple(_rejected(state, kept)),
        nodes=view.nodes,
        notes=tuple(view.notes),
    )


# Chains ---------------------------------------------------------------------------------------------------------------


def _find_chains(state: _State) -> None:
    """Notes the forks above every operand of every add, and how long each has to be remembered."""
    view = state.view
    for index, vertex in enumerate(view.vertices):
        if vertex.role is not Role.ADD or not vertex.live or not vertex.data or len(vertex.inputs) < 2:
            continue
        end = _outermost(view, index)
        chains = [list(_forks(view, operand)) for operand in vertex.inputs]
        state.chains[index] = chains
        for chain in chains:
            for fork, _ in chain:
                if state.last.get(fork, -1) < end:
                    state.last[fork] = end


def _outermost(view: GraphView, index: int) -> int:
    """Follows single-consumer adds downwards: (x + a) + b ends at the outer one."""
    for _ in range(_LONGEST_CHAIN):
        below = _only_reader(view, index)
        if below is None or view.vertices[below].role is not Role.ADD:
            break
        index = below
    return index


def _only_reader(view: GraphView, index: int) -> int | None:
    """Returns the one vertex that reads *index*, looking through casts and dropout; ``None`` if there are more."""
    for _ in range(_LONGEST_CHAIN):
        readers = view.consumers[index]
        if len(readers) != 1:
            return None
        index = readers[0]
        if view.vertices[index].role is not Role.PASS:
            return index
    return None


def _forks(view: GraphView, operand: int) -> Iterator[tuple[int, Chain]]:
    """Yields the values with several readers on the chain above *operand*, nearest first."""
    stack = [(operand, Chain())]
    for _ in range(_LONGEST_CHAIN):
        if not stack:
            return
        index, chain = stack.pop()
        if len(view.consumers[index]) > 1:
            yield index, chain
        vertex = view.vertices[index]
        if vertex.role is Role.LAUREL:
            if vertex.inputs and len(view.consumers[index]) == 1:  # a further branch is added to a rewritten join
                stack.append((vertex.inputs[0], chain))
            continue
        above = _above(view, vertex, chain)
        if above is not None:
            parts = vertex.inputs if vertex.role is Role.CONCAT else vertex.inputs[:1]
            if vertex.role not in (Role.PASS, Role.RESHAPE, Role.SLICE, Role.CONCAT):
                parts = tuple(u for u in vertex.inputs if view.vertices[u].data)
            stack.extend((part, above) for part in reversed(parts[:_LONGEST_CONCAT]))


def _above(view: GraphView, vertex: Vertex, chain: Chain) -> Chain | None:
    """Returns the chain with *vertex* on it, ``None`` if it may not stand on one."""
    role = vertex.role
    if not vertex.inputs:
        return None
    if role in (Role.PASS, Role.RESHAPE, Role.SLICE, Role.CONCAT):
        return chain
    data = [u for u in vertex.inputs if view.vertices[u].data]
    if len(data) != 1:
        return None
    if role is Role.MUL:
        return chain if vertex.scale == 1 else replace(chain, scaled=True)
    if role in (Role.NORM, Role.POOL, Role.ADD, Role.SUB):
        return replace(chain, changed=True)
    if role is Role.ACTIVATION and (chain.convs or chain.linears) and not chain.active:
        return replace(chain, active=True)
    if role is Role.CONV and vertex.weighted and chain.convs < 2 and not chain.linears:
        return replace(chain, convs=chain.convs + 1, weight=chain.weight or vertex.weight)
    if role is Role.LINEAR and vertex.weighted and not chain.convs and not chain.linears:
        return replace(chain, linears=1, weight=vertex.weight)
    return None


# The sweep ------------------------------------------------------------------------------------------------------------


_ROLE_BITS = {
    Role.MIX: MIXED | NONLINEAR,
    Role.ACTIVATION: NONLINEAR,
    Role.SOFTMAX: NONLINEAR,
    Role.WEIGHTED: NONLINEAR,
    Role.NORM: PARAMETER,
    Role.UPSAMPLE: UPSAMPLED,
    Role.LAUREL: JOINED,
}


def _bits(vertex: Vertex) -> int:
    """What a vertex adds to the facts of every path through it."""
    bits = _ROLE_BITS.get(vertex.role, 0)
    if vertex.weighted:
        return bits | WEIGHTED | (NONLINEAR if vertex.quantised else 0)
    if vertex.mixes:
        bits |= MIXED
    if vertex.quantised:  # rounding clips: quantisers drop a ReLU in front of it
        bits |= NONLINEAR
    if vertex.role is Role.LINEAR:
        bits |= MIXED | NONLINEAR
    elif vertex.role is Role.MUL:
        bits |= NONLINEAR if not vertex.scale else PARAMETER if vertex.scale != 1 else 0
    return bits


def _depth(facts: int) -> int:
    return (facts & _DEPTH_MASK).bit_count()


def _sweep(state: _State) -> None:
    """Carries facts down the graph and judges each add as it comes."""
    view, last = state.view, state.last
    waiting = [len(readers) for readers in view.consumers]
    facts: list[dict[int, int] | None] = [None] * len(view.vertices)
    state.facts = facts
    for index, vertex in enumerate(view.vertices):
        if not vertex.live:
            continue
        merged = _merged(state, index, vertex)
        if index in state.chains:
            _judge_add(state, index, vertex)
            if index in state.joins:
                merged = {fork: known | JOINED for fork, known in merged.items()}
        else:
            _release(state, vertex, waiting)
        if last.get(index, -1) > index:
            merged = {**merged, index: 0}
        facts[index] = merged or None


def _merged(state: _State, index: int, vertex: Vertex) -> dict[int, int]:
    """Unites the facts of what *vertex* reads, about forks that are still alive, and adds its own."""
    facts, last = state.facts, state.last
    above = [known for u in vertex.inputs if (known := facts[u])]
    if not above or vertex.role is Role.META:
        return {}
    bits = _bits(vertex)
    if not bits and len(above) == 1:
        return above[0]
    merged: dict[int, int] = {}
    for known in above:
        for fork, fact in known.items():
            if last[fork] >= index:
                if vertex.weighted:
                    fact |= ((fact & _DEPTH_MASK) << 1 | 1 << _DEPTH_SHIFT) & _DEPTH_MASK
                merged[fork] = merged.get(fork, 0) | fact | bits
    return merged


def _release(state: _State, vertex: Vertex, waiting: list[int]) -> None:
    """Forgets the facts of values that nothing further down reads."""
    for u in dict.fromkeys(vertex.inputs):
        waiting[u] -= 1
        if not waiting[u]:
            state.facts[u] = None


# Judging one add ------------------------------------------------------------------------------------------------------


def _judge_add(state: _State, index: int, vertex: Vertex) -> None:
    """Finds the best candidate of one add and keeps it, or the reason of the one that came nearest."""
    view = state.view
    if (early := _no_join(view, vertex)) is not None:
        state.verdicts[index] = early
        return
    candidates = [c for place in range(len(vertex.inputs)) if (c := _candidate(state, index, place)) is not None]
    for candidate in candidates:
        candidate.reason, candidate.detail = _judge(state, index, candidate)
    passed = [c for c in candidates if not c.reason]
    if passed:
        state.joins[index] = min(passed, key=lambda c: c.rank)
        return
    nearest = max(candidates, key=lambda c: _NEAR.get(c.reason, 0.0), default=None)
    if nearest is not None:
        state.verdicts[index] = nearest.reason, nearest.detail
    elif len(set(vertex.inputs)) < len(vertex.inputs):
        state.verdicts[index] = SAME_OPERAND, view.vertices[vertex.inputs[0]].value
    elif (bias := next((u for u in vertex.inputs if not view.vertices[u].data), None)) is not None:
        state.verdicts[index] = BIAS, f"{view.vertices[bias].value} does not depend on the input"
    else:
        names = " nor ".join(view.vertices[u].value for u in vertex.inputs[:2])
        state.verdicts[index] = NO_SKIP, f"neither {names} leads straight back to what the other is computed from"


def _no_join(view: GraphView, vertex: Vertex) -> tuple[str, str] | None:
    if vertex.dtype is not None and vertex.dtype.startswith(("int", "uint", "bool")) and not vertex.quantised:
        return NOT_FLOAT, f"its elements are {vertex.dtype}"
    for u in vertex.inputs:
        if not view.vertices[u].data and (vertex.shape is None or view.vertices[u].shape != vertex.shape):
            return BIAS, f"{view.vertices[u].value} does not depend on the input"
        if not _same_shape(view.vertices[u].shape, vertex.shape):
            return BROADCAST, f"{view.vertices[u].value} has shape {view.vertices[u].shape}, the sum {vertex.shape}"
    return None


def _same_shape(one: Shape | None, other: Shape | None) -> bool:
    """Compares two shapes; what is unknown or symbolic fits anything."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(one, other, strict=True)
    )


def _candidate(state: _State, index: int, place: int) -> _Candidate | None:
    """Walks up from one operand to the first fork that another operand descends from."""
    operands = state.view.vertices[index].inputs
    for fork, chain in state.chains[index][place]:
        branches = [b for at, b in enumerate(operands) if at != place and fork in (state.facts[b] or {})]
        if branches:
            facts = 0
            for b in branches:
                facts |= (state.facts[b] or {})[fork]
            return _Candidate(operands[place], fork, chain, branches, facts)
    return None


def _judge(state: _State, index: int, candidate: _Candidate) -> tuple[str, str]:
    """Applies the rule and its exceptions to one candidate; ("", "") when it is a residual connection."""
    view, facts, chain = state.view, candidate.facts, candidate.chain
    vertices = view.vertices
    fork, branch = vertices[candidate.fork].value, vertices[candidate.branches[0]].value
    # The rule: weights on the way, or mixing between parameters.
    if not facts & WEIGHTED and not (
        facts & MIXED and (facts & PARAMETER or _next_to_norm(view, candidate.fork, index))
    ):
        return NO_WEIGHTED_OP, f"nothing between {fork} and {branch} has weights"
    # A tensor that is added to several values is no branch.
    used = next((b for b in candidate.branches if _read_elsewhere(view, b, index)), None)
    if used is not None:
        return BRANCH_USED_ELSEWHERE, f"{vertices[used].value} has other readers than this add"
    # Only a softmax reads it.
    if _feeds_softmax(view, index):
        return LOGITS_BIAS, "the sum goes into a softmax"
    # x + gate·x, x + z·(h - x).
    if any(_is_gate(view, b, candidate) for b in candidate.branches):
        return GATE, f"{branch} is a product with {fork} itself"
    # Back from a lower resolution: upsampled last, or over joins on the way.
    if facts & UPSAMPLED and (facts & JOINED or any(_upsampled_last(view, b) for b in candidate.branches)):
        return LONG_SKIP, f"the path from {fork} to {branch} is upsampled"
    if chain.projection:
        if any(_joins_same_fork(state, b, candidate.fork) for b in candidate.branches):
            return BRANCH_SUM, f"{branch} is a join of {fork} already"
        shorter = chain.convs + chain.linears
        if chain.weight and any(chain.weight == _last_weight(view, b) for b in candidate.branches):
            return SHARED_MAP, f"both sides pass {chain.weight}"
        if not facts & NONLINEAR or _depth(facts) < shorter + chain.active:
            return PARALLEL_MAPS, f"between {fork} and {branch} is no more than on the other side"
    elif chain.scaled and not (len(view.consumers[index]) > 1 or _is_join(state, candidate.fork)):
        return SCALED_SKIP, f"the skip from {fork} is scaled per channel"
    candidate.rank = (2 if chain.projection else 1 if chain.scaled else 0, chain.convs + chain.linears)
    return "", ""


def _next_to_norm(view: GraphView, fork: int, index: int) -> bool:
    """Tells whether a norm makes the fork or reads the join: the post-norm form of a branch without weights."""
    below = _only_reader(view, index)
    return view.vertices[view.up(fork)].role is Role.NORM or (
        below is not None and view.vertices[below].role is Role.NORM
    )


def _read_elsewhere(view: GraphView, branch: int, add: int) -> bool:
    for _ in range(_LONGEST_CHAIN):
        if any(reader != add for reader in view.consumers[branch]):
            return True
        vertex = view.vertices[branch]
        if vertex.role is not Role.PASS or not vertex.inputs:
            return False
        add, branch = branch, vertex.inputs[0]
    return False


def _feeds_softmax(view: GraphView, index: int) -> bool:
    """Tells whether all that is read below, through masks, scales and reshapes, is a softmax."""
    for _ in range(_LONGEST_CHAIN):
        readers = view.consumers[index]
        if not readers:
            return False
        roles = {view.vertices[reader].role for reader in readers}
        if Role.SOFTMAX in roles:
            return True
        if len(readers) != 1 or not roles <= {Role.PASS, Role.RESHAPE, Role.ADD, Role.MUL}:
            return False
        index = readers[0]
    return False


_LAYOUT = (Role.PASS, Role.RESHAPE)


def _is_gate(view: GraphView, branch: int, candidate: _Candidate) -> bool:
    """Tells whether a branch is x·g(x), a mix of x by factors computed from it, or z·(h - x)."""
    vertices = view.vertices
    product = vertices[_unscaled(view, branch)]
    if len(product.inputs) < 2 or product.role not in (Role.MUL, Role.LINEAR) or product.scale or product.weighted:
        return False
    origins = {view.up(candidate.fork, _LAYOUT), view.up(candidate.skip, _LAYOUT)}
    for u in product.inputs:
        factor = vertices[top := view.up(u, _LAYOUT)]
        if top in origins:
            return True
        if factor.role is Role.SUB and any(view.up(v, (*_LAYOUT, Role.SLICE)) in origins for v in factor.inputs):
            return True
    return False


def _unscaled(view: GraphView, index: int) -> int:
    """Follows casts, reshapes and constant scales upwards."""
    for _ in range(_LONGEST_CHAIN):
        vertex = view.vertices[index]
        if not vertex.inputs or not (vertex.role in _LAYOUT or (vertex.role is Role.MUL and vertex.scale)):
            break
        index = vertex.inputs[0]
    return index


def _upsampled_last(view: GraphView, branch: int) -> bool:
    roles = (Role.PASS, Role.RESHAPE, Role.NORM, Role.ACTIVATION, Role.SLICE)
    return view.vertices[view.up(branch, roles)].role is Role.UPSAMPLE


def _last_weight(view: GraphView, branch: int) -> str:
    """Name of the weights that the branch passes last, looking through what has none."""
    for _ in range(_LONGEST_CHAIN):
        vertex = view.vertices[branch]
        if vertex.weighted or not vertex.inputs:
            return vertex.weight
        branch = vertex.inputs[0]
    return ""


def _joins_same_fork(state: _State, branch: int, fork: int) -> bool:
    view = state.view
    top = view.up(branch)
    if view.vertices[top].role is Role.LAUREL:
        return any(fork == other for other, _ in _forks(view, view.vertices[top].inputs[0]))
    join = state.joins.get(top)
    return join is not None and join.fork == fork


def _is_join(state: _State, index: int) -> bool:
    top = state.view.up(index)
    return top in state.joins or state.view.vertices[top].role is Role.LAUREL


# Joins of several branches --------------------------------------------------------------------------------------------


def _merge_branches(state: _State) -> list[Found]:
    """Turns the joins into residual connections: (x + a) + b is one with two branches."""
    view = state.view
    for index in sorted(state.joins):
        _drop_inner_sums(state, index)
    sites = _rewritten(state)
    found: list[Found] = []
    taken: set[int] = set()
    for index in sorted(state.joins):
        if index in taken:
            continue
        item = state.joins[index]
        if (low_rank := _laurel_rank(view, item)) is not None:
            found.append(Found("laurel", item.fork, item.skip, tuple(item.branches), (index,), low_rank))
            continue
        adds, branches = [index], list(item.branches)
        while (outer := _outer_branch(state, adds[-1], item)) is not None:
            adds.append(outer[0])
            branches.append(outer[1])
            taken.add(outer[0])
            state.verdicts.pop(outer[0], None)
        site = sites.get(view.up(item.skip))
        if site is not None and view.up(item.fork) not in site.adds:  # (x + a) + b with the inner add rewritten
            site.branches.extend(branches)
            site.adds.extend(adds)
            continue
        kind = "projection" if item.chain.projection else "identity"
        found.append(Found(kind, item.fork, item.skip, tuple(branches), tuple(adds)))
    for site in {id(site): site for site in sites.values()}.values():
        skip = view.vertices[site.adds[0]].inputs[0]
        found.append(Found("laurel", skip, skip, tuple(site.branches), tuple(site.adds), site.rank))
    found.sort(key=lambda item: item.adds[0])
    return found


@dataclass(slots=True)
class _Rewritten:
    """A LAuReL residual that an earlier transformation put in."""

    rank: int
    branches: list[int] = field(default_factory=list)
    adds: list[int] = field(default_factory=list)


def _rewritten(state: _State) -> dict[int, _Rewritten]:
    """Returns the site of every LAuReL vertex; those of one site, for its several branches, share it.

    A sum of its branches in front of it is none of its own, as in :func:`_drop_inner_sums`.
    """
    view = state.view
    sites: dict[int, _Rewritten] = {}
    named: dict[str, _Rewritten] = {}
    for index, vertex in enumerate(view.vertices):
        if vertex.role is not Role.LAUREL or not vertex.live or len(vertex.inputs) < 2:
            continue
        site = named.get(vertex.site) if vertex.site else None
        if site is None or view.up(vertex.inputs[0]) != site.adds[-1]:
            site = named[vertex.site] = _Rewritten(vertex.rank)
        site.adds.append(index)
        site.branches.append(vertex.inputs[1])
        sites[index] = site
        inner = view.up(vertex.inputs[1])
        join = state.joins.get(inner)
        if join is not None and join.chain.projection and view.up(join.fork) == view.up(vertex.inputs[0]):
            del state.joins[inner]
            state.verdicts[inner] = BRANCH_SUM, f"it adds branches of the site {vertex.site or vertex.value}"
    return sites


def _laurel_rank(view: GraphView, item: _Candidate) -> int | None:
    """Returns r where the branch is norm((x·A)·B), the LAuReL block of published models; else ``None``."""
    widths: list[int] = []
    index = item.branches[0]
    for _ in range(_LONGEST_CHAIN):
        if index == item.fork:
            break
        vertex = view.vertices[index]
        data = [u for u in vertex.inputs if view.vertices[u].data]
        if vertex.role is Role.LINEAR and vertex.weighted and vertex.width is not None:
            widths.append(vertex.width)
        elif vertex.role not in (*_LAYOUT, Role.NORM) and not (vertex.role is Role.MUL and vertex.scale):
            return None
        if len(data) != 1:
            return None
        index = data[0]
    return widths[1] if len(widths) == 2 and len(item.branches) == 1 and 2 * widths[1] <= widths[0] else None


def _outer_branch(state: _State, index: int, item: _Candidate) -> tuple[int, int] | None:
    """Returns the add around *index* and its other operand when that is a further branch of the same fork."""
    view = state.view
    below = _only_reader(view, index)
    if below is None or below not in state.verdicts or below not in state.chains:
        return None
    vertex = view.vertices[below]
    if (
        index not in vertex.inputs
        or len(vertex.inputs) != 2
        or state.verdicts[below][0] in (BROADCAST, BIAS, NOT_FLOAT)
    ):
        return None
    other = vertex.inputs[1] if vertex.inputs[0] == index else vertex.inputs[0]
    facts = (state.facts[other] or {}).get(item.fork, 0)
    if not facts & WEIGHTED or _read_elsewhere(view, other, below):
        return None
    return below, other


def _drop_inner_sums(state: _State, index: int) -> None:
    """x + (g(c) + f(c)): the inner sum merges branches of the outer residual connection and is none itself."""
    view, item = state.view, state.joins[index]
    if item.chain.projection:
        return
    for branch in item.branches:
        inner = view.up(branch)
        if inner in state.joins and state.joins[inner].chain.projection and state.joins[inner].fork == item.fork:
            del state.joins[inner]
            state.verdicts[inner] = BRANCH_SUM, f"it adds branches of the join {view.vertices[index].value}"


def _rejected(state: _State, kept: set[int]) -> Iterator[Rejected]:
    view = state.view
    for index, vertex in enumerate(view.vertices):
        if vertex.role is not Role.ADD or index in kept or vertex.op == "bias":
            continue
        if not vertex.live:
            reason = INSIDE_NORM if vertex.folded else UNUSED
            detail = REASONS[reason]
        else:
            reason, detail = state.verdicts.get(index, (BIAS, "at most one operand depends on the input"))
        yield Rejected(vertex.name or vertex.key, reason, detail, _NEAR.get(reason, 0.0))
