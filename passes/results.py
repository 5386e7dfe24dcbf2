"""What a transformation did, and what it made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from laurel_graph.detection import Detection, SitePlan
from laurel_graph.showing import Cell, Shown, counted


@dataclass(frozen=True, repr=False)
class TransformReport(Shown):
    """What a transformation did.

    Attributes:
        detection: every join with its verdict.
        plans: what was put in, one plan per rewritten site.
        skipped: ``(site, reason)`` of the residual connections left alone.
        base_parameters: number of parameters of the model before.
        notes: sentences for the user: those of the detection, and what is to be known about a folder that was written.
    """

    detection: Detection
    plans: tuple[SitePlan, ...]
    skipped: tuple[tuple[str, str], ...]
    base_parameters: int
    notes: tuple[str, ...] = ()

    columns_shown: ClassVar[tuple[str, ...]] = ("site", "variant", "width", "rank", "previous", "parameters")

    def shown(self) -> list[str]:
        """Returns what was put in, what was left alone, and the notes."""
        variants = dict.fromkeys(plan.spec.variant for plan in self.plans)
        share = 100 * self.parameters / max(1, self.base_parameters)
        found = len(self.detection.residuals)
        left = counted([f"{site} ({reason})" for site, reason in self.skipped])
        return [
            f"{self.detection.model}: {len(self.plans)} of {found} residual connections rewritten",
            f"{counted(list(variants))} at {counted([plan.spec.site for plan in self.plans])}",
            f"{self.parameters:,} new parameters on {self.base_parameters:,} ({share:.3g} %)",
            f"left alone: {left}" if left else "",
            *self.notes,
        ]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per site."""
        specs = [plan.spec for plan in self.plans]
        return [(s.site, s.variant, s.width, s.rank or "", s.previous or "", s.parameter_count()) for s in specs]

    @property
    def parameters(self) -> int:
        """Number of new, trainable parameters."""
        return sum(plan.spec.parameter_count() for plan in self.plans)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel transform --json``."""
        return {
            "sites": [{**plan.spec.to_dict(), "parameters": plan.spec.parameter_count()} for plan in self.plans],
            "skipped": [{"site": site, "reason": reason} for site, reason in self.skipped],
            "parameters": self.parameters,
            "base_parameters": self.base_parameters,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, repr=False)
class TransformResult(Shown):
    """A transformed model and what was done to it.

    Attributes:
        model: a ``torch.fx.GraphModule``, the path of the ONNX file or folder written, or, where no output was named,
            a ``ModelProto``, or a ``gs.Graph`` if that was given.
        report: what was done.
    """

    model: Any
    report: TransformReport

    columns_shown: ClassVar[tuple[str, ...]] = TransformReport.columns_shown

    def shown(self) -> list[str]:
        """Returns where the model is, and what was done to it."""
        held = str(self.model) if isinstance(self.model, (str, Path)) else f"a {type(self.model).__name__} in .model"
        first, *rest = self.report.shown()
        return [f"{first}: {held}", *rest]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per site."""
        return self.report.rows_shown()
