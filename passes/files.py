"""Runs a pipeline on a file: read once, changed in memory, written aside, compared as it lies there, then visible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from laurel_graph import onnx_file
from laurel_graph.errors import ModelError, OutputError
from laurel_graph.model_folder import folder_files, graph_path
from laurel_graph.onnx_model.walk import copy_of
from laurel_graph.onnx_model.weight_file import check_weights_known, has_external_weights
from laurel_graph.outputs import check_outputs, staged
from laurel_graph.outputs.files import telling
from laurel_graph.outputs.kinds import MODEL
from laurel_graph.outputs.kinds import kind_of as content_of
from laurel_graph.outputs.models import model_files, stage_model, write_model

from .base import NO_FACTS, ONNX, Facts, PassResult, Pipeline, kind_of
from .facts import Reference, Source
from .graphsurgeon import is_graph, origin_folder, origin_model

if TYPE_CHECKING:
    from laurel_graph.outputs import Staged
    from laurel_graph.outputs.files import Input


@contextmanager
def as_file(model: Any) -> Iterator[Path]:
    """Gives a model of memory a file for a while; a path is itself.

    Args:
        model: a path, a ``ModelProto`` or a ``gs.Graph``.

    Raises:
        ModelError: it is something else, or keeps weights in other files and does not know in which folder.
    """
    if isinstance(model, (str, Path)):
        yield graph_path(model)
        return
    if not isinstance(model, ModelProto) and not is_graph(model):
        raise ModelError(
            f"expected the path of an ONNX file, a ModelProto or a gs.Graph, found a {type(model).__name__}; "
            "lg.export_onnx(module, inputs, path) writes a torch module as one."
        )
    folder = origin_folder(model)
    if is_graph(model):
        from .graphsurgeon.convert import to_model

        model = to_model(model)
    check_weights_known(model, folder)
    with TemporaryDirectory(prefix="laurel-") as name:
        path = Path(name) / "model.onnx"
        write_model(copy_of(model), path, folder=folder or None)
        yield path


def check_not_itself(output: str | Path, model: ModelProto, given: object = None) -> None:
    """Checks that *output* is not the file that a model of memory was read from, as far as its content tells.

    Args:
        output: the file to write.
        model: the model.
        given: what a person gave for it: of a ``gs.Graph``, what it was made of counts too.

    Raises:
        OutputError: a model of the same nodes and weights' shapes lies there.
    """
    path = Path(output)
    with telling(path):
        is_model = content_of(path) == MODEL
    if not is_model:
        return
    there = ModelProto()
    try:
        there.ParseFromString(path.read_bytes())
    except DecodeError:  # no model that anybody could have read
        return
    if _skeleton(there) in [_skeleton(one) for one in (model, origin_model(given)) if one is not None]:
        raise OutputError(
            f"the output {path} holds the model that is given, or one of the same nodes; the input is never "
            "overwritten: choose another name."
        )


def _skeleton(model: ModelProto) -> tuple[list[tuple[Any, ...]], dict[str, tuple[int, ...]]]:
    nodes = [(node.domain, node.op_type, *node.input, "", *node.output) for node in model.graph.node]
    return nodes, {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


class Written:
    """The output while it is not visible yet; a fact for passes that look at the file itself.

    Args:
        aside: the staged output.
        source: the file that the model was read from, or ``None``.
        spill: move large tensors into a weight file.
    """

    def __init__(self, aside: Staged, source: Path | None, spill: bool) -> None:
        self.aside, self.source, self.spill = aside, source, spill
        self.lies_there: ModelProto | None = None

    def write(self, model: ModelProto) -> tuple[Path, ModelProto]:
        """Writes the model that is to become visible; returns the file and what was read back from it."""
        if self.lies_there is None:
            self.lies_there = stage_model(
                self.aside, model, None if self.source is None else self.source.parent, self.spill
            )
        return self.aside.path, self.lies_there


def run_on_file(
    pipeline: Pipeline,
    source: str | Path,
    output: str | Path,
    *,
    facts: Facts = NO_FACTS,
    inputs: Iterable[Input] = (),
    spill: bool | None = None,
) -> PassResult:
    """Runs *pipeline* on the ONNX file *source* and writes *output*; nothing is written when a pass fails.

    Args:
        pipeline: what to do.
        source: the file; it stays as it is.
        output: where the result goes.
        facts: what is known already, such as a detection made before.
        inputs: further files that the passes read.
        spill: move large tensors into a weight file; by default where *source* has one.

    Returns:
        The result; its graph is what lies in *output* now.

    Raises:
        LaurelError: what the passes raise.
        ModelError: *source* is no path, or cannot be read.
        OutputError: *output* is a file that is read here, or cannot be written.
    """
    if not isinstance(source, (str, Path)):
        raise ModelError(f"expected the path of an ONNX file, found a {type(source).__name__}; save the model first.")
    inputs = (*inputs, *folder_files(source))
    source = graph_path(source)
    model = onnx_file.read_with_records(source)
    read = (*model_files(source, model), *inputs)
    check_outputs(output, inputs=read, kind=MODEL)
    spill = has_external_weights(model) if spill is None else spill
    known = Facts(Source(source, source.parent, str(source)))
    if compares(pipeline):
        known = known.plus(Facts(Reference(copy_of(model), source)))
    return write_result(pipeline, model, staged(output, read), source, known.plus(facts), spill)


def compares(pipeline: Pipeline) -> bool:
    """Whether the last pass holds what was made against the original."""
    return bool(pipeline.passes) and pipeline.passes[-1].compares


def write_result(
    pipeline: Pipeline,
    graph: object,
    place: AbstractContextManager[Staged],
    source: Path | None,
    facts: Facts,
    spill: bool,
) -> PassResult:
    """Runs *pipeline* on *graph* and makes the file at *place* visible.

    Raises:
        ModelError: what comes out is no ONNX model.
    """
    with place as aside:
        written = Written(aside, source, spill)
        result = pipeline.run(graph, facts.plus(Facts(written)))  # type: ignore[arg-type]
        if kind_of(result.graph) != ONNX:
            raise ModelError(
                f"what comes out is a {kind_of(result.graph)}: put the pass 'export' where it is to be one."
            )
        written.write(result.graph)
        aside.publish()
    return result
