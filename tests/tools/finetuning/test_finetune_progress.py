"""A run without a terminal says how far it is."""

from laurel_graph.tools.finetuning.training import progress
from laurel_graph.tools.finetuning.training.progress import TrainingProgress


def test_a_long_epoch_is_told_by_its_steps(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with TrainingProgress(8, 0, 4, False) as told:
        told.step(1, 2.5)
        monkeypatch.setattr(progress, "_EVERY", 1e9)
        told.step(2, 2.25)
        told.epoch("epoch 1/2  loss 2.25", 4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [["step 1/8", "loss 2.5"], ["epoch 1/2", "loss 2.25"]]
    assert all("s left" in line for line in lines)


def test_a_quiet_run_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with TrainingProgress(8, 0, 4, True) as told:
        told.step(1, 2.5)
        told.say("a line")
    assert capsys.readouterr() == ("", "")
