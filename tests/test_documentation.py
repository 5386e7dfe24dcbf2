"""Every block of README and of the documentation that is marked as Python or shell runs, page by page, in order."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from laurel_graph.variants import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HIDDEN = 16
CLASSES = 3


def write_network(folder):
    """``model.onnx``: two residual blocks on x (N, 16), three classes; and data for it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)

    def weight(name, rows, columns):
        array = rng.standard_normal((rows, columns)).astype(np.float32) / rows**0.5
        return numpy_helper.from_array(array, name)

    nodes, weights = [helper.make_node("MatMul", ["x", "first"], ["h0"], "first")], [weight("first", HIDDEN, HIDDEN)]
    for i in range(2):
        nodes += [
            helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"p{i}"], f"/layer{i}/MatMul"),
            helper.make_node("Tanh", [f"p{i}"], [f"t{i}"], f"/layer{i}/Tanh"),
            helper.make_node("MatMul", [f"t{i}", f"v{i}"], [f"f{i}"], f"/layer{i}/out/MatMul"),
            helper.make_node("Add", [f"h{i}", f"f{i}"], [f"h{i + 1}"], f"/layer{i}/Add"),
        ]
        weights += [weight(f"w{i}", HIDDEN, HIDDEN), weight(f"v{i}", HIDDEN, HIDDEN)]
    nodes.append(helper.make_node("MatMul", ["h2", "last"], ["y"], "last"))
    weights.append(weight("last", HIDDEN, CLASSES))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", d]) for n, d in (("x", HIDDEN), ("y", CLASSES)))
    graph = helper.make_graph(nodes, "network", [x], [y], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    data = rng.standard_normal((32, HIDDEN)).astype(np.float32)
    np.savez(folder / "train.npz", x=data, label=(np.abs(data[:, :CLASSES])).argmax(1))


def run_shell(example):
    """Runs the ``laurel`` lines of a block; comments behind them are left out."""
    from typer.testing import CliRunner

    from laurel_graph.tools.cli import app

    for line in example.parsed.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "laurel", f"only laurel commands can be run: {line}"
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.fixture
def known_terms():
    """Variants that a page registers are gone behind it."""
    before = dict(registry.TERMS)
    yield
    registry.TERMS.clear()
    registry.TERMS.update(before)
    registry.terms_of.cache_clear()


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch, known_terms):
    sybil = pytest.importorskip("sybil")
    from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

    monkeypatch.chdir(tmp_path)
    write_network(tmp_path)
    parsers = [PythonCodeBlockParser(), CodeBlockParser("sh", run_shell)]
    document = sybil.Sybil(parsers, path=str(page.parent)).parse(page)
    document.namespace["__name__"] = page.stem
    for example in document.examples():
        example.evaluate()


def test_pages_are_all_in_the_table_of_contents():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split()
    assert [page.stem for page in PAGES[1:] if page.stem not in (*contents, "index")] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
