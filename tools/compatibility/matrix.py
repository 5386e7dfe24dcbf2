"""Runs every form of five models on every runtime that is installed, and says where the answer is right.

``python -m`` this module ``[--where RUNTIME=PYTHON_OR_FOLDER ...] [--only RUNTIME ...] [--models NAME ...]
[--keep FOLDER] [--check [FILE]] [--write FILE]``. The LAuReL parameters are moved from their start, so that a runtime
that left them out would be seen. What is right is what ONNX Runtime computes, unoptimised, of the transformed file with
its function bodies. A table goes to stdout. The program returns 1 if a cell is wrong, if a portable form does not run
where the original does, or, with ``--check``, if a cell is worse than in the stored table; with ``--write`` it stores
what it found.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.tools.console import note, quiet_runtime, say

from .census import LISTS, unknown_operators
from .forms import FORMS, write_forms
from .networks import NETWORKS, Network, write_networks
from .runtimes import RUNTIMES, Answer, Runtime, ask, version_of

STORED = Path(__file__).with_name("expected.json")
"""The table as it stands."""

RIGHT, REFUSED, CRASHED, WRONG = "right", "refused", "crashed", "wrong"

BF16 = 1e-2
"""What a runtime may be off that computes in bfloat16 by itself."""

ORT_FORM = FORMS[-1]
PORTABLE = tuple(form for form in FORMS if form.endswith("--portable"))


@dataclass(frozen=True)
class Cell:
    """What one runtime made of one form of one model.

    Attributes:
        runtime: the key of the runtime.
        model: the name of the model.
        form: one of :data:`FORMS`.
        verdict: ``right``, ``refused``, ``crashed`` or ``wrong``.
        detail: the runtime's sentence, or how far off it is.
        difference: from what is right, over the largest number of the output.
    """

    runtime: str
    model: str
    form: str
    verdict: str
    detail: str = ""
    difference: float = 0.0


def try_runtime(
    runtime: Runtime, model: str, paths: Mapping[str, Path], network: Network, where: str = ""
) -> Iterator[Cell]:
    """Yields the cells of one runtime and one model.

    Args:
        runtime: an installed runtime.
        model: the model's name.
        paths: form to file.
        network: what it is run on.
        where: see :func:`~.runtimes.ask`.
    """
    forms = [form for form in paths if form != ORT_FORM or runtime.worker.startswith("onnxruntime")]
    truth = {form: _truth(paths[form], network.feeds) for form in ("original", "transformed")}
    answers = ask(runtime, [paths[form] for form in forms], network.feeds, where)
    for form, answer in zip(forms, answers, strict=True):
        wanted = truth["original" if form == "original" else "transformed"]
        yield _judged(Cell(runtime.key, model, form, REFUSED), answer, wanted, network.tolerance)


def _truth(path: Path, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, dict(feeds))
    return found


def _judged(cell: Cell, answer: Answer, wanted: Sequence[NDArray[Any]], tolerance: float) -> Cell:
    place = (cell.runtime, cell.model, cell.form)
    if answer.outputs is None:
        return Cell(*place, CRASHED if answer.crashed else REFUSED, sentence(answer.refused))
    if [array.shape for array in answer.outputs] != [array.shape for array in wanted]:
        return Cell(*place, WRONG, f"shapes {[array.shape for array in answer.outputs]}", float("inf"))
    pairs = zip(answer.outputs, wanted, strict=True)
    worst = max(float(np.abs(a.astype(np.float64) - b).max() / (np.abs(b).max() or 1)) for a, b in pairs)
    allowed = max(tolerance, BF16) if answer.precision.endswith("bf16") else tolerance
    told = f"{worst:.1e}" + f", in {answer.precision} by itself" * answer.precision.endswith("bf16")
    return Cell(*place, RIGHT if worst <= allowed else WRONG, told, worst)


def sentence(text: str) -> str:
    """Returns the line of a runtime's message that says most, without paths and in bounded length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    told = next((line for line in lines if "Laurel" in line or "ai.laurel" in line), None)
    told = told or next((line for line in lines if not line.startswith("Exception from")), lines[0])
    words = [word.rsplit("/", 1)[-1] if word.count("/") > 1 else word for word in told.split()]
    short = " ".join(words)
    return short if len(short) <= 160 else short[:157] + "..."


def worse(cells: Sequence[Cell], stored: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    """Returns a sentence for every cell that was right in the stored table and is not any more."""
    return [
        f"{cell.runtime}, {cell.model}, {cell.form}: was right, is {cell.verdict}: {cell.detail}"
        for cell in cells
        if cell.verdict != RIGHT and stored.get(cell.runtime, {}).get(cell.model, {}).get(cell.form) == RIGHT
    ]


def broken(cells: Sequence[Cell]) -> list[str]:
    """Returns a sentence for every wrong cell, and every portable form that does not run where the original does."""
    runs = {(cell.runtime, cell.model) for cell in cells if cell.form == "original" and cell.verdict == RIGHT}
    found = []
    for cell in cells:
        place = f"{cell.runtime}, {cell.model}, {cell.form}"
        if cell.verdict == WRONG:
            found.append(f"{place}: wrong, {cell.detail}")
        elif cell.form in PORTABLE and cell.verdict != RIGHT and (cell.runtime, cell.model) in runs:
            found.append(f"{place}: the original runs, and this is {cell.verdict}: {cell.detail}")
    return found


def table(cells: Sequence[Cell], titles: Mapping[str, str]) -> str:
    """Returns the matrix in Markdown: a row for each runtime, then what each refuses in its words."""
    lines = ["| runtime | " + " | ".join(FORMS) + " |", "|---" * (len(FORMS) + 1) + "|"]
    reasons: dict[tuple[str, str], list[Cell]] = {}
    for key, title in titles.items():
        row = []
        for form in FORMS:
            here = [cell for cell in cells if (cell.runtime, cell.form) == (key, form)]
            groups: dict[str, list[str]] = {}
            for cell in here:
                groups.setdefault(cell.verdict, []).append(cell.model)
                if cell.verdict != RIGHT:
                    reasons.setdefault((title, form), []).append(cell)
            if not here:
                row.append("–")
            elif len(groups) == 1:
                row.append(next(iter(groups)))
            else:
                row.append("; ".join(f"{verdict}: {', '.join(models)}" for verdict, models in groups.items()))
        lines.append(f"| {title} | " + " | ".join(row) + " |")
    told = [
        f"- {title}, {form}, {found[0].model}: `{found[0].detail.replace('`', '')}`"
        for (title, form), found in reasons.items()
    ]
    return "\n".join([*lines, "", *told])


def census_table(files: Mapping[str, Mapping[str, Path]]) -> str:
    """Returns, in Markdown, which operators of each form are on the lists of runtimes that cannot be run here."""
    forms = [form for form in FORMS if form != ORT_FORM]
    lines = ["| list of operators | " + " | ".join(forms) + " |", "|---" * (len(forms) + 1) + "|"]
    for name, known in LISTS.items():
        row = []
        for form in forms:
            extra = {
                operator
                for paths in files.values()
                for operator in unknown_operators(paths[form], known) - unknown_operators(paths["original"], known)
            }
            ours = sorted(operator for operator in extra if operator.startswith("Laurel"))
            others = sorted(extra - set(ours))
            row.append("; ".join([*(["ai.laurel"] if ours else []), *others]) or "as the original")
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 1 if a cell is not what it should be."""
    parser = argparse.ArgumentParser(prog="matrix", description="Which form of a file runs on which runtime.")
    parser.add_argument("--where", action="append", default=[], metavar="RUNTIME=PLACE", help="its Python, or folder")
    parser.add_argument("--only", action="append", choices=[runtime.key for runtime in RUNTIMES])
    parser.add_argument("--models", action="append", choices=list(NETWORKS))
    parser.add_argument("--keep", type=Path, help="folder for the files; a temporary one by default")
    parser.add_argument("--check", nargs="?", type=Path, const=STORED, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    places = dict(text.split("=", 1) for text in options.where)
    quiet_runtime()
    with TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, base in write_networks(folder, tuple(options.models or NETWORKS)).items():
            note(f"{name} ...")
            (folder / name).mkdir(exist_ok=True)
            files[name] = write_forms(base, folder / name)
        titles: dict[str, str] = {}
        cells: list[Cell] = []
        for runtime in RUNTIMES:
            if options.only and runtime.key not in options.only:
                continue
            where = places.get(runtime.key) or places.get(runtime.key.partition("-")[0], "")
            version = "" if runtime.key.startswith("oldest") and not where else version_of(runtime, where)
            titles[runtime.key] = f"{runtime.title} {version}" if version else f"{runtime.title}: absent"
            if version:
                note(f"{runtime.title} {version} ...")
                for name, paths in files.items():
                    cells += try_runtime(runtime, name, paths, NETWORKS[name], where)
        say(table(cells, titles))
        say("")
        say(census_table(files))
    faults = broken(cells)
    if options.check:
        faults += worse(cells, json.loads(options.check.read_text(encoding="utf-8")))
    if options.write:
        options.write.write_text(json.dumps(_stored(cells), indent=1) + "\n", encoding="utf-8")
    for line in faults:
        say(f"FAULT {line}")
    say(f"{len(cells)} cells, {sum(cell.verdict == RIGHT for cell in cells)} right, {len(faults)} faults")
    return int(bool(faults))


def _stored(cells: Sequence[Cell]) -> dict[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = {}
    for cell in cells:
        found.setdefault(cell.runtime, {}).setdefault(cell.model, {})[cell.form] = cell.verdict
    return found


if __name__ == "__main__":
    sys.exit(main())
