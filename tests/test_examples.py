"""Every training example runs, at the size it is written for or smaller, and learns."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = str(Path(__file__).parents[1] / "examples")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield import_module
    for name in [
        name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(EXAMPLES)
    ]:
        del sys.modules[name]


@pytest.mark.parametrize(("name", "needs"), [("plain_loop", "torch"), ("accelerate_loop", "accelerate")])
def test_example_learns_when_run(example, name, needs):
    pytest.importorskip(needs)
    before, after = example(name).main(epochs=4)
    assert after > before + 0.2


def test_lightning_example_learns_when_run(example):
    pytest.importorskip("lightning")
    before, after = example("lightning_module").main(epochs=4)
    assert after > before + 0.2


def test_transformers_example_learns_when_run(example):
    pytest.importorskip("transformers")
    before, after = example("transformers_trainer").main(epochs=3)
    assert after < 0.8 * before


def test_two_adapters_serve_their_own_task_when_switched_per_request(example):
    accuracy = example("two_adapters").main(epochs=8)
    for task, other in (("sum", "difference"), ("difference", "sum")):
        assert accuracy[task][task] > accuracy[other][task] + 0.2
        assert accuracy[task][task] > accuracy["none"][task] + 0.2
