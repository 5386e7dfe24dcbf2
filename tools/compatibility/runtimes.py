"""The runtimes of the matrix: how each is started, and what it makes of files."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laurel_graph.errors import LaurelError

WAIT = 900
"""Seconds that one runtime may take over one model's forms; compilers take most of it."""


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Attributes:
        key: its name for options and in the stored table.
        title: its name for people.
        worker: what the worker calls it.
        package: the package that brings it, for ``pip`` or ``npm``.
        kernels: with the library of fused kernels of ``ai.laurel``.
        javascript: runs in Node.
    """

    key: str
    title: str
    worker: str
    package: str
    kernels: bool = False
    javascript: bool = False


RUNTIMES = (
    Runtime("onnxruntime", "ONNX Runtime", "onnxruntime", "onnxruntime"),
    Runtime("onnxruntime-kernels", "ONNX Runtime, our kernels", "onnxruntime", "onnxruntime", kernels=True),
    Runtime("oldest", "ONNX Runtime, oldest", "onnxruntime", "onnxruntime==1.21.0"),
    Runtime("oldest-kernels", "ONNX Runtime, oldest, our kernels", "onnxruntime", "onnxruntime==1.21.0", kernels=True),
    Runtime("node", "onnxruntime-node", "onnxruntime-node", "onnxruntime-node", javascript=True),
    Runtime("web", "onnxruntime-web, WASM in Node", "onnxruntime-web", "onnxruntime-web", javascript=True),
    Runtime("reference", "onnx.reference", "reference", "onnx"),
    Runtime("openvino", "OpenVINO", "openvino", "openvino"),
    Runtime("opencv", "OpenCV dnn", "opencv", "opencv-python-headless"),
    Runtime("tract", "tract", "tract", "tract"),
    Runtime("tvm", "TVM", "tvm", "apache-tvm"),
    Runtime("iree", "IREE", "iree", "iree-base-compiler[onnx] iree-base-runtime"),
)
"""In the order of the table."""


@dataclass(frozen=True)
class Answer:
    """What a runtime made of one file.

    Attributes:
        outputs: what it computed; ``None`` if it did not.
        refused: why not, in its words.
        crashed: whether its process ended over it.
        precision: the type that it computes in, where it chooses one by itself.
    """

    outputs: tuple[NDArray[Any], ...] | None = None
    refused: str = ""
    crashed: bool = False
    precision: str = ""


def version_of(runtime: Runtime, where: str = "") -> str:
    """Returns the version of a runtime, "" where it is not installed; for *where* see :func:`ask`."""
    return str(_start(runtime, where, [], "")[0].get("version", ""))


def ask(runtime: Runtime, files: Sequence[Path], feeds: Mapping[str, NDArray[Any]], where: str = "") -> list[Answer]:
    """Has a runtime run *files* on *feeds*, in a process of its own; one that crashes is started again.

    Args:
        runtime: an installed runtime.
        files: the models.
        feeds: arrays by input, in the model's order.
        where: the Python of its environment; for JavaScript the folder that has ``node_modules``.

    Returns:
        An answer for each file.

    Raises:
        LaurelError: there is no kernel library to run it with.
    """
    from laurel_graph.runtime import library_path

    library = library_path() if runtime.kernels else None
    if runtime.kernels and library is None:
        raise LaurelError("the library of fused kernels was not built; install laurel-graph with a C++ compiler.")
    answers: list[Answer] = []
    while len(answers) < len(files):
        lines = _start(runtime, where, [_job(path, feeds) for path in files[len(answers) :]], str(library or ""))
        answers += [_answer(line) for line in lines[1:] if "ended" not in line]
        if len(answers) < len(files) and "ended" in lines[-1]:
            answers.append(Answer(refused=lines[-1]["ended"], crashed=True))
    return answers


def _job(path: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    inputs = [
        {
            "name": name,
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
        }
        for name, array in feeds.items()
    ]
    return {"model": str(path.resolve()), "inputs": inputs}


def _start(runtime: Runtime, where: str, jobs: Sequence[Any], library: str) -> list[dict[str, Any]]:
    """Returns the lines of a worker; the last one says ``ended`` if it did not come to its end."""
    here = Path(__file__).parent
    if runtime.javascript:
        command = ["node", str(here / "worker.cjs"), runtime.worker, where or "."]
    else:
        command = [where or sys.executable, str(here / "worker.py"), runtime.worker]
    asked = json.dumps({"jobs": jobs, "library": library})
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=WAIT)
    except OSError as error:
        return [{"absent": str(error)}]
    except subprocess.TimeoutExpired as error:
        told = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return [*_lines(told), {"ended": f"it gave no answer in {WAIT} s"}]
    lines = _lines(done.stdout) or [{"absent": (done.stderr.strip().splitlines() or ["it does not start"])[-1]}]
    if done.returncode and "absent" not in lines[0]:
        lines.append({"ended": f"its process ended with {done.returncode}"})
    return lines


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def _answer(line: Mapping[str, Any]) -> Answer:
    if "refused" in line:
        return Answer(refused=str(line["refused"]))
    outputs = (
        np.frombuffer(base64.b64decode(given["data"]), given["dtype"]).reshape(given["shape"])
        for given in line["outputs"]
    )
    return Answer(tuple(outputs), precision=str(line["precision"]))
