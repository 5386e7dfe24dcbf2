"""The results of an experiment's runs in a file, so that a long experiment can stop and go on."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Results:
    """Runs by their settings: a run whose settings are in the file is not made again.

    Args:
        path: the file, one JSON object a line, appended to; ``None`` keeps nothing.
        limit: seconds after which no further run is begun; ``None`` for no limit.
    """

    def __init__(self, path: Path | None, limit: float | None = None) -> None:
        self._path, self._limit, self._began = path, limit, time.perf_counter()
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
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

    def run(self, settings: dict[str, Any], function: Callable[[], Any]) -> Any | None:
        """Returns the result of *function* (what JSON holds), kept or made now; ``None`` once the time is over."""
        key = _key(settings)
        if key in self._held:
            return self._held[key]
        if self._limit is not None and time.perf_counter() - self._began > self._limit:
            return None
        result = self._held[key] = function()
        if self._path is not None:
            with self._path.open("a") as file:
                file.write("\n" * self._ends_unfinished())
                file.write(json.dumps({"settings": settings, "result": result}) + "\n")
        return result

    def _ends_unfinished(self) -> bool:
        assert self._path is not None
        data = self._path.read_bytes() if self._path.exists() else b""
        return bool(data) and not data.endswith(b"\n")


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--results`` and ``--limit``."""
    parser.add_argument("--results", type=Path, help="file to which each run is appended, and from which it continues")
    parser.add_argument("--limit", type=float, help="begin no run after so many seconds; the table shows what is there")


def spread(values: Sequence[float]) -> float:
    """Returns the standard deviation over the seeds, 0 for a single one or none."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
