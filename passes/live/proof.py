"""Shows that an attached model does what it did before, and that its residuals are reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from laurel_graph.errors import RewriteError

from .capture import Seen
from .check import Trace, traced
from .joins import ATTRIBUTE, CHECK, ON, Block
from .plan import WATCHED, BlockPlan, Plan
from .record import Record, watch


@dataclass
class Proof:
    """Shows that an attached model does what it did, and that every add which should call a residual does."""

    model: nn.Module
    record: Record
    plan: Plan
    seen: Seen
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]]

    def of(self, before: Trace, ways: dict[str, str]) -> list[str]:
        """Holds the attached model with its residuals off against the model before, operator by operator.

        In-place adds become adds that leave their memory alone; where something else reads that memory they write it.
        A block whose rewritten code misses an add is watched instead, which *ways* says then.

        Returns:
            What the user should know.

        Raises:
            RewriteError: the model would not compute what it did, or an add cannot be reached.
        """
        name = type(self.model).__name__
        now = self.run()
        difference = before.difference(now)
        if difference:
            for plan in self.plan.blocks:
                live: Block = plan.block.__dict__[ATTRIBUTE]
                live.points = tuple(replace(point, kept=True) for point in live.points)
                plan.points = list(live.points)
            now = self.run()
            difference = before.difference(now)
        if now is None or difference:
            raise RewriteError(f"{name} would not compute what it did ({difference}); it is as it was.")
        if missed := self.missed(now):
            for block in missed:
                watch(self.record, block)
                why = "what runs is not the code that was rewritten"
                ways |= {site.spec.site: f"{WATCHED}: {why}" for site in block.residuals.values()}
            now = self.run()
            lost = self.plan.blocks if now is None else self.missed(now)
            if lost:
                raise RewriteError(
                    f"an add of a {type(lost[0].block).__name__} (sites {', '.join(lost[0].sites)}) ran while "
                    f"{name} was looked at, and is not reached any more: leave these sites out (overrides=, off=True)."
                )
        return self.elsewhere()

    def run(self, training: bool = False) -> Trace | None:
        """The trace of the attached model with its residuals off."""
        self.record.state.mode = CHECK
        try:
            return traced(self.model, *self.inputs, self.record.state, training)
        finally:
            self.record.state.mode = ON

    def missed(self, now: Trace) -> list[BlockPlan]:
        """The blocks of which an add did not call as often as it ran when the model was looked at."""
        ran = Counter((id(event.block), event.path) for event in self.seen.order)
        return [
            plan
            for plan in self.plan.blocks
            if any(now.hits.get((id(plan.block), n), 0) != ran[id(plan.block), p] for n, p in enumerate(plan.paths))
        ]

    def elsewhere(self) -> list[str]:
        """Names the sites that the code does not pass in training mode."""
        now = self.run(training=True)
        if now is None:
            return []
        idle = [
            site
            for plan in self.plan.blocks
            if any((id(plan.block), number) not in now.hits for number in range(len(plan.paths)))
            for site in plan.sites
        ]
        return [f"in training mode the code takes another way and passes by {', '.join(idle)}."] if idle else []
