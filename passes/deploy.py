"""Deploys a trained LAuReL model: folds α and β away, gives each site its cheapest exact form, checks the result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from laurel_graph import onnx_file
from laurel_graph.config import FORMAT_VERSION
from laurel_graph.errors import RewriteError, VerificationError
from laurel_graph.onnx_graph import graphs_of
from laurel_graph.opset import functions
from laurel_graph.opset.schema import DOMAIN, METADATA_DEPLOYED, PREFIX, laurel_nodes, read_metadata
from laurel_graph.passes.costs import CostModel, default_costs
from laurel_graph.passes.fold import FoldReport, fold
from laurel_graph.passes.fuse import FusedSite, fuse
from laurel_graph.passes.undo import read_undo
from laurel_graph.weight_file import has_external_weights, move_weights_out, rename_weight_file

TARGETS = ("cpu",)
TOLERANCE = {"float32": 2e-5, "float64": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""How far a deployed output may be from the trained one, over the output's scale, by element type."""


@dataclass(frozen=True)
class DeployReport:
    """What deployment did.

    Attributes:
        fold: what became of α and β.
        forms: which form each site that keeps a low-rank or PA part has.
        portable: whether only ``ai.onnx`` operators were allowed.
        target: what the file was made for.
        nodes: how many nodes of each type the main graph has.
        differences: output to (max abs, max rel) difference to the trained model; empty before verification.
        allowed: output to the largest max rel that was accepted.
        samples: on how many samples that was measured.
    """

    fold: FoldReport
    forms: tuple[FusedSite, ...]
    portable: bool
    target: str
    nodes: Mapping[str, int] = field(default_factory=dict)
    differences: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    allowed: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: one object per site, then what holds for the whole file."""
        forms = {form.node: form for form in self.forms}
        sites = []
        for site in self.fold.sites:
            form = forms.get(self.fold.renamed.get(site.node, site.node))
            entry: dict[str, Any] = asdict(site)
            del entry["result"]
            sites.append(
                {
                    **entry,
                    "form": form.form if form else "add",
                    "deployed": form.operator if form else "Add",
                    "costs_us": {k: round(v, 2) for k, v in form.costs.items()} if form else {},
                }
            )
        outputs = [
            {"output": k, "max_abs": a, "max_rel": r, "allowed": self.allowed[k]}
            for k, (a, r) in self.differences.items()
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
        }


def deploy(
    model: onnx.ModelProto,
    *,
    portable: bool = False,
    target: str = "cpu",
    base: Path | None = None,
    costs: CostModel | None = None,
) -> DeployReport:
    """Deploys a trained model in place; see :func:`deploy_file` for files.

    Args:
        model: a transformed model.
        portable: leave only operators of ``ai.onnx``: no function, no domain of our own.
        target: what it is to run on; ``cpu``.
        base: the folder of its external weights.
        costs: the cost model; the one of the package by default.

    Raises:
        RewriteError: no LAuReL in the model, deployed already, or an unknown target.
    """
    if target not in TARGETS:
        raise RewriteError(f"target {target!r} is not known: expected one of {', '.join(TARGETS)}.")
    if read_metadata(model, METADATA_DEPLOYED) is not None:
        raise RewriteError("the model is deployed already; deploy the trained file it was made from.")
    if not any(laurel_nodes(graph) for graph in graphs_of(model.graph)):
        raise RewriteError("the model holds no LAuReL residual; transform (and train) it before deploying it.")
    folded = fold(model, base)
    forms = fuse(model, costs or default_costs(), portable=portable, base=base)
    _settle_functions(model, portable)
    _close_inputs(model)
    _mark(model, portable, target)
    nodes = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return DeployReport(folded, forms, portable, target, dict(sorted(nodes.items())))


def _settle_functions(model: onnx.ModelProto, portable: bool) -> None:
    """Leaves exactly the functions that are needed; *portable* inlines the ones in subgraphs too."""
    functions.detach(model)
    if any(laurel_nodes(graph) for graph in graphs_of(model.graph)):
        functions.attach(model)
        if portable:
            from onnx import inliner

            model.CopyFrom(inliner.inline_selected_functions(model, [(f.domain, f.name) for f in model.functions]))
            functions.detach(model)
    if portable:
        imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(imports)


def _close_inputs(model: onnx.ModelProto) -> None:
    """Makes weights that are inputs too plain constants, so that runtimes fold and pack them.

    LAuReL tensors are meant that could be overridden per request (others were computed from them), and all weights of
    files of an IR version below 4, where every weight had to be listed as an input and none could be overridden.
    """
    undo = read_undo(model) or {}
    old = (undo.get("ir_version") or 4) < 4
    held = {tensor.name for tensor in model.graph.initializer if old or tensor.name.startswith(PREFIX + ".")}
    kept = [value for value in model.graph.input if value.name not in held]
    if len(kept) != len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)


def _mark(model: onnx.ModelProto, portable: bool, target: str) -> None:
    """Takes out what belongs to a model that can still be trained and says that this one is deployed."""
    kept = [prop for prop in model.metadata_props if not prop.key.startswith(PREFIX + ".")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    value = {"format": FORMAT_VERSION, "target": target, "portable": portable}
    model.metadata_props.add(key=METADATA_DEPLOYED, value=json.dumps(value))


def deploy_file(
    path: str | Path,
    output: str | Path,
    *,
    portable: bool = False,
    target: str = "cpu",
    data: str | Path | Sequence[Mapping[str, NDArray[Any]]] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    costs: CostModel | None = None,
) -> DeployReport:
    """Deploys the trained file *path* to *output*, which is written only if it computes what *path* computes.

    Where *path* keeps weights in other files, those that change go to ``<output>.data``, the others stay.

    Args:
        path: the trained ONNX file; it stays as it is.
        output: the file to write.
        portable: leave only operators of ``ai.onnx``.
        target: what it is to run on; ``cpu``.
        data: an ``.npz`` file, or samples in memory, to compare on besides seeded inputs.
        tolerance: largest difference over an output's scale; by default :data:`TOLERANCE` by element type, more
            where activations are quantised (:func:`_verify`).
        seed: seed of the drawn inputs.
        sizes: sizes of symbolic dims of drawn inputs.
        costs: the cost model; the one of the package by default.

    Raises:
        RewriteError: see :func:`deploy`.
        VerificationError: the deployed model is further from the trained one than the tolerance; nothing is written.
    """
    source, output = Path(path), onnx_file.check_output(output, path)
    model = onnx_file.read(source)
    spills = has_external_weights(model)
    report = deploy(model, portable=portable, target=target, base=source.parent, costs=costs)
    aside = output.with_name(f".{output.name}.part.onnx")
    weights, weights_aside = (path.with_name(f"{path.name}.data") for path in (output, aside))
    try:
        spills = spills and move_weights_out(model, weights_aside)
        onnx_file.write(model, aside, source, [weights_aside.name])
        checked = _verify(report, source, aside, data, tolerance, seed, sizes, _has_quantisers(model))
        if spills:
            rename_weight_file(model, weights_aside.name, weights.name)
            onnx_file.write(model, aside, source, [weights.name])
            weights_aside.replace(weights)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
        weights_aside.unlink(missing_ok=True)
    return checked


def _verify(
    report: DeployReport,
    source: Path,
    deployed: Path,
    data: str | Path | Sequence[Mapping[str, NDArray[Any]]] | None,
    tolerance: float | None,
    seed: int,
    sizes: Mapping[str, int] | None,
    quantised: bool,
) -> DeployReport:
    """Compares both files; returns the report with what was found.

    Where activations are quantised, a last bit decides between two integers, and the runtime's integer kernels round
    in ways of their own. There a deployed output may also be twice as far off as the runtime's own optimisation of the
    trained file is.
    """
    from laurel_graph.passes.verify import verify

    draws: list[dict[str, Any]] = [{"seed": seed, "sizes": sizes, "batches": (1, 3)}]
    if data is not None:
        draws.append({"data": data})
    differences: dict[str, tuple[float, float]] = {}
    allowed: dict[str, float] = {}
    samples = 0
    for draw in draws:
        run = verify(source, deployed, **draw)
        samples += run.samples
        noise = (
            verify(source, source, **draw, optimize=(False, True)).outputs if quantised and tolerance is None else ()
        )
        for i, item in enumerate(run.outputs):
            most = tolerance if tolerance is not None else TOLERANCE.get(item.dtype, 0.0)
            most = max(most, 2 * noise[i].max_rel) if noise else most
            if not item.max_rel <= most:
                raise VerificationError(
                    f"the deployed model differs from {source}: output {item.output!r} by {item.max_abs:.3g} "
                    f"({item.max_rel:.3g} of its scale, allowed {most:.3g}). Nothing was written."
                )
            old = differences.get(item.output, (0.0, 0.0))
            differences[item.output] = (max(old[0], item.max_abs), max(old[1], item.max_rel))
            allowed[item.output] = max(allowed.get(item.output, 0.0), most)
    return replace(report, differences=differences, allowed=allowed, samples=samples)


def _has_quantisers(model: onnx.ModelProto) -> bool:
    kinds = ("QuantizeLinear", "DynamicQuantizeLinear")
    return any(node.op_type in kinds for graph in graphs_of(model.graph) for node in graph.node)
