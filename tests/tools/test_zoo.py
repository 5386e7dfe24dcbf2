"""Detection on a fixed fifth of the zoo, and the zoo's own arithmetic."""

import json

import onnx
import pytest

from laurel_graph.errors import ModelError
from laurel_graph.tools.zoo import deploy as zoo_deploy
from laurel_graph.tools.zoo.architectures import read_zoo
from laurel_graph.tools.zoo.detection import Row, main, measure, totals

FIFTH = [entry for entry in read_zoo()[3::5] if entry.name != "gemma3n"]


@pytest.mark.parametrize("entry", FIFTH, ids=lambda entry: entry.name)
def test_detect_finds_every_join_when_an_architecture_is_exported(entry):
    ((row, _),) = measure(entry, ["export"])
    assert not row.failure
    assert (row.false, row.missed, row.split or 0) == (0, 0, 0)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_sites_have_the_same_names_when_the_model_is_onnx_or_quantised(name):
    entry = next(entry for entry in read_zoo() if entry.name == name)
    (_, fx), (row, onnx), *others = measure(entry, ["export", "onnx", "qdq", "int8", "fp16"])
    assert (row.false, row.missed, row.split) == (0, 0, 0)
    assert [residual.site for residual in fx.residuals] == [residual.site for residual in onnx.residuals]
    assert [residual.stream for residual in fx.residuals] == [residual.stream for residual in onnx.residuals]
    for other, found in others:
        assert not other.failure
        assert [(residual.site, residual.kind, residual.join) for residual in found.residuals] == [
            (residual.site, residual.kind, residual.join) for residual in onnx.residuals
        ]


def test_totals_count_false_and_missed_when_rows_are_wrong():
    rows = [Row("a", "onnx", 4, 5, 1, 0, 0, 10, 2.0), Row("b", "onnx", 4, 3, 0, 1, 0, 30, 4.0)]
    rows.append(Row("c", "onnx", failure="no such graph"))
    (total,) = totals(rows)
    assert (total.graphs, total.precision, total.recall, total.micros) == (2, 0.875, 0.875, 3.5)


def test_read_zoo_says_what_is_wrong_when_the_file_is_another(tmp_path):
    (tmp_path / "zoo.json").write_text("{}")
    with pytest.raises(ModelError, match="preamble"):
        read_zoo(tmp_path / "zoo.json")
    assert main([str(tmp_path / "none.json")]) == 2


def test_main_prints_json_when_asked(tmp_path, capsys):
    data = {
        "preamble": "import torch",
        "architectures": {
            "tiny": {
                "build": "torch.nn.Sequential(torch.nn.Linear(4, 4))",
                "inputs": "args: (torch.ones(1, 4),)",
                "joins": 0,
            }
        },
    }
    (tmp_path / "zoo.json").write_text(json.dumps(data))
    assert main([str(tmp_path / "zoo.json"), "--kinds", "symbolic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"][0]["precision"] == 1.0


def test_zoo_deploy_prints_one_row_per_variant_of_a_file(tmp_path, capsys):
    from deploy_models import laurel_model

    model = laurel_model("""(float[N,8] x) => (float[N,8] y)
    f = MatMul(x, W[8,8])
    s = Add(x, f)
    y = MatMul(s, V[8,8])
    """)
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "no.onnx").write_text("no model")
    files = [str(tmp_path / name) for name in ("net.onnx", "no.onnx")]
    assert zoo_deploy.main(["--models", *files, "--variants", "rw,rw+lr", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["model"], row["variant"], bool(row["failure"])) for row in rows] == [
        ("net", "rw", False),
        ("net", "rw+lr", False),
        ("no", "rw", True),
        ("no", "rw+lr", True),
    ]
    assert all(row["difference"] <= 2e-5 and row["portable"] <= 2e-5 for row in rows[:2])
    assert rows[2]["failure"].startswith("transform: ModelError")
