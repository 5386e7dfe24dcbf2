"""The sweep: every variant from the same start, one row each."""

from dataclasses import replace

import numpy as np
import pytest
from finetune_toy import toy_data, toy_onnx

import laurel_graph as lg
from laurel_graph.errors import ConfigError, DataError
from laurel_graph.tools.finetuning import sweep as module
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune
from laurel_graph.tools.finetuning.sweep import sweep
from laurel_graph.variants import load_plugin, registry


@pytest.fixture
def options(tmp_path):
    toy_onnx(tmp_path / "base.onnx")
    np.savez(tmp_path / "train.npz", **toy_data().batch(range(101)))
    return FinetuneOptions(
        model=tmp_path / "base.onnx",
        data=str(tmp_path / "train.npz"),
        tuned=tmp_path / "unused.onnx",
        validation="0.3",
        output="probabilities",
        epochs=2,
        lr=0.02,
        quiet=True,
    )


def test_sweep_gives_a_row_per_variant_and_rank_when_run(options, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_in_a_process", finetune)
    files = sorted(tmp_path.iterdir())
    report = sweep(options, variants=["lr", "rw"], ranks=[2], seeds=[0, 1])
    assert [(row.variant, row.rank, row.parameters) for row in report.rows] == [("rw", None, 4), ("lr", 2, 96)]
    for row in report.rows:
        assert row.metric == "accuracy" and len(row.values) == 2
        assert row.mean == pytest.approx(np.mean(row.values)) and row.std == pytest.approx(np.std(row.values, ddof=1))
        assert row.memory > 0 and row.seconds > 0
    assert [line[0] for line in report.table()] == ["rw", "lr"]
    assert len(report.columns) == len(report.table()[0])
    assert sorted(tmp_path.iterdir()) == files


def test_sweep_runs_in_a_process_of_its_own_when_started(options):
    (row,) = sweep(options, variants=["pa"], seeds=[0]).rows
    assert (row.variant, row.rank, row.std) == ("pa", None, 0.0) and row.memory > 0


PLUGIN = """
from laurel_graph.variants import Option, Term, register

@register
class Shift(Term):
    name, tensors, options = "shift", {"v": ("D",)}, {"sign": Option("plus", valid=("plus",))}

    def formula(self, skip, branch, at):
        return skip, branch + at["v"]

    def body(self, nodes, skip, branch, at):
        return skip, nodes.add("Add", branch, nodes.along_features(at["v"]))
"""


def test_sweep_tries_a_variant_of_ones_own_in_its_processes_when_a_plugin_has_it(options, tmp_path, monkeypatch):
    (tmp_path / "sweep_shifts.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_plugins", [])
    load_plugin("sweep_shifts")
    try:
        config = lg.LaurelConfig(variant="shift", options={"sign": "plus"})
        (row,) = sweep(options, variants=["shift"], ranks=[2], seeds=[0], config=config).rows
        assert module._with(config, "rw", None, 0).options == ()
    finally:
        del registry.TERMS["shift"]
        registry.terms_of.cache_clear()
    assert (row.variant, row.rank, row.parameters) == ("shift", None, 2 * 12)


def test_sweep_hands_on_the_error_when_a_run_fails(options):
    with pytest.raises(DataError, match="target 'lost' is missing"):
        sweep(replace(options, target="lost"), variants=["rw"], seeds=[0])


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"validation": None}, {}, "give --validation"),
        ({}, {"seeds": ()}, "seeds is empty"),
        ({}, {"variants": ()}, "variants is empty"),
        ({}, {"variants": ["rx"]}, "variant = 'rx' is not valid"),
        ({}, {"ranks": [0]}, "rank = 0 is not valid"),
        ({"adapter": "a.safetensors"}, {}, "leave out --adapter"),
    ],
)
def test_sweep_refuses_when_it_could_not_compare(options, changes, settings, words):
    with pytest.raises(ConfigError, match=words):
        sweep(replace(options, **changes), **settings)
