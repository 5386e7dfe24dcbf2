"""The state of a training run on disk: written aside, synced and renamed, so that a kill never leaves half a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from laurel_graph.errors import ConfigError, OutputError

FORMAT = 1


def write_checkpoint(path: Path, state: dict[str, Any], identity: dict[str, str]) -> None:
    """Writes *state* (tensors, numbers, strings in dicts and lists) for the run that *identity* describes.

    Raises:
        OutputError: the folder cannot be written to.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            torch.save({"format": FORMAT, "identity": identity, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"{path}: the checkpoint cannot be written ({error}).") from error


def read_checkpoint(path: Path, identity: dict[str, str]) -> dict[str, Any]:
    """Returns the state that :func:`write_checkpoint` wrote.

    Raises:
        ConfigError: damaged, of a newer format, or of a run with other options, model or data than *identity*.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        version, before, state = held["format"], held["identity"], held["state"]
    except Exception as error:  # zip, pickle and key errors alike mean: not one of ours
        raise ConfigError(f"{path}: not a readable checkpoint ({error}); delete it to start anew.") from error
    if version > FORMAT:
        raise ConfigError(f"{path}: written by a newer laurel-graph (format {version}, this one reads {FORMAT}).")
    changed = [name for name in identity if before.get(name) != identity[name]]
    if changed:
        listing = "; ".join(f"{name} was {before.get(name)}, is {identity[name]}" for name in changed)
        raise ConfigError(
            f"{path}: belongs to another run ({listing}). Resume with the same options, or delete it to start anew."
        )
    return dict(state)
