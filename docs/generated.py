"""Pages that are made from the package itself, so that they cannot fall behind it: operators and command line."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "generated"


def operators() -> str:
    """Returns the table of the operator set ``ai.laurel``, one row for each combination of parts."""
    from laurel_graph.opset.schema import DOMAIN, VERSION, Operator

    rows = []
    for rw, lr, previous, low in (
        (True, False, 0, False),
        (False, True, 0, False),
        (False, False, 1, False),
        (True, True, 0, False),
        (True, False, 1, False),
        (False, True, 1, False),
        (True, True, 1, False),
        (True, True, 1, True),
    ):
        for extra in ({}, {"layout": "2d"}, {"layout": "2d", "epilogue": "Relu"}, {"epilogue": "LayerNorm"}):
            op = Operator(rw=rw, lr=lr, previous=previous, low_rank_previous=low, **extra)
            rows.append(f"| `{op.name}` | {', '.join(op.inputs)} | {', '.join(op.outputs)} | {op.axis} |")
    op = Operator(rw=True, lr=True, quantized=True)
    rows.append(f"| `{op.name}` | {', '.join(op.inputs)} | {', '.join(op.outputs)} | {op.axis} |")
    head = [
        f"Domain `{DOMAIN}`, version {VERSION}.",
        "",
        "| operator | inputs | outputs | feature axis |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def commands() -> str:
    """Returns the help of every command."""
    import typer.main

    from laurel_graph.tools.cli import app

    group: Any = typer.main.get_command(app)
    parts = []
    for name in sorted(group.commands):
        command = group.commands[name]
        with command.make_context(name, [], resilient_parsing=True) as context:
            parts += [f"## laurel {name}", "", "```text", command.get_help(context).rstrip(), "```", ""]
    return "\n".join(parts)


def write(_app: Any = None) -> None:
    """Writes the pages' parts where the pages include them from."""
    os.environ.setdefault("COLUMNS", "100")
    FOLDER.mkdir(exist_ok=True)
    with redirect_stdout(io.StringIO()):
        parts = {"operators.md": operators(), "commands.md": commands()}
    for name, text in parts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
