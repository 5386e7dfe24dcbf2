"""A run says how far it is: a line where there is no terminal, scalars for TensorBoard."""

import sys
from types import SimpleNamespace

import pytest
from finetune_toy import toy_data, toy_model, toy_task

from laurel_graph.errors import DependencyError, OutputError
from laurel_graph.tools.finetuning.train_options import TrainOptions
from laurel_graph.tools.finetuning.training import progress
from laurel_graph.tools.finetuning.training.loop import train
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


def test_scalars_of_every_step_reach_tensorboard_when_a_folder_is_given(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = TrainOptions(epochs=2, batch_size=50, lr=0.01, quiet=True, tensorboard=tmp_path / "a" / "scalars")
    result = train(toy_model(), toy_task(), toy_data(), toy_data(40, 1), options)
    read = events.EventAccumulator(str(tmp_path / "a" / "scalars"))
    read.Reload()
    loss, metric = read.Scalars("train/loss"), read.Scalars("validation/metric")
    assert [each.step for each in loss] == list(range(1, result.steps + 1))
    assert [each.step for each in metric] == [0, 3, 6]
    assert metric[-1].value == pytest.approx(result.history[-1]["metric"])
    assert metric[0].value == pytest.approx(result.before[0])
    assert {"train/gradient_norm", "train/learning_rate", "train/epoch_loss"} <= set(read.Tags()["scalars"])


def test_what_tensorboard_lacks_is_told_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    options = TrainOptions(quiet=True, tensorboard=tmp_path / "scalars")
    with pytest.raises(DependencyError, match="--tensorboard needs tensorboard, which is not installed: pip install"):
        train(toy_model(), toy_task(), toy_data(), None, options)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=None))
    (tmp_path / "scalars").write_text("")
    options = TrainOptions(quiet=True, tensorboard=tmp_path / "scalars")
    with pytest.raises(OutputError, match="is a file: expected a folder"):
        train(toy_model(), toy_task(), toy_data(), None, options)
