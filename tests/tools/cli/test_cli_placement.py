"""What ``laurel transform`` says of sites that it leaves whole, and of a model that it is not to run."""

import json
import subprocess
import sys

import onnx
from models import onnx_text


def transformed(*args):
    """Runs ``laurel transform --json`` in a process of its own; returns its report."""
    command = [sys.executable, "-c", "from laurel_graph.tools.cli import main; main()", "transform", *map(str, args)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_fused_adds_stay_whole_and_nothing_is_run_when_flags_say_so(tmp_path):
    conv = "com.microsoft.FusedConv<pads = [1, 1, 1, 1]>"
    text = f"(float[n, 8, 6, 6] x) => (float[n, 8, 6, 6] y) {{ a = Relu(x) b = {conv}(a, k, , x) c = Relu(b) " \
        "d = Conv<pads = [1, 1, 1, 1]>(c, k) y = Add(b, d) }"  # fmt: skip
    source, output = tmp_path / "fused.onnx", tmp_path / "out.onnx"
    onnx.save(onnx_text(text, {"k": (8, 8, 3, 3)}, 17), source)
    kept = transformed(source, "-o", output, "--rank", 2, "--keep-fused", "--no-run")
    assert [site["site"] for site in kept["sites"]] == ["res_y"]
    assert kept["skipped"] == [{"site": "res_b", "reason": "its add is hidden in FusedConv, which is to be kept"}]
    assert kept["notes"] == [] and output.is_file()
