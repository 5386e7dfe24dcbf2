"""Random networks are deployed right, and a wrong deployment is told from a right one."""

from collections import Counter

import numpy as np
import onnx
import pytest

from laurel_graph.errors import VerificationError
from laurel_graph.passes.deploy import deploy as deploying
from laurel_graph.passes.rewrite import placing
from laurel_graph.tools.robustness.random_networks import check as checking
from laurel_graph.tools.robustness.random_networks.__main__ import main
from laurel_graph.tools.robustness.random_networks.check import check
from laurel_graph.tools.robustness.random_networks.generate import KINDS, draw

SEEDS = range(1000, 1030)


def test_deployment_is_right_when_networks_are_random():
    outcomes = [outcome for seed in SEEDS for outcome in check(seed)]
    wrong = [outcome for outcome in outcomes if outcome.verdict in ("wrong", "crashed")]
    assert wrong == []
    counts = Counter(outcome.verdict for outcome in outcomes)
    assert counts["right"] + counts["kept"] >= 40


@pytest.mark.parametrize("route", ["file", "import"])
def test_files_are_right_when_networks_are_random(route):
    verdicts = Counter(outcome.verdict for seed in range(1000, 1008) for outcome in check(seed, route=route))
    assert set(verdicts) <= {"right", "kept", "refused", "skipped"}
    assert verdicts["right"] + verdicts["kept"] >= 8


def test_transformation_is_the_same_in_stages_in_any_order_and_twice_when_networks_are_random():
    verdicts = Counter(outcome.verdict for seed in range(1, 13) for outcome in check(seed, route="stages"))
    assert set(verdicts) <= {"right", "refused"}
    assert verdicts["right"] >= 10


def test_plain_form_is_the_same_network_when_networks_are_random():
    verdicts = Counter(outcome.verdict for seed in range(9100, 9116) for outcome in check(seed, route="forms"))
    assert set(verdicts) <= {"right", "refused"}
    assert verdicts["right"] >= 12


@pytest.mark.parametrize("seed", [290, 305])
def test_stages_are_wrong_when_the_model_is_not_looked_at_as_it_was(monkeypatch, seed):
    monkeypatch.setattr(placing, "_as_it_was", lambda model: None)
    assert [outcome.verdict for outcome in check(seed, route="stages")] == ["wrong"]


@pytest.mark.parametrize(
    "seed",
    [5059, 5274, 5146],
    ids=["joins on bytes in one dimension", "a join stored at a scale", "bfloat16 weights as inputs"],
)
def test_verification_takes_the_deployed_file_when_it_is_right(seed):
    assert {outcome.verdict for outcome in check(seed, route="file")} <= {"right", "kept"}


def test_outcome_is_mistrusted_when_verification_refuses_a_right_file(monkeypatch):
    def refuse(*arguments):
        raise VerificationError("no.")

    monkeypatch.setattr(checking, "deployed_file", refuse)
    assert {outcome.verdict for outcome in check(5274, route="file")} == {"mistrusted"}


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_network_is_the_same_when_drawn_again(kind):
    first, second = (draw(7, kind) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.config == second.config


def test_deployment_is_wrong_when_a_matrix_that_folding_wrote_is_one_percent_off(monkeypatch):
    changed: list[str] = []

    def off(model, **options):
        old = {t.name: t.SerializeToString() for t in model.graph.initializer}
        report = deploying.deploy(model, **options)
        for tensor in model.graph.initializer:
            value = onnx.numpy_helper.to_array(tensor)
            if (
                value.dtype == np.float32
                and value.ndim > 1
                and value.any()
                and old.get(tensor.name) != tensor.SerializeToString()
            ):
                new = np.asarray(value * np.float32(1.01))
                tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
                changed.append(tensor.name)
                break
        return report

    monkeypatch.setattr(checking, "deploy", off)
    verdicts: Counter[str] = Counter()
    for seed in range(1000, 1018):
        before = len(changed)
        outcomes = check(seed, "float32")
        if len(changed) == before + 2:
            verdicts.update(outcome.verdict for outcome in outcomes)
    assert verdicts.total() >= 10
    assert verdicts["wrong"] >= 0.9 * verdicts.total()


def test_program_counts_the_verdicts_when_it_has_run(capsys):
    assert main(["--count", "2", "--seed", "1000"]) == 0
    assert "crashed" in capsys.readouterr().out
