"""Finds the adds of a live block while it runs, where its code cannot be rewritten.

Each call of a torch function inside the block's forward is looked at: an add whose place on the Python stack is known
becomes the residual. That costs some time per operator, and ``torch.compile(fullgraph=True)`` does not go through it.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from .bytecode import digest, running
from .joins import Call

ADD_NAMES = frozenset(("add", "add_", "__add__", "__radd__", "__iadd__", "iadd"))
"""What torch calls the functions and methods that add."""

MODULE_CALL = nn.Module._call_impl.__code__
"""The code of the frame in which a module's forward is called."""

TRACING = inspect.unwrap(fx.Tracer.trace).__code__  # torch.compile puts a wrapper around it
"""The code of the frame in which the forward of a model that is traced symbolically is called."""


def operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any] | None:
    """Returns (left, right, alpha) of an add of two tensors, ``None`` for other calls."""
    named = dict(kwargs)
    alpha = named.pop("alpha", 1)
    values = (*args, *(named.pop(key) for key in ("input", "self", "other") if key in named))
    if named or len(values) != 2 or not all(isinstance(value, Tensor) for value in values):
        return None
    return (*values, alpha) if isinstance(alpha, (int, float)) else None


def frames() -> Iterator[types.FrameType]:
    """Yields the frames of the forward that runs, from the innermost up to that of the module's call.

    The last one is that of :data:`MODULE_CALL` (or :data:`TRACING`), unless none is there. Frames of this room
    and of torch's own machinery for adds and traces stand in between for nothing.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in (MODULE_CALL, TRACING):
            yield frame
            return
        if not str(frame.f_globals.get("__name__", "")).startswith(_BETWEEN):
            yield frame
        frame = frame.f_back


_BETWEEN = (
    __name__.rpartition(".")[0],
    "torch.fx.",
    "torch.overrides",
    "torch._tensor",
    "torch._ops",
    "torch.nn.modules.module",
    "torch.utils.checkpoint",
    "torch._dynamo",
    "torch._compile",
    "torch.autograd.function",
    "torch.utils._python_dispatch",
)

_DIGESTS: dict[types.CodeType, str] = {}


def known_digest(code: types.CodeType) -> str:
    """:func:`~.bytecode.digest`, once for each code."""
    if code not in _DIGESTS:
        _DIGESTS[code] = digest(code)
    return _DIGESTS[code]


def code_of(name: str) -> types.CodeType:
    """Returns the code that was seen under a digest."""
    return next(code for code, known in _DIGESTS.items() if known == name)


def path_of(stack: list[types.FrameType]) -> tuple[tuple[str, int], ...]:
    """Returns the place of an add: code and instruction of each function from the forward to the add."""
    return tuple(place_of(frame) for frame in reversed(stack))


def place_of(frame: types.FrameType) -> tuple[str, int]:
    """Returns the code that a frame runs, and the offset of the instruction."""
    return known_digest(frame.f_code), running(frame.f_code, frame.f_lasti).offset


class Watcher(TorchFunctionMode):
    """Puts the residuals of one call of a block in the place of its adds.

    Args:
        call: the call.
        paths: place of an add to its number.
    """

    def __init__(self, call: Call, paths: Mapping[Any, int]) -> None:
        super().__init__()
        self.call, self.paths = call, paths
        self.ends = {path[-1] for path in paths}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls *func*, or the residual in its place."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ADD_NAMES and operands(args, kwargs) is not None:
            number = self._number()
            if number is not None:
                with torch._C.DisableTorchFunctionSubclass():
                    return self._run(func, name, number, args, kwargs)
        return func(*args, **kwargs)

    def _number(self) -> int | None:
        stack: list[types.FrameType] = []
        for frame in frames():
            if frame.f_code is MODULE_CALL:
                if frame.f_locals.get("self") is not self.call.block:
                    return None
                break
            if not stack and place_of(frame) not in self.ends:
                return None
            stack.append(frame)
        return self.paths.get(path_of(stack))

    def _run(self, func: Any, name: str, number: int, args: Any, kwargs: dict[str, Any]) -> Any:
        if name in ("__iadd__", "iadd"):
            left, right = args
            return self.call.join_in_place(left, right, number)
        return self.call._called(number, func, name == "add_", (), *args, **kwargs)
