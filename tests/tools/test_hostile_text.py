"""Nothing that a file says acts on a terminal, a page or the training of it."""

import itertools
import json
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from finetune_toy import toy_data, toy_onnx
from hostile import NAMES, PAYLOADS, executed
from onnx import helper, numpy_helper

import laurel_graph as lg
from laurel_graph import LaurelConfig
from laurel_graph.onnx_model.walk import tensors_of
from laurel_graph.opset.schema import read_specs
from laurel_graph.tools import console
from laurel_graph.tools.benchmarks.latency import fresh_processes
from laurel_graph.tools.callables import is_reference
from laurel_graph.tools.cli import app
from laurel_graph.tools.finetuning.data_files import read_data
from laurel_graph.tools.finetuning.finetune import finetune
from laurel_graph.tools.finetuning.options import FinetuneOptions
from laurel_graph.tools.report import write_report

WIDTH = 8


def renamed(model, names):
    """Gives every value, weight, node and symbolic size of a model a name of *names*."""
    names, given = itertools.chain(names, map(str, itertools.count(1000))), {}
    for info in (*model.graph.input, *model.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = given.setdefault(dim.dim_param, next(names))
    for tensor in tensors_of(model):
        tensor.name = given.setdefault(tensor.name, next(names))
    for info in (*model.graph.input, *model.graph.output):
        info.name = given.setdefault(info.name, next(names))
    for node in model.graph.node:
        node.name = next(names)
        for values in (node.input, node.output):
            values[:] = [given.setdefault(value, next(names)) for value in values]
    return given


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory):
    """A chain of residual connections with hostile names, transformed, and its sites' names hostile, too."""
    folder = tmp_path_factory.mktemp("hostile")
    nodes, x = [], "x"
    for i in range(25):
        nodes.append(helper.make_node("MatMul", [x, "w"], [f"f{i}"]))
        nodes.append(helper.make_node("Add", [x, f"f{i}"], [f"y{i}"]))
        x = f"y{i}"
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", x)]
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, NAMES[0], infos[:1], infos[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    renamed(model, NAMES)
    onnx.save(model, folder / "[red]{{7*7}}.onnx")
    lg.transform(folder / "[red]{{7*7}}.onnx", LaurelConfig("rw+lr", rank=2), output=folder / "tuned.onnx")
    return folder / "tuned.onnx"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_report_is_a_page_of_our_own_markup_when_names_are_hostile(hostile_file, tmp_path):
    text = write_report(hostile_file, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    plain = tmp_path / "plain.onnx"
    toy_onnx(plain)
    lg.transform(plain, LaurelConfig("rw+lr", rank=2), output=tmp_path / "t.onnx")
    reference = Page(write_report(tmp_path / "t.onnx", tmp_path / "plain.html").read_text(encoding="utf-8"))
    assert page.tags <= reference.tags and page.attributes <= reference.attributes
    assert all(c.isprintable() or c == "\n" for c in text)
    assert not executed()


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_commands_print_what_cannot_act_when_names_are_hostile(command, hostile_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # names stay whole
    plain = hostile_file.with_name("[red]{{7*7}}.onnx")
    options = ["-o", str(tmp_path / "page.html")] if command == "report" else []
    app([command, str(plain), *options], standalone_mode=False)
    out, err = capsys.readouterr()
    assert "[red]{{7*7}}" in err and all(c.isprintable() or c == "\n" for c in out + err)
    if command == "inspect":
        assert "setattr(__import__" in out.replace("\n", "") and not executed()


def test_json_gives_every_name_back_when_names_are_hostile(hostile_file, capsys):
    plain = hostile_file.with_name("[red]{{7*7}}.onnx")
    app(["inspect", str(plain), "--json"], standalone_mode=False)
    out, _ = capsys.readouterr()
    found = json.loads(out)["residuals"]
    assert [r["join"] for r in found] == [r.join for r in lg.inspect(plain).residuals]
    assert all(c.isprintable() or c == "\n" for c in out)


def test_console_shows_text_as_it_is_when_it_looks_like_markup(capsys):
    for text in NAMES[: NAMES.index("n" * 10_000)]:
        console.say(text)
        console.note(text)
        console.print_table(text, (text, "b"), [(text, 1.5)])
        out, err = capsys.readouterr()
        assert all(c.isprintable() or c == "\n" for c in out + err)
        if text.isprintable() and len(text) < 70:
            assert out.count(text) >= 4 and text in err


def test_json_keeps_any_text_when_it_is_printed(capsys):
    data = {text: [text] for text in (*NAMES, "\ud800", "\x9b31m", "α")}
    console.print_json(data)
    out, _ = capsys.readouterr()
    assert json.loads(out) == data and "α" in out
    assert all(c.isprintable() or c == "\n" for c in out)


def test_finetune_trains_and_writes_back_by_name_when_all_names_are_hostile(tmp_path):
    toy_onnx(tmp_path / "toy.onnx")
    model = onnx.load(tmp_path / "toy.onnx")
    given = renamed(
        model, [*PAYLOADS, *(f"{p}{i}" for i in range(20) for p in ("*", "[ab]", PAYLOADS[0], PAYLOADS[1]))]
    )
    onnx.save(model, tmp_path / "base.onnx")
    lg.transform(tmp_path / "base.onnx", LaurelConfig("rw+lr", rank=2), output=tmp_path / "model.onnx")
    weight = given["last.weight"]
    data = toy_data()
    np.savez(tmp_path / "data.npz", **{given["x"]: data.values("x"), '");label': data.values("label")})
    options = FinetuneOptions(
        model=tmp_path / "model.onnx", data=str(tmp_path / "data.npz"), loss="cross_entropy", epochs=1,
        tuned=tmp_path / "tuned.onnx", adapter=tmp_path / "a.safetensors", train=(weight,), lr=0.05,
        output=given["probabilities"],
    )  # fmt: skip
    report = finetune(options)
    assert report.further_parameters == 36
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / name).graph.initializer}
        for name in ("model.onnx", "tuned.onnx")
    )
    changed = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    assert weight in changed and all(name == weight or name.startswith("laurel.") for name in changed)
    lg.apply_adapter(tmp_path / "model.onnx", tmp_path / "a.safetensors", tmp_path / "applied.onnx", check_base=False)
    assert read_specs(onnx.load(tmp_path / "applied.onnx")) and not executed()


def test_finetune_leaves_the_base_alone_when_a_site_is_named_like_a_glob(tmp_path):
    toy_onnx(tmp_path / "toy.onnx")
    model = lg.transform(onnx.load(tmp_path / "toy.onnx"), LaurelConfig("lr", rank=2)).model
    site = next(iter(read_specs(model)))
    names = {f"laurel.{site}.{name}": f"laurel.*.{name}" for name in "AB"} | {"last.weight": "laurel.base.A"}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for prop in model.metadata_props:
        prop.value = prop.value.replace(f'"{site}"', '"*"') if prop.key == "laurel.sites" else prop.value
    onnx.save(model, tmp_path / "model.onnx")
    data = toy_data()
    np.savez(tmp_path / "data.npz", x=data.values("x"), label=data.values("label"))
    finetune(
        FinetuneOptions(
            model=tmp_path / "model.onnx",
            data=str(tmp_path / "data.npz"),
            loss="cross_entropy",
            epochs=1,
            tuned=tmp_path / "tuned.onnx",
            output="probabilities",
        )
    )
    tuned = onnx.load(tmp_path / "tuned.onnx")
    before, after = ({t.name: t.SerializeToString() for t in m.graph.initializer} for m in (model, tuned))
    changed = {name for name in before if before[name] != after[name]}
    assert "laurel.*.B" in changed and "laurel.base.A" not in changed


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("\0", "a\0b")], ids=lambda name: ascii(name[:24]))
def test_data_keeps_the_names_of_its_arrays_when_they_are_hostile(name, tmp_path):
    np.savez(tmp_path / "data.npz", **{name: np.ones((2, 3))})
    (found,) = read_data(str(tmp_path / "data.npz")).names
    assert found == name and [p.name for p in tmp_path.iterdir()] == ["data.npz"]


@pytest.mark.parametrize("name", ["file", "arr_0", "names", "a/../b", "a\0b"])
def test_bench_runs_in_fresh_processes_when_an_input_has_any_name(name, tmp_path):
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 2]) for n in (name, "y")]
    node = helper.make_node("Relu", [name], ["y"])
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    ((load, peak),) = fresh_processes([tmp_path / "m.onnx"], {name: np.ones((1, 2), np.float32)}, 1, 1)
    assert load > 0 and peak > 0


@pytest.mark.parametrize("text", [*PAYLOADS, "a" * 10_000, "a\0b", "../x:y", "os.path:join", "a:b" * 5000])
def test_only_dotted_identifiers_name_a_function_when_text_is_hostile(text):
    assert is_reference(text) == (text == "os.path:join")
