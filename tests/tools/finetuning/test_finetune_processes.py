"""The whole command ``laurel finetune`` in processes of its own: two share the work, one is killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from finetune_toy import toy_data, toy_onnx
from safetensors.numpy import load_file
from tolerance import assert_close

import laurel_graph as lg

COMMAND = ["-c", "from laurel_graph.tools.cli import main; main()", "finetune"]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]


@pytest.fixture
def start(tmp_path):
    """Starts the command on a transformed file; *name* is that of the files it writes."""
    toy_onnx(tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", lg.LaurelConfig(variant="rw+lr", rank=3), output=tmp_path / "model.onnx")
    data = toy_data(301)
    np.savez(tmp_path / "train.npz", **data.batch(range(len(data))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def run(name, *flags, launcher=()):
        options = ["--data", str(tmp_path / "train.npz"), "--validation", "0.2", "--value", "probabilities"]
        options += ["-o", str(tmp_path / f"{name}.onnx"), "--adapter", str(tmp_path / f"{name}.safetensors")]
        command = [sys.executable, *launcher, *COMMAND, str(tmp_path / "model.onnx"), *options, *flags]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return run


def finished(process):
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-2000:]


def test_command_in_two_processes_equals_one_when_the_batch_is_shared(start, tmp_path):
    flags = ("--epochs", "4", "--batch-size", "16", "--lr", "0.02", "--quiet")
    finished(start("one", *flags))
    finished(start("two", *flags, launcher=LAUNCHER))
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and any(np.abs(value).max() > 0 for name, value in one.items() if name[-1] == "B")
    for name, expected in one.items():
        assert_close(two[name], expected)


def test_command_continues_to_the_same_bytes_when_it_was_killed(start, tmp_path):
    flags = ("--epochs", "4", "--batch-size", "8", "--checkpoint-every", "1", "--quiet")
    checkpoint = tmp_path / "cut.onnx.checkpoint"
    process, deadline = start("cut", *flags), time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut.onnx").exists()
    finished(start("cut", *flags, "--resume"))
    finished(start("whole", *flags))
    for suffix in (".onnx", ".safetensors"):
        assert (tmp_path / f"cut{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
