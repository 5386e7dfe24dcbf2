"""The command line as a user types it: results on stdout, errors in one line, exit codes, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import mlp
from onnx import TensorProto, helper


def laurel(*args, cwd=None):
    """Runs the command in a process of its own and returns (exit code, stdout, stderr)."""
    command = [sys.executable, "-c", "from laurel_graph.tools.cli import main; main()", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mlp.onnx"
    onnx.save(mlp(3), path)
    return path


@pytest.fixture(scope="module")
def transformed(model):
    path = model.parent / "mlp.laurel.onnx"
    assert laurel("transform", model, "-o", path, "--variant", "rw+lr+pa", "--rank", "4")[0] == 0
    return path


def test_apply_refuses_the_adapter_of_another_base_unless_told_not_to_check(transformed, tmp_path):
    import laurel_graph as lg

    onnx.save(mlp(3, seed=1), tmp_path / "other.onnx")
    config = lg.LaurelConfig(variant="rw+lr+pa", rank=4)
    lg.transform(tmp_path / "other.onnx", config, output=tmp_path / "other.laurel.onnx")
    adapter = lg.save_adapter(tmp_path / "other.laurel.onnx", tmp_path / "a.safetensors")
    out = tmp_path / "out.onnx"
    code, _, err = laurel("apply", transformed, adapter, "-o", out)
    assert code == 2 and not out.exists()
    sentences = [line for line in err.splitlines() if line.startswith("laurel: ")]
    assert len(sentences) == 1 and "was trained on another base: 6 of its 6 weights differ" in sentences[0]
    assert "--no-check-base" in sentences[0]
    assert laurel("apply", transformed, adapter, "-o", out, "--no-check-base")[0] == 0
    assert out.exists()


def test_inspect_prints_one_json_object_when_asked(model):
    code, out, _ = laurel("inspect", model, "--json")
    found = json.loads(out)
    assert code == 0 and found["model"] == str(model)
    assert [r["join"] for r in found["residuals"]] == [f"/block.{i}/Add" for i in range(3)]
    assert {"site", "kind", "skip", "branch", "join", "axis", "width", "dtype", "stream", "index"} <= set(
        found["residuals"][0]
    )


def test_inspect_prints_a_table_when_not_asked_for_json(model):
    code, out, _ = laurel("inspect", model)
    assert code == 0 and "3 identity" in out and "/block.1/Add" in out


def test_transform_counts_parameters_as_the_paper_when_done(model, tmp_path):
    code, out, _ = laurel("transform", model, "-o", tmp_path / "t.onnx", "--variant", "lr", "--rank", "4", "--json")
    report = json.loads(out)
    assert code == 0 and [site["parameters"] for site in report["sites"]] == [2 * 4 * 16] * 3
    assert report["parameters"] == 3 * 2 * 4 * 16


def test_transform_takes_overrides_and_a_config_file_when_given(model, tmp_path):
    sites = [r["site"] for r in json.loads(laurel("inspect", model, "--json")[1])["residuals"]]
    out = tmp_path / "t.onnx"
    flags = ("--override", f"{sites[0]}=off", "--override", f"{sites[1]}=lr:2", "--variant", "rw")
    report = json.loads(laurel("transform", model, "-o", out, *flags, "--json")[1])
    assert [(s["site"], s["variant"], s["rank"]) for s in report["sites"]] == [
        (sites[1], "lr", 2),
        (sites[2], "rw", 0),
    ]
    assert [skip["site"] for skip in report["skipped"]] == [sites[0]]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"format": 1, "variant": "pa", "previous": 1}))
    report = json.loads(laurel("transform", model, "-o", out, "--config", config, "--json")[1])
    assert {s["variant"] for s in report["sites"]} == {"pa"}


def test_remove_gives_the_same_file_back_when_transformed(model, transformed, tmp_path):
    assert laurel("remove", transformed, "-o", tmp_path / "back.onnx")[0] == 0
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()


def test_verify_is_equal_when_nothing_was_trained(model, transformed):
    code, out, _ = laurel("verify", model, transformed, "--json")
    report = json.loads(out)
    assert code == 0 and report["equal"] and report["samples"] == 3  # two batches, and rows up to 24 places


def test_verify_answers_no_when_outputs_differ(model, tmp_path):
    other = mlp(3, seed=1)
    onnx.save(other, tmp_path / "other.onnx")
    code, out, _ = laurel("verify", model, tmp_path / "other.onnx")
    assert code == 1 and "no" in out


def test_verify_runs_on_the_users_data_when_given(model, transformed, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((5, 16), np.float32))
    code, out, _ = laurel("verify", model, transformed, "--data", tmp_path / "data.npz", "--json")
    assert code == 0 and json.loads(out)["outputs"][0]["shape"] == [5, 16]


def test_doctor_tells_versions_and_what_runs_when_asked():
    code, out, _ = laurel("doctor", "--json")
    report = json.loads(out)
    assert code == 0 and report["versions"]["onnxruntime"] and report["kernels"]["in use"]


def test_inspect_takes_a_callable_when_the_model_is_torch(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Block(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Linear(8, 8)\n"
        "    def forward(self, x):\n"
        "        return x + torch.relu(self.a(x))\n"
        "def make():\n"
        "    return torch.nn.Sequential(Block(), Block()), torch.ones(2, 8)\n"
        "def make_open():\n"
        "    return *make(), ({0: torch.export.Dim('n')},)\n"
    )
    code, out, _ = laurel("inspect", "net:make", "--json", cwd=tmp_path)
    assert code == 0 and [r["site"] for r in json.loads(out)["residuals"]] == ["0.res1", "1.res1"]
    code, _, err = laurel("transform", "net:make", "-o", tmp_path / "net.onnx", cwd=tmp_path)
    assert code == 0, err
    assert any(n.domain == "ai.laurel" for n in onnx.load(tmp_path / "net.onnx").graph.node)
    code, _, err = laurel("transform", "net:make_open", "-o", tmp_path / "open.onnx", cwd=tmp_path)
    assert code == 0, err
    assert onnx.load(tmp_path / "open.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


def add_only() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["y"])], "add", values[:2], values[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bad_inputs(folder: Path, model: Path) -> dict[str, tuple[int, list, list[str]]]:
    """Case to (exit code, arguments, words that the one line must have)."""
    (folder / "text.onnx").write_text("this is not a model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "truncated.onnx").write_bytes(model.read_bytes()[:-300])
    onnx.save(add_only(), folder / "add.onnx")
    out = folder / "out.onnx"
    return {
        "missing": (2, ["inspect", folder / "absent.onnx"], ["absent.onnx"]),
        "missing_transform": (2, ["transform", folder / "absent.onnx", "-o", out], ["absent.onnx"]),
        "not_onnx": (2, ["inspect", folder / "text.onnx"], ["text.onnx"]),
        "empty": (2, ["inspect", folder / "empty.onnx"], ["empty"]),
        "truncated": (2, ["transform", folder / "truncated.onnx", "-o", out], ["truncated.onnx"]),
        "directory": (2, ["inspect", folder], ["directory"]),
        "no_residuals": (1, ["transform", folder / "add.onnx", "-o", out], ["residual"]),
        "selector": (2, ["transform", model, "-o", out, "--sites", "nowhere.*"], ["nowhere.*"]),
        "rank_zero": (2, ["transform", model, "-o", out, "--rank", "0"], ["rank", "0"]),
        "rank_large": (2, ["transform", model, "-o", out, "--rank", "17"], ["rank", "17", "16"]),
        "variant": (2, ["transform", model, "-o", out, "--variant", "zz"], ["variant", "zz"]),
        "output_is_input": (2, ["transform", model, "-o", model], [str(model)]),
        "output_folder": (2, ["transform", model, "-o", folder / "no" / "such" / "out.onnx"], ["no"]),
        "output_directory": (2, ["transform", model, "-o", folder], ["directory"]),
        "remove_plain": (2, ["remove", model, "-o", out], ["nothing to remove"]),
        "adapter": (2, ["apply", model, folder / "absent.safetensors", "-o", out], ["absent.safetensors"]),
        "verify_data": (2, ["verify", model, model, "--data", folder / "absent.npz"], ["absent.npz"]),
        "verify_other": (2, ["verify", model, folder / "add.onnx"], []),
        "verify_size": (2, ["verify", model, model, "--size", "n=x"], ["--size"]),
        "verify_symbol": (2, ["verify", model, model, "--size", "q=3"], ["'q'", "'n'"]),
        "override": (2, ["transform", model, "-o", out, "--override", "a"], ["--override"]),
        "callable": (2, ["inspect", "no.such.module:make"], ["no.such.module"]),
        "ranks_without_sweep": (2, ["finetune", model, "--data", "d.npz", "--ranks", "4"], ["--ranks", "laurel sweep"]),
        "seeds_without_sweep": (2, ["finetune", model, "--data", "d.npz", "--seeds", "4"], ["--seeds", "laurel sweep"]),
    }


CASES = [
    "missing",
    "missing_transform",
    "not_onnx",
    "empty",
    "truncated",
    "directory",
    "no_residuals",
    "selector",
    "rank_zero",
    "rank_large",
    "variant",
    "output_is_input",
    "output_folder",
    "output_directory",
    "remove_plain",
    "adapter",
    "verify_data",
    "verify_other",
    "verify_size",
    "verify_symbol",
    "override",
    "callable",
    "ranks_without_sweep",
    "seeds_without_sweep",
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gives_one_clear_line_when(case, model, tmp_path):
    before = model.read_bytes()
    code, args, words = bad_inputs(tmp_path, model)[case]
    files = sorted(tmp_path.iterdir())
    got, out, err = laurel(*args)
    lines = [line for line in err.splitlines() if line and not line.endswith("...")]
    assert got == code, err
    assert "Traceback" not in err and out == ""
    assert len(lines) == 1 and lines[0].startswith("laurel: "), err
    assert all(word in lines[0] for word in words), lines[0]
    assert sorted(tmp_path.iterdir()) == files and model.read_bytes() == before
