"""RW: x' = α·f(x) + β·(...), the weights of branch and skip (LAuReL §2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .term import Axis, Operands, Pair, Site, Term

if TYPE_CHECKING:
    import numpy as np


class Weights(Term):
    """α·f + β·skip, α = β = 1 at the start; trained as w with (α, β) = 2·softmax(w) or 2·σ(w), or as they are."""

    name: ClassVar[str] = "rw"
    tensors: Mapping[str, tuple[Axis, ...]] = {"alpha": ("C",), "beta": ("C",)}
    several_branches: ClassVar[bool] = True
    is_last: ClassVar[bool] = True
    has_kernels: ClassVar[bool] = True

    def parameters(self, site: Site) -> Mapping[str, tuple[Axis, ...]]:
        """``w`` (2,) or (2, D); α and β themselves where they are free."""
        return self.tensors if site.weights == "free" else {"w": (2, "C")}

    def start(self, site: Site, shapes: Mapping[str, tuple[int, ...]], draw: np.random.Generator) -> dict[str, Any]:
        """α = β = 1; w at 0 gives that."""
        import numpy as np

        return {name: np.ones(shape) for name, shape in shapes.items() if name != "w"}

    def formula(self, skip: Any, branch: Any, at: Operands) -> Pair:
        """(β·skip, α·branch)."""
        return at["beta"] * skip, at["alpha"] * branch

    def body(self, nodes: Any, skip: str, branch: str, at: Operands) -> Pair:
        """Two multiplications."""
        branch = nodes.add("Mul", branch, nodes.along_features(at["alpha"]))
        return nodes.add("Mul", skip, nodes.along_features(at["beta"])), branch

    def resolve(self, site: Site, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """α and β of w."""
        if "w" not in parameters:
            return {}
        import numpy as np

        from ..formula import resolve_weights

        alpha, beta = resolve_weights(site.weights, parameters["w"])
        return {"alpha": np.asarray(alpha), "beta": np.asarray(beta)}

    def unresolve(self, site: Site, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """A w of α and β."""
        if site.weights == "free":
            return {}
        from ..formula import unresolve_weights

        return {"w": unresolve_weights(site.weights, tensors["alpha"], tensors["beta"], site.dtype)}

    def resolve_torch(self, site: Site, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """α and β, ``()`` or ``(D,)``, rounded to the element type of w."""
        if site.weights == "free":
            return {}
        stored = parameters["w"]
        w = stored if stored.dtype.itemsize == 8 else stored.float()
        pair = 2 * (w.sigmoid() if site.weights == "sigmoid" else w.softmax(0))
        alpha, beta = pair.to(stored.dtype).unbind()
        return {"alpha": alpha, "beta": beta}
