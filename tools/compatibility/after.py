"""Runs other people's tools over transformed, tuned and deployed files, and ours over what comes out.

``python -m`` this module ``[--models NAME ...] [--only TOOL ...] [--json FILE]``. For each tool and form: whether the
tool does its work, whether what it wrote computes what it should (no further off than twice what the tool does to the
original), and what ``inspect``, ``remove``, ``finetune``, ``apply`` and ``deploy`` make of it. Each of these works and
gives a right result, or says in a sentence what is missing. A table goes to stdout; the program returns 1 for a wrong
result, a loss without a word, or an error that is no :class:`~laurel_graph.errors.LaurelError`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph import onnx_file
from laurel_graph.adapters import apply_adapter, save_adapter
from laurel_graph.config import LaurelConfig
from laurel_graph.errors import LaurelError
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import inspect, remove, transform
from laurel_graph.tools.console import note, quiet_runtime, say
from laurel_graph.tools.functions import finetune

from .changers import CHANGERS, Changer, quiet
from .forms import RANK, VARIANT, tune
from .networks import FLOAT32, NETWORKS, write_networks

FORMS = ("transformed", "tuned", "deployed")
COMMANDS = ("inspect", "remove", "finetune", "apply", "deploy")

WORKS, SAYS, WRONG, SILENT, FAILED = "works", "says", "WRONG", "SILENT", "FAILED"
FAULTS = (WRONG, SILENT, FAILED)

FAR = 0.5
"""How far one step of training may move a result."""

TWICE = 2
"""How much further off a tool's result may be than the same tool's result on the original."""


@dataclass(frozen=True)
class Outcome:
    """What one step came to.

    Attributes:
        model: the model.
        changer: the tool.
        form: one of :data:`FORMS`.
        step: ``result``, or one of :data:`COMMANDS`.
        verdict: ``works``; ``says`` what is missing; ``WRONG``; ``SILENT``, a loss without a word; ``FAILED``, another
            error than ours.
        detail: the sentence, or how far off it is.
    """

    model: str
    changer: str
    form: str
    step: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True)
class _Files:
    """What one model's steps work with."""

    folder: Path
    original: Path
    forms: Mapping[str, Path]
    adapter: Path
    feeds: Mapping[str, NDArray[Any]]
    sites: int


def try_model(
    name: str, base: Path, feeds: Mapping[str, NDArray[Any]], folder: Path, changers: Sequence[Changer]
) -> Iterator[Outcome]:
    """Yields every outcome of the model *base*, which is run on *feeds*."""
    forms = {form: folder / f"{form}.onnx" for form in FORMS}
    sites = len(transform(base, LaurelConfig(VARIANT, rank=RANK, previous=2), output=forms["transformed"]).report.plans)
    tune(forms["transformed"], forms["tuned"])
    deploy_file(forms["tuned"], forms["deployed"])
    save_adapter(forms["tuned"], folder / "tuned.safetensors")
    files = _Files(folder, base, forms, folder / "tuned.safetensors", feeds, sites)
    for changer in changers:
        if importlib.util.find_spec(changer.module) is None:
            continue
        note(f"{name}: {changer.name} ...")
        own = _own_noise(changer, files)
        for form in FORMS:
            for outcome in _try_form(changer, form, files, own):
                yield Outcome(name, changer.name, form, *outcome)


def _own_noise(changer: Changer, files: _Files) -> float:
    """How far off the tool's result on the original is."""
    changed = files.folder / f"original-changed{changer.suffix}"
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            changer.change(files.original, changed, files.feeds)
        return _difference(run(changed, files.feeds), run(files.original, files.feeds))
    except Exception:  # tools raise what they like; then it does not take the original either
        return 0.0


def _try_form(changer: Changer, form: str, files: _Files, own: float) -> Iterator[tuple[str, str, str]]:
    source, changed = files.forms[form], files.folder / f"changed{changer.suffix}"
    changed.unlink(missing_ok=True)
    try:
        with quiet(), warnings.catch_warnings(action="ignore"):
            changer.change(source, changed, files.feeds)
    except Exception as error:  # tools raise what they like
        yield "result", SAYS, f"the tool refuses: {_first_line(error)}"
        return
    allowed = max(FLOAT32, TWICE * own)
    try:
        made = run(changed, files.feeds)
    except Exception as error:  # ONNX Runtime's errors share no base class
        yield "result", SAYS, f"ONNX Runtime: {_first_line(error)}"
    else:
        off = _difference(made, run(source, files.feeds))
        yield "result", WORKS if off <= allowed else WRONG, f"{off:.1e} of {allowed:.1e}"
    for step in COMMANDS:
        yield step, *_try_command(step, changed, form, files, allowed)


def _try_command(step: str, changed: Path, form: str, files: _Files, allowed: float) -> tuple[str, str]:
    output = files.folder / "output.onnx"
    output.unlink(missing_ok=True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            fault = _COMMANDS[step](changed, output, form, files, allowed)
        except LaurelError as error:
            return SAYS, str(error)
        except Exception:
            return FAILED, traceback.format_exc().strip().splitlines()[-1]
    told = "; ".join(str(each.message) for each in warned if "laurel" in str(each.message).lower())
    if fault and fault.startswith("lost"):
        return (SAYS, told) if told else (SILENT, fault)
    return (WRONG, fault) if fault else (WORKS, told)


def _inspect(changed: Path, _: Path, form: str, files: _Files, __: float) -> str:
    found = sum(residual.kind == "laurel" for residual in inspect(changed).residuals)
    return f"lost: {found} of {files.sites} sites are known" if form != "deployed" and found != files.sites else ""


def _remove(changed: Path, output: Path, form: str, files: _Files, allowed: float) -> str:
    remove(changed, output)
    return _off(output, files.original, files, allowed)


def _finetune(changed: Path, output: Path, form: str, files: _Files, allowed: float) -> str:
    wanted = run(files.forms[form], files.feeds)
    rng = np.random.default_rng(0)
    count = 4
    names = _inputs_of(changed)
    data: dict[str, NDArray[Any]] = {}
    for name, array in zip(names, files.feeds.values(), strict=True):
        data[name] = np.repeat(array[:1], count, 0)
    data["target"] = np.repeat(wanted[0][:1], count, 0) + rng.standard_normal(wanted[0][:1].shape).astype(np.float32)
    finetune(changed, data, output, loss="mse", epochs=1, lr=0.001, batch_size=1, quiet=True)
    moved = _difference(run(output, files.feeds), wanted)
    return "" if 0 < moved < FAR else f"trained, {moved:.1e} from where it was"


def _apply(changed: Path, output: Path, form: str, files: _Files, allowed: float) -> str:
    apply_adapter(changed, files.adapter, output)
    return _off(output, files.forms["tuned"], files, allowed)


def _deploy(changed: Path, output: Path, form: str, files: _Files, allowed: float) -> str:
    deploy_file(changed, output)
    return _off(output, files.forms[form], files, allowed)


_COMMANDS: Mapping[str, Callable[[Path, Path, str, _Files, float], str]] = {
    "inspect": _inspect,
    "remove": _remove,
    "finetune": _finetune,
    "apply": _apply,
    "deploy": _deploy,
}


def _off(output: Path, wanted: Path, files: _Files, allowed: float) -> str:
    off = _difference(run(output, files.feeds), run(wanted, files.feeds))
    return "" if off <= allowed else f"{off:.1e} off, allowed {allowed:.1e}"


def run(path: Path, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Runs a file on plain ONNX Runtime, its inputs in the order of the original's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found: list[NDArray[Any]] = session.run(None, dict(zip(names, feeds.values(), strict=True)))
    return found


def _inputs_of(path: Path) -> list[str]:
    """The inputs of a file that a run has to be given."""
    graph = onnx_file.read(path).graph
    held = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in held]


def _difference(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    if [array.shape for array in found] != [array.shape for array in wanted]:
        return float("inf")
    pairs = zip(found, wanted, strict=True)
    return max(float(np.abs(a.astype(np.float64) - b).max() / (np.abs(b).max() or 1)) for a, b in pairs)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns the outcomes in Markdown: a row for each tool and form."""
    steps = ("result", *COMMANDS)
    lines = ["| tool | form | " + " | ".join(steps) + " |", "|---" * (len(steps) + 2) + "|"]
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for outcome in outcomes:
        row = rows.setdefault((outcome.changer, outcome.form), {})
        words = row.setdefault(outcome.step, [])
        if outcome.verdict not in words:
            words.append(outcome.verdict)
    for (changer, form), row in rows.items():
        lines.append(f"| {changer} | {form} | " + " | ".join("/".join(row.get(step, ["–"])) for step in steps) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 1 if a tool's result is wrong or a command of ours loses something without a word."""
    parser = argparse.ArgumentParser(prog="after", description="What other tools leave of our files.")
    parser.add_argument("--models", action="append", choices=list(NETWORKS), help="by default cnn and encoder")
    parser.add_argument("--only", action="append", choices=[changer.name for changer in CHANGERS])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every outcome")
    options = parser.parse_args(argv)
    quiet_runtime()
    changers = [changer for changer in CHANGERS if not options.only or changer.name in options.only]
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, base in write_networks(folder, tuple(options.models or ("cnn", "encoder"))).items():
            (folder / name).mkdir()
            outcomes += try_model(name, base, NETWORKS[name].feeds, folder / name, changers)
    say(table(outcomes))
    faults = [outcome for outcome in outcomes if outcome.verdict in FAULTS]
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")
    for outcome in faults:
        place = f"{outcome.model}, {outcome.changer}, {outcome.form}, {outcome.step}"
        say(f"{outcome.verdict} {place}: {outcome.detail}")
    say(f"{len(outcomes)} outcomes, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
