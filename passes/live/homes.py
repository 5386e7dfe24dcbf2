"""Where the residuals of a block live: in the block itself, unless its code runs whatever submodules it has."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator

from torch import nn

_ITERATED = frozenset(("children", "named_children", "modules", "named_modules", "_modules"))


def home_of(block: nn.Module, model: nn.Module) -> tuple[nn.Module, str]:
    """Returns the module that gets the residuals of *block*, and how their names begin there.

    A block that goes through its submodules, as a subclass of ``nn.Sequential`` does, would run a residual as one of
    them. So its residuals go to the nearest module above that does not, and where there is none to a layer inside.
    """
    if not goes_through_children(block):
        return block, "laurel_"
    path = next(path for path, module in model.named_modules() if module is block)
    steps = path.split(".") if path else []
    for length in range(len(steps) - 1, -1, -1):
        above = model.get_submodule(".".join(steps[:length]))
        if not goes_through_children(above):
            return above, f"laurel_{'_'.join(steps[length:])}_"
    inside = (m for m in block.modules() if m is not block and type(m).__module__.startswith("torch.nn."))
    leaf = next((m for m in inside if not any(True for _ in m.children()) and not isinstance(m, _CONTAINERS)), None)
    return (block, "laurel_") if leaf is None else (leaf, "laurel_")


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def goes_through_children(block: nn.Module) -> bool:
    """Tells whether the forward of *block* may run every submodule that it has."""
    if isinstance(block, _CONTAINERS):
        return True
    return any(_ITERATED & set(code.co_names) for code in _codes(type(block)))


def _codes(kind: type[nn.Module]) -> Iterator[types.CodeType]:
    """Yields the code of ``forward`` and of the methods of its class that it may call."""
    todo = ["forward"]
    seen = set(vars(nn.Module)) - {"forward"}
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        function = inspect.unwrap(getattr(kind, name, None))  # type: ignore[arg-type]
        codes = [function.__code__] if isinstance(function, types.FunctionType) else []
        while codes:
            code = codes.pop()
            yield code
            codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
            todo += code.co_names
