"""Kills commands at random moments, and runs many at once, and counts what they leave behind.

    python -m laurel_graph.tools.robustness.fault_injection --kills 200 --parallel 12

Every command runs in a forked process on small models whose weights lie in files of their own. After each kill the
output must be whole, old or new, with its weight files; the inputs must have their bytes; and once the next command
has written into the folder, no file may lie there that no model needs. It exits with 1 where that does not hold.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.adapters import apply_adapter, save_adapter
from laurel_graph.config import LaurelConfig
from laurel_graph.onnx_file import read
from laurel_graph.onnx_model.weight_file import weight_locations
from laurel_graph.outputs import write
from laurel_graph.passes.deploy.deploy import deploy_file
from laurel_graph.passes.pipeline import transform
from laurel_graph.tools.console import print_json

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
State = dict[str, str]
"""Names of files and digests of what they hold."""


@dataclass(frozen=True)
class Command:
    """A command with two results that differ.

    Attributes:
        name: what it is.
        output: the file it writes.
        run: runs it; its argument, 0 or 1, chooses the result.
    """

    name: str
    output: Path
    run: Callable[[int], object]


def make_models(folder: Path, width: int = 256) -> None:
    """Writes a model with its weights outside, two trained versions of it, and their adapters."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for i in range(3):
        for name in (f"u{i}", f"v{i}"):
            array = rng.standard_normal((width, width)).astype(np.float32) / width
            weights.append(numpy_helper.from_array(array, name))
        y = f"y{i}"
        nodes += [
            helper.make_node("MatMul", [x, f"u{i}"], [f"h{i}"]),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"v{i}"], [f"f{i}"]),
            helper.make_node("Add", [x, f"f{i}"], [y]),
        ]
        x = y
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "model", infos[:1], infos[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "plain.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    transform(folder / "plain.onnx", LaurelConfig(variant="rw", weights="free"), output=folder / "t.onnx")
    for number, alpha in enumerate((2.0, -3.0)):
        trained = read(folder / "t.onnx")
        for tensor in trained.graph.initializer:
            if tensor.name.endswith(".alpha"):
                tensor.CopyFrom(numpy_helper.from_array(np.array(alpha, np.float32), tensor.name))
        onnx.save_model(trained, folder / f"t{number}.onnx")
        save_adapter(folder / f"t{number}.onnx", folder / f"a{number}.safetensors")


def commands(root: Path) -> list[Command]:
    """Returns what is killed; the models lie in ``in``, and ``out`` has a foreign file of the name of their weights."""
    made, out = root / "in", root / "out"
    configs = [LaurelConfig(variant=variant) for variant in ("rw", "lr")]
    return [
        Command("deploy", made / "served.onnx", lambda i: deploy_file(made / f"t{i}.onnx", made / "served.onnx")),
        Command("deploy elsewhere", out / "s.onnx", lambda i: deploy_file(made / f"t{i}.onnx", out / "s.onnx")),
        Command(
            "transform elsewhere",
            root / "free" / "t.onnx",
            lambda i: transform(made / "plain.onnx", configs[i], output=root / "free" / "t.onnx"),
        ),
        Command(
            "apply",
            made / "applied.onnx",
            lambda i: apply_adapter(made / "t.onnx", made / f"a{i}.safetensors", made / "applied.onnx"),
        ),
        Command("save_adapter", made / "a", lambda i: save_adapter(made / f"t{i}.onnx", made / "a")),
    ]


def in_a_child(function: Callable[[], object]) -> int:
    """Runs *function* in a forked process and returns the process's number."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            function()
            code = 0
        except Exception as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Waits for a process and returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def state_of(folder: Path) -> State:
    """Returns path to digest of all files under *folder*."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pair_of(output: Path) -> State:
    """Returns the state of an output and its weight files; empty where it does not exist."""
    if not output.exists():
        return {}
    names = [output.name, *(weight_locations(read(output)) if output.suffix == ".onnx" else ())]
    return {name: digest for name, digest in state_of(output.parent).items() if name in names}


def kill_at_random(command: Command, kills: int, rng: random.Random) -> Counter[str]:
    """Kills *command* so often; returns how many outputs were torn, files left over and inputs changed."""
    found: Counter[str] = Counter()
    folder, wholes, seconds = command.output.parent, [], 0.0
    before = state_of(folder)
    for i in (0, 1):
        began = time.perf_counter()
        if ended(in_a_child(lambda i=i: command.run(i))):  # type: ignore[misc]
            raise SystemExit(f"{command.name} fails by itself")
        seconds = time.perf_counter() - began
        wholes.append(pair_of(command.output))
    for i in range(kills):
        pid = in_a_child(lambda i=i: command.run(i % 2))  # type: ignore[misc]
        time.sleep(rng.uniform(0, 1.05 * seconds))
        number = SIGNALS[i % len(SIGNALS)]
        os.kill(pid, number)
        found[f"ended by {number.name}"] += ended(pid) == -number
        pair = pair_of(command.output)
        found["files before the next command"] += len(state_of(folder).keys() - before.keys() - pair.keys())
        found["torn"] += pair not in wholes
        if ended(in_a_child(lambda: write(folder / "next", b""))):
            found["torn"] += 1
        (folder / "next").unlink()
        left = state_of(folder)
        found["left over"] += len(left.keys() - before.keys() - pair.keys())
        found["inputs changed"] += any(left.get(name) != digest for name, digest in before.items())
    return found


def at_once(command: Command, count: int) -> Counter[str]:
    """Runs *command* so often at once; returns what is wrong afterwards."""
    folder = command.output.parent
    wholes = []
    before = {name: digest for name, digest in state_of(folder).items() if name not in pair_of(command.output)}
    for i in (0, 1):
        ended(in_a_child(lambda i=i: command.run(i)))  # type: ignore[misc]
        wholes.append(pair_of(command.output))
    pids = [in_a_child(lambda i=i: command.run(i % 2)) for i in range(count)]  # type: ignore[misc]
    failed = sum(ended(pid) != 0 for pid in pids)
    pair, left = pair_of(command.output), state_of(folder)
    torn = pair not in wholes
    over = left.keys() - before.keys() - pair.keys()
    return Counter({"failed": failed, "torn": int(torn), "left over": len(over)})


def main(
    kills: Annotated[int, typer.Option(min=1, help="Kills in all.")] = 200,
    parallel: Annotated[int, typer.Option(min=2, help="How many deployments run at once.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
) -> None:
    """Kill commands at random moments and count torn outputs, files left over and inputs changed."""
    rng = random.Random(seed)
    report: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("in", "out", "free"):
            (root / name).mkdir()
        make_models(root / "in")
        (root / "out" / "weights.bin").write_bytes(b"foreign")
        chosen = commands(root)
        for i, command in enumerate(chosen):
            share = kills // len(chosen) + (i < kills % len(chosen))
            report[command.name] = dict(kill_at_random(command, share, rng))
        for command in chosen[:2]:
            report[f"{parallel} at once: {command.name}"] = dict(at_once(command, parallel))
    print_json(report)
    bad = ("torn", "left over", "inputs changed", "failed")
    if any(counts.get(name) for counts in report.values() for name in bad):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
