"""Which operators the importer knows: a table keyed (domain, operator, since_version).

Every family of operators has one file here with a ``register(registry)`` function; :func:`default_registry` calls them
all. An operator version that is not in the table is expanded through its function body or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnx import defs

if TYPE_CHECKING:
    from .node import Node

NEWEST = 28
"""The newest operator set whose operators were read when this table was written."""

Handler = Callable[["Node"], Any]
"""Translates one node: returns its output values (one, or a sequence)."""


class Registry:
    """Handlers by (domain, operator, since_version)."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str, str, int], Handler] = {}

    def add(self, ops: str, handler: Handler, since: int = 1, until: int = NEWEST, domain: str = "") -> None:
        """Registers *handler* for the space-separated *ops*, for every version from *since* to *until*."""
        for op in ops.split():
            for version in range(since, until + 1):
                self._handlers[domain, op, version] = handler

    def find(self, domain: str, op: str, opset: int) -> Handler | None:
        """Returns the handler for *op* as *opset* of its domain defines it, or ``None``."""
        return self._handlers.get((domain, op, since_version(domain, op, opset)))

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        return iter(self._handlers)


@cache
def since_version(domain: str, op: str, opset: int) -> int:
    """Returns the version that gave *op* its present meaning; domains without schemas have only version 1."""
    try:
        return int(defs.get_schema(op, opset, domain).since_version)
    except defs.SchemaError:
        return 0 if domain in ("", "ai.onnx.ml") else 1


FAMILIES = (
    "activation",
    "arithmetic",
    "attention",
    "casting",
    "contrib",
    "contrib_attention",
    "contrib_experts",
    "control_flow",
    "convolution",
    "generation",
    "indexing",
    "linear",
    "loss",
    "normalisation",
    "pooling",
    "quantisation",
    "recurrent",
    "reduction",
    "resize",
    "sequence",
    "shape",
    "signal",
    "vision",
)
"""The modules beside this one that hold one operator family each."""


ADDED = Registry()
"""Handlers that a person added; they come before function bodies and before those of the package."""


def add_handler(operator: str, handler: Handler, domain: str = "", since: int = 1) -> None:
    """See :func:`laurel_graph.passes.extend.add_handler`."""
    ADDED.add(operator, handler, since, max(since, NEWEST), domain)


@cache
def default_registry() -> Registry:
    """Returns the registry with every operator family of the package."""
    registry = Registry()
    for family in FAMILIES:
        import_module(f".operators.{family}", __package__).register(registry)
    return registry
