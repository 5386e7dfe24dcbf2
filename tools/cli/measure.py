"""The command that measures: ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from laurel_graph.tools.console import note, print_json, print_table, progress, quiet_runtime

from .arguments import Json, Size, parse_sizes


def bench(
    models: Annotated[list[Path], typer.Argument(help="ONNX files or folders, with the same inputs.")],
    against: Annotated[
        Path | None, typer.Option(help="The file that ratios are taken to; by default the first of several.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of every session.")] = 2,
    runs: Annotated[int, typer.Option(help="Counted runs of each model.")] = 40,
    batch: Annotated[int, typer.Option(help="Batch size of drawn inputs.")] = 1,
    size: Size = None,
    data: Annotated[Path | None, typer.Option(help="An .npz with one array per input, instead of a draw.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of drawn inputs.")] = 0,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Processor time, not the clock: for one thread on a busy machine.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure latency in interleaved, paired runs on ONNX Runtime, and load time and peak memory."""
    from laurel_graph.tools.benchmarks.latency import bench as run
    from laurel_graph.tools.benchmarks.latency import findings

    quiet_runtime()
    with progress(f"measuring {', '.join(map(str, models))}"):
        rows = run(
            models,
            against,
            threads=threads,
            runs=runs,
            batch=batch,
            sizes=parse_sizes(size),
            data=data,
            seed=seed,
            cpu_time=cpu_time,
        )
    said = findings(rows)
    if json:
        print_json({"rows": [row.to_dict() for row in rows], "notes": said})
        return
    names = [Path(row.model).name for row in rows]
    base = f", ratios to {names[0]}" if len(rows) > 1 else ""
    times = ("ms", "quartiles") + (("ratio", "its quartiles") if base else ())
    print_table(
        f"median latency: batch {batch}, {threads} threads, {runs} paired runs{base}",
        ("model", *times),
        [
            (name, row.median_ms, _pair(row.quartiles_ms), row.ratio, _pair(row.ratio_quartiles))[: 1 + len(times)]
            for name, row in zip(names, rows, strict=True)
        ],
    )
    sizes = ("load ms", "load ratio", "peak MB", "peak ratio") if base else ("load ms", "peak MB")
    print_table(
        "load time and memory, in processes of their own",
        ("model", *sizes),
        [
            (name, row.load_ms, row.load_ratio, row.peak_mb, row.memory_ratio)
            if base
            else (name, row.load_ms, row.peak_mb)
            for name, row in zip(names, rows, strict=True)
        ],
    )
    for line in said:
        note(f"note: {line}")


def _pair(values: tuple[float, float] | None) -> str:
    return "" if values is None else " – ".join(f"{value:.3g}" for value in values)
