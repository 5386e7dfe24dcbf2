"""Tools of other projects that people run over model files, each as a function from a file to a file."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
Change = Callable[[Path, Path, Feeds], None]


@dataclass(frozen=True)
class Changer:
    """One tool.

    Attributes:
        name: for people.
        change: reads the first path and writes the second; the arrays are inputs to calibrate on.
        module: what has to be installed.
        suffix: the end of what it writes.
    """

    name: str
    change: Change
    module: str = "onnx"
    suffix: str = ".onnx"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what tools say of their own steps off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _quantize_dynamic(source: Path, output: Path, _: Feeds) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, output, extra_options={"MatMulConstBOnly": True}, reduce_range=True)


def quantise_statically(source: Path, output: Path, samples: Sequence[Feeds]) -> None:
    """Quantises a file in 8 bits with QuantizeLinear and DequantizeLinear around operators, after pre-processing.

    Weights take 7 bits: full-range products saturate on processors without VNNI.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    left = list(samples)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return dict(left.pop()) if left else None

    ready = output.with_suffix(".ready.onnx")
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantize_static(ready, output, Reader(), QuantFormat.QDQ, reduce_range=True)


def _int4(source: Path, output: Path, _: Feeds) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=16, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(output))


def _float16(source: Path, output: Path, _: Feeds) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), output)


def _onnxslim(source: Path, output: Path, _: Feeds) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(output))


def _onnxsim(source: Path, output: Path, _: Feeds) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], output)


def _version_converter(source: Path, output: Path, _: Feeds) -> None:
    from onnx import version_converter

    onnx.save(version_converter.convert_version(onnx.load(source), 21), output)


def _offline(source: Path, output: Path, _: Feeds) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(output)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _transformers(source: Path, output: Path, _: Feeds) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), "bert", num_heads=0, hidden_size=0).save_model_to_file(str(output))


def _graphsurgeon(source: Path, output: Path, _: Feeds) -> None:
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(onnx.load(source))
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), output)


def _onnx_ir(source: Path, output: Path, _: Feeds) -> None:
    import onnx_ir as ir

    ir.save(ir.load(source), output)


def _prefix(source: Path, output: Path, _: Feeds) -> None:
    """Puts the model behind a model of identities, every name of both with a prefix."""
    from onnx import compose, helper

    model = onnx.load(source)
    inputs = list(model.graph.input)
    nodes = [helper.make_node("Identity", [value.name], [f"{value.name}_given"]) for value in inputs]
    given = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    for value in given:
        value.name += "_given"
    first = helper.make_model(
        helper.make_graph(nodes, "first", inputs, given),
        opset_imports=[entry for entry in model.opset_import if entry.domain == ""],
        ir_version=model.ir_version,
    )
    joined = compose.merge_models(
        first,
        model,
        [(value.name, other.name) for value, other in zip(given, inputs, strict=True)],
        prefix1="first/",
        prefix2="second/",
    )
    onnx.save(joined, output)


def _extract(source: Path, output: Path, _: Feeds) -> None:
    from onnx.utils import extract_model

    graph = onnx.load(source).graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in held]
    extract_model(str(source), str(output), inputs, [value.name for value in graph.output])


def _inliner(source: Path, output: Path, _: Feeds) -> None:
    from onnx import inliner

    onnx.save(inliner.inline_local_functions(onnx.load(source)), output)


def write_ort_format(source: Path, output: Path) -> None:
    """Writes *source* in the format of ONNX Runtime's minimal builds, by ONNX Runtime's own converter."""
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    with quiet():
        convert_onnx_models_to_ort(source, output.parent, [OptimizationStyle.Fixed])
    (output.parent / f"{source.stem}.ort").replace(output)


def _ort_format(source: Path, output: Path, _: Feeds) -> None:
    write_ort_format(source, output)


CHANGERS = (
    Changer("quantize_dynamic", _quantize_dynamic, "onnxruntime"),
    Changer("quantize_static", lambda source, output, feeds: quantise_statically(source, output, [feeds])),
    Changer("float16", _float16, "onnxruntime"),
    Changer("int4 (MatMulNBits)", _int4, "onnxruntime"),
    Changer("onnxslim", _onnxslim, "onnxslim"),
    Changer("onnxsim", _onnxsim, "onnxsim"),
    Changer("onnx.version_converter", _version_converter),
    Changer("ORT offline optimisation", _offline, "onnxruntime"),
    Changer("ORT transformers optimizer", _transformers, "onnxruntime"),
    Changer("onnx-graphsurgeon", _graphsurgeon, "onnx_graphsurgeon"),
    Changer("onnx_ir", _onnx_ir, "onnx_ir"),
    Changer("onnx.compose with prefix", _prefix),
    Changer("onnx.utils.extract_model", _extract),
    Changer("onnx.inliner", _inliner),
    Changer("ORT format", _ort_format, "onnxruntime", ".ort"),
)
"""In the order of the table."""
