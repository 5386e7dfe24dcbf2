"""``place`` and ``try``: what fits an ONNX model is found out by running it, and what was put in is run again."""

from __future__ import annotations

from dataclasses import dataclass

from laurel_graph.config import LaurelConfig
from laurel_graph.errors import ConfigError
from laurel_graph.passes.base import NO_FACTS, Facts, Graph, Pass, PassResult, Report, SiteChange, option
from laurel_graph.passes.facts import Source
from laurel_graph.passes.files import Written
from laurel_graph.passes.invariants import NOTHING
from laurel_graph.passes.rewrite.placing import Placement
from laurel_graph.passes.rewrite.placing import place as find_places


@dataclass(frozen=True)
class Place(Pass, name="place", requires=NOTHING):
    """Detects and selects on an ONNX model that is run on one sample, so that what is put in fits its values."""

    config: LaurelConfig = option(LaurelConfig(), "what to put in")
    run_it: bool = option(True, "run the model on one drawn sample")
    keep_fused: bool = option(False, "leave sites alone whose add is hidden in an operator")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Hands on the ``Detection``, the ``Selection``, the ``LaurelConfig`` and the ``Placement``.

        Raises:
            NoResidualError, SelectorError, ConfigError: see ``select``.
        """
        source = facts.get(Source) or Source()
        name = source.name or graph.graph.name or "ModelProto"
        placed = find_places(graph, name, self.config, source.folder, run=self.run_it, keep_fused=self.keep_fused)
        found, chosen = placed.detection, placed.selection
        sites = [SiteChange(plan.spec.site, f"selected: {plan.spec.variant}") for plan in chosen.plans]
        sites += [SiteChange(site, "left alone", reason) for site, reason in chosen.skipped]
        counters = {
            "residuals": len(found.residuals),
            "rejected": len(found.rejected),
            "selected": len(chosen.plans),
            "skipped": len(chosen.skipped),
        }
        report = Report(counters, tuple(sites), placed.notes, placed)
        return PassResult(graph, False, report, Facts(found, chosen, self.config, placed))


@dataclass(frozen=True)
class Try(Pass, name="try", requires=NOTHING, last=True):
    """Opens and runs what ``place`` and ``insert`` made, with the fused kernels and without; last."""

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Runs the file as it is about to become visible, or the graph where none is written.

        Raises:
            VerificationError: it does not run, or computes something else than the model did.
            ConfigError: no ``place`` stands before.
        """
        placed, written = facts.get(Placement), facts.get(Written)
        if placed is None:
            raise ConfigError("pass 'try' compares with what 'place' saw: put 'place' before it.")
        before = len(placed.notes)
        placed.check(graph if written is None else written.write(graph)[0])
        return PassResult(graph, False, Report(notes=placed.notes[before:]))
