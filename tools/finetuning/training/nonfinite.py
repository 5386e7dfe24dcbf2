"""Where a NaN or infinity came from: the first tensor of a step that is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from laurel_graph.tools.finetuning.task import Task


def is_finite(value: object) -> bool:
    """Returns whether every floating-point tensor inside *value* (nested tuples, lists, mappings) is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(is_finite(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return all(is_finite(item) for item in value)
    return True


def first_parameter(module: nn.Module, *, gradients: bool = False) -> str | None:
    """Returns the first trainable parameter of *module* that is not finite, or whose gradient is not."""
    for name, parameter in module.named_parameters():
        value = parameter.grad if gradients else parameter
        if parameter.requires_grad and value is not None and not is_finite(value):
            return name
    return None


class _Found(Exception):
    def __init__(self, name: str) -> None:
        self.name = name


class _Interpreter(fx.Interpreter):
    """Runs a graph and stops at the first node whose value is not finite."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op not in ("placeholder", "get_attr", "output") and not _masks(value) and not is_finite(value):
            raise _Found(str(n.target) if n.op == "call_module" else n.name)
        return value


def _masks(value: object) -> bool:
    """Returns whether *value* is an additive mask: only minus infinity and finite values, nothing that trains."""
    return isinstance(value, Tensor) and not value.requires_grad and not bool((value.isnan() | (value > 3e38)).any())


def first_value(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> str | None:
    """Returns the name of the first value that is not finite when *module* runs, or ``None``.

    In a :class:`torch.fx.GraphModule` that is a node of its graph, elsewhere the path of a submodule.
    """
    kwargs = dict(kwargs or {})
    if isinstance(module, fx.GraphModule) and not kwargs:
        try:
            _Interpreter(module).run(*args)
        except _Found as found:
            return found.name
        return None
    paths = {child: path for path, child in module.named_modules()}
    handles = []

    def hook(child: nn.Module, _: Any, value: Any) -> None:
        if not is_finite(value):
            raise _Found(paths[child] or type(child).__name__)

    try:
        handles = [child.register_forward_hook(hook) for child in paths]
        module(*args, **kwargs)
    except _Found as found:
        return found.name
    finally:
        for handle in handles:
            handle.remove()
    return None


def explained(
    module: nn.Module, task: Task, batch: Mapping[str, Tensor] | None, context: AbstractContextManager[Any]
) -> str:
    """Says which tensor made the loss of a step NaN or infinite.

    Args:
        module: what trains.
        task: what it is trained on.
        batch: this process's share of the batch, ``None`` if it had none.
        context: what the module runs in.
    """
    where, advice = "the loss is not finite", "Nothing of this step was applied"
    if batch is None:
        return f"{where} in another process. {advice}."
    for name, tensor in batch.items():
        if not is_finite(tensor):
            return f"{where}: the data array {name!r} holds NaN or infinity in this batch. {advice}."
    if parameter := first_parameter(module):
        return f"{where}: the parameter {parameter!r} is not finite. {advice}; lower --lr."
    inputs = tuple(batch[name] for name in task.inputs)
    with torch.no_grad(), context:
        value = first_value(module, *task.arguments(inputs))
    if value:
        return f"{where}: {value!r} is the first value that is not finite. {advice}; lower --lr or check the data."
    return f"{where}, though the output is; check the targets and the loss function. {advice}."
