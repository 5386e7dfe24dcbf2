"""The commands as functions: ``lg.finetune``, ``lg.sweep``, ``lg.bench``, ``lg.report``, ``lg.compare``, ``lg.doctor``.

Each takes what its command takes, under the same names, and returns what ``--json`` prints as an object.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from laurel_graph.errors import ConfigError, near
from laurel_graph.showing import Cell, Shown

if TYPE_CHECKING:
    from laurel_graph.config import LaurelConfig

    from .benchmarks.latency import BenchRow
    from .compare import Comparison
    from .finetuning.options import FinetuneOptions
    from .finetuning.sweep import SweepReport
    from .finetuning.training.report import FinetuneReport

Given = str | Path | Mapping[str, NDArray[Any]]
"""Data: what ``--data`` takes, or arrays by name."""


def finetune(
    model: str | Path,
    data: Given,
    output: str | Path | None = None,
    *,
    validation: Given | float | None = None,
    value: str | None = None,
    **options: Any,
) -> FinetuneReport:
    """Trains the LAuReL tensors of a transformed ONNX file or folder and writes the tuned one: ``laurel finetune``.

    Args:
        model: the transformed file or folder.
        data: the training data: what ``--data`` takes, or arrays ``(N, ...)`` by name, of the inputs and the target.
        output: the file or folder to write; by default beside *model*, ending in ``.tuned.onnx`` or ``.tuned``.
        validation: data for the metric in one of the same forms, or a share of the training data such as 0.2.
        value: the output, or another value of the graph, to train on; by default the only output.
        options: the flags of the command with ``_`` for ``-``: ``loss``, ``epochs``, ``lr``, ``batch_size``,
            ``adapter``, ``head``, ``quiet``, ...; see :class:`~laurel_graph.tools.finetuning.options.FinetuneOptions`.

    Raises:
        ConfigError: an option that is none, or has a value outside its domain.
        LaurelError: see :func:`laurel_graph.tools.finetuning.finetune.finetune`.
    """
    from .finetuning.finetune import finetune as run

    with _options(model, data, validation, {"output": value, "tuned": output, **options}) as given:
        return run(given)


def sweep(
    model: str | Path,
    data: Given,
    variants: str | Iterable[str] = ("rw", "lr", "rw+lr"),
    ranks: Iterable[int] = (),
    seeds: Iterable[int] = (0, 1, 2),
    *,
    validation: Given | float,
    value: str | None = None,
    config: LaurelConfig | None = None,
    **options: Any,
) -> SweepReport:
    """Trains several variants, ranks and seeds of the original on the same data: ``laurel sweep``; writes no file.

    Each run is a process of its own: in a script, call it below ``if __name__ == "__main__":``.

    Args:
        model: the original ONNX file or folder; of a transformed one the original is taken.
        data: as for :func:`finetune`.
        variants: variants, as names or as ``"rw,lr"``.
        ranks: ranks; empty for one that is chosen by width.
        seeds: seeds of the order of the samples and of the start.
        validation: as for :func:`finetune`; what the variants are compared by.
        value: as for :func:`finetune`.
        config: everything else of the transformation.
        options: as for :func:`finetune`.

    Raises:
        ConfigError: an option, variant or rank that is none.
        LaurelError: see :func:`laurel_graph.tools.finetuning.sweep.sweep`.
    """
    from .finetuning.sweep import sweep as run

    chosen = variants.split(",") if isinstance(variants, str) else variants
    with _options(model, data, validation, {"output": value, **options}) as given:
        return run(given, chosen, ranks, seeds, config)


@contextmanager
def _options(
    model: str | Path, data: Given, validation: Given | float | None, options: Mapping[str, Any]
) -> Iterator[FinetuneOptions]:
    """A context with the options of a training; arrays in memory lie in a file meanwhile."""
    import numpy as np

    from .finetuning.options import FinetuneOptions

    known = [field.name for field in fields(FinetuneOptions)]
    for name in options:
        if name not in known or name in ("model", "data", "validation"):
            raise ConfigError(f"finetune has no option {name!r}.{near(name, known)}")
    with tempfile.TemporaryDirectory() as folder:

        def named(given: Given | float | None, name: str) -> str | None:
            if not isinstance(given, Mapping):
                return None if given is None else str(given)
            path = Path(folder) / f"{name}.npz"
            np.savez(path, **{key: np.asarray(array) for key, array in given.items()})  # type: ignore[arg-type]
            return str(path)

        read = {"data": named(data, "data"), "validation": named(validation, "validation")}
        wanted = {key: item for key, item in {**read, **options}.items() if item is not None}
        if isinstance(wanted.get("train"), str):
            wanted["train"] = (wanted["train"],)
        yield FinetuneOptions(model=Path(model), **wanted)


@dataclass(frozen=True, repr=False)
class BenchReport(Shown):
    """What :func:`bench` measured.

    Attributes:
        rows: one per model, what ratios are taken to first.
        notes: which model is slower, and which ratio is noise.
    """

    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]

    columns_shown: ClassVar[tuple[str, ...]] = ("model", "median ms", "ratio", "load ms", "peak MB")

    def shown(self) -> list[str]:
        """Returns one line per model, and the notes."""
        lines = [f"{len(self.rows)} models, {self.rows[0].runs} paired runs, {self.rows[0].threads} threads"]
        for row in self.rows:
            ratio = "" if row.ratio is None else f", {row.ratio:.3f} of the first"
            lines.append(f"{Path(row.model).name}: {row.median_ms:.4g} ms{ratio}")
        return [*lines, *self.notes]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per model."""
        return [(Path(r.model).name, r.median_ms, r.ratio, r.load_ms, r.peak_mb) for r in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel bench --json``."""
        return {"rows": [row.to_dict() for row in self.rows], "notes": list(self.notes)}


def bench(models: str | Path | Sequence[str | Path], against: str | Path | None = None, **options: Any) -> BenchReport:
    """Measures latency in interleaved, paired runs on ONNX Runtime, load time and peak memory: ``laurel bench``.

    Args:
        models: an ONNX file or model folder, or several.
        against: the file that ratios are taken to; by default the first of several.
        options: ``threads``, ``runs``, ``batch``, ``sizes``, ``data``, ``seed``, ``cpu_time``, ``fresh``; see
            :func:`laurel_graph.tools.benchmarks.latency.bench`.

    Raises:
        ModelError: a file cannot be read, or does not run on the inputs.
        ConfigError: an option that is none.
    """
    from .benchmarks.latency import bench as run
    from .benchmarks.latency import findings

    known = list(run.__kwdefaults__ or {})
    for name in options:
        if name not in known:
            raise ConfigError(f"bench has no option {name!r}.{near(name, known)}")
    rows = run([models] if isinstance(models, (str, Path)) else models, against, **options)
    return BenchReport(tuple(rows), tuple(findings(rows)))


def report(
    model: str | Path,
    output: str | Path | None = None,
    *,
    served: str | Path | None = None,
    against: str | Path | None = None,
    training: str | Path | None = None,
    png: str | Path | None = None,
) -> Path:
    """Writes the page about a model, ``laurel report``, and returns its path.

    Args:
        model: an ONNX file or model folder.
        output: the page; by default ``MODEL.html``.
        served: the deployed file, to hold against *model*.
        against: the original, to measure latency against.
        training: what ``laurel finetune --json`` printed.
        png: a picture of it; without *output* it is all that is written, and its path is returned.

    Raises:
        LaurelError: see :func:`laurel_graph.tools.report.write_report`.
    """
    from .report import default_page, write_report

    page = default_page(Path(model)) if output is None and png is None else output
    return write_report(model, page, served=served, against=against, training=training, png=png)


def compare(
    models: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    training: Sequence[str | Path] = (),
    png: str | Path | None = None,
) -> Comparison:
    """Holds adapters and files of one base side by side: ``laurel compare``.

    Args:
        models: ``.safetensors`` adapters, ``.onnx`` files or model folders, two at least.
        output: the page to write; by default none.
        training: what ``laurel finetune --json`` printed of some of them.
        png: the picture to write; by default none.

    Raises:
        LaurelError: see :func:`laurel_graph.tools.compare.compare_models` and ``write_comparison``.
    """
    from .compare import compare_models
    from .page.side_by_side import check_comparison, write_comparison

    read = (*models, *training)
    check_comparison(output, png, read)
    found = compare_models(models, training=training)
    write_comparison(found, output, png, read)
    return found


def doctor(model: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Returns what ``laurel doctor`` prints: versions, kernels and what is missing, or what runs *model* here.

    Raises:
        ModelError: *model* cannot be read, or ONNX Runtime cannot load it.
    """
    from .doctor import examine, examine_model

    return examine() if model is None else {"model": examine_model(model)}
