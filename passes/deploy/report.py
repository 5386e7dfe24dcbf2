"""What a deployment did, as a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from laurel_graph.passes.fold.fold import FoldReport
from laurel_graph.showing import Cell, Shown

from .choose import FusedSite

if TYPE_CHECKING:
    from laurel_graph.passes.verify import OutputDifference, VerifyReport


@dataclass(frozen=True, repr=False)
class DeployReport(Shown):
    """What deployment did.

    Attributes:
        fold: what became of α and β.
        forms: which form each site that keeps a low-rank or PA part has.
        portable: whether only ``ai.onnx`` operators were allowed.
        target: what the file was made for.
        nodes: how many nodes of each type the main graph has.
        verification: how the file compares with the trained one; ``None`` before it was verified.
        model: the deployed model where none was written: a ``ModelProto``, or a ``gs.Graph`` if that was given.
        notes: sentences: what was not compared or says little, what is to be known about a folder that was written.
    """

    fold: FoldReport
    forms: tuple[FusedSite, ...]
    portable: bool
    target: str
    nodes: Mapping[str, int] = field(default_factory=dict)
    verification: VerifyReport | None = None
    model: Any = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    columns_shown: ClassVar[tuple[str, ...]] = ("site", "form", "operator", "α went", "β went", "max rel")

    def shown(self) -> list[str]:
        """Returns what became of the sites, how the file compares, and the notes."""
        forms = Counter(str(site["form"]) for site in self.to_dict()["sites"])
        compared = self.verification
        worst = max((item.max_rel for item in self._outputs), default=0.0)
        return [
            f"{len({site.site for site in self.fold.sites})} sites deployed for {self.target}",
            "as " + ", ".join(f"{form} ({count})" for form, count in forms.items()),
            f"outputs at most {worst:.3g} of the scale from the trained model"
            if compared is not None
            else "not verified",
            compared.summary if compared is not None else "",
            *self.notes,
        ]

    def rows_shown(self) -> Sequence[Sequence[Cell]]:
        """Returns one row per operator of a site."""
        keys = ("site", "form", "deployed", "alpha", "beta", "max_rel")
        return [tuple(site.get(key) for key in keys) for site in self.to_dict()["sites"]]

    @property
    def differences(self) -> dict[str, tuple[float, float]]:
        """Output to (max abs, max rel) difference to the trained model; empty before verification."""
        return {item.output: (item.max_abs, item.max_rel) for item in self._outputs}

    @property
    def allowed(self) -> dict[str, float]:
        """Output to the largest max rel that was accepted."""
        return {item.output: item.tolerance for item in self._outputs}

    @property
    def samples(self) -> int:
        """On how many samples the file was compared."""
        return self.verification.samples if self.verification is not None else 0

    @property
    def _outputs(self) -> tuple[OutputDifference, ...]:
        return self.verification.outputs if self.verification is not None else ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: one object per site, then what holds for the whole file."""
        forms = {form.node: form for form in self.forms}
        found = self.verification.sites if self.verification is not None else ()
        compared = {**{item.site: item for item in found}, **{item.output: item for item in found}}
        sites = []
        for site in self.fold.sites:
            form = forms.get(self.fold.renamed.get(site.node, site.node))
            here = compared.get(site.node, compared.get(site.site))
            entry: dict[str, Any] = asdict(site)
            del entry["result"]
            if form and form.reason:
                entry["reason"] = "; ".join(filter(None, (site.reason, form.reason)))
            sites.append(
                {
                    **entry,
                    "form": form.form if form else "add",
                    "deployed": form.operator if form else "Add",
                    "costs_us": {k: round(v, 2) for k, v in form.costs.items()} if form else {},
                    **({"max_rel": here.max_rel} if here is not None else {}),
                }
            )
        outputs = [
            {
                "output": o.output,
                "max_abs": o.max_abs,
                "max_rel": o.max_rel,
                "allowed": o.tolerance,
                "noise": o.noise,
                "exact_rel": o.exact_rel,
            }
            for o in self._outputs
        ]
        return {
            "target": self.target,
            "portable": self.portable,
            "sites": sites,
            "rescaled": list(self.fold.rescaled),
            "multiplied": list(self.fold.multiplied),
            "nodes": dict(self.nodes),
            "samples": self.samples,
            "outputs": outputs,
            "notes": list(self.notes),
        }
