"""What the user's own code, model and data did when they failed: one sentence that names the place."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from laurel_graph.errors import DataError
from laurel_graph.foreign_names import foreign_text
from laurel_graph.own_code import is_ours

if TYPE_CHECKING:
    from torch import Tensor, nn

_LONGEST = 300
"""Characters of a foreign message that one of ours takes over."""


def told(error: BaseException) -> str:
    """Returns what was raised and the last line of the user's own code that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
    own = [
        frame for frame in frames if not frame.filename.startswith((*libraries, "<")) and not is_ours(frame.filename)
    ]
    text = foreign_text(error, _LONGEST)
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{place}"


def model_failed(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception) -> DataError:
    """Returns the error that says at which node of the graph a batch of the data does not fit the model."""
    from torch import fx

    place, shown = "", {**{str(i + 1): value for i, value in enumerate(args)}, **kwargs}
    if isinstance(module, fx.GraphModule) and not kwargs:
        node, operands = _first_failure(module, args)
        if node is not None:
            origin = node.meta.get("onnx")
            place = f" at {origin}" if origin is not None else f" at {node.name!r}"
            shown = {str(i + 1): value for i, value in enumerate(operands)}
    described = ", ".join(f"{name}: {text}" for name, value in shown.items() if (text := _described(value)))
    return DataError(
        f"the model does not run on a batch of the data{place}: {told(error)}. Its operands are {described or 'none'}; "
        "hold ids against the vocabulary, lengths against the table of positions, and shapes against the model."
    )


def _first_failure(module: Any, args: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Returns the first node of a graph that fails on *args* and what it was given; ``None`` if none does."""
    import torch
    from torch import fx

    found: list[Any] = [None, ()]

    class Watcher(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            try:
                return super().run_node(n)
            except Exception:
                found[:] = [n, self.fetch_args_kwargs_from_env(n)[0]]
                raise

    with suppress(Exception), torch.no_grad():
        Watcher(module).run(*args)
    return found[0], found[1]


def _described(value: Any) -> str:
    """Type and shape of a tensor; of integers their range too."""
    import torch

    if not isinstance(value, torch.Tensor):
        return ""
    tensor: Tensor = value
    text = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    if tensor.dtype in (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8) and tensor.numel():
        text += f" from {int(tensor.min())} to {int(tensor.max())}"
    return text
