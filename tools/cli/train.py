"""The commands that train: ``finetune`` and ``sweep``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from laurel_graph.errors import ConfigError
from laurel_graph.tools.console import is_quiet, note, print_json, print_table, quiet_runtime, say
from laurel_graph.tools.finetuning.options import FinetuneOptions

from .arguments import Json
from .flags import with_flags

if TYPE_CHECKING:
    from laurel_graph.tools.finetuning.training.report import FinetuneReport


_PANELS = {
    "Data and aim": ("data", "validation", "loss", "metric", "target", "scale", "mean", "std", "output", "teacher"),
    "What trains": ("head", "train", "dropout"),
    "Text": ("tokenizer", "max_length", "packed", "train_on"),
    "Training": (
        "epochs", "batch_size", "lr", "schedule", "warmup", "weight_decay", "clip", "seed", "patience", "precision",
    ),
    "Files": ("tuned", "adapter", "checkpoint", "checkpoint_every", "resume", "tensorboard"),
}  # fmt: skip
_SPELLINGS = {"tuned": ("-o", "--output", "--tuned"), "output": ("--value",)}


@with_flags(FinetuneOptions, ("model",), _SPELLINGS, _PANELS, without=("quiet",))
def finetune(
    options: FinetuneOptions,
    variants: Annotated[str | None, typer.Option(hidden=True)] = None,
    ranks: Annotated[str | None, typer.Option(hidden=True)] = None,
    seeds: Annotated[str | None, typer.Option(hidden=True)] = None,
    json: Json = False,
) -> None:
    """Train the LAuReL tensors of a transformed MODEL, all else frozen, and hold the tuned file against the module."""
    quiet_runtime()
    options = _as_loud_as_asked(options)
    if variants is not None:
        note("note: finetune --variants is `laurel sweep` now.")
        _sweep(options, variants, ranks or "", "0,1,2" if seeds is None else seeds, json)
        return
    for flag, value in (("--ranks", ranks), ("--seeds", seeds)):
        if value is not None:
            raise ConfigError(f"{flag} goes with a sweep: `laurel sweep MODEL --variants rw,lr {flag} {value}`.")
    from laurel_graph.tools.finetuning.finetune import finetune as run
    from laurel_graph.tools.inputs import check_model_output

    advice = f" The output, or another value of the graph, to train on is --value {options.tuned}."
    check_model_output(options.tuned, options.model, options.data, options.validation, advice=advice)

    report = run(options)
    if json:
        print_json(report.to_dict())
    else:
        _say_finetuned(report)


@with_flags(
    FinetuneOptions,
    ("model",),
    _SPELLINGS,
    {**_PANELS, "Files": ("tensorboard",)},
    without=("tuned", "adapter", "checkpoint", "checkpoint_every", "resume", "seed", "quiet"),
    said={
        "model": "the original .onnx file or model folder; of a transformed one the original is taken.",
        "tensorboard": "folder for TensorBoard scalars, one folder in it for each run; needs tensorboard.",
    },
)
def sweep(
    options: FinetuneOptions,
    variants: Annotated[str, typer.Option(help="Variants to try, as rw,lr,rw+lr.")],
    ranks: Annotated[str, typer.Option(help="Ranks, as 4,16,32; by default one, chosen by width.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, as 0,1,2.")] = "0,1,2",
    json: Json = False,
) -> None:
    """Train several variants, ranks and seeds of the original MODEL on the same data; a table is all that it writes."""
    quiet_runtime()
    _sweep(_as_loud_as_asked(options), variants, ranks, seeds, json)


def _sweep(options: FinetuneOptions, variants: str, ranks: str, seeds: str, json: bool) -> None:
    from laurel_graph.tools.finetuning.sweep import sweep as run

    swept = run(options, variants.split(","), _numbers("--ranks", ranks), _numbers("--seeds", seeds))
    if json:
        print_json(swept.to_dict())
    else:
        print_table(f"{swept.model}, seeds {', '.join(map(str, swept.seeds))}", swept.columns, swept.table())


def _as_loud_as_asked(options: FinetuneOptions) -> FinetuneOptions:
    return replace(options, quiet=is_quiet())


def _numbers(flag: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"{flag} {text!r}: expected whole numbers with commas between them.")
    return [int(part) for part in parts]


def _say_finetuned(report: FinetuneReport) -> None:
    training = report.training
    trained = report.new_parameters + report.head_parameters + report.further_parameters
    say(f"trained {trained:,} parameters ({100 * report.share:.3g} % of the model) on {report.value}")
    kept = f", epoch {training.best_epoch} kept" if training.before and training.best_epoch else ""
    say(f"{training.steps} steps, {training.epochs} epochs{kept}, {training.samples_per_second:.4g} samples a second")
    if training.before and training.after:
        rows = [
            (when, value, error if math.isfinite(error) else None)
            for when, (value, error) in (("before", training.before), ("after", training.after))
        ]
        print_table("validation", ("", training.metric, "standard error"), rows)
    say(f"{report.unchanged} tensors and nodes of the base kept their bits")
    say(f"on ONNX Runtime the tuned file is within {report.difference:.2g} of the module, over the output's scale")
    for line in report.notes:
        note(f"note: {line}")
    adapter = f" and {report.adapter}" if report.adapter else ""
    say(f"wrote {report.tuned}{adapter}")
