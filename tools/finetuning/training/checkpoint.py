"""The state of a training run on disk, which a kill never leaves half written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from laurel_graph.errors import ConfigError, OutputError
from laurel_graph.outputs import write

FORMAT = 1


def write_checkpoint(path: Path, state: dict[str, Any], identity: dict[str, str]) -> None:
    """Writes *state* (tensors, numbers, strings in dicts and lists) for the run that *identity* describes.

    Raises:
        OutputError: it cannot be written.
    """
    content = io.BytesIO()  # torch's own writer has errors of its own for a full disk
    torch.save({"format": FORMAT, "identity": identity, "state": state}, content)
    write(path, content.getvalue())


def check_replaced(path: Path | None, resume: bool) -> None:
    """Checks that what lies at *path* is a checkpoint, if anything does: it will be replaced, and deleted in the end.

    Raises:
        OutputError: it is something else. A run that continues reads it anyway, and says so itself.
    """
    if path is None or resume or not path.exists():
        return
    try:
        known = {"format", "identity", "state"} <= set(torch.load(path, map_location="meta", weights_only=True))
    except Exception:  # zip, pickle and key errors alike mean: not one of ours
        known = False
    if not known:
        raise OutputError(f"{path} is there and is no checkpoint; move it, or name another file with --checkpoint.")


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
