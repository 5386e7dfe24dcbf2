"""A death at any point leaves the old pair of model and weights or the new one, and the next command tidies up."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from output_models import contents, locations, trained_models

from laurel_graph.errors import OutputError
from laurel_graph.outputs import write
from laurel_graph.passes.deploy import deploy as deploy_pass
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.verify import VerifyReport

POINTS = ("fsync", "link", "replace", "unlink", "write", "open", "mkdir")
"""What a write is made of: functions of ``os``."""


@pytest.fixture
def unverified(monkeypatch):
    """Deploys without running the models: a forked process must not use threads that it does not have."""
    monkeypatch.setattr(deploy_pass, "check_deployed", lambda *_, **__: VerifyReport(("", ""), 0, ()))


def counted(monkeypatch, act):
    """Lets ``act(count)`` happen before each of the functions in :data:`POINTS`; returns what holds the count."""
    state = {"count": 0}
    for name in POINTS:

        def function(*args, real=getattr(os, name), **kwargs):
            state["count"] += 1
            act(state["count"])
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, function)
    return state


def in_a_child(function):
    """Runs *function* in a forked process; returns its exit status: 0, or 9 where it died on its way."""
    pid = os.fork()
    if not pid:
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying_at(point):
    def act(count):
        if count == point:
            os._exit(9)

    return act


def only_with(folder, *names):
    return {name: digest for name, digest in contents(folder).items() if name in names}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_pair_is_whole_when_the_process_dies_at_any_point(tmp_path, unverified, elsewhere):
    sources = trained_models(tmp_path / "in", alphas=(2.0, -3.0))
    folder = tmp_path / "out" if elsewhere else tmp_path / "in"
    folder.mkdir(exist_ok=True)
    served = folder / "served.onnx"
    if elsewhere:  # a file of somebody else has the name of the weights, so that copies need another one
        (folder / "weights.bin").write_bytes(b"foreign")
    before = contents(folder)
    pairs = []
    for source in sources:
        deploy_file(source, served)
        pairs.append(only_with(folder, "served.onnx", *locations(served)))
        assert {**before, **pairs[-1]} == contents(folder)
    died, point = 9, 0
    while died:
        point += 1
        source = sources[point % 2]

        def run(point=point, source=source):
            with pytest.MonkeyPatch.context() as patch:
                counted(patch, dying_at(point))
                deploy_file(source, served)

        died = in_a_child(run)
        assert died in (0, 9)
        assert only_with(folder, "served.onnx", *locations(served)) in pairs
        write(tmp_path / "elsewhere.txt", b"")  # a command in another folder leaves this one alone
        write(folder / "note.txt", b"next")
        left = contents(folder)
        del left["note.txt"]
        assert left == {**before, **only_with(folder, "served.onnx", *locations(served))}, point
        (folder / "note.txt").unlink()
    assert point > 20


def test_output_is_old_or_new_and_nothing_is_left_when_any_step_fails_once(tmp_path, unverified, monkeypatch):
    sources = trained_models(tmp_path, alphas=(2.0, -3.0))
    served = tmp_path / "served.onnx"
    before = contents(tmp_path)
    pairs = []
    for source in sources:
        deploy_file(source, served)
        pairs.append({**before, **only_with(tmp_path, "served.onnx", *locations(served))})
    refused = point = 0
    while True:
        point += 1

        def fail(count, point=point):
            if count == point:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.MonkeyPatch.context() as patch:
            state = counted(patch, fail)
            try:
                deploy_file(sources[point % 2], served)
            except OutputError as error:
                assert "served.onnx cannot be written: No space left on device" in str(error)
                refused += 1
        if contents(tmp_path) not in pairs:  # a step of the tidying up itself failed: the next command does it
            write(tmp_path / "note.txt", b"next")
            (tmp_path / "note.txt").unlink()
        assert contents(tmp_path) in pairs, point
        if state["count"] < point:
            break
    assert refused > 10


LATE = """
import os, sys
from pathlib import Path
from laurel_graph.outputs import staged
with staged({output!r}) as aside:
    aside.write(b"new")
    aside.space.new_folder().joinpath("inner").write_bytes(b"x")
    print("ready", flush=True)
    import time
    time.sleep(60)
    aside.publish()
"""


def start(output, prepare=""):
    code = prepare + LATE.format(output=str(output))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_temporaries_go_and_the_process_ends_as_ever_when_a_signal_ends_it(tmp_path, number):
    (tmp_path / "out").write_bytes(b"old")
    child = start(tmp_path / "out")
    assert len(contents(tmp_path)) == 4
    child.send_signal(number)
    assert child.wait(20) == -number
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_ignored_signal_stays_ignored_when_a_file_is_written(tmp_path):
    child = start(tmp_path / "out", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    child.send_signal(signal.SIGHUP)
    child.terminate()
    assert child.wait(20) == -signal.SIGTERM


def test_handler_of_the_program_decides_when_it_has_one(tmp_path):
    own = "import signal, os; signal.signal(signal.SIGTERM, lambda *_: exit(5))\n"
    child = start(tmp_path / "out", own)
    child.terminate()
    assert child.wait(20) == 5
    assert not list(tmp_path.iterdir())


def test_next_command_sweeps_when_one_was_killed_but_leaves_a_live_one_alone(tmp_path):
    killed, alive = start(tmp_path / "out"), start(tmp_path / "out")
    killed.kill()
    killed.wait(20)
    assert len(contents(tmp_path)) == 6
    write(tmp_path / "next", b"next")
    left = contents(tmp_path)
    assert len(left) == 4 and "next" in left
    alive.terminate()
    alive.wait(20)
    assert list(contents(tmp_path)) == ["next"]
