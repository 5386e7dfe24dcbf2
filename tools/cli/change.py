"""Commands that write another graph: ``transform``, ``apply``, ``remove``, ``deploy``."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from laurel_graph.errors import ConfigError
from laurel_graph.tools.console import note, print_json, print_table, print_wrote, progress, quiet_runtime, say

from .arguments import Json, Model, OnnxModel, Output, Size, load_model, parse_sizes


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
    config: Annotated[
        Path | None, typer.Option(help="A LaurelConfig as JSON; flags that are given go before what it says.")
    ] = None,
    adapter_inputs: Annotated[
        bool, typer.Option("--adapter-inputs", help="Make the new tensors overridable inputs, for ORT adapters.")
    ] = False,
    run: Annotated[
        bool, typer.Option(help="Run an ONNX MODEL on one sample before and after (too big: --no-run).")
    ] = True,
    keep_fused: Annotated[
        bool, typer.Option("--keep-fused", help="Leave sites alone whose add is hidden in an operator.")
    ] = False,
    portable: Annotated[
        bool, typer.Option("--portable", help="Plain ai.onnx nodes, for runtimes that know no functions.")
    ] = False,
    json: Json = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Replace the residual connections of MODEL by LAuReL residuals; same outputs at the start."""
    from laurel_graph.config import LaurelConfig
    from laurel_graph.model_folder import writes_folder
    from laurel_graph.outputs import check_outputs
    from laurel_graph.outputs.folder import check_folder
    from laurel_graph.outputs.kinds import MODEL
    from laurel_graph.passes.options import parse_override
    from laurel_graph.passes.pipeline import transform as rewrite
    from laurel_graph.tools.inputs import check_model_output, source_files
    from laurel_graph.variants.combine import read_settings

    if writes_folder(model, output):
        check_folder(output, inputs=(config, model))
    else:
        check_outputs(output, inputs=(config, *source_files(model)), kind=MODEL)
        check_model_output(output, model)
    flags: dict[str, Any] = {
        "variant": variant,
        "rank": rank,
        "weights": weights,
        "per_channel": per_channel,
        "init": init,
        "previous": previous,
        "previous_map": previous_map,
        "include": tuple(include or ("identity", "projection")),
        "sites": tuple(sites or ("*",)),
        "overrides": dict(parse_override(text, "--override") for text in override or ()),
        "seed": seed,
        "options": read_settings(options),
    }
    if config is not None:
        typed = {"override": "overrides"}
        given = {typed.get(name, name) for name in context.params if _is_typed(context, name)} if context else set()
        try:
            read = LaurelConfig.from_json(_read_text(config, "a LaurelConfig as JSON"))
        except ConfigError as error:
            raise type(error)(f"--config {config}: {error}") from error
        chosen = replace(read, **{name: value for name, value in flags.items() if name in given})
    else:
        chosen = LaurelConfig(**flags)
    with progress(f"transforming {model}"):
        target, args, kwargs, shapes = load_model(model)
        if isinstance(target, Path):
            result = rewrite(
                target,
                chosen,
                output=output,
                adapter_inputs=adapter_inputs,
                run=run,
                keep_fused=keep_fused,
                portable=portable,
            )
        else:
            from laurel_graph.passes.rewrite.export import export_onnx, notes_of_file

            result = rewrite(target, chosen, args, kwargs=kwargs, dynamic_shapes=shapes, adapter_inputs=adapter_inputs)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", UserWarning)
                export_onnx(result.model, args, output, kwargs=kwargs, dynamic_shapes=shapes, portable=portable)
            of_file = tuple(str(each.message) for each in warned)
            result = replace(result, report=replace(result.report, notes=notes_of_file(result.report.notes, of_file)))
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
    for line in report.notes:
        note(f"note: {line}")


def apply(
    model: OnnxModel,
    adapter: Annotated[Path, typer.Argument(help="What finetune --adapter or lg.save_adapter wrote.")],
    output: Output,
    check_base: Annotated[
        bool, typer.Option(help="Refuse an adapter of another base, or where that cannot be told.")
    ] = True,
    match: Annotated[
        str, typer.Option(help="How sites are matched: name, place, or auto: by place where names differ.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Put the saved ADAPTER (.safetensors) into the transformed MODEL."""
    from laurel_graph.adapters import apply_adapter
    from laurel_graph.tools.inputs import check_model_output

    check_model_output(output, model, adapter)
    with progress(f"applying {adapter}"):
        apply_adapter(model, adapter, output, check_base=check_base, match=match)
    print_wrote(json, {"model": model, "adapter": adapter, "output": output})


def remove(model: OnnxModel, output: Output, json: Json = False) -> None:
    """Write the original graph of a transformed MODEL back, bit for bit."""
    from laurel_graph.passes.pipeline import remove as run
    from laurel_graph.tools.inputs import check_model_output

    check_model_output(output, model)
    with progress(f"removing LAuReL from {model}"):
        run(model, output)
    print_wrote(json, {"model": model, "output": output})


def inline(model: OnnxModel, output: Output, json: Json = False) -> None:
    """Put plain ai.onnx nodes in the place of the LAuReL ones of MODEL, for runtimes that know no functions."""
    from laurel_graph.passes.rewrite.forms import inline as run

    with progress(f"inlining {model}"):
        run(model, output)
    print_wrote(json, {"model": model, "output": output})


def outline(model: OnnxModel, output: Output, json: Json = False) -> None:
    """Put the LAuReL nodes of a MODEL back that is in plain form."""
    from laurel_graph.passes.rewrite.forms import outline as run

    with progress(f"outlining {model}"):
        run(model, output)
    print_wrote(json, {"model": model, "output": output})


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
    opset: Annotated[int, typer.Option(help="Write a newer opset than the trained file has; 0: the same.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the drawn samples.")] = 0,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time the result beside the trained and the original file."),
    ] = False,
    json: Json = False,
) -> None:
    """Fold, fuse and choose per site the cheapest exact form; verified before it is written."""
    from laurel_graph.passes.deploy.deploy import deploy_file
    from laurel_graph.tools.benchmarks.deployed import measure_deployed
    from laurel_graph.tools.inputs import check_model_output

    check_model_output(output, model, data)
    quiet_runtime()
    with progress(f"deploying {model}"):
        done = deploy_file(
            model,
            output,
            portable=portable,
            target=target,
            data=data,
            tolerance=tolerance,
            seed=seed,
            sizes=parse_sizes(size),
            opset=opset,
        )
    report = done.to_dict()
    if measure:
        with progress(f"measuring {output}"):
            measured = measure_deployed(model, output, data=data, sizes=parse_sizes(size), seed=seed)
        report["measured"] = [row.to_dict() for row in measured.rows]
        report["notes"] += measured.notes
    if json:
        print_json({"model": model, "output": output, **report})
        return
    rows = [
        (s["site"], s["form"], s["deployed"], s["alpha"], s["beta"], f"{s['max_rel']:.3g}" if "max_rel" in s else "")
        for s in report["sites"]
    ]
    count = len({s["site"] for s in report["sites"]})  # a join of several branches has several operators
    print_table(f"{count} sites deployed", ("site", "form", "operator", "α went", "β went", "max rel"), rows)
    keys = ("max_abs", "max_rel", "allowed", "noise")
    print_table(
        "deployed against trained",
        ("output", *(key.replace("_", " ") for key in keys)),
        [(o["output"], *(f"{o[key]:.3g}" for key in keys)) for o in report["outputs"]],
    )
    if done.verification is not None and done.verification.summary:
        say(done.verification.summary)
    if measure:
        print_table(
            "deployed beside the trained and the original file",
            ("deployed over", "ms", "deployed ms", "ratio", "quartiles"),
            [
                (
                    over,
                    base.median_ms,
                    row.median_ms,
                    row.ratio,
                    " – ".join(f"{q:.4g}" for q in row.ratio_quartiles or ()),
                )
                for over, base, row in measured.pairs
            ],
        )
    for line in report["notes"]:
        note(f"note: {line}")
    say(f"wrote {output}")


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _read_text(path: Path, expected: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"it cannot be read ({why}): expected {expected}.") from error
