"""The battery once more on a library built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from laurel_graph import runtime

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "sanitize"
TESTS = ("test_kernels.py", "test_quantized.py", "test_hostile.py", "test_isa.py", "test_sums.py")


def tool(name):
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


def sanitizer_runtime():
    """What to preload: AddressSanitizer, and the C++ library whose exceptions it wants to see from the start."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [compiler, f"-print-file-name={name}"]
        found.append(Path(subprocess.run(command, capture_output=True, text=True).stdout.strip()))
    return ":".join(str(path.resolve()) for path in found) if all(path.is_absolute() for path in found) else None


def test_battery_passes_when_built_with_sanitizers():
    libasan, cmake, ninja = sanitizer_runtime(), tool("cmake"), tool("ninja")
    if libasan is None or cmake is None or ninja is None:
        pytest.skip("needs Linux, g++ with libasan, cmake and ninja")
    options = ["-DLAUREL_SANITIZE=ON", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if isas := runtime.available_isas():
        options.append(f"-DLAUREL_PATHS={isas[0]}")  # the one that runs here: each takes its time to build
    subprocess.run([cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options], check=True, capture_output=True)
    subprocess.run([cmake, "--build", BUILD], check=True, capture_output=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": libasan,
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "LAUREL_TEST_LIBRARY": str(BUILD / "liblaurel_ops.so"),
    }
    # Without capture, so that a report of the sanitizers on the way to the exit is not lost.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist"]
    files = [str(Path(__file__).with_name(name)) for name in TESTS]
    result = subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
