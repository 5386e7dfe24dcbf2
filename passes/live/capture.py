"""Takes the graph of a live model, in which every add knows the instruction of the model's code that it came from."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from laurel_graph.errors import ModelError
from laurel_graph.graph_view import GraphView
from laurel_graph.passes.read_fx.capture import (
    LaurelTracer,
    add_shapes,
    check_paths,
    module_paths,
    symbolic_graph,
    unlifted,
)
from laurel_graph.passes.read_fx.prepare import plain_forward, set_mode, unchanged
from laurel_graph.passes.read_fx.stopped import stopped_at, without_logged_tracebacks
from laurel_graph.passes.read_fx.view import fx_view

from .bytecode import ADDS, running
from .watch import ADD_NAMES, MODULE_CALL, TRACING, frames, operands, path_of, place_of

Path = tuple[tuple[str, int], ...]
"""Place of an add: digest of the code and offset of the instruction, of each function from a forward to the add."""

_EVENT = "laurel_event"

_LIBRARY = torch.library.Library("laurel_live", "DEF")
_LIBRARY.define("add(Tensor left, Tensor right, Scalar alpha, int event) -> Tensor")
_LIBRARY.impl("add", lambda left, right, alpha, event: torch.add(left, right, alpha=alpha), "CompositeExplicitAutograd")


@dataclass(frozen=True)
class Event:
    """One execution of one add.

    Attributes:
        block: the module in whose forward it ran; ``None`` where the model's call is not on the stack.
        path: its place in that forward.
        names: what the functions on the way are called, for messages.
        call: number of the call of the block's forward, counted over all blocks.
        kind: ``+``, ``+=`` or ``call``.
    """

    block: nn.Module | None
    path: Path
    names: tuple[str, ...]
    call: int
    kind: str


@dataclass
class Seen:
    """The graph of a model and what its adds were in the model's code.

    Attributes:
        model: the model.
        module: the graph; names in *view* are those of its nodes.
        events: name of an add's node to its execution.
        order: all executions of adds in order, those that are no node of the graph too.
        handed: the calls that hand a function on to what calls it, as checkpointing does.
    """

    model: nn.Module
    module: fx.GraphModule
    view: GraphView
    events: dict[str, Event]
    order: list[Event]
    handed: set[tuple[str, int]]
    notes: list[str] = field(default_factory=list)


class _Recorder:
    """Notes every add that runs in a module of *model*.

    torch.export may run a module through a stand-in, another object with the module's own attributes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = {id(vars(module)): module for module in model.modules()}
        self.events: list[Event] = []
        self.handed: set[tuple[str, int]] = set()
        self._calls: dict[types.FrameType, int] = {}  # holds the frames, so that each is another object

    def note(self, in_place: bool) -> int:
        """Notes the add that runs; returns its number."""
        stack: list[types.FrameType] = []
        block = None
        for frame in frames():
            if frame.f_code is MODULE_CALL:
                block = frame.f_locals.get("self")
                break
            if frame.f_code is TRACING:
                block = frame.f_locals["self"].root
                break
            stack.append(frame)
        if block is None or not stack:
            self.events.append(Event(None, (), (), -1, "call"))
            return len(self.events) - 1
        block = self.modules.get(id(vars(block)), block)
        call = self._calls.setdefault(stack[-1], len(self._calls))
        self.handed |= {place_of(outer) for inner, outer in pairwise(stack) if inner.f_back is not outer}
        names = tuple(frame.f_code.co_qualname for frame in reversed(stack))
        kind = _kind(stack[0])
        self.events.append(Event(block, path_of(stack), names, call, kind))
        return len(self.events) - 1

    def at(self, number: int) -> Event:
        return self.events[number]


def _kind(frame: types.FrameType) -> str:
    one = running(frame.f_code, frame.f_lasti)
    if one.opname == "BINARY_OP" and one.arg in ADDS:
        return "+" if one.arg == ADDS[0] else "+="
    return "call"


class _Probe(torch.overrides.TorchFunctionMode):
    """Writes every add of two tensors as an operator that carries the number of its execution."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls *func*, or the operator in its place."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ADD_NAMES and (found := operands(args, kwargs)) is not None:
            left, right, alpha = found
            if left.is_floating_point() and right.is_floating_point():
                number = self.recorder.note(name.endswith("_"))
                y = torch.ops.laurel_live.add(left, right, alpha, number)
                if name not in ("add_", "__iadd__", "iadd"):
                    return y
                if self.recorder.at(number).kind == "+=":
                    return y if y.dtype == left.dtype else y.to(left.dtype)
                return left.copy_(y)
        return func(*args, **kwargs)


class _Tracer(LaurelTracer):
    """Traces without example inputs; every add's node gets the number of its execution."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None,
                    type_expr: Any | None = None) -> fx.Node:  # fmt: skip
        """Makes a node, and notes which execution it is."""
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        called = target if isinstance(target, str) else getattr(target, "__name__", "")
        if kind in ("call_function", "call_method") and called in ADD_NAMES:
            node.meta[_EVENT] = self.recorder.note(False)
        return node


def look(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Seen:
    """Returns the graph of *model*, taken in eval mode on fake tensors: nothing is computed, nothing changes.

    Args:
        model: the model; its weights may be on the ``meta`` device.
        args: example inputs; without any the model is traced symbolically, and shapes are unknown.
        kwargs: example inputs by name.

    Raises:
        ModelError: neither route works; names the line that stopped it.
    """
    name = type(model).__name__
    recorder = _Recorder(model)
    check_paths(module_paths(model), name)
    with set_mode(model), unchanged(model), plain_forward(model), torch.no_grad(), without_logged_tracebacks():
        if not args and not kwargs:
            return _symbolic(model, recorder)
        try:
            with _probing(model, recorder):
                module = unlifted(torch.export.export(model, args, dict(kwargs), strict=False))
        except Exception as error:  # the model's own code runs here
            raise ModelError(
                f"{name} could not be looked at: running it on the example inputs without values stopped at "
                f"{stopped_at(error, model)}. Give inputs that it takes (args=, kwargs=), and mend a line that decides "
                "on the values of a tensor, or attach to the part of the model that holds the residual connections."
            ) from error
    return _seen(model, module, recorder, [])


def _symbolic(model: nn.Module, recorder: _Recorder) -> Seen:
    name = type(model).__name__
    tracer = _Tracer(recorder)
    try:
        module = symbolic_graph(model, tracer)
    except Exception as error:  # likewise
        raise ModelError(
            f"{name} cannot be traced without example inputs (torch.fx.symbolic_trace stopped at "
            f"{stopped_at(error, model)}). Give them: args=, kwargs=."
        ) from error
    return _seen(model, module, recorder, add_shapes(module, (), {}))


def _seen(model: nn.Module, module: fx.GraphModule, recorder: _Recorder, notes: list[str]) -> Seen:
    _plain_adds(module)
    view = fx_view(module, type(model).__name__)
    view.notes.extend(notes)
    events = {node.name: recorder.events[node.meta[_EVENT]] for node in module.graph.nodes if _EVENT in node.meta}
    return Seen(model, module, view, events, recorder.events, recorder.handed, notes)


@contextmanager
def _probing(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Runs the model's forward under :class:`_Probe`, and nothing around it."""
    probe = _Probe(recorder)

    def enter(*_: Any) -> None:
        probe.__enter__()  # type: ignore[no-untyped-call]

    def leave(*_: Any) -> None:
        probe.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    first = model.register_forward_pre_hook(enter)
    last = model.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()


def _plain_adds(module: fx.GraphModule) -> None:
    """Writes the probe's operators as the adds that they stand for."""
    add, add_, copy_ = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, torch.ops.aten.copy_.default
    for node in list(module.graph.nodes):
        if node.op != "call_function" or getattr(node.target, "namespace", "") != "laurel_live":
            continue
        left, right, alpha, number = node.args
        writes = [user for user in node.users if user.target is copy_ and user.args[:2] == (left, node)]
        kwargs = {} if alpha == 1 else {"alpha": alpha}
        new = node
        if writes and len(node.users) == 1:
            new = writes[0]
            new.target = add_
        else:
            node.target = add
        new.args, new.kwargs = (left, right), kwargs
        new.meta[_EVENT] = number
        if new is not node:
            module.graph.erase_node(node)
    module.recompile()
