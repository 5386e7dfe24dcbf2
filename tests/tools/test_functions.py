"""The commands as functions, and how results show themselves."""

import numpy as np
import onnx
import pytest
from models import mlp

import laurel_graph as lg
from laurel_graph.errors import ConfigError
from laurel_graph.tools.finetuning.data_files import read_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions")
    onnx.save(mlp(40, 8), path / "m.onnx")
    lg.transform(path / "m.onnx", "rw+lr", output=path / "t.onnx")
    x = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
    np.savez(path / "d.npz", x=x, label=x.argmax(1))
    return path


def test_finetune_takes_a_file_or_arrays_and_trains_the_same(folder, tmp_path):
    with np.load(folder / "d.npz") as arrays:
        held = dict(arrays)
    common = {"validation": 0.25, "epochs": 2, "lr": 1e-3, "quiet": True}
    one = lg.finetune(folder / "t.onnx", folder / "d.npz", tmp_path / "a.onnx", **common)
    two = lg.finetune(folder / "t.onnx", held, tmp_path / "b.onnx", **common)
    assert one.training.history == two.training.history
    tensors = [{t.name: t.SerializeToString() for t in onnx.load(tmp_path / f"{name}.onnx").graph.initializer}
               for name in "ab"]  # fmt: skip
    assert tensors[0] == tensors[1]
    assert lg.finetune(
        folder / "t.onnx", held, tmp_path / "c.onnx", validation=held, epochs=1, quiet=True
    ).training.after


def test_sweep_takes_arrays_and_variants_in_a_row(folder):
    held = read_data(str(folder / "d.npz"))
    arrays = {name: held.values(name) for name in held.names}
    swept = lg.sweep(folder / "t.onnx", arrays, "rw", seeds=(0,), validation=0.25, epochs=1, quiet=True)
    assert [row.variant for row in swept.rows] == ["rw"]
    assert "rw: accuracy" in repr(swept)


def test_options_that_are_none_are_answered_with_near_names(folder):
    with pytest.raises(ConfigError, match=r"no option 'epohcs'.*epochs"):
        lg.finetune(folder / "t.onnx", folder / "d.npz", epohcs=3)
    with pytest.raises(ConfigError, match=r"no option 'rnus'.*runs"):
        lg.bench(folder / "m.onnx", rnus=3)


def test_bench_report_and_doctor_are_the_commands(folder, tmp_path):
    measured = lg.bench([folder / "m.onnx", folder / "t.onnx"], runs=2, fresh=0)
    assert [row.ratio is None for row in measured.rows] == [False, False]
    assert set(measured.to_dict()) == {"rows", "notes"}
    assert lg.report(folder / "t.onnx", tmp_path / "p.html").read_text().startswith("<!doctype html>")
    assert lg.doctor()["versions"] and lg.doctor(folder / "t.onnx")["model"]["LAuReL"] == "40 sites, trainable"


def results(folder, tmp_path):
    """One of each result, of a model of 40 sites."""
    yield lg.inspect(folder / "m.onnx")
    made = lg.transform(folder / "m.onnx", "rw", output=tmp_path / "t.onnx")
    yield made
    yield made.report
    yield lg.transform(folder / "m.onnx", "rw")
    deployed = lg.deploy(folder / "t.onnx", tmp_path / "d.onnx")
    yield deployed
    yield lg.verify(folder / "m.onnx", tmp_path / "d.onnx")
    yield lg.finetune(folder / "t.onnx", folder / "d.npz", tmp_path / "o.onnx", epochs=1, quiet=True)
    yield lg.bench([folder / "m.onnx", folder / "t.onnx"], runs=2, fresh=0)


def test_results_are_five_lines_in_a_terminal_and_a_table_in_a_notebook(folder, tmp_path):
    for result in results(folder, tmp_path):
        text = repr(result)
        assert 1 < len(text.splitlines()) <= 5 and len(text) < 1500, type(result)
        html = result._repr_html_()
        assert html.count("<tr>") >= 2 and html.count("<table>") == html.count("</table>") == 1
        assert len(html) < 20_000


def test_names_of_a_model_are_no_markup_in_a_notebook():
    hostile = "<script>alert(1)</script>\x1b[31m"
    names = {"site": hostile, "skip": hostile, "branches": (hostile,), "join": hostile, "joins": (hostile,)}
    residual = lg.Residual(kind="identity", axis=-1, width=8, shape=None, dtype=None, source=hostile, **names)
    found = lg.Detection(hostile, (residual,), (), 3)
    assert "<script>" not in found._repr_html_() and "\x1b" not in repr(found) + found._repr_html_()


def test_a_notebook_shows_the_streams_of_a_detection(tmp_path):
    onnx.save(mlp(5, 8), tmp_path / "m.onnx")
    html = lg.inspect(tmp_path / "m.onnx")._repr_html_()
    assert (
        html.count("<circle") == 5 and html.count("stream 0") == 1 and "<title>block.0.res1: identity</title>" in html
    )
