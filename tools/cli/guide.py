"""Commands that say what comes next: ``guide`` and ``data-template``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from laurel_graph.tools.console import note, print_json, progress, quiet_runtime, say

from .arguments import Json, OnnxModel


def guide(model: OnnxModel, json: Json = False) -> None:
    """Print the next commands for MODEL, with its names filled in, and what the data should look like."""
    from laurel_graph.tools.guide import guide as run

    with progress(f"looking at {model}"):
        found = run(model)
    if json:
        print_json(found.to_dict())
    else:
        say(f"{model}: {found.state}, {found.residuals} residual connections")
        for title, values in (("takes", found.inputs), ("gives", found.outputs)):
            for name, text in values.items():
                say(f"  {title} {name}: {text}")
        if found.data:
            say("\ndata")
            for line in found.data:
                say(f"  {line}")
        say("\nnext")
        for what, command in found.commands:
            say(f"  # {what}\n  {command}")
        if not found.commands:
            say("  nothing lies beside it to hold it against: laurel verify TRAINED MODEL, laurel bench MODEL ORIGINAL")
    if not found.residuals and found.state == "plain":
        note("note: there is nothing to rewrite; `laurel inspect MODEL --all` says why of each add.")
        raise typer.Exit(1)


def data_template(
    model: OnnxModel,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz file to write.")],
    samples: Annotated[int, typer.Option(help="How many samples.")] = 8,
    loss: Annotated[str | None, typer.Option(help="cross_entropy or mse; by default what guide names.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn numbers.")] = 0,
    json: Json = False,
) -> None:
    """Write an example of the data that MODEL trains on: right names, types and shapes, random numbers."""
    from laurel_graph.tools.guide import write_template
    from laurel_graph.tools.inputs import check_ending

    check_ending(output, (".npz",), "NumPy and finetune", model)
    quiet_runtime()
    with progress(f"drawing data for {model}"):
        arrays = write_template(model, output, samples=samples, loss=loss, seed=seed)
    if json:
        shown = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in arrays.items()}
        print_json({"model": model, "output": output, "arrays": shown})
        return
    for name, array in arrays.items():
        say(f"{name}: {array.dtype} {array.shape}")
    say(f"wrote {output}")
    note("note: its numbers are random; put yours in their place.")
