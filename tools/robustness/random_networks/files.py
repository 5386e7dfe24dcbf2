"""The way through files: a trained network is written, deployed by ``deploy_file`` (with verification) or imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from laurel_graph.importer import META, import_onnx
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.opset.schema import laurel_nodes
from laurel_graph.passes.deploy.costs import CostModel
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.deploy.report import DeployReport

Array = NDArray[Any]


def deployed_file(
    trained: onnx.ModelProto, portable: bool, costs: CostModel | None, external: bool
) -> tuple[onnx.ModelProto, DeployReport]:
    """Returns what ``deploy_file`` writes for *trained*, read back, and its report.

    Args:
        trained: the trained network.
        portable: whether the portable form is made.
        costs: the cost model.
        external: whether the weights of the trained file lie in a file of their own.

    Raises:
        VerificationError: the verification refused the deployed file.
    """
    with TemporaryDirectory() as name:
        source, output = Path(name, "trained.onnx"), Path(name, "deployed.onnx")
        _save(trained, source, external)
        report = deploy_file(source, output, portable=portable, costs=costs)
        return onnx.load(output), report


class Imported:
    """The module of ``import_onnx``, run like a session: it gives the outputs and, if wanted, what each site computes.

    Args:
        trained: the trained network.
        sites: make the results of all sites outputs, so that they are seen (and parts across sites not joined).
        external: whether the weights lie in a file of their own.
    """

    def __init__(self, trained: onnx.ModelProto, sites: bool, external: bool) -> None:
        model = copy_of(trained)
        if sites:
            known = {info.name for info in model.graph.output}
            results = dict.fromkeys(node.output[0] for node in laurel_nodes(model.graph))
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in results if name not in known)
        with TemporaryDirectory() as name:
            path = Path(name, "trained.onnx")
            _save(model, path, external)
            self._module = import_onnx(path)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the module's outputs by name."""
        import torch

        record = self._module.meta[META]
        with torch.no_grad():
            found = self._module(*(torch.from_numpy(np.asarray(feeds[name])) for name in record.inputs))
        values = found if isinstance(found, tuple) else (found,)
        return {name: value.numpy() for name, value in zip(record.outputs, values, strict=True)}


def _save(model: onnx.ModelProto, path: Path, external: bool) -> None:
    """Writes a copy of *model*, which ``onnx.save`` changes; ONNX Runtime wants small shapes inside the file."""
    copy = copy_of(model)
    onnx.save(copy, path, save_as_external_data=external, location="weights.bin", size_threshold=200)
