"""The page of ``laurel report``: five answers, drawings that hold what the file holds, one file without the network."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import image_net, mlp

import laurel_graph as lg
from laurel_graph.errors import DataError
from laurel_graph.tools.benchmarks.models import draw_tensors
from laurel_graph.tools.console import relative
from laurel_graph.tools.page.draw import chart
from laurel_graph.tools.page.facts import learned, product_size
from laurel_graph.tools.report import write_report

SITES = 60


class Page(HTMLParser):
    """Text by element, ids, and what the page refers to."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.labels, self.big = [], [], [], []
        self.stack = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.stack.append(attrs.get("class", ""))
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[name] for name in ("href", "src", "xlink:href") if name in attrs]
        if tag == "a":
            self.labels.append(attrs["aria-label"])

    def handle_data(self, data):
        if self.stack and self.stack[-1].startswith("big") and data.strip():
            self.big.append(data.strip())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    onnx.save(mlp(SITES, 8), path / "m.onnx")
    config = lg.LaurelConfig(variant="rw+lr+pa", rank=2, overrides={"block.1.*": {"off": True}})
    lg.transform(path / "m.onnx", config, output=path / "t.onnx", run=False)
    draw_tensors(path / "t.onnx")
    lg.deploy(path / "t.onnx", path / "served.onnx")
    history = [{"epoch": 1, "loss": 2.0, "metric": 0.5}, {"epoch": 2, "loss": 1.5, "metric": 0.75}]
    training = {"steps": 8, "epochs": 2, "metric": "accuracy", "before": [0.25, 0.1], "after": [0.75, None],
                "best_epoch": 2, "history": history}  # fmt: skip
    (path / "training.json").write_text(json.dumps({"model": "t.onnx", "training": training}))
    return path


@pytest.fixture(scope="module")
def page(folder):
    written = write_report(
        folder / "t.onnx", folder / "p.html", served=folder / "served.onnx", against=folder / "m.onnx",
        training=folder / "training.json",
    )  # fmt: skip
    return written.read_text(encoding="utf-8")


def test_the_five_answers_are_at_the_top(page):
    assert Page(page).big == [
        f"{SITES - 1} of {SITES} residual connections",
        "6 of 6 quantities moved",
        Page(page).big[2],
        "equal",
        "loss 1.5",
    ]
    assert "% more parameters" in Page(page).big[2]
    text = " ".join(re.sub(r"<[^>]+>", " ", page.split("</main>")[0]).split())
    for words in (
        f"{SITES - 1} of {SITES - 1} sites equal",
        "accuracy 0.25 before and 0.75 after, of epoch 2",
        "latency",
        "ONNX Runtime",
    ):
        assert words in text


def test_what_was_not_asked_for_says_how_to_get_it(folder):
    text = write_report(folder / "t.onnx", folder / "short.html").read_text()
    assert Page(text).big[3:] == ["not compared here", "not at hand"]
    assert "--served FILE" in text and "--against ORIGINAL" in text and "--training FILE" in text
    plain = write_report(folder / "m.onnx", folder / "plain.html").read_text()
    assert Page(plain).big[:2] == [f"0 of {SITES} residual connections", "nothing: no learned tensors"]


def test_a_wrong_file_is_told_on_the_page_of_its_model(folder, tmp_path):
    lg.deploy(folder / "t.onnx", tmp_path / "other.onnx")
    model = onnx.load(tmp_path / "other.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.startswith("w"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    text = write_report(folder / "t.onnx", tmp_path / "p.html", served=tmp_path / "other.onnx").read_text()
    assert Page(text).big[3] == "NOT equal"


def test_every_join_is_a_link_to_its_row_that_says_what_it_is(page):
    read = Page(page)
    rows = [link for link in read.links if link.startswith("#r")]
    assert len(rows) == len(set(rows)) == SITES == len(read.labels)
    assert {link[1:] for link in rows} <= set(read.ids) and len(read.ids) == len(set(read.ids))
    assert read.labels[0].startswith("block.0.res1: laurel, rw+lr, rank 2, width 8; x + f0")
    assert "left as it was" in read.labels[1]


def test_the_page_is_one_file_for_any_screen_and_paper(page):
    assert all(link.startswith("#") for link in Page(page).links)
    assert not re.search(r"https?:|url\(|@import|<link|<img", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page and "@media print" in page
    assert len(page) < 2_000_000 * SITES / 500


def test_curves_hold_what_the_file_holds_each_on_its_own_axis_with_its_start(folder, page):
    from laurel_graph.onnx_model.tensors import tensor_array
    from laurel_graph.opset.schema import read_specs, tensor_name

    model = onnx.load(folder / "t.onnx")
    tensors = {
        spec: {name: tensor_array(model, tensor_name(spec.site, name)) for name in spec.tensor_shapes()}
        for spec in read_specs(model).values()
    }
    curves = {curve.name: curve for curve in learned(tensors)}
    assert set(curves) == {"α", "β", "size of AB", "γ1", "γ2", "γ3"}
    assert [curves[name].start for name in ("α", "size of AB", "γ1")] == [1, 0, 0]
    for (spec, held), (_, value, _) in zip(tensors.items(), curves["α"].points, strict=True):
        assert value == float(held["alpha"])
        a, b = (np.asarray(held[name], np.float64) for name in "AB")
        assert np.isclose(product_size(spec, held), np.linalg.norm(a @ b) / np.sqrt(spec.width))
    assert page.count('class="start"') == len(curves)


def test_a_chart_draws_any_number_of_points():
    for points in ([(0, 1.0, 0.0)], [(0, 1.0, 0.5), (3, 2.0, 0.0)], [(i, float(i % 7), 0.0) for i in range(600)]):
        svg = chart("α", points, 1.0, names=["<b>"] * len(points))
        assert svg.count("<svg") == svg.count("</svg>") == 1 and "nan" not in svg and "<b>" not in svg
        assert len(svg) < 20_000


def test_joins_that_are_left_alone_are_listed_by_reason(tmp_path):
    onnx.save(image_net(), tmp_path / "m.onnx")
    found = lg.inspect(tmp_path / "m.onnx")
    text = write_report(tmp_path / "m.onnx", tmp_path / "p.html").read_text()
    assert text.count("<details") == len({rejected.reason for rejected in found.rejected})


def test_no_folder_of_this_machine_is_on_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative(f"{tmp_path}/src/net.py:12") == "src/net.py:12"
    assert relative("/home/somebody/secret/net.py:12") == "secret/net.py:12"
    assert relative("encoder.layer.0") == "encoder.layer.0"
    onnx.save(mlp(2, 8), tmp_path / "m.onnx")
    assert str(tmp_path) not in write_report(tmp_path / "m.onnx", tmp_path / "p.html").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"training": {"history": 3}}', '{"training": null}', "\xff"])
def test_a_training_that_is_none_is_refused(text, tmp_path, folder):
    path = Path(tmp_path / "x.json")
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"laurel finetune --json"):
        write_report(folder / "t.onnx", tmp_path / "p.html", training=path)
    assert not (tmp_path / "p.html").exists()
