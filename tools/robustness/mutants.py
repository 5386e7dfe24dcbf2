"""Damaged models against every entry point: each is served, or refused in one sentence, in bounded time and memory.

    python -m laurel_graph.tools.robustness.mutants --count 2000 --seed 0 [--entry deploy ...] [--keep FOLDER]

Small sound models (:mod:`.mutant_models`) are damaged (:mod:`.mutations`) and handed to one entry point each, in a
process of its own that is forked off a warm one. Counted: *done*, *refused* (a LaurelError), *traceback* (any other
exception), *hang* (processor time over the limit), *memory* (more than ten times the file and 500 MB above the warm
process), *crash* (a signal). Exit code 1 if any but the first two occurs.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from laurel_graph.errors import LaurelError

DONE, REFUSED, TRACEBACK, HANG, MEMORY, CRASH = "done", "refused", "traceback", "hang", "memory", "crash"
GOOD = (DONE, REFUSED)
SECONDS = 10
"""Processor time that one entry point may take."""
MEMORY_FACTOR, MEMORY_BASE = 10, 500 * 2**20


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant.

    Attributes:
        entry: the entry point.
        status: ``done``, ``refused``, ``traceback``, ``hang``, ``memory`` or ``crash``.
        detail: the sentence, or the exception and where it was raised.
        growth: bytes of memory above the warm process.
        model: the sound model that it was made of.
        number: the mutant's number.
    """

    entry: str
    status: str
    detail: str
    growth: int
    model: str
    number: int


def _inspect(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.passes.pipeline import inspect

    inspect(model).to_dict()


def _transform(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.config import LaurelConfig
    from laurel_graph.passes.pipeline import transform

    transform(model, LaurelConfig(variant="rw+lr+pa", rank=2), output=out / "t.onnx")


def _deploy(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.passes.deploy.deploy import deploy_file

    deploy_file(model, out / "d.onnx")


def _verify(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.passes.verify import verify

    verify(model, model, batches=(2,)).to_dict()


def _remove(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.passes.pipeline import remove

    remove(model, out / "r.onnx")


def _apply(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.adapters import apply_adapter, save_adapter

    save_adapter(model, out / "own.safetensors")
    apply_adapter(model, seeds / "mlp.safetensors", out / "a.onnx")


def _import(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.importer import import_onnx

    import_onnx(model)


def _report(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.tools.report import write_report

    write_report(model, out / "page.html")


def _finetune(model: Path, seeds: Path, out: Path) -> None:
    from laurel_graph.tools.finetuning.finetune import finetune
    from laurel_graph.tools.finetuning.options import FinetuneOptions

    data = seeds / f"{model.stem.partition('_')[0]}.npz"
    finetune(
        FinetuneOptions(
            model=model, data=str(data), loss="mse", tuned=out / "f.onnx", target="target", epochs=1, quiet=True
        )
    )


ENTRIES: dict[str, Callable[[Path, Path, Path], None]] = {
    "inspect": _inspect, "transform": _transform, "deploy": _deploy, "verify": _verify, "remove": _remove,
    "apply": _apply, "import": _import, "report": _report, "finetune": _finetune,
}  # fmt: skip


def run(
    count: int, seed: int = 0, entries: Sequence[str] = tuple(ENTRIES), keep: Path | None = None, seconds: int = SECONDS
) -> list[Outcome]:
    """Damages models and hands them to the entry points in turn.

    Args:
        count: how many mutants.
        seed: of all choices; a mutant is a function of the seed and its number.
        entries: names out of :data:`ENTRIES`.
        keep: where the mutants that were neither served nor refused are copied to.
        seconds: processor time that one may take.
    """
    _warm()
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        ground = _Ground(Path(name), seconds)
        for number in range(count):
            outcome, mutant = ground.one(number, seed, entries[number % len(entries)])
            outcomes.append(outcome)
            if outcome.status not in GOOD and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                target = keep / f"{outcome.status}_{outcome.entry}_{outcome.model}_{seed}_{number}.onnx"
                target.write_bytes(mutant)
    return outcomes


def _write(folder: Path) -> None:
    from .mutant_models import write_models

    write_models(folder)


class _Ground:
    """Where mutants are made and tried: the sound models, and a folder that is emptied after each."""

    def __init__(self, folder: Path, seconds: int) -> None:
        self.seeds, self.work, self.seconds = folder / "seeds", folder / "work", seconds
        self.seeds.mkdir()
        status, detail, _ = _in_child(lambda: _write(self.seeds), 60)  # sessions must not be made before the forks
        if status != DONE:
            raise RuntimeError(f"the sound models cannot be made: {detail}")
        self.idle = _in_child(lambda: None, seconds)[2]  # what a fork takes that does nothing
        self.models = {path: path.read_bytes() for path in sorted(self.seeds.glob("*.onnx"))}

    def one(self, number: int, seed: int, entry: str) -> tuple[Outcome, bytes]:
        """Makes a mutant and tries it; returns what became of it, and its bytes."""
        from .mutations import mutate

        rng = Random(f"{seed} {number}")
        chosen, other = rng.choice(list(self.models)), rng.choice(list(self.models))
        mutant = mutate(self.models[chosen], self.models[other], rng)
        out = self.work / "out"
        out.mkdir(parents=True)
        path = self.work / chosen.name
        path.write_bytes(mutant)
        for weights in self.seeds.glob("*.bin"):
            os.link(weights, self.work / weights.name)
        status, detail, growth = _in_child(lambda: ENTRIES[entry](path, self.seeds, out), self.seconds)
        growth -= self.idle
        if status in GOOD and growth > MEMORY_FACTOR * len(mutant) + MEMORY_BASE:
            status = MEMORY
        shutil.rmtree(self.work)
        return Outcome(entry, status, detail, growth, chosen.stem, number), mutant


def _warm() -> None:
    """Imports what the entry points import, so that a fork has it."""
    import jinja2  # noqa: F401
    import onnxruntime
    import torch

    from laurel_graph.importer import convert  # noqa: F401

    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)


def _in_child(work: Callable[[], None], seconds: int) -> tuple[str, str, int]:
    """Runs *work* in a fork; returns its status, a sentence, and how far its memory grew."""
    reader, writer = os.pipe()
    before = _resident()
    child = os.fork()
    if not child:
        os.close(reader)
        _child(work, seconds, writer)
    os.close(writer)
    text = _read(reader, time.monotonic() + 12 * seconds)
    if text is None:
        os.kill(child, signal.SIGKILL)
    _, code, usage = os.wait4(child, 0)
    growth = usage.ru_maxrss * 1024 - before
    if text is None or (os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGXCPU):
        return HANG, f"more than {seconds} s", growth
    if os.WIFSIGNALED(code):
        return CRASH, signal.Signals(os.WTERMSIG(code)).name, growth
    status, _, detail = text.partition(" ")
    return status or CRASH, detail, growth


def _child(work: Callable[[], None], seconds: int, writer: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        work()
        line = f"{DONE} "
    except LaurelError as error:
        line = f"{REFUSED} {error}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "laurel_graph" in frame.filename] or frames
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        line = f"{TRACEBACK} {type(error).__name__} at {place}: {error}"
    os.write(writer, line[:4000].replace("\n", " ").encode("utf-8", "backslashreplace"))
    os._exit(0)


def _read(pipe: int, until: float) -> str | None:
    """Returns all that comes through a pipe, or ``None`` if it is not closed in time."""
    parts: list[bytes] = []
    with os.fdopen(pipe, "rb", buffering=0) as stream:
        while time.monotonic() < until:
            if select.select([stream], [], [], 0.5)[0]:
                part = stream.read(65536)
                if not part:
                    return b"".join(parts).decode("utf-8", "replace")
                parts.append(part)
    return None


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(
    count: Annotated[int, typer.Option(help="How many mutants.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of all choices.")] = 0,
    entry: Annotated[list[str] | None, typer.Option(help=f"Entry point: {', '.join(ENTRIES)}; all.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the mutants that were not handled.")] = None,
) -> None:
    """Hands damaged models to the entry points and prints what became of them."""
    outcomes = run(count, seed, entry or tuple(ENTRIES), keep)
    table = Counter((outcome.entry, outcome.status) for outcome in outcomes)
    statuses = (DONE, REFUSED, TRACEBACK, HANG, MEMORY, CRASH)
    sys.stdout.write("".join(f"{word:>10}" for word in ("entry", *statuses)) + "\n")
    for name in entry or ENTRIES:
        sys.stdout.write(f"{name:>10}" + "".join(f"{table[name, status]:>10}" for status in statuses) + "\n")
    bad = [outcome for outcome in outcomes if outcome.status not in GOOD]
    causes = Counter((outcome.status, outcome.entry, outcome.detail[:150]) for outcome in bad)
    for (status, name, detail), times in causes.most_common():
        first = next(o.number for o in bad if (o.status, o.entry, o.detail[:150]) == (status, name, detail))
        sys.stdout.write(f"{times:5} {status} {name} (number {first}): {detail}\n")
    largest = max((outcome.growth for outcome in outcomes), default=0)
    sys.stdout.write(f"{len(outcomes)} mutants, {len(bad)} not handled, largest growth {largest / 2**20:.0f} MB\n")
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    typer.run(main)
