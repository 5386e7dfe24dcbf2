"""Commands that look at models and change nothing: ``inspect``, ``verify``, ``report``, ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laurel_graph.tools.console import note, print_json, print_table, print_wrote, progress, quiet_runtime, say

from .arguments import Json, Model, OnnxModel, Size, load_model, parse_sizes

if TYPE_CHECKING:
    from laurel_graph.passes.verify import VerifyReport


def inspect(model: Model, json: Json = False) -> None:
    """List every join of MODEL: used, or the reason why not. Changes nothing; --json has skip and branch too."""
    from laurel_graph.passes.pipeline import inspect as run

    with progress(f"inspecting {model}"):
        target, args, kwargs, shapes = load_model(model)
        found = run(target, args, kwargs, shapes)
    if json:
        print_json({**found.to_dict(), "model": model})
    else:
        rows = [(r.site, r.kind, r.join, _dims(r.shape), f"{r.stream}.{r.index}", _remark(r)) for r in found.residuals]
        columns = ("site", "kind", "join", "shape", "stream", "remark")
        if rows:
            print_table(f"{len(rows)} residual connections in {model}", columns, rows)
        if found.rejected:
            say("")
            reasons = [(r.join, r.reason, r.detail) for r in found.rejected]
            print_table(f"{len(reasons)} other joins", ("join", "reason", "detail"), reasons)
        kinds = [residual.kind for residual in found.residuals]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "no residual connection"
        say(f"\n{counts}; {len(found.rejected)} other joins; {found.nodes} nodes")
        for line in found.notes:
            note(f"note: {line}")
    if not found.residuals:
        raise typer.Exit(1)


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
    if not report.equal:
        raise typer.Exit(1)


def report(
    model: OnnxModel,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; by default MODEL.html.")] = None,
    json: Json = False,
) -> None:
    """Draw the streams, and show parameters and learned α, β, γ by depth, on one HTML page."""
    from laurel_graph.tools.report import default_page, write_report

    page = output or default_page(model)
    with progress(f"reporting on {model}"):
        write_report(model, page)
    print_wrote(json, {"model": model, "output": page})


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
    source = "" if residual.site.startswith(residual.source) else residual.source
    parts = [source, residual.shared and f"shares {residual.shared}", residual.blocked]
    return "; ".join(part for part in parts if part)


def _say_sites(report: VerifyReport) -> None:
    """Says how the sites compare, and which one differs first."""
    if report.sites:
        worst = max(report.sites, key=lambda item: item.max_rel)
        equal = sum(item.equal for item in report.sites)
        where = worst.site or worst.output
        say(f"{equal} of {len(report.sites)} sites equal, at most {worst.max_rel:.3g} of the scale apart (at {where})")
    first = report.first_difference
    if first is not None:
        site = getattr(first, "site", "")
        say(
            f"differs first at {f'site {site}' if site else first.output}: {first.max_rel:.3g} of its scale, "
            f"allowed {first.tolerance:.3g}"
        )
