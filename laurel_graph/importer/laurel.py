"""Nodes of ``ai.laurel``: each plain site becomes the torch module that trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import ModelProto

from ..config import SiteSpec
from ..errors import ModelError
from ..formula import resolve, unresolve
from ..onnx_model.tensors import tensor_array
from ..opset.laurel_node import LaurelNode
from ..opset.schema import tensor_name
from ..torch_residual.module import LaurelResidual
from .builder import Value
from .node import Node
from .trainable import Trainable

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT_TOLERANCE = {"float16": 2**-7, "bfloat16": 1e-2}
"""How far stored α and β may be from what the site's bounded form can express: some roundings of their type."""
_WIDE_TOLERANCE = 2**-20


class LaurelSites:
    """Translates the nodes of ``ai.laurel`` of one model.

    Args:
        model: the model.
        specs: site to spec, from the model's metadata.
        trainable: which tensors are trainable.
        base_dir: folder of the model's file, for external data.
    """

    def __init__(self, model: ModelProto, specs: dict[str, SiteSpec], trainable: Trainable, base_dir: Path) -> None:
        self.model = model
        self.specs = specs
        self.trainable = trainable
        self.base_dir = base_dir
        self.modules: dict[str, LaurelResidual] = {}

    def translate(self, node: Node) -> Sequence[Value] | None:
        """Returns the output of the site's module, or ``None`` for a node whose function body is to be expanded."""
        ours = LaurelNode.of(node.proto)
        if ours is None or ours.operator.bias or ours.operator.epilogue:
            return None
        found = self._site_of(ours.inputs)
        if found is None:
            return None
        site, outer = found
        module = self._module(site)
        x, f = node[0], node[1]
        first = len(ours.operator.inputs) - ours.operator.links
        previous = [node[first + j] for j in range(ours.operator.links)]
        value = node.builder.call(tensor_name(site, "")[:-1], module, x, f, *previous, name=node.name)
        if outer and value.node is not None:
            value.node.kwargs = {"outer": True}
        return [value]

    def _site_of(self, names: Mapping[str, str]) -> tuple[str, bool] | None:
        """Returns the site whose tensors the node reads, and whether it is an outer add of an n-ary join."""
        for site, spec in self.specs.items():
            expected = {name: tensor_name(site, name) for name in spec.tensor_shapes()}
            given = {name: given for name, given in names.items() if name in expected}
            if given == expected:
                return site, False
            outer = names.get("beta") == tensor_name(site, "one")
            if outer and spec.has_rw and names.get("alpha") == expected["alpha"]:
                return site, True
        return None

    def _module(self, site: str) -> LaurelResidual:
        if site not in self.modules:
            spec = self.specs[site]
            stored = {
                name: np.asarray(tensor_array(self.model, tensor_name(site, name), self.base_dir))
                for name in spec.tensor_shapes()
            }
            with np.errstate(invalid="ignore"):  # of values beyond their bounds, which the check names
                trained = unresolve(spec, {name: array.astype(np.float64) for name, array in stored.items()})
            _check_weights(spec, stored, trained)
            dtype = torch.float64 if spec.dtype == "float64" else torch.float32
            module = LaurelResidual(spec, dtype=dtype)
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(torch.from_numpy(np.asarray(trained[name])))
                    if self.trainable.patterns is not None:
                        parameter.requires_grad_(self.trainable(tensor_name(site, name)))
            self.modules[site] = module
        return self.modules[site]


def _check_weights(spec: SiteSpec, stored: dict[str, np.ndarray], trained: dict[str, np.ndarray]) -> None:
    again = resolve(spec, trained)
    for name in ("alpha", "beta") if spec.has_rw else ():
        near = WEIGHT_TOLERANCE.get(stored[name].dtype.name, _WIDE_TOLERANCE)
        if not np.allclose(again[name], stored[name].astype(np.float64), rtol=near, atol=near):
            raise ModelError(
                f"Site {spec.site!r}: {name} = {_shown(stored[name])} cannot come from weights={spec.weights!r}, which "
                f"gives {_shown(again[name])}. Was the file edited, or trained elsewhere? Transform the original with "
                "weights='free', and put the values into that file."
            )


def _shown(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values), threshold=8, edgeitems=2, precision=9)
