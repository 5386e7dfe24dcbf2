"""Deploys a trained LAuReL model: folds α and β away, gives each site its cheapest exact form, checks the result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import onnx
from numpy.typing import NDArray

from laurel_graph.config import FORMAT_VERSION
from laurel_graph.errors import OutputError, RewriteError, VerificationError
from laurel_graph.model_folder import rewritten, writes_folder
from laurel_graph.onnx_model.walk import graphs_of
from laurel_graph.onnx_model.weight_file import has_external_weights
from laurel_graph.opset import functions
from laurel_graph.opset.changed import why_gone
from laurel_graph.opset.recover import DEPLOYED, is_deployed
from laurel_graph.opset.schema import DOMAIN, METADATA_DEPLOYED, PREFIX, laurel_nodes
from laurel_graph.opset.undo import read_undo
from laurel_graph.passes.base import Facts, PassResult
from laurel_graph.passes.facts import Forms, Samples, Source
from laurel_graph.passes.fold.fold import FoldReport

from .choose import FusedSite
from .costs import CostModel
from .report import DeployReport
from .retries import less_and_less

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from laurel_graph.passes.verify import VerifyReport
    from laurel_graph.passes.verify.pair import Subject


TARGETS = ("cpu",)


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
    from laurel_graph.opset.plain import put_back
    from laurel_graph.passes.recipes import deploying

    put_back(model)
    result = deploying(portable=portable, target=target, costs=costs).run(model, Facts(Source(folder=base)))
    return _report(result, portable, target)


def _report(result: PassResult, portable: bool, target: str) -> DeployReport:
    """Returns what the passes of a deployment found out, as one report."""
    folded, forms = result.found(FoldReport), result.found(Forms)
    if folded is None or forms is None:
        raise TypeError("a deployment folds and fuses")
    graph = result.graph.graph
    nodes = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.node)
    compared = result.steps[-1].report.detail if result.steps[-1].ran.last else None
    made = (folded, forms.sites, portable, target, dict(sorted(nodes.items())), compared)
    return DeployReport(*made, notes=result.report.notes)


def check_trained(model: onnx.ModelProto) -> None:
    """Raises RewriteError where a model holds nothing to fold, or is deployed already."""
    if is_deployed(model):
        raise RewriteError("the model is deployed already; deploy the trained file it was made from.")
    if why := why_gone(model):
        raise RewriteError(f"the model cannot be deployed: {why}")
    if not any(laurel_nodes(graph) for graph in graphs_of(model.graph)):
        raise RewriteError("the model holds no LAuReL residual; transform (and train) it before deploying it.")


def scales_left(model: onnx.ModelProto, folded: FoldReport, forms: Sequence[FusedSite]) -> dict[str, NDArray[Any]]:
    """Returns the scales of the values that fusing left there and left what they were."""
    made = {name for node in model.graph.node for name in node.output}
    made.difference_update(name for form in forms for name in form.altered)
    return {name: scale for name, scale in folded.scales.items() if name in made}


def keep_needed_functions(model: onnx.ModelProto, portable: bool) -> None:
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


def close_inputs(model: onnx.ModelProto) -> None:
    """Makes weights that are inputs too plain constants, so that runtimes fold and pack them.

    LAuReL tensors are meant that could be overridden per request (others are computed from them), and all weights of
    files of an IR version below 4, where every weight had to be listed as an input and none could be overridden. Other
    weights that are inputs stay what they are: a run may be given others.
    """
    undo = read_undo(model) or {}
    old = (undo.get("ir_version") or 4) < 4
    held = {tensor.name for tensor in model.graph.initializer if old or tensor.name.startswith(PREFIX + ".")}
    kept = [value for value in model.graph.input if value.name not in held]
    if len(kept) != len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)


def mark(model: onnx.ModelProto, portable: bool, target: str, rescale: str = "all") -> None:
    """Takes out what belongs to a model that can still be trained and says that this one is deployed.

    Args:
        model: the model; it changes.
        portable: whether it holds operators of ``ai.onnx`` alone.
        target: what it is to run on.
        rescale: which values folding was allowed to store at another scale.
    """
    kept = [prop for prop in model.metadata_props if not prop.key.startswith(PREFIX + ".")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for function in model.functions:
        if function.domain == DOMAIN:
            function.doc_string = DEPLOYED
    value = {
        "format": FORMAT_VERSION,
        "target": target,
        "portable": portable,
        **({} if rescale == "all" else {"rescale": rescale}),
    }
    model.metadata_props.add(key=METADATA_DEPLOYED, value=json.dumps(value))


def deploy_file(
    path: str | Path | onnx.ModelProto | gs.Graph,
    output: str | Path | None = None,
    *,
    portable: bool = False,
    target: str = "cpu",
    data: str | Path | Sequence[Mapping[str, NDArray[Any]]] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    costs: CostModel | None = None,
    opset: int = 0,
) -> DeployReport:
    """Deploys the trained file *path* to *output*, which is written only if it computes what *path* computes.

    Where *path* keeps weights in other files, those that change go to ``<output>.<digest of the content>.data``, the
    others stay. The file that is compared is the one that stays, beside the weight files that it keeps; it becomes
    visible by one rename. A folder becomes a folder (:mod:`laurel_graph.model_folder`).

    Args:
        path: the trained ONNX file, folder, ``ModelProto`` or ``gs.Graph``; it stays as it is.
        output: the file or folder to write; a model of memory may go without, and is handed back in the report's
            ``model``.
        portable: leave only operators of ``ai.onnx``.
        target: what it is to run on; ``cpu``.
        data: an ``.npz`` file, or samples in memory, to compare on in place of drawn inputs.
        tolerance: largest difference over the scale of a channel, at every site and output; by default
            :data:`~laurel_graph.passes.verify.tolerances.DEPLOYED` by element type, or eight times the trained file's
            own noise where that is more.
        seed: seed of the drawn inputs.
        sizes: sizes of symbolic dims of drawn inputs.
        costs: the cost model; the one of the package by default.
        opset: version of the default domain to write, newer than the trained file's; 0 leaves it as it is.

    Raises:
        RewriteError: see :func:`deploy` and :func:`~.newer.raise_opset`.
        VerificationError: the deployed model is further from the trained one than the tolerance, or no sample
            exercises the model; nothing is written.
        OutputError: *output* is a file that is read here, cannot be written, or is missing for a file.
    """
    if writes_folder(path, output):
        with rewritten(path, cast("str | Path", output), portable=portable) as new:
            made = deploy_file(
                new.source,
                new.graph,
                portable=portable,
                target=target,
                data=data,
                tolerance=tolerance,
                seed=seed,
                sizes=sizes,
                costs=costs,
                opset=opset,
            )
        return replace(made, notes=(*made.notes, *new.notes))
    from laurel_graph import onnx_file
    from laurel_graph.passes.files import as_file, check_not_itself, run_on_file
    from laurel_graph.passes.recipes import deploying
    from laurel_graph.passes.standard.comparing import Verify

    given = Path(data) if isinstance(data, (str, Path)) else None
    compare = Verify(given, tolerance, seed=seed)
    facts = Facts(Samples(None if data is None or isinstance(data, (str, Path)) else list(data), sizes or {}))

    def run(trained: str | Path, to: str | Path) -> tuple[PassResult, tuple[str, ...]]:
        def attempt(rescale: str) -> PassResult:
            pipeline = deploying(
                portable=portable, target=target, costs=costs, compare=compare, rescale=rescale, opset=opset
            )
            return run_on_file(pipeline, trained, to, facts=facts, inputs=(given,))

        return less_and_less(attempt, trained)

    if isinstance(path, (str, Path)):
        if output is None:
            raise OutputError(f"output= is missing: expected the file to write what becomes of {path} to.")
        result, notes = run(path, output)
        return _with_notes(_report(result, portable, target), notes)
    with as_file(path) as trained:
        if output is not None:
            check_not_itself(output, onnx_file.read(trained), path)
        result, notes = run(trained, trained.with_name("deployed.onnx") if output is None else output)
    report = _with_notes(_report(result, portable, target), notes)
    if output is not None:
        return report
    if has_external_weights(result.graph):
        raise OutputError("the weights of this model lie in files: expected output=, the file to write the result to.")
    from laurel_graph.passes.graphsurgeon import is_graph, to_graph

    return replace(report, model=to_graph(result.graph) if is_graph(path) else result.graph)


def _with_notes(report: DeployReport, notes: Sequence[str]) -> DeployReport:
    return replace(report, notes=(*report.notes, *notes))


def check_deployed(
    first: Subject,
    second: Subject,
    folded: FoldReport,
    altered: Collection[str],
    *,
    samples: Sequence[Mapping[str, NDArray[Any]]] | None,
    tolerance: float | None,
    seed: int,
    sizes: Mapping[str, int] | None,
) -> VerifyReport:
    """Compares a trained and a deployed model at every site and every output.

    Args:
        first: the trained model.
        second: the deployed one, as it lies on disk.
        folded: what folding did.
        altered: values that mean something else in the deployed model.
        samples: what to compare on; ``None`` draws some.
        tolerance: as for :func:`deploy_file`.
        seed: seed of the drawn samples.
        sizes: sizes of symbolic dims of drawn samples.

    Raises:
        VerificationError: they differ somewhere, or no sample exercises the model.
    """
    from laurel_graph.passes.bodies.compare import check_insides
    from laurel_graph.passes.verify import SiteDifference, report_of
    from laurel_graph.passes.verify.check import Check
    from laurel_graph.passes.verify.pair import Pair
    from laurel_graph.passes.verify.tolerances import DEPLOYED
    from laurel_graph.passes.verify.watching import check_coverage, site_values, with_scales

    sites = site_values(first.model, second.model, folded.renamed)
    check_coverage(first.model, second.model, sites)
    watched = with_scales(sites, folded, first.model, second.model, altered)
    check = Check(Pair(first, second, watched, tolerance=tolerance, usual=DEPLOYED))
    findings = check.on_drawn((1, 3), seed, sizes) if samples is None else check.on_data(samples)
    found = report_of((str(first.path), str(second.path)), findings)
    check_insides(first.model, {(item.output, item.site) for item in found.sites})
    if (worst := found.first_difference) is not None:
        where = f"site {worst.site!r}: the value" if isinstance(worst, SiteDifference) and worst.site else "the value"
        raise VerificationError(
            f"the deployed model differs from {first.path}, first at {where} {worst.output!r} by {worst.max_abs:.3g} "
            f"({worst.max_rel:.3g} of its scale, allowed {worst.tolerance:.3g}). Nothing was written."
        )
    return found
