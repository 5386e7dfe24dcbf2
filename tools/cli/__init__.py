"""The ``laurel`` command line: one function a command, each a thin door to a pass.

Exit codes: 0 done; 1 the answer is no (nothing found, not equal); 2 wrong input; 3 a fault of ours. Every heavy import
stands in the command that needs it, so that ``laurel --help`` answers at once and ONNX-only commands never import
torch.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laurel_graph.errors import ConfigError, LaurelError, ModelError
from laurel_graph.tools.console import (
    note,
    pipe_closed,
    print_json,
    print_table,
    progress,
    quiet_runtime,
    ready_streams,
    say,
)
from laurel_graph.tools.finetuning.options import FinetuneOptions

from .flags import with_flags

if TYPE_CHECKING:
    from laurel_graph.config import SiteOverride
    from laurel_graph.passes.verify import VerifyReport
    from laurel_graph.tools.finetuning.finetune import FinetuneReport

INTERNAL = 3
"""Exit code of a fault of ours."""

app = typer.Typer(
    help="Rewrite residual connections into LAuReL, fine-tune them, serve them on ONNX Runtime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[
    str, typer.Argument(help="An .onnx file, or package.module:callable that gives (module, inputs[, dims]).")
]
OnnxModel = Annotated[Path, typer.Argument(help="An .onnx file.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the result; never the input file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Size = Annotated[list[str] | None, typer.Option("--size", help="Size of a symbolic dim, NAME=N; may be repeated.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; anywhere.")] = False,
    plugin: Annotated[
        list[str] | None, typer.Option(help="Module that registers variants, roles, rules; before the command.")
    ] = None,
) -> None:
    for module in plugin or ():
        from laurel_graph.tools.callables import load_plugin

        load_plugin(module)
    if version:
        import laurel_graph

        say(laurel_graph.__version__)
        raise typer.Exit


@app.command()
def inspect(model: Model, json: Json = False) -> None:
    """List every join of MODEL: used, or the reason why not. Changes nothing; --json has skip and branch too."""
    from laurel_graph.passes.pipeline import inspect as run

    with progress(f"inspecting {model}"):
        target, args, kwargs, shapes = _load(model)
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


@app.command()
def transform(
    model: Model,
    output: Output,
    variant: Annotated[str, typer.Option(help="rw, lr, pa, or several joined by +.")] = "rw+lr",
    rank: Annotated[int | None, typer.Option(help="r; by default 16 (channels) or 32 (tokens), at most D/4.")] = None,
    sites: Annotated[list[str] | None, typer.Option(help="Site name or glob to rewrite; may be repeated.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Kind to rewrite: identity, projection; both.")] = None,
    init: Annotated[str | None, typer.Option(help="How A starts: xavier or orthogonal; by the layout.")] = None,
    weights: Annotated[str, typer.Option(help="How α and β are bounded: softmax, sigmoid or free.")] = "softmax",
    per_channel: Annotated[bool, typer.Option("--per-channel", help="One α and β per channel.")] = False,
    previous: Annotated[int, typer.Option(help="k of PA: how many earlier activations enter, 1 to 8.")] = 3,
    previous_map: Annotated[str, typer.Option(help="h of PA: identity or low-rank.")] = "identity",
    override: Annotated[
        list[str] | None,
        typer.Option(help="GLOB=off, GLOB=VARIANT, GLOB=RANK or GLOB=VARIANT:RANK; may be repeated, the last wins."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the Xavier initialisation.")] = 0,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Option of a term, NAME=VALUE; may be repeated.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A LaurelConfig as JSON, instead of the flags above.")] = None,
    adapter_inputs: Annotated[
        bool, typer.Option("--adapter-inputs", help="Make the new tensors overridable inputs, for ORT adapters.")
    ] = False,
    json: Json = False,
) -> None:
    """Replace the residual connections of MODEL by LAuReL residuals; same outputs at the start."""
    from laurel_graph.config import LaurelConfig
    from laurel_graph.outputs import check_outputs
    from laurel_graph.passes.pipeline import transform as run
    from laurel_graph.tools.inputs import source_files
    from laurel_graph.variants.combine import read_settings

    check_outputs(output, inputs=(config, *source_files(model)))
    if config is not None:
        chosen = LaurelConfig.from_json(_read_text(config, "a LaurelConfig as JSON"))
    else:
        chosen = LaurelConfig(
            variant=variant,
            rank=rank,
            weights=weights,
            per_channel=per_channel,
            init=init,
            previous=previous,
            previous_map=previous_map,
            include=tuple(include or ("identity", "projection")),
            sites=tuple(sites or ("*",)),
            overrides=dict(map(_parse_override, override or ())),
            seed=seed,
            options=read_settings(options),
        )
    with progress(f"transforming {model}"):
        target, args, kwargs, shapes = _load(model)
        if isinstance(target, Path):
            result = run(target, chosen, output=output, adapter_inputs=adapter_inputs)
        else:
            from laurel_graph.passes.rewrite.export import export_onnx

            result = run(target, chosen, args, kwargs=kwargs, dynamic_shapes=shapes, adapter_inputs=adapter_inputs)
            export_onnx(result.model, args, output, kwargs=kwargs, dynamic_shapes=shapes)
    report = result.report
    if json:
        print_json({"model": model, "output": output, **report.to_dict()})
        return
    rows = [
        (s.site, s.variant, s.width, s.rank or "", s.previous or "", s.parameter_count())
        for s in (plan.spec for plan in report.plans)
    ]
    print_table(f"{len(rows)} sites rewritten", ("site", "variant", "width", "rank", "previous", "parameters"), rows)
    for site, reason in report.skipped:
        say(f"left alone: {site}: {reason}")
    percent = f" ({100 * report.parameters / report.base_parameters:.3g} %)" if report.base_parameters else ""
    say(f"{report.parameters:,} new parameters on {report.base_parameters:,}{percent}; wrote {output}")
    for line in report.detection.notes:
        note(f"note: {line}")


@app.command()
@with_flags(FinetuneOptions, arguments=("model",), spellings={"tuned": ("-o", "--tuned")})
def finetune(
    options: FinetuneOptions,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Sweep instead: variants of the plain MODEL, as rw,lr. It prints a table and writes no file."
        ),
    ] = None,
    ranks: Annotated[
        str | None, typer.Option(help="Ranks of a sweep, as 4,16,32; by default one, chosen by width.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of a sweep; by default 0,1,2.")] = None,
    json: Json = False,
) -> None:
    """Train the LAuReL tensors of a transformed MODEL, all else frozen; or sweep over variants of a plain one."""
    quiet_runtime()
    if variants is not None:
        from laurel_graph.tools.finetuning.sweep import sweep

        seeds = "0,1,2" if seeds is None else seeds
        swept = sweep(options, variants.split(","), _numbers("--ranks", ranks or ""), _numbers("--seeds", seeds))
        if json:
            print_json(swept.to_dict())
        else:
            print_table(f"{swept.model}, seeds {', '.join(map(str, swept.seeds))}", swept.columns, swept.table())
        return
    for flag, value in (("--ranks", ranks), ("--seeds", seeds)):
        if value is not None:
            raise ConfigError(f"{flag} goes with a sweep: name its variants with --variants.")
    from laurel_graph.tools.finetuning.finetune import finetune as run

    report = run(options)
    if json:
        print_json(report.to_dict())
    else:
        _say_finetuned(report)


@app.command()
def apply(
    model: OnnxModel,
    adapter: Path,
    output: Output,
    check_base: Annotated[
        bool, typer.Option(help="Refuse an adapter of another base, or where that cannot be told.")
    ] = True,
    json: Json = False,
) -> None:
    """Put the saved ADAPTER (.safetensors) into the transformed MODEL."""
    from laurel_graph.adapters import apply_adapter

    with progress(f"applying {adapter}"):
        apply_adapter(model, adapter, output, check_base=check_base)
    _wrote(json, {"model": model, "adapter": adapter, "output": output})


@app.command()
def remove(model: OnnxModel, output: Output, json: Json = False) -> None:
    """Write the original graph of a transformed MODEL back, bit for bit."""
    from laurel_graph.passes.pipeline import remove as run

    with progress(f"removing LAuReL from {model}"):
        run(model, output)
    _wrote(json, {"model": model, "output": output})


@app.command()
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
            sizes=_parse_sizes(size),
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


@app.command()
def deploy(
    model: OnnxModel,
    output: Output,
    portable: Annotated[bool, typer.Option("--portable", help="Leave only plain ai.onnx operators.")] = False,
    target: Annotated[str, typer.Option(help="What the file is to run on: cpu.")] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="An .npz with one array per input, to verify on instead of a draw.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest difference over the output's scale.")] = None,
    size: Size = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn samples.")] = 0,
    json: Json = False,
) -> None:
    """Fold, fuse and choose per site the cheapest exact form; verified before it is written."""
    from laurel_graph.passes.deploy.deploy import deploy_file

    quiet_runtime()
    with progress(f"deploying {model}"):
        report = deploy_file(
            model,
            output,
            portable=portable,
            target=target,
            data=data,
            tolerance=tolerance,
            seed=seed,
            sizes=_parse_sizes(size),
        ).to_dict()
    if json:
        print_json({"model": model, "output": output, **report})
        return
    rows = [
        (s["site"], s["form"], s["deployed"], s["alpha"], s["beta"], f"{s['max_rel']:.3g}" if "max_rel" in s else "")
        for s in report["sites"]
    ]
    print_table(f"{len(rows)} sites deployed", ("site", "form", "operator", "α went", "β went", "max rel"), rows)
    keys = ("max_abs", "max_rel", "allowed", "noise")
    print_table(
        "deployed against trained",
        ("output", *(key.replace("_", " ") for key in keys)),
        [(o["output"], *(f"{o[key]:.3g}" for key in keys)) for o in report["outputs"]],
    )
    say(f"wrote {output}")


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files with the same inputs.")],
    against: Annotated[Path | None, typer.Option(help="The file that ratios are taken to.")] = None,
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

    quiet_runtime()
    with progress(f"measuring {', '.join(map(str, models))}"):
        rows = run(
            models,
            against,
            threads=threads,
            runs=runs,
            batch=batch,
            sizes=_parse_sizes(size),
            data=data,
            seed=seed,
            cpu_time=cpu_time,
        )
    if json:
        print_json({"rows": [row.to_dict() for row in rows]})
        return
    columns = ("model", "median ms", "quartiles", "ratio", "quartiles", "load ms", "ratio", "peak MB", "ratio")
    print_table(
        f"batch {batch}, {threads} threads, {runs} paired runs",
        columns,
        [
            (
                Path(row.model).name,
                row.median_ms,
                _pair(row.quartiles_ms),
                row.ratio,
                _pair(row.ratio_quartiles),
                row.load_ms,
                row.load_ratio,
                row.peak_mb,
                row.memory_ratio,
            )
            for row in rows
        ],
    )


@app.command()
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
    _wrote(json, {"model": model, "output": page})


@app.command()
def doctor(json: Json = False) -> None:
    """Print versions, the kernel library, providers, and what is missing."""
    from laurel_graph.tools.doctor import examine

    found = examine()
    if json:
        print_json(found)
        return
    for section, lines in found.items():
        say(section)
        for name, value in lines.items():
            say(f"  {name:<22} {value}")


def _load(model: str) -> tuple[Any, tuple[Any, ...], dict[str, Any], Any]:
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


def _read_text(path: Path, expected: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): expected {expected}.") from error


def _parse_override(text: str) -> tuple[str, SiteOverride]:
    from laurel_graph.config import SiteOverride

    glob, equals, value = text.rpartition("=")
    variant, _, rank = ("", "", value) if value.isdigit() else value.partition(":")
    if not equals or not glob or (rank and not rank.isdigit()):
        raise ConfigError(f"--override {text!r}: expected GLOB=off, GLOB=VARIANT, GLOB=RANK or GLOB=VARIANT:RANK.")
    if variant == "off":
        return glob, SiteOverride(off=True)
    return glob, SiteOverride(variant=variant or None, rank=int(rank) if rank else None)


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


def _numbers(flag: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"{flag} {text!r}: expected whole numbers with commas between them.")
    return [int(part) for part in parts]


def _parse_sizes(sizes: list[str] | None) -> dict[str, int]:
    parsed = {}
    for text in sizes or ():
        name, _, value = text.rpartition("=")
        if not name or not value.isdigit():
            raise ConfigError(f"--size {text!r}: expected NAME=N with N at least 0.")
        parsed[name] = int(value)
    return parsed


def _dims(shape: tuple[int | str | None, ...] | None) -> str:
    return "?" if shape is None else "x".join("?" if dim is None else str(dim) for dim in shape)


def _remark(residual: Any) -> str:
    source = "" if residual.site.startswith(residual.source) else residual.source
    parts = [source, residual.shared and f"shares {residual.shared}", residual.blocked]
    return "; ".join(part for part in parts if part)


def _pair(values: tuple[float, float] | None) -> str:
    return "" if values is None else " – ".join(f"{value:.4g}" for value in values)


def _say_finetuned(report: FinetuneReport) -> None:
    training = report.training
    trained = report.new_parameters + report.head_parameters + report.further_parameters
    say(f"trained {trained:,} parameters ({100 * report.share:.3g} % of the model) on {report.value}")
    say(f"{training.steps} steps, {training.epochs} epochs, {training.samples_per_second:.4g} samples a second")
    if training.before and training.after:
        rows = [
            (when, value, error) for when, (value, error) in (("before", training.before), ("after", training.after))
        ]
        print_table("validation", ("", training.metric, "standard error"), rows)
    say(f"{report.unchanged} tensors and nodes of the base kept their bits")
    say(f"on ONNX Runtime the tuned file is within {report.difference:.2g} of the module, over the output's scale")
    for line in report.notes:
        note(f"note: {line}")
    adapter = f" and {report.adapter}" if report.adapter else ""
    say(f"wrote {report.tuned}{adapter}")


def _wrote(json: bool, what: dict[str, Any]) -> None:
    if json:
        print_json(what)
    else:
        say(f"wrote {what['output']}")


def main() -> None:
    """Runs a command and exits: one line on stderr for whatever goes wrong, a traceback only with ``--debug``."""
    debug = "--debug" in sys.argv[1:] or bool(os.environ.get("LAUREL_DEBUG"))
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--debug"]  # before or after the command's name
    ready_streams()
    warnings.showwarning = lambda message, *_, **__: note(f"warning: {message}")
    code: Any
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        pipe_closed()
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        code = error.exit_code if isinstance(error, LaurelError) else INTERNAL
        note(f"laurel: {error if isinstance(error, LaurelError) else _internal(error)}")
    sys.exit(code)


def _run() -> Any:
    """Returns the exit code of the command in ``sys.argv``."""
    try:
        app(prog_name="laurel")
    except SystemExit as done:
        return done.code
    except KeyboardInterrupt:
        return 130
    return 0


def _internal(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return (
        f"internal error: {type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno}): please "
        "report it; --debug shows the traceback"
    )
