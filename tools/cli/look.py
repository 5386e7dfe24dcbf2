"""Commands that look at models and change nothing: ``inspect``, ``verify``, ``report``, ``doctor``."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laurel_graph.tools.console import (
    lines_left,
    note,
    print_json,
    print_table,
    progress,
    quiet_runtime,
    relative,
    say,
)

from .arguments import Json, Model, OnnxModel, Size, load_model, parse_sizes

if TYPE_CHECKING:
    from laurel_graph.detection import Detection
    from laurel_graph.passes.verify import VerifyReport


Only = Enum("Only", {"residual": "residual", "rejected": "rejected"})
"""What ``--only`` takes."""


def inspect(
    model: Model,
    json: Json = False,
    only: Annotated[
        Only | None, typer.Option(help="Show residual connections alone, or the other joins alone.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List every join, however many, not only counts by reason.")
    ] = False,
    why: Annotated[str | None, typer.Option(metavar="JOIN", help="Explain the verdict on one add or site.")] = None,
    graph: Annotated[Path | None, typer.Option(help="Write the graph with its verdicts: .graphml or .dot.")] = None,
) -> None:
    """List every join of MODEL: used, or the reason why not. Changes nothing; --json has skip and branch too."""
    from laurel_graph.passes.pipeline import inspect as run
    from laurel_graph.tools.inputs import source_files

    if graph is not None:
        from laurel_graph.outputs import check_outputs
        from laurel_graph.outputs.graphs import check_format, write_graph
        from laurel_graph.outputs.kinds import TEXT

        check_format(graph)
        check_outputs(graph, inputs=source_files(model), kind=TEXT)
    with progress(f"inspecting {model}"):
        target, args, kwargs, shapes = load_model(model)
        found = run(target, args, kwargs, shapes)
        if graph is not None:
            write_graph(found.to_networkx(), graph, source_files(model))
    if graph is not None:
        note(f"wrote {graph}")
    if why is not None:
        _explain(found, why, json)
        return
    hidden = {None: "", Only.residual: "rejected", Only.rejected: "residuals"}[only]
    if json:
        print_json({key: value for key, value in {**found.to_dict(), "model": model}.items() if key != hidden})
    else:
        _show(found, model, hidden, everything)
    if not found.residuals:
        raise typer.Exit(1)


def _explain(found: Detection, join: str, json: bool) -> None:
    from laurel_graph.passes.detect.explain import explain

    explained = explain(found, join)
    if json:
        print_json(explained.to_dict())
        return
    for sentence in explained.sentences:
        say(sentence)
    for path in explained.paths:
        say("")
        steps = [(step.value, step.operator, step.meaning, step.source) for step in path.steps]
        columns = ["value", "operator", "what it does", "source"]
        shown = 4 if any(step.source for step in path.steps) else 3
        print_table(path.title, columns[:shown], [step[:shown] for step in steps])


_BELOW = 12
"""Lines of a terminal that are kept for what stands around the table of residual connections."""
FEW = 5
"""So many other joins are listed one by one without being asked for."""


def _show(found: Detection, model: str, hidden: str, everything: bool) -> None:
    if found.residuals and hidden != "residuals":
        named_after = all(r.site == f"res_{r.join}" for r in found.residuals)
        columns = ("site", *(() if named_after else ("join",)), "kind", "shape", "stream", "remark")
        rows = [
            (r.site, *(() if named_after else (r.join,)), r.kind, _dims(r.shape), f"{r.stream}.{r.index}", _remark(r))
            for r in found.residuals
        ]
        shown = len(rows) if everything else lines_left(len(rows), _BELOW)
        print_table(f"{len(rows)} residual connections in {model}", columns, rows[:shown])
        if shown < len(rows):
            say(f"... {len(rows) - shown} more; --all lists them")
        say("")
    if found.rejected and hidden != "rejected":
        count = len(found.rejected)
        if everything or count <= FEW:
            print_table(
                f"{count} other joins",
                ("join", "reason", "detail"),
                [(r.join, r.reason, r.detail) for r in found.rejected],
            )
        else:
            _show_reasons(found)
        say("")
    kinds = [residual.kind for residual in found.residuals]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "no residual connection"
    say(f"{counts}; {len(found.rejected)} other joins; {found.nodes} nodes")
    for line in found.notes:
        note(f"note: {line}")


def _show_reasons(found: Detection) -> None:
    """Counts the other joins by reason, the nearest misses first."""
    from laurel_graph.passes.detect.reasons import NEAR, REASONS

    counts = Counter(rejected.reason for rejected in found.rejected)
    first = {rejected.reason: rejected.join for rejected in reversed(found.rejected)}
    rows = [
        (reason, str(counts[reason]), REASONS[reason], first[reason])
        for reason in sorted(counts, key=lambda reason: -NEAR.get(reason, 0.0))
    ]
    title = f"{len(found.rejected)} other joins by reason; --all lists each, --why JOIN explains one"
    print_table(title, ("reason", "joins", "meaning", "one of them"), rows)


def verify(
    model_a: OnnxModel,
    model_b: OnnxModel,
    data: Annotated[Path | None, typer.Option(help="An .npz with one array per input; else seeded samples.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest difference over the output's scale.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size of a drawn sample; may be repeated.")] = None,
    size: Size = None,
    seed: Annotated[int, typer.Option(help="Seed of drawn samples.")] = 0,
    optimize: Annotated[bool, typer.Option(help="Run with ONNX Runtime's graph optimisations.")] = True,
    json: Json = False,
) -> None:
    """Compare the outputs of two models: max abs and rel difference per output."""
    from laurel_graph.passes.verify import verify as run

    quiet_runtime()
    with progress(f"comparing {model_a} with {model_b}"):
        report = run(
            model_a,
            model_b,
            data,
            tolerance=tolerance,
            batches=batch or (1, 7),
            seed=seed,
            sizes=parse_sizes(size),
            optimize=optimize,
        )
    if json:
        print_json(report.to_dict())
    else:
        rows = [
            (
                o.output,
                o.dtype,
                _dims(o.shape),
                *(f"{value:.3g}" for value in (o.max_abs, o.max_rel, o.tolerance, o.noise)),
                o.same_bits,
                o.equal,
            )
            for o in report.outputs
        ]
        columns = ("output", "type", "shape", "max abs", "max rel", "allowed", "noise", "same bits", "equal")
        print_table(f"{report.samples} samples", columns, rows)
        _say_sites(report)
        for line in report.notes:
            note(f"note: {line}")
    if not report.equal:
        raise typer.Exit(1)


def report(
    model: OnnxModel,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; by default MODEL.html.")] = None,
    png: Annotated[
        Path | None, typer.Option(help="A picture of it, .png; needs matplotlib. Without -o it is all that is written.")
    ] = None,
    served: Annotated[Path | None, typer.Option(help="The deployed file, to hold against MODEL: is it right?")] = None,
    against: Annotated[
        Path | None, typer.Option(help="The original, to measure latency against: what does it cost?")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="What `laurel finetune --json` printed: how did training go?")
    ] = None,
    json: Json = False,
) -> None:
    """Write one HTML page: what was rewritten, what it learned, what it costs, whether it is right, its streams."""
    from laurel_graph.tools.inputs import check_ending
    from laurel_graph.tools.report import default_page, write_report

    page = default_page(model) if output is None and png is None else output
    if page is not None:
        check_ending(page, (".html", ".htm"), "browsers", model, served, against, training)
    if served is not None or against is not None:
        quiet_runtime()
    with progress(f"reporting on {model}"):
        write_report(model, page, served=served, against=against, training=training, png=png)
    if json:
        print_json({"model": model, "output": page, **({} if png is None else {"png": png})})
        return
    for path in filter(None, (page, png)):
        say(f"wrote {path}")


def doctor(
    model: Annotated[Path | None, typer.Argument(help="A model folder (or .onnx file): say how it will run.")] = None,
    json: Json = False,
) -> None:
    """Print versions, the kernel library, providers, and what is missing; for a model, what runs it."""
    from laurel_graph.tools.doctor import examine, examine_model

    if model is not None:
        quiet_runtime()
    found = examine() if model is None else {"model": examine_model(model)}
    if json:
        print_json(found)
        return
    for section, lines in found.items():
        say(section)
        for name, value in lines.items():
            say(f"  {name:<22} {value}")


def _dims(shape: tuple[int | str | None, ...] | None) -> str:
    return "?" if shape is None else "x".join("?" if dim is None else str(dim) for dim in shape)


def _remark(residual: Any) -> str:
    source = "" if residual.site.startswith(residual.source) else relative(residual.source)
    bodies = ", ".join(each.body[:-1] for each in (residual, *residual.copies) if each.body)
    parts = [source, bodies and f"in {bodies}", residual.shared and f"shares {residual.shared}", residual.blocked]
    return "; ".join(part for part in parts if part)


def _say_sites(report: VerifyReport) -> None:
    """Says how the sites compare, and which one differs first."""
    if report.summary:
        say(report.summary)
    first = report.first_difference
    if first is not None:
        site = getattr(first, "site", "")
        say(
            f"differs first at {f'site {site}' if site else first.output}: {first.max_rel:.3g} of its scale, "
            f"allowed {first.tolerance:.3g}"
        )
