"""The command that trains: ``finetune``, and its sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from laurel_graph.errors import ConfigError
from laurel_graph.tools.console import note, print_json, print_table, quiet_runtime, say
from laurel_graph.tools.finetuning.options import FinetuneOptions

from .arguments import Json
from .flags import with_flags

if TYPE_CHECKING:
    from laurel_graph.tools.finetuning.finetune import FinetuneReport


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


def _numbers(flag: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"{flag} {text!r}: expected whole numbers with commas between them.")
    return [int(part) for part in parts]


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
