"""The results of an experiment's runs in a file, so that a long experiment can stop and go on."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from laurel_graph.errors import OutputError
from laurel_graph.tools.console import note

Run = dict[str, float]
"""What is measured of one run."""
_BEGIN = '{"settings"'


class Results:
    """Runs by their settings: a run whose settings are in the file is not made again.

    Args:
        path: the file, one JSON object a line, appended to; ``None`` keeps nothing.
        limit: processor seconds after which no further run is begun; ``None`` for no limit.
    """

    def __init__(self, path: Path | None, limit: float | None = None) -> None:
        self._path, self._limit, self._began = path, limit, time.process_time()
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        if lines and not lines[0].startswith(_BEGIN[: len(lines[0])]):
            raise OutputError(f"{path} is there and holds no results of an experiment; choose another --results.")
        self._held: dict[str, Any] = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # the line that a killed run left unfinished
                continue
            self._held[_key(entry["settings"])] = entry["result"]

    @classmethod
    def of(cls, args: argparse.Namespace) -> Results:
        """Returns the results that :func:`add_flags` describes."""
        return cls(args.results, args.limit)

    def grid(
        self,
        rows: Iterable[Mapping[str, Any]],
        seeds: int,
        settings: Mapping[str, Any],
        measure: Callable[..., Run],
    ) -> list[tuple[Mapping[str, Any], dict[int, Run]]]:
        """Runs ``measure(**row, seed=seed)`` for every row and seed, a seed of all rows before the next one.

        Args:
            rows: what the rows of the table differ in.
            seeds: how many seeds each row gets.
            settings: everything else that a result depends on.
            measure: makes one run.

        Returns:
            The rows with their results by seed, without rows that have none because the time was over.
        """
        table: list[tuple[Mapping[str, Any], dict[int, Run]]] = [(row, {}) for row in rows]
        for seed in range(seeds):
            for row, runs in table:

                def run(row: Mapping[str, Any] = row, seed: int = seed) -> Run:
                    result = measure(**row, seed=seed)
                    figures = ", ".join(f"{name} {value:.6g}" for name, value in result.items())
                    note(f"{', '.join(map(str, row.values()))}, seed {seed}: {figures}")
                    return result

                result = self.run({**settings, **row, "seed": seed}, run)
                if result is not None:
                    runs[seed] = result
        return [(row, runs) for row, runs in table if runs]

    def run(self, settings: dict[str, Any], function: Callable[[], Any]) -> Any | None:
        """Returns the result of *function* (what JSON holds), kept or made now; ``None`` once the time is over."""
        key = _key(settings)
        if key in self._held:
            return self._held[key]
        if self._limit is not None and time.process_time() - self._began > self._limit:
            return None
        result = self._held[key] = function()
        if self._path is not None:
            self._append(json.dumps({"settings": settings, "result": result}) + "\n")
        return result

    def _append(self, line: str) -> None:
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write("\n" * self._ends_unfinished() + line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"the results {self._path} cannot be written: {error.strerror or error}.") from None

    def _ends_unfinished(self) -> bool:
        assert self._path is not None
        data = self._path.read_bytes() if self._path.exists() else b""
        return bool(data) and not data.endswith(b"\n")


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--results`` and ``--limit``."""
    parser.add_argument("--results", type=Path, help="file to which each run is appended, and from which it continues")
    parser.add_argument("--limit", type=float, help="begin no run after so many processor seconds")


def chosen(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns some of the arguments by name."""
    return {name: getattr(args, name) for name in names}


def column(runs: Mapping[int, Run], name: str) -> list[float]:
    """Returns one figure of every seed."""
    return [run[name] for run in runs.values()]


def mean_and_spread(values: Sequence[float]) -> tuple[str, str]:
    """Returns the mean over the seeds and their standard deviation, as a table shows them."""
    return f"{statistics.fmean(values):.4f}", f"{spread(values):.4f}"


def spread(values: Sequence[float]) -> float:
    """Returns the standard deviation over the seeds, 0 for a single one or none."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
