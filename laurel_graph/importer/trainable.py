"""Which tensors of a file train: those of the LAuReL sites, or those that a person names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..config import SiteSpec
from ..errors import SelectorError, near
from ..onnx_model.walk import graphs_of
from ..opset.laurel_node import known_nodes
from ..opset.schema import tensor_name

if TYPE_CHECKING:
    from onnx import ModelProto


class Trainable:
    """Tells which tensors are trainable by name, and remembers which patterns matched.

    Args:
        trainable: names or globs; ``None`` for what is learned at the sites. Other values that an insertion named after
            a site, such as the exponent of a norm that came apart, are of the base.
        specs: the sites.
        model: the model; nodes of ours that no spec speaks of learn their tensors, too.
    """

    def __init__(self, trainable: str | Sequence[str] | None, specs: Mapping[str, SiteSpec], model: ModelProto) -> None:
        given = (trainable,) if isinstance(trainable, str) else trainable
        self.patterns = None if given is None else tuple(given)
        self._site_tensors = {tensor_name(site, name) for site, spec in specs.items() for name in spec.tensor_shapes()}
        nodes = known_nodes(node for graph in graphs_of(model.graph) for node in graph.node)
        self._learned = self._site_tensors | {
            name for node in nodes for name in node.tensors.values() if not name.endswith(".one")
        }
        self._matched: set[str] = set()
        self._seen: list[str] = []

    def __call__(self, name: str) -> bool:
        """Whether *name* is trainable; without patterns, whether it is a tensor of ours."""
        self._seen.append(name)
        if self.patterns is None:
            return name in self._learned
        hits = [pattern for pattern in self.patterns if pattern == name or fnmatchcase(name, pattern)]
        self._matched.update(hits)
        return bool(hits)

    def is_parameter(self, name: str) -> bool:
        """Whether the initializer *name* becomes a parameter by itself, not through the module of its site."""
        return self(name) and name not in self._site_tensors

    def check(self) -> None:
        """Raises SelectorError if a pattern matched nothing."""
        for pattern in self.patterns or ():
            if pattern not in self._matched:
                raise SelectorError(f"trainable={pattern!r} matches no tensor of the model.{near(pattern, self._seen)}")
