"""A forward pass without values, operator by operator: two models that do the same leave the same trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from laurel_graph.passes.read_fx.prepare import plain_forward, set_mode, unchanged
from laurel_graph.passes.read_fx.stopped import without_logged_tracebacks

from .joins import State

_NO_VALUES = frozenset(("detach", "alias", "lift_fresh"))
"""Operators that hand on what they get: how often they run depends on who looks."""


@dataclass(frozen=True)
class Trace:
    """The operators of one forward pass in order.

    Attributes:
        steps: name of the operator and the numbers of the values it read; what it made gets the next numbers.
        hits: how often each add of each block ran.
    """

    steps: tuple[tuple[str, tuple[int, ...]], ...]
    hits: Mapping[tuple[int, int], int]

    def difference(self, other: Trace | None) -> str:
        """Where *other* does something else first, or ""."""
        if other is None:
            return "its forward does not run any more"
        for number, (one, two) in enumerate(zip(self.steps, other.steps, strict=False)):
            if one != two:
                return f"operator {number} was {one[0]} of {one[1]}, is {two[0]} of {two[1]}"
        if len(self.steps) != len(other.steps):
            return f"it ran {len(self.steps)} operators, now {len(other.steps)}"
        return ""


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[str, tuple[int, ...]]] = []
        self.numbers: dict[int, int] = {}
        self.alive: list[Tensor] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes one operator."""
        kwargs = kwargs or {}
        read = tuple(self.number(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        result = func(*args, **kwargs)
        name = func._schema.name.rpartition("::")[2]
        if name in _NO_VALUES and isinstance(result, Tensor):
            self.put(result, read[0] if read else -1)
            return result
        self.steps.append((name.removesuffix("_"), read))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.put(leaf, self.count)
                self.count += 1
        return result

    def number(self, tensor: Tensor) -> int:
        if id(tensor) not in self.numbers:
            self.put(tensor, -1 - len(self.numbers) if not isinstance(tensor, nn.Parameter) else -1)
        return self.numbers[id(tensor)]

    def put(self, tensor: Tensor, number: int) -> None:
        self.numbers[id(tensor)] = number
        self.alive.append(tensor)  # so that no other object gets its id


def traced(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    state: State | None = None,
    training: bool = False,
) -> Trace | None:
    """Returns what *model* does in eval mode (or in training mode), ``None`` where it does not run without values.

    Args:
        model: the model; nothing of it changes.
        args: example inputs; without any there is no trace.
        kwargs: by name.
        state: of an attached model, which counts its adds.
        training: run it in training mode; buffers stay as they are.
    """
    if not args and not kwargs:
        return None
    hits: dict[tuple[int, int], int] = {}
    log = _Log()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    rng = torch.random.get_rng_state()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:  # what requires gradients is multiplied in another shape
            parameter.requires_grad_(False)
        if state is not None:
            state.hits = hits
        with (
            set_mode(model, training),
            unchanged(model),
            plain_forward(model),
            without_logged_tracebacks(),
            torch.no_grad(),
            mode,
        ):
            fake_args, fake_kwargs = tree_map_only(Tensor, mode.from_tensor, (args, dict(kwargs)))
            with log:
                model(*fake_args, **fake_kwargs)
    except Exception:  # the model's own code, on tensors without values
        return None
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        torch.random.set_rng_state(rng)
        if state is not None:
            state.hits = None
    return Trace(tuple(log.steps), hits)
