"""What an imported module remembers of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ..config import SiteSpec
    from ..fingerprint import Fingerprint

META = "laurel_import"
"""Key of ``module.meta`` under which an imported module keeps its :class:`ImportRecord`."""


@dataclass
class ImportRecord:
    """What an imported module remembers of its file.

    Attributes:
        source: the file, or ``None`` if a model in memory was imported.
        inputs: the ONNX input names, in the order of ``forward``.
        outputs: the ONNX output names, in the order of what ``forward`` returns.
        base: the fingerprint of the base, as it was when it was imported.
        tensors: parameter and buffer path in the module to the name in the file. The two are one for names like
            ``layer.0.weight``; what cannot stand in Python code is replaced in the path
            (:mod:`laurel_graph.foreign_names`).
        specs: site to spec for a transformed model.
        digests: its fingerprints in the form of older adapter files.
        parameters: how many parameters the base has.
    """

    source: Path | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    base: Fingerprint
    tensors: dict[str, str] = field(default_factory=dict)
    specs: dict[str, SiteSpec] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    parameters: int = 0


def import_record(module: nn.Module) -> ImportRecord | None:
    """Returns the record of the first imported module inside *module*, or ``None``."""
    metas = (getattr(part, "meta", {}) for part in module.modules())
    return next((meta[META] for meta in metas if META in meta), None)
