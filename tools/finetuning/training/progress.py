"""What a training run says on stderr: a live bar on a terminal, a line per epoch and per half minute elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from laurel_graph.foreign_names import printable

_EVERY = 30.0
"""Seconds after which a run that has no terminal says how far it is."""


class TrainingProgress:
    """Loss, rate and time left of a run; a context manager.

    Args:
        steps: number of steps in all.
        start: number of steps done before.
        batch_size: samples per step, for the rate.
        quiet: say nothing.
    """

    def __init__(self, steps: int, start: int, batch_size: int, quiet: bool) -> None:
        self._steps, self._start, self._batch = steps, start, batch_size
        self._quiet = quiet
        self._console: Any = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> TrainingProgress:
        self.begin()
        if self._quiet:
            return self
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._steps, completed=self._start, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self) -> None:
        """Starts the clock of the rate."""
        self._began = self._said = time.perf_counter()

    def rate(self, step: int) -> float:
        """Returns samples per second since the start of this process's part of the run."""
        return (step - self._start) * self._batch / max(time.perf_counter() - self._began, 1e-9)

    def step(self, step: int, loss: float) -> None:
        """Tells that *step* steps are done and what the smoothed loss is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=f"loss {loss:.4g}  {self.rate(step):.3g} samples/s")
        elif time.perf_counter() - self._said >= _EVERY:
            self.epoch(f"step {step}/{self._steps}  loss {loss:.4g}", step)

    def epoch(self, line: str, step: int) -> None:
        """Tells the result of an epoch, with the rate and the time left."""
        self._said = time.perf_counter()
        if self._quiet:
            return
        left = (self._steps - step) * self._batch / max(self.rate(step), 1e-9)
        self.say(f"{line}  {self.rate(step):.3g} samples/s, {left:.0f} s left")

    def say(self, line: str) -> None:
        """Says one line."""
        if not self._quiet and self._console is not None:
            self._console.print(printable(line), markup=False)
