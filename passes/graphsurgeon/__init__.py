"""onnx-graphsurgeon at both ends: a ``gs.Graph`` of a model and back, with all that graphsurgeon does not carry.

:func:`.convert.to_graph` and :func:`.convert.to_model` are the way there and back; :mod:`.register` gives every
``gs.Graph`` the method ``laurel``, which puts a residual in by hand. The protos stay the stored form of a model: only
what a person changes in the ``gs.Graph`` changes in the file.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from onnx import ModelProto

    from .convert import to_graph, to_model

ORIGIN = "laurel_origin"
"""The attribute of a ``gs.Graph`` that holds the model it was made from, and the folder of that one's weights;
``gs.Graph.copy`` leaves it behind."""

__all__ = ["is_graph", "to_graph", "to_model"]


def is_graph(model: object) -> bool:
    """Whether *model* is a ``gs.Graph``; graphsurgeon is not imported to tell."""
    return any(f"{kind.__module__}.{kind.__name__}" == "onnx_graphsurgeon.ir.graph.Graph" for kind in type(model).mro())


def origin_folder(graph: object) -> str | Path:
    """Returns the folder of the weights that a ``gs.Graph`` of :func:`.convert.to_graph` keeps in files, or "".

    The weights of a ``gs.Graph.copy`` say it, too.
    """
    if not is_graph(graph):
        return ""
    if (found := vars(graph).get(ORIGIN)) is not None:
        return cast("str | Path", found[1])
    from .convert import folders_of

    return next(iter(folders_of(graph)), "")


def origin_model(graph: object) -> ModelProto | None:
    """Returns the model that a ``gs.Graph`` of :func:`.convert.to_graph` was made of; ``None`` of anything else."""
    found = vars(graph).get(ORIGIN) if is_graph(graph) else None
    return None if found is None else cast("ModelProto", found[0])


def wants_graph(function: Any) -> bool:
    """Whether the first parameter of a function is annotated as a ``gs.Graph``; imports nothing to tell."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):  # a builtin, or no function at all
        return False
    kind = first.annotation if first is not None else None
    if isinstance(kind, str):
        return kind.strip("'\"").rpartition(".")[2] == "Graph"
    return getattr(kind, "__name__", "") == "Graph" and str(getattr(kind, "__module__", "")).startswith(
        "onnx_graphsurgeon"
    )


def __getattr__(name: str) -> Any:
    if name in ("to_graph", "to_model"):
        from . import convert

        return getattr(convert, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
