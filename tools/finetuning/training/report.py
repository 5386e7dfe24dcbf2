"""What ``laurel finetune`` did, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from laurel_graph.showing import Cell, Shown

if TYPE_CHECKING:
    from .state import TrainResult


@dataclass(frozen=True, repr=False)
class FinetuneReport(Shown):
    """What ``laurel finetune`` did.

    Attributes:
        model: the file that was read.
        tuned: the file that was written.
        adapter: the adapter that was written, or ``None``.
        value: the value of the graph that was trained on.
        new_parameters: elements of the LAuReL tensors.
        head_parameters: elements of a new head.
        further_parameters: elements of the initializers that ``train`` named.
        base_parameters: elements of all other weights, in Constant nodes and as packed integers too.
        training: how training went.
        difference: largest difference of the tuned file on ONNX Runtime from the torch module, over the scale.
        unchanged: number of initializers and nodes of the base that were checked to have kept their bits.
        seconds: wall time in all.
        notes: sentences for the user.
    """

    model: str
    tuned: str
    adapter: str | None
    value: str
    new_parameters: int
    head_parameters: int
    further_parameters: int
    base_parameters: int
    training: TrainResult
    difference: float
    unchanged: int
    seconds: float
    notes: tuple[str, ...] = ()

    columns_shown: ClassVar[tuple[str, ...]] = ("epoch", "loss", "metric")

    def shown(self) -> list[str]:
        """Returns what trained, what it gave, what was written, and the notes."""
        training = self.training
        trained = self.new_parameters + self.head_parameters + self.further_parameters
        gave = ""
        if training.before and training.after:
            gave = f"{training.metric} {training.before[0]:.4g} before, {training.after[0]:.4g} after"
        return [
            f"{self.model}: {trained:,} parameters trained ({100 * self.share:.3g} %), {training.epochs} epochs",
            gave,
            f"on ONNX Runtime within {self.difference:.2g} of the module, over the scale of {self.value}",
            f"wrote {self.tuned}{f' and {self.adapter}' if self.adapter else ''}",
            *self.notes,
        ]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per epoch."""
        return [(int(e["epoch"]), e["loss"], e.get("metric")) for e in self.training.history]

    @property
    def share(self) -> float:
        """Trained elements over those of the original model."""
        trained = self.new_parameters + self.head_parameters + self.further_parameters
        return trained / max(self.base_parameters + self.further_parameters, 1)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form of ``laurel finetune --json``."""
        return {**asdict(self), "share": self.share}
