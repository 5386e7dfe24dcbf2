"""Losses and metrics against torch, and independence of how a batch is divided."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from laurel_graph.errors import ConfigError, DataError
from laurel_graph.tools.finetuning.losses import build_loss, build_metric, pair_similarity

torch.manual_seed(0)
CASES = {
    "cross_entropy": (torch.randn(8, 5), torch.randint(5, (8,))),
    "mse": (torch.randn(8, 3), torch.randn(8, 3)),
    "l1": (torch.randn(8, 1), torch.randn(8)),
    "bce": (torch.randn(8, 2), torch.randint(2, (8, 2))),
    "cosine": (torch.randn(8, 6), torch.randn(8, 6)),
    "distill": (torch.randn(8, 6), torch.randn(8, 6)),
}
TORCH = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "l1": lambda output, target: F.l1_loss(output, target[:, None]),
    "bce": lambda output, target: F.binary_cross_entropy_with_logits(output, target.float()),
    "cosine": lambda output, target: (1 - F.cosine_similarity(output, target)).mean(),
    "distill": F.mse_loss,
}


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_torch_when_divided_by_its_weight(name):
    output, target = CASES[name]
    loss = build_loss(name, "y")
    total, weight = loss(output, {"y": target})
    assert torch.allclose(total / weight, TORCH[name](output, target), rtol=1e-5)
    parts = [loss(output[a:b], {"y": target[a:b]}) for a, b in ((0, 3), (3, 8))]
    assert torch.allclose(sum(p[0] for p in parts) / sum(p[1] for p in parts), total / weight, rtol=1e-5)


def test_cross_entropy_takes_both_layouts_and_ignores_when_told():
    loss = build_loss("cross_entropy", "y")
    logits, classes = torch.randn(2, 7, 4), torch.randint(4, (2, 7))
    classes[0, :3] = -100
    expected = F.cross_entropy(logits.flatten(0, 1), classes.flatten())
    for output in (logits, logits.movedim(-1, 1)):
        total, weight = loss(output, {"y": classes})
        assert weight == 11 and torch.allclose(total / weight, expected, rtol=1e-5)


def test_pairs_compare_their_two_sides_when_the_loss_is_cosine():
    output, score = torch.randn(8, 2, 5), torch.rand(8)
    total, weight = build_loss("cosine", "y", pairs=True)(output, {"y": score})
    assert torch.allclose(total / weight, F.mse_loss(F.cosine_similarity(output[:, 0], output[:, 1]), score))


def test_pearson_equals_numpy_when_summed_in_parts():
    output, score = torch.randn(30, 2, 5), torch.rand(30)
    loss = build_loss("cosine", "y", pairs=True)
    metric = build_metric(None, "cosine", loss, "y", pairs=True)
    sums = sum(metric.sums(output[a:b], {"y": score[a:b]}) for a, b in ((0, 11), (11, 30)))
    value, error = metric.value(sums)
    expected = np.corrcoef(pair_similarity(output).numpy(), score.numpy())[0, 1]
    assert value == pytest.approx(expected, rel=1e-5) and error == pytest.approx((1 - value**2) / 29**0.5)


def test_accuracy_counts_what_is_right_when_classes_or_bits_are_given():
    loss = build_loss("cross_entropy", "y")
    metric = build_metric(None, "cross_entropy", loss, "y")
    logits = torch.eye(4)
    assert metric.value(metric.sums(logits, {"y": torch.tensor([0, 1, 3, -100])})) == pytest.approx(
        (2 / 3, 0.272), rel=1e-2
    )
    bits = build_metric(None, "bce", build_loss("bce", "y"), "y")
    assert bits.value(bits.sums(torch.tensor([[1.0], [-1.0]]), {"y": torch.tensor([1, 1])}))[0] == 0.5


def test_user_functions_serve_as_loss_and_metric_when_named(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text(
        "def loss(output, batch): return (output - batch['y']).square().mean()\n"
        "def metric(output, batch): return -(output - batch['y']).abs().mean()\n"
        "def vector(output, batch): return output\n"
    )
    monkeypatch.chdir(tmp_path)
    output, batch = torch.randn(6), {"y": torch.randn(6)}
    loss = build_loss("my_loss:loss", "y")
    total, weight = loss(output, batch)
    assert weight == 6 and torch.allclose(total / weight, F.mse_loss(output, batch["y"]))
    metric = build_metric("my_loss:metric", "my_loss:loss", loss, "y")
    assert metric.value(metric.sums(output, batch))[0] == pytest.approx(-float((output - batch["y"]).abs().mean()))
    with pytest.raises(ConfigError, match=r"must return one number as a tensor, found shape \(6,\)"):
        build_loss("my_loss:vector", "y")(output, batch)


@pytest.mark.parametrize(
    ("name", "output", "target", "words"),
    [
        ("cross_entropy", torch.zeros(4, 3), torch.zeros(4), "needs integer class numbers"),
        ("cross_entropy", torch.zeros(4, 3), torch.full((4,), 3), "class numbers from 3 to 3, but the output has 3"),
        ("cross_entropy", torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), "one class number per row"),
        ("mse", torch.zeros(4, 3), torch.zeros(4), r"target has shape \(4,\), but the output has \(4, 3\)"),
        ("bce", torch.zeros(4, 1), torch.full((4,), 2), "bce needs targets from 0 to 1"),
    ],
)
def test_loss_refuses_with_a_clear_sentence_when_the_target_does_not_fit(name, output, target, words):
    with pytest.raises(DataError, match=words):
        build_loss(name, "y")(output, {"y": target})


@pytest.mark.parametrize(("name", "true"), [("loss", 1.0), ("perplexity", np.e)])
def test_mean_metrics_say_how_far_they_are_to_be_trusted(name, true):
    """Of 100 validations, the true mean lies within 1.3 standard errors in about 80."""
    rng, within = np.random.default_rng(0), 0
    metric = build_metric(name, "mse", build_loss("mse", "y"), "y")
    for _ in range(100):
        batches = [torch.from_numpy(rng.normal(size=(8, 1)).astype(np.float32)) for _ in range(200)]
        value, error = metric.value(sum(metric.sums(batch, {"y": torch.zeros(8, 1)}) for batch in batches))
        within += abs(value - true) < 1.3 * error
        assert error == pytest.approx(true * (2 / 1600) ** 0.5, rel=0.35)
    assert 70 <= within <= 92


def test_a_mean_over_one_batch_has_no_error():
    metric = build_metric("loss", "mse", build_loss("mse", "y"), "y")
    assert np.isnan(metric.value(metric.sums(torch.ones(4, 1), {"y": torch.zeros(4, 1)}))[1])
