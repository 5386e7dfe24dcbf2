"""Arguments that several commands have in common, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from laurel_graph.errors import ModelError

Model = Annotated[
    str,
    typer.Argument(help="An .onnx file, a folder, or package.module:callable that gives (module, inputs[, dims])."),
]
OnnxModel = Annotated[Path, typer.Argument(help="An .onnx file, or a model folder (GenAI, optimum).")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The file to write, or the folder for a folder; never the input.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Size = Annotated[list[str] | None, typer.Option("--size", help="Size of a symbolic dim, NAME=N; may be repeated.")]


def load_model(model: str) -> tuple[Any, tuple[Any, ...], dict[str, Any], Any]:
    """Returns (path or torch module, positional inputs, keyword inputs, dynamic shapes) for a MODEL argument."""
    from laurel_graph.tools.callables import call, is_reference

    if not is_reference(model):
        return Path(model), (), {}, None
    made = call(model, "MODEL")
    if not (isinstance(made, tuple) and len(made) in (2, 3) and hasattr(made[0], "forward")):
        raise ModelError(
            f"{model} returned {type(made).__name__}: expected (torch.nn.Module, example inputs), or a third item, "
            "the dynamic_shapes of torch.export.export."
        )
    module, inputs, shapes = made if len(made) == 3 else (*made, None)
    if isinstance(inputs, dict):
        return module, (), inputs, shapes
    return module, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}, shapes


def parse_sizes(sizes: list[str] | None) -> dict[str, int]:
    """Returns symbolic dim to size, as ``--size NAME=N`` says them.

    Raises:
        ConfigError: one of them says something else.
    """
    from laurel_graph.passes.options import parse_sizes as read

    return dict(read(sizes or (), "--size"))
