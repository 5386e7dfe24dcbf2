"""``laurel compare``: adapters and files of one base side by side, as a table, a page and a picture."""

import json
import re

import numpy as np
import onnx
import pytest
from models import mlp

import laurel_graph as lg
from laurel_graph.adapters.file import Adapter, read_adapter, to_bytes
from laurel_graph.errors import AdapterError, ConfigError, ModelError, OutputError
from laurel_graph.tools.benchmarks.models import draw_tensors
from laurel_graph.tools.compare import compare_models

SITES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare")
    onnx.save(mlp(SITES, 16), path / "m.onnx")
    onnx.save(mlp(SITES, 8), path / "other.onnx")
    for variant in ("rw", "lr", "rw+lr+pa"):
        name = variant.replace("+", "")
        config = lg.LaurelConfig(variant=variant, rank=2 if "lr" in variant else None, weights="free")
        lg.transform(path / "m.onnx", config, output=path / f"{name}.onnx", run=False)
        draw_tensors(path / f"{name}.onnx")
        lg.save_adapter(path / f"{name}.onnx", path / f"{name}.safetensors")
    lg.deploy(path / "rwlrpa.onnx", path / "served.onnx")
    history = [{"epoch": 1, "loss": 2.0, "metric": 0.5}]
    training = {"steps": 8, "epochs": 1, "metric": "accuracy", "before": [0.25, 0.1], "after": [0.75, None],
                "best_epoch": 1, "history": history}  # fmt: skip
    printed = {"tuned": str(path / "rw.onnx"), "adapter": "rw.safetensors", "training": training}
    (path / "rw.json").write_text(json.dumps(printed))
    return path


def paths(folder, *names):
    return [folder / name for name in names]


def test_an_adapter_and_the_file_it_is_of_say_the_same(folder):
    found = compare_models(paths(folder, "rwlrpa.safetensors", "rwlrpa.onnx"))
    adapter, tuned = found.candidates
    assert (adapter.state, tuned.state) == ("adapter", "trained")
    assert adapter.variants == tuned.variants and adapter.parameters == tuned.parameters > 0
    assert [row.site for row in adapter.rows] == list(found.sites) == [row.site for row in tuned.rows]
    for one, other in zip(adapter.curves, tuned.curves, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose([v for _, v, _ in one.points], [v for _, v, _ in other.points], rtol=2e-6)


def test_each_kind_of_file_stands_beside_the_others(folder):
    names = ("m.onnx", "rw.onnx", "lr.safetensors", "served.onnx")
    found = lg.compare(paths(folder, *names), folder / "c.html", png=folder / "c.png", training=[folder / "rw.json"])
    assert [each.state for each in found.candidates] == ["plain", "trained", "adapter", "deployed"]
    assert [each.sites for each in found.candidates] == ["0/4", "4/4", "4", "4/4"]
    assert [each.size for each in found.candidates] == [(folder / name).stat().st_size for name in names]
    said = found.to_dict()
    assert said["models"][1]["training"] == {"metric": "accuracy", "before": 0.25, "after": 0.75, "loss": [2.0]}
    curve = next(c for c in found.candidates[1].curves if c.name == "α")
    distances = [abs(value - 1) for _, value, _ in curve.points]
    learned = said["models"][1]["learned"]["α"]
    assert learned["mean"] == pytest.approx(np.mean(distances)) and learned["furthest"] == max(distances)
    assert learned["site"] == found.sites[int(np.argmax(distances))]
    assert set(said["sites"][0]["models"]) == {"rw.onnx", "lr.safetensors"}
    assert "folded" in found.notes[0] and len(repr(found).splitlines()) <= 5
    page = (folder / "c.html").read_text(encoding="utf-8")
    assert all(name in page for name in names) and page.count('class="start"') == len(found.quantities) == 3
    assert not re.search(r"https?:|url\(|@import|<link|<img", page) and 'name="viewport"' in page
    assert (folder / "c.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lg.compare(paths(folder, *names), folder / "c.html", png=folder / "c.png")  # both are replaced
    with pytest.raises(OutputError, match="holds a PNG picture"):
        lg.transform(folder / "m.onnx", output=folder / "c.png")


def test_names_that_are_hostile_are_text_on_the_page(folder):
    (folder / "<b>$x^.safetensors").write_bytes((folder / "rw.safetensors").read_bytes())
    lg.compare(paths(folder, "<b>$x^.safetensors", "lr.onnx"), folder / "h.html", png=folder / "h.png")
    assert "<b>" not in (folder / "h.html").read_text()


def test_sites_of_other_names_go_by_place(folder):
    held = read_adapter(folder / "rw.safetensors")
    specs = {f"layers.{i}": type(s).from_dict({**s.to_dict(), "site": f"layers.{i}"}) for i, s in
             enumerate(held.specs.values())}  # fmt: skip
    tensors = {
        f"{new}.{name}": value
        for new, site in zip(specs, held.specs, strict=True)
        for name, value in held.parameters(site).items()
    }
    (folder / "renamed.safetensors").write_bytes(to_bytes(Adapter(specs, tensors, held.base)))
    found = compare_models(paths(folder, "rw.onnx", "renamed.safetensors"))
    assert found.places == (tuple(range(SITES)),) * 2 and "go by place" in found.notes[0]
    (folder / "old.safetensors").write_bytes(to_bytes(Adapter(held.specs, held.tensors, {"onnx": "x"})))
    assert "cannot be told" in compare_models(paths(folder, "rw.onnx", "old.safetensors")).notes[0]


def test_mistakes_are_one_sentence(folder, tmp_path):
    with pytest.raises(ModelError, match=r"rw.onnx and .*other.onnx have different bases"):
        compare_models(paths(folder, "rw.onnx", "other.onnx"))
    with pytest.raises(ConfigError, match="two files at least, found 1"):
        compare_models(paths(folder, "rw.onnx"))
    with pytest.raises(ConfigError, match="given twice"):
        compare_models(paths(folder, "rw.onnx", "rw.onnx"))
    with pytest.raises(ConfigError, match="which is none of the files that are compared"):
        compare_models(paths(folder, "lr.onnx", "rwlrpa.onnx"), training=[folder / "rw.json"])
    with pytest.raises(AdapterError, match=r"compare the \.safetensors"):
        compare_models(paths(folder, "lr.onnx", "a.onnx_adapter"))
    with pytest.raises(OutputError, match=r"ends in \.png"):
        lg.compare(paths(folder, "rw.onnx", "lr.onnx"), png=tmp_path / "p.jpg")


def test_a_picture_says_what_to_install_when_matplotlib_is_missing(folder, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    from laurel_graph.errors import DependencyError

    with pytest.raises(DependencyError, match="pip install 'matplotlib"):
        lg.report(folder / "rw.onnx", png=tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_a_report_is_a_picture_alone_when_only_that_is_asked_for(folder, tmp_path):
    assert lg.report(folder / "rwlrpa.onnx", png=tmp_path / "p.png", training=folder / "rw.json") == tmp_path / "p.png"
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
    lg.report(folder / "m.onnx", png=tmp_path / "plain.png")


def test_the_command_prints_tables_and_json(folder, capsys, monkeypatch):
    from laurel_graph.tools import cli

    def run(*words):
        monkeypatch.setattr("sys.argv", ["laurel", "compare", *words])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, capsys.readouterr()

    files = [str(folder / name) for name in ("rw.onnx", "lr.onnx")]
    monkeypatch.setenv("COLUMNS", "80")
    code, said = run(*files, "--sites", "--training", str(folder / "rw.json"))
    assert code == 0 and "2 of one base" in said.out and "0.75" in said.out and "block.0.res1" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    code, said = run(*files, "--json")
    assert code == 0 and [m["model"] for m in json.loads(said.out)["models"]] == ["rw.onnx", "lr.onnx"]
    code, said = run(files[0], str(folder / "other.onnx"))
    assert code == 2 and said.err.count("\n") == 2 and "different bases" in said.err
