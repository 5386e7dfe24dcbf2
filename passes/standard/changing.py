"""``insert``, ``remove``, ``add_head`` and ``export``: the passes that rewrite a graph to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from laurel_graph.config import LaurelConfig
from laurel_graph.errors import ConfigError, ModelError
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
from laurel_graph.passes.facts import Example, Reference, Source, weights_folder
from laurel_graph.passes.invariants import KEPT, NOTHING

from .finding import selected


@dataclass(frozen=True)
class Insert(Pass, name="insert", takes=(ONNX, TORCH), requires=NOTHING, ensures=(*KEPT, "records")):
    """Replaces residual connections by LAuReL residuals; same bits at the start. Detects and selects where none did."""

    config: LaurelConfig = option(LaurelConfig(), "what to put in, where no select stands before")
    adapter_inputs: bool = option(False, "make the new tensors of an ONNX graph overridable inputs, for ORT adapters")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Rewrites the sites of the ``Selection``, in place.

        Raises:
            NoResidualError, SelectorError, ConfigError: see ``select``.
            RewriteError: a join is not there or cannot be rewritten; the graph is unchanged.
        """
        chosen, config, found = selected(graph, facts, self.config)
        if kind_of(graph) == ONNX:
            base = self._insert_onnx(graph, chosen.plans, config, facts)
        else:
            base = self._insert_torch(graph, chosen.plans, config)
        sites = [
            SiteChange(spec.site, f"inserted {spec.variant}, {spec.parameter_count()} parameters")
            for spec in (plan.spec for plan in chosen.plans)
        ]
        sites += [SiteChange(site, "left alone", reason) for site, reason in chosen.skipped]
        counters = {
            "sites": len(chosen.plans),
            "skipped": len(chosen.skipped),
            "parameters": sum(plan.spec.parameter_count() for plan in chosen.plans),
            "base_parameters": base,
        }
        left = found.after_a_change() if chosen.plans else found
        return PassResult(graph, bool(chosen.plans), Report(counters, tuple(sites), detail=chosen), left)

    def _insert_onnx(self, graph: Any, plans: Any, config: LaurelConfig, facts: Facts) -> int:
        from laurel_graph.opset.parameters import count_parameters
        from laurel_graph.passes.rewrite.onnx import insert

        base = count_parameters(graph)
        insert(graph, plans, config, adapter_inputs=self.adapter_inputs, folder=weights_folder(facts))
        return base

    def _insert_torch(self, graph: Any, plans: Any, config: LaurelConfig) -> int:
        from laurel_graph.passes.rewrite.fx import insert
        from laurel_graph.torch_residual.module import freeze_base

        if self.adapter_inputs:
            raise ModelError("adapter_inputs= is for ONNX models; a torch module loads adapters with load_adapter.")
        base = int(sum(parameter.numel() for parameter in graph.parameters()))
        insert(graph, plans, config)
        freeze_base(graph)
        return base


@dataclass(frozen=True)
class Remove(Pass, name="remove", takes=(ONNX, TORCH), requires=NOTHING, ensures=KEPT):
    """Gives the graph back as it was before insert, bit for bit."""

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Takes every LAuReL residual out, in place.

        Raises:
            ModelError: there is none, the record of what was there is damaged, or the graph was changed since.
        """
        if kind_of(graph) != ONNX:
            from laurel_graph.passes.rewrite.fx import remove as remove_fx

            return PassResult(remove_fx(graph), True)
        from laurel_graph import soundness
        from laurel_graph.opset.schema import read_specs
        from laurel_graph.passes.rewrite.restore import remove

        sites = tuple(SiteChange(site, "removed") for site in read_specs(graph))
        notes = remove(graph, folder=weights_folder(facts))
        soundness.check(graph)  # the record of what was there comes from the file
        return PassResult(graph, True, Report({"sites": len(sites)}, sites, notes))


@dataclass(frozen=True)
class Inline(Pass, name="inline", requires=NOTHING, ensures=KEPT):
    """Puts plain ai.onnx nodes in the place of ai.laurel ones; what it writes can be trained and outlined again."""

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Writes every node of ours out, in place.

        Raises:
            ModelError: there is none.
        """
        from laurel_graph.opset.plain import records_of, write_out

        written = write_out(graph)
        if not written and not records_of(graph):
            raise ModelError("the model holds no LAuReL residual that could be inlined; transform it first.")
        return PassResult(graph, bool(written), _told(written, "written out as plain nodes"))


@dataclass(frozen=True)
class Outline(Pass, name="outline", requires=NOTHING, ensures=KEPT):
    """Puts the ai.laurel nodes back that inline wrote out."""

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Takes the plain nodes out, in place.

        Raises:
            ModelError: nothing is written out, or what stands there was changed.
        """
        from laurel_graph.opset.plain import is_plain, put_back, unmark
        from laurel_graph.opset.schema import laurel_nodes

        if not is_plain(graph):
            raise ModelError("the model holds no plain nodes that stand for LAuReL residuals: nothing to outline.")
        back = put_back(graph)
        unmark(graph)  # a file that was read has them back already
        return PassResult(graph, True, _told(back or [n.output[0] for n in laurel_nodes(graph.graph)], "put back"))


def _told(values: Sequence[str], what: str) -> Report:
    return Report({"nodes": len(values)}, tuple(SiteChange(value, what) for value in values))


@dataclass(frozen=True)
class Head(Pass, name="add_head", requires=NOTHING, ensures=KEPT):
    """Puts a new linear classifier on a value of the graph, as one more output."""

    classes: int = option(0, "number of classes; needed")
    value: str | None = option(None, "the value (N, D) to classify; by default what enters the last linear layer")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Appends two nodes, two tensors and an output, in place.

        Raises:
            ConfigError: no number of classes.
            ModelError: there is no such value, its width is unknown, or the model has a head already.
        """
        from laurel_graph.onnx_model.shapes import tensor_types
        from laurel_graph.passes.rewrite.head import AddHead, default_value

        if self.classes < 1:
            raise ConfigError(f"pass 'add_head': classes = {self.classes} is not valid: expected at least 1.")
        value = self.value or default_value(graph)
        shape = tensor_types(graph)[0].get(value, (None, None))[0]
        width = shape[-1] if shape else None
        if not isinstance(width, int):
            raise ModelError(f"the width of {value!r} is not known ({shape}); name a value with a fixed last axis.")
        made = AddHead(self.classes, value)(graph, width)
        return PassResult(graph, True, Report({"outputs": 1}, (SiteChange(value, f"classified by {made!r}"),)))


@dataclass(frozen=True)
class Export(Pass, name="export", takes=(TORCH,)):
    """Turns a torch module into an ONNX graph with ai.laurel nodes; what follows works on that."""

    opset: int | None = option(None, "version of the default operator set; by default the exporter's own")

    def run(self, graph: Graph, facts: Facts = NO_FACTS) -> PassResult:
        """Exports the module for its ``Example`` inputs; ``verify`` compares with what was exported.

        Raises:
            ModelError: there are no example inputs, or torch cannot export the module; names the reason.
        """
        from laurel_graph import onnx_file
        from laurel_graph.onnx_model.tensors import inlined
        from laurel_graph.onnx_model.walk import copy_of, tensors_of
        from laurel_graph.passes.rewrite.export import export_onnx

        example = facts.get(Example)
        if example is None:
            raise ModelError("a torch module is exported for example inputs; give them (the fact Example).")
        with TemporaryDirectory(prefix="laurel-") as folder:
            path = Path(folder) / "exported.onnx"
            export_onnx(graph, example.args, path, example.kwargs, example.dynamic_shapes, self.opset)
            model = onnx_file.read(path)
            for tensor in tensors_of(model):
                tensor.CopyFrom(inlined(tensor, path.parent))
        source = replace(facts.get(Source) or Source(), path=None, folder=None)
        return PassResult(
            model, True, Report({"nodes": len(model.graph.node)}), Facts(source, Reference(copy_of(model)))
        )
