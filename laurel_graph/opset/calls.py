"""Functions of a model's own that call ``ai.laurel``: their calls are written out, so that each site is in a graph.

Tools that outline parts of a graph make such functions. Folding, function bodies and comparison look at graphs alone:
what stood inside a function would be left out by all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from ..errors import ModelError
from ..onnx_model.walk import graphs_of, subgraphs
from .schema import DOMAIN


def callers(model: ModelProto) -> list[tuple[str, str]]:
    """Returns domain and name of the model's own functions that call ``ai.laurel``, by others or themselves."""
    calls = {
        (function.domain, function.name): {(node.domain, node.op_type) for node in _nodes(function.node)}
        for function in model.functions
        if function.domain != DOMAIN
    }
    found = {key for key, called in calls.items() if any(domain == DOMAIN for domain, _ in called)}
    while more := {key for key, called in calls.items() if key not in found and called & found}:
        found |= more
    return [key for key in calls if key in found]


def _nodes(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            for inner in graphs_of(graph):
                yield from inner.node


def with_calls_written_out(model: ModelProto) -> ModelProto:
    """Returns *model* with every call of :func:`callers` written out; *model* itself where there is none.

    Raises:
        ModelError: a function cannot be written out, such as one of another opset than the model's.
    """
    inside = callers(model)
    if not inside:
        return model
    from onnx import inliner

    try:
        written: ModelProto = inliner.inline_selected_functions(model, inside)
    except (RuntimeError, ValueError) as error:  # of onnx's own, in C++; protobuf's are ValueErrors
        raise cannot_be_seen(inside[0], str(error)) from None
    if left := callers(written):
        raise cannot_be_seen(left[0], "onnx.inliner leaves it as it is")
    return written


def cannot_be_seen(function: tuple[str, str], reason: str) -> ModelError:
    """The error for sites inside a function."""
    return ModelError(
        f"its function {function[1]!r} of domain {function[0]!r} holds LAuReL residuals, which can be worked on in a "
        f"graph alone ({reason.strip()}); inline the function first, with onnx.inliner."
    )
