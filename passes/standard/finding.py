"""``detect`` and ``select``: which residual connections there are, and which of them are rewritten how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from laurel_graph.config import LaurelConfig
from laurel_graph.detection import Detection
from laurel_graph.passes.base import (
    NO_FACTS,
    ONNX,
    TORCH,
    Facts,
    Graph,
    Pass,
    PassResult,
    Report,
    SiteChange,
    kind_of,
    option,
)
from laurel_graph.passes.facts import Example, Source, ValueTypes
from laurel_graph.passes.invariants import NOTHING
from laurel_graph.passes.select import Selection, select


@dataclass(frozen=True)
class Detect(Pass, name="detect", takes=(ONNX, TORCH), requires=NOTHING):
    """Finds every residual connection, and says of every other add why it is none; changes nothing.

    A detection that was made before, and handed in as a fact, is taken as it is.
    """

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Hands on a ``Detection``, and of an ONNX graph its ``ValueTypes``.

        Raises:
            ModelError: the graph cannot be read.
        """
        found, more = facts.get(Detection), Facts()
        if found is None:
            found, more = _detect_onnx(graph, facts) if kind_of(graph) == ONNX else (_detect_torch(graph, facts), more)
        sites = [SiteChange(residual.site, f"{residual.kind} found", residual.blocked) for residual in found.residuals]
        sites += [SiteChange(miss.join, "rejected", f"{miss.reason}: {miss.detail}") for miss in found.rejected]
        counters = {"residuals": len(found.residuals), "rejected": len(found.rejected), "nodes": found.nodes}
        return PassResult(graph, False, Report(counters, tuple(sites), found.notes, found), more.plus(Facts(found)))


def _detect_onnx(graph: Any, facts: Facts) -> tuple[Detection, Facts]:
    from laurel_graph.passes.rewrite.placing import detect_onnx

    known = facts.get(ValueTypes) or ValueTypes.of(graph)
    source = facts.get(Source) or Source()
    name = source.name or graph.graph.name or "ModelProto"
    found = detect_onnx(graph, known=(dict(known.types), known.note))
    return replace(found, model=name), Facts(known)


def _detect_torch(graph: Any, facts: Facts) -> Detection:
    from laurel_graph.passes.detect.rule import detect
    from laurel_graph.passes.read_fx.capture import capture

    example = facts.get(Example) or Example()
    captured = capture(graph, example.args, example.kwargs, example.dynamic_shapes)
    found = detect(captured.view)
    return replace(found, model=type(graph).__name__, notes=(*captured.notes, *found.notes))


@dataclass(frozen=True)
class Select(Pass, name="select", takes=(ONNX, TORCH)):
    """Chooses the sites to rewrite and fixes what each one gets; changes nothing. Detects where nothing has."""

    config: LaurelConfig = option(LaurelConfig(), "what to put in")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Hands on a ``Selection`` and the ``LaurelConfig``.

        Raises:
            NoResidualError: nothing to rewrite was found; lists the nearest misses.
            SelectorError: a site selector matched nothing.
            ConfigError: a rank does not fit a site.
        """
        found, more = facts.get(Detection), Facts()
        if found is None:
            more = Detect().run(graph, facts).facts
            found = more.get(Detection)
        if found is None:
            raise TypeError("detect hands a Detection on")
        chosen = select(found, self.config, any_rank=kind_of(graph) == TORCH)
        sites = [SiteChange(plan.spec.site, f"selected: {plan.spec.variant}") for plan in chosen.plans]
        sites += [SiteChange(site, "left alone", reason) for site, reason in chosen.skipped]
        counters = {"selected": len(chosen.plans), "skipped": len(chosen.skipped)}
        report = Report(counters, tuple(sites), chosen.notes, chosen)
        return PassResult(graph, False, report, more.plus(Facts(chosen, self.config)))


def selected(graph: Graph, facts: Facts, config: LaurelConfig) -> tuple[Selection, LaurelConfig, Facts]:
    """Returns the selection that stands, or a new one by *config*, with its config and the facts that are new."""
    chosen, made_by = facts.get(Selection), facts.get(LaurelConfig)
    if chosen is not None and made_by is not None:
        return chosen, made_by, Facts()
    made = Select(config).run(graph, facts).facts
    chosen = made.get(Selection)
    if chosen is None:
        raise TypeError("select hands a Selection on")
    return chosen, config, made
