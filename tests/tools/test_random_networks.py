"""Random networks are deployed right, and a wrong deployment is told from a right one."""

from collections import Counter

import numpy as np
import onnx
import pytest

from laurel_graph.passes import deploy as deploying
from laurel_graph.tools.random_networks import check as checking
from laurel_graph.tools.random_networks.__main__ import main
from laurel_graph.tools.random_networks.check import check
from laurel_graph.tools.random_networks.generate import KINDS, draw

SEEDS = range(1000, 1030)


def test_deployment_is_right_when_networks_are_random():
    outcomes = [outcome for seed in SEEDS for outcome in check(seed)]
    wrong = [outcome for outcome in outcomes if outcome.verdict in ("wrong", "crashed")]
    assert wrong == []
    counts = Counter(outcome.verdict for outcome in outcomes)
    assert counts["right"] + counts["kept"] >= 40


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_network_is_the_same_when_drawn_again(kind):
    first, second = (draw(7, kind) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.config == second.config
    onnx.checker.check_model(first.model) if first.model.ir_version > 3 else None


def test_deployment_is_wrong_when_a_folded_constant_is_one_percent_off(monkeypatch):
    def off(model, **options):
        report = deploying.deploy(model, **options)
        old = {t.name: t for t in trained.graph.initializer}
        for tensor in model.graph.initializer:
            before = old.get(tensor.name)
            if before is None or before.SerializeToString() != tensor.SerializeToString():
                value = onnx.numpy_helper.to_array(tensor)
                if value.dtype == np.float32 and value.size > 1:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(value * np.float32(1.01), tensor.name))
                    changed.append(tensor.name)
                    break
        return report

    verdicts = Counter()
    changed: list[str] = []
    for seed in range(1000, 1010):
        trained = draw(seed).model
        monkeypatch.setattr(checking, "deploy", off)
        before = len(changed)
        verdicts.update(o.verdict for o in check(seed, "float32") if len(changed) > before)
    assert verdicts["wrong"] > verdicts["right"] + verdicts["kept"]


def test_program_counts_the_verdicts_when_it_has_run(capsys):
    assert main(["--count", "2", "--seed", "1000"]) == 0
    assert "crashed" in capsys.readouterr().out
