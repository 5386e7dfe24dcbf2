"""Our slots, fields and constants of ONNX Runtime's C API against the official headers, where they are installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDERS = ("/usr/include/onnxruntime", "/usr/include", "/usr/local/include/onnxruntime", "/usr/local/include")


def include_dir():
    folders = [os.environ["ORT_INCLUDE_DIR"]] if "ORT_INCLUDE_DIR" in os.environ else FOLDERS
    return next((f for f in folders if (Path(f) / "onnxruntime_c_api.h").is_file()), None)


def test_every_slot_equals_the_official_header_when_it_is_installed():
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    headers = include_dir()
    if compiler is None or headers is None:
        pytest.skip(
            "needs a C++ compiler and onnxruntime_c_api.h: "
            "set ORT_INCLUDE_DIR, or install libonnxruntime-dev (Debian 13)"
        )
    kernels = Path(__file__).parents[2] / "laurel_graph" / "kernels"
    command = [compiler, "-std=c++17", "-fsyntax-only", "-I", headers, "-I", str(kernels)]
    result = subprocess.run(
        [*command, str(Path(__file__).with_name("abi_check.cc"))], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
