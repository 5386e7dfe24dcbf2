"""LR: x' = f(x) + x + (xA)B, a low-rank map of the skip (LAuReL §2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .term import Axis, Operands, Pair, Site, Term

if TYPE_CHECKING:
    import numpy as np


class LowRank(Term):
    """skip + (xA)B, B = 0 at the start."""

    name: ClassVar[str] = "lr"
    tensors: Mapping[str, tuple[Axis, ...]] = {"A": ("D", "r"), "B": ("r", "D")}
    several_branches: ClassVar[bool] = True
    has_kernels: ClassVar[bool] = True

    def start(self, site: Site, shapes: Mapping[str, tuple[int, ...]], draw: np.random.Generator) -> dict[str, Any]:
        """A after the site's init, B = 0."""
        from ..formula import start_of_map

        return {"A": start_of_map(site, draw)}

    def formula(self, skip: Any, branch: Any, at: Operands) -> Pair:
        """(skip + (xA)B, branch)."""
        return skip + (at.x @ at["A"]) @ at["B"], branch

    def body(self, nodes: Any, skip: str, branch: str, at: Operands) -> Pair:
        """Two products and an add."""
        return nodes.add("Add", skip, nodes.low_rank(at.x, at["A"], at["B"])), branch
