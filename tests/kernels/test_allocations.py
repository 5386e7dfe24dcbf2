"""What a run asks of the heap: nothing but its outputs and ONNX Runtime's own few bytes of bookkeeping."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from laurel_graph import runtime

HERE = Path(__file__).parent
BOOKKEEPING = 512
"""More bytes than ONNX Runtime's largest request for the shape of a tensor, fewer than a row of the arrays below."""

pytestmark = [
    pytest.mark.skipif(runtime.library_path() is None, reason="the library of kernels is not built"),
    pytest.mark.skipif(
        shutil.which("g++") is None or platform.libc_ver()[0] != "glibc",
        reason="needs g++ and the GNU C library",
    ),
]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A function: list of (rows, D, rank, variant, layout, threads, constant) to list of (bytes, largest request)."""
    counter = tmp_path_factory.mktemp("allocations") / "count.so"
    source = HERE / "count_allocations.cc"
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", source, "-o", counter], check=True)

    def run(cases):
        result = subprocess.run(
            [sys.executable, HERE / "allocations.py"],
            input=json.dumps(cases),
            env={**os.environ, "LD_PRELOAD": str(counter)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_run_asks_for_bookkeeping_alone_when_parameters_are_constant(asked):
    cases = [
        (rows, width, rank, variant, layout, threads, True)
        for rows, width, rank, variant, layout in (
            (1, 768, 0, "rw", "tokens"),
            (1000, 768, 0, "rw", "tokens"),
            (1, 2048, 64, "rw+lr", "tokens"),
            (500, 384, 4, "lr", "tokens"),
            (1000, 1024, 64, "rw+lr", "tokens"),
            (100, 512, 16, "rw+lr+pa3", "tokens"),
            (100, 512, 16, "lr+pal3", "tokens"),
            (300, 640, 16, "rw+lr+layernorm", "tokens"),
            (300, 640, 16, "lr+rmsnorm", "tokens"),
            (784, 512, 16, "rw+lr+relu", "2d"),
            (49, 2048, 64, "rw+lr", "2d"),
        )
        for threads in (1, 2)
    ]
    for case, (total, largest) in zip(cases, asked(cases), strict=True):
        assert largest < BOOKKEEPING, case
        assert total < 16 * BOOKKEEPING, case


def test_count_sees_the_packed_factors_when_they_change_between_runs(asked):
    ((_, largest),) = asked([(8, 512, 16, "rw+lr", "tokens", 1, False)])
    assert largest >= 2 * 512 * 16 * 4
