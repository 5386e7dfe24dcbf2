"""What the command line does when something fails that is no user's mistake: one line, 3, and a traceback on demand."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

START = "from laurel_graph.tools.entry import main; main()"
BROKEN = """
import laurel_graph.passes.pipeline as pipeline
def inspect(*_):
    raise ValueError("an invariant\\ndoes not hold")
pipeline.inspect = inspect
"""
INTERRUPTED = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "laurel_graph.tools.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
"""


def laurel(*args, before="", env=None):
    command = [sys.executable, "-c", before + START, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mlp.onnx"
    text = """<ir_version: 8, opset_import: ["" : 17]>
    mlp (float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w)  r = Relu (h)  y = Add (x, r) }"""
    made = parser.parse_model(text)
    made.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    onnx.save(made, path)
    return path


def test_a_fault_of_ours_is_one_line_and_3_when_nothing_else_is_asked(model):
    code, out, err = laurel("inspect", model, before=BROKEN)
    (line,) = [line for line in err.splitlines() if "inspecting" not in line]
    assert code == 3 and out == "" and "Traceback" not in err
    assert line.startswith("laurel: internal error: ValueError: an invariant does not hold (<string>, line 4)")
    assert line.endswith("please report it; --debug shows the traceback")


@pytest.mark.parametrize(
    ("args", "env"), [(["--debug", "inspect"], {}), (["inspect", "--debug"], {}), (["inspect"], {"LAUREL_DEBUG": "1"})]
)
def test_a_fault_of_ours_shows_its_traceback_when_asked_anywhere(args, env, model):
    code, _, err = laurel(*args, model, before=BROKEN, env=env)
    assert code == 3 and "Traceback (most recent call last)" in err and "internal error" in err


def test_a_users_mistake_stays_2_and_one_line_when_debug_is_not_asked(model, tmp_path):
    path = tmp_path / "none.onnx"
    lines = [f"inspecting {path} ...", f"laurel: no such file: {path}; expected an ONNX model."]
    assert laurel("inspect", path) == (2, "", "\n".join(lines) + "\n")
    assert "Traceback" in laurel("inspect", path, "--debug")[2]


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_command_ends_quietly_when_nobody_reads_its_output(json, model):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", START, "inspect", str(model), *json], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 0 and done.stderr == f"inspecting {model} ...\n".encode()


def test_a_command_runs_when_it_has_no_output_at_all(model):
    done = subprocess.run(f'"{sys.executable}" -c "{START}" inspect "{model}" >&- 2>&-', shell=True, check=False)
    assert done.returncode == 0


def test_an_interrupt_is_quiet_when_it_comes_while_starting():
    assert laurel("--help", before=INTERRUPTED) == (130, "", "")


def test_an_interrupt_is_quiet_when_it_comes_while_working(model, tmp_path):
    waits = "import time, laurel_graph.passes.pipeline as p\np.inspect = lambda *_: time.sleep(60)\n"
    command = [sys.executable, "-c", waits + START, "inspect", str(model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert b"inspecting" in process.stderr.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")
