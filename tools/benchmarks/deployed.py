"""What deployment gained: the deployed file timed beside the trained one and beside the original."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from laurel_graph.errors import LaurelError
from laurel_graph.passes.pipeline import remove

from .latency import BenchRow, bench, findings


@dataclass(frozen=True)
class Measured:
    """A deployed file beside others.

    Attributes:
        pairs: what it was timed beside (``trained``, ``original``), the row of that file and its own.
        notes: which one it is slower than, which ratio is noise, and why one could not be taken.
    """

    pairs: tuple[tuple[str, BenchRow, BenchRow], ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> list[BenchRow]:
        """All rows, two for each file that it was timed beside."""
        return [row for _, base, row in self.pairs for row in (base, row)]


def measure_deployed(
    trained: str | Path,
    deployed: str | Path,
    *,
    data: str | Path | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    threads: int = 2,
    runs: int = 40,
) -> Measured:
    """Times a deployed file and the trained one in paired runs, and beside the original, which LAuReL's removal gives.

    Args:
        trained: the file or folder that was deployed.
        deployed: what became of it.
        data: an ``.npz`` file with the inputs; by default they are drawn.
        sizes: sizes of symbolic dims of drawn inputs.
        seed: seed of drawn inputs.
        threads: threads of every session.
        runs: counted runs of each file.

    Raises:
        ModelError: a file cannot be read, or does not run on the inputs.
    """
    pairs: list[tuple[str, BenchRow, BenchRow]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        others: list[tuple[str, str | Path]] = [("trained", trained)]
        original = Path(folder) / ("original" if Path(trained).is_dir() else "original.onnx")
        try:
            remove(trained, original)
            others.append(("original", original))
        except LaurelError as error:
            notes.append(f"not timed beside the original, which cannot be had from {trained}: {error}")
        for name, other in others:
            base, row = bench([deployed], other, threads=threads, runs=runs, sizes=sizes, data=data, seed=seed, fresh=0)
            pairs.append((name, base, row))
            calls = {str(deployed): "the deployed file", str(other): f"the {name} one"}
            notes += findings([base, row], calls)
    return Measured(tuple(pairs), tuple(notes))
