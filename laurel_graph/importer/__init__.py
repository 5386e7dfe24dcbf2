"""ONNX to a differentiable torch.fx GraphModule: frozen except for what is named trainable."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model_folder import graph_path
from ..opset.schema import read_specs
from ..torch_residual.import_record import META, ImportRecord

if TYPE_CHECKING:
    import onnx
    from torch import fx

    from .comparison import check
    from .writing import patch, write_back

__all__ = ["META", "ImportRecord", "check", "import_onnx", "patch", "write_back"]


def import_onnx(
    path_or_model: str | Path | onnx.ModelProto,
    trainable: str | Sequence[str] | None = None,
    dropout: bool = False,
) -> fx.GraphModule:
    """Returns an ONNX model as a differentiable fx.GraphModule that computes what ONNX Runtime computes.

    All tensors are frozen buffers under their ONNX names, except the trainable ones, which are parameters: those of
    the LAuReL sites (``laurel.<site>.A`` ...) or, if *trainable* is given, exactly those it names. Names that cannot
    stand in Python code are changed (:mod:`~laurel_graph.foreign_names`): ``module.meta[META].tensors`` is the table of
    paths in the module and names in the file, and ``trainable_parameters`` gives the latter. ``forward`` takes the
    graph's inputs in order (by keyword under their names as Python identifiers) and returns the output, or a tuple of
    several. Files of 16-bit floats are computed in float32 and return float32. Batch normalisation uses its
    stored statistics.

    Args:
        path_or_model: an ``.onnx`` file, a model folder or a model in memory.
        trainable: names or globs of initializers to train; ``None`` for the LAuReL tensors.
        dropout: Dropout nodes are active in training mode.

    Raises:
        ModelError: the file cannot be read or the graph is damaged; a model in memory keeps weights in files.
        SelectorError: a name or glob matches no tensor.
        UnsupportedOperatorError: naming each node, its operator and opset, that has no exact differentiable
            counterpart.
    """
    import onnx

    from .. import soundness
    from ..fingerprint.digest import file_digests
    from ..fingerprint.from_onnx import of_model
    from ..onnx_file import read_with_records
    from ..onnx_model.weight_file import check_weights_known
    from ..opset.parameters import count_parameters
    from ..opset.plain import with_nodes_put_back
    from .convert import Converter
    from .laurel import LaurelSites
    from .registry import default_registry
    from .trainable import Trainable

    if isinstance(path_or_model, onnx.ModelProto):
        soundness.check(path_or_model)
        check_weights_known(path_or_model)
        source, model, base_dir = None, with_nodes_put_back(path_or_model), Path()
    else:
        source = graph_path(path_or_model)
        model, base_dir = read_with_records(source), source.parent
    specs = read_specs(model)
    trained = Trainable(trainable, specs, model)
    sites = LaurelSites(model, specs, trained, base_dir)
    converter = Converter(model, default_registry(), base_dir, trained.is_parameter, dropout, sites.translate)
    module = converter.run()
    trained.check()
    stored = {t.name for t in model.graph.initializer}
    module.meta[META] = ImportRecord(
        source=source,
        inputs=tuple(i.name for i in model.graph.input if i.name not in stored),
        outputs=tuple(o.name for o in model.graph.output),
        tensors=converter.tensor_names,
        specs=specs,
        base=of_model(model, base_dir),
        digests=file_digests(model, base_dir),
        parameters=count_parameters(model),
    )
    return module


def __getattr__(name: str) -> Any:
    """Loads :func:`check`, :func:`write_back` and :func:`patch` when they are first used: they import torch."""
    homes = {"check": "comparison", "write_back": "writing", "patch": "writing"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{homes[name]}", __name__), name)
