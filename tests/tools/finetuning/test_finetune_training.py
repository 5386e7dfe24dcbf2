"""The training loop on a plain torch module."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_toy import same_bits, toy_data, toy_model, toy_task, trained
from tolerance import assert_close

from laurel_graph.errors import ConfigError, TrainingError
from laurel_graph.tools.finetuning.data import Data
from laurel_graph.tools.finetuning.losses import Metric
from laurel_graph.tools.finetuning.train_options import TrainOptions
from laurel_graph.tools.finetuning.training.loop import train
from laurel_graph.tools.finetuning.training.state import frozen_digest

TOY = Path(__file__).parents[2] / "finetune_toy.py"
OPTIONS = TrainOptions(epochs=4, batch_size=16, lr=0.02, quiet=True)


def run_toy(*args, launcher=(), check=True):
    environment = {**os.environ, "PYTHONPATH": str(TOY.parent), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, str(TOY), *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return done


def test_train_improves_the_metric_and_keeps_the_base_when_run():
    model = toy_model()
    base, start = frozen_digest(model), trained(model)
    result = train(model, toy_task(), toy_data(), toy_data(60, 1), replace(OPTIONS, epochs=15))
    assert result.after[0] > result.before[0] + 2 * result.before[1]
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert frozen_digest(model) == base == result.frozen
    assert not same_bits(start, trained(model))
    assert result.steps == 15 * 7


def test_rate_counts_the_samples_there_are_when_the_batch_is_larger():
    result = train(toy_model(), toy_task(), toy_data(50), None, replace(OPTIONS, batch_size=10**9))
    assert result.samples_per_second * result.seconds < 10 * 4 * 50


def test_train_gives_the_same_bits_when_repeated():
    states = []
    for _ in range(2):
        model = toy_model()
        train(model, toy_task(), toy_data(), None, OPTIONS)
        states.append(trained(model))
    assert same_bits(*states)


def test_resume_gives_the_same_bits_when_killed_and_then_interrupted(tmp_path):
    cut = ["--dropout", "--checkpoint", tmp_path / "cut.ckpt"]
    killed = run_toy(tmp_path / "cut.pt", *cut, "--kill-at", 12, check=False)
    assert killed.returncode == -signal.SIGKILL
    stopped = run_toy(
        tmp_path / "cut.pt", *cut, "--resume", "--kill-at", 5, "--signal", int(signal.SIGINT), check=False
    )
    assert "Interrupted: stopped at step 14 of 28; continue from" in stopped.stderr
    assert not (tmp_path / "cut.pt").exists()
    run_toy(tmp_path / "cut.pt", *cut, "--resume")
    run_toy(tmp_path / "whole.pt", "--dropout")
    assert same_bits(torch.load(tmp_path / "whole.pt"), torch.load(tmp_path / "cut.pt"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.ckpt", "cut.pt", "whole.pt"]


def test_two_processes_equal_one_when_the_batch_is_shared(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_toy(tmp_path / "two.pt", launcher=launcher)
    model = toy_model()
    train(model, toy_task(), toy_data(), toy_data(37, 1), OPTIONS)
    two = torch.load(tmp_path / "two.pt")
    for name, expected in trained(model).items():
        assert_close(two[name].numpy(), expected.numpy())


def test_train_keeps_the_best_epoch_when_the_metric_falls_later():
    values = iter([0.1, 0.5, 0.9, 0.3, 0.2, 0.1, 0.0])
    scripted = Metric("scripted", True, lambda output, batch: torch.zeros(1), lambda sums: (next(values), 0.0))
    model = toy_model()
    options = replace(OPTIONS, epochs=6, patience=3, batch_size=200, schedule="constant", warmup=0.0)
    result = train(model, replace(toy_task(), metric=scripted), toy_data(), toy_data(20, 1), options)
    assert (result.best_epoch, result.epochs, result.after) == (2, 5, (0.9, 0.0))
    two_epochs = toy_model()
    train(two_epochs, toy_task(), toy_data(), None, replace(options, epochs=2, patience=None))
    assert same_bits(trained(model), trained(two_epochs))


def test_train_stops_with_step_and_array_when_the_data_holds_a_nan():
    data = toy_data()
    data.values("x")[50, 2] = np.nan
    with pytest.raises(TrainingError, match=r"step \d+: the loss is not finite: the data array 'x' holds NaN"):
        train(toy_model(), toy_task(), data, None, OPTIONS)


def test_train_stops_with_step_and_value_when_the_model_overflows():
    model = toy_model()
    model.layers[1].weight.data.fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite: 'layers\.1' is the first value"):
        train(model, toy_task(), toy_data(), None, OPTIONS)
    traced = torch.fx.symbolic_trace(model)
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite: 'layers\.1' is the first value"):
        train(traced, toy_task(), toy_data(), None, OPTIONS)


def test_train_stops_with_step_and_parameter_when_it_diverges():
    model = toy_model()
    exploding = replace(toy_task(), loss=lambda output, batch: ((output**2).sum(), torch.tensor(1.0)))
    options = replace(OPTIONS, epochs=200, lr=0.5, schedule="constant", clip=0.0)
    for p in model.laurel.parameters():
        p.register_hook(torch.neg)  # uphill
    with pytest.raises(TrainingError, match=r"step \d+: the loss diverges .*'laurel\.\d\.\w' has grown to"):
        train(model, exploding, toy_data(), None, options)


def test_train_stops_when_the_loss_explodes_within_the_first_steps():
    model, scales = toy_model(), iter([1.0, 1.0, *[1e9] * 100])
    exploding = replace(
        toy_task(), loss=lambda output, batch: (output.square().sum() * next(scales), torch.tensor(9.0))
    )
    with pytest.raises(TrainingError, match=r"step 3: the loss diverges"):
        train(model, exploding, toy_data(), None, OPTIONS)


def test_train_names_the_parameter_when_a_gradient_is_not_finite():
    model = toy_model()
    model.laurel[1].A.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(TrainingError, match=r"step 1: the gradient of 'laurel\.1\.A' is not finite"):
        train(model, toy_task(), toy_data(), None, OPTIONS)


def test_train_refuses_when_nothing_trains():
    model = toy_model().requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter of the model trains"):
        train(model, toy_task(), toy_data(), None, OPTIONS)


def test_train_notes_tensors_when_they_do_not_reach_the_output():
    model = toy_model()
    model.layers[1].register_forward_hook(lambda module, args, output: output)
    model.extra = torch.nn.Parameter(torch.zeros(2))
    result = train(model, toy_task(), toy_data(), None, replace(OPTIONS, epochs=1))
    assert result.notes == ("1 of 7 trained tensors do not reach this output and stay as they are: extra.",)


def test_resume_refuses_when_the_options_differ(tmp_path):
    options = replace(OPTIONS, epochs=1, checkpoint=tmp_path / "run.ckpt")
    train(toy_model(), toy_task(), toy_data(), None, options)
    with pytest.raises(ConfigError, match=r"belongs to another run \(lr was 0.02, is 0.5\)"):
        train(toy_model(), toy_task(), toy_data(), None, replace(options, lr=0.5, resume=True))
    with pytest.raises(ConfigError, match="training data was"):
        train(toy_model(), toy_task(), toy_data(seed=5), None, replace(options, resume=True))
    (tmp_path / "run.ckpt").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        train(toy_model(), toy_task(), toy_data(), None, replace(options, resume=True))


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", -1.0), ("lr", float("nan")), ("schedule", "step"), ("precision", "fp8"), ("patience", 0)],
)
def test_options_refuse_when_a_value_is_outside_its_domain(field, value):
    with pytest.raises(ConfigError, match=f"{field} = .* is not valid: expected"):
        TrainOptions(**{field: value})


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)]
)
def test_rate_follows_the_schedule_when_warm(schedule, middle, last):
    options = TrainOptions(lr=1.0, schedule=schedule, warmup=0.2)
    assert options.rate(0, 100) < options.rate(19, 100) < 1.0 == options.rate(20, 100)
    assert options.rate(60, 100) == pytest.approx(middle)
    assert options.rate(100, 100) == pytest.approx(last)


def test_train_runs_in_bfloat16_when_asked():
    model = toy_model()
    precise = replace(OPTIONS, precision="bf16", epochs=2)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        result = train(model, toy_task(), toy_data(), None, precise)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert np.isfinite(result.history[-1]["loss"])
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_train_equals_a_plain_loop_when_written_by_hand():
    from laurel_graph.torch_residual.module import parameter_groups

    model, data = toy_model(), toy_data(32)
    options = replace(OPTIONS, epochs=3, batch_size=32, schedule="constant", warmup=0.0, clip=0.0)
    train(model, toy_task(), data, None, options)
    plain = toy_model().eval()
    optimizer = torch.optim.AdamW(parameter_groups(plain), lr=options.lr)
    batch = {name: torch.from_numpy(array) for name, array in data.batch(range(32)).items()}
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(batch["x"]), batch["label"]).backward()
        optimizer.step()
    for name, expected in trained(plain).items():
        assert_close(trained(model)[name].numpy(), expected.numpy())


def test_data_is_read_only_once_when_a_user_gives_samples():
    class Lazy:
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return {"x": np.full(6, index / 20, np.float32), "label": index % 3}

    result = train(toy_model(), toy_task(), Data(Lazy()), None, replace(OPTIONS, epochs=1))
    assert result.steps == 2
