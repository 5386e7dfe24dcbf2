"""The bodies of both models side by side: each is a model of its own, run on what the graph around it computes.

A sum inside a body cannot be brought out of it without giving its node more outputs, and the bodies that a sample does
not choose would not run at all. So every body in which a residual connection stands is compared as a model: at its
sites and at what it gives out, with the same three comparisons, on the values that the first model feeds it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

from laurel_graph.errors import ModelError, VerificationError
from laurel_graph.foreign_names import printable
from laurel_graph.onnx_model.bodies import Body, inside
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.opset.laurel_node import LaurelNode
from laurel_graph.opset.plain import records_of
from laurel_graph.passes.verify.compare import Verdict
from laurel_graph.passes.verify.drawing import Exercise, Run, drawn, tried
from laurel_graph.passes.verify.pair import Pair, Subject, Watched
from laurel_graph.passes.verify.probe import Runner, Sample, bring_out, made_in

from .alone import alone, bodies_in, first_step, needed, next_step

if TYPE_CHECKING:
    from laurel_graph.passes.verify.check import Findings

Array = NDArray[Any]
Compare = Callable[[Pair, Callable[..., Exercise]], "Findings"]

STEPS = 2
"""How many steps of a loop are compared."""


def insides(pair: Pair, samples: Sequence[Sample], compare: Compare) -> dict[Watched, Verdict]:
    """Compares every body of the main graphs in which a residual connection stands; returns value to verdict.

    Args:
        pair: the models.
        samples: what the first model runs on.
        compare: compares two models on an exercise that it has chosen.

    Raises:
        VerificationError: a body cannot be run by itself, so that nothing can be said of it.
    """
    first, second = pair.first.model, pair.second.model
    there, ours = bodies_in(second), _sites(first) | _sites(second)
    bodies = {path: body for path, body in bodies_in(first).items() if path in there and path in ours}
    if not bodies:
        return {}
    pairs = {path: (body, there[path]) for path, body in bodies.items()}
    around = _around(pair, samples, pairs)
    found: dict[Watched, Verdict] = {}
    for path, body in bodies.items():
        steps = list(_steps(pair, pairs[path], around))
        if not steps:
            if alone(first, body, {}).graph == alone(second, there[path], {}).graph:
                continue  # the same to the bit
            raise VerificationError(
                f"the body {printable(path[:-1])} cannot be run by itself on what the graph around it computes, so "
                "that nothing can be said of the residual connections in it. Take it out of its node, and deploy it "
                "alone."
            )
        found |= {
            replace(item, name=path + item.name, other=path + item.other): verdict
            for item, verdict in _compared(pair, path, (body, there[path]), steps, compare).items()
        }
    return found


def _compared(
    pair: Pair, path: str, bodies: tuple[Body, Body], steps: Sequence[Sample], compare: Compare
) -> dict[Watched, Verdict]:
    from laurel_graph.passes.verify.watching import site_values

    models = alone(pair.first.model, bodies[0], steps[0]), alone(pair.second.model, bodies[1], steps[0])
    first, second = Subject(pair.first.path, models[0], True), Subject(pair.second.path, models[1], True)
    watched = site_values(*models)
    child = Pair(first, second, watched, tolerance=pair.given, usual=pair.usual, optimize=pair.optimize)

    def choose(run: Run, outputs: Sequence[str], sites: Sequence[str]) -> Exercise:
        exercise = Exercise(style="computed")
        for number, step in enumerate(steps):
            tried(exercise, step, run, number)
        if exercise.samples:
            return exercise
        return drawn(models[0], run, outputs, sites, batches=(1, 3), seed=0, sizes=None)

    try:
        found = compare(child, choose)
    except (ModelError, VerificationError) as error:
        raise VerificationError(f"in the body {printable(path[:-1])}: {error}") from error
    results = {
        Watched(name, child.outputs[name]): max(verdict, found.algebra[name], key=lambda each: each.excess)
        for name, verdict in found.outputs.items()
    }
    return {**found.values, **results}


def _around(pair: Pair, samples: Sequence[Sample], bodies: Mapping[str, tuple[Body, Body]]) -> list[dict[str, Array]]:
    """What the graph around the bodies of the first model computes on each sample: all that either body reads."""
    model = copy_of(pair.first.model)
    made = {*made_in(model), *(tensor.name for tensor in model.graph.initializer)}
    read = {name for first, _ in bodies.values() for name in needed(model, first)}
    read |= {name for _, second in bodies.values() for name in needed(pair.second.model, second)} & made
    names = read - {value.name for value in model.graph.input}
    if not names:
        return [dict(sample) for sample in samples]
    bring_out(model, sorted(names))
    runner = Runner(pair.first.path, model, False)
    return [{**sample, **runner.run(sample, names)} for sample in samples]


def _steps(pair: Pair, bodies: tuple[Body, Body], around: Sequence[Mapping[str, Array]]) -> Iterator[Sample]:
    """What the bodies read: in one run on each sample, in the first steps of a loop."""
    for values in around:
        first = first_step(pair.first.model, bodies[0], values)
        second = first_step(pair.second.model, bodies[1], values)
        if first is None or second is None:
            continue
        feeds = {**second, **first}
        yield feeds
        if bodies[0].node.op_type != "Loop":
            continue
        runner = Runner(pair.first.path, alone(pair.first.model, bodies[0], first), False)
        for _ in range(STEPS - 1):
            following = next_step(bodies[0], feeds, runner.run(feeds))
            if following is None:
                break
            yield (feeds := following)


def _sites(model: ModelProto) -> set[str]:
    """The paths of the bodies of the main graph in which, however deep, a residual of ours stands."""
    written = {node.output[0] for node, _ in records_of(model)}

    def holds(graph: GraphProto) -> bool:
        here = any(LaurelNode.of(node) is not None or not written.isdisjoint(node.output) for node in graph.node)
        return here or any(holds(body.graph) for body in inside(graph))

    return {path for path, body in bodies_in(model).items() if holds(body.graph)}


def check_insides(first: ModelProto, compared: Collection[tuple[str, str]]) -> None:
    """Makes sure that every residual connection in a body of the trained model is among what was compared.

    Args:
        first: the trained model.
        compared: the scoped name of a value, and the site that makes it.

    Raises:
        VerificationError: one is not.
    """
    for path, site in _standing(first.graph):
        if not any(name.startswith(path) and other == site for name, other in compared):
            raise VerificationError(
                f"the residual connection {site!r} in the body {printable(path[:-1])} is not to be seen in the "
                "deployed model, which cannot be verified there."
            )


def _standing(graph: GraphProto, around: Body | None = None) -> Iterator[tuple[str, str]]:
    for body in inside(graph, around):
        for node in body.graph.node:
            if (ours := LaurelNode.of(node)) is not None:
                yield body.path, ours.site
        yield from _standing(body.graph, body)
