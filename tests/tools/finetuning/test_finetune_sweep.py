"""The sweep: every variant from the same start, one row each."""

from dataclasses import replace

import numpy as np
import pytest
from finetune_toy import toy_data, toy_onnx

from laurel_graph.errors import ConfigError, DataError
from laurel_graph.tools.finetuning.finetune import FinetuneOptions, finetune
from laurel_graph.tools.finetuning.sweep import sweep


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
    from laurel_graph.tools.finetuning import sweep as module

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
