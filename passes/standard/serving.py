"""``fold``, ``absorb``, ``fuse``, ``raise_opset``, ``mark``: the passes that make a trained ONNX graph cheap to run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from laurel_graph.errors import RewriteError
from laurel_graph.onnx_model.walk import graphs_of
from laurel_graph.opset.plain import is_plain
from laurel_graph.opset.schema import laurel_nodes
from laurel_graph.passes.base import NO_FACTS, Facts, Graph, Pass, PassResult, Report, SiteChange, option
from laurel_graph.passes.deploy.choose import absorb_all, fuse
from laurel_graph.passes.deploy.costs import CostModel, default_costs
from laurel_graph.passes.deploy.deploy import (
    TARGETS,
    check_trained,
    close_inputs,
    keep_needed_functions,
    mark,
    scales_left,
)
from laurel_graph.passes.deploy.newer import raise_opset
from laurel_graph.passes.deploy.untrained import NOTE, is_untrained
from laurel_graph.passes.facts import Forms, ValueTypes, weights_folder
from laurel_graph.passes.fold.fold import RESCALE, FoldReport, fold
from laurel_graph.passes.invariants import KEPT, NOTHING

if TYPE_CHECKING:
    from laurel_graph.passes.deploy.choose import FusedSite


@dataclass(frozen=True)
class Fold(Pass, name="fold", requires=NOTHING, ensures=KEPT):
    """Folds α and β into weights that are there anyway, exactly; where the graph leaves no room they stay."""

    rescale: str = option("all", "the values that may be stored at another scale: all, unquantised or nothing")

    def __post_init__(self) -> None:
        if self.rescale not in RESCALE:
            raise RewriteError(f"rescale={self.rescale!r} is not known: expected one of {', '.join(RESCALE)}.")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Rescales constants, in place; hands on a ``FoldReport`` and the ``ValueTypes`` of the folded graph.

        Raises:
            RewriteError: there is no LAuReL residual in the graph, or it is deployed already.
        """
        check_trained(graph)
        close_inputs(graph)
        notes = (NOTE,) if is_untrained(graph, weights_folder(facts)) else ()
        keep_needed_functions(graph, portable=False)  # shapes pass an operator through its body
        known = facts.get(ValueTypes) or ValueTypes.of(graph)
        done = fold(graph, weights_folder(facts), known.types, self.rescale)
        keep_needed_functions(graph, portable=False)
        sites = tuple(
            SiteChange(s.site, f"{s.operator} became {s.result}: α {s.alpha}, β {s.beta}", s.reason) for s in done.sites
        )
        counters = {
            "sites": len(done.sites),
            "folded": sum("kept" not in (s.alpha, s.beta) for s in done.sites),
            "rescaled": len(done.rescaled),
            "multiplied": len(done.multiplied),
        }
        report = Report(counters, sites, notes, done)
        return PassResult(graph, True, report, Facts(done, replace(known, types=done.types)))


@dataclass(frozen=True)
class Absorb(Pass, name="absorb", requires=NOTHING, ensures=KEPT):
    """Lets the linear map at the end of each projection skip take the low-rank part in, whatever it costs."""

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Changes weights of skips, in place; hands on the ``Forms`` of those sites."""
        known = facts.get(ValueTypes) or ValueTypes.of(graph)
        sites = absorb_all(graph, base=weights_folder(facts), types=known.types)
        keep_needed_functions(graph, portable=False)
        taken = [site for site in sites if site.form == "absorbed"]
        report = Report({"absorbed": len(taken), "left": len(sites) - len(taken)}, _changes(sites), detail=sites)
        forms = Forms((*(facts.get(Forms) or Forms()).sites, *taken))
        return PassResult(graph, bool(taken), report, Facts(known, forms))


@dataclass(frozen=True)
class Fuse(Pass, name="fuse", requires=NOTHING, ensures=KEPT):
    """Gives every LAuReL residual the cheapest of its exact forms."""

    portable: bool = option(False, "leave only plain ai.onnx operators")
    costs: CostModel | None = option(None, "what each form costs; by default the table of the package")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Rewrites every site, in place; hands on the ``Forms``, and the ``FoldReport`` with the scales still there."""
        known, earlier = facts.get(ValueTypes), facts.get(Forms) or Forms()
        costs = self.costs or default_costs()
        types = known.types if known is not None else None
        done = fuse(graph, costs, portable=self.portable, base=weights_folder(facts), types=types)
        keep_needed_functions(graph, self.portable)
        made: list[object] = [Forms((*earlier.sites, *done))]
        if (folded := facts.get(FoldReport)) is not None:
            made.append(replace(folded, scales=scales_left(graph, folded, done)))
        counters = {"sites": len(done)}
        for site in done:
            counters[site.form] = counters.get(site.form, 0) + 1
        return PassResult(graph, bool(done), Report(counters, _changes(done), detail=done), Facts(*made))


def _changes(sites: tuple[FusedSite, ...]) -> tuple[SiteChange, ...]:
    return tuple(
        SiteChange(s.site, f"{s.form}: {s.operator or 'plain operators'}" if s.form else "left alone", s.reason)
        for s in sites
    )


@dataclass(frozen=True)
class RaiseOpset(Pass, name="raise_opset", requires=NOTHING, ensures=KEPT):
    """Converts the graph to a newer opset; the function bodies of ours are written for it."""

    opset: int = option(0, "version of the default domain; 0 leaves it as it is")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Converts the nodes, in place.

        Raises:
            RewriteError: see :func:`~laurel_graph.passes.deploy.newer.raise_opset`.
        """
        changed = self.opset != 0 and raise_opset(graph, self.opset)
        return PassResult(graph, changed, Report({"opset": self.opset} if changed else {}))


_OURS_NOW = (
    "the trained file is in plain form, and this one holds operators of ai.laurel, which runtimes without functions do "
    "not run: deploy with portable (--portable) for those."
)


@dataclass(frozen=True)
class Mark(Pass, name="mark", requires=NOTHING, ensures=KEPT):
    """Says in the file that it is deployed, and takes out what only a model that trains on needs."""

    portable: bool = option(False, "say that only plain ai.onnx operators are left")
    target: str = option("cpu", "what the file is to run on: cpu")

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise RewriteError(f"target {self.target!r} is not known: expected one of {', '.join(TARGETS)}.")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Changes the metadata, in place."""
        changes_form = is_plain(graph) and any(laurel_nodes(part) for part in graphs_of(graph.graph))
        folded = facts.get(FoldReport)
        mark(graph, self.portable, self.target, folded.rescale if folded is not None else "all")
        return PassResult(graph, True, Report(notes=(_OURS_NOW,) if changes_form else ()))
