"""A fast part of the programs that try live models of transformers."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from laurel_graph.tools.conformance import live_habits
from laurel_graph.tools.zoo import live
from laurel_graph.tools.zoo.architectures import read_zoo

FAST = ("labels", "lengths", "deepcopy", "torch.save", "bf16", "from_pretrained", "dropout")


@pytest.mark.parametrize("family", ["gpt-oss", "bart", "wav2vec2"])
def test_habits_go_on_when_a_family_is_attached(family):
    case = live_habits.case_of(live_habits.FAMILIES[family])
    found = {habit: live_habits.tried(case, habit) for habit in FAST}
    assert {habit: text for habit, text in found.items() if text not in ("ok", "-")} == {}
    assert [habit for habit, text in found.items() if text == "-"] == ["torch.save"] * (family == "wav2vec2")


def test_habit_says_what_is_wrong_when_a_model_computes_something_else(monkeypatch):
    case = live_habits.case_of(live_habits.FAMILIES["gpt2"])
    monkeypatch.setattr(live_habits.copy, "deepcopy", lambda model: case.base)
    assert "differs by" in live_habits.tried(case, "deepcopy")


@pytest.mark.parametrize("name", ["openai-gpt", "vitdet"])
def test_every_join_is_attached_with_the_same_bits(name):
    entry = next(entry for entry in read_zoo() if entry.name == name)
    row = live.measure(entry)
    assert row.is_right and row.attached == row.truth and not row.watched, row
