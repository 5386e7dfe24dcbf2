"""What passes hand on to each other besides the graph; see :class:`~laurel_graph.passes.base.Facts`.

``Detection`` (:mod:`laurel_graph.detection`), ``Selection`` (:mod:`.select`), ``LaurelConfig`` and ``FoldReport``
(:mod:`.fold.fold`) are facts too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import onnx

    from laurel_graph.graph_view import Shape

    from .base import Facts
    from .deploy.choose import FusedSite


@dataclass(frozen=True)
class Source:
    """Where the graph came from.

    Attributes:
        path: the file, or ``None`` for a graph made in memory.
        folder: the folder of its external weights, or ``None``.
        name: what messages call it.
    """

    path: Path | None = None
    folder: Path | None = None
    name: str = ""


def weights_folder(facts: Facts) -> Path | None:
    """Returns the folder of the weight files of the graph, ``None`` where it is not known."""
    return (facts.get(Source) or Source()).folder


@dataclass(frozen=True)
class Example:
    """Inputs on which a torch module can be traced and exported.

    Attributes:
        args: positional inputs.
        kwargs: inputs by name.
        dynamic_shapes: as for ``torch.export.export``.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None


@dataclass(frozen=True)
class Samples:
    """What to compare on.

    Attributes:
        feeds: one mapping of input name to array for each sample; ``None`` draws some.
        sizes: sizes of symbolic dims of drawn samples.
    """

    feeds: Sequence[Mapping[str, Any]] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ValueTypes:
    """What shape inference says of the graph as it is now.

    Attributes:
        types: value name to (shape, element type).
        note: a sentence for the user where inference stopped, or "".
    """

    types: Mapping[str, tuple[Shape | None, str | None]]
    note: str = ""
    describes_graph: ClassVar[bool] = True

    @classmethod
    def of(cls, model: onnx.ModelProto) -> ValueTypes:
        """Runs shape inference on *model*."""
        from laurel_graph.onnx_model.shapes import tensor_types

        return cls(*tensor_types(model))


@dataclass(frozen=True)
class Reference:
    """What the graph has to compute the same as.

    Attributes:
        model: the graph before the first pass.
        path: the file it lies in, or ``None``.
    """

    model: onnx.ModelProto
    path: Path | None = None


@dataclass(frozen=True)
class Forms:
    """Which form each site got when it was fused or absorbed.

    Attributes:
        sites: the forms, in graph order.
    """

    sites: tuple[FusedSite, ...] = ()
