"""PA: x' = f(x) + x + Σ_{j<k} γ_j·h_j(x_{i-1-j}), earlier activations of the stream (LAuReL §2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .term import Axis, Operands, Pair, Site, Term

if TYPE_CHECKING:
    import numpy as np

MAX_PREVIOUS = 8
"""The largest k of PA: what the operator set has names for."""


class Previous(Term):
    """skip + Σ γ_j·p_j over k earlier activations p_j, γ = 0 at the start."""

    name: ClassVar[str] = "pa"
    tensors: Mapping[str, tuple[Axis, ...]] = {"gamma": ("k",)}
    earlier: ClassVar[int | None] = MAX_PREVIOUS
    needs_earlier: ClassVar[bool] = True
    several_branches: ClassVar[bool] = True
    has_kernels: ClassVar[bool] = True

    def form(self, previous_map: str) -> Term:
        """The identity map, or the low-rank one."""
        return _LOW_RANK if previous_map == "low-rank" else self

    def links(self, wanted: int, available: int) -> int:
        """As many as the config asks for."""
        return min(wanted, available)

    def formula(self, skip: Any, branch: Any, at: Operands) -> Pair:
        """(skip + Σ γ_j·p_j, branch)."""
        for j, p in enumerate(at.previous):
            skip = skip + at["gamma"][j] * p
        return skip, branch

    def body(self, nodes: Any, skip: str, branch: str, at: Operands) -> Pair:
        """A multiplication and an add for each."""
        gamma = at["gamma"]
        for j in range(len(at.previous)):
            index = nodes.constant(j)
            p = at.previous[j]
            skip = nodes.add("Add", skip, nodes.add("Mul", p, nodes.add("Gather", gamma, index)))
        return skip, branch


class LowRankPrevious(Previous):
    """skip + Σ γ_j·(p_j A_j) B_j, γ = 1 and B_j = 0 at the start."""

    tensors: Mapping[str, tuple[Axis, ...]] = {
        "gamma": ("k",),
        "previous_A": ("k", "D", "r"),
        "previous_B": ("k", "r", "D"),
    }

    def start(self, site: Site, shapes: Mapping[str, tuple[int, ...]], draw: np.random.Generator) -> dict[str, Any]:
        """A_j after the site's init, γ = 1, B_j = 0."""
        import numpy as np

        from ..formula import start_of_map

        maps = [start_of_map(site, draw) for _ in range(site.previous)]
        return {"gamma": np.ones(shapes["gamma"]), "previous_A": np.stack(maps)}

    def formula(self, skip: Any, branch: Any, at: Operands) -> Pair:
        """(skip + Σ γ_j·(p_j A_j) B_j, branch)."""
        for j, p in enumerate(at.previous):
            skip = skip + at["gamma"][j] * ((p @ at["previous_A"][j]) @ at["previous_B"][j])
        return skip, branch

    def body(self, nodes: Any, skip: str, branch: str, at: Operands) -> Pair:
        """Two products, a multiplication and an add for each."""
        gamma, stacks = at["gamma"], (at["previous_A"], at["previous_B"])
        for j in range(len(at.previous)):
            index = nodes.constant(j)
            p = at.previous[j]
            down, up = (nodes.add("Gather", stack, index) for stack in stacks)
            p = nodes.low_rank(p, down, up)
            skip = nodes.add("Add", skip, nodes.add("Mul", p, nodes.add("Gather", gamma, index)))
        return skip, branch


_LOW_RANK = LowRankPrevious()
