"""Runs models on one runtime, in an environment that holds that runtime and NumPy and knows nothing of this package.

``python worker.py RUNTIME`` reads one JSON object from stdin: ``jobs``, a list of ``{"model": path, "inputs": [{"name",
"dtype", "shape", "data"}]}`` with the numbers in base64, and ``library``, a library of operators or "". It answers in
lines of JSON, as :mod:`.runtimes` reads them: ``{"version"}`` or ``{"absent"}`` first, then for each job
``{"outputs": [...], "precision"}`` or ``{"refused"}``. What runtimes print themselves goes to stderr.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
Answer = tuple[Sequence[Any], str]
"""Outputs in the model's order, and the type that the runtime computes in where it chooses one by itself."""


def _onnxruntime() -> tuple[str, Callable[[str, Feeds, str], Answer]]:
    import onnxruntime

    def run(path: str, feeds: Feeds, library: str) -> Answer:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        if library:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds), ""

    return onnxruntime.__version__, run


def _reference() -> tuple[str, Callable[[str, Feeds, str], Answer]]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    def run(path: str, feeds: Feeds, _: str) -> Answer:
        found: Any = ReferenceEvaluator(path).run(None, feeds)
        return found, ""

    return onnx.__version__, run


def _openvino() -> tuple[str, Callable[[str, Feeds, str], Answer]]:
    import openvino

    def run(path: str, feeds: Feeds, _: str) -> Answer:
        compiled = openvino.Core().compile_model(path, "CPU")
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        found = compiled(feeds)
        return [found[output] for output in compiled.outputs], str(precision)

    return str(openvino.__version__).partition("-")[0], run


def _opencv() -> tuple[str, Callable[[str, Feeds, str], Answer]]:
    import cv2

    def run(path: str, feeds: Feeds, _: str) -> Answer:
        network = cv2.dnn.readNetFromONNX(path)
        for name, array in feeds.items():
            network.setInput(array, name)
        return network.forward(network.getUnconnectedOutLayersNames()), ""

    return cv2.__version__, run


def _tract() -> tuple[str, Callable[[str, Feeds, str], Answer]]:
    import importlib.metadata

    import tract

    def run(path: str, feeds: Feeds, _: str) -> Answer:
        model = tract.onnx().load(path)
        for index, array in enumerate(feeds.values()):
            model.set_input_fact(index, ",".join([*map(str, array.shape), _fact(array)]))
        for index in range(model.output_count()):
            model.set_output_fact(index, None)  # stated with names for dims that are numbers here
        model.analyse()
        runnable = model.into_model().into_runnable()
        return [output.to_numpy() for output in runnable.run(list(feeds.values()))], ""

    return importlib.metadata.version("tract"), run


def _fact(array: NDArray[Any]) -> str:
    return {"f": "f", "i": "i", "u": "u"}[array.dtype.kind] + str(8 * array.dtype.itemsize)


def _tvm() -> tuple[str, Callable[[str, Feeds, str], Answer]]:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    def run(path: str, feeds: Feeds, _: str) -> Answer:
        shapes = {name: list(array.shape) for name, array in feeds.items()}
        module = from_onnx(onnx.load(path), shape_dict=shapes)
        module = relax.transform.DecomposeOpsForInference()(module)
        machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
        found = machine["main"](*(tvm.runtime.tensor(array) for array in feeds.values()))
        return [value.numpy() for value in ([found] if hasattr(found, "numpy") else found)], ""

    return tvm.__version__, run


def _iree() -> tuple[str, Callable[[str, Feeds, str], Answer]]:
    import importlib.metadata
    import subprocess
    import tempfile

    from iree import runtime
    from iree.compiler import compile_file

    def run(path: str, feeds: Feeds, _: str) -> Answer:
        with tempfile.TemporaryDirectory() as folder:
            text = f"{folder}/model.mlir"
            command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", path, "-o", text]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            made = compile_file(
                text, target_backends=["llvm-cpu"], input_type="onnx", extra_args=["--iree-llvmcpu-target-cpu=host"]
            )
        module = runtime.load_vm_flatbuffer(made, driver="local-task")
        name = next(n for n in module.vm_module.function_names if not n.startswith("__") and not n.endswith("$async"))
        outputs = module[name](*feeds.values())
        return [np.asarray(o) for o in (outputs if isinstance(outputs, (tuple, list)) else [outputs])], ""

    return importlib.metadata.version("iree-base-compiler"), run


RUNTIMES = {
    "onnxruntime": _onnxruntime,
    "reference": _reference,
    "openvino": _openvino,
    "opencv": _opencv,
    "tract": _tract,
    "tvm": _tvm,
    "iree": _iree,
}


def _array(given: dict[str, Any]) -> NDArray[Any]:
    data = base64.b64decode(given["data"])
    return np.frombuffer(data, given["dtype"]).reshape(given["shape"]).copy()


def _given(array: NDArray[Any]) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def main(name: str) -> None:
    """Answers the jobs on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what runtimes print is no answer

    def answer(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    asked = json.load(sys.stdin)
    try:
        version, run = RUNTIMES[name]()
    except Exception as error:
        answer({"absent": f"{type(error).__name__}: {error}"})
        return
    answer({"version": version})
    for job in asked["jobs"]:
        feeds = {given["name"]: _array(given) for given in job["inputs"]}
        try:
            outputs, precision = run(job["model"], feeds, asked["library"])
        except Exception as error:  # runtimes raise what they like
            answer({"refused": f"{type(error).__name__}: {error}"})
        else:
            answer({"outputs": [_given(np.asarray(output)) for output in outputs], "precision": precision})


if __name__ == "__main__":
    main(sys.argv[1])
