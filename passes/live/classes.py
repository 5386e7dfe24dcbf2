"""Classes of live blocks: a subclass of the block's own class, of the same name, whose forward has calls for adds.

Blocks of one class with the same edits share one class, and so compiled code and guards.
"""

from __future__ import annotations

import copyreg
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from laurel_graph.errors import ModelError

from .bytecode import Node, digest, rewritten
from .joins import Call
from .watch import Watcher, known_digest


@dataclass(frozen=True)
class Recipe:
    """What is done to a class: what is needed to make the live one again, elsewhere too.

    Attributes:
        node: what is replaced in ``forward``; its links are numbered by :attr:`links`.
        watched: ``(digest, offset)`` of each add on the way from ``forward``, and its number, where it is found while
            the block runs instead of being replaced.
    """

    node: Node
    watched: tuple[tuple[tuple[tuple[str, int], ...], int], ...] = ()


class Link:
    """A call, in rewritten code, of a function that holds adds itself.

    Attributes:
        node: what is replaced in that function.
        function: the function that was called here.
        new: its rewritten form.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.function: Any = None
        self.new: Any = None

    def __call__(self, callee: Any, call: Call) -> Any:
        """Returns the rewritten form of *callee*, or *callee* where it is another function."""
        if isinstance(callee, types.MethodType):
            new = self.form(callee.__func__)
            return callee if new is None else functools.partial(new, callee.__self__, laurel_call=call)
        if isinstance(callee, functools.partial):
            return functools.partial(self(callee.func, call), *callee.args, **callee.keywords)
        new = self.form(callee)
        if new is not None:
            return functools.partial(new, laurel_call=call)
        return functools.partial(self.handed, callee, call) if self.node.handed else callee

    def handed(self, callee: Any, call: Call, *args: Any, **kwargs: Any) -> Any:
        """Calls *callee*, which calls the function that is one of its arguments (checkpointing)."""
        return callee(*(self.argument(arg, call) for arg in args), **kwargs)

    def argument(self, value: Any, call: Call) -> Any:
        """Returns the rewritten form of an argument that is the function."""
        return self(value, call) if isinstance(value, (types.FunctionType, types.MethodType)) else value

    def form(self, function: Any) -> Any:
        """Returns the rewritten form of *function*, ``None`` where it is another one than was looked at."""
        if function is self.function:
            return self.new
        if not isinstance(function, types.FunctionType) or known_digest(function.__code__) != self.node.code:
            return None
        new = rewritten(function, self.node)
        if not self.node.fresh:
            self.function, self.new = function, new
        return new


_LIVE: dict[tuple[type, Recipe], type] = {}


def live_class(base: type[nn.Module], recipe: Recipe) -> type[nn.Module]:
    """Returns the subclass of *base* that runs with *recipe*.

    Raises:
        UnrewritableError: a function has a form that is not rewritten.
        ModelError: ``base.forward`` is not the code that the recipe was made for.
    """
    key = (base, recipe)
    if key not in _LIVE:
        _LIVE[key] = _made(base, recipe)
    return _LIVE[key]


def base_class(kind: type) -> type:
    """Returns the class that a live class was made from."""
    return kind.__dict__.get("laurel_base", kind)  # type: ignore[no-any-return]


def _made(base: type[nn.Module], recipe: Recipe) -> type[nn.Module]:
    original: Any = base.forward
    if not isinstance(original, types.FunctionType) or digest(original.__code__) != recipe.node.code:
        raise ModelError(
            f"{base.__module__}.{base.__qualname__}.forward is not the code that LAuReL was attached to: another "
            "version of its source or of Python. Make the model anew and load its adapter with load_adapter."
        )
    links: list[Link] = []
    forward: Callable[..., Any]
    if recipe.watched:
        forward = _watching(original, dict(recipe.watched))
    else:
        forward = _calling(rewritten(original, _numbered(recipe.node, links)), original)
    body = {
        "forward": forward,
        "laurel_base": base,
        "laurel_recipe": recipe,
        "laurel_links": tuple(links),
        "__reduce_ex__": _reduce_ex,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return types.new_class(base.__name__, (base,), {}, lambda space: space.update(body))


def _numbered(node: Node, links: list[Link]) -> Node:
    """The node with its links numbered in *links*, which takes them up."""
    points: list[tuple[int, int, Node | None]] = []
    for offset, number, callee in node.points:
        if callee is not None:
            number = len(links)
            links.append(Link(callee))
            links[number].node = _numbered(callee, links)
        points.append((offset, number, callee))
    return replace(node, points=tuple(points))


def _calling(new: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return new(self, *args, laurel_call=Call(self), **kwargs)

    return forward


def _watching(original: Callable[..., Any], paths: dict[Any, int]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with Watcher(Call(self), paths):
            return original(self, *args, **kwargs)

    return forward


# Copies and pickles ---------------------------------------------------------------------------------------------------


def _reduce_ex(self: nn.Module, protocol: int) -> Any:
    """As the base would, with the live class made anew where it is read."""
    kind = type(self)
    made: Any = super(kind, self).__reduce_ex__(protocol)  # type: ignore[call-overload]
    maker, args, *rest = made
    if maker is copyreg.__newobj__ and args[:1] == (kind,):  # type: ignore[attr-defined]
        base = kind.__dict__["laurel_base"]
        return (new_live, (base, kind.__dict__["laurel_recipe"], *args[1:]), *rest)
    return made


def new_live(base: type[nn.Module], recipe: Recipe, *args: Any) -> nn.Module:
    """Makes an empty object of a live class, for copies and pickles."""
    kind = live_class(base, recipe)
    return kind.__new__(kind, *args)
