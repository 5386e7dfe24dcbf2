"""What runs in a live model in the place of its adds.

A rewritten function holds one call of :class:`Call` where an add stood. Which residual that is depends on the module
(``block``) whose forward runs and on how often the instruction has run in it: a loop over layers is one instruction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from laurel_graph.errors import RewriteError
from laurel_graph.torch_residual.module import LaurelResidual
from laurel_graph.torch_residual.quick import quick_sum

ATTRIBUTE = "laurel_live"
"""The attribute of a block that holds its :class:`Block`."""

ON, OFF, CHECK = "on", "off", "check"
"""With LAuReL; the base as it was; the base with ``x += f`` as ``x = x + f``, to be compared with it."""


@dataclass(frozen=True)
class Entry:
    """What one execution of one add stands for.

    Attributes:
        name: the block's submodule that holds the residual, "" where only the skip is kept for later joins.
        swapped: the skip is the right operand.
        outer: it is an outer add of an n-ary join: x + α·f.
        slot: where the skip is kept for later joins, -1 for nowhere.
        previous: the slots of the earlier activations, nearest first.
    """

    name: str
    swapped: bool = False
    outer: bool = False
    slot: int = -1
    previous: tuple[int, ...] = ()


@dataclass(frozen=True)
class Point:
    """One add of a block's code: what each of its executions in one call of the block stands for.

    Attributes:
        entries: by number of the execution; ``None`` for an add that is left alone.
        cyclic: the executions repeat the entries (one residual for all steps of a recurrence), however many there are.
        kept: an in-place add writes its result back, because something else reads the memory.
    """

    entries: tuple[Entry | None, ...]
    cyclic: bool = False
    kept: bool = False

    @property
    def plain(self) -> Entry | None:
        """The entry, where every execution is one and the same residual of two values."""
        first = self.entries[0] if len(self.entries) == 1 else None
        if first is None or not first.name or first.outer or first.previous or first.slot >= 0:
            return None
        return first


class State:
    """What all blocks of one attached model share.

    Attributes:
        mode: :data:`ON`, :data:`OFF` or :data:`CHECK`.
        values: the skips that later joins read, by slot, of the forward pass that runs or ran last.
        hits: while a check runs, how often each block's points ran.
    """

    def __init__(self) -> None:
        self.mode = ON
        self.values: dict[int, Tensor] = {}
        self.hits: dict[tuple[int, int], int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Activations are neither copied nor written."""
        return {"mode": self.mode, "values": {}, "hits": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A mode that was read from a file is the very string that it is compared with."""
        self.__dict__.update(state)
        self.mode = next(mode for mode in (ON, OFF, CHECK) if mode == state["mode"])


class Block:
    """What a block knows of its joins: the attribute :data:`ATTRIBUTE`.

    Attributes:
        points: its adds.
        state: what all blocks share.
        home: the module that holds its residuals; ``None`` where it does so itself.
        quick: the entry of each add that always is one plain residual.
    """

    def __init__(self, points: tuple[Point, ...], state: State, home: nn.Module | None = None) -> None:
        self.points, self.state, self.home = points, state, home
        self.quick = tuple(point.plain for point in points)


class Call:
    """One call of a block's forward."""

    __slots__ = ("block", "counts", "live")

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.live: Block = block.__dict__[ATTRIBUTE]
        self.counts = [0] * len(self.live.points)

    def join(self, left: Any, right: Any, number: int) -> Any:
        """``left + right``."""
        live = self.live
        entry = live.quick[number]
        if entry is not None and live.state.mode is ON and live.state.hits is None:
            skip, branch = (right, left) if entry.swapped else (left, right)
            residual = (self.block if live.home is None else live.home)._modules.get(entry.name)
            if type(residual) is LaurelResidual and not _observed(residual):
                y = quick_sum(residual, skip, branch)
                if y is not None:
                    return y
        entry = self._entry(number)
        if entry is None or self.live.state.mode != ON:
            return left + right
        return self._joined(entry, left, right, 1)

    def join_in_place(self, left: Any, right: Any, number: int) -> Any:
        """``left += right``, whose result takes the place of *left*."""
        point, entry = self.live.points[number], self._entry(number)
        mode = self.live.state.mode
        if entry is None or mode == OFF or (mode == CHECK and point.kept):
            left += right
            return left
        if point.kept:
            return left.copy_(self._joined(entry, left.clone(), right, 1))
        y = self._joined(entry, left, right, 1) if mode == ON else left + right
        return y if y.dtype == left.dtype else y.to(left.dtype)

    def method(self, owner: Any, name: str, number: int) -> Callable[..., Any]:
        """What ``owner.add`` is: a tensor's method, or a function of a module."""
        before = (owner,) if isinstance(owner, Tensor) else ()
        return functools.partial(self._called, number, getattr(owner, name), name.endswith("_"), before)

    def function(self, callee: Callable[..., Any], number: int) -> Callable[..., Any]:
        """What the function *callee* is that adds."""
        in_place = getattr(callee, "__name__", "") in ("add_", "iadd")
        return functools.partial(self._called, number, callee, in_place, ())

    def link(self, callee: Any, number: int) -> Any:
        """The rewritten form of a function that holds adds of this block; *callee* itself where it is another one."""
        kind: Any = type(self.block)
        return kind.laurel_links[number](callee, self)

    def above(self, parent: Any, name: str, number: int) -> Any:
        """``super().name``, whose function holds adds of this block."""
        kind: Any = type(self.block)
        link = kind.laurel_links[number]
        if link.new is not None and torch.compiler.is_compiling():  # which cannot look into super()
            return functools.partial(link.new, self.block, laurel_call=self)
        return cast("Callable[..., Any]", link(getattr(parent, name), self))

    def _called(
        self, number: int, callee: Callable[..., Any], in_place: bool, before: tuple[Any, ...], *args: Any, **named: Any
    ) -> Any:
        entry = self._entry(number)
        if entry is None or self.live.state.mode != ON:
            return callee(*args, **named)
        alpha = named.pop("alpha", 1)
        left, right = (*before, *args, *(named[key] for key in ("input", "self", "other") if key in named))
        if in_place:
            return left.copy_(self._joined(entry, left.clone(), right, alpha))
        return self._joined(entry, left, right, alpha)

    def _entry(self, number: int) -> Entry | None:
        state, point = self.live.state, self.live.points[number]
        entries = point.entries
        if state.hits is not None:
            key = (id(self.block), number)
            state.hits[key] = state.hits.get(key, 0) + 1
        if len(entries) == 1:
            return entries[0]
        place = self.counts[number]
        self.counts[number] = place + 1
        if point.cyclic:
            return entries[place % len(entries)]
        if place >= len(entries):
            raise RewriteError(
                f"{type(self.block).__name__}: an add ran {place + 1} times in one call, {len(entries)} times with the "
                "example inputs of attach; attach with inputs that run it most often."
            )
        return entries[place]

    def _joined(self, entry: Entry, left: Tensor, right: Tensor, alpha: float) -> Tensor:
        """The residual of *entry*, or its plain add where it has none, with ``left + alpha·right``."""
        skip, branch = (right, left) if entry.swapped else (left, right)
        state = self.live.state
        if entry.slot >= 0:
            keep(state, entry.slot, skip)
        residual = (self.block if self.live.home is None else self.live.home)._modules.get(entry.name)
        if residual is None:
            return left + right if alpha == 1 else torch.add(left, right, alpha=alpha)
        if skip.shape != branch.shape:
            skip, branch = torch.broadcast_tensors(skip, branch)
        named: dict[str, Any] = {}
        if entry.outer:
            named["outer"] = True
        if alpha != 1:
            named["skip_scale" if entry.swapped else "branch_scale"] = alpha
        if not entry.previous:
            return residual(skip, branch, **named)  # type: ignore[no-any-return]
        previous = earlier(self.block, state, entry)
        return residual(skip, branch, *previous, **named)  # type: ignore[no-any-return]


def _observed(residual: nn.Module) -> bool:
    """Tells whether somebody looks at the calls of *residual*: hooks, compilers, tracers."""
    return bool(
        residual._forward_hooks
        or residual._forward_pre_hooks
        or module._global_forward_hooks
        or module._global_forward_pre_hooks
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state()
    )


def keep(state: State, slot: int, skip: Tensor) -> None:
    """Keeps a skip for the later joins of this forward pass.

    Under gradient checkpointing a block runs again in the backward pass and keeps the same value once more. Where it is
    not the same, another forward pass has run in between, and later joins would read its activations.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        kept = state.values.get(slot)
        if kept is None or kept.shape != skip.shape or not torch.equal(kept, skip):
            raise RewriteError(
                "a block with PA is computed again in the backward pass after another forward pass has run: with "
                "gradient checkpointing and PA, run backward after each forward."
            )
        return
    state.values[slot] = skip


def earlier(block: nn.Module, state: State, entry: Entry) -> list[Tensor]:
    """The earlier activations that a join reads."""
    if "_is_replica" in block.__dict__:
        raise RewriteError("PA reads what other blocks computed, which DataParallel's threads would mix up; use DDP.")
    try:
        return [state.values[slot] for slot in entry.previous]
    except KeyError:
        raise RewriteError(
            f"{type(block).__name__} has PA, which reads what earlier blocks computed in the same forward pass, and "
            "they have not run; run the whole model that was attached."
        ) from None


def forget(model: nn.Module, *_: Any) -> None:
    """Hook of the model: drops the activations of the last forward pass before the next one."""
    state_of(model).values.clear()


def forget_after(model: nn.Module, *_: Any) -> None:
    """Hook of the model: keeps no activation after a forward pass whose blocks will not be computed again."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        state_of(model).values.clear()


def state_of(model: nn.Module) -> State:
    """The state of an attached model."""
    return model.__dict__[ATTRIBUTE + "_record"].state  # type: ignore[no-any-return]
