"""The fingerprint of a torch module's base."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..torch_residual.module import LaurelResidual
from ..torch_residual.sharded import whole
from .depth import Step, depths
from .sketch import DTYPES, Array, Fingerprint, Sketch, grid, sketch, squeezed


def of_module(module: nn.Module) -> Fingerprint:
    """Returns the fingerprint of what *module* holds now besides LAuReL residuals.

    What trains belongs to the task (a new head), not to the base, unless everything trains. Layers around the graph
    that was rewritten do not count either. A module without parameters is known by its buffers.
    """
    sketches: dict[int, Sketch] = {}
    found: dict[Hashable, int] = {}
    for root in _roots(module):
        weights = base_weights(root) or dict(root.named_buffers())
        made = {id(weight): _sketch(name, weight) for name, weight in weights.items()}
        known = {key: one for key, one in made.items() if one is not None}
        sketches |= known
        if isinstance(root, fx.GraphModule):
            found |= depths(_steps(root), {key for key, one in known.items() if one.profile is not None})
    return Fingerprint(tuple(replace(one, depth=found.get(key, -1)) for key, one in sketches.items()))


def base_weights(module: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters of a module's base by name: those that are frozen, or all if none is."""
    ours = {id(p) for m in module.modules() if isinstance(m, LaurelResidual) for p in m.parameters()}
    base = {name: p for name, p in module.named_parameters() if id(p) not in ours}
    frozen: dict[str, Tensor] = {name: p for name, p in base.items() if not p.requires_grad}
    return frozen or dict(base)


def _roots(module: nn.Module) -> list[nn.Module]:
    """The rewritten graphs inside *module*, outermost alone; the module itself where there is none."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for part in module.modules():
        if isinstance(part, fx.GraphModule) and part not in inside:
            parts = set(part.modules())
            if any(isinstance(one, LaurelResidual) for one in parts):
                found.append(part)
                inside |= parts
    return found or [module]


def _sketch(name: str, weight: Tensor) -> Sketch | None:
    dtype = str(weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES or weight.is_meta or weight.layout != torch.strided:
        return None
    return sketch(_sample(weight), weight.shape, dtype, name=name)


def _sample(weight: Tensor) -> Array:
    dims = squeezed(weight.shape)
    value = whole(weight.detach()).reshape(dims)
    for axis, places in enumerate(grid(dims)):
        if len(places) < dims[axis]:
            value = value.index_select(axis, torch.from_numpy(places).to(value.device))
    array: Array = value.double().cpu().numpy()
    return array


def _steps(root: fx.GraphModule) -> Iterator[Step]:
    for node in root.graph.nodes:
        weights: list[int] = []
        if node.op == "call_module":
            layer = root.get_submodule(str(node.target))
            weights = [] if isinstance(layer, LaurelResidual) else [id(p) for p in layer.parameters()]
        elif node.op == "get_attr":
            weights = [id(_attribute(root, str(node.target)))]
        yield Step(node.all_input_nodes, (node,), weights, entry=node.op == "placeholder")


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value
