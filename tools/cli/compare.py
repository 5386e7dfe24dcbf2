"""The command that holds several results side by side: ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from laurel_graph.tools.console import note, print_json, print_table, progress, say

from .arguments import Json


def compare(
    models: Annotated[
        list[Path], typer.Argument(help="Adapters (.safetensors), .onnx files or folders of one base; two or more.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", "--html", help="The page to write; by default none.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="A picture of the curves, .png; needs matplotlib.")] = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(help="What `laurel finetune --json` printed of one of them; may be repeated."),
    ] = None,
    sites: Annotated[bool, typer.Option("--sites", help="List what each has at every site, too.")] = False,
    json: Json = False,
) -> None:
    """Hold several adapters or files of one base side by side: what each rewrote, learned and costs."""
    from laurel_graph.tools.compare import compare_models
    from laurel_graph.tools.inputs import check_ending
    from laurel_graph.tools.page.side_by_side import check_comparison, write_comparison

    read = (*models, *(training or ()))
    if output is not None:
        check_ending(output, (".html", ".htm"), "browsers", models[0], *read)
    check_comparison(output, png, read)
    with progress(f"comparing {', '.join(map(str, models))}"):
        found = compare_models(models, training=training or ())
        write_comparison(found, output, png, read)
    if json:
        wrote = {"output": output, "png": png}
        print_json({**found.to_dict(), **{key: path for key, path in wrote.items() if path is not None}})
        return
    columns = list(found.columns_shown)
    rows = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in found.rows_shown()]
    trained = [each.training for each in found.candidates]
    if any(trained):
        columns += ["before", "after"]
        for row, went in zip(rows, trained, strict=True):
            row += ["", ""] if went is None else [_value(went.before), _value(went.after)]
    print_table(f"{len(rows)} of one base", columns, rows)
    if learned := found.learned():
        print_table("what was learned: mean distance from the start", ("model", *found.quantities), learned)
    if sites:
        print_table(f"{len(found.sites)} sites", ("site", *found.with_sites), found.by_site())
    for line in found.notes:
        note(f"note: {line}")
    for path in (output, png):
        if path is not None:
            say(f"wrote {path}")


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
