"""A small fixed share of the damaged models of ``laurel_graph.tools.robustness.mutants``, and what it counts."""

import os
import signal
import subprocess
import sys
from random import Random

import pytest

from laurel_graph.errors import ModelError
from laurel_graph.tools.robustness import mutants
from laurel_graph.tools.robustness.mutant_models import sound_models
from laurel_graph.tools.robustness.mutations import mutate

COUNT = 36


def test_no_mutant_leaves_an_entry_point_unhandled_when_a_fixed_sample_is_run(tmp_path):
    command = [
        sys.executable,
        "-m",
        "laurel_graph.tools.robustness.mutants",
        "--count",
        str(COUNT),
        "--keep",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    assert f"{COUNT} mutants, 0 not handled" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_mutants_are_the_same_when_the_seed_is_and_other_models_than_before():
    data = [model.SerializeToString() for model in sound_models().values()]
    first, again = ([mutate(data[0], data[1], Random(f"0 {i}")) for i in range(40)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 30 and first.count(data[0]) < 5


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("work", "status", "detail"),
    [
        (lambda: None, mutants.DONE, ""),
        (lambda: _raise(ModelError("no.")), mutants.REFUSED, "no."),
        (lambda: _raise(KeyError("k")), mutants.TRACEBACK, "KeyError at "),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), mutants.CRASH, "SIGSEGV"),
        (lambda: sum(iter(int, 1)), mutants.HANG, "more than 1 s"),
    ],
)
def test_a_child_is_told_apart_when_it_ends_in_another_way(work, status, detail):
    found, text, _ = mutants._in_child(work, 1)
    assert found == status and text.startswith(detail)


def test_a_child_shows_the_memory_that_it_took_when_it_ended():
    idle, busy = (mutants._in_child(work, 5)[2] for work in (lambda: None, lambda: bytearray(300 * 2**20).clear()))
    assert 200 * 2**20 < busy - idle < 400 * 2**20
