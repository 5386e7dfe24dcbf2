"""Constants are folded only while the results stay small: a file can state sizes that no machine holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

SMALL = 2**24
"""Elements that any result may have; beyond, four times those of the arguments."""


class TooLarge(Exception):
    """A result would be far larger than what it is computed from."""


class Bounded(TorchDispatchMode):
    """A context in which no operator allocates more than is in proportion to its arguments.

    Raises:
        TooLarge: before the operator runs.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs *func*, after asking for the shape of its result where that could be large."""
        kwargs = dict(kwargs or {})
        held = (_held(leaf) for leaf in _leaves((args, tuple(kwargs.values()))) if isinstance(leaf, torch.Tensor))
        allowed = max(SMALL, 4 * sum(held))
        if _bound(args, kwargs) > allowed and _size(func, args, kwargs) > allowed:
            raise TooLarge(f"{func} would make a tensor of more than {allowed} elements")
        return func(*args, **kwargs)


def _held(tensor: torch.Tensor) -> int:
    """How many elements lie in memory: an expanded tensor repeats the few that it has."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree


def _bound(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """No operator makes more elements than the product of its arguments' sizes and of the numbers it is given."""
    bound = 1.0
    for leaf in _leaves((args, tuple(kwargs.values()))):
        if isinstance(leaf, torch.Tensor):
            bound *= max(leaf.numel(), 1)
        elif isinstance(leaf, (int, float)) and not isinstance(leaf, bool) and math.isfinite(leaf):
            bound *= 1 + abs(leaf)
    return bound


def _size(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many elements the result has, found without computing it; 0 where that cannot be known."""

    def on_meta(tree: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), tree)

    if func in _VIEWS:
        return 0
    changed = {**kwargs, "device": torch.device("meta")} if "device" in kwargs else dict(kwargs)
    try:
        result = func(*on_meta(args), **on_meta(changed))
    except Exception:  # no rule for shapes, or arguments that the operator itself will refuse
        return 0
    return sum(leaf.numel() for leaf in _leaves(result) if isinstance(leaf, torch.Tensor))


_VIEWS = {torch.ops.aten.expand.default, torch.ops.aten.as_strided.default}
"""Operators whose result takes no memory, however large its shape."""
