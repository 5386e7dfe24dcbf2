"""Gives each residual connection that was found its name, feature axis, and place on a stream."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from laurel_graph.config import MAX_PREVIOUS
from laurel_graph.detection import Residual
from laurel_graph.foreign_names import bare, path_parts
from laurel_graph.graph_view import GraphView, Role, Shape, Vertex

from .copies import LONGEST_WALK, Found, branch_weight, firsts_of

_ON_STREAM = (Role.PASS, Role.RESHAPE, Role.NORM, Role.ACTIVATION, Role.SLICE, Role.POOL, Role.CONCAT)
_SAME_ELEMENTS = (Role.PASS, Role.NORM, Role.ACTIVATION, Role.POOL, Role.SOFTMAX, Role.MATH)
_SOME = (Role.SLICE, Role.UPSAMPLE)


def residuals(view: GraphView, found: Sequence[Found]) -> tuple[Residual, ...]:
    """Returns one residual connection for each of *found*, in topological order, named and placed on their streams.

    One that stands in several bodies of an If, because each of them holds the network, is one site: the first of them
    has the others as its ``copies``.
    """
    streams, segments = _streams(view, found)
    axes = _feature_axes(view, found, streams)
    firsts = firsts_of(view, found, axes)
    once = [place for place, first in enumerate(firsts) if place == first]
    formerly = _names(view, found, [view.vertices[item.adds[-1]].scope for item in found], once)
    named = _names(view, found, [_scope(view, item) for item in found], once)
    former, names = ([listed[first] for first in firsts] for listed in (formerly, named))
    shared = _shared(view, found, once)
    made: list[Residual] = []
    length: Counter[int] = Counter()
    alike: dict[tuple[int, Shape, int], list[int]] = defaultdict(list)
    for place, item in enumerate(found):
        join, outer = view.vertices[item.adds[0]], view.vertices[item.adds[-1]]
        axis, width = axes[place]
        shape = join.shape
        groups = _alike(shape, streams[place], segments[place])
        linked = item.kind != "laurel" or join.role is Role.LAUREL  # a site of ours counts as what it was before
        before = {other for group in groups for other in alike[group][-MAX_PREVIOUS:]} if linked else set()
        previous = [names[other] for other in sorted(before, reverse=True)[:MAX_PREVIOUS]]
        blocked = next((view.vertices[add].blocked for add in item.adds if view.vertices[add].blocked), item.note)
        made.append(
            Residual(
                site=names[place],
                kind=item.kind,
                skip=view.vertices[item.skip].value,
                branches=tuple(view.vertices[b].value for b in item.branches),
                join=outer.name or outer.key,
                joins=tuple(view.vertices[add].key for add in item.adds),
                axis=axis if axis in (-1, 1) else -1,
                width=width,
                shape=shape,
                dtype=join.dtype if join.dtype in _FLOATS else None,
                stream=streams[place],
                index=length[streams[place]],
                previous=tuple(previous),
                fork=view.vertices[item.fork].value,
                source=join.source or (join.scope or ""),
                shared=shared[place],
                blocked=blocked or _blocked(axis, width, join),
                rank=item.rank,
                former=former[place] if former[place] != names[place] else "",
                body=join.body,
            )
        )
        length[streams[place]] += 1
        for group in groups if linked else ():
            alike[group].append(place)
    return tuple(
        replace(residual, copies=tuple(other for other, first in zip(made, firsts, strict=True) if first == place)[1:])
        if firsts[place] == place
        else residual
        for place, residual in enumerate(made)
    )


def _alike(shape: Shape | None, stream: int, segment: int) -> list[tuple[int, Shape, int]]:
    """The groups of sites that a site's shape makes it one of: those of one shape, and those of its segment.

    Sizes that are unknown, or go by several names, are the same where nothing between two sites changes a shape.
    """
    if shape is None:
        return []
    sizes = tuple(size if isinstance(size, int) else None for size in shape)
    return [(stream, sizes, segment)] + ([(stream, shape, -1)] if None not in shape else [])


_FLOATS = ("float32", "float16", "bfloat16", "float64")


def _blocked(axis: int, width: int | None, join: Vertex) -> str:
    if axis not in (-1, 1):
        return f"its feature axis is {axis} of {join.shape}; only the last axis and axis 1 are supported"
    if width is None:
        return "the size of its feature axis is unknown; give example inputs or a file with shapes"
    if join.dtype is not None and join.dtype not in _FLOATS:
        return f"its elements are {join.dtype}"
    return ""


# Names ----------------------------------------------------------------------------------------------------------------


def _names(
    view: GraphView, found: Sequence[Found], scopes: Sequence[str | None], once: Sequence[int]
) -> dict[int, str]:
    """Module path and a number; without a path the join's own name. Those of *once* are named."""
    count: Counter[str] = Counter()
    used: set[str] = {view.vertices[item.adds[0]].site for item in found} - {""}
    names: dict[int, str] = {}
    for place in once:
        item, scope = found[place], scopes[place]
        join = view.vertices[item.adds[-1]]
        if site := view.vertices[item.adds[0]].site:
            names[place] = site
            continue
        if scope is None:
            name = unique = "res_" + _identifier(join.name or bare(join.key, join.body)).replace(".", "_")
            number = 1
        else:
            path = _identifier(scope) if scope else ""
            count[path] += 1
            number = count[path]
            name = f"{path}.res" if path else "res"
            unique = f"{name}{number}"
        while unique in used:
            number += 1
            unique = f"{name}{number}" if scope is not None else f"{name}_{number}"
        used.add(unique)
        names[place] = unique
    return names


def _scope(view: GraphView, item: Found) -> str | None:
    """The module that a join belongs to: the one it was written in.

    An add that is hidden in another operator, a norm that follows it or the product before it, has the module of that
    operator. Its own is the innermost one that holds the whole branch, as it is where the add stands by itself.
    """
    join = view.vertices[item.adds[-1]]
    if not join.fused or not join.scope:
        return join.scope
    paths = [scope.split(".") for index in _branch(view, item) if (scope := view.vertices[index].scope)]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in same) or join.scope


def _branch(view: GraphView, item: Found) -> set[int]:
    """The vertices between the fork and the adds; vertices stand after what they read."""
    above, wanted = set(), list(item.branches)
    while wanted:
        index = wanted.pop()
        if index > item.fork and index not in above:
            above.add(index)
            wanted.extend(view.vertices[index].inputs)
    below = {item.fork}
    for index in sorted(above):
        if below.intersection(view.vertices[index].inputs):
            below.add(index)
    return below - {item.fork}


def _identifier(name: str) -> str:
    return ".".join(path_parts(name.strip(".")))


# The feature axis -----------------------------------------------------------------------------------------------------


def _feature_axes(view: GraphView, found: Sequence[Found], streams: Sequence[int]) -> list[tuple[int, int | None]]:
    """Returns axis (-1, 1, or another where that is what it is) and width D, ``None`` if unknown, per residual.

    One stream keeps its axis as long as it keeps its shape, so that a branch along another axis (token mixing) does not
    turn it.
    """
    axes: list[tuple[int, int | None]] = []
    before: dict[int, tuple[Shape, tuple[int, int | None]]] = {}
    for item, stream in zip(found, streams, strict=True):
        shape = view.vertices[item.adds[0]].shape
        kept = before.get(stream)
        axis = kept[1] if kept is not None and kept[0] == shape else _feature_axis(view, item)
        if shape is not None:
            before[stream] = shape, axis
        axes.append(axis)
    return axes


def _feature_axis(view: GraphView, item: Found) -> tuple[int, int | None]:
    join = view.vertices[item.adds[0]]
    shape = join.shape
    if join.role is Role.LAUREL:
        shape = shape or view.vertices[item.skip].shape
        size = shape[join.axis] if shape is not None and len(shape) > 1 else None
        return join.axis, join.width or (size if isinstance(size, int) else None)
    answers = [_axis_above(view, operand, shape) for operand in (item.skip, *item.branches)]
    below = (_axis_above(view, reader, shape) for reader in view.consumers[item.adds[-1]][:2])
    found = [answer for answer in answers if answer is not None]
    if not found:  # the width of a reader is its own
        found.extend([(answer[0], None) for answer in below if answer is not None][:1])
    axis = found[0][0] if found else 1 if shape is not None and len(shape) == 4 else -1
    width = next((size for other, size in found if other == axis and size is not None), None)
    if not shape:  # unknown, or a single number
        return axis, width
    rank = len(shape)
    axis = axis if -rank <= axis < rank else -1
    axis = -1 if axis % rank == rank - 1 else axis % rank
    size = shape[axis]
    return axis, size if isinstance(size, int) else width


def _axis_above(view: GraphView, index: int, shape: Shape | None) -> tuple[int, int | None] | None:
    """Walks up from an operand to the operator that made its features; follows the axis through transposes."""
    back: list[tuple[int, ...]] = []
    part = False
    for _ in range(LONGEST_WALK):
        vertex = view.vertices[index]
        if vertex.role in (Role.CONV, Role.LINEAR, Role.WEIGHTED, Role.UPSAMPLE) and vertex.weighted:
            spatial = vertex.role in (Role.CONV, Role.UPSAMPLE)
            axis = vertex.axis if spatial else -1
            if axis == 1 and spatial and vertex.shape is None and shape is None and back:
                return None
            moved = _moved(axis, vertex, back, shape)
            return (moved[0], None) if moved is not None and part else moved
        # of features, perhaps: the operator above is wider then
        part = part or vertex.role in _SOME
        if vertex.role is Role.RESHAPE:
            if vertex.permutation is None:
                width = _width_above(view, vertex.inputs[0]) if vertex.inputs else None
                return _axis_of_size(shape, width)
            back.append(vertex.permutation)
        elif (
            vertex.role not in (*_SAME_ELEMENTS, *_SOME, Role.MUL, Role.ADD, Role.SUB, Role.LAUREL) or not vertex.inputs
        ):
            return None
        index = next((u for u in vertex.inputs if view.vertices[u].data), vertex.inputs[0])
    return None


def _moved(
    axis: int, vertex: Vertex, back: Sequence[tuple[int, ...]], shape: Shape | None
) -> tuple[int, int | None] | None:
    """Follows *axis* of *vertex* down through the transposes below it."""
    rank = len(back[-1]) if back else len(shape) if shape is not None else 0
    if back:
        axis %= rank
        for permutation in reversed(back):
            if axis >= len(permutation):
                return None
            axis = permutation.index(axis)
        axis = axis - rank if axis == rank - 1 else axis
    return axis, vertex.width


def _width_above(view: GraphView, index: int) -> int | None:
    for _ in range(LONGEST_WALK):
        vertex = view.vertices[index]
        if vertex.weighted:
            return vertex.width
        if not vertex.inputs or vertex.role not in (*_SAME_ELEMENTS, Role.RESHAPE, Role.ADD, Role.MUL, Role.SLICE):
            return None
        index = vertex.inputs[0]
    return None


def _axis_of_size(shape: Shape | None, width: int | None) -> tuple[int, int | None] | None:
    if shape is None or width is None or not shape:
        return None
    if shape[-1] == width:
        return -1, width
    return (1, width) if len(shape) > 1 and shape[1] == width else None


# Streams --------------------------------------------------------------------------------------------------------------


def _streams(view: GraphView, found: Sequence[Found]) -> tuple[list[int], list[int]]:
    """Numbers the streams: a residual connection goes on where the last join above its fork left off.

    The second list numbers the segments: stretches of a stream in which no operator changes the shape.
    """
    at_join = {add: place for place, item in enumerate(found) for add in item.adds}
    followed: set[int] = set()
    streams: list[int] = []
    segments: list[int] = []
    count = 0
    for place, item in enumerate(found):
        before, intact = _join_above(view, item.fork, at_join)
        segments.append(place)
        if before is not None and before not in followed and before < place:
            followed.add(before)
            streams.append(streams[before])
            if intact and item.kind == "identity":
                segments[place] = segments[before]
        else:
            streams.append(count)
            count += 1
    return streams, segments


def _join_above(view: GraphView, index: int, at_join: dict[int, int]) -> tuple[int | None, bool]:
    """Walks up norms, activations, scales and reshapes to the join that the value comes from.

    The second result tells whether the shape stayed the same on the way.
    """
    intact = True
    for _ in range(LONGEST_WALK):
        if index in at_join:
            return at_join[index], intact
        vertex = view.vertices[index]
        if (origin := _activated(view, index, at_join)) is not None:
            index = origin
            continue
        data = [u for u in vertex.inputs if view.vertices[u].data]
        unary = vertex.role in _ON_STREAM or (vertex.role in (Role.ADD, Role.MUL) and len(data) == 1)
        if not unary or not vertex.inputs:
            break
        intact &= vertex.role not in (Role.RESHAPE, Role.SLICE, Role.POOL, Role.CONCAT)
        index = data[0] if data else vertex.inputs[0]
    return None, False


_ELEMENTWISE = frozenset({Role.PASS, Role.ACTIVATION, Role.MATH, Role.MUL, Role.ADD, Role.SUB})
_LONGEST_ACTIVATION = 16
"""Vertices of an activation that is written out; GELU by tanh has ten."""


def _activated(view: GraphView, index: int, at_join: Mapping[int, int]) -> int | None:
    """Returns x where *index* is an activation of x that is written out: x·σ(x), x·(1 + erf(x/√2))/2, x·clip(x + 3)/6.

    That is a product of two values that elementwise operators alone make of x.
    """
    vertex = view.vertices[index]
    if vertex.role is not Role.MUL or len({u for u in vertex.inputs if view.vertices[u].data}) < 2:
        return None
    waiting = {u for u in vertex.inputs if view.vertices[u].data}
    for _ in range(_LONGEST_ACTIVATION):
        last = max(waiting)  # the vertices are in topological order: nothing of the others lies below it
        waiting.remove(last)
        if not waiting:
            return last
        made = view.vertices[last]
        if made.role not in _ELEMENTWISE or last in at_join:
            return None
        waiting.update(u for u in made.inputs if view.vertices[u].data)
    return None


def _shared(view: GraphView, found: Sequence[Found], once: Sequence[int]) -> list[str]:
    """Names what several sites have in common: their weights, hence their module. Copies of one site count once."""
    weights = [branch_weight(view, item) for item in found]
    count = Counter(weights[place] for place in once if weights[place])
    return [weight if count[weight] > 1 else "" for weight in weights]
