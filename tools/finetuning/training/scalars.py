"""Scalars of a training run for TensorBoard: loss, learning rate and gradient of a step, the metric of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laurel_graph.errors import OutputError
from laurel_graph.tools.dependencies import missing


def check_tensorboard(folder: Path | None) -> None:
    """Checks, before any training, that scalars can be written to *folder*; ``None`` needs nothing.

    Raises:
        DependencyError: tensorboard is not installed.
        OutputError: there is a file of that name, or the folder cannot be made.
    """
    if folder is None:
        return
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except ImportError as error:
        raise missing("--tensorboard", "tensorboard") from error
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--tensorboard {folder} is a file: expected a folder, there already or new.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--tensorboard {folder} cannot be made: {error.strerror or error}.") from error


class Scalars:
    """The scalars of one run, in an event file of its own; a context manager that does nothing without a folder.

    Args:
        folder: where the file goes; ``None`` for none.
        start: steps done before: what an earlier part of the run wrote after them is dropped by TensorBoard.
    """

    def __init__(self, folder: Path | None, start: int) -> None:
        self._folder, self._start = folder, start
        self._writer: Any = None

    def __enter__(self) -> Scalars:
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._start + 1 if self._start else None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, **values: float) -> None:
        """Writes values after *step* steps; two underscores in a name part a group from what is in it."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name.replace("__", "/"), value, step)
