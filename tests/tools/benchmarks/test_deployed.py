"""A deployed file is timed beside what it was made from, and the words about the figures are those of the figures."""

import json

import onnx
import pytest
from deploy_models import NET, laurel_model
from typer.testing import CliRunner

import laurel_graph as lg
from laurel_graph.tools.benchmarks.deployed import measure_deployed
from laurel_graph.tools.benchmarks.latency import BenchRow, findings
from laurel_graph.tools.cli import app


def row(model, ms, ratio, low, high):
    return BenchRow(model, 1, 1, 40, ms, (ms, ms), ratio, (low, high))


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [
        (1.2, 1.17, 1.23, "b.onnx is slower than a.onnx: 1.2 ms against 1 ms, ratio 1.200"),
        (1.2, 0.9, 1.4, "is noise: half of the paired runs lie outside 0.900 to 1.400"),
        (1.03, 0.99, 1.05, ""),
        (1.01, 1.005, 1.015, ""),
        (0.8, 0.79, 0.81, ""),
        (0.8, 0.6, 1.1, "is noise"),
    ],
)
def test_findings_call_a_ratio_slow_or_noise_when_its_quartiles_do(ratio, low, high, words):
    found = findings([row("a.onnx", 1.0, 1.0, 1.0, 1.0), row("x/b.onnx", ratio, ratio, low, high)])
    assert (words in found[0] and len(found) == 1) if words else found == []


def test_findings_say_nothing_when_there_is_nothing_to_compare_with():
    assert findings([BenchRow("a.onnx", 1, 1, 40, 1.0, (1.0, 1.0))]) == []


@pytest.fixture
def files(tmp_path):
    model = laurel_model(NET)
    del model.opset_import[1:]
    onnx.save(model, tmp_path / "original.onnx")
    lg.transform(tmp_path / "original.onnx", lg.LaurelConfig(variant="rw"), output=tmp_path / "trained.onnx")
    return tmp_path


def test_deployed_file_is_timed_beside_the_trained_and_the_original(files):
    lg.deploy(files / "trained.onnx", files / "deployed.onnx")
    before = sorted(files.iterdir())
    measured = measure_deployed(files / "trained.onnx", files / "deployed.onnx", threads=1, runs=3)
    assert [name for name, _, _ in measured.pairs] == ["trained", "original"]
    assert all(row.model == str(files / "deployed.onnx") and row.ratio > 0 for _, _, row in measured.pairs)
    assert len(measured.rows) == 4
    assert sorted(files.iterdir()) == before


def test_original_is_said_to_be_missing_when_it_cannot_be_had(files):
    lg.deploy(files / "trained.onnx", files / "deployed.onnx")
    measured = measure_deployed(files / "deployed.onnx", files / "deployed.onnx", threads=1, runs=2)
    assert [name for name, _, _ in measured.pairs] == ["trained"]
    assert "not timed beside the original" in measured.notes[0]


def test_deploy_prints_its_times_when_it_is_asked_to_measure(files):
    arguments = ["deploy", str(files / "trained.onnx"), "-o", str(files / "deployed.onnx"), "--measure"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["measured"]) == 4
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "deployed beside the trained and the original" in shown.stdout
