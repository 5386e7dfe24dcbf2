"""``laurel finetune --variants ... --ranks ...``: every variant from the same start, several seeds, one table.

Each run is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from laurel_graph import onnx_file
from laurel_graph.config import LaurelConfig
from laurel_graph.errors import ConfigError, LaurelError, TrainingError
from laurel_graph.model_folder import graph_path
from laurel_graph.opset.schema import read_specs
from laurel_graph.outputs import workspace
from laurel_graph.showing import Cell, Shown
from laurel_graph.tools.callables import load_plugin
from laurel_graph.tools.console import note, said
from laurel_graph.variants.combine import canonical_variant
from laurel_graph.variants.registry import plugins, terms_of
from laurel_graph.variants.term import symbols_of

from .finetune import finetune, with_changes
from .options import FinetuneOptions
from .training.report import FinetuneReport
from .training.scalars import check_tensorboard

ORDER = ("rw", "lr", "rw+lr", "pa", "rw+lr+pa")
"""The order in which the paper recommends to try the variants."""


@dataclass(frozen=True)
class SweepRow:
    """One line of the table: a variant and rank over several seeds.

    Attributes:
        variant: canonical variant; ``none`` for the model without LAuReL, its head (or what ``train`` names) alone.
        rank: r, or ``None`` where the variant has none.
        parameters: elements that train.
        share: those over the elements of the original model.
        metric: name of the validation metric.
        before: its value before training, of the first seed.
        mean: its mean after training.
        std: its standard deviation over the seeds; 0 for one seed.
        seconds: mean training time.
        memory: largest peak memory of a run in bytes.
        values: the metric of each seed.
    """

    variant: str
    rank: int | None
    parameters: int
    share: float
    metric: str
    before: float
    mean: float
    std: float
    seconds: float
    memory: int
    values: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class SweepReport(Shown):
    """What :func:`sweep` found.

    Attributes:
        model: the model that every run starts from.
        seeds: the seeds of each row.
        rows: one per variant and rank, in the paper's recommended order.
    """

    model: str
    seeds: tuple[int, ...]
    rows: tuple[SweepRow, ...]

    columns_shown: ClassVar[tuple[str, ...]] = ("variant", "rank", "parameters", "before", "mean", "± std", "seconds")

    def shown(self) -> list[str]:
        """Returns one line per variant and rank."""
        return [f"{self.model}: {len(self.rows)} ways to train, seeds {', '.join(map(str, self.seeds))}"] + [
            f"{row.variant}{f', rank {row.rank}' if row.rank else ''}: {row.metric} {row.mean:.4f} ± {row.std:.4f}"
            for row in self.rows
        ]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per variant and rank."""
        return [(r.variant, r.rank, r.parameters, r.before, r.mean, r.std, r.seconds) for r in self.rows]

    columns = ("variant", "rank", "parameters", "share", "before", "mean", "± std", "seconds", "memory")

    def table(self) -> list[tuple[str, ...]]:
        """Returns the rows as text under :attr:`columns`."""
        return [
            (
                row.variant,
                "" if row.rank is None else str(row.rank),
                f"{row.parameters:,}",
                f"{100 * row.share:.3g} %",
                f"{row.before:.4f}",
                f"{row.mean:.4f}",
                f"{row.std:.4f}",
                f"{row.seconds:.1f}",
                f"{row.memory / 2**20:.0f} MiB",
            )
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel finetune --variants ... --json``."""
        return asdict(self)


def sweep(
    options: FinetuneOptions,
    variants: Iterable[str] = ORDER,
    ranks: Iterable[int] = (),
    seeds: Iterable[int] = (0, 1, 2),
    config: LaurelConfig | None = None,
) -> SweepReport:
    """Fine-tunes every variant (and rank, where it has one) from the same start.

    Args:
        options: how each run is trained; ``model`` is the original or a transformed file, ``tuned`` and ``adapter`` are
            not written. Validation data is required.
        variants: variants to try.
        ranks: ranks to try for variants of low rank; empty for the default rank.
        seeds: seeds of the order of the samples and of the initialisation.
        config: everything else of the transformation.

    Raises:
        ConfigError: no validation data, no seeds, an adapter to write, or a variant or rank that is none.
        LaurelError: see :func:`laurel_graph.tools.finetuning.finetune.finetune`.
    """
    from laurel_graph.passes.pipeline import remove, transform

    chosen = sorted({canonical_variant(v) for v in variants}, key=lambda v: (v not in ORDER, [*ORDER, v].index(v)))
    seeds, ranks = tuple(seeds), tuple(ranks)
    if options.validation is None:
        raise ConfigError("a sweep compares validation metrics: give --validation.")
    if not seeds:
        raise ConfigError("seeds is empty: expected at least one seed.")
    if not chosen:
        raise ConfigError("variants is empty: expected at least one variant.")
    if options.adapter is not None:
        raise ConfigError("a sweep writes no adapter: leave out --adapter and fine-tune the best variant with it.")
    check_tensorboard(options.tensorboard)
    config = LaurelConfig.of(config)
    for wanted in ranks:
        _with(config, "lr", wanted, 0)  # a wrong one is refused before the first run
    plan: list[tuple[str, int | None]] = [("none", None)] if options.head or options.train else []
    plan += [(v, rank) for v in chosen for rank in (ranks if _has_rank(v, config) and ranks else (None,))]
    rows, began, done, all_runs = [], time.perf_counter(), 0, len(plan) * len(seeds)
    with workspace(Path(tempfile.gettempdir())) as space:
        folder = space.new_folder()
        start = graph_path(options.model)
        tokenizer = options.tokenizer or (options.model if options.model.is_dir() else start.parent)
        if read_specs(onnx_file.read(start)):
            start = folder / "original.onnx"
            remove(graph_path(options.model), output=start)
        for variant, rank in plan:
            reports = []
            for seed in seeds:
                model = start
                if variant != "none":
                    model = folder / "model.onnx"
                    transform(start, _with(config, variant, rank, seed), output=model)
                name = f"{variant}{f'-rank{rank}' if rank else ''}-seed{seed}"
                if not options.quiet:
                    left = (time.perf_counter() - began) * (all_runs - done) / done if done else None
                    note(f"run {done + 1} of {all_runs}: {name}{'' if left is None else f', {said(left)} left in all'}")
                run = with_changes(
                    options,
                    model=model,
                    tuned=folder / "tuned.onnx",
                    adapter=None,
                    seed=seed,
                    resume=False,
                    tokenizer=tokenizer,
                    tensorboard=options.tensorboard and options.tensorboard / name,
                )
                reports.append(_in_a_process(run))
                done += 1
            rows.append(_row(variant, rank, reports))
    return SweepReport(str(options.model), seeds, tuple(rows))


def _has_rank(variant: str, config: LaurelConfig) -> bool:
    return any("r" in symbols_of(term) for term in terms_of(variant, config.previous_map))


def _with(config: LaurelConfig, variant: str, rank: int | None, seed: int) -> LaurelConfig:
    known = {name for term in terms_of(variant) for name in term.options}
    options = {name: value for name, value in dict(config.options).items() if name in known}
    rank = config.rank if rank is None else rank
    return replace(config, variant=variant, rank=rank, seed=seed, options=options)


def _row(variant: str, rank: int | None, reports: list[FinetuneReport]) -> SweepRow:
    first, values = reports[0], []
    for report in reports:
        assert report.training.after is not None
        values.append(report.training.after[0])
    assert first.training.before is not None
    return SweepRow(
        variant=variant,
        rank=rank,
        parameters=first.new_parameters + first.head_parameters + first.further_parameters,
        share=first.share,
        metric=first.training.metric,
        before=first.training.before[0],
        mean=statistics.fmean(values),
        std=statistics.stdev(values) if len(values) > 1 else 0.0,
        seconds=statistics.fmean(report.training.seconds for report in reports),
        memory=max(report.training.peak_memory for report in reports),
        values=tuple(values),
    )


def _in_a_process(options: FinetuneOptions) -> FinetuneReport:
    """Runs one fine-tuning in a fresh process and returns its report or raises its error."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(options, plugins(), sender))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise TrainingError(
            f"the run for {options.model} ended without a result (exit code {process.exitcode}); "
            "was it short of memory?"
        ) from None
    except BaseException:  # this process is to end
        process.terminate()
        process.join()
        raise
    finally:
        receiver.close()
    process.join()
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, FinetuneReport)
    return result


def _child(options: FinetuneOptions, modules: tuple[str, ...], sender: Any) -> None:
    try:
        for module in modules:
            load_plugin(module)
        result: object = finetune(options)
    except LaurelError as error:
        result = error
    sender.send(result)
    sender.close()
